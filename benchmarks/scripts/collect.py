"""Collect the rows of a target, and format the tables of ``tables.py``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from tables import Target, targets

from bdm.plotting.style import save_figure

FIRST = ["data", "method", "seed"]  # leading columns


def collect_rows(runs: list[Path], read: Callable[[Path], pd.DataFrame], earlier: Path | None) -> pd.DataFrame:
    """Read the rows of runs, and add earlier runs that were not repeated.

    Parameters
    ----------
    runs
        Folders ``DATA/SEED``.
    read
        Reads the rows of a run.
    earlier
        File with rows of earlier runs.
    """
    tables = [read(run).assign(data=run.parts[-2], seed=int(run.parts[-1])) for run in runs]
    rows = pd.concat([table for table in tables if len(table)], ignore_index=True)
    first = [column for column in FIRST if column in rows]
    rows = rows[[*first, *rows.columns.drop(first)]]
    if earlier is None or not earlier.exists():
        return rows
    before = pd.read_csv(earlier)
    is_repeated = pd.MultiIndex.from_frame(before[first]).isin(pd.MultiIndex.from_frame(rows[first]))
    return pd.concat([before[~is_repeated], rows], ignore_index=True)


def collect(name: str, target: Target, out: Path, runs: list[Path], earlier: Path | None = None) -> str:
    """Write rows and figures of a target, and return its tables in Markdown."""
    text = [f"# {target.title}"]
    for part in target.parts:
        file = f"{name}_{part.name}" if part.name else name
        rows = collect_rows(runs, part.read, earlier and earlier / f"{file}.csv")
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
    training: Annotated[list[str], typer.Option(help="Training steps of a method.", metavar="METHOD=STEP,STEP")] = [],  # noqa: B006
    earlier: Annotated[Path | None, typer.Option(help="Folder with rows of earlier runs to include.")] = None,
) -> None:
    """Write ``TARGET.csv``, ``TARGET.md`` and figures."""
    steps = {method: names.split(",") for method, names in (item.split("=") for item in training)}
    (out / f"{name}.md").write_text(collect(name, targets(steps)[name], out, runs, earlier), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
