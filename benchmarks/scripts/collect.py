"""Collect the rows of all runs of a target, and show them as the tables that ``tables.py`` specifies."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from tables import Target, targets

from bdm.plotting.style import save_figure

FIRST = ["data", "method", "seed"]  # columns


def rows_of(runs: list[Path], read: Callable[[Path], pd.DataFrame], earlier: Path | None) -> pd.DataFrame:
    """Read the rows of runs, with data set and seed, after those of earlier runs that did not run again.

    Parameters
    ----------
    runs
        Folders ``DATA/SEED``.
    read
        Reads the rows of a run.
    earlier
        File of rows, if any.
    """
    tables = [read(run).assign(data=run.parts[-2], seed=int(run.parts[-1])) for run in runs]
    rows = pd.concat([table for table in tables if len(table)], ignore_index=True)
    first = [column for column in FIRST if column in rows]
    rows = rows[[*first, *rows.columns.drop(first)]]
    if earlier is None or not earlier.exists():
        return rows
    before = pd.read_csv(earlier)
    again = pd.MultiIndex.from_frame(before[first]).isin(pd.MultiIndex.from_frame(rows[first]))
    return pd.concat([before[~again], rows], ignore_index=True)


def collect(name: str, target: Target, out: Path, runs: list[Path], earlier: Path | None = None) -> str:
    """Write the rows of each part of a target, and its figures; returns its tables as Markdown."""
    text = [f"# {target.title}"]
    for part in target.parts:
        file = f"{name}_{part.name}" if part.name else name
        rows = rows_of(runs, part.read, earlier and earlier / f"{file}.csv")
        rows.to_csv(out / f"{file}.csv", index=False, float_format="%.6g")
        for table in part.tables:
            text += [table.title, *table.as_text(rows)]
        if part.figure is not None:
            save_figure(part.figure(rows), out / f"{file}.png")
    return "\n\n".join(text) + "\n"


def main(
    name: Annotated[str, typer.Argument(metavar="TARGET")],
    out: Path,
    runs: Annotated[list[Path], typer.Argument(metavar="DATA/SEED...")],
    *,
    training: Annotated[
        list[str], typer.Option(help="Steps that a method trains in.", metavar="METHOD=STEP,STEP")
    ] = [],  # noqa: B006
    earlier: Annotated[Path | None, typer.Option(help="Folder with files of earlier runs, to be shown, too.")] = None,
) -> None:
    """Write ``TARGET.csv``, ``TARGET.md``, and figures, if there are any."""
    steps = {method: names.split(",") for method, names in (item.split("=") for item in training)}
    (out / f"{name}.md").write_text(collect(name, targets(steps)[name], out, runs, earlier), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
