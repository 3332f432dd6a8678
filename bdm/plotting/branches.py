"""Figures of marker genes by branch, commitment, and agreement with real cells."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm._core.errors import InputError
from bdm.data.modalities import NAME_COLUMN
from bdm.interpretation.contrasts import Z_95, ContrastGenes, agreement_column
from bdm.interpretation.interpretation import Interpretation
from bdm.plotting.hierarchy_figure import draw_hierarchy, label_end, view_of
from bdm.plotting.style import (
    IDEAL_LINE,
    LETTER,
    MODEL,
    NO_NODES,
    NODE,
    NOISE_LEVEL,
    REAL,
    TRAINING,
    Drawn,
    Style,
    axes_or_new,
    check_class,
    clade_label,
    draw_legend,
    draws,
    gene_label,
    highest,
    name_rows,
    new_figure,
    open_frame,
    panels,
    scale_noise_levels,
    shade_rows,
    shortened,
)

MAX_PANELS, N_COLUMNS = 12, 4
MAX_ROWS = 24  # of the tree
WIDTH, ROW, PANEL = 16, 0.42, 2.4  # inches: width of the figure, height of a row, height of a panel
MARGIN = 0.5  # on either side of a panel, as a share of the range of its points
N_LABELS = 3  # genes per branch in the tree
MAX_GENES, MAX_GENES_OF_CHILD = 72, 4  # rows of the commitment figure

MEASURE_TITLES = {
    "pearson": "r of log fold changes",
    "spearman": "rank correlation\nof log fold changes",
    "slope": "slope of log fold changes",
    "top_shared": "top {n_genes} genes shared",
    "auprc": "average precision\nof significant genes",
    "coverage": "changes within\n95% intervals",
}
QUERY_STYLES = {  # the model last, in front
    "training": (TRAINING, "all training cells"),
    "equal": (REAL, "as many training cells as test cells"),
    "model": (MODEL, "model"),
}
MAX_NODES = 60  # rows of the agreement figure


def get_interpretation(source: Any) -> Interpretation:
    """Return an interpretation, given itself or its model."""
    interpretation = getattr(source, "interpretation", source)
    if interpretation is None:
        raise InputError("The model is not interpreted yet, or has changed since; call interpret() first.")
    return check_class(interpretation, Interpretation)


# ---- genes


@dataclass(frozen=True, eq=False)
class Panel:
    """Panel of marker genes for the children of a node."""

    title: str
    level: float
    left: str  # name of the clade with higher expression at negative fold changes
    right: str
    genes: pd.DataFrame  # columns gene, model, real (log2 fold changes), model_error, real_error; from the top


@draws(Interpretation, "branch_genes", of=get_interpretation)
def branch_genes(interpretation: Interpretation, branch: str | None = None, *, ax: Axes | None = None) -> Drawn:
    """Draw the fold changes of marker genes of each branch, with 95% intervals.

    Fold changes are of the model and of real test cells. Each node has a panel below the tree; with more nodes than
    panels, the highest nodes are drawn.

    Parameters
    ----------
    branch
        Cell type or node to draw alone, against its siblings.
    ax
        Axes to draw one ``branch`` into; by default, of a new figure.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.branch_genes(model, "CD19+ B")
        bdm.pl.branch_genes(bdm.Interpretation.load("interpretation"))
    """
    by_branch = panels_by_branch(interpretation)
    if branch is not None:
        if branch not in by_branch:
            raise InputError(
                f"The tree has no branch {branch!r} with siblings; choose a cell type, or a node other than the root."
            )
        axis = axes_or_new(ax, 5, 4)
        draw_panel(axis, by_branch[branch])
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1.06), ncols=2, frameon=False, fontsize=8)
        return axis
    if ax is not None:
        raise InputError("This figure has several panels and cannot be drawn into `ax`; choose one branch.")
    if not interpretation.contrasts:
        return NO_NODES
    hierarchy = interpretation.hierarchy
    all_panels = list(dict.fromkeys(by_branch.values()))
    selected = highest(all_panels, MAX_PANELS, level=lambda panel: panel.level)
    view = view_of(hierarchy, max_rows=MAX_ROWS)
    heights = [1.4 + ROW * len(view.ends), 0.5 + PANEL * -(-len(selected) // N_COLUMNS)]
    figure = new_figure(WIDTH, sum(heights))
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).ravel()
    best = {
        genes.contrast.child: [*map(gene_label, interpretation.labels[genes.model.order[:N_LABELS]])]
        for genes in interpretation.contrasts
    }
    longest = max(len(label_end(end)) for end in view.ends)
    width = WIDTH - 0.2 - LETTER * longest
    draw_hierarchy(view, names=True, genes=best, width=width, row_height=ROW, ax=above.add_subplot())
    axes = panels(below, len(selected), n_columns=N_COLUMNS)
    for axis, panel in zip(axes, selected, strict=True):
        draw_panel(axis, panel)
    n_drawn, n_all = len(selected), len(all_panels)
    left_out = "" if n_drawn == n_all else f": the {n_drawn} highest of {n_all} panels"
    title = f"Log2 fold changes of marker genes between the children of each node, with 95% intervals{left_out}"
    draw_legend(below, axes[0], title=title, ncols=2)
    return figure


def panels_by_branch(interpretation: Interpretation) -> dict[str, Panel]:
    """Return the panel of each branch against its siblings; two siblings share a panel."""
    by_branch: dict[str, Panel] = {}
    for node, children in interpretation.nodes.items():
        level, labels = children[0].contrast.level, interpretation.labels
        title = f"{shortened(node, width=26)}  ·  level {level:.1f}"
        names = [clade_label(child.contrast.names_inside) for child in children]
        if len(children) == 2:
            best = np.concatenate([best_genes(child, n_genes=5) for child in children])
            panel = Panel(title, level, names[1], names[0], tabulate_panel(children[0], labels, best))
            by_branch |= dict.fromkeys((child.contrast.child for child in children), panel)
            continue
        for child, name in zip(children, names, strict=True):
            table = tabulate_panel(child, labels, best_genes(child, n_genes=8))
            by_branch[child.contrast.child] = Panel(title, level, "the others", name, table)
    return by_branch


def best_genes(child: ContrastGenes, *, n_genes: int) -> np.ndarray:
    """Return indices of the genes that rank best in model or real cells."""
    ranks = np.sort([child.model.rank, child.test.rank if child.test else child.model.rank], axis=0)
    return np.lexsort((ranks[1], ranks[0]))[:n_genes]


def tabulate_panel(child: ContrastGenes, labels: pd.Index, genes: np.ndarray) -> pd.DataFrame:
    """Tabulate log2 fold changes of ``genes`` (indices), with standard errors.

    NaN for too few test cells.
    """
    table = pd.DataFrame({"gene": labels[genes]})
    for name, differences in {"model": child.model, "real": child.test}.items():
        table[name] = differences.fold_change.log2[genes] if differences else np.nan
        table[f"{name}_error"] = differences.fold_change.standard_error[genes] if differences else np.nan
    return table


def draw_panel(axis: Axes, panel: Panel) -> None:
    """Draw fold changes with 95% intervals, one row per gene."""
    rows = np.arange(len(panel.genes))
    shade_rows(axis, len(rows))
    axis.axvline(0, color="0.5", linewidth=0.8)
    for name, style, label, shift in (("real", REAL, "real test cells", 0.14), ("model", MODEL, "model", -0.14)):
        interval = Z_95 * panel.genes[f"{name}_error"]
        axis.errorbar(panel.genes[name], rows + shift, xerr=interval, elinewidth=1, label=label, **style)
    name_rows(axis, [*map(gene_label, panel.genes["gene"])], fontsize=8)
    points = np.append(panel.genes[["model", "real"]].to_numpy(dtype=float), 0.0)
    low, high = np.nanmin(points), np.nanmax(points)
    beyond = MARGIN * (high - low or 1.0)  # longer intervals are clipped
    axis.set_xlim(max(axis.get_xlim()[0], low - beyond), min(axis.get_xlim()[1], high + beyond))
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.set_title(panel.title, fontsize=9, weight="bold")
    axis.set_xlabel(f"← {panel.left}   |   {panel.right} →", fontsize=8)
    open_frame(axis, "left")


# ---- commitment


@dataclass(frozen=True)
class Row:
    """Row of the commitment figure: one gene at one node."""

    gene: str
    higher_in: str  # name of the clade
    auc: np.ndarray  # by noise level
    level: float  # of commitment


@draws(Interpretation, "commitment", of=get_interpretation)
def commitment(interpretation: Interpretation, *, max_genes: int = MAX_GENES, ax: Axes | None = None) -> Axes | str:
    """Draw how well single genes separate cell types at each noise level.

    Colour is the AUC of a gene between the children of its node. The genes are the best markers of the
    children, sorted by commitment within nodes. If ``max_genes`` is too small for all nodes, only the highest nodes
    are drawn.

    Parameters
    ----------
    max_genes
        Maximum number of genes, with at least two per node; each has a row.
    """
    if max_genes < 2:
        raise InputError(f"max_genes is {max_genes}, but must be 2 or more.")
    if not interpretation.contrasts:
        return NO_NODES
    hierarchy = interpretation.hierarchy
    nodes = highest(list(interpretation.nodes.values()), max_genes // 2, level=lambda node: node[0].contrast.level)
    n_each = max(max_genes // len(nodes), 2)
    edges = np.sinh(np.linspace(np.arcsinh(hierarchy.sigma_max), 0, 201))
    levels = np.sinh(np.linspace(np.arcsinh(hierarchy.sigma_max), 0, 200))
    groups = [
        rank_rows(node, interpretation, levels, n_genes=min(n_each, MAX_GENES_OF_CHILD * len(node))) for node in nodes
    ]
    rows = [row for group in groups for row in group]
    axis = axes_or_new(ax, 10, 1.8 + 0.2 * len(rows))
    auc = np.stack([row.auc for row in rows])
    style: Style = {"cmap": "viridis", "vmin": 0.5, "vmax": 1, "rasterized": True}
    image = axis.pcolormesh(edges, np.arange(len(rows) + 1) - 0.5, auc, **style)
    start = -0.5
    for (first, *_), group in zip(nodes, groups, strict=True):
        end, level = start + len(group), first.contrast.level
        axis.hlines(start, hierarchy.sigma_max, 0, color="white", linewidth=2.5)
        axis.vlines(level, start, end, color=NODE, linewidth=2)
        label: Style = {"color": "white", "fontsize": 8, "va": "top", "weight": "bold"}
        name = f"{shortened(first.contrast.node)}, level {level:.1f}"
        axis.text(hierarchy.sigma_max * 0.97, start + 0.2, name, **label)
        start = end
    axis.plot([row.level for row in rows], range(len(rows)), "o", color="white", markeredgecolor="black", markersize=5)
    name_rows(axis, [gene_label(row.gene) for row in rows], fontsize=8)
    axis.tick_params(axis="y", length=0)
    right = axis.secondary_yaxis("right")
    right.set_yticks(range(len(rows)), [row.higher_in for row in rows], fontsize=7)
    right.tick_params(length=0)
    scale_noise_levels(axis, hierarchy.sigma_max)
    axis.set_xlabel(NOISE_LEVEL)
    axis.set_title(
        f"White dots: where a gene alone commits (AUC {hierarchy.threshold:g}), if it does; orange: where all genes "
        "together do;\nright: the child that the gene is higher in",
        fontsize=9,
        loc="left",
    )
    bar: Style = {"location": "bottom", "shrink": 0.5, "fraction": 0.02, "pad": 0.01, "aspect": 40}
    axis.figure.colorbar(image, ax=axis, label="AUC of the gene alone", **bar)
    return axis


def rank_rows(
    node: tuple[ContrastGenes, ...], interpretation: Interpretation, levels: np.ndarray, *, n_genes: int
) -> list[Row]:
    """Return rows for the best genes of a node, the earliest to commit first.

    Children contribute their best genes in turn, each gene once.
    """
    rows: dict[str, Row] = {}
    auc = [np.stack([child.commitment.auc(level) for level in levels]) for child in node]  # levels x genes
    orders = [child.model.order for child in node]
    for rank, k in product(range(n_genes), range(len(node))):
        child, gene = node[k], orders[k][rank]
        name = interpretation.labels[gene]
        if len(rows) < n_genes and name not in rows:
            level = child.commitment.level(interpretation.hierarchy.threshold)[gene]
            rows[name] = Row(name, clade_label(child.contrast.names_inside), auc[k][:, gene], level)
    return sorted(rows.values(), key=lambda row: -np.nan_to_num(row.level, nan=-1))


# ---- agreement


@draws(Interpretation, "agreement", of=get_interpretation)
def agreement(interpretation: Interpretation) -> Figure | str:
    """Draw the agreement of genes at each node with real cells.

    Training cells show how well real cells agree with each other. With more nodes than rows, the highest nodes are
    drawn.
    """
    if not interpretation.contrasts:
        return NO_NODES
    nodes = highest(list(interpretation.nodes.values()), MAX_NODES, level=lambda node: node[0].contrast.level)
    labels = {node[0].contrast.node: children_label(node) for node in nodes}
    agreement = interpretation.agreement.set_index("node").loc[list(labels)]  # a row per modality
    modalities = [f"  ({name})" for name in agreement.get(NAME_COLUMN, ())] or [""] * len(agreement)
    rows = [labels[node] + modality for node, modality in zip(agreement.index, modalities, strict=True)]
    figure = new_figure(11 + 0.8 * LETTER * max(map(len, rows)), 1.8 + 0.28 * len(agreement))
    axes = figure.subplots(1, len(MEASURE_TITLES), sharey=True)
    for axis, (name, title) in zip(axes, MEASURE_TITLES.items(), strict=True):
        values = {query: agreement[agreement_column(name, query)] for query in QUERY_STYLES}
        draw_measure(axis, values, ideal=0.95 if name == "coverage" else 1)
        axis.set_title(title.format(n_genes=interpretation.settings.n_genes), fontsize=9)
    name_rows(axes[0], rows, fontsize=8)
    cells = "" if interpretation.held_out else " (half of the cells that the model was fitted to)"
    left_out = f": the {len(nodes)} highest of {len(interpretation.nodes)} nodes"
    title = f"agreement with real test cells{cells}{left_out if len(nodes) < len(interpretation.nodes) else ''}"
    draw_legend(figure, axes[0], title=title, ncols=4)
    return figure


def draw_measure(axis: Axes, values: dict[str, pd.Series], *, ideal: float) -> None:
    """Draw one measure of all nodes, and a line at the ideal."""
    rows = np.arange(len(values["model"]))
    shade_rows(axis, len(rows))
    axis.hlines(rows, values["model"], values["equal"], color="0.6", linewidth=1.5)
    for query, (style, label) in QUERY_STYLES.items():
        axis.plot(values[query], rows, **style, label=label)
    axis.axvline(ideal, label="ideal", zorder=1, **IDEAL_LINE)
    left, right = min(0, axis.get_xlim()[0]), axis.get_xlim()[1]
    axis.set_xlim(left, right + 0.04 * (right - left))
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    open_frame(axis, "left")


def children_label(node: tuple[ContrastGenes, ...]) -> str:
    """Label a node with its name and its children."""
    first, sides = node[0].contrast, [child.contrast.names_inside for child in node]
    sides = sides if len(node) == 2 else [first.names_inside + first.names_outside]
    return f"{shortened(first.node, width=24)}:  " + "  |  ".join(clade_label(side, width=24) for side in sides)
