"""Dot plots of marker genes: in real and in generated cells."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.markers import Dots, Markers, members_of_types
from bdm.interpretation.results import Interpretation
from bdm.plotting.style import NO_MARKERS, NewFigure, Style, figure_of_text, gene_label, shortened
from bdm.plotting.tree import view_of

MAX_TYPES, MAX_GENES = 45, 45
COLOURS = "Reds"  # one hue, ever darker
MAX_AREA = 150  # area of a dot where all cells have counts, in square points


def markers_figure(interpretation: Interpretation, *, new: NewFigure = Figure) -> Figure:
    """Draw dot plots of marker genes, in real and in generated cells.

    Size: share of cells with counts. Colour: mean of log1p(CP10k), relative to the gene's largest mean in real cells.
    Where there are more cell types than rows, one type of each clade is drawn.
    """
    if not any(interpretation.markers.genes.values()):
        return figure_of_text(NO_MARKERS, new=new)
    hierarchy, markers, labels = interpretation.hierarchy, interpretation.markers, interpretation.names.labels
    cell_types = types_to_draw(hierarchy)
    groups = genes_to_draw(markers, hierarchy)
    genes = [gene for group in groups for gene in group]
    largest = markers.real.mean[genes].max().clip(lower=1e-9)
    figure = new(figsize=(5 + 0.44 * len(genes), 2.6 + 0.27 * len(cell_types)), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    panels = {"real cells (training)": markers.real, "generated cells": markers.generated}
    for axis, (title, dots) in zip(axes, panels.items(), strict=True):
        part = Dots(dots.mean.loc[cell_types, genes] / largest, dots.fraction.loc[cell_types, genes])
        points = draw_dots(axis, part, labels)
        separate_groups(axis, groups)
        axis.set_title(title, fontsize=11)
    axes[0].set_yticks(range(len(cell_types)), [shortened(name, width=40) for name in cell_types])
    axes[0].set_ylim(len(cell_types) - 0.4, -0.6)
    figure.colorbar(
        points,
        ax=axes,
        pad=0.01,
        aspect=colorbar_aspect(len(cell_types)),
        extend="max",
        label="share of the largest mean in real cells",
    )
    explain_sizes(figure)
    n_types = len(members_of_types(hierarchy))
    if len(cell_types) < n_types:
        what = "cell types" if len(hierarchy.cell_types) > 1 else "populations"
        figure.suptitle(f"{len(cell_types)} of {n_types:,} {what}, one of each clade", fontsize=11)
    return figure


def types_to_draw(hierarchy: Hierarchy) -> list[str]:
    """Choose as many cell types as there are rows, over the whole tree: the first of each clade that has a row.

    Of one cell type alone, populations are chosen.
    """
    ends = view_of(hierarchy, max_rows=MAX_TYPES).ends
    one_type = len(hierarchy.cell_types) == 1
    return list(dict.fromkeys((end.populations if one_type else end.cell_types)[0] for end in ends))


def genes_to_draw(markers: Markers, hierarchy: Hierarchy) -> list[tuple[str, ...]]:
    """Choose as many markers as there are columns, of each type that is drawn or that a user's list names."""
    of_types = [markers.genes[cell_type] for cell_type in types_to_draw(hierarchy) if markers.genes.get(cell_type)]
    groups = (of_types if len(markers.genes) > MAX_GENES and of_types else list(markers.genes.values()))[:MAX_GENES]
    return [group[: -(-MAX_GENES // len(groups))] for group in groups]


def separate_groups(axis: Axes, groups: list[tuple[str, ...]]) -> None:
    """Draw a line between the genes of one type and the next."""
    for end in np.cumsum([len(group) for group in groups])[:-1]:
        axis.axvline(end - 0.5, color="0.6", linewidth=0.8, zorder=0)


def draw_dots(axis: Axes, dots: Dots, labels: pd.Series) -> PathCollection:
    """Draw one dot a cell type or branch (row) and gene (column).

    Parameters
    ----------
    labels
        What each gene is shown as, by its name.
    """
    genes = labels[dots.mean.columns]
    n_types, n_genes = dots.mean.shape
    rows, columns = np.indices((n_types, n_genes))
    points = axis.scatter(
        columns.ravel(),
        rows.ravel(),
        s=MAX_AREA * dots.fraction.to_numpy().ravel(),
        c=dots.mean.to_numpy().ravel(),
        cmap=COLOURS,
        vmin=0,
        vmax=1,
        edgecolors="0.35",
        linewidths=0.4,
    )
    axis.set_xticks(range(n_genes), [*map(gene_label, genes)], rotation=90, fontsize=8)
    axis.set_xlim(-0.6, n_genes - 0.4)
    axis.tick_params(length=0)
    axis.grid(color="0.93", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[:].set_color("0.7")
    return points


def colorbar_aspect(n_rows: int) -> float:
    """Ratio of height to width at which a colour bar is as wide beside many rows as beside few."""
    return max(1.5 * n_rows, 20)


def explain_sizes(figure: Figure) -> None:
    """Explain the sizes of dots below the panels."""
    style: Style = {"marker": "o", "linestyle": "", "color": "0.6", "markeredgecolor": "0.35", "markeredgewidth": 0.4}
    keys = [
        Line2D([], [], markersize=(MAX_AREA * share) ** 0.5, label=f"{share:.0%}", **style) for share in (0.1, 0.5, 1.0)
    ]
    title = "cells with counts (area), and mean log1p(CP10k) (colour)"
    figure.legend(handles=keys, title=title, loc="outside lower center", ncols=3, frameon=False)
