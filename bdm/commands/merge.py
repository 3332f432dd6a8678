"""``bdm merge``: merge the parts of generated cells."""

from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.base import Summary
from bdm.commands.options import OutFile


def merge(
    out: OutFile,
    parts: Annotated[list[Path], typer.Argument(help="Files made by bdm generate --part.", show_default=False)],
) -> Summary:
    """Merge the parts of generated cells, in any order, to the file that one job would have written.

    Example: bdm merge generated.h5ad 1-of-2.h5ad 2-of-2.h5ad
    """
    from bdm.files import atomic_write
    from bdm.generation.merge import merged_cells, write_cells

    with atomic_write(out) as path:
        cells, record = merged_cells(parts)
        write_cells(path, cells, {"bdm": record})
    return Summary((out,), {"cells": f"{len(cells.obs):,} of {len(parts)} parts"})
