import logging
from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.options import ModelFolder, Seed

logger = logging.getLogger(__name__)


def extend(
    model: ModelFolder,
    cells: Annotated[Path, typer.Argument(help="Cells with the new types, with raw counts.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="Folder of the extended model.", file_okay=False, show_default=False)],
    *,
    cell_type: Annotated[
        list[str] | None,
        typer.Option("--type", help="New type; may be repeated; all that are new if not given.", show_default=False),
    ] = None,
    label_key: Annotated[
        str | None, typer.Option(help="Column of obs with the cell types.", show_default="the model's")
    ] = None,
    counts: Annotated[
        str, typer.Option(help="Where the raw counts are: X, raw, the name of a layer, or auto.")
    ] = "auto",
    missing_as_zero: Annotated[
        bool, typer.Option("--missing-as-zero", help="Take genes that the cells lack as not expressed.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Add cell types to a model, without a change to what it generates of others.

    Example: bdm extend model/ new.h5ad extended/ --type "CD56+ NK"
    """
    from dataclasses import asdict

    from bdm.data.read import read_cells
    from bdm.extension.extend import ExtendSettings, extend_all
    from bdm.extension.new_cells import new_cells
    from bdm.extension.report import summary, write_report
    from bdm.files import sha256, written_whole
    from bdm.model.model import load_model, save_model
    from bdm.provenance import provenance

    settings = ExtendSettings()
    with written_whole(out, folder_of="model.json") as folder:
        loaded = load_model(model)
        added = new_cells(
            read_cells(cells),
            loaded,
            cell_types=tuple(cell_type or ()),
            label_key=label_key,
            counts=counts,
            missing_as_zero=missing_as_zero,
            seed=seed,
        )
        facts = {"ancestor_sha256": sha256(model), "cells_sha256": sha256(cells), "settings": asdict(settings)}
        found = []
        for extended in extend_all(loaded, added, settings, seed=seed, provenance=provenance(seed=seed, **facts)):
            logger.info(summary(extended))
            found.append(extended)
        save_model(folder, found[-1].model)
        write_report(folder, found)
