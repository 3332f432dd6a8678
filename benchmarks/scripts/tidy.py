"""Rows that all studies write: what they are about, a score, and its value."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bdm._core.files import atomic_write

RARE = 50  # a type of fewer training cells is rare
LABEL = "label: "  # before the name of a column of labels


def tidy(table: pd.DataFrame, keys: Iterable[str]) -> pd.DataFrame:
    """Give each value its row: the keys, ``score`` (the name of the column) and ``value``, without missing values."""
    return table.melt(id_vars=list(keys), var_name="score").dropna(subset="value")


def write_rows(rows: pd.DataFrame, out: Path) -> None:
    """Write rows with six digits."""
    with atomic_write(out) as path:
        rows.to_csv(path, index=False, float_format="%.6g")
