"""Collect how cells moved between types fare in all runs."""

from pathlib import Path

import pandas as pd
import typer
from as_text import OVER_SEEDS, markdown, over_seeds
from augment_table import with_run

from bdm.plotting.figure import save_figure
from bdm.plotting.transmutation import PANELS, scores_figure

TASKS = {"transmute": "moved to a type that was learned", "unseen": "moved to a type that was not learned"}
SCORES = [*PANELS, "sign"]


def over_types(scores: pd.DataFrame) -> pd.DataFrame:
    """Average over moves, for each set and seed, then tell the seeds; sets x scores."""
    means = scores.groupby(["set", "seed"], sort=False)[SCORES].mean()
    return means.groupby("set", sort=False).agg(over_seeds)


def best(scores: pd.DataFrame, score: str, *, lowest: bool) -> pd.Series:
    """Count the moves at which each set is best, among those that keep the cells; means over seeds decide."""
    moved = scores[~scores["set"].isin(["floor", "unmoved", "drawn anew"])]
    by_move = moved.groupby(["original_type", "to", "set"])[score].mean().unstack("set")
    return (by_move.idxmin(axis=1) if lowest else by_move.idxmax(axis=1)).value_counts()


def section(data: str, scores: pd.DataFrame) -> list[str]:
    """Tell one data set."""
    n_moves = len(scores[["original_type", "to"]].drop_duplicates())
    table = over_types(scores)
    wins = {f"best {name}": best(scores, name, lowest=name == "energy") for name in ("energy", "mean_r2")}
    for name, counts in wins.items():
        table[name] = [f"{counts[name]:.0f}" if name in counts else "" for name in table.index]
    by_move = scores.groupby(["original_type", "to", "set"], sort=False)["energy"].agg(over_seeds).unstack("set")
    return [
        f"## {data}",
        f"Means over {n_moves} moves; best: the number of moves at which a way that keeps the cells is ahead.",
        markdown(table),
        "Energy distance by move:",
        markdown(by_move[[name for name in table.index if name in by_move]].fillna("")),
    ]


def main(folder: Path, runs: list[Path]) -> None:
    """Write all scores, their overview as Markdown, and a figure for each data set."""
    scores = pd.concat([with_run(path).assign(task=TASKS[path.stem]) for path in runs])
    scores.to_csv(folder / "transmute.csv", index=False)
    parts = ["# Cells moved to another type", f"Numbers are the {OVER_SEEDS}"]
    for (data, task), of_data in scores.groupby(["data", "task"], sort=False):
        parts += section(f"{data}: {task}", of_data)
        table = of_data.assign(original_type=of_data["original_type"] + " → " + of_data["to"].str.split("|").str[-1])
        means = table.groupby(["original_type", "set"], sort=False)[[*PANELS]].mean()
        if task == TASKS["transmute"]:
            save_figure(scores_figure(means, "the type named"), folder / f"transmute_{data}.png")
    (folder / "transmute.md").write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
