"""Show what attacks find in cells of models without sub-populations of few donors, and what it costs."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown, over_seeds
from audit_table import donors_found, shown

from bdm.audit.results import GENERATED, TABLES
from bdm.audit.verdict import ON_MODEL

KEYS = ["data", "min_donors"]
POPULATIONS = {
    "n_populations": "populations",
    "n_of_one_donor": "of one donor",
    "share_of_one_donor": "share of cells in these",
    "fewest_donors": "fewest donors in effect",
}
SCORES = {"forest_auc": "forest AUC", "fold_change_correlation": "r of log fold changes", "f1": "F1"}
TEXT = """# Sub-populations of few donors

`min_donors` is the least number of donors in effect, of a cell type and of a sub-population. Numbers are means over
the folds of the audits of all seeds, with the smallest and the largest value.

## Populations

Populations of the members' cells; those of one donor have fewer than two in effect, so more than half of their cells
are of one.

{populations}

## AUC of donors in generated cells

{attacks}

## AUC by cell type, of the best attack

Of donors, with their cells of the type, and of single cells.

{by_type}

## Fidelity

Cells are compared with cells of donors that no model was fitted to; the floor is real cells of the members.

{fidelity}
"""


def of_folds(audits: list[Path]) -> pd.DataFrame:
    """Join the scores of all folds, ``DATA/SEED/scores/MIN_DONORS.csv``."""
    keys = [{"data": path.parts[-4], "seed": int(path.parts[-3]), "min_donors": int(path.name)} for path in audits]
    paths = [path.parents[1] / "scores" / f"{path.name}.csv" for path in audits]
    return pd.concat([pd.read_csv(path).assign(**key) for path, key in zip(paths, keys, strict=True)])


def best_by_type(audits: list[Path]) -> pd.DataFrame:
    """Areas of the best attacks on donors and on cells of each type, as means over seeds: a row for each model."""
    tables = []
    for path in audits:
        table = pd.read_csv(path / TABLES["by_label"])
        table = table[(table["set"] == GENERATED) & ~table["attack"].isin(ON_MODEL)]
        best = table.groupby("cell_type", as_index=False)[["auc_of_donors", "auc"]].max()
        tables.append(best.assign(data=path.parts[-4], min_donors=int(path.name)))
    mean = pd.concat(tables).groupby([*KEYS, "cell_type"])[["auc_of_donors", "auc"]].mean()
    return mean.map("{:.2f}".format).agg("; ".join, axis=1).unstack(fill_value="")


def main(out: Path, text: Path, audits: list[Path]) -> None:
    """Write the table of all folds, and its overview as Markdown."""
    scores, found = of_folds(audits), donors_found(audits).astype({"method": int})
    generated = scores[scores["set"] == GENERATED]
    by_fold = found.rename(columns={"method": "min_donors"})
    of_fold = [*KEYS, "seed", "fold"]
    wide = by_fold.pivot_table(index=of_fold, columns="attack", values="auc").reset_index()
    scores.merge(wide, on=of_fold, how="left").to_csv(out, index=False, float_format="%.5f")
    by_set = scores.groupby([*KEYS, "set"], sort=False)[list(SCORES)].agg(over_seeds).rename(columns=SCORES)
    tables = {
        "populations": generated.groupby(KEYS)[list(POPULATIONS)].agg(over_seeds).rename(columns=POPULATIONS),
        "attacks": shown(found).rename_axis(KEYS),
        "by_type": best_by_type(audits),
        "fidelity": by_set,
    }
    text.write_text(TEXT.format(**{name: markdown(table) for name, table in tables.items()}), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
