"""Responses of cell types to a condition: where on their tree they change, and how well they are predicted."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.plotting.style import (
    HALO,
    checked,
    explain,
    gene_label,
    new_figure,
    open_frame,
    shade_rows,
    shortened,
    shown,
    shown_panels,
)
from bdm.responses.results import Relations, Responses

MIN_Z, MIN_CHANGE = 3, 0.5  # of a change that is drawn: standard deviations, and log2 units
MAX_GENES = 40  # of the heatmap
GENE_LETTERS = 12  # at a branch, on average; longer names leave room for fewer genes
LETTER_OF_GENE = 0.01  # of the width of the tree, about
ERRORS = {
    "predicted": ("predicted", "o", "tab:blue"),
    "unrelated": ("without relations", "s", "tab:gray"),
    "common": ("mean of other types", "^", "tab:orange"),
    "nearest": ("nearest type", "v", "tab:green"),
    "sampling": ("measurement alone", "|", "black"),
}


def response(
    responses: Responses, condition: str | None = None, *, n_genes: int = 3, show: bool | None = None
) -> list[Axes] | None:
    """Draw the tree of cell types with the genes that gain a response on each branch, and the responses of each type.

    Parameters
    ----------
    responses
        Result of :func:`bdm.tl.respond`.
    condition
        The first of the responses, if none is named.
    n_genes
        Genes that are named at each branch, those whose response grows most significantly; fewer if names are long.

    Examples
    --------
    ::

        bdm.pl.response(bdm.tl.respond(adata, condition_key="condition"), "stim")
    """
    checked(responses, Responses)
    return shown_panels(draw_response(responses, condition or responses.conditions[0], n_genes=n_genes), show=show)


def draw_response(responses: Responses, condition: str, *, n_genes: int) -> Figure:
    """Draw the tree and the heatmap of a condition."""
    relations, branches = responses.relations(), responses.branches(condition, responses.most_changed(condition))
    is_clear = (branches["z"].abs() >= MIN_Z) & (branches["change"].abs() >= MIN_CHANGE)
    top = branches[is_clear & (branches["mean"] * branches["change"] > 0)]
    top = top.groupby("cell_types", sort=False).head(n_genes)
    names = {}
    for node, of_node in top.groupby("cell_types", sort=False):
        words = [f"{'+' if row.change > 0 else '-'}{gene_label(str(row.gene))}" for row in of_node.itertuples()]
        names[frozenset(str(node).split("; "))] = first_words(words, n_letters=GENE_LETTERS * n_genes)
    genes = list(dict.fromkeys(top["gene"]))[:MAX_GENES] or list(responses.genes.index[:1])
    order = ordered(relations)
    rows = responses.genes.index.get_indexer(genes)
    values = responses.predictions(condition, order, {}, rows).mean.T / np.log(2)
    figure = new_figure(9 + 0.22 * len(genes), 1.8 + 0.45 * len(order))
    tree, heat = figure.subplots(1, 2, sharey=True, width_ratios=[7, 2 + 0.22 * len(genes)])
    draw_tree(tree, relations, order, names)
    labels = [shortened(name) + ("" if responses.is_measured(condition, name) else " (predicted)") for name in order]
    limit = max(float(np.quantile(np.abs(values), 0.95)), 0.1)
    image = heat.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest")
    heat.set_xticks(range(len(genes)), [gene_label(str(gene)) for gene in genes], rotation=90, fontsize=7)
    heat.set_yticks(range(len(order)), labels)
    heat.tick_params(labelleft=True, labelright=False)
    is_cut = (bool(values.min() < -limit), bool(values.max() > limit))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(is_cut, "neither")
    figure.colorbar(image, ax=heat, label="expected log2 fold change", fraction=0.05, extend=extend)
    heat.set_title(f"{shortened(condition)}, compared with {shortened(responses.control)}", fontsize=9)
    tree.set_title("genes whose response grows on a branch (+ up, - down)", fontsize=9)
    return figure


def first_words(words: list[str], *, n_letters: int) -> str:
    """Join the first words, as many as fit, and at least one."""
    fitting = [number for number in range(1, len(words) + 1) if len(" ".join(words[:number])) <= n_letters]
    return " ".join(words[: max(fitting, default=1)])


def ordered(relations: Relations) -> list[str]:
    """Cell types in an order in which those below each node are next to each other."""
    order = list(relations.cell_types)
    for node in relations.nodes:
        place = min(order.index(name) for name in node)
        inside = [name for name in order if name in node]
        outside = [name for name in order if name not in node]
        order = [*outside[:place], *inside, *outside[place:]]
    return order


def draw_tree(axis: Axes, relations: Relations, order: list[str], names: dict[frozenset[str], str]) -> None:
    """Draw a tree from the root at the left to the cell types at the right, with a text above each branch."""
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
            where, offset = ("bottom", 2) if len(node) == 1 or parent is None else ("top", -2)
            axis.annotate(
                names[node],
                (start, centre(node)),
                (3, offset),
                textcoords="offset points",
                fontsize=7,
                va=where,
                path_effects=[HALO],
            )
    axis.set_xlim(left, 0)
    axis.set_xticks(np.linspace(0, 1, 6))
    axis.set_xlabel("height in the tree, relative to the root")
    axis.tick_params(left=False, labelleft=False)
    open_frame(axis, "left")


def response_errors(responses: Responses, *, show: bool | None = None) -> Axes | None:
    """Draw the error of predictions of each measured type, left out in turn, beside simpler ones.

    Parameters
    ----------
    responses
        Result of :func:`bdm.tl.respond`.
    """
    checked(responses, Responses)
    table: pd.DataFrame = responses.errors
    several = len(responses.conditions) > 1
    if several and len(table) > MAX_GENES:
        table = table.groupby("condition", sort=False)[list(ERRORS)].mean().reset_index().assign(cell_type="all types")
        table = table.head(MAX_GENES)
    figure = new_figure(7, 1.6 + 0.28 * len(table))
    axis = figure.add_subplot()
    for name, (label, marker, colour) in ERRORS.items():
        axis.plot(table[name], range(len(table)), marker, color=colour, label=label, markersize=6)
    axis.axvline(1, color="gray", linewidth=0.8, linestyle="--")
    shade_rows(axis, len(table))
    rows = [
        shortened(f"{row.cell_type}, {row.condition}" if several else str(row.cell_type)) for row in table.itertuples()
    ]
    axis.set_yticks(range(len(table)), rows)
    axis.set_ylim(len(table) - 0.5, -0.5)
    axis.set_xlim(left=0)
    axis.set_title("all conditions" if several else shortened(responses.conditions[0]), fontsize=9)
    axis.set_xlabel("error of the log fold changes of the most changed genes (0: exact, 1: unchanged cells)")
    open_frame(axis)
    explain(figure, axis, ncols=3)
    return shown(axis, show=show)
