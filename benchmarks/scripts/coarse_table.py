"""Collect the scores of cells with coarse labels, one table a score, with the floor beside all methods."""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds
from table import FLOOR, KEYS, scores_by_type, with_run

from bdm.hierarchy.files import load_hierarchy

FREQUENT = 50  # test cells of a type with which its energy distance is little noise
FREQUENT_ENERGY = "energy_frequent"
SCORES = {
    "forest_auc": "Forest AUC",
    "gene_auc": "Gene AUC",
    FREQUENT_ENERGY: f"Energy distance of types with {FREQUENT} test cells or more, weighted by test cells",
    "energy": "Energy distance, mean of types",
    "slope": "Slope of log fold changes",
    "fold_change_correlation": "Correlation of log fold changes",
    "memorisation": "Memorisation",
}
MODELS = ["branched", "branched-labels"]  # whose branches with a network are counted


def scores_of_run(overall: Path) -> pd.DataFrame:
    """Scores of one run: data, method, seed, score and value.

    Parameters
    ----------
    overall
        ``DATA/SEED/evaluation/overall.csv``, by ``bdm evaluate``.
    """
    table = pd.read_csv(overall, index_col="metric")
    table.loc[FREQUENT_ENERGY] = energy_of_frequent_types(scores_by_type(overall))
    table = table.rename_axis("score").reindex(list(SCORES))
    tidy = table.melt(var_name="method", ignore_index=False).dropna().reset_index()
    return with_run(tidy, overall)[[*KEYS, "score", "value"]]


def energy_of_frequent_types(by_type: pd.DataFrame) -> pd.Series:
    """Mean energy distance of each method, weighted by test cells, over types with at least ``FREQUENT`` of them."""
    frequent = by_type[by_type["n_test"] >= FREQUENT]
    return pd.Series(
        {method: np.average(rows["energy"], weights=rows["n_test"]) for method, rows in frequent.groupby("method")}
    )


def counts_of_run(overall: Path) -> pd.DataFrame:
    """Count the labels and populations of one run, and the branches on which models use their network, as text."""
    run = overall.parents[1]
    hierarchy = load_hierarchy(run / "hierarchies/branched.json")
    counts = {"labels": str(len(hierarchy.cell_types)), "populations": str(len(hierarchy.populations))}
    for model in MODELS:
        table = run / f"models/{model}/branches.csv"
        if not table.exists():  # the configuration may leave it out
            continue
        branches = pd.read_csv(table)
        counts[f"network of {model}"] = f"{branches['kept'].sum()} of {(branches['n_cells'] > 0).sum()} branches"
    return with_run(pd.DataFrame([counts]), overall)


def overview(scores: pd.DataFrame, score: str) -> pd.DataFrame:
    """Tabulate one score for the eye, data sets x methods, the floor first."""
    of_score = scores[scores["score"] == score]
    table = of_score.groupby(["data", "method"], sort=False)["value"].agg(over_seeds).unstack(fill_value="")
    return table[[FLOOR, *table.columns.drop(FLOOR)]]


def report(scores: pd.DataFrame, counts: pd.DataFrame) -> str:
    """Write all tables as one Markdown text."""
    by_run = counts.set_index(["data", "seed"]).sort_index().fillna("")
    parts = [
        "# Coarse labels",
        f"The floor is real training cells, scored as if they had been generated. Numbers are the {OVER_SEEDS}",
        markdown(by_run),
    ]
    for score, name in SCORES.items():
        if (scores["score"] == score).any():
            parts += [f"## {name}", markdown(overview(scores, score))]
    return "\n\n".join(parts) + "\n"


def main(out: Path, text: Path, overall: list[Path]) -> None:
    """Write all scores, and their overview as Markdown."""
    scores = pd.concat([scores_of_run(path) for path in overall])
    scores.to_csv(out, index=False, float_format="%.6g")
    counts = pd.concat([counts_of_run(path) for path in overall])
    text.write_text(report(scores, counts), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
