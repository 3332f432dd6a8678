"""``bdm merge-power``: merge the parts of a power analysis."""

from pathlib import Path
from typing import Annotated

import typer

from bdm.commands.base import Summary
from bdm.commands.options import OutFolder


def merge_power(
    out: OutFolder,
    parts: Annotated[list[Path], typer.Argument(help="Files made by bdm power --part.", show_default=False)],
) -> Summary:
    """Merge the parts of a power analysis, in any order, to the results that one job would have written.

    Example: bdm merge-power power/ 1-of-2.csv 2-of-2.csv
    """
    from bdm.files import atomic_write
    from bdm.plotting.power import power_figure
    from bdm.plotting.style import save_figure
    from bdm.power.analysis import merged_parts
    from bdm.text import counted

    with atomic_write(out, folder_of="power.csv") as folder:
        analysis = merged_parts(parts)
        analysis.save(folder)
        save_figure(power_figure(analysis), folder / "power.png")
    return Summary((out,), {"experiments": f"{analysis.power['number'].nunique()} of {counted(len(parts), 'part')}"})
