"""Marker genes of each branch, and the noise levels at which genes commit."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from bdm.errors import InputError
from bdm.interpretation.contrasts import Z_95, Contrast, ContrastGenes
from bdm.interpretation.results import Interpretation
from bdm.plotting.labels import Canvas, label_branches
from bdm.plotting.style import (
    MODEL,
    NO_NODES,
    NODE,
    NOISE_LEVEL,
    REAL,
    Interpreted,
    Style,
    axes_or_new,
    check_no_axes,
    clade_label,
    explain,
    gene_label,
    highest,
    interpretation_of,
    new_figure,
    open_frame,
    panels,
    scale_noise_levels,
    shade_rows,
    shown,
    text_figure,
    write_text,
)
from bdm.plotting.tree import LETTER, MAX_ROWS, View, draw_hierarchy, view_of

MAX_PANELS, N_COLUMNS = 24, 4
ROWS_OF_MANY = 30  # of the tree, where there are too many cell types for a row each
WIDTH, ROW = 16, 0.6  # inches of the figure, and of a cell type in the tree
MARGIN = 0.5  # of a panel on either side of its points, in the distance between the outermost points
N_LABELS = 3  # genes that label a branch
MAX_GENES, MAX_GENES_OF_NODE = 72, 8  # of which commitment is drawn


@dataclass(frozen=True)
class Panel:
    """Marker genes of the children of a node, in rows from the top.

    Attributes
    ----------
    left, right
        What genes of negative and of positive fold changes are higher in.
    genes
        Columns ``gene``, ``model`` and ``real`` (log2 fold changes), ``model_error`` and ``real_error``.
    """

    title: str
    level: float
    left: str
    right: str
    genes: pd.DataFrame


def branch_genes(
    interpretation: Interpreted,
    branch: str | None = None,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | list[Axes] | None:
    """Draw the marker genes of each branch, with 95% intervals of their fold changes in the model and in real cells.

    There is a panel for each node, below the tree; where there are more nodes than panels, the highest nodes are drawn.

    Parameters
    ----------
    interpretation
        An interpretation, or a model that was interpreted.
    branch
        Cell type or node whose genes alone are drawn, against its siblings.
    ax
        For the genes of one branch.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.branch_genes(model, "CD19+ B")
        bdm.pl.branch_genes(bdm.Interpretation.load("interpretation"))
    """
    interpretation = interpretation_of(interpretation)
    if branch is not None:
        panel = panel_of_branch(interpretation, branch)
        axis = axes_or_new(ax, 5, 4)
        draw_panel(axis, panel)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1.06), ncols=2, frameon=False, fontsize=8)
        return shown(axis, show=show, complete=ax is None)
    check_no_axes(ax, "branch")
    if not interpretation.contrasts:
        return shown(text_figure(NO_NODES), show=show)
    hierarchy = interpretation.hierarchy
    of_nodes = [panel for node in interpretation.nodes.values() for panel in node_panels(node, interpretation.labels)]
    chosen = highest(of_nodes, MAX_PANELS, level=lambda panel: panel.level)
    n_rows = len(hierarchy.cell_types if len(hierarchy.cell_types) > 1 else hierarchy.populations)
    view = view_of(hierarchy, max_rows=n_rows if n_rows <= MAX_ROWS else ROWS_OF_MANY)
    heights = [1.4 + ROW * len(view.ends), 0.5 + 3 * -(-len(chosen) // N_COLUMNS)]
    figure = new_figure(WIDTH, sum(heights))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).ravel()
    draw_tree(above.add_subplot(), interpretation, view)
    axes = panels(below, len(chosen), n_columns=N_COLUMNS)
    for axis, panel in zip(axes, chosen, strict=True):
        draw_panel(axis, panel)
    left_out = "" if len(chosen) == len(of_nodes) else f": the {len(chosen)} highest of {len(of_nodes)} panels"
    title = f"Log2 fold changes of marker genes between the children of each node, with 95% intervals{left_out}"
    explain(below, axes[0], title=title, ncols=2)
    return shown(figure, show=show)


def panel_of_branch(interpretation: Interpretation, branch: str) -> Panel:
    """Return the panel of a branch against its siblings; raises an InputError if there is none, or it is the root."""
    for node in interpretation.nodes.values():
        children = [of.contrast.child for of in node]
        if branch in children:
            of_node = node_panels(node, interpretation.labels)
            return of_node[min(children.index(branch), len(of_node) - 1)]
    raise InputError(f"No branch {branch!r} leaves a node; choose a cell type, or a node other than the root.")


def node_panels(node: tuple[ContrastGenes, ...], genes: pd.Index) -> list[Panel]:
    """Return one panel for two children, or for each of more children a panel against the others."""
    first = node[0]
    title = f"{first.contrast.node}  ·  level {first.contrast.level:.1f}"
    names = [clade_label(of.contrast.names_inside) for of in node]
    if len(node) == 2:
        rows = np.concatenate([best_genes(of, n_genes=5) for of in node])
        return [Panel(title, first.contrast.level, names[1], names[0], fold_change_table(first, genes, rows))]
    return [
        Panel(title, of.contrast.level, "the others", name, fold_change_table(of, genes, best_genes(of, n_genes=8)))
        for of, name in zip(node, names, strict=True)
    ]


def best_genes(of: ContrastGenes, *, n_genes: int) -> np.ndarray:
    """Choose the genes, as indices, that rank best in the model or in real cells."""
    ranks = np.sort([of.model.rank, of.test.rank if of.test else of.model.rank], axis=0)
    return np.lexsort((ranks[1], ranks[0]))[:n_genes]


def fold_change_table(of: ContrastGenes, genes: pd.Index, rows: np.ndarray) -> pd.DataFrame:
    """Log2 fold changes of the genes in ``rows``, with standard errors; NaN where there are too few test cells."""
    table = pd.DataFrame({"gene": genes[rows]})
    for name, differences in {"model": of.model, "real": of.test}.items():
        table[name] = differences.fold_change.log2[rows] if differences else np.nan
        table[f"{name}_error"] = differences.fold_change.standard_error[rows] if differences else np.nan
    return table


def draw_tree(axis: Axes, interpretation: Interpretation, view: View) -> None:
    """Draw the hierarchy with the names of its nodes, by which panels are found, and the best genes of each branch."""
    draw_hierarchy(view_of(interpretation.hierarchy, max_rows=len(view.ends)), names=True, ax=axis)
    genes = {
        of.contrast.child: [*map(gene_label, interpretation.labels[np.argsort(of.model.rank)[:N_LABELS]])]
        for of in interpretation.contrasts
        if of.contrast.child in view.rows
    }
    longest = max(len(label.get_text()) for label in axis.get_yticklabels())
    label_branches(axis, Canvas(view, WIDTH - 0.2 - LETTER * longest, ROW), genes)
    axis.set_title(
        "Hierarchy of cell types (nodes: name · level · support) with the best marker genes of each branch",
        fontsize=10,
        loc="left",
    )


def draw_panel(axis: Axes, panel: Panel) -> None:
    """Draw one row a gene: fold changes in the model and in test cells, with their 95% intervals.

    Intervals that are far longer than the differences between genes end in an arrowhead at the edge.
    """
    rows = np.arange(len(panel.genes))
    shade_rows(axis, len(rows))
    axis.axvline(0, color="0.5", linewidth=0.8)
    low, high = limits_of(panel.genes)
    for name, style, label, shift in (("real", REAL, "real test cells", 0.14), ("model", MODEL, "model", -0.14)):
        interval = Z_95 * panel.genes[f"{name}_error"]
        axis.errorbar(panel.genes[name], rows + shift, xerr=interval, elinewidth=1, label=label, **style)
        draw_cuts(axis, panel.genes[name] - interval < low, low, shift, marker="<", colour=style["color"])
        draw_cuts(axis, panel.genes[name] + interval > high, high, shift, marker=">", colour=style["color"])
    axis.set_yticks(rows, [*map(gene_label, panel.genes["gene"])], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(low, high)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(panel.title, fontsize=9, weight="bold")
    axis.set_xlabel(f"← {panel.left}   |   {panel.right} →", fontsize=8)
    open_frame(axis, "left")


def draw_cuts(axis: Axes, cut: pd.Series, edge: float, shift: float, *, marker: str, colour: str) -> None:
    """Draw arrowheads at an edge of a panel, in the rows whose intervals are cut there."""
    rows = np.flatnonzero(cut) + shift
    for line in axis.plot(np.full(len(rows), edge), rows, marker, color=colour, markersize=4, clip_on=False):
        line.set_in_layout(False)


def limits_of(genes: pd.DataFrame) -> tuple[float, float]:
    """Limits of the fold changes in a panel: of 0 and the intervals, but only a little beyond the points."""
    points = np.append(genes[["model", "real"]].to_numpy(dtype=float).ravel(), 0.0)
    errors = np.append(genes[["model_error", "real_error"]].to_numpy(dtype=float).ravel(), 0.0)
    beyond = MARGIN * (np.nanmax(points) - np.nanmin(points) or 1.0)
    low = np.nanmax([np.nanmin(points - Z_95 * errors), np.nanmin(points) - beyond])
    high = np.nanmin([np.nanmax(points + Z_95 * errors), np.nanmax(points) + beyond])
    pad = 0.05 * (high - low)
    return float(low - pad), float(high + pad)


@dataclass(frozen=True)
class Row:
    """A gene of a node: the clade that it is higher in, its AUC by noise level, and its commitment level."""

    gene: str
    higher_in: str
    auc: np.ndarray
    level: float


def commitment(
    interpretation: Interpreted,
    *,
    max_genes: int = MAX_GENES,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw how well each gene alone distinguishes the children of its node, by noise level; early genes come first.

    The genes are the best markers of the children; where ``max_genes`` is too few for all nodes, the highest nodes are
    drawn.

    Parameters
    ----------
    interpretation
        An interpretation, or a model that was interpreted.
    max_genes
        Most genes, two or more of each node; each has a row.
    """
    if max_genes < 2:
        raise InputError(f"max_genes is {max_genes}, but must be 2 or more.")
    interpretation = interpretation_of(interpretation)
    if interpretation.contrasts:
        axis = draw_commitment(interpretation, max_genes=max_genes, ax=ax)
    else:
        axis = axes_or_new(ax, 5, 0.6)
        write_text(axis, NO_NODES)
    return shown(axis, show=show, complete=ax is None)


def draw_commitment(interpretation: Interpretation, *, max_genes: int, ax: Axes | None) -> Axes:
    """Draw one row a gene, see :func:`commitment`."""
    hierarchy = interpretation.hierarchy
    nodes = highest(list(interpretation.nodes.values()), max_genes // 2, level=lambda node: node[0].contrast.level)
    n_each = int(np.clip(max_genes // len(nodes), 2, MAX_GENES_OF_NODE))
    edges = np.sinh(np.linspace(np.arcsinh(hierarchy.sigma_max), 0, 201))
    levels = np.sinh(np.linspace(np.arcsinh(hierarchy.sigma_max), 0, 200))
    groups = [commitment_rows(node, interpretation, levels, n_genes=n_each) for node in nodes]
    rows = [row for group in groups for row in group]
    ax = axes_or_new(ax, 10, 1.8 + 0.2 * len(rows))
    auc = np.stack([row.auc for row in rows])
    style: Style = {"cmap": "viridis", "vmin": 0.5, "vmax": 1, "rasterized": True}
    image = ax.pcolormesh(edges, np.arange(len(rows) + 1) - 0.5, auc, **style)
    draw_nodes(
        ax, [(node[0].contrast, len(group)) for node, group in zip(nodes, groups, strict=True)], hierarchy.sigma_max
    )
    ax.plot([row.level for row in rows], range(len(rows)), "o", color="white", markeredgecolor="black", markersize=5)
    label_rows(ax, rows)
    scale_noise_levels(ax, hierarchy.sigma_max)
    ax.set_xlabel(NOISE_LEVEL)
    ax.set_title(
        f"White dots: where a gene alone commits (AUC {hierarchy.threshold:g}), if it does; orange: where all genes "
        "together do;\nright: the child that the gene is higher in",
        fontsize=9,
        loc="left",
    )
    bar: Style = {"location": "bottom", "shrink": 0.5, "fraction": 0.02, "pad": 0.01, "aspect": 40}
    ax.figure.colorbar(image, ax=ax, label="AUC of the gene alone", **bar)
    return ax


def draw_nodes(ax: Axes, nodes: list[tuple[Contrast, int]], sigma_max: float) -> None:
    """Separate the rows of each node, draw its level, and label it.

    Parameters
    ----------
    nodes
        A contrast of each node, and the number of its rows.
    """
    start = 0
    for contrast, n_rows in nodes:
        ax.hlines(start - 0.5, sigma_max, 0, color="white", linewidth=2.5)
        ax.vlines(contrast.level, start - 0.5, start + n_rows - 0.5, color=NODE, linewidth=2)
        label = f"{contrast.node}, level {contrast.level:.1f}"
        ax.text(sigma_max * 0.97, start - 0.3, label, color="white", fontsize=8, va="top", weight="bold")
        start += n_rows


def label_rows(ax: Axes, rows: list[Row]) -> None:
    """Label rows with their genes at the left, and with the children that these are higher in at the right."""
    ax.set_yticks(range(len(rows)), [gene_label(row.gene) for row in rows], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    right = ax.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), [row.higher_in for row in rows], fontsize=7)
    right.tick_params(length=0)


def commitment_rows(
    node: tuple[ContrastGenes, ...], interpretation: Interpretation, levels: np.ndarray, *, n_genes: int
) -> list[Row]:
    """Return rows of the best genes of a node's children in turn, each gene once, the earliest to commit first."""
    rows: dict[str, Row] = {}
    auc = [np.stack([of.commitment.auc(level) for level in levels]) for of in node]  # of each child, levels x genes
    best = [np.argsort(of.model.rank)[:n_genes] for of in node]
    for k, gene in ((k, genes[rank]) for rank in range(n_genes) for k, genes in enumerate(best)):
        name = interpretation.labels[gene]
        if len(rows) < n_genes and name not in rows:
            level = node[k].commitment.level(interpretation.hierarchy.threshold)[gene]
            rows[name] = Row(name, clade_label(node[k].contrast.names_inside), auc[k][:, gene], level)
    return sorted(rows.values(), key=lambda row: -np.nan_to_num(row.level, nan=-1))
