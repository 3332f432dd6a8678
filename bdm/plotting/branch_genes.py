from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.interpret import ContrastGenes, Interpretation
from bdm.plotting.clades import branch_rows, clade_label, highest
from bdm.plotting.hierarchy import HALO, plot_hierarchy
from bdm.plotting.looks import MODEL, REAL

MAX_PANELS, N_COLUMNS = 24, 4


@dataclass(frozen=True)
class Panel:
    """Genes that part a node's children, in rows from the top.

    Attributes
    ----------
    left, right
        What genes of negative and of positive fold changes are higher in.
    genes
        Columns ``gene``, ``model`` and ``real`` (log2 fold changes).
    """

    title: str
    level: float
    left: str
    right: str
    genes: pd.DataFrame


def branch_genes_figure(hierarchy: Hierarchy, interpretation: Interpretation) -> Figure:
    """Draw the tree, and for each node the genes that part its children: log fold changes in model and real cells.

    Of more nodes than there is room for, those of the highest levels are drawn.
    """
    panels = [panel for node in interpretation.nodes.values() for panel in panels_of(node, interpretation.genes)]
    shown = highest(panels, MAX_PANELS, level=lambda panel: panel.level)
    n_rows = -(-len(shown) // N_COLUMNS)
    heights = [1.4 + 0.27 * len(hierarchy.cell_types), 0.5 + 3 * n_rows]
    figure = Figure(figsize=(16, sum(heights)), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    draw_tree(above.add_subplot(), hierarchy)
    axes = below.subplots(n_rows, N_COLUMNS, squeeze=False).flat
    for axis, panel in zip(axes, shown, strict=False):
        draw_panel(axis, panel)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    left_out = "" if len(shown) == len(panels) else f": the {len(shown)} highest of {len(panels)} branchings"
    title = f"Log2 fold changes of the genes that part the children of each node{left_out}"
    handles = axes[0].get_legend_handles_labels()
    below.legend(*handles, title=title, loc="outside upper center", ncols=2, frameon=False)
    return figure


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
    ranks = np.sort([of.model.rank, of.real.rank if of.real else of.model.rank], axis=0)
    return np.lexsort((ranks[1], ranks[0]))[:n_genes]


def changes(of: ContrastGenes, genes: pd.Index, rows: np.ndarray) -> pd.DataFrame:
    """Fold changes of some genes."""
    real = of.real.log2_fold_change[rows] if of.real else np.nan
    return pd.DataFrame({"gene": genes[rows], "model": of.model.log2_fold_change[rows], "real": real})


def draw_tree(axis: Axes, hierarchy: Hierarchy) -> None:
    """Draw the hierarchy with the names of its nodes, by which panels are found."""
    plot_hierarchy(hierarchy, ax=axis)
    for name, row in branch_rows(hierarchy).items():
        if hierarchy.children[name]:
            place = hierarchy.by_name[name].level, row
            looks = {"ha": "right", "fontsize": 8, "weight": "bold", "path_effects": [HALO]}
            axis.annotate(name, place, (-5, -10), textcoords="offset points", **looks)


def draw_panel(axis: Axes, panel: Panel) -> None:
    """Draw one row a gene: fold changes in the model and in real cells, joined."""
    rows = np.arange(len(panel.genes))
    for row in rows[::2]:
        axis.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0)
    axis.axvline(0, color="0.5", linewidth=0.8)
    axis.hlines(rows, panel.genes["model"], panel.genes["real"], color="0.6", linewidth=1.5)
    axis.plot(panel.genes["real"], rows, **REAL, label="real training cells")
    axis.plot(panel.genes["model"], rows, **MODEL, label="model")
    axis.set_yticks(rows, panel.genes["gene"], fontsize=8)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.margins(x=0.08)
    axis.set_title(panel.title, fontsize=9, weight="bold")
    axis.set_xlabel(f"← {panel.left}   |   {panel.right} →", fontsize=8)
    axis.spines[["top", "right", "left"]].set_visible(False)
