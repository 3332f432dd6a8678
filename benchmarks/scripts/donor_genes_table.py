"""Show what attacks find in generated cells without the genes in which donors differ most."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown, over_seeds

from bdm.audit.results import GENERATED, TABLES
from bdm.audit.verdict import ATTACKS

TEXT = """# Audits without the genes in which donors differ most

AUC of donors in generated cells, by the share of genes that is left out: the mean over folds, with the smallest and the
largest value.

{table}
"""


def areas(audits: list[Path]) -> pd.DataFrame:
    """Join the areas of all audits, ``DATA/SEED/audits/SHARE``, on donors with all of their cells."""
    tables = []
    for path in audits:
        of = pd.read_csv(path / TABLES["by_fold"])
        of = of[of["n_cells"].isna() & (of["set"] == GENERATED) & (of["level"] == "donor")]
        tables.append(of.assign(data=path.parts[-4], seed=int(path.parts[-3]), share=float(path.name)))
    return pd.concat(tables, ignore_index=True)[["data", "seed", "share", "fold", "attack", "auc"]]


def main(out: Path, text: Path, audits: list[Path]) -> None:
    """Write the areas of all folds, and their overview as Markdown."""
    table = areas(audits)
    table.to_csv(out, index=False, float_format="%.5f")
    shown = table.groupby(["data", "share", "attack"], sort=False)["auc"].agg(over_seeds).unstack()
    shown = shown[[name for name in ATTACKS if name in shown]].rename(columns=ATTACKS)
    text.write_text(TEXT.format(table=markdown(shown)), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
