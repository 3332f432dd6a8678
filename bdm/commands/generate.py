"""``bdm generate``: generate new cells, as raw counts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge

from bdm._core.errors import InputError, counted
from bdm.commands.base import AtValues, Device, Extrapolate, ModelFolder, OutGenerated, Summary
from bdm.settings import AS_FITTED, GenerationSettings, InputKeys, Seed

if TYPE_CHECKING:
    from anndata import AnnData

    from bdm.model.model import BranchedModel


def generate(
    model: ModelFolder,
    out: OutGenerated,
    *,
    cells: Annotated[tuple[str, ...], "Number of cells of every type, or of a type or sub-population, as TYPE=N."] = (),
    cells_like: Annotated[
        Path | None,
        "AnnData with as many cells of each type as to generate, with their batches, covariates and positions.",
    ] = None,
    label_key: Annotated[str | None, "Column of `obs` with the cell type, in --cells-like.", AS_FITTED] = None,
    cells_from: Annotated[
        Path | None,
        "CSV with a row for each cell, or group of `n_cells`; columns `cell_type`, `batch`, covariates, `x`, `y`.",
    ] = None,
    new_locations: Annotated[
        int | None, Ge(1), "Number of cells at new positions, as dense as the training cells, with types from the map."
    ] = None,
    at: AtValues = (),
    extrapolate: Extrapolate = False,
    settings: GenerationSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Generate new cells of a model's cell types, as raw counts.

    Example: bdm generate model/ generated.h5ad --cells 1000

    Example: bdm generate model/ generated.h5ad --cells "CD56+ NK=1000" --cells Dendritic=500

    Example: bdm generate model/ generated.h5ad --cells-like cells.h5ad
    """
    from bdm.data.modalities import check_form, features_in_words
    from bdm.data.read import read_cells
    from bdm.generation.covariate_values import parse_at
    from bdm.generation.generate import generated_cells, write_cells
    from bdm.generation.request import parse_cells, read_request, request_cells
    from bdm.model.model import checksums, load_model, warn_of_rare_types

    if sum(map(bool, (cells, cells_like, cells_from, new_locations))) != 1:
        raise InputError(
            "Give the cells to generate by one of --cells, --cells-like, --cells-from and --new-locations."
        )
    if label_key is not None and cells_like is None:
        raise InputError("--label-key names a column of the file of --cells-like; give this file, too.")
    numbers, loaded = parse_cells(cells), load_model(model, device=device)
    check_form(out, loaded.form)
    like = None if cells_like is None else read_cells(cells_like, on_disk=True)
    requested: object = like if cells_from is None else read_request(cells_from)
    request = request_cells(
        loaded,
        numbers if cells else requested,
        new_locations=new_locations,
        at=parse_at(at),
        extrapolate=extrapolate,
        keys=InputKeys(label_key=label_key),
        seed=seed,
    )
    warn_of_rare_types(loaded, request.n_by_type)
    write_cells(out, generated_cells(loaded, request, settings, seed=seed), checksums({}, model=model))
    n_types, features = counted(len(request.n_by_type), "type"), features_in_words(loaded.autoencoder.genes)
    facts = {"cells": f"{sum(request.n_by_type.values()):,} of {n_types} x {features}"}
    return Summary(facts, then=evaluating(like, loaded, "bdm", "evaluate", cells_like or "", out, "evaluation/"))


def evaluating(cells: "AnnData | None", model: "BranchedModel", *words: Path | str) -> tuple[Path | str, ...]:
    """Return the command ``words`` if ``cells`` include test cells for the model."""
    if cells is None or not {"cell_type", "split"} <= {*cells.obs} or "test" not in set(cells.obs["split"]):
        return ()
    return words if cells.var_names.equals(model.autoencoder.genes.index) else ()
