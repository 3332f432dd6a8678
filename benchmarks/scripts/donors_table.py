"""Collect how donors differ in all data sets and seeds."""

from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds

COLUMNS = {
    "pseudobulk": "variance of pseudobulks",
    "pseudobulk_r": "its correlation",
    "intraclass": "intraclass correlation",
    "intraclass_r": "its correlation over genes",
    "first": "share of first component",
    "depth": "intraclass correlation of depth",
    "composition": "spread of composition",
    "n_cells": "spread of numbers of cells",
}


def main(table: Path, text: Path, scores: list[Path]) -> None:
    """Write one table of all, and the means over seeds as Markdown."""
    parts = [pd.read_csv(path).assign(data=path.parts[-3], seed=int(path.parts[-2])) for path in scores]
    whole = pd.concat(parts, ignore_index=True)
    whole.to_csv(table, index=False)
    by_set = whole.groupby(["data", "set"], sort=False)[list(COLUMNS)].agg(over_seeds).rename(columns=COLUMNS)
    text.write_text(f"# Donors\n\nRatios to left-out donors. Numbers are the {OVER_SEEDS}\n\n{markdown(by_set)}\n")


if __name__ == "__main__":
    typer.run(main)
