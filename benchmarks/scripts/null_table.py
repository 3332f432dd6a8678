"""How often tests find differences between groups of donors that differ by chance alone."""

from pathlib import Path

import numpy as np
import pandas as pd
import typer
from as_text import markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.plotting.style import IDEAL_LINE, panels, save_figure, set_styles
from bdm.power.expression import METHODS

LEVELS = np.logspace(0, -4, 41)
TEXT = """# Tests of donors that differ by chance alone

In random splits of donors into two groups, all differences are by chance. A valid test has p-values below 0.05 in 5% of
its tests; in brackets, the standard error over splits. False discoveries are tests with a false discovery rate below 5%
(Benjamini and Hochberg): the mean number in a split.

{table}
"""


def shares(tests: pd.DataFrame) -> pd.DataFrame:
    """Share of p-values below each level, by cells, method and split."""
    known = tests.dropna(subset="p_value")
    by = {key: np.sort(of["p_value"]) for key, of in known.groupby(["cells", "method", "split"], sort=False)}
    table = {key: np.searchsorted(values, LEVELS, side="right") / len(values) for key, values in by.items()}
    return pd.DataFrame(table, index=LEVELS).T.rename_axis(["cells", "method", "split"])


def overview(tests: pd.DataFrame) -> pd.DataFrame:
    """Count tests, small p-values and false discoveries, by cells and method."""
    known = tests.dropna(subset="p_value")
    by_split = known.groupby(["cells", "method", "split"], sort=False)
    values = pd.DataFrame(
        {
            "p < 0.05": by_split["p_value"].agg(lambda p: 100 * (p < 0.05).mean()),
            "p < 0.01": by_split["p_value"].agg(lambda p: 100 * (p < 0.01).mean()),
        }
    )
    groups = values.groupby(level=["cells", "method"], sort=False)
    mean, error = groups.mean(), groups.std() / np.sqrt(groups.count())
    text = mean.map("{:.1f}%".format) + error.map(" ({:.1f})".format)
    discoveries = by_split["fdr"].agg(lambda fdr: (fdr < 0.05).sum()).groupby(level=["cells", "method"], sort=False)
    text["tests in a split"] = by_split.size().groupby(level=["cells", "method"]).mean().map("{:.0f}".format)
    return text.assign(**{"false discoveries": discoveries.mean().map("{:.1f}".format)})


def plot(shares_below: pd.DataFrame) -> Figure:
    """Draw the share of p-values below each level, a panel for each set of cells, a thin line for each split."""
    names = list(dict.fromkeys(shares_below.index.get_level_values("cells")))
    methods = list(dict.fromkeys(shares_below.index.get_level_values("method")))
    styles = {name: style for name, style in set_styles(methods).items() if name in methods}
    figure = Figure(figsize=(4.2 * len(names), 4.2), layout="constrained")
    for ax, name in zip(panels(figure, len(names), n_columns=len(names), sharey=True), names, strict=True):
        draw(ax, shares_below.loc[name], {method: style.colour for method, style in styles.items()})
        ax.set_title(name)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    figure.axes[0].set_ylabel("share of p-values below it")
    return figure


def draw(ax: Axes, shares_below: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw one set of cells."""
    for method, colour in colours.items():
        of_method = shares_below.loc[method]
        if method in METHODS:  # splits have too few tests of composition
            for _, row in of_method.iterrows():
                ax.plot(LEVELS, row.where(row > 0), color=colour, linewidth=0.5, alpha=0.25)
        label = METHODS.get(method, method)
        ax.plot(LEVELS, of_method.mean().replace(0, np.nan), color=colour, linewidth=2, label=label)
    ax.plot(LEVELS, LEVELS, label="valid test", **IDEAL_LINE)
    ax.set(xscale="log", yscale="log", xlabel="level", xlim=(1e-4, 1), ylim=(1e-4, 1))
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
