from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.errors import InputError
from bdm.interpretation.genes import Z_95
from bdm.interpretation.interpret import ContrastGenes, Interpretation
from bdm.plotting.clades import clade_label, gene_label, highest
from bdm.plotting.figure import NewFigure
from bdm.plotting.hierarchy import HALO, plot_hierarchy
from bdm.plotting.looks import MODEL, REAL
from bdm.plotting.view import MAX_ROWS, View, view_of

MAX_PANELS, N_COLUMNS = 24, 4
ROWS_OF_MANY = 30  # of the tree, where there are too many cell types for a row each
ROW = 0.6  # inches of a cell type in the tree
N_NAMED = 3  # genes named on a branch


@dataclass(frozen=True)
class Panel:
    """Genes that part a node's children, in rows from the top.

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


def branch_genes_figure(interpretation: Interpretation, *, new: NewFigure = Figure) -> Figure:
    """Draw the tree with its top genes, and for each node the genes that part its children, in model and test cells.

    Of more nodes than there is room for, those of the highest levels are drawn.
    """
    hierarchy = interpretation.hierarchy
    panels = [panel for node in interpretation.nodes.values() for panel in panels_of(node, interpretation.labels)]
    shown = highest(panels, MAX_PANELS, level=lambda panel: panel.level)
    n_rows = -(-len(shown) // N_COLUMNS)
    n_types = len(hierarchy.cell_types)
    view = view_of(hierarchy, max_rows=n_types if n_types <= MAX_ROWS else ROWS_OF_MANY)
    heights = [1.4 + ROW * len(view.ends), 0.5 + 3 * n_rows]
    figure = new(figsize=(16, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    draw_tree(above.add_subplot(), interpretation, view)
    axes = below.subplots(n_rows, N_COLUMNS, squeeze=False).flat
    for axis, panel in zip(axes, shown, strict=False):
        draw_panel(axis, panel)
    for axis in axes[len(shown) :]:
        axis.remove()
    left_out = "" if len(shown) == len(panels) else f": the {len(shown)} highest of {len(panels)} branchings"
    title = f"Log2 fold changes of the genes that part the children of each node, with 95% intervals{left_out}"
    handles = axes[0].get_legend_handles_labels()
    below.legend(*handles, title=title, loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_branch(
    interpretation: Interpretation, branch: str, *, ax: Axes | None = None, new: NewFigure = Figure
) -> Axes:
    """Draw the genes that part a branch from its siblings, in the model and in test cells.

    Raises
    ------
    InputError
        If the tree has no such branch, or it is the root.
    """
    node = next((node for node in interpretation.nodes.values() if branch in (of.contrast.child for of in node)), None)
    if node is None:
        raise InputError(f"No branch {branch!r} leaves a node; name a cell type, or a node other than the root.")
    panels = panels_of(node, interpretation.labels)
    place = [of.contrast.child for of in node].index(branch)
    if ax is None:
        ax = new(figsize=(5, 4), layout="constrained").add_subplot()
    draw_panel(ax, panels[min(place, len(panels) - 1)])
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1.06), ncols=2, frameon=False, fontsize=8)
    return ax


def panels_of(node: tuple[ContrastGenes, ...], genes: pd.Index) -> list[Panel]:
    """One panel for two children, one above the other; a panel for each of more, against the others."""
    first = node[0]
    title = f"{first.contrast.node}  ·  level {first.contrast.level:.1f}"
    names = [clade_label(of.contrast.inside) for of in node]
    if len(node) == 2:
        rows = np.concatenate([best_genes(of, n_genes=5) for of in node])
        return [Panel(title, first.contrast.level, names[1], names[0], changes(first, genes, rows))]
    return [
        Panel(title, of.contrast.level, "the others", name, changes(of, genes, best_genes(of, n_genes=8)))
        for of, name in zip(node, names, strict=True)
    ]


def best_genes(of: ContrastGenes, *, n_genes: int) -> np.ndarray:
    """Choose the genes, as indices, that rank best in the model or in real cells."""
    ranks = np.sort([of.model.rank, of.test.rank if of.test else of.model.rank], axis=0)
    return np.lexsort((ranks[1], ranks[0]))[:n_genes]


def changes(of: ContrastGenes, genes: pd.Index, rows: np.ndarray) -> pd.DataFrame:
    """Log2 fold changes of some genes, with their standard errors; NaN where there are too few test cells."""
    table = pd.DataFrame({"gene": genes[rows]})
    for name, differences in {"model": of.model, "real": of.test}.items():
        table[name] = differences.fold_change.log2[rows] if differences else np.nan
        table[f"{name}_error"] = differences.fold_change.standard_error[rows] if differences else np.nan
    return table


def draw_tree(axis: Axes, interpretation: Interpretation, view: View) -> None:
    """Draw the hierarchy with the names of its nodes, by which panels are found, and the top genes of each branch."""
    hierarchy = interpretation.hierarchy
    plot_hierarchy(hierarchy, ax=axis, names=True, max_rows=len(view.ends))
    for of in interpretation.contrasts:
        if of.contrast.child not in view.rows:
            continue
        child = hierarchy.by_name[of.contrast.child]
        named = ", ".join(map(gene_label, interpretation.labels[np.argsort(of.model.rank)[:N_NAMED]]))
        # Before the point where an inner branch ends; after the one where a cell type's begins, as that is long.
        inner = bool(hierarchy.children[child.name])
        place = child.level if inner else of.contrast.level, view.rows[child.name]
        looks = {"textcoords": "offset points", "path_effects": [HALO], "color": "#1d5c8f", "style": "italic"}
        axis.annotate(named, place, (-5 if inner else 6, -9), ha="right" if inner else "left", fontsize=7, **looks)
    axis.set_title(
        "Hierarchy of cell types (branch points: name · level · support) with the genes that mark each branch most",
        fontsize=10,
        loc="left",
    )


def draw_panel(axis: Axes, panel: Panel) -> None:
    """Draw one row a gene: fold changes in the model and in test cells, with their 95% intervals."""
    rows = np.arange(len(panel.genes))
    for row in rows[::2]:
        axis.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0)
    axis.axvline(0, color="0.5", linewidth=0.8)
    for name, look, label, shift in (("real", REAL, "real test cells", 0.14), ("model", MODEL, "model", -0.14)):
        interval = Z_95 * panel.genes[f"{name}_error"]
        axis.errorbar(panel.genes[name], rows + shift, xerr=interval, elinewidth=1, label=label, **look)
    axis.set_yticks(rows, [*map(gene_label, panel.genes["gene"])], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.margins(x=0.08)
    axis.set_title(panel.title, fontsize=9, weight="bold")
    axis.set_xlabel(f"← {panel.left}   |   {panel.right} →", fontsize=8)
    axis.spines[["top", "right", "left"]].set_visible(False)
