"""Collect the scores of transmuted cells of all runs."""

from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds
from augment_table import with_run

from bdm.plotting.style import save_figure
from bdm.plotting.transmutation import PANELS, transmutation_scores_figure

TASKS = {"transmute": "transmuted to a type that was seen", "unseen": "transmuted to a type that was not seen"}
SCORES = [*PANELS, "sign"]


def over_types(scores: pd.DataFrame) -> pd.DataFrame:
    """Average over pairs, for each set and seed, then over seeds; sets x scores."""
    means = scores.groupby(["set", "seed"], sort=False)[SCORES].mean()
    return means.groupby("set", sort=False).agg(over_seeds)


def best(scores: pd.DataFrame, score: str, *, lowest: bool) -> pd.Series:
    """Count the pairs for which each set is best, among the strategies that keep the cells; means over seeds decide."""
    moved = scores[~scores["set"].isin(["floor", "unchanged", "sampled anew"])]
    by_pair = moved.groupby(["original_type", "to", "set"])[score].mean().unstack("set")
    return (by_pair.idxmin(axis=1) if lowest else by_pair.idxmax(axis=1)).value_counts()


def section(data: str, scores: pd.DataFrame) -> list[str]:
    """Sections on one data set."""
    n_pairs = len(scores[["original_type", "to"]].drop_duplicates())
    table = over_types(scores)
    wins = {f"best {name}": best(scores, name, lowest=name == "energy") for name in ("energy", "mean_r2")}
    for name, counts in wins.items():
        table[name] = [f"{counts[name]:.0f}" if name in counts else "" for name in table.index]
    by_pair = scores.groupby(["original_type", "to", "set"], sort=False)["energy"].agg(over_seeds).unstack("set")
    return [
        f"## {data}",
        f"Means over {n_pairs} pairs; best: the number of pairs for which a strategy that keeps the cells is ahead.",
        markdown(table),
        "Energy distance by pair:",
        markdown(by_pair[[name for name in table.index if name in by_pair]].fillna("")),
    ]


def main(folder: Path, runs: list[Path]) -> None:
    """Write all scores, their overview as Markdown, and a figure for each data set."""
    scores = pd.concat([with_run(path).assign(task=TASKS[path.stem]) for path in runs])
    scores.to_csv(folder / "transmute.csv", index=False)
    parts = ["# Cells transmuted to another type", f"Numbers are the {OVER_SEEDS}"]
    for (data, task), of_data in scores.groupby(["data", "task"], sort=False):
        parts += section(f"{data}: {task}", of_data)
        table = of_data.assign(original_type=of_data["original_type"] + " → " + of_data["to"].str.split("|").str[-1])
        means = table.groupby(["original_type", "set"], sort=False)[[*PANELS]].mean()
        if task == TASKS["transmute"]:
            save_figure(transmutation_scores_figure(means, "the type named"), folder / f"transmute_{data}.png")
    (folder / "transmute.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
