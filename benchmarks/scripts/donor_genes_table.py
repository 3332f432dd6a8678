"""Show what attacks find in generated cells without the genes in which donors differ most."""

from pathlib import Path

import typer
from as_text import markdown
from audit_table import donors_found, shown

TEXT = """# Audits without the genes in which donors differ most

AUC of donors in generated cells, by the share of genes that is left out: the mean over folds, with the smallest and the
largest value.

{table}
"""


def main(out: Path, text: Path, audits: list[Path]) -> None:
    """Write the areas of all folds of the audits ``DATA/SEED/audits/SHARE``, and their overview as Markdown."""
    of_cells = donors_found(audits).astype({"method": float})
    table = of_cells.rename(columns={"method": "share"})[["data", "seed", "share", "fold", "attack", "auc"]]
    table.to_csv(out, index=False, float_format="%.5f")
    overview = markdown(shown(of_cells).rename_axis(["data", "share"]))
    text.write_text(TEXT.format(table=overview), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
