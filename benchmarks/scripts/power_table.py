"""Power by donors in each condition, and by the second value of each grid."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown

from bdm.design.grid import AXES
from bdm.plotting.power import AXIS_LABELS, METHOD_LABELS
from bdm.power.analysis import PowerAnalysis


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Lay out the power of one grid, with its interval: a row for each method and number of donors."""
    [across] = [axis for axis in AXES if axis != "donors" and table[axis].nunique() > 1]
    percent = (100 * table[["power", "low", "high"]]).round().astype(int).astype(str)
    rows = pd.DataFrame(
        {
            "test": table["method"].map(METHOD_LABELS),
            "donors": table["donors"].astype(int),
            "value": AXIS_LABELS[across] + " " + table[across].map("{:g}".format),
            "power": percent["power"] + "% (" + percent["low"] + " to " + percent["high"] + ")",
        }
    )
    return rows.pivot(index=["test", "donors"], columns="value", values="power")[rows["value"].unique()]


def main(text: Path, grids: list[Path]) -> None:
    """Write the power of all grids as Markdown, with 95% intervals."""
    parts = []
    for grid in grids:
        table = PowerAnalysis.load(grid).power
        wrong = (100 * table.groupby("method")["small_p_values"].mean()).dropna().round(1)
        found = ", ".join(f"{METHOD_LABELS[method]} {value:g}%" for method, value in wrong.items())
        null = f"\n\nP-values below 0.05 where nothing was planted: {found}." if found else ""
        parts.append(f"## {grid.name}\n\n{markdown(overview(table))}{null}")
    text.write_text("# Power\n\n" + "\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
