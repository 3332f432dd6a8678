"""Show fidelity and cost of sampling with shared ancestors by the threshold of the hierarchy."""

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.plotting.evaluation import LABELS
from bdm.plotting.style import GREY, save_figure, set_styles

WITH, WITHOUT = "with transport", "without transport"
STYLES = {name: style for name, style in set_styles([WITH, WITHOUT]).items() if name in (WITH, WITHOUT)}
SCORES, COSTS = ["energy", "forest_auc"], ["evaluations", "milliseconds"]
PANELS = LABELS | {"evaluations": "evaluations a cell", "milliseconds": "ms a cell"}


def run(overall: Path) -> pd.DataFrame:
    """Read the scores of ``DATA/SEED/threshold/overall.csv`` and the costs beside it, a row for each method.

    Without transport the costs are the same, and not measured again.
    """
    *_, data, seed, _, _ = overall.parts
    table = pd.read_csv(overall, index_col="metric").T.rename_axis("method").reset_index()
    costs = {path.stem: pd.read_csv(path).iloc[0] for path in sorted((overall.parents[1] / "costs").glob("*.csv"))}
    named = table["method"].str.extract(r"^threshold-([\d.]+)(-no-transport)?$")
    table["threshold"] = named[0].astype(float)
    table["sampling"] = named[1].notna().map({True: WITHOUT, False: WITH}).where(named[0].notna())
    for cost in COSTS:
        table[cost] = table["method"].map({name: row[cost] for name, row in costs.items()})
    return table.assign(data=data, seed=int(seed))


def plot(table: pd.DataFrame) -> Figure:
    """Draw scores and costs (rows) by threshold for each data set (columns), as mean and range over seeds."""
    names, rows = table["data"].unique(), [*SCORES, *COSTS]
    figure, axes = plt.subplots(
        len(rows),
        len(names),
        figsize=(0.5 + 3.4 * len(names), 1.9 * len(rows)),
        sharex=True,
        sharey="row",
        squeeze=False,
        layout="constrained",
    )
    for column, data in enumerate(names):
        axes[0, column].set_title(data)
        axes[-1, column].set_xlabel("threshold")
        for ax, score in zip(axes[:, column], rows, strict=True):
            draw(ax, table[table["data"] == data], score)
    for ax, score in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(PANELS[score])
        if score != "forest_auc":
            ax.set_ylim(bottom=min(0, ax.get_ylim()[0]))
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw(ax: Axes, table: pd.DataFrame, score: str) -> None:
    """Draw one score of one data set."""
    for sampling, set_style in STYLES.items():
        by_threshold = table[table["sampling"] == sampling].groupby("threshold")[score]
        mean, low, high = by_threshold.mean(), by_threshold.min(), by_threshold.max()
        if mean.notna().any():
            style = {"color": set_style.colour, "marker": set_style.marker, "markersize": 5, "capsize": 2}
            ax.errorbar(mean.index, mean, np.stack([mean - low, high - mean]), label=sampling, **style)
    for method, label, linestyle in [("flat", "no hierarchy", ":"), ("floor", "real training cells", "--")]:
        level = table.loc[table["method"] == method, score].mean()
        if pd.notna(level):
            ax.axhline(level, color=GREY, linestyle=linestyle, label=label)
    ax.spines[["top", "right"]].set_visible(False)


def main(out: Path, figure: Path, overall: list[Path]) -> None:
    """Write the table, and the figure."""
    table = pd.concat([run(path) for path in overall])
    first = ["data", "seed", "method", "threshold", "sampling"]
    table[[*first, *table.columns.drop(first)]].to_csv(out, index=False, float_format="%.6g")
    save_figure(plot(table), figure)


if __name__ == "__main__":
    typer.run(main)
