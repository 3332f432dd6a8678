"""``bdm merge``: merge the parts that several jobs wrote."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from bdm.commands.base import Summary
from bdm.commands.options import Output


def merge(
    out: Annotated[Path, Output, "File to write; a folder, for a power analysis or an audit."],
    parts: Annotated[tuple[Path, ...], "What commands with --part wrote: all parts of one result."],
) -> Summary:
    """Merge the parts of one result, in any order, to what one job would have written.

    Parts are files of cells (bdm generate, bdm simulate), tables (bdm power) or folders (bdm audit).

    Example: bdm merge generated.h5ad 1-of-2.h5ad 2-of-2.h5ad

    Example: bdm merge power/ 1-of-2.csv 2-of-2.csv

    Example: bdm merge audit/ 1-of-3/ 2-of-3/ 3-of-3/
    """
    kind = merge_audit if parts[0].is_dir() else merge_power if parts[0].suffix == ".csv" else merge_cells
    return Summary((out,), kind(out, parts))


def merge_cells(out: Path, parts: Sequence[Path]) -> dict[str, str]:
    """Merge files of cells, and describe the result."""
    from bdm._core.files import atomic_write
    from bdm.generation.merge import merged_cells, write_cells

    with atomic_write(out) as path:
        cells, record = merged_cells(parts)
        write_cells(path, cells, {"bdm": record})
    return {"cells": f"{len(cells.obs):,} of {len(parts)} parts"}


def merge_power(out: Path, parts: Sequence[Path]) -> dict[str, str]:
    """Merge tables of a power analysis, and describe the result."""
    from bdm._core.files import atomic_write
    from bdm.errors import counted
    from bdm.plotting.files import write_result
    from bdm.power.analysis import merged_parts

    with atomic_write(out, folder_of="power.csv") as folder:
        analysis = merged_parts(parts)
        write_result(folder, analysis)
    return {"experiments": f"{analysis.power['number'].nunique()} of {counted(len(parts), 'part')}"}


def merge_audit(out: Path, parts: Sequence[Path]) -> dict[str, str]:
    """Merge folds of an audit, and give its verdict."""
    from bdm._core.files import atomic_write
    from bdm.audit.results import KIND, Audit, merged
    from bdm.plotting.files import write_result

    with atomic_write(out, folder_of=f"{KIND}.json") as folder:
        audit = merged(Audit.load(part) for part in parts)
        write_result(folder, audit)
    return {"verdict": audit.verdict.text}
