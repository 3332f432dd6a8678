"""``bdm generate``: generate new cells, as raw counts."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from bdm.commands.base import Summary, evaluating
from bdm.commands.options import Device, DryRun, ModelFolder, OutCells
from bdm.errors import InputError, at, counted
from bdm.settings import AS_FITTED, GenerationSettings, InputKeys, Seed

CellsLike = Annotated[Path | None, "AnnData with as many cells of each type as to generate."]
LabelKey = Annotated[str | None, "Column of `obs` with the cell type, in --cells-like and --like.", AS_FITTED]
Like = Annotated[
    Path | None,
    "Cells whose columns of CELLxGENE's schema the generated cells receive, and their numbers if none are given.",
]
CellsFrom = Annotated[Path | None, "CSV with the columns `cell_type`, `n_cells` and, if any, `batch`."]
PartName = Annotated[str | None, "Generate one part only, such as 2-of-8, for bdm merge."]


def generate(
    model: ModelFolder,
    out: OutCells,
    *,
    cells: Annotated[int | None, "Number of cells of every type."] = None,
    cells_like: CellsLike = None,
    label_key: LabelKey = None,
    cells_from: CellsFrom = None,
    like: Like = None,
    settings: GenerationSettings,
    part: PartName = None,
    device: Device = "auto",
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> Summary | None:
    """Generate new cells, as raw counts, of any of a model's cell types.

    Example: bdm generate model/ generated.h5ad --cells 1000
    """
    from bdm._core.files import atomic_write, sha256
    from bdm._core.training import fabric
    from bdm.data.read import read_cells
    from bdm.generation.chunks import WHOLE, Part
    from bdm.generation.generate import generated_cells
    from bdm.generation.like import OriginalCells, with_schema
    from bdm.generation.merge import write_cells
    from bdm.generation.request import numbers_like, read_request, request_cells
    from bdm.model.generated_file import record_of_cells
    from bdm.model.model import load_model

    cells_like = check_options(cells, cells_like, cells_from, like=like, label_key=label_key)
    of_cells = WHOLE if part is None else Part.parse(part)
    with ExitStack() as files:
        path = None if dry_run else files.enter_context(atomic_write(out))
        loaded = load_model(model, device=fabric(device).device)
        keys = InputKeys(label_key=label_key)
        requested: Any = cells  # a number, numbers by type, or a table
        if cells_like is not None:
            requested = numbers_like(read_cells(cells_like, on_disk=True).obs, loaded, keys)
        if cells_from is not None:
            requested = read_request(cells_from)
        request, original = request_cells(loaded, requested), None
        if like is not None:
            with at(like):
                original = OriginalCells.of(read_cells(like, on_disk=True), loaded, keys)
        n_cells, n_genes = request.n_cells, counted(len(loaded.autoencoder.genes), "gene")
        of = f"{counted(len(n_cells), 'type')} x {n_genes}"
        if path is None:
            print_plan(out if part is None else f"{out}, part {part}", n_cells, of)
            return None
        shared = settings.shared_ancestors
        generated = generated_cells(loaded, request, settings, seed=seed, shared_ancestors=shared, part=of_cells)
        record = record_of_cells(
            loaded,
            model,
            seed=seed,
            settings=asdict(settings),
            request=request.table.to_dict("list"),
            part=part,
            like_sha256=None if like is None else sha256(like),
        )
        if original is not None:
            generated = with_schema(generated, original, loaded, request, seed=seed)
        write_cells(path, generated, {"bdm": record})
    facts = {**({} if part is None else {"part": part}), "cells": f"{sum(n_cells.values()):,} of {of}"}
    then = (
        () if part or cells_like is None else evaluating(cells_like, "bdm", "evaluate", cells_like, "evaluation/", out)
    )
    return Summary((out,), facts, then=then)


def print_plan(out: Path | str, n_cells: dict[str, int], of: str) -> None:
    """Print how many cells of each type would be generated."""
    by_type = "\n".join(f"{number:>9,}  {name}" for name, number in n_cells.items())
    in_all = f"{sum(n_cells.values()):>9,}  cells of {of}"
    print(f"would write {out}:\n{by_type}\n{in_all}")


def check_options(
    cells: int | None, cells_like: Path | None, cells_from: Path | None, *, like: Path | None, label_key: str | None
) -> Path | None:
    """Reject options that contradict each other; return the file with the numbers of cells, which may be ``like``."""
    n_given = sum(option is not None for option in (cells, cells_like, cells_from))
    if n_given != 1 and (n_given or like is None):
        raise InputError("Give the number of cells by one of --cells, --cells-like and --cells-from.")
    if label_key is not None and cells_like is None and like is None:
        raise InputError("--label-key names a column of the file of --cells-like or --like; give one of these, too.")
    return cells_like if n_given else like
