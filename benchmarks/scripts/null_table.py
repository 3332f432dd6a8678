"""How often tests find differences between groups of donors that differ by chance alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from as_text import markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.plotting.style import IDEAL_LINE, save_figure, set_styles
from bdm.power.expression import METHODS

LEVELS = np.logspace(0, -4, 41)
SHOWN = (0.05, 0.01, 0.001)
BY_SPLIT = ["cells", "donors", "method", "seed", "split"]
TEXT = """# Tests of donors that differ by chance alone

In random splits of donors into two groups, or of pairs of samples, all differences are by chance. Donors is their
number in each group, or the number of pairs. A valid test has p-values below 0.05 in 5% of its tests; in brackets, the
standard error over splits. False discoveries are tests with a false discovery rate below 5% (Benjamini and Hochberg):
the mean number in a split.

{table}
"""


def shares(tests: pd.DataFrame) -> pd.DataFrame:
    """Share of p-values below each level, by cells, number of donors, method, seed and split."""
    known = tests.dropna(subset="p_value")
    by = {key: np.sort(of["p_value"]) for key, of in known.groupby(BY_SPLIT, sort=False)}
    table = {key: np.searchsorted(values, LEVELS, side="right") / len(values) for key, values in by.items()}
    return pd.DataFrame(table, index=LEVELS).T.rename_axis(BY_SPLIT)


def overview(tests: pd.DataFrame) -> pd.DataFrame:
    """Count tests, small p-values and false discoveries, by cells, number of donors and method."""
    known, by = tests.dropna(subset="p_value"), BY_SPLIT[:3]
    by_split = known.groupby(BY_SPLIT, sort=False)
    of_split = {
        f"p < {level:g}": 100 * by_split["p_value"].agg(lambda p, level=level: (p < level).mean()) for level in SHOWN
    }
    groups = pd.DataFrame(of_split).groupby(level=by, sort=False)
    mean, error = groups.mean(), groups.std() / np.sqrt(groups.count())
    text = mean.map("{:.2g}%".format) + error.map(" ({:.1g})".format)
    discoveries = by_split["fdr"].agg(lambda fdr: (fdr < 0.05).sum()).groupby(level=by, sort=False)
    text["tests in a split"] = by_split.size().groupby(level=by).mean().map("{:.0f}".format)
    return text.assign(**{"false discoveries": discoveries.mean().map("{:.1f}".format)})


def plot(shares_below: pd.DataFrame) -> Figure:
    """Draw the share of p-values below each level: a row for each number of donors, a column for each set of cells."""
    values = {name: list(dict.fromkeys(shares_below.index.get_level_values(name))) for name in BY_SPLIT[:3]}
    names, numbers, methods = values.values()
    colours = {name: style.colour for name, style in set_styles(methods).items() if name in methods}
    figure = Figure(figsize=(0.6 + 2.9 * len(names), 0.8 + 2.7 * len(numbers)), layout="constrained")
    axes = figure.subplots(len(numbers), len(names), squeeze=False, sharex=True, sharey=True)
    for row, number in enumerate(numbers):
        for column, name in enumerate(names):
            draw(axes[row, column], shares_below.loc[name].loc[number], colours)
            axes[row, column].set_title(f"{name}, {number} + {number}")
        axes[row, 0].set_ylabel("share of p-values below it")
    for ax in axes[-1]:
        ax.set_xlabel("level")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def draw(ax: Axes, shares_below: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw one set of cells and number of donors."""
    for method, colour in colours.items():
        mean = shares_below.loc[method].mean().replace(0, np.nan)
        ax.plot(LEVELS, mean, color=colour, linewidth=1.6, label=METHODS.get(method, method))
    ax.plot(LEVELS, LEVELS, label="valid test", **IDEAL_LINE)
    ax.set(xscale="log", yscale="log", xlim=(1e-4, 1), ylim=(1e-4, 1))
    ax.spines[["top", "right"]].set_visible(False)


def main(table: Path, text: Path, figure: Path, found: list[Path]) -> None:
    """Write the shares of small p-values, their overview as Markdown, and the figure, from the tests of each set."""
    tests = pd.concat(map(pd.read_csv, found), ignore_index=True)
    below = shares(tests)
    below.to_csv(table, float_format="%.4g")
    text.write_text(TEXT.format(table=markdown(overview(tests))), encoding="utf-8")
    save_figure(plot(below), figure)


if __name__ == "__main__":
    typer.run(main)
