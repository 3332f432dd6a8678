"""Dot plots of marker genes by cell type and by branch, and a UMAP of ancestral states."""

from collections.abc import Sequence
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.lines import Line2D

from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.markers import Dots, Markers, members_of_types
from bdm.plotting.branches import Interpreted, interpretation_of
from bdm.plotting.style import (
    BRANCH,
    HALO,
    NODE,
    TYPE_COLOURS,
    Style,
    axes_or_new,
    clade_label,
    figure_of,
    gene_label,
    new_figure,
    shortened,
    shown,
    shown_panels,
    text_axes,
)
from bdm.plotting.tree import End, View, view_of

NO_MARKERS = "There is one cell type, so no genes mark it against others."  # in place of a figure
MAX_TYPES, MAX_GENES = 45, 45  # of dot plots
DOT_COLOURS = "Reds"  # one hue, ever darker
MAX_AREA = 150  # area of a dot where all cells have counts, in square points
MAX_ENDS = 45
MAX_KEYS_OF_COLUMN = 28
SUB_POPULATION: Style = {"marker": "o", "linestyle": "", "markeredgecolor": "black", "markersize": 4}


# ---- dot plots


def markers(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw a dot plot of marker genes in real cells, next to one in generated cells.

    Size: share of cells with counts. Colour: mean of log1p(CP10k), relative to the gene's largest mean in real cells.
    Where there are more cell types than rows, one type of each clade is drawn.
    """
    interpretation = interpretation_of(interpretation)
    hierarchy, found = interpretation.hierarchy, interpretation.markers
    if not any(found.genes.values()):
        return shown_panels(figure_of(text_axes(NO_MARKERS)), show=show)
    cell_types, groups = types_to_draw(hierarchy), genes_to_draw(found, hierarchy)
    n_genes = sum(map(len, groups))
    figure = new_figure(5 + 0.44 * n_genes, 2.6 + 0.27 * len(cell_types))
    axes = figure.subplots(1, 2, sharey=True)
    by_title = {"real cells (training)": found.real, "generated cells": found.generated}
    axes[0].set_yticks(range(len(cell_types)), [shortened(name, width=40) for name in cell_types])
    draw_dot_plots(axes, by_title, cell_types, groups, interpretation.names.labels, relative_to=found.real)
    n_types = len(members_of_types(hierarchy))
    if len(cell_types) < n_types:
        what = "cell types" if len(hierarchy.cell_types) > 1 else "populations"
        figure.suptitle(f"{len(cell_types)} of {n_types:,} {what}, one of each clade", fontsize=11)
    return shown_panels(figure, show=show)


def ancestral_states(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw a dot plot of marker genes by branch: in its ancestral state, and in the real cells below it.

    Size: share of cells with counts. Colour: mean of log1p(CP10k), relative to the gene's largest mean in the panel.
    Where there are more branches than rows, cell types have no rows for their sub-populations, and the branches that
    leave the highest nodes are drawn.
    """
    interpretation = interpretation_of(interpretation)
    hierarchy, found = interpretation.hierarchy, interpretation.markers
    if not any(found.genes.values()):
        return shown_panels(figure_of(text_axes(NO_MARKERS)), show=show)
    view = view_of(hierarchy, max_rows=MAX_ENDS, sub_populations=len(hierarchy.populations) <= MAX_ENDS)
    names, groups = list(view.drawn), genes_to_draw(found, hierarchy)
    width = max(0.21 * sum(map(len, groups)), 3.2)  # of a panel in inches, with room for its title
    figure = new_figure(6.5 + 2 * width, 2.8 + 0.24 * len(names))
    tree, *axes = figure.subplots(1, 3, sharey=True, width_ratios=[4.5, width, width])
    draw_outline(tree, view, names)
    by_title = {
        "ancestral states of the model": found.ancestral_states,
        "real training cells below the branch": found.clades,
    }
    draw_dot_plots(axes, by_title, names, groups, interpretation.names.labels)
    return shown_panels(figure, show=show)


def types_to_draw(hierarchy: Hierarchy) -> list[str]:
    """Choose as many cell types as there are rows, the first of each clade; of one cell type alone, populations."""
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
) -> None:
    """Draw a dot plot in each axes, with lines between groups of genes, relative to each gene's largest mean."""
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
    label = f"share of the gene's largest mean{' in real cells' if relative_to else ''}"
    extend = "max" if relative_to else "neither"
    figure.colorbar(points, ax=axes, pad=0.01, aspect=aspect, label=label, extend=extend)
    style: Style = {"marker": "o", "linestyle": "", "color": "0.6", "markeredgecolor": "0.35", "markeredgewidth": 0.4}
    sizes = [Line2D([], [], markersize=(MAX_AREA * f) ** 0.5, label=f"{f:.0%}", **style) for f in (0.1, 0.5, 1.0)]
    title = "cells with counts (area), and mean log1p(CP10k) (colour)"
    figure.legend(handles=sizes, title=title, loc="outside lower center", ncols=3, frameon=False)


def draw_dots(axis: Axes, dots: Dots, labels: pd.Series) -> PathCollection:
    """Draw one dot a cell type or branch (row) and gene (column)."""
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
    """Name the branches of rows, each to the right of its parent, with the levels of nodes."""
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


# ---- ancestral states


def ancestral_umap(interpretation: Interpreted, *, ax: Axes | None = None, show: bool | None = None) -> Axes | None:
    """Draw the ancestral states among real cells in one UMAP, joined as in the tree; cell types have numbers.

    The sub-populations of a cell type share a colour and a number; smaller points are their ancestral states. Where
    there are more cell types than numbers, the types of a clade that separates at a low level share a colour and a
    number.
    """
    interpretation = interpretation_of(interpretation)
    hierarchy = interpretation.hierarchy
    view = view_of(hierarchy)
    many = len(view.ends) > MAX_KEYS_OF_COLUMN
    axis = axes_or_new(ax, *((15, 9) if many else (10.5, 7.5)))
    places = zip((branch.name for branch in hierarchy.branches), interpretation.embedding.ancestral_states, strict=True)
    draw_states(axis, view, dict(places), interpretation.embedding.cells)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title("Ancestral states of the model among real training cells", fontsize=11, loc="left")
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5), ncols=2 if many else 1)
    return shown(axis, show=show, ax=ax)


def draw_states(ax: Axes, view: View, states: dict[str, np.ndarray], cells: pd.DataFrame) -> None:
    """Draw real cells, and over them the ancestral state of each branch (2 coordinates), joined to its parent."""
    hierarchy = view.hierarchy
    text: Style = {"path_effects": [HALO], "textcoords": "offset points", "weight": "bold"}
    for number, (end, colour) in enumerate(zip(view.ends, cycle(TYPE_COLOURS)), start=1):
        below = cells[cells["sub_population"].isin(end.populations)]
        ax.plot(below["umap1"], below["umap2"], "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.5)
        if end.divided:
            draw_sub_populations(ax, hierarchy, end, states, colour)
        middle = np.mean([states[branch.name] for branch in end.branches], axis=0)
        marker: Style = {"color": colour, "markeredgecolor": "black", "markersize": 7, "zorder": 4}
        place = middle if len(end.branches) == 1 else (np.nan, np.nan)
        ax.plot(*place, "D" if end.collapsed else "o", label=f"{number}  {end_name(end)}", **marker)
        ax.annotate(str(number), tuple(middle), (5, 4), fontsize=9, zorder=5, **text)
    for name in view.drawn:
        parent = hierarchy.by_name[name].parent
        if parent is not None:
            ax.plot(*np.transpose([states[parent], states[name]]), color=BRANCH, linewidth=0.8, alpha=0.7, zorder=3)
    for name in view.opened:
        ax.plot(*states[name], "s", color=NODE, markeredgecolor="black", markersize=7, zorder=4)
    for names in grouped_by_position({name: states[name] for name in view.opened}):
        style: Style = {"fontsize": 8, "color": NODE, "ha": "right", "zorder": 5, **text}
        label = ", ".join(name.removeprefix("node ") for name in names)
        ax.annotate(label, tuple(states[names[0]]), (-5, -10), **style)
    if any(end.divided for end in view.ends):
        ax.plot([], [], color="0.7", label="sub-population", **SUB_POPULATION)
    ax.plot([], [], "s", color=NODE, markeredgecolor="black", label="node, by its number")


def draw_sub_populations(
    ax: Axes, hierarchy: Hierarchy, end: End, states: dict[str, np.ndarray], colour: Sequence[float]
) -> None:
    """Draw the ancestral states of sub-populations as small points, and join them to the state of their cell type."""
    above = {branch.name for top in end.branches for branch in hierarchy.lineage(top.name)}
    below = {branch.name for leaf in end.populations for branch in hierarchy.lineage(leaf)} - above
    for name in below:
        ax.plot(*np.transpose([states[str(hierarchy.by_name[name].parent)], states[name]]), color=colour, linewidth=0.8)
        if not hierarchy.children[name]:
            ax.plot(*states[name], color=colour, **SUB_POPULATION, zorder=3.5)


def end_name(end: End) -> str:
    """Name a cell type or a population, or a clade by its node and its first types or sub-populations."""
    if end.collapsed or (end.divided and end.name != end.cell_types[0]):
        return f"{end.name}: {clade_label(end.cell_types if end.collapsed else end.populations)}"
    return shortened(end.name)


def grouped_by_position(positions: dict[str, np.ndarray]) -> list[list[str]]:
    """Group names whose positions are less than 3% of the figure from the first of a group."""
    groups: list[list[str]] = []
    for name, position in positions.items():
        limit = 0.03 * np.ptp(list(positions.values()), axis=0) + 1e-9
        near = [group for group in groups if np.all(np.abs(position - positions[group[0]]) < limit)]
        if near:
            near[0].append(name)
        else:
            groups.append([name])
    return groups
