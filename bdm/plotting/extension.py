"""Extensions of a model: how well it expresses each type, and the genes that type-specific decoders change."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bdm.data.symbols import display_names
from bdm.plotting.style import ADDED, MODEL, NewFigure, Style, figure_of_text, gene_label, panels, shortened

MAX_PANELS, N_COLUMNS, N_GENES = 12, 4, 12
HEIGHT, WIDTH = 11, 150  # of a label, in pixels
BEFORE: Style = {"marker": "o", "linestyle": "", "markerfacecolor": "white", "color": ADDED, "markersize": 7}
AFTER: Style = {"marker": "o", "linestyle": "", "color": ADDED, "markersize": 7}
KNOWN: Style = {"marker": "D", "linestyle": "", "color": "0.55", "markersize": 5}


def plot_likelihood(table: pd.DataFrame, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw the log likelihood of held-out cells by their depth, for each type; of new types before and after."""
    if ax is None:
        ax = new(figsize=(8, 5), layout="constrained").add_subplot()
    stages = {stage: rows.set_index("cell_type") for stage, rows in table.groupby("stage", sort=False)}
    known, before, after = stages["model"].dropna(), stages["before"], stages["after"]
    ax.plot(known["n_counts"], known["per_1000_counts"], **KNOWN, label="known types")
    for cell_type, (x, y) in after[["n_counts", "per_1000_counts"]].iterrows():
        start = x, before.loc[cell_type, "per_1000_counts"]
        ax.annotate("", (x, y), start, arrowprops={"arrowstyle": "->", "color": ADDED})
    ax.plot(before["n_counts"], before["per_1000_counts"], **BEFORE, label="new types, before the extension")
    ax.plot(after["n_counts"], after["per_1000_counts"], **AFTER, label="new types, after the extension")
    ax.set_xscale("log")
    ax.margins(x=0.12)
    points = pd.concat([after, known.drop(after.index, errors="ignore")])[["n_counts", "per_1000_counts"]]
    for cell_type in points_with_room(ax, points):
        style: Style = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
        ax.annotate(shortened(cell_type), points.loc[cell_type], (7, 0), **style)
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter("{x:g}")
    ax.tick_params(which="both", labelsize=8)
    ax.set_xlabel("mean counts of a held-out cell")
    ax.set_ylabel("log likelihood, nats per 1,000 counts")
    ax.spines[["right", "top"]].set_visible(False)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, fontsize=9)
    return ax


def points_with_room(axis: Axes, points: pd.DataFrame) -> list[str]:
    """Choose the points that have room for a label at their right, the first ones first."""
    pixels = dict(zip(points.index, axis.transData.transform(points.to_numpy()), strict=True))
    chosen: list[str] = []
    for name, (x, y) in pixels.items():
        others = [pixels[other] for other in chosen]
        if all(abs(y - other_y) > HEIGHT or abs(x - other_x) > WIDTH for other_x, other_y in others):
            chosen.append(name)
    return chosen


def type_specific_genes_figure(genes: pd.DataFrame, *, new: NewFigure = Figure) -> Figure:
    """Draw the genes that the type-specific decoder of each type changes most."""
    cell_types = list(dict.fromkeys(genes["cell_type"]))[:MAX_PANELS]
    if not cell_types:
        return figure_of_text("No cell type needed a type-specific decoder.", new=new)
    n_columns = min(len(cell_types), N_COLUMNS)
    n_rows = -(-len(cell_types) // n_columns)
    figure = new(figsize=(1.5 + 3.4 * n_columns, 0.9 + 3.4 * n_rows), layout="constrained")
    axes = panels(figure, len(cell_types), n_columns=n_columns)
    for axis, cell_type in zip(axes, cell_types, strict=True):
        draw_type_specific_genes(axis, genes[genes["cell_type"] == cell_type].head(N_GENES), cell_type)
    figure.supxlabel("mean expression, CP10k", fontsize=9)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=2, frameon=False, fontsize=9)
    return figure


def draw_type_specific_genes(axis: Axes, genes: pd.DataFrame, cell_type: str) -> None:
    """Draw the expression of each gene by the shared and by the type-specific decoder."""
    rows = range(len(genes))
    shared, specific = genes["shared"], genes["type_specific"]
    axis.hlines(rows, shared, specific, color="0.7", linewidth=1, zorder=1)
    style: Style = {**MODEL, "color": "0.45", "markerfacecolor": "white"}
    axis.plot(shared, rows, **style, label="shared decoder", clip_on=False)
    axis.plot(specific, rows, **AFTER, label="type-specific decoder", clip_on=False)
    axis.set_yticks(rows, [*map(gene_label, display_names(genes))], fontsize=8)
    axis.set_ylim(len(genes) - 0.4, -0.6)
    axis.set_xscale("asinh", linear_width=1)
    axis.set_xlim(left=0)
    axis.set_xticks([value for value in (0, 1, 10, 100, 1000) if value <= axis.get_xlim()[1]])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(shortened(cell_type), fontsize=9)
    axis.spines[["right", "top"]].set_visible(False)
