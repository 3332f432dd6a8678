"""Collect the scores of cells with coarse labels, one table a score, with the floor beside all methods."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown
from table import KEYS, by_data, scores_by_type, with_earlier, with_run

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
    """Scores and counts of one run: data, method, seed, score and value.

    Parameters
    ----------
    overall
        ``DATA/SEED/evaluation/overall.csv``, by ``bdm evaluate``, with the models beside ``evaluation``.
    """
    table = pd.read_csv(overall, index_col="metric")
    table.loc[FREQUENT_ENERGY] = energy_of_frequent_types(scores_by_type(overall))
    table = table.rename_axis("score").reindex(list(SCORES))
    tidy = table.melt(var_name="method", ignore_index=False).dropna().reset_index()
    return with_run(pd.concat([tidy, counts_of_run(overall.parents[1])]), overall)[[*KEYS, "score", "value"]]


def counts_of_run(run: Path) -> pd.DataFrame:
    """Count the labels and populations of one run, and the branches of each model and those with a network."""
    hierarchy = load_hierarchy(run / "hierarchies/branched.json")
    counts = [
        ("branched", "labels", len(hierarchy.cell_types)),
        ("branched", "populations", len(hierarchy.populations)),
    ]
    for model in MODELS:
        table = run / f"models/{model}/branches.csv"
        if not table.exists():  # the configuration may leave it out
            continue
        branches = pd.read_csv(table)
        counts += [(model, "branches", (branches["n_cells"] > 0).sum()), (model, "kept", branches["kept"].sum())]
    return pd.DataFrame(counts, columns=["method", "score", "value"])


def energy_of_frequent_types(by_type: pd.DataFrame) -> pd.Series:
    """Mean energy distance of each method, weighted by test cells, over types with at least ``FREQUENT`` of them."""
    frequent = by_type[by_type["n_test"] >= FREQUENT]
    return pd.Series(
        {method: np.average(rows["energy"], weights=rows["n_test"]) for method, rows in frequent.groupby("method")}
    )


def count_table(scores: pd.DataFrame) -> pd.DataFrame:
    """Tabulate the labels and populations of each run, and the branches on which models use their network."""
    counts = scores.pivot_table(index=["data", "seed"], columns=["method", "score"], values="value")
    table = counts["branched"][["labels", "populations"]].astype(int).astype(str)
    for model in MODELS:
        if model in counts:
            kept, all_of_them = counts[model]["kept"], counts[model]["branches"]
            text = [f"{k:.0f} of {n:.0f} branches" if n == n else "" for k, n in zip(kept, all_of_them, strict=True)]
            table[f"network of {model}"] = text
    return table


def report(scores: pd.DataFrame) -> str:
    """Write all tables as one Markdown text."""
    parts = [
        "# Coarse labels",
        f"The floor is real training cells, scored as if they had been generated. Numbers are the {OVER_SEEDS}",
        markdown(count_table(scores)),
    ]
    for score, name in SCORES.items():
        if (scores["score"] == score).any():
            parts += [f"## {name}", markdown(by_data(scores, score))]
    return "\n\n".join(parts) + "\n"


def main(
    out: Path,
    text: Path,
    overall: list[Path],
    *,
    earlier: Annotated[Path | None, typer.Option(help="coarse.csv of other runs, to be shown as well.")] = None,
) -> None:
    """Write all scores, and their overview as Markdown."""
    scores = with_earlier(pd.concat([scores_of_run(path) for path in overall]), earlier)
    scores.to_csv(out, index=False, float_format="%.6g")
    text.write_text(report(scores), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
