"""Dot plots of marker genes by cell type and by branch, mean paths through ancestral states, and their UMAP."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import Any

import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.contrasts import ContrastGenes
from bdm.interpretation.markers import Dots, Markers, members_of_types
from bdm.interpretation.results import Interpretation
from bdm.plotting.style import (
    BRANCH,
    HALO,
    MODEL,
    NO_MARKERS,
    NO_NODES,
    NODE,
    NOISE_LEVEL,
    Interpreted,
    Style,
    axes_or_new,
    clade_label,
    figure_of,
    gene_label,
    highest,
    interpretation_of,
    new_figure,
    open_frame,
    panels,
    scale_noise_levels,
    shortened,
    shown,
    text_figure,
)
from bdm.plotting.tree import End, View, draw_outline, view_of

MAX_TYPES, MAX_GENES = 45, 45  # of dot plots
DOT_COLOURS = "Reds"  # one hue, ever darker
MAX_AREA = 150  # area of a dot where all cells have counts, in square points
MAX_ENDS = 45
MAX_PANELS, N_COLUMNS = 12, 4
MAX_KEYS_OF_COLUMN = 28
LEVEL_LINE: Style = {"color": NODE, "linewidth": 1, "linestyle": ":"}
SUB_POPULATION: Style = {"marker": "o", "linestyle": "", "markeredgecolor": "black", "markersize": 4}
SIDES = {"child": MODEL["color"], "its siblings": "#D55E00", "other populations": "0.8"}


# ---- dot plots


def markers(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw a dot plot of marker genes in real cells, next to one in generated cells.

    Size: share of cells with counts. Colour: mean of log1p(CP10k), relative to the gene's largest mean in real cells.
    Where there are more cell types than rows, one type of each clade is drawn.
    """
    interpretation = interpretation_of(interpretation)
    hierarchy, found = interpretation.hierarchy, interpretation.markers
    if not any(found.genes.values()):
        return shown(text_figure(NO_MARKERS), show=show)
    cell_types, groups = types_to_draw(hierarchy), genes_to_draw(found, hierarchy)
    n_genes = sum(map(len, groups))
    figure = new_figure(5 + 0.44 * n_genes, 2.6 + 0.27 * len(cell_types))
    axes = figure.subplots(1, 2, sharey=True)
    by_title = {"real cells (training)": found.real, "generated cells": found.generated}
    axes[0].set_yticks(range(len(cell_types)), [shortened(name, width=40) for name in cell_types])
    style: Style = {"extend": "max", "label": "share of the largest mean in real cells"}
    draw_dot_plots(axes, by_title, cell_types, groups, interpretation.names.labels, relative_to=found.real, **style)
    n_types = len(members_of_types(hierarchy))
    if len(cell_types) < n_types:
        what = "cell types" if len(hierarchy.cell_types) > 1 else "populations"
        figure.suptitle(f"{len(cell_types)} of {n_types:,} {what}, one of each clade", fontsize=11)
    return shown(figure, show=show)


def ancestral_states(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw a dot plot of marker genes by branch: in its ancestral state, and in the real cells below it.

    Size: share of cells with counts. Colour: mean of log1p(CP10k), relative to the gene's largest mean in the panel.
    Where there are more branches than rows, cell types have no rows for their sub-populations, and the branches that
    leave the highest nodes are drawn.
    """
    interpretation = interpretation_of(interpretation)
    hierarchy, found = interpretation.hierarchy, interpretation.markers
    if not any(found.genes.values()):
        return shown(text_figure(NO_MARKERS), show=show)
    view = view_of(hierarchy, max_rows=MAX_ENDS, sub_populations=len(hierarchy.populations) <= MAX_ENDS)
    names, groups = list(view.drawn), genes_to_draw(found, hierarchy)
    width = max(0.21 * sum(map(len, groups)), 3.2)  # of a panel in inches, with room for its title
    figure = new_figure(6.5 + 2 * width, 2.8 + 0.24 * len(names))
    tree, *axes = figure.subplots(1, 3, sharey=True, width_ratios=[4.5, width, width])
    draw_outline(tree, view.hierarchy, names, opened=set(view.opened))
    by_title = {
        "ancestral states of the model": found.ancestral_states,
        "real training cells below the branch": found.clades,
    }
    label = "share of the gene's largest mean"
    draw_dot_plots(axes, by_title, names, groups, interpretation.names.labels, label=label)
    return shown(figure, show=show)


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


def draw_dot_plots(
    axes: Sequence[Axes],
    by_title: dict[str, Dots],
    rows: list[str],
    groups: list[tuple[str, ...]],
    labels: pd.Series,
    *,
    relative_to: Dots | None = None,
    **colour_bar: Any,
) -> None:
    """Draw a dot plot in each axes, with lines between the genes of groups, a colour bar, and the sizes of dots.

    Parameters
    ----------
    rows
        Cell types or branches.
    labels
        What each gene is shown as, by its name.
    relative_to
        Dots whose largest mean of each gene is 1; by default those of the axes.
    colour_bar
        Arguments of matplotlib.
    """
    figure, genes = figure_of(axes[0]), [gene for group in groups for gene in group]
    for axis, (title, dots) in zip(axes, by_title.items(), strict=True):
        largest = (relative_to or dots).mean[genes].max().clip(lower=1e-9)
        part = Dots((dots.mean[genes] / largest).loc[rows], dots.fraction.loc[rows, genes])
        points = draw_dots(axis, part, labels)
        for end in np.cumsum([len(group) for group in groups])[:-1]:
            axis.axvline(end - 0.5, color="0.6", linewidth=0.8, zorder=0)
        axis.set_title(title, fontsize=11)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    aspect = max(1.5 * len(rows), 20)  # the bar is as wide next to many rows as next to few
    figure.colorbar(points, ax=axes, pad=0.01, aspect=aspect, **colour_bar)
    style: Style = {"marker": "o", "linestyle": "", "color": "0.6", "markeredgecolor": "0.35", "markeredgewidth": 0.4}
    sizes = [Line2D([], [], markersize=(MAX_AREA * f) ** 0.5, label=f"{f:.0%}", **style) for f in (0.1, 0.5, 1.0)]
    title = "cells with counts (area), and mean log1p(CP10k) (colour)"
    figure.legend(handles=sizes, title=title, loc="outside lower center", ncols=3, frameon=False)


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


# ---- ancestral states


def paths(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the mean path of each cell type through the noise levels, for the best marker gene of each branch.

    Where there are more branches than panels, the branches that leave the highest nodes are drawn.
    """
    interpretation = interpretation_of(interpretation)
    if not interpretation.contrasts:
        return shown(text_figure(NO_NODES), show=show)
    contrasts = highest(list(interpretation.contrasts), MAX_PANELS, level=lambda of: of.contrast.level)
    figure = new_figure(15, 0.8 + 2.6 * -(-len(contrasts) // N_COLUMNS))
    axes = panels(figure, len(contrasts), n_columns=N_COLUMNS, sharex=True)
    for axis, of in zip(axes, contrasts, strict=True):
        draw_paths(axis, of, interpretation)
    for axis in axes[::N_COLUMNS]:
        axis.set_ylabel("CP10k", fontsize=8)
    figure.supxlabel(NOISE_LEVEL, fontsize=9)
    keys = [Line2D([], [], color=colour, label=side) for side, colour in SIDES.items()]
    keys.append(Line2D([], [], label="level of the node", **LEVEL_LINE))
    title = "Mean expression that the model expects of each population, from noise (left) to cells (right)"
    figure.legend(handles=keys, title=title, loc="outside upper center", ncols=4, frameon=False)
    return shown(figure, show=show)


def draw_paths(axis: Axes, of: ContrastGenes, interpretation: Interpretation) -> None:
    """Draw the staircase of each population, for the best gene of one branch."""
    hierarchy, contrast = interpretation.hierarchy, of.contrast
    gene = np.argmin(of.model.rank)
    expression = interpretation.ancestral_states.expression.iloc[gene]
    sides = {"other populations": hierarchy.populations, "its siblings": contrast.outside, "child": contrast.inside}
    for side, populations in sides.items():
        for population in populations:
            path = hierarchy.path(population)
            levels = [path[0].high, *(segment.low for segment in path)]
            values = [expression[segment.branch] for segment in path]
            axis.step(levels, [*values, values[-1]], where="post", color=SIDES[side], linewidth=1.4)
    axis.axvline(contrast.level, **LEVEL_LINE)
    axis.set_yscale("asinh", linear_width=1)
    axis.set_ylim(bottom=0)
    axis.set_yticks([value for value in (0, 1, 10, 100, 1000) if value <= axis.get_ylim()[1]])
    axis.yaxis.set_major_formatter("{x:g}")
    scale_noise_levels(axis, hierarchy.sigma_max)
    axis.yaxis.set_minor_locator(NullLocator())
    axis.tick_params(labelsize=8)
    name = gene_label(interpretation.labels[gene])
    axis.set_title(f"{name} · {contrast.node} → {clade_label(contrast.names_inside)}", fontsize=8)
    open_frame(axis)


def ancestral_umap(interpretation: Interpreted, *, ax: Axes | None = None, show: bool | None = None) -> Axes | None:
    """Draw the ancestral states among real cells in one UMAP, joined as in the tree; cell types have numbers.

    The sub-populations of a cell type share a colour and a number; smaller points are their ancestral states. Where
    there are more cell types than numbers, the types of a clade that separates at a low level share a colour and a
    number.
    """
    interpretation = interpretation_of(interpretation)
    hierarchy = interpretation.hierarchy
    view = view_of(hierarchy)
    colours = list(islice(cycle(sc.pl.palettes.default_20), len(view.ends)))
    states = zip((branch.name for branch in hierarchy.branches), interpretation.embedding.ancestral_states, strict=True)
    many = len(view.ends) > MAX_KEYS_OF_COLUMN
    axis = axes_or_new(ax, *((15, 9) if many else (10.5, 7.5)))
    draw_states(axis, view, dict(states), interpretation.embedding.cells, colours)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title("Ancestral states of the model among real training cells", fontsize=11, loc="left")
    position: Style = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": 2 if many else 1}
    axis.legend(handles=keys(view, colours), frameon=False, **position)
    return shown(axis, show=show, complete=ax is None)


def draw_states(
    ax: Axes, view: View, states: dict[str, np.ndarray], cells: pd.DataFrame, colours: Sequence[str]
) -> None:
    """Draw real cells, and over them the ancestral state of each branch, joined to its parent.

    Parameters
    ----------
    states
        Coordinates (2) of each branch, by name.
    cells
        Columns ``sub_population``, ``umap1`` and ``umap2``.
    colours
        Of the ends of the view.
    """
    for end, colour in zip(view.ends, colours, strict=True):
        below = cells[cells["sub_population"].isin(end.populations)]
        ax.plot(below["umap1"], below["umap2"], "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.5)
    for name in view.drawn:
        parent = view.hierarchy.by_name[name].parent
        if parent is not None:
            ax.plot(*np.transpose([states[parent], states[name]]), color=BRANCH, linewidth=0.8, alpha=0.7, zorder=3)
    for end, colour in zip(view.ends, colours, strict=True):
        if end.divided:
            draw_sub_populations(ax, view.hierarchy, end, states, colour)
    for name in view.opened:
        ax.plot(*states[name], "s", color=NODE, markeredgecolor="black", markersize=7, zorder=4)
    text: Style = {"weight": "bold", "path_effects": [HALO], "textcoords": "offset points", "zorder": 5}
    for number, (end, colour) in enumerate(zip(view.ends, colours, strict=True), start=1):
        if len(end.branches) == 1:
            marker: Style = {"color": colour, "markeredgecolor": "black", "markersize": 7, "zorder": 4}
            ax.plot(*states[end.branches[0].name], "D" if end.collapsed else "o", **marker)
        middle = np.mean([states[branch.name] for branch in end.branches], axis=0)
        ax.annotate(str(number), middle, (5, 4), fontsize=9, **text)
    for (x, y), names in grouped_by_position({name: states[name] for name in view.opened}).items():
        label = ", ".join(name.removeprefix("node ") for name in names)
        ax.annotate(label, (x, y), (-5, -10), fontsize=8, color=NODE, ha="right", **text)


def draw_sub_populations(ax: Axes, hierarchy: Hierarchy, end: End, states: dict[str, np.ndarray], colour: str) -> None:
    """Draw the ancestral states of sub-populations as small points, and join them to the state of their cell type."""
    above = {branch.name for top in end.branches for branch in hierarchy.lineage(top.name)}
    below = {branch.name for leaf in end.populations for branch in hierarchy.lineage(leaf)} - above
    for name in filter(below.__contains__, hierarchy.by_name):
        if (parent := hierarchy.by_name[name].parent) is not None:
            ax.plot(*np.transpose([states[parent], states[name]]), color=colour, linewidth=0.8, zorder=3)
        if not hierarchy.children[name]:
            ax.plot(*states[name], color=colour, **SUB_POPULATION, zorder=3.5)


def keys(view: View, colours: Sequence[str]) -> list[Line2D]:
    """Explain numbers, colours and markers."""
    ends = [
        Line2D(
            [], [], color=colour, marker="D" if end.collapsed else "o", linestyle="", label=f"{number}  {end_name(end)}"
        )
        for number, (end, colour) in enumerate(zip(view.ends, colours, strict=True), start=1)
    ]
    if any(end.divided for end in view.ends):
        ends.append(Line2D([], [], color="0.7", label="sub-population", **SUB_POPULATION))
    label = "node, by its number"
    return [*ends, Line2D([], [], marker="s", linestyle="", color=NODE, markeredgecolor="black", label=label)]


def end_name(end: End) -> str:
    """Name a cell type or a population, or a clade by its node and its first types or sub-populations."""
    if end.collapsed or (end.divided and end.name != end.cell_types[0]):
        return f"{end.name}: {clade_label(end.cell_types if end.collapsed else end.populations)}"
    return shortened(end.name)


def grouped_by_position(
    positions: dict[str, np.ndarray], *, apart: float = 0.03
) -> dict[tuple[float, float], list[str]]:
    """Group names by position: those that are less than a share ``apart`` of the figure from the first of a group."""
    if not positions:
        return {}
    spread = np.ptp(list(positions.values()), axis=0) + 1e-9
    groups: dict[tuple[float, float], list[str]] = {}
    for name, position in positions.items():
        near = [first for first in groups if np.all(np.abs(position - first) < apart * spread)]
        groups.setdefault(near[0] if near else tuple(position), []).append(name)
    return groups
