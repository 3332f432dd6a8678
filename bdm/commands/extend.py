"""``bdm extend``: extend a model by new cell types."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bdm.commands.base import Summary, generating
from bdm.commands.options import DryRun, ModelFolder, Output
from bdm.settings import InputKeys, MissingAsZero, NewTypes, Seed, UpdatedTypes

if TYPE_CHECKING:
    from bdm.extension.extend import FittedExtension
    from bdm.extension.new_cells import NewCells
    from bdm.model.model import BranchedModel


KnownCells = Annotated[
    Path | None, typer.Option(help="Cells that the model was fitted on, made by bdm prepare.", show_default=False)
]
OutModel = Annotated[
    Path, Output, typer.Argument(help="Folder of the extended model.", file_okay=False, show_default=False)
]
JoinedCells = Annotated[
    Path | None,
    Output,
    typer.Option(
        help="File of prepared cells to write: the known ones, if given, and the new.",
        dir_okay=False,
        show_default=False,
    ),
]
ReportFolder = Annotated[
    Path | None,
    Output,
    typer.Option(help="Folder of tables and figures to write.", file_okay=False, show_default=False),
]


def extend(
    model: ModelFolder,
    cells: Annotated[Path, typer.Argument(help="Cells with the new types, with raw counts.", show_default=False)],
    out: OutModel,
    *,
    cell_type: NewTypes = (),
    update: UpdatedTypes = (),
    keys: InputKeys,
    missing_as_zero: MissingAsZero = False,
    known: KnownCells = None,
    joined: JoinedCells = None,
    report: ReportFolder = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> Summary | None:
    """Add cell types to a model; the cells that it generates of all other types stay the same.

    Example: bdm extend model/ new.h5ad extended/ --cell-type "CD56+ NK"
    """
    from contextlib import ExitStack

    from bdm._core.files import atomic_write
    from bdm.data.matrix import write_h5ad
    from bdm.data.prepare import read_prepared
    from bdm.data.read import read_cells
    from bdm.extension.new_cells import join_known_cells, new_cells
    from bdm.extension.results import summary
    from bdm.model.card import save_with_card
    from bdm.model.model import load_model

    with ExitStack() as files:
        if not dry_run:
            folder = files.enter_context(atomic_write(out, folder_of="model.json"))
        loaded = load_model(model)
        how: dict[str, Any] = {"keys": keys, "missing_as_zero": missing_as_zero}
        new = new_cells(read_cells(cells), loaded, cell_types=cell_type, update=update, seed=seed, **how)
        prepared = join_known_cells(new, loaded, known and read_prepared(known))
        if dry_run:
            print_plan(out, new, loaded)
            return None
        steps = extended_step_by_step(loaded, new, seed=seed, **facts_of(model, cells, **how))
        save_with_card(folder, steps[-1].model)
        if joined is not None:
            write_h5ad(files.enter_context(atomic_write(joined)), prepared)
        if report is not None:
            write_report(files.enter_context(atomic_write(report, folder_of="extension_report.json")), steps)
    return Summary((out, joined, report), {"types": "\n".join(map(summary, steps))}, then=generating(out))


def facts_of(model: Path, cells: Path, *, keys: InputKeys, missing_as_zero: bool) -> dict[str, Any]:
    """Facts on an extension that its record keeps: which model and which cells, and how they were read."""
    from dataclasses import asdict

    from bdm._core.files import sha256
    from bdm._core.store import checksum_of

    return {
        "ancestor_sha256": checksum_of(model, "model"),
        "cells_name": cells.name,
        "cells_sha256": sha256(cells),
        "options": {**asdict(keys), "missing_as_zero": missing_as_zero},
    }


def print_plan(out: Path, new: "NewCells", model: "BranchedModel") -> None:
    """Print which types would be fitted, with their numbers of cells."""
    print(f"would write {out}, fitted on one type after the other:")
    for name, adata in new.by_type.items():
        print(f"{adata.n_obs:>9,}  {name}{' (update)' if name in model.cell_types else ''}")


def extended_step_by_step(
    model: "BranchedModel", new: "NewCells", *, seed: int, **facts: Any
) -> "list[FittedExtension]":
    """Extend a model by one type after the other."""
    from dataclasses import asdict

    from bdm._core.files import provenance
    from bdm.extension.extend import ExtendSettings, extend_all

    settings = ExtendSettings()
    record = provenance(seed=seed, settings=asdict(settings), **facts)
    return list(extend_all(model, new, settings, seed=seed, provenance=record))


def write_report(folder: Path, steps: "list[FittedExtension]") -> None:
    """Write the tables and figures of an extension."""
    from bdm.extension.results import ExtensionReport
    from bdm.plotting.files import write_figures

    report = ExtensionReport.of(steps)
    report.save(folder)
    write_figures(folder, report)
