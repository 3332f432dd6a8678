"""Ancestral states: their marker genes by branch, the mean paths through them, and their UMAP among real cells."""

from collections.abc import Sequence
from itertools import cycle, islice

import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.contrasts import ContrastGenes
from bdm.interpretation.markers import Dots
from bdm.interpretation.results import Interpretation
from bdm.plotting.markers import colorbar_aspect, draw_dots, explain_sizes, genes_to_draw, separate_groups
from bdm.plotting.style import (
    BRANCH,
    HALO,
    MODEL,
    NO_MARKERS,
    NO_NODES,
    NODE,
    NOISE_LEVEL,
    NewFigure,
    Style,
    clade_label,
    figure_of_text,
    gene_label,
    highest,
    panels,
    scale_noise_levels,
    shortened,
)
from bdm.plotting.tree import End, View, draw_outline, view_of

MAX_ENDS = 45
MAX_PANELS, N_COLUMNS = 12, 4
MAX_KEYS_OF_COLUMN = 28
LEVEL_LINE: Style = {"color": NODE, "linewidth": 1, "linestyle": ":"}
SUB_POPULATION: Style = {"marker": "o", "linestyle": "", "markeredgecolor": "black", "markersize": 4}
SIDES = {"child": MODEL["color"], "its siblings": "#D55E00", "other populations": "0.8"}


def ancestral_states_figure(interpretation: Interpretation, *, new: NewFigure = Figure) -> Figure:
    """Draw a dot plot of marker genes by branch: in the ancestral state at its end, and in the real cells below it.

    Size: share of cells with counts. Colour: mean of log1p(CP10k), relative to the gene's largest mean in the panel.
    Where there are more branches than rows, cell types have no rows for their sub-populations, and the branches that
    leave the highest nodes are drawn.
    """
    if not any(interpretation.markers.genes.values()):
        return figure_of_text(NO_MARKERS, new=new)
    hierarchy, markers = interpretation.hierarchy, interpretation.markers
    view = view_of(hierarchy, max_rows=MAX_ENDS, sub_populations=len(hierarchy.populations) <= MAX_ENDS)
    names = list(view.drawn)
    groups = genes_to_draw(markers, hierarchy)
    genes = [gene for group in groups for gene in group]
    width = max(0.21 * len(genes), 3.2)  # of a panel in inches, with room for its title
    figure = new(figsize=(6.5 + 2 * width, 2.8 + 0.24 * len(names)), layout="constrained")
    tree, *axes = figure.subplots(1, 3, sharey=True, width_ratios=[4.5, width, width])
    draw_outline(tree, view.hierarchy, names, opened=set(view.opened))
    panels = {
        "ancestral states of the model": markers.ancestral_states,
        "real training cells below the branch": markers.clades,
    }
    for axis, (title, dots) in zip(axes, panels.items(), strict=True):
        mean = dots.mean[genes]
        share = mean / mean.max().clip(lower=1e-9)
        points = draw_dots(axis, Dots(share.loc[names], dots.fraction.loc[names, genes]), interpretation.names.labels)
        separate_groups(axis, groups)
        axis.set_title(title, fontsize=11)
    tree.set_ylim(len(names) - 0.4, -0.6)
    figure.colorbar(
        points, ax=axes, pad=0.01, aspect=colorbar_aspect(len(names)), label="share of the gene's largest mean"
    )
    explain_sizes(figure)
    return figure


def paths_figure(interpretation: Interpretation, *, new: NewFigure = Figure) -> Figure:
    """Draw the mean path of each population through the noise levels, for the best marker gene of each branch.

    Where there are more branches than panels, the branches that leave the highest nodes are drawn.
    """
    if not interpretation.contrasts:
        return figure_of_text(NO_NODES, new=new)
    contrasts = highest(list(interpretation.contrasts), MAX_PANELS, level=lambda of: of.contrast.level)
    figure = new(figsize=(15, 0.8 + 2.6 * -(-len(contrasts) // N_COLUMNS)), layout="constrained")
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
    return figure


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
    axis.spines[["top", "right"]].set_visible(False)


def plot_ancestral_umap(interpretation: Interpretation, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw the ancestral states among real cells in one UMAP, joined as in the tree; cell types have numbers.

    The sub-populations of a cell type share a colour and a number; smaller points are their ancestral states. Where
    there are more cell types than numbers, the types of a clade that separates at a low level share a colour and a
    number.
    """
    hierarchy = interpretation.hierarchy
    view = view_of(hierarchy)
    colours = list(islice(cycle(sc.pl.palettes.default_20), len(view.ends)))
    states = zip((branch.name for branch in hierarchy.branches), interpretation.embedding.ancestral_states, strict=True)
    many = len(view.ends) > MAX_KEYS_OF_COLUMN
    if ax is None:
        ax = new(figsize=(15, 9) if many else (10.5, 7.5), layout="constrained").add_subplot()
    draw_states(ax, view, dict(states), interpretation.embedding.cells, colours)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title("Ancestral states of the model among real training cells", fontsize=11, loc="left")
    position: Style = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": 2 if many else 1}
    ax.legend(handles=keys(view, colours), frameon=False, **position)
    return ax


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
