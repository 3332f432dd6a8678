"""Compare divisions of cells with labels, and between seeds, by the adjusted Rand index."""

from itertools import combinations
from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds, smallest_to_largest
from populations import LABEL
from sklearn.metrics import adjusted_rand_score

GROUPS, STABILITY = "groups", "agreement of seeds"


def scores_of_run(divided: pd.DataFrame) -> pd.DataFrame:
    """Count groups, and compute their agreement with each column of labels: method, score and value.

    Parameters
    ----------
    divided
        A row for each cell, with columns of labels and of methods.
    """
    labels = [column for column in divided if column.startswith(LABEL)]
    rows = []
    for method in divided.columns.drop(labels):
        rows.append((method, GROUPS, divided[method].nunique()))
        for label in labels:
            rows.append((method, label.removeprefix(LABEL), adjusted_rand_score(divided[label], divided[method])))
    return pd.DataFrame(rows, columns=["method", "score", "value"])


def stability(by_seed: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """Compute the agreement of each method between each two seeds, over the cells that both have."""
    rows = []
    for one, other in combinations(sorted(by_seed), 2):
        cells = by_seed[one].index.intersection(by_seed[other].index)
        first, second = by_seed[one].loc[cells], by_seed[other].loc[cells]
        for method in first.columns[~first.columns.str.startswith(LABEL)]:
            value = adjusted_rand_score(first[method], second[method])
            rows.append((f"{one}, {other}", method, STABILITY, value))
    return pd.DataFrame(rows, columns=["seed", "method", "score", "value"])


def scores_of_data(by_seed: dict[int, pd.DataFrame]) -> pd.DataFrame:
    """Scores of each seed, and of each pair of seeds."""
    runs = [scores_of_run(table).assign(seed=str(seed)) for seed, table in by_seed.items()]
    return pd.concat([table for table in (*runs, stability(by_seed)) if len(table)], ignore_index=True)


def report(scores: pd.DataFrame) -> str:
    """Write a table of each data set as one Markdown text."""
    parts = [
        "# Populations of cells without labels",
        "Columns named after labels have the adjusted Rand index to these labels: 1 for the same groups, 0 by chance. "
        f"The agreement of seeds is that index between two seeds. Numbers are the {OVER_SEEDS}",
    ]
    for data, of_data in scores.groupby("data", sort=False):
        values = of_data.groupby(["method", "score"], sort=False)["value"].agg(over_seeds).unstack(fill_value="")
        n_groups = of_data[of_data["score"] == GROUPS].astype({"value": int}).groupby("method", sort=False)["value"]
        values[GROUPS] = n_groups.agg(smallest_to_largest)
        parts += [f"## {data}", markdown(values[list(dict.fromkeys(of_data["score"]))])]
    return "\n\n".join(parts) + "\n"


def main(out: Path, text: Path, divided: list[Path]) -> None:
    """Write all scores, and their overview as Markdown, from ``DATA/SEED/populations.csv``."""
    by_data: dict[str, dict[int, pd.DataFrame]] = {}
    for path in divided:
        table = pd.read_csv(path, index_col="cell", dtype=str, keep_default_na=False)
        by_data.setdefault(path.parts[-3], {})[int(path.parts[-2])] = table
    tables = [scores_of_data(by_seed).assign(data=data) for data, by_seed in by_data.items()]
    scores = pd.concat(tables, ignore_index=True)[["data", "method", "seed", "score", "value"]]
    scores.to_csv(out, index=False, float_format="%.6g")
    text.write_text(report(scores), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
