"""How often verdicts are wrong about real cells, and which faults they detect with how many cells."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown
from verdicts import ALL, FAULTS, REAL

from bdm.evaluation.verdict import LIMITS, Grade

BOUNDS = (LIMITS.min_cells, 35, 100, 300)  # fewest cells of a type in each column
RUN = ["data", "seed", "split", "set", "cell_type"]
TEXT = """# Verdicts on cells whose truth is known

Each verdict is on as many cells as there are test cells; columns are numbers of test cells of a type, or all cells.

## Real cells

Real cells as if they had been generated: the number of verdicts, and how many of them find a difference.

{real}

## Cells with known faults

Per cent of the verdicts that find a difference, and in brackets, that find a large one (*differ from real cells*).

{faults}
"""


def group_of(cell_type: str, n_cells: int) -> str:
    """Name the column of a verdict."""
    if cell_type == ALL:
        return ALL
    fewest = max(bound for bound in BOUNDS if bound <= n_cells)
    return f"{fewest} or more" if fewest == BOUNDS[-1] else f"{fewest} to {BOUNDS[BOUNDS.index(fewest) + 1] - 1}"


def verdicts_of(findings: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each verdict, without verdicts on too few cells."""
    verdicts = findings.drop_duplicates(RUN)[[*RUN, "n_cells", "verdict"]]
    verdicts = verdicts[verdicts["n_cells"] >= LIMITS.min_cells]
    groups = [group_of(*row) for row in verdicts[["cell_type", "n_cells"]].itertuples(index=False)]
    found, large = verdicts["verdict"] != Grade.SAME.name, verdicts["verdict"] == Grade.DIFFERS.name
    return verdicts.assign(group=groups, found=100 * found, large=100 * large)


def columns() -> list[str]:
    """Return the names of the columns, in their order."""
    return [*(group_of("", bound) for bound in BOUNDS), ALL]


def real_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Count verdicts on real cells and those that are wrong, by data set."""
    real = verdicts[verdicts["set"] == REAL]
    of_all = pd.concat([real, real.assign(data="all data sets")])
    by = of_all.groupby(["data", "group"], sort=False)["found"].agg(["size", "mean"])
    text = by["size"].map("{:.0f}: ".format) + by["mean"].map("{:.1f}%".format)
    return text.unstack(fill_value="").reindex(columns=columns(), fill_value="")


def fault_table(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Return the shares of verdicts that detect each fault."""
    faulty = verdicts[verdicts["set"] != REAL]
    by = faulty.groupby(["set", "group"])[["found", "large"]].mean()
    text = by["found"].map("{:.0f}".format) + by["large"].map(" ({:.0f})".format)
    return (
        text.unstack(fill_value="").reindex(index=list(FAULTS), columns=columns(), fill_value="").rename_axis("fault")
    )


def main(out: Path, text: Path, found: list[Path]) -> None:
    """Write all verdicts, and their overview as Markdown, from ``DATA/SEED/verdicts.csv``."""
    tables = [pd.read_csv(path).assign(data=path.parts[-3], seed=path.parts[-2]) for path in found]
    verdicts = verdicts_of(pd.concat(tables, ignore_index=True))
    verdicts.to_csv(out, index=False)
    tables_as_text = {"real": markdown(real_table(verdicts)), "faults": markdown(fault_table(verdicts))}
    text.write_text(TEXT.format(**tables_as_text), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
