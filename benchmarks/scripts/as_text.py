"""Tables as text, alike for all results."""

import pandas as pd

RARE = 50  # a type of fewer training cells is rare
OVER_SEEDS = "mean over seeds, with the smallest and the largest value."


def over_seeds(values: pd.Series) -> str:
    """Format the mean, and the range if there are several values; nothing if all are missing."""
    if values.isna().all():
        return ""
    number = "{:.0f}" if values.abs().max() >= 10 else "{:.2f}"
    mean, low, high = (number.format(value) for value in (values.mean(), values.min(), values.max()))
    return mean if len(values) == 1 else f"{mean} ({low} to {high})"


def smallest_to_largest(values: pd.Series) -> str:
    """Format the range of whole numbers, or the only one."""
    return " to ".join(map(str, sorted({values.min(), values.max()})))


def markdown(table: pd.DataFrame) -> str:
    """Write a table with its index as Markdown; what is missing is left empty."""
    table = table.reset_index()
    rows = [table.columns, ["---"] * table.shape[1], *table.itertuples(index=False)]
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in rows)


def cell(value: object) -> str:
    """Write one value of a table."""
    return "" if value in ("", "nan") else str(value).replace("|", "\\|")
