"""Dot plots of marker genes by cell type and by branch."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.ancestral_states import Dots, Markers, populations_by_type
from bdm.interpretation.interpretation import Interpretation
from bdm.plotting.branches import get_interpretation
from bdm.plotting.hierarchy_figure import View, view_of
from bdm.plotting.style import (
    BRANCH,
    NODE,
    Style,
    draws,
    figure_of,
    gene_label,
    new_figure,
    shortened,
)

NO_MARKERS = "There is one cell type, so no genes mark it against others."  # shown instead of a figure
MAX_TYPES, MAX_GENES = 45, 45  # of dot plots
DOT_COLOURS = "Reds"
MAX_AREA = 150  # square points of a dot if all cells have counts
MAX_ENDS = 45


@draws(Interpretation, "markers", of=get_interpretation)
def markers(interpretation: Interpretation) -> Figure | str:
    """Draw dot plots of marker genes in real and generated cells.

    Size: share of cells with counts. Colour: mean of log1p(CP10k), relative to the gene's largest mean in real cells.
    With more cell types than rows, one type of each clade is drawn.
    """
    hierarchy, marker_dots = interpretation.hierarchy, interpretation.markers
    if not any(marker_dots.genes.values()):
        return NO_MARKERS
    cell_types, groups = one_type_per_clade(hierarchy), genes_to_draw(marker_dots, hierarchy)
    n_genes = sum(map(len, groups))
    figure = new_figure(5 + 0.44 * n_genes, 2.6 + 0.27 * len(cell_types))
    axes = figure.subplots(1, 2, sharey=True)
    by_title = {"real cells (training)": marker_dots.real, "generated cells": marker_dots.generated}
    axes[0].set_yticks(range(len(cell_types)), [shortened(name, width=40) for name in cell_types])
    draw_dot_plots(axes, by_title, cell_types, groups, interpretation.names.labels, relative_to=marker_dots.real)
    n_types = len(populations_by_type(hierarchy))
    if len(cell_types) < n_types:
        noun = "cell types" if len(hierarchy.cell_types) > 1 else "populations"
        figure.suptitle(f"{len(cell_types)} of {n_types:,} {noun}, one of each clade", fontsize=11)
    return figure


@draws(Interpretation, "ancestral_states", of=get_interpretation)
def ancestral_states(interpretation: Interpretation) -> Figure | str:
    """Draw dot plots of marker genes in ancestral states and in real cells.

    Each row is a branch: its ancestral state at the left, and the real training cells below it at the right. Size:
    share of cells with counts. Colour: mean of log1p(CP10k), relative to the gene's largest mean in the panel. With
    more branches than rows, sub-populations are left out, and the branches of the highest nodes are drawn.
    """
    hierarchy, marker_dots = interpretation.hierarchy, interpretation.markers
    if not any(marker_dots.genes.values()):
        return NO_MARKERS
    view = view_of(hierarchy, max_rows=MAX_ENDS, sub_populations=len(hierarchy.populations) <= MAX_ENDS)
    names, groups = list(view.drawn), genes_to_draw(marker_dots, hierarchy)
    width = max(0.21 * sum(map(len, groups)), 3.2)  # inches of a panel, with room for its title
    figure = new_figure(6.5 + 2 * width, 2.8 + 0.24 * len(names))
    tree, *axes = figure.subplots(1, 3, sharey=True, width_ratios=[4.5, width, width])
    draw_outline(tree, view, names)
    by_title = {
        "ancestral states of the model": interpretation.ancestral_states.dots([*chain(*groups)]),
        "real training cells below the branch": marker_dots.clades,
    }
    draw_dot_plots(axes, by_title, names, groups, interpretation.names.labels)
    return figure


def one_type_per_clade(hierarchy: Hierarchy) -> list[str]:
    """Select the first cell type of each clade, one per row.

    With a single cell type, select its sub-populations.
    """
    ends = view_of(hierarchy, max_rows=MAX_TYPES).ends
    one_type = len(hierarchy.cell_types) == 1
    return list(dict.fromkeys((end.populations if one_type else end.cell_types)[0] for end in ends))


def genes_to_draw(markers: Markers, hierarchy: Hierarchy) -> list[tuple[str, ...]]:
    """Select the markers that fit the columns, evenly over lists of markers."""
    shown = [markers.genes[cell_type] for cell_type in one_type_per_clade(hierarchy) if markers.genes.get(cell_type)]
    groups = (shown if len(markers.genes) > MAX_GENES and shown else list(markers.genes.values()))[:MAX_GENES]
    return [group[: -(-MAX_GENES // len(groups))] for group in groups]


def draw_dot_plots(
    axes: Sequence[Axes],
    by_title: dict[str, Dots],
    rows: list[str],
    groups: list[tuple[str, ...]],
    labels: pd.Series,
    *,
    relative_to: Dots | None = None,
) -> None:
    """Draw one dot plot per axes, with lines between groups of genes.

    Colours are relative to each gene's largest mean.
    """
    figure, genes = figure_of(axes[0]), [*chain(*groups)]
    for axis, (title, dots) in zip(axes, by_title.items(), strict=True):
        largest = (relative_to or dots).mean[genes].max().clip(lower=1e-9)
        part = Dots((dots.mean[genes] / largest).loc[rows], dots.fraction.loc[rows, genes])
        points = draw_dots(axis, part, labels)
        for end in np.cumsum([len(group) for group in groups])[:-1]:
            axis.axvline(end - 0.5, color="0.6", linewidth=0.8, zorder=0)
        axis.set_title(title, fontsize=11)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    aspect = max(1.5 * len(rows), 20)  # keeps the width of the bar
    label = f"share of the gene's largest mean{' in real cells' if relative_to else ''}"
    extend = "max" if relative_to else "neither"
    figure.colorbar(points, ax=axes, pad=0.01, aspect=aspect, label=label, extend=extend)
    style: Style = {"marker": "o", "linestyle": "", "color": "0.6", "markeredgecolor": "0.35", "markeredgewidth": 0.4}
    sizes = [Line2D([], [], markersize=(MAX_AREA * f) ** 0.5, label=f"{f:.0%}", **style) for f in (0.1, 0.5, 1.0)]
    title = "cells with counts (area), and mean log1p(CP10k) (colour)"
    figure.legend(handles=sizes, title=title, loc="outside lower center", ncols=3, frameon=False)


def draw_dots(axis: Axes, dots: Dots, labels: pd.Series) -> PathCollection:
    """Draw one dot per row (cell type or branch) and gene."""
    genes = labels[dots.mean.columns]
    n_types, n_genes = dots.mean.shape
    rows, columns = np.indices((n_types, n_genes))
    points = axis.scatter(
        columns.ravel(),
        rows.ravel(),
        s=MAX_AREA * dots.fraction.to_numpy().ravel(),
        c=dots.mean.to_numpy().ravel(),
        cmap=DOT_COLOURS,
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


def draw_outline(axis: Axes, view: View, names: Sequence[str]) -> None:
    """Label the rows with their branches, indented by depth, and levels of nodes."""
    depth: dict[str | None, int] = {None: -1}
    for row, name in enumerate(names):
        branch, leaf = view.hierarchy.by_name[name], not view.hierarchy.children[name]
        depth[name] = depth[branch.parent] + 1
        label = shortened(name, width=34) + ("" if leaf else f" · {branch.level:.1f}")
        if not leaf and name not in view.opened:
            n_types, n_leaves = len(view.hierarchy.types_below(name)), sum(1 for _ in view.hierarchy.leaves(name))
            label += f" · {n_types} types" if n_types > 1 else f" · {n_leaves} sub-populations"
        style: Style = {"fontsize": 8.5, "va": "center", "color": BRANCH if leaf else NODE}
        axis.text(depth[name], row, label, weight="normal" if leaf else "bold", **style)
    deepest = max(depth.values())
    axis.set_xlim(-0.4, deepest + max(6, 1.2 * deepest))
    axis.set_title("branch · level of its end", fontsize=9, loc="left")
    axis.set_axis_off()
