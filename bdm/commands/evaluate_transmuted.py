import logging
from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.evaluate import named_files
from bdm.commands.options import OutFolder, Prepared, Seed
from bdm.commands.told import Summary
from bdm.errors import InputError

logger = logging.getLogger(__name__)


def evaluate_transmuted(
    prepared: Prepared,
    out: OutFolder,
    transmuted: Annotated[
        Path, typer.Argument(help="Cells that bdm transmute moved, named branched.", show_default=False)
    ],
    *,
    beside: Annotated[
        list[str] | None,
        typer.Option(help="Other cells moved likewise; may be repeated.", metavar="NAME=FILE"),
    ] = None,
    seed: Seed = 0,
) -> Summary:
    """Judge transmuted cells by held-out cells of their new type, and by what each was before.

    Example: bdm evaluate-transmuted prepared.h5ad transmutation transmuted.h5ad --beside flat=flat.h5ad
    """
    from bdm.evaluation.inputs import read_counts, read_real_cells
    from bdm.files import sha256, written_whole
    from bdm.plotting.transmutation import write_figures
    from bdm.provenance import provenance
    from bdm.transmutation.evaluate import evaluate_moves
    from bdm.transmutation.inputs import read_moved
    from bdm.transmutation.report import summary, write_report

    files = named_files(transmuted, beside or [])
    with written_whole(out, folder_of="transmutation.json") as folder:
        real = read_real_cells(prepared)
        before = read_counts(prepared, columns=("cell_type",))
        read = {name: read_moved(file, prepared, before, real) for name, file in files.items()}
        targets = {moved.to for moved in read.values()}
        if len(targets) > 1:
            raise InputError(
                f"The cells were moved to different types: {', '.join(sorted(targets))}; judge one at a time."
            )
        evaluation = evaluate_moves(real, {name: moved.cells for name, moved in read.items()}, targets.pop(), seed=seed)
        hashes = {name: sha256(file) for name, file in {"prepared": prepared, **files}.items()}
        record = provenance(seed=seed, sha256=hashes, moved={name: moved.how for name, moved in read.items()})
        folder.mkdir()
        write_report(folder, evaluation, provenance=record)
        write_figures(folder, evaluation)
    logger.info(summary(evaluation))
    return Summary((out,))
