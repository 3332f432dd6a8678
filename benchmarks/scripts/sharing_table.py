"""Compare shared ancestors with a flat model of the same leaves by number of types: evaluations, time and scores."""

from pathlib import Path

import pandas as pd
import typer
from as_text import markdown
from table import FLOOR

from bdm.hierarchy.files import load_hierarchy

SCORES = {"energy": "energy distance", "forest_auc": "forest AUC"}
COSTS = {"evaluations": "evaluations per cell", "milliseconds": "ms per cell"}
BRANCHED, FLAT = "branched", "flat"


def compared(folder: Path) -> pd.DataFrame:
    """Costs and scores of one run, a row for each method.

    Parameters
    ----------
    folder
        ``many/RUN/sharing``, with hierarchies, costs and ``evaluation/overall.csv``.
    """
    scores = pd.read_csv(folder / "evaluation/overall.csv", index_col="metric").loc[list(SCORES)].T
    costs = pd.concat({name: pd.read_csv(folder / f"{name}_cost.csv").iloc[0] for name in (BRANCHED, FLAT)}).unstack()
    n_types = len(load_hierarchy(folder / f"{BRANCHED}.json").cell_types)
    table = scores.join(costs[list(COSTS)]).loc[[FLOOR, BRANCHED, FLAT]]
    return table.rename_axis("method").reset_index().assign(run=folder.parent.name, types=n_types)


def overview(table: pd.DataFrame) -> pd.DataFrame:
    """Tabulate costs and scores for the eye, a row for each number of types."""
    by_method = table.set_index(["run", "method"])
    rows = {}
    for run, types in table.groupby("run", sort=False)["types"].first().items():
        of_run = by_method.loc[run]
        row = {"run": run, "types": str(types)}
        for cost, name in COSTS.items():
            row |= {f"{name}, {method}": f"{of_run.loc[method, cost]:.2f}" for method in (BRANCHED, FLAT)}
            row[f"{name}, ratio"] = f"{of_run.loc[BRANCHED, cost] / of_run.loc[FLAT, cost]:.2f}"
        for score, name in SCORES.items():
            row |= {f"{name}, {method}": f"{of_run.loc[method, score]:.2f}" for method in (FLOOR, BRANCHED, FLAT)}
        rows[run] = row
    return pd.DataFrame(rows.values()).set_index("run").T.rename_axis("of")


def main(out: Path, text: Path, folders: list[Path]) -> None:
    """Write ``sharing.csv``, a row for each run and method, and ``sharing.md``."""
    table = pd.concat([compared(folder) for folder in folders], ignore_index=True)
    first = ["run", "types", "method"]
    table[[*first, *table.columns.drop(first)]].to_csv(out, index=False, float_format="%.6g")
    text.write_text(f"# Shared ancestors and a flat model\n\n{markdown(overview(table))}\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
