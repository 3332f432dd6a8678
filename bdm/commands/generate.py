"""``bdm generate``, ``bdm transmute`` and ``bdm predict-modality``: new cells of a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, MinLen

from bdm._core.errors import InputError, counted
from bdm.commands.base import AtValues, Device, Extrapolate, ModelFolder, OutCells, OutGenerated, Summary
from bdm.settings import (
    AS_FITTED,
    GenerationSettings,
    InputKeys,
    Seed,
    SourceTypes,
    TargetType,
    TransmutationSettings,
)

if TYPE_CHECKING:
    from anndata import AnnData

    from bdm.model.model import BranchedModel

CellsLike = Annotated[
    Path | None, "AnnData with as many cells of each type as to generate, with the values of their covariates."
]
LabelKey = Annotated[str | None, "Column of `obs` with the cell type, in --cells-like.", AS_FITTED]
CellsFrom = Annotated[Path | None, "CSV with the columns `cell_type`, `n_cells` and, if any, `batch`."]


def generate(
    model: ModelFolder,
    out: OutGenerated,
    *,
    cells: Annotated[tuple[str, ...], "Number of cells of every type, or of a type or sub-population, as TYPE=N."] = (),
    cells_like: CellsLike = None,
    label_key: LabelKey = None,
    cells_from: CellsFrom = None,
    at: AtValues = (),
    extrapolate: Extrapolate = False,
    snapshot: Annotated[
        float | None, "Time between those of two snapshots, which are the model's cell types, named by their times."
    ] = None,
    settings: GenerationSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Generate new cells of a model's cell types, as raw counts.

    Example: bdm generate model/ generated.h5ad --cells 1000

    Example: bdm generate model/ generated.h5ad --cells "CD56+ NK=1000" --cells Dendritic=500
    """
    from bdm.data.modalities import check_form, features_in_words
    from bdm.data.read import read_cells
    from bdm.generation.covariate_values import parse_at
    from bdm.generation.generate import generated_cells, write_cells
    from bdm.generation.request import numbers_like, parse_cells, read_request, request_cells
    from bdm.model.model import checksums, load_model, warn_of_rare_types

    if sum(map(bool, (cells, cells_like, cells_from))) != 1:
        raise InputError("Give the number of cells by one of --cells, --cells-like and --cells-from.")
    if label_key is not None and cells_like is None:
        raise InputError("--label-key names a column of the file of --cells-like; give this file, too.")
    requested: Any = parse_cells(cells)  # a number, numbers by type, or a table
    loaded = load_model(model, device=device)
    check_form(out, loaded.form)
    like = None if cells_like is None else read_cells(cells_like, on_disk=True)
    if like is not None:
        requested = numbers_like(like.obs, loaded, InputKeys(label_key=label_key))
    if cells_from is not None:
        requested = read_request(cells_from)
    request = request_cells(loaded, requested, at=parse_at(at), extrapolate=extrapolate, snapshot=snapshot)
    warn_of_rare_types(loaded, request.n_by_type)
    write_cells(out, generated_cells(loaded, request, settings, seed=seed), checksums({}, model=model))
    n_types, features = counted(len(request.n_by_type), "type"), features_in_words(loaded.autoencoder.genes)
    facts = {"cells": f"{sum(request.n_by_type.values()):,} of {n_types} x {features}"}
    return Summary(facts, then=evaluating(like, loaded, "bdm", "evaluate", cells_like or "", out, "evaluation/"))


def transmute(
    model: ModelFolder,
    cells: Annotated[Path, "Cells to transmute, with raw counts."],
    out: OutGenerated,
    *,
    to: TargetType,
    from_: SourceTypes = (),
    at: AtValues = (),
    extrapolate: Extrapolate = False,
    keys: InputKeys,
    settings: TransmutationSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Transmute cells to another type through their common ancestor in the hierarchy.

    Example: bdm transmute model/ prepared.h5ad transmuted.h5ad --to "CD56+ NK" --from "CD19+ B"
    """
    import numpy as np

    from bdm.applications.transmutation.transmute import select_sources, transmuted_cells
    from bdm.data.modalities import check_form
    from bdm.generation.covariate_values import parse_at
    from bdm.generation.generate import write_cells
    from bdm.model.match import cells_for
    from bdm.model.model import checksums, load_model

    loaded = load_model(model, device=device)
    check_form(out, loaded.form)
    values, adata = parse_at(at), cells_for(cells, loaded, keys, on_disk=False)
    sources = select_sources(adata, loaded, to, keys, cell_types=from_, at=values, extrapolate=extrapolate)
    transmuted = transmuted_cells(loaded, sources, settings, seed=seed)
    write_cells(out, transmuted, checksums({"cells": cells}, model=model))
    n_by_type = zip(*np.unique(sources.cell_type, return_counts=True), strict=True)
    original_types = ", ".join(f"{number:,} {name}" for name, number in n_by_type)
    facts = {"cells": f"{len(sources.cell_type):,} transmuted to {to}: {original_types}"}
    return Summary(facts, then=evaluating(adata, loaded, "bdm", "evaluate-transmuted", cells, out, "transmutation/"))


def predict_modality(
    model: ModelFolder,
    cells: Annotated[Path, "Cells with raw counts of RNA, in any format that prepare reads."],
    out: OutCells,
    *,
    modality: Annotated[str, MinLen(1), "Modality of the model to predict, such as `prot`."] = "prot",
    n_samples: Annotated[int, Ge(20), "Samples of each cell, from which the interval is computed."] = 200,
    keys: InputKeys,
    seed: Seed = 0,
) -> Summary:
    """Predict proteins or peaks of cells from their RNA.

    Writes means and 90% intervals; the model must be fitted to both modalities. Cell types are used if the cells have
    them in the model's column; otherwise, all types are possible. If the model has covariates, cells need values of
    them.

    Example: bdm predict-modality model/ rna.h5ad proteins.h5ad --modality prot
    """
    from bdm._core import errors
    from bdm.data.matrix import write_h5ad
    from bdm.generation import modality as modalities
    from bdm.model.match import cells_for
    from bdm.model.model import checksums, load_model

    loaded = load_model(model)
    target = modalities.find_modality(loaded, modality)
    with errors.at(cells):
        request = modalities.match_request(cells_for(cells, loaded, keys, on_disk=False), loaded, keys)
    predicted = modalities.predict_modality(loaded, request, target, n_samples=n_samples, seed=seed)
    sha256 = checksums({"cells": cells}, model=model)
    predicted.uns["bdm"] |= {f"{name}_sha256": checksum for name, checksum in sha256.items()}
    write_h5ad(out, predicted)
    types = "by their types" if request.cell_type is not None else "of any type"
    return Summary({"cells": f"{predicted.n_obs:,} {types} x {predicted.n_vars:,} features of {target.name}"})


def evaluating(cells: "AnnData | None", model: "BranchedModel", *words: Path | str) -> tuple[Path | str, ...]:
    """Return the command ``words`` if ``cells`` include test cells for the model."""
    if cells is None or not {"cell_type", "split"} <= {*cells.obs} or "test" not in set(cells.obs["split"]):
        return ()
    return words if cells.var_names.equals(model.autoencoder.genes.index) else ()
