from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bdm.data.symbols import shown_as
from bdm.extension.extend import FittedExtension
from bdm.extension.report import genes_table, learned_types, likelihood_table
from bdm.model.model import BranchedModel
from bdm.plotting.clades import gene_label, shortened
from bdm.plotting.figure import NewFigure, save_figure
from bdm.plotting.hierarchy import plot_hierarchy
from bdm.plotting.looks import ADDED, MODEL

N_PANELS, N_COLUMNS, N_GENES = 12, 4, 12
HEIGHT, WIDTH = 11, 150  # of a name, in pixels
BEFORE = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "color": ADDED, "markersize": 7}
AFTER = {"marker": "o", "linestyle": "", "color": ADDED, "markersize": 7}
KNOWN = {"marker": "D", "linestyle": "", "color": "0.55", "markersize": 5}


def write_figures(folder: Path, found: list[FittedExtension], model: BranchedModel) -> None:
    """Write ``hierarchy.png``, ``likelihood.png`` and ``own_genes.png`` into a folder.

    Parameters
    ----------
    model
        The model before.
    """
    tree = plot_hierarchy(found[-1].model.hierarchy, since=len(model.extensions)).figure
    for name, figure in {
        "hierarchy": tree,
        "likelihood": plot_likelihood(likelihood_table(found, model)).figure,
        "own_genes": own_genes_figure(genes_table(found[-1].model, learned_types(found))),
    }.items():
        save_figure(figure, folder / f"{name}.png")


def plot_likelihood(table: pd.DataFrame, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw how well each type is expressed, by its depth: known types, and those learnt now before and after."""
    if ax is None:
        ax = new(figsize=(8, 5), layout="constrained").add_subplot()
    of = {learnt: rows.set_index("cell_type") for learnt, rows in table.groupby("learnt", sort=False)}
    known, before, after = of["with the model"].dropna(), of["before"], of["after"]
    ax.plot(known["n_counts"], known["per_1000_counts"], **KNOWN, label="known types")
    for cell_type, place in after.iterrows():
        x, y = place["n_counts"], before.loc[cell_type, "per_1000_counts"]
        ax.annotate("", (x, place["per_1000_counts"]), (x, y), arrowprops={"arrowstyle": "->", "color": ADDED})
    ax.plot(before["n_counts"], before["per_1000_counts"], **BEFORE, label="learnt now, by the shared decoder")
    ax.plot(after["n_counts"], after["per_1000_counts"], **AFTER, label="learnt now, by its own decoder")
    ax.set_xscale("log")
    ax.margins(x=0.12)
    places = pd.concat([after, known.drop(after.index, errors="ignore")])[["n_counts", "per_1000_counts"]]
    for cell_type in with_room(ax, places):
        looks = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
        ax.annotate(shortened(cell_type, width=40), places.loc[cell_type], (7, 0), **looks)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.tick_params(which="both", labelsize=8)
    ax.set_xlabel("mean counts of a held-out cell")
    ax.set_ylabel("log likelihood, nats per 1,000 counts")
    ax.spines[["right", "top"]].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
    return ax


def with_room(axis: Axes, places: pd.DataFrame) -> list[str]:
    """Choose the points that have room for a name at their right, the first ones first."""
    pixels = dict(zip(places.index, axis.transData.transform(places.to_numpy()), strict=True))
    chosen: list[str] = []
    for name, (x, y) in pixels.items():
        others = [pixels[other] for other in chosen]
        if all(abs(y - other_y) > HEIGHT or abs(x - other_x) > WIDTH for other_x, other_y in others):
            chosen.append(name)
    return chosen


def own_genes_figure(genes: pd.DataFrame, *, new: NewFigure = Figure) -> Figure:
    """Draw the genes that the own decoder of each type changes most."""
    cell_types = list(dict.fromkeys(genes["cell_type"]))[:N_PANELS]
    if not cell_types:
        return figure_of_text("No type needed a decoder of its own.", new=new)
    n_columns = min(len(cell_types), N_COLUMNS)
    n_rows = -(-len(cell_types) // n_columns)
    figure = new(figsize=(1.5 + 3.4 * n_columns, 0.9 + 3.4 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, squeeze=False)
    for axis, cell_type in zip(axes.flat, cell_types, strict=False):
        draw_own_genes(axis, genes[genes["cell_type"] == cell_type].head(N_GENES), cell_type)
    for axis in axes.flat[len(cell_types) :]:
        axis.remove()
    figure.supxlabel("mean expression, CP10k", fontsize=9)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_own_genes(axis: Axes, genes: pd.DataFrame, cell_type: str) -> None:
    """Draw each gene's expression by the shared and by the own decoder."""
    rows = range(len(genes))
    shared, own = genes["shared"], genes["own"]
    axis.hlines(rows, shared, own, color="0.7", linewidth=1, zorder=1)
    axis.plot(
        shared,
        rows,
        **{**MODEL, "color": "0.45", "markerfacecolor": "white"},
        label="by the shared decoder",
        clip_on=False,
    )
    axis.plot(own, rows, **AFTER, label="by its own decoder", clip_on=False)
    axis.set_yticks(rows, [*map(gene_label, shown_as(genes))], fontsize=8)
    axis.set_ylim(len(genes) - 0.4, -0.6)
    axis.set_xscale("asinh", linear_width=1)
    axis.set_xlim(left=0)
    axis.set_xticks([value for value in (0, 1, 10, 100, 1000) if value <= axis.get_xlim()[1]])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(shortened(cell_type, width=40), fontsize=9)
    axis.spines[["right", "top"]].set_visible(False)


def figure_of_text(text: str, *, new: NewFigure) -> Figure:
    """Write a text in place of a figure."""
    figure = new(figsize=(5, 0.6), layout="constrained")
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure
