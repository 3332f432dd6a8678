from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.options import BatchKey, Counts, Device, LabelKey, ModelFolder, OutFile, Seed
from bdm.commands.told import Summary


def transmute(
    model: ModelFolder,
    cells: Annotated[Path, typer.Argument(help="Cells to move, with raw counts.", show_default=False)],
    out: OutFile,
    *,
    to: Annotated[str, typer.Option(help="Cell type to move to.", show_default=False)],
    from_: Annotated[
        list[str] | None,
        typer.Option("--from", help="Cell type to move; may be repeated; all others if not given.", show_default=False),
    ] = None,
    like: Annotated[
        list[str] | None,
        typer.Option(
            help="Two types that made such a move; may be repeated. The model need not know the type moved to.",
            metavar="OLD=NEW",
            show_default=False,
        ),
    ] = None,
    label_key: LabelKey = None,
    batch_key: BatchKey = None,
    counts: Counts = None,
    stochastic: Annotated[
        bool, typer.Option("--stochastic", help="Noise the cells on the way up, so that none keeps its place.")
    ] = False,
    n_levels: Annotated[int, typer.Option(help="Noise levels from the root to the end.", min=2)] = 12,
    device: Device = "auto",
    seed: Seed = 0,
) -> Summary:
    """Move cells to another cell type, by way of their common ancestor in the hierarchy.

    Example: bdm transmute model/ prepared.h5ad transmuted.h5ad --to "CD56+ NK" --from "CD19+ B"
    """
    from dataclasses import asdict

    import numpy as np

    from bdm.data.read import read_cells
    from bdm.files import atomic_write, sha256
    from bdm.generation.merge import write_cells
    from bdm.model.match import InputKeys
    from bdm.model.model import load_model, model_checksum
    from bdm.provenance import provenance, storable
    from bdm.settings import SamplerSettings
    from bdm.training import fabric
    from bdm.transmutation.request import Goal, read_pair, sources_of
    from bdm.transmutation.transmute import transmuted_cells

    settings = SamplerSettings(n_levels=n_levels, stochastic=stochastic)
    with atomic_write(out) as path:
        loaded = load_model(model, device=fabric(device).device)
        goal = Goal(to, tuple(read_pair(text, loaded.cell_types) for text in like or ()))
        keys = InputKeys(label_key=label_key, batch_key=batch_key, counts=counts)
        sources = sources_of(read_cells(cells), loaded, goal, keys, cell_types=tuple(from_ or ()))
        moved = transmuted_cells(loaded, sources, goal, settings, seed=seed)
        record = provenance(
            seed=seed,
            settings={**asdict(settings), "to": to, "from": from_ or [], "like": like or []},
            model_sha256=model_checksum(model),
            cells_sha256=sha256(cells),
        )
        write_cells(path, moved, {"bdm": storable(record)})
    n_by_type = zip(*np.unique(sources.cell_type, return_counts=True), strict=True)
    moved_from = ", ".join(f"{number:,} {name}" for name, number in n_by_type)
    facts = {"cells": f"{len(sources.cell_type):,} moved to {to}: {moved_from}"}
    return Summary((out,), facts, then=("bdm", "evaluate-transmuted", "prepared.h5ad", "transmutation/", out))
