"""Collect the scores of all runs, and the time and memory that they took."""

from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from as_text import OVER_SEEDS, RARE, markdown, over_seeds

FLOOR = "floor"
FEWEST_TEST = 5  # cells of a type without which its scores are mostly noise

SCORES = {
    "energy": "energy distance",
    "forest_auc": "forest AUC",
    "gene_auc": "gene AUC",
    "slope": "slope",
    "slope_by_type": "slope by type",
    "fold_change_correlation": "r of log fold changes",
    "f1_ratio": "F1 ratio",
    "memorisation": "memorisation",
    "training_seconds": "training, s",
    "training_cpu_seconds": "training, processor s",
    "generation_seconds": "generation, s",
    "generation_cpu_seconds": "generation, processor s",
    "memory_mb": "peak memory, MB",
}
RARE_SCORES = {"energy": "Energy distance", "f1": "F1"}
KEYS = ["data", "method", "seed"]


def scores_of_run(overall: Path, training: dict[str, list[str]]) -> pd.DataFrame:
    """All scores of the methods of one run: data, method, seed, score and value.

    Parameters
    ----------
    overall
        ``DATA/SEED/evaluation/overall.csv``, by ``bdm evaluate``, with the times of the steps in ``DATA/SEED/times``.
    training
        Steps that each method trains in.
    """
    table = pd.read_csv(overall, index_col="metric")
    by_type = scores_by_type(overall)
    of_enough_cells = by_type[by_type["n_test"] >= FEWEST_TEST]
    table.loc["slope_by_type"] = of_enough_cells.groupby("method")["slope"].mean()
    times = overall.parents[1] / "times"
    costs = {method: cost(times, method, training[method]) for method in table.columns.drop(FLOOR)}
    return tidy(pd.concat([table, pd.DataFrame(costs)]), overall)


def chosen_scores(overall: Path, scores: list[str]) -> pd.DataFrame:
    """Read some scores of the methods of one run: data, method, seed, score and value."""
    return tidy(pd.read_csv(overall, index_col="metric").loc[scores], overall)


def tidy(table: pd.DataFrame, overall: Path) -> pd.DataFrame:
    """Give each value of a table of scores x methods its row, without missing ones, with data set and seed."""
    rows = table.rename_axis("score").melt(var_name="method", ignore_index=False).dropna().reset_index()
    return with_run(rows, overall)[[*KEYS, "score", "value"]]


def with_earlier(scores: pd.DataFrame, earlier: Path | None) -> pd.DataFrame:
    """Put the scores of earlier runs first, without those that ran again."""
    if earlier is None:
        return scores
    before = pd.read_csv(earlier)
    again = pd.MultiIndex.from_frame(before[KEYS]).isin(pd.MultiIndex.from_frame(scores[KEYS]))
    return pd.concat([before[~again], scores], ignore_index=True)


def scores_by_type(overall: Path) -> pd.DataFrame:
    """Scores by type of one run, a row for each method and type."""
    table = pd.read_csv(overall.with_name("by_type.csv")).rename(columns={"set": "method"})
    return with_run(table, overall)


def with_run(table: pd.DataFrame, overall: Path) -> pd.DataFrame:
    """Add data set and seed, which the path holds."""
    *_, data, seed, _, _ = overall.parts
    return table.assign(data=data, seed=int(seed))


def cost(times: Path, method: str, training: list[str]) -> dict[str, float]:
    """Seconds, processor seconds and largest memory of the steps of a method, as Snakemake measured them."""
    steps = {step: pd.read_csv(times / f"{step}.tsv", sep="\t").mean(numeric_only=True) for step in training}
    generation = pd.read_csv(times / f"generate-{method}.tsv", sep="\t").mean(numeric_only=True)
    return {
        "training_seconds": sum(step["s"] for step in steps.values()),
        "training_cpu_seconds": sum(step["cpu_time"] for step in steps.values()),
        "generation_seconds": generation["s"],
        "generation_cpu_seconds": generation["cpu_time"],
        "memory_mb": max(step["max_rss"] for step in [*steps.values(), generation]),
    }


def overview(scores: pd.DataFrame, data: str, methods: list[str]) -> pd.DataFrame:
    """Methods x scores of one data set, for the eye; the floor first."""
    of_data = scores[(scores["data"] == data) & scores["score"].isin(SCORES)]
    table = of_data.groupby(["method", "score"])["value"].agg(over_seeds).unstack(fill_value="")
    rows = pd.Index([method for method in (FLOOR, *methods) if method in table.index], name="method")
    return table.reindex(rows, columns=SCORES, fill_value="").rename(columns=SCORES)


def by_data(scores: pd.DataFrame, score: str) -> pd.DataFrame:
    """Tabulate one score for the eye, data sets x methods, the floor first."""
    of_score = scores[scores["score"] == score]
    table = of_score.groupby(["data", "method"], sort=False)["value"].agg(over_seeds).unstack(fill_value="")
    return table[[FLOOR, *table.columns.drop(FLOOR)]] if FLOOR in table else table


def rare_types(by_type: pd.DataFrame, score: str) -> pd.DataFrame:
    """Rare types x methods, for the eye."""
    rare = by_type[by_type["n_train"] < RARE].dropna(subset=score)
    rows = ["data", "cell_type", "n_train", "n_test"]
    return rare.groupby([*rows, "method"], sort=False)[score].agg(over_seeds).unstack(fill_value="")


def report(scores: pd.DataFrame, by_type: pd.DataFrame, methods: list[str]) -> str:
    """Write all tables as one Markdown text."""
    parts = ["# Scores on held-out cells", f"The floor is real training cells. Numbers are the {OVER_SEEDS}"]
    for data in scores["data"].unique():
        parts += [f"## {data}", markdown(overview(scores, data, methods))]
    parts += [f"# Rare types: fewer than {RARE} training cells"]
    for score, label in RARE_SCORES.items():
        parts += [f"## {label}", markdown(rare_types(by_type, score))]
    return "\n\n".join(parts) + "\n"


def main(
    out: Path,
    overall: list[Path],
    *,
    training: Annotated[list[str], typer.Option(help="Steps that a method trains in.", metavar="METHOD=STEP,STEP")],
    earlier: Annotated[Path | None, typer.Option(help="table.csv of other runs, to be shown as well.")] = None,
) -> None:
    """Write ``table.csv``, ``by_type.csv`` and ``table.md``."""
    steps = {method: names.split(",") for method, names in (item.split("=") for item in training)}
    scores = with_earlier(pd.concat([scores_of_run(path, steps) for path in overall]), earlier)
    by_type = pd.concat([scores_by_type(path) for path in overall])
    scores.to_csv(out / "table.csv", index=False, float_format="%.6g")
    first = [*KEYS, "cell_type"]
    by_type[[*first, *by_type.columns.drop(first)]].to_csv(out / "by_type.csv", index=False, float_format="%.6g")
    (out / "table.md").write_text(report(scores, by_type, list(steps)), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
