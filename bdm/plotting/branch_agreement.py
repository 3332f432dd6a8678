import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke

from bdm.interpretation.interpret import ContrastGenes, Interpretation, column_of
from bdm.plotting.clades import clade_label, gene_label, highest
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import IDEAL_LINE, MODEL, REAL, TRAINING

MEASURES = {
    "pearson": "r of log fold changes",
    "spearman": "rank correlation\nof log fold changes",
    "slope": "slope of log fold changes",
    "top_shared": "top {n_genes} genes shared",
    "auprc": "average precision\nof significant genes",
    "coverage": "changes within\n95% intervals",
}
JUDGED_LOOKS = {  # the model last, over the others
    "training": (TRAINING, "all training cells"),
    "equal": (REAL, "as many training cells as test cells"),
    "model": (MODEL, "model"),
}
MAX_NODES = 60
MAX_SCATTERS, N_COLUMNS = 8, 4
N_NAMED = 3  # genes named in a scatter, for each child


def agreement_figure(interpretation: Interpretation, *, new: NewFigure = Figure) -> Figure:
    """Draw the measures of agreement by node, and below them the log fold changes of all genes at the highest nodes.

    Of more nodes than there is room for, those of the highest levels are drawn.
    """
    nodes = highest(list(interpretation.nodes.values()), MAX_NODES, level=lambda node: node[0].contrast.level)
    known = [node for node in interpretation.nodes.values() if any(of.test and of.equal for of in node)]
    shown = highest(known, MAX_SCATTERS, level=lambda node: node[0].contrast.level)
    n_rows = -(-len(shown) // N_COLUMNS)
    heights = [1.8 + 0.28 * len(nodes), 0.4 + 3.6 * n_rows]
    figure = new(figsize=(15, sum(heights) if shown else heights[0]), layout="constrained")
    if not shown:
        draw_measures(figure, interpretation, nodes)
        return figure
    above, below = figure.subfigures(2, 1, height_ratios=heights)
    draw_measures(above, interpretation, nodes)
    axes = below.subplots(n_rows, N_COLUMNS, squeeze=False).flat
    for axis, node in zip(axes, shown, strict=False):
        draw_scatter(axis, node, interpretation.labels)
    for axis in axes[len(shown) :]:
        axis.remove()
    left_out = "" if len(shown) == len(known) else f" ({len(shown)} highest of {len(known)} nodes)"
    title = f"Log2 fold changes of all genes between the children of a node, against test cells{left_out}"
    below.legend(*axes[0].get_legend_handles_labels(), title=title, loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_measures(
    figure: Figure | SubFigure, interpretation: Interpretation, nodes: list[tuple[ContrastGenes, ...]]
) -> None:
    """Draw one panel a measure, one row a node: the model and the training cells, against test cells."""
    agreement = interpretation.agreement.set_index("node").loc[[node[0].contrast.node for node in nodes]]
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    for axis, (name, title) in zip(axes, MEASURES.items(), strict=True):
        values = {judged: agreement[column_of(name, judged)] for judged in JUDGED_LOOKS}
        draw_measure(axis, values, ideal=0.95 if name == "coverage" else 1)
        axis.set_title(title.format(n_genes=interpretation.settings.n_genes), fontsize=9)
    axes[0].set_yticks(range(len(agreement)), [node_label(node) for node in nodes], fontsize=8)
    axes[0].set_ylim(len(agreement) - 0.5, -0.5)
    handles, labels = axes[0].get_legend_handles_labels()
    title = "agreement with real test cells" + ("" if interpretation.held_out else " (half of those learnt from)")
    if len(nodes) < len(interpretation.nodes):
        title += f": the {len(nodes)} highest of {len(interpretation.nodes)} nodes"
    figure.legend(handles, labels, title=title, loc="outside upper center", ncols=4, frameon=False)


def draw_measure(axis: Axes, values: dict[str, pd.Series], *, ideal: float) -> None:
    """Draw one measure of every node, and a line at the ideal."""
    rows = np.arange(len(values["model"]))
    for row in rows[::2]:
        axis.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0)
    axis.hlines(rows, values["model"], values["equal"], color="0.6", linewidth=1.5)
    for judged, (look, label) in JUDGED_LOOKS.items():
        axis.plot(values[judged], rows, **look, label=label)
    axis.axvline(ideal, label="ideal", zorder=1, **IDEAL_LINE)
    left, right = min(0, axis.get_xlim()[0]), axis.get_xlim()[1]
    axis.set_xlim(left, right + 0.04 * (right - left))
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right", "left"]].set_visible(False)


def node_label(node: tuple[ContrastGenes, ...]) -> str:
    """Name a node by its children."""
    contrast = node[0].contrast
    sides = [of.contrast.inside for of in node] if len(node) == 2 else [contrast.inside + contrast.outside]
    return f"{contrast.node}:  " + "  |  ".join(clade_label(side, width=24) for side in sides)


def draw_scatter(axis: Axes, node: tuple[ContrastGenes, ...], genes: pd.Index) -> None:
    """Draw each gene's fold change against that in test cells: in as many training cells, and in the model.

    The two contrasts of two children mirror each other, so one is drawn; of more children, all are.
    """
    known = [of for of in (node[:1] if len(node) == 2 else node) if of.test and of.equal]
    against = np.concatenate([of.test.fold_change.log2 for of in known])
    equal = np.concatenate([of.equal.fold_change.log2 for of in known])
    model = np.concatenate([of.model.fold_change.log2 for of in known])
    small = {"markersize": 3, "alpha": 0.5, "markeredgewidth": 0.5}
    axis.plot(against, equal, **{**REAL, **small}, label="as many training cells as test cells")
    axis.plot(against, model, **{**MODEL, "markersize": 2.5}, markeredgewidth=0, label="model")
    if len(node) == 2:
        name_genes(axis, known[0], genes)
    axis.axline((0, 0), slope=1, label="as in test cells", **IDEAL_LINE)
    axis.axhline(0, color="0.7", linewidth=0.6, zorder=0)
    axis.axvline(0, color="0.7", linewidth=0.6, zorder=0)
    axis.set_title(node_label(node), fontsize=8)
    axis.set_xlabel("test cells", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def name_genes(axis: Axes, of: ContrastGenes, genes: pd.Index) -> None:
    """Name genes of the largest fold changes in the model, at either end, where names do not overlap."""
    changes = of.model.fold_change.log2
    apart = 0.06 * np.subtract(*axis.get_ylim()[::-1])
    outline = [withStroke(linewidth=2, foreground="white")]
    in_order = np.argsort(changes, kind="stable")
    for side, ordered in {"left": in_order, "right": in_order[::-1]}.items():
        named = [ordered[0]]
        for gene in ordered[: 5 * N_NAMED]:
            if len(named) < N_NAMED and abs(changes[gene] - changes[named[-1]]) > apart:
                named.append(gene)
        for gene in named:
            place = of.test.fold_change.log2[gene], changes[gene]
            text = {"textcoords": "offset points", "ha": side, "fontsize": 7, "path_effects": outline}
            axis.annotate(gene_label(genes[gene]), place, (5 if side == "left" else -5, -3), **text)
