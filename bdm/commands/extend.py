from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.options import BatchKey, Counts, LabelKey, ModelFolder, Seed
from bdm.commands.told import DryRun, Summary, generating


def extend(
    model: ModelFolder,
    cells: Annotated[Path, typer.Argument(help="Cells with the new types, with raw counts.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder of the extended model.", file_okay=False, show_default=False)],
    *,
    cell_type: Annotated[
        list[str] | None,
        typer.Option("--type", help="New type; may be repeated; all that are new if not given.", show_default=False),
    ] = None,
    update: Annotated[
        list[str] | None,
        typer.Option(help="Known type to learn anew from more cells; may be repeated.", show_default=False),
    ] = None,
    label_key: LabelKey = None,
    batch_key: BatchKey = None,
    counts: Counts = None,
    missing_as_zero: Annotated[
        bool, typer.Option("--missing-as-zero", help="Take genes that the cells lack as not expressed.")
    ] = False,
    known: Annotated[
        Path | None,
        typer.Option(help="Cells that the model has learnt from, made by bdm prepare.", show_default=False),
    ] = None,
    joined: Annotated[
        Path | None,
        typer.Option(help="File of prepared cells to write: the known ones, if given, and the new.", dir_okay=False),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Folder of tables and figures to write.", file_okay=False, show_default=False),
    ] = None,
    refit: Annotated[
        bool, typer.Option("--refit", help="Learn everything anew from known and new cells, in place of extending.")
    ] = False,
    seed: Seed = 0,
    dry_run: DryRun = False,
) -> Summary | None:
    """Add cell types to a model, without a change to what it generates of others.

    Example: bdm extend model/ new.h5ad extended/ --type "CD56+ NK"
    """
    from contextlib import ExitStack
    from dataclasses import asdict

    from bdm.data.h5ad import write_h5ad
    from bdm.data.prepare import read_prepared
    from bdm.data.read import read_cells
    from bdm.errors import InputError
    from bdm.extension.extend import ExtendSettings, extend_all
    from bdm.extension.extend import refit as refitted
    from bdm.extension.new_cells import join_known_cells as joined_cells
    from bdm.extension.new_cells import new_cells
    from bdm.extension.report import ExtensionReport, summary, write_tables
    from bdm.files import atomic_write, sha256
    from bdm.model.match import InputKeys
    from bdm.model.model import load_model, model_checksum, save_model
    from bdm.plotting.write import write_figures
    from bdm.provenance import provenance

    if refit and (known is None or report is not None):
        raise InputError("To learn everything anew, give the known cells by --known, and no --report.")
    settings, keys = ExtendSettings(), InputKeys(label_key=label_key, batch_key=batch_key, counts=counts)
    with ExitStack() as files:
        if not dry_run:
            folder = files.enter_context(atomic_write(out, folder_of="model.json"))
        loaded = load_model(model)
        new = new_cells(
            read_cells(cells),
            loaded,
            cell_types=tuple(cell_type or ()),
            update=tuple(update or ()),
            keys=keys,
            missing_as_zero=missing_as_zero,
            seed=seed,
        )
        prepared = joined_cells(new, loaded, known and read_prepared(known))
        if dry_run:
            print(f"would write {out}, learning {'all types anew, with' if refit else 'in turn'}:")
            for name, of_type in new.by_type.items():
                print(f"{of_type.n_obs:>9,}  {name}{' (known, anew)' if name in loaded.cell_types else ''}")
            return None
        facts = {
            "ancestor_sha256": model_checksum(model),
            "cells_name": cells.name,
            "cells_sha256": sha256(cells),
            "options": {**asdict(keys), "missing_as_zero": missing_as_zero},
        }
        found = []
        if refit:
            extended = refitted(loaded, prepared, seed=seed, device="auto", **facts)
        else:
            record = provenance(seed=seed, settings=asdict(settings), **facts)
            for step in extend_all(loaded, new, settings, seed=seed, provenance=record):
                found.append(step)
            extended = found[-1].model
        save_model(folder, extended)
        if joined is not None:
            write_h5ad(files.enter_context(atomic_write(joined)), prepared)
        if report is not None:
            tables = files.enter_context(atomic_write(report, folder_of="extensions.csv"))
            tables.mkdir()
            extension_report = ExtensionReport.of(found)
            write_tables(tables, extension_report)
            write_figures(tables, extension_report)
    types = "\n".join(map(summary, found)) or f"{len(extended.cell_types)}, learnt anew"
    written = (out, joined, report)
    return Summary(written, {"types": types}, then=generating(out))
