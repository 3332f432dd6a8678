"""How well the genes of each node agree with real cells."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure

from bdm.interpretation.contrasts import ContrastGenes, column_of
from bdm.interpretation.results import Interpretation
from bdm.plotting.style import (
    IDEAL_LINE,
    MODEL,
    NO_NODES,
    REAL,
    TRAINING,
    Interpreted,
    Style,
    clade_label,
    draw_identity,
    explain,
    highest,
    interpretation_of,
    label_outermost_genes,
    new_figure,
    open_frame,
    panels,
    shade_rows,
    shown,
    text_figure,
)

MEASURES = {
    "pearson": "r of log fold changes",
    "spearman": "rank correlation\nof log fold changes",
    "slope": "slope of log fold changes",
    "top_shared": "top {n_genes} genes shared",
    "auprc": "average precision\nof significant genes",
    "coverage": "changes within\n95% intervals",
}
QUERY_STYLES = {  # the model last, over the others
    "training": (TRAINING, "all training cells"),
    "equal": (REAL, "as many training cells as test cells"),
    "model": (MODEL, "model"),
}
MAX_NODES = 60
MAX_SCATTERS, N_COLUMNS = 8, 4
N_LABELS = 3  # genes that are labelled in a scatter, for each child


def agreement(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw how far the genes of each node agree with real cells, and how far real cells agree with each other.

    Below are the log fold changes of all genes at the highest nodes. Where there are more nodes than rows, the highest
    nodes are drawn.
    """
    interpretation = interpretation_of(interpretation)
    if not interpretation.contrasts:
        return shown(text_figure(NO_NODES), show=show)
    nodes = highest(list(interpretation.nodes.values()), MAX_NODES, level=lambda node: node[0].contrast.level)
    tested = [node for node in interpretation.nodes.values() if any(of.test and of.equal for of in node)]
    chosen = highest(tested, MAX_SCATTERS, level=lambda node: node[0].contrast.level)
    heights = [1.8 + 0.28 * len(nodes), 0.4 + 3.6 * -(-len(chosen) // N_COLUMNS)]
    figure = new_figure(15, sum(heights) if chosen else heights[0])
    if not chosen:
        draw_measures(figure, interpretation, nodes)
        return shown(figure, show=show)
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).ravel()
    draw_measures(above, interpretation, nodes)
    axes = panels(below, len(chosen), n_columns=N_COLUMNS)
    for axis, node in zip(axes, chosen, strict=True):
        draw_scatter(axis, node, interpretation.labels)
    left_out = "" if len(chosen) == len(tested) else f" ({len(chosen)} highest of {len(tested)} nodes)"
    title = f"Log2 fold changes of all genes between the children of a node, against test cells{left_out}"
    explain(below, axes[0], title=title, ncols=3)
    return shown(figure, show=show)


def draw_measures(
    figure: Figure | SubFigure, interpretation: Interpretation, nodes: list[tuple[ContrastGenes, ...]]
) -> None:
    """Draw one panel a measure, one row a node: the model and the training cells, against test cells."""
    agreement = interpretation.agreement.set_index("node").loc[[node[0].contrast.node for node in nodes]]
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    for axis, (name, title) in zip(axes, MEASURES.items(), strict=True):
        values = {query: agreement[column_of(name, query)] for query in QUERY_STYLES}
        draw_measure(axis, values, ideal=0.95 if name == "coverage" else 1)
        axis.set_title(title.format(n_genes=interpretation.settings.n_genes), fontsize=9)
    axes[0].set_yticks(range(len(agreement)), [node_label(node) for node in nodes], fontsize=8)
    axes[0].set_ylim(len(agreement) - 0.5, -0.5)
    title = "agreement with real test cells" + (
        "" if interpretation.held_out else " (half of the cells that the model was fitted to)"
    )
    if len(nodes) < len(interpretation.nodes):
        title += f": the {len(nodes)} highest of {len(interpretation.nodes)} nodes"
    explain(figure, axes[0], title=title, ncols=4)


def draw_measure(axis: Axes, values: dict[str, pd.Series], *, ideal: float) -> None:
    """Draw one measure of every node, and a line at the ideal."""
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


def node_label(node: tuple[ContrastGenes, ...]) -> str:
    """Name a node by its children."""
    contrast = node[0].contrast
    sides = (
        [of.contrast.names_inside for of in node]
        if len(node) == 2
        else [contrast.names_inside + contrast.names_outside]
    )
    return f"{contrast.node}:  " + "  |  ".join(clade_label(side, width=24) for side in sides)


def draw_scatter(axis: Axes, node: tuple[ContrastGenes, ...], genes: pd.Index) -> None:
    """Draw each gene's fold change against that in test cells: in as many training cells, and in the model.

    The two contrasts of two children mirror each other, so one is drawn; of more children, all are.
    """
    changes = [
        (of.test.fold_change.log2, of.equal.fold_change.log2, of.model.fold_change.log2)
        for of in (node[:1] if len(node) == 2 else node)
        if of.test and of.equal
    ]
    against, equal, model = (np.concatenate(values) for values in zip(*changes, strict=True))
    small: Style = {"markersize": 3, "alpha": 0.5, "markeredgewidth": 0.5}
    axis.plot(against, equal, **{**REAL, **small}, label="as many training cells as test cells")
    axis.plot(against, model, **{**MODEL, "markersize": 2.5}, markeredgewidth=0, label="model")
    if len(node) == 2:
        x, _, y = changes[0]
        label_outermost_genes(axis, x, y, genes, order=np.argsort(y, kind="stable"), n_labels=N_LABELS)
    draw_identity(axis)
    axis.axhline(0, color="0.7", linewidth=0.6, zorder=0)
    axis.axvline(0, color="0.7", linewidth=0.6, zorder=0)
    axis.set_title(node_label(node), fontsize=8)
    axis.set_xlabel("test cells", fontsize=8)
    axis.tick_params(labelsize=8)
    open_frame(axis)
