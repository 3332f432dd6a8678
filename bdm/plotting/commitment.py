from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bdm.interpretation.interpret import ContrastGenes, Interpretation
from bdm.plotting.clades import clade_label, gene_label, highest
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import POINT

MAX_GENES, MOST_OF_NODE = 72, 8
COLOURS = "viridis"


@dataclass(frozen=True)
class Row:
    """A gene of a node: the clade that it is higher in, its AUC by noise level, and its commitment level."""

    gene: str
    higher_in: str
    auc: np.ndarray
    level: float


def plot_commitment(
    interpretation: Interpretation, *, max_genes: int = MAX_GENES, ax: Axes | None = None, new: NewFigure = Figure
) -> Axes:
    """Draw how well each gene tells the children of its node apart, by noise level; early genes first at each node.

    The genes are those that mark the children most, two or more of each node; of more nodes than ``max_genes`` has room
    for, the highest are drawn.
    """
    hierarchy = interpretation.hierarchy
    nodes = highest(list(interpretation.nodes.values()), max_genes // 2, level=lambda node: node[0].contrast.level)
    n_each = int(np.clip(max_genes // len(nodes), 2, MOST_OF_NODE))
    levels = np.sinh(np.linspace(np.arcsinh(hierarchy.sigma_max), 0, 200))
    groups = [rows_of(node, interpretation, levels, n_genes=n_each) for node in nodes]
    rows = [row for group in groups for row in group]
    if ax is None:
        ax = new(figsize=(10, 1.8 + 0.2 * len(rows)), layout="constrained").add_subplot()
    edges = np.arange(len(rows) + 1) - 0.5
    image = ax.pcolormesh(
        np.sinh(np.linspace(np.arcsinh(hierarchy.sigma_max), 0, 201)),
        edges,
        np.stack([row.auc for row in rows]),
        cmap=COLOURS,
        vmin=0.5,
        vmax=1,
        rasterized=True,
    )
    start = 0
    for node, group in zip(nodes, groups, strict=True):
        end, level = start + len(group), node[0].contrast.level
        ax.hlines(start - 0.5, hierarchy.sigma_max, 0, color="white", linewidth=2.5)
        ax.vlines(level, start - 0.5, end - 0.5, color=POINT, linewidth=2)
        name = f"{node[0].contrast.node}, level {level:.1f}"
        ax.text(hierarchy.sigma_max * 0.97, start - 0.3, name, color="white", fontsize=8, va="top", weight="bold")
        start = end
    ax.plot([row.level for row in rows], range(len(rows)), "o", color="white", markeredgecolor="black", markersize=5)
    ax.set_yticks(range(len(rows)), [gene_label(row.gene) for row in rows], fontsize=8)
    beside = ax.secondary_yaxis("right")
    beside.set_yticks(range(len(rows)), [row.higher_in for row in rows], fontsize=7)
    beside.tick_params(length=0)
    ax.set_xscale("asinh", linear_width=1)
    ax.set_xlim(hierarchy.sigma_max, 0)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ticks = [level for level in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if level <= hierarchy.sigma_max]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.tick_params(axis="y", length=0)
    ax.set_xlabel("noise level (within-type standard deviations)")
    ax.set_title(
        f"White dots: where a gene alone commits (AUC {hierarchy.threshold:g}), if it does; orange: where all genes "
        "together do;\nright: the child that the gene is higher in",
        fontsize=9,
        loc="left",
    )
    looks = {"location": "bottom", "shrink": 0.5, "fraction": 0.02, "pad": 0.01, "aspect": 40}
    ax.figure.colorbar(image, ax=ax, label="AUC of the gene alone", **looks)
    return ax


def rows_of(
    node: tuple[ContrastGenes, ...], interpretation: Interpretation, levels: np.ndarray, *, n_genes: int
) -> list[Row]:
    """Rows of the best genes of a node's children in turn, each gene once, those that commit earliest first."""
    rows: dict[str, Row] = {}
    ranked = [(rank, of, gene) for of in node for rank, gene in enumerate(np.argsort(of.model.rank)[:n_genes])]
    for _, of, gene in sorted(ranked, key=lambda item: item[0]):
        name = interpretation.labels[gene]
        if len(rows) < n_genes and name not in rows:
            auc = np.array([of.commitment.auc(level)[gene] for level in levels])
            level = of.commitment.level(interpretation.hierarchy.threshold)[gene]
            rows[name] = Row(name, clade_label(of.contrast.inside), auc, level)
    return sorted(rows.values(), key=lambda row: -np.nan_to_num(row.level, nan=-1))
