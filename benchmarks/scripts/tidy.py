"""Long tables of scores, as all studies write them."""

from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from bdm._core.files import atomic_write

RARE = 50  # types with fewer training cells are rare
LABEL = "label: "  # prefix for columns of labels


def tidy(table: pd.DataFrame, keys: Iterable[str]) -> pd.DataFrame:
    """Melt columns to ``score`` and ``value``, without missing values."""
    return table.melt(id_vars=list(keys), var_name="score").dropna(subset="value")


def write_rows(rows: pd.DataFrame, out: Path) -> None:
    """Write rows with six significant digits."""
    with atomic_write(out) as path:
        rows.to_csv(path, index=False, float_format="%.6g")
