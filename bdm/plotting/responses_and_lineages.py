"""Figures of responses and lineages."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.applications.relations.lineage import Lineage
from bdm.applications.relations.lineage_tree import UNNAMED, LineageTree
from bdm.applications.relations.related_types import RelatedTypes
from bdm.applications.relations.responses import Responses
from bdm.data.genes import display_names
from bdm.plotting.style import (
    BRANCH,
    GREY,
    HALO,
    Style,
    draw_legend,
    draws,
    gene_label,
    name_rows,
    new_figure,
    open_frame,
    shade_rows,
    shortened,
)

MIN_Z, MIN_CHANGE = 3, 0.5  # of a change to draw: in standard deviations and log2 units
MAX_GENES = 40  # of the heatmap
GENE_LETTERS = 12  # average per gene at a branch; longer names leave room for fewer genes
LETTER_OF_GENE = 0.01  # approximate width of a letter, as a share of the tree
MAX_ROWS = 40  # of a panel of errors
ERRORS = {
    "predicted": ("predicted", "o", "tab:blue"),
    "permuted": ("permuted relations", "s", "tab:gray"),
    "common": ("mean of the others", "^", "tab:orange"),
    "nearest": ("nearest", "v", "tab:green"),
    "halves": ("halves of the data", "|", "black"),
}


@draws(Responses, "response")
def response(responses: Responses, condition: str | None = None, *, n_genes: int = 3) -> Figure:
    """Draw the responses of cell types, with genes that respond on each branch.

    Parameters
    ----------
    condition
        Condition to draw; by default, the one with the strongest response.
    n_genes
        Maximum number of genes named at each branch; those whose response grows most significantly come first.

    Examples
    --------
    ::

        bdm.pl.response(bdm.tl.respond(adata), "stim")
    """
    condition = condition or strongest_condition(responses)
    relations, branches = responses.relate_types(), responses.branches(condition, responses.most_changed(condition))
    is_clear = (branches["z"].abs() >= MIN_Z) & (branches["change"].abs() >= MIN_CHANGE)
    top = branches[is_clear & (branches["mean"] * branches["change"] > 0)]
    top = top.groupby("cell_types", sort=False).head(n_genes)
    names = {}
    for node, table in top.groupby("cell_types", sort=False):
        symbols = responses.names.labels[table["gene"]]
        words = [
            f"{'+' if up else '-'}{gene_label(gene)}" for up, gene in zip(table["change"] > 0, symbols, strict=True)
        ]
        names[frozenset(str(node).split("; "))] = join_words(words, n_letters=GENE_LETTERS * n_genes)
    genes = list(dict.fromkeys(top["gene"]))[:MAX_GENES] or list(responses.genes.index[:1])
    order = order_types(relations)
    rows = responses.genes.index.get_indexer(genes)
    values = responses.predictions(condition, order, genes=rows).mean.T / np.log(2)
    figure = new_figure(9 + 0.22 * len(genes), 1.8 + 0.45 * len(order))
    tree, heat = figure.subplots(1, 2, sharey=True, width_ratios=[7, 2 + 0.22 * len(genes)])
    draw_tree(tree, relations, order, names)
    labels = [shortened(name) + ("" if responses.is_measured(condition, name) else " (predicted)") for name in order]
    limit = max(float(np.quantile(np.abs(values), 0.95)), 0.1)
    image = heat.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    heat.set_xticks(range(len(genes)), [*map(gene_label, responses.names.labels[genes])], rotation=90, fontsize=7)
    heat.set_yticks(range(len(order)), labels)
    heat.tick_params(labelleft=True, labelright=False)
    is_cut = (bool(values.min() < -limit), bool(values.max() > limit))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(is_cut, "neither")
    figure.colorbar(image, ax=heat, label="expected log2 fold change", fraction=0.05, extend=extend)
    heat.set_title(f"{shortened(condition)}, compared with {shortened(responses.control)}", fontsize=9)
    tree.set_title("genes whose response grows on a branch (+ up, - down)", fontsize=9)
    return figure


def strongest_condition(responses: Responses) -> str:
    """Return the condition with the largest log fold changes beyond sampling error; the first if this is unknown."""
    errors = responses.errors
    if errors.empty:
        return responses.conditions[0]
    square = errors["size"] ** 2 * (1 - errors["halves"] ** 2 / 2)  # halves have twice the variance of each
    return str(square.groupby(errors["condition"]).mean().idxmax())


def join_words(words: list[str], *, n_letters: int) -> str:
    """Join as many words as fit within ``n_letters``, and at least one."""
    fitting = [number for number in range(1, len(words) + 1) if len(" ".join(words[:number])) <= n_letters]
    return " ".join(words[: max(fitting, default=1)])


def order_types(relations: RelatedTypes) -> list[str]:
    """Sort cell types so that each clade is contiguous."""
    order = list(relations.cell_types)
    for node in relations.nodes:
        start = min(order.index(name) for name in node)
        inside = [name for name in order if name in node]
        outside = [name for name in order if name not in node]
        order = [*outside[:start], *inside, *outside[start:]]
    return order


def draw_tree(axis: Axes, relations: RelatedTypes, order: list[str], names: dict[frozenset[str], str]) -> None:
    """Draw a tree with the root at the left, and text at its branches."""
    row = {name: number for number, name in enumerate(order)}
    index = {name: number for number, name in enumerate(relations.cell_types)}

    def height(node: frozenset[str]) -> float:
        rows = [index[name] for name in node]
        return float(relations.height[np.ix_(rows, rows)].max())

    def centre(node: frozenset[str]) -> float:
        return float(np.mean([row[name] for name in node]))

    left = 1.05 + LETTER_OF_GENE * len(names.get(relations.nodes[0], ""))
    for node in relations.nodes:
        parent = relations.parent(node)
        start = left if parent is None else height(parent)
        axis.plot([start, height(node)], [centre(node)] * 2, color="black", linewidth=1.2)
        if parent is not None:
            axis.plot([start] * 2, [centre(parent), centre(node)], color="black", linewidth=1.2)
        if node in names:
            anchor, offset = ("bottom", 2) if len(node) == 1 or parent is None else ("top", -2)
            text: Style = {"textcoords": "offset points", "fontsize": 7, "va": anchor, "path_effects": [HALO]}
            axis.annotate(names[node], (start, centre(node)), (3, offset), **text)
    axis.set_xlim(left, 0)
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.set_xlabel("height in the tree, relative to the root")
    axis.tick_params(left=False, labelleft=False)
    open_frame(axis, "left")


@draws(Responses, "errors")
def response_errors(responses: Responses) -> Figure | str:
    """Draw the prediction errors of left-out types and conditions, next to baselines.

    A panel with more than 40 rows shows means over cell types, of the first 40 conditions.
    """
    if responses.errors.empty:
        return "No errors: no cell type could be left out."
    panels = [error_rows(table) for _, table in responses.errors.groupby("left_out", sort=False)]
    heights = [1 + 0.28 * len(rows) for _, rows in panels]
    figure = new_figure(7, 0.6 + sum(heights))
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for axis, (title, rows) in zip(axes, panels, strict=True):
        for name, (label, marker, colour) in ERRORS.items():
            order = 3 if name == "predicted" else 2  # predictions are drawn over the others
            axis.plot(rows[name], range(len(rows)), marker, color=colour, label=label, markersize=6, zorder=order)
        axis.axvline(1, color="gray", linewidth=0.8, linestyle="--")
        shade_rows(axis, len(rows))
        name_rows(axis, [shortened(name) for name in rows.index])
        axis.set_title(title, fontsize=9)
        open_frame(axis)
    axes[-1].set_xlim(left=0)
    axes[-1].set_xlabel("error of the log fold changes of the most changed genes (0: exact, 1: unchanged cells)")
    draw_legend(figure, axes[0], ncols=3)
    return figure


def error_rows(errors: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the title of a panel, and the errors of each row by its name."""
    title = f"each {errors['left_out'].iloc[0]} left out in turn"
    if len(errors) > MAX_ROWS:
        means = errors.groupby("condition", sort=False)[list(ERRORS)].mean()
        first = "" if len(means) <= MAX_ROWS else f", first {MAX_ROWS} conditions"
        return f"{title}, mean over types{first}", means.head(MAX_ROWS)
    differing = [name for name in ("cell_type", "condition") if errors[name].nunique() > 1] or ["condition"]
    same = [shortened(str(errors[name].iloc[0])) for name in ("cell_type", "condition") if name not in differing]
    return ", in ".join([title, *same]), errors.set_index(errors[differing].agg(", ".join, axis=1))


# ---- lineages

MAX_NODES = 60  # nodes with names of genes


@draws(Lineage, "lineage")
def lineage(lineage: Lineage, *, n_genes: int = 3) -> Axes:
    """Draw the lineage tree with its samples, and genes that change on branches.

    The x axis is time if known, and otherwise path length from the root.

    Parameters
    ----------
    n_genes
        Maximum number of genes named at each branch: clear changes that differ most from the sister branches.

    Examples
    --------
    ::

        bdm.pl.lineage(bdm.tl.lineage(adata, bdm.tl.LineageSettings(time_key="minutes"), tree="lineage.nwk"))
    """
    tree, row = lineage.tree, place_nodes(lineage.tree)
    names = name_changes(lineage, n_genes)
    n_rows = int(max(row) + 1)
    figure = new_figure(11, 1.2 + 0.62 * n_rows)
    axis = figure.add_subplot()
    for node, mother in enumerate(tree.mother):
        start, end = lineage.branch_times(node) if mother >= 0 else lineage.interval(node)
        style: Style = {"color": BRANCH, "linewidth": 1.6, "linestyle": "-" if lineage.sampled[node] else (0, (2, 1.5))}
        axis.plot([start, end], [row[node]] * 2, **style)
        if mother >= 0:
            axis.plot([start] * 2, [row[mother], row[node]], "|-", color=BRANCH, linewidth=1.6, markersize=7)
        samples = lineage.points[lineage.points["node"] == tree.nodes[node]]
        axis.scatter(samples["time"], [row[node]] * len(samples), 4 + samples["n_cells"], color=BRANCH, linewidth=0)
        text: Style = {"textcoords": "offset points", "path_effects": [HALO], "fontsize": 8}
        if tree.nodes[node].startswith(UNNAMED):
            continue
        axis.annotate(shortened(tree.nodes[node], width=24), (start, row[node]), (4, 5), weight="bold", **text)
        for number, label in enumerate(names.get(tree.nodes[node], [])):
            offset = (4, -11 - 9 * number)
            axis.annotate(label, (start, row[node]), offset, **text | {"fontsize": 7, "color": "#7a3b00"})
    axis.set_ylim(n_rows - 0.3, -0.6)
    axis.set_xlabel(lineage.time_key or "length of the path from the root")
    axis.tick_params(left=False, labelleft=False)
    open_frame(axis, "left")
    axis.set_title(
        "points: samples; dashed: without cells; genes that change on a branch (+ up, - down)", fontsize=9, color=GREY
    )
    return axis


def place_nodes(tree: LineageTree) -> np.ndarray:
    """Assign a row to each node; mothers are centred on their daughters."""
    row, nodes = np.zeros(len(tree.nodes)), range(len(tree.nodes))
    ends = [node for node in nodes if not tree.daughters(node)]
    row[sorted(ends, key=lambda node: tree.paths_to_root[node][::-1])] = range(len(ends))
    for node in reversed(nodes):  # mothers come before their daughters
        if daughters := tree.daughters(node):
            row[node] = (row[daughters[0]] + row[daughters[-1]]) / 2
    return row


def name_changes(lineage: Lineage, n_genes: int) -> dict[str, list[str]]:
    """Label genes that change clearly on the branch of each node.

    Genes whose change differs most from the sisters come first.
    """
    table = lineage.changes
    table = table[table["node"].isin(lineage.tree.nodes[:MAX_NODES])]
    is_clear = (table["change"].abs() >= MIN_Z * table["sd"]) & (table["change"].abs() >= MIN_CHANGE)
    table = table[is_clear]
    alone = table["from_sisters"].isna()
    own = (table["change"] / table["sd"]).abs()
    rank = (table["from_sisters"] / table["from_sisters_sd"]).abs().where(~alone, own)
    same = alone | (table["from_sisters"] * table["change"] > 0)
    table = table[same].assign(rank=rank[same]).sort_values("rank", ascending=False, kind="stable")
    labels: dict[str, list[str]] = {}
    top = table.groupby("node", sort=False).head(n_genes)
    for node, change, gene in zip(top["node"], top["change"], display_names(top), strict=True):
        labels.setdefault(node, []).append(f"{'+' if change > 0 else '-'}{gene_label(gene)}")
    return labels
