"""``bdm transmute``: transmute cells to another cell type."""

from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.base import Summary, evaluating
from bdm.commands.options import Device, ModelFolder, OutFile
from bdm.settings import InputKeys, Seed, SourceTypes, TargetType, TransmutationSettings


def transmute(
    model: ModelFolder,
    cells: Annotated[Path, typer.Argument(help="Cells to transmute, with raw counts.", show_default=False)],
    out: OutFile,
    *,
    to: TargetType,
    from_: SourceTypes = (),
    like: Annotated[
        list[str] | None,
        typer.Option(
            help="Two types whose difference cells are transmuted by; may be repeated. The target may then be a type "
            "that the model lacks.",
            metavar="OLD=NEW",
            show_default=False,
        ),
    ] = None,
    keys: InputKeys,
    settings: TransmutationSettings,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Transmute cells to another cell type, by way of their common ancestor in the hierarchy.

    Example: bdm transmute model/ prepared.h5ad transmuted.h5ad --to "CD56+ NK" --from "CD19+ B"
    """
    from dataclasses import asdict

    import numpy as np

    from bdm._core.files import atomic_write, sha256
    from bdm._core.training import fabric
    from bdm.data.read import read_cells
    from bdm.generation.merge import write_cells
    from bdm.model.generated_file import record_of_cells
    from bdm.model.model import load_model
    from bdm.transmutation.request import Goal, read_pair, report_errors, sources_of
    from bdm.transmutation.transmute import transmuted_cells

    with atomic_write(out) as path:
        loaded = load_model(model, device=fabric(device).device)
        names = tuple(dict.fromkeys((*loaded.cell_types, *loaded.populations)))
        goal = Goal(to, tuple(read_pair(text, names) for text in like or ()))
        sources = sources_of(read_cells(cells), loaded, goal, keys, cell_types=from_)
        report_errors(loaded, goal.like, seed=seed)
        transmuted = transmuted_cells(loaded, sources, goal, settings, seed=seed)
        record = record_of_cells(
            loaded,
            model,
            seed=seed,
            settings={**asdict(settings), "to": to, "from": list(from_), "like": like or []},
            cells_sha256=sha256(cells),
        )
        write_cells(path, transmuted, {"bdm": record})
    n_by_type = zip(*np.unique(sources.cell_type, return_counts=True), strict=True)
    original_types = ", ".join(f"{number:,} {name}" for name, number in n_by_type)
    facts = {"cells": f"{len(sources.cell_type):,} transmuted to {to}: {original_types}"}
    return Summary((out,), facts, then=evaluating(cells, "bdm", "evaluate-transmuted", cells, "transmutation/", out))
