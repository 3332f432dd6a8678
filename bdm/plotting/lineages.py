"""Lineage trees in time, with the genes that change on each branch."""

import numpy as np
from matplotlib.axes import Axes

from bdm.data.symbols import display_names
from bdm.lineages.results import Lineage
from bdm.lineages.tree import UNNAMED, LineageTree
from bdm.plotting.style import BRANCH, GREY, HALO, Style, checked, gene_label, new_figure, open_frame, shortened, shown

MIN_Z, MIN_CHANGE = 3, 0.5  # of a change that is drawn: standard deviations, and log2 units
MAX_NODES = 60  # that have names of genes


def lineage(lineage: Lineage, *, n_genes: int = 3, show: bool | None = None) -> Axes | None:
    """Draw the lineage tree in time, with its samples, and the genes that change on each branch.

    Parameters
    ----------
    lineage
        Result of :func:`bdm.tl.lineage`.
    n_genes
        Genes that are named at each branch: those whose change is clear, and differs most clearly from the sisters'.

    Examples
    --------
    ::

        bdm.pl.lineage(bdm.tl.lineage(adata, tree="lineage.nwk", time_key="minutes"))
    """
    checked(lineage, Lineage)
    tree, row = lineage.tree, rows_of(lineage.tree)
    names = changes_of(lineage, n_genes)
    n_rows = int(max(row) + 1)
    figure = new_figure(11, 1.2 + 0.62 * n_rows)
    axis = figure.add_subplot()
    for node, mother in enumerate(tree.mother):
        start, end = lineage.branch_times(node) if mother >= 0 else lineage.interval(node)
        style: Style = {"color": BRANCH, "linewidth": 1.6, "linestyle": "-" if lineage.sampled[node] else (0, (2, 1.5))}
        axis.plot([start, end], [row[node]] * 2, **style)
        if mother >= 0:
            axis.plot([start] * 2, [row[mother], row[node]], "|-", color=BRANCH, linewidth=1.6, markersize=7)
        of_node = lineage.points[lineage.points["node"] == tree.nodes[node]]
        axis.scatter(of_node["time"], [row[node]] * len(of_node), 4 + of_node["n_cells"], color=BRANCH, linewidth=0)
        text: Style = {"textcoords": "offset points", "path_effects": [HALO], "fontsize": 8}
        if tree.nodes[node].startswith(UNNAMED):
            continue
        axis.annotate(shortened(tree.nodes[node], width=24), (start, row[node]), (4, 5), weight="bold", **text)
        for number, label in enumerate(names.get(tree.nodes[node], [])):
            place = (4, -11 - 9 * number)
            axis.annotate(label, (start, row[node]), place, **text | {"fontsize": 7, "color": "#7a3b00"})
    axis.set_ylim(n_rows - 0.3, -0.6)
    axis.set_xlabel(lineage.time_key or "length of the path from the root")
    axis.tick_params(left=False, labelleft=False)
    open_frame(axis, "left")
    axis.set_title(
        "points: samples; dashed: without cells; genes that change on a branch (+ up, - down)", fontsize=9, color=GREY
    )
    return shown(axis, show=show)


def rows_of(tree: LineageTree) -> np.ndarray:
    """Row of each node: leaves below each other, a mother in the middle of her daughters."""
    row, last = np.zeros(len(tree.nodes)), 0
    order: list[int] = []
    waiting = [0]
    while waiting:
        node = waiting.pop()
        order.append(node)
        waiting += tree.daughters(node)[::-1]
    for node in order:
        if not tree.daughters(node):
            row[node], last = last, last + 1
    for node in order[::-1]:
        if daughters := tree.daughters(node):
            row[node] = (row[daughters[0]] + row[daughters[-1]]) / 2
    return row


def changes_of(lineage: Lineage, n_genes: int) -> dict[str, list[str]]:
    """Labels of the genes that change clearly on the branch of each node, most different from its sisters first."""
    table = lineage.changes
    table = table[table["node"].isin(lineage.tree.nodes[:MAX_NODES])]
    is_clear = (table["change"].abs() >= MIN_Z * table["sd"]) & (table["change"].abs() >= MIN_CHANGE)
    table = table[is_clear]
    alone = table["from_sisters"].isna()
    own = (table["change"] / table["sd"]).abs()
    rank = (table["from_sisters"] / table["from_sisters_sd"]).abs().where(~alone, own)
    same = alone | (table["from_sisters"] * table["change"] > 0)
    table = table[same].assign(rank=rank[same]).sort_values("rank", ascending=False, kind="stable")
    found: dict[str, list[str]] = {}
    top = table.groupby("node", sort=False).head(n_genes)
    for node, change, gene in zip(top["node"], top["change"], display_names(top), strict=True):
        found.setdefault(node, []).append(f"{'+' if change > 0 else '-'}{gene_label(gene)}")
    return found
