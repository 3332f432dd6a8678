"""Show what models with differential privacy by donor keep of the donors, and what attacks find in their cells."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown, over_seeds
from privacy_table import DELTA

from bdm.audit.verdict import ATTACKS
from bdm.evaluation.cells import FLOOR
from bdm.files import atomic_write

SETS = {
    FLOOR: "cells of the members",
    "public": "public cells alone",
    "members": "members, no guarantee",
    "means": "public, means of the members",
    "training": "public, trained further on the members",
}
SCORES = {
    "forest_auc": "forest AUC",
    "gene_auc": "gene AUC",
    "fold_change_correlation": "r of log fold changes",
    "f1": "F1",
    "learned": "learned of the members",
}
TEXT = f"""# Differential privacy by donor

Models of cells that are public, and of members with a guarantee of (epsilon, {DELTA:g}) for adding or removing all
cells of a donor. Attacks: AUC of donors. Scores compare the cells with cells of donors that no model was fitted to.
What is learned of the members is the share of the way from the means of cells of the public model to the means of the
members, along the difference between members and public cells: 0 for public cells alone, 1 for copies of the members.
Numbers are means over folds and seeds, with the smallest and the largest value.

{{table}}
"""


def with_learned(table: pd.DataFrame) -> pd.DataFrame:
    """Add the share of what distinguishes the members from public cells that the cells of each model have.

    Where kept deviation is ``(g - o) d / (m - o) d``, see :func:`audit_scores.kept_deviation`, and p is the mean of the
    cells of the public model, this is ``(g - p) d / (m - p) d``.
    """
    keys = ["data", "seed", "fold"]
    public = table[table["set"] == "public"].set_index(keys)["kept_deviation"].rename("public")
    of_public = table.join(public, on=keys)["public"]
    return table.assign(learned=(table["kept_deviation"] - of_public) / (1 - of_public))


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Show each score by model, epsilon and learning rate."""
    columns = {f"attack/{name}": text for name, text in ATTACKS.items() if f"attack/{name}" in table} | SCORES
    keys = ["data", "model", "epsilon", "learning_rate"]
    numbers = {name: table[name].map("{:g}".format).where(table[name].notna(), "") for name in keys[2:]}
    shown = table.assign(model=table["set"].map(SETS), **numbers)
    return shown.groupby(keys, sort=False)[list(columns)].agg(over_seeds).rename(columns=columns)


def main(out: Path, text: Path, tables: list[Path]) -> None:
    """Write all values of the tables ``DATA/SEED/NUMBER.csv``, and their overview as Markdown."""
    read = [pd.read_csv(path).assign(data=path.parts[-3], seed=int(path.parts[-2]), fold=path.stem) for path in tables]
    table = with_learned(pd.concat(read, ignore_index=True))
    with atomic_write(out) as path:
        table.to_csv(path, index=False, float_format="%.5f")
    text.write_text(TEXT.format(table=markdown(overview(table))), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
