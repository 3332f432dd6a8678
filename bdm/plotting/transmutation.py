from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from bdm.evaluation.cells import TRANSMUTED_SET_NAMES, Cells, set_name
from bdm.evaluation.evaluate import FLOOR
from bdm.evaluation.figures.by_type import draw_types
from bdm.evaluation.figures.looks import GREY, Look, looks, shortened
from bdm.evaluation.figures.umap import joint_umap
from bdm.plotting.clades import gene_label
from bdm.plotting.figure import NewFigure, save_figure
from bdm.plotting.looks import IDEAL_LINE
from bdm.transmutation.evaluate import UNCHANGED, TransmutationEvaluation, ends_of
from bdm.transmutation.scores import fold_changes

PANELS = {
    "energy": ("energy distance", 0),
    "mean_r2": ("R² of means", 1),
    "variance_r2": ("R² of variances", 1),
    "slope": ("slope of log fold changes", 1),
    "library_kept": ("r of library sizes,\nbefore and after", 1),
    "variation_kept": ("r of variation within types,\nbefore and after", 1),
}
MOST_TYPES = 8  # with panels of their own
MOST_CELLS = 500  # of a type, in a map
N_NAMED = 6  # genes, at either end


def write_figures(folder: Path, evaluation: TransmutationEvaluation) -> None:
    """Write ``scores.png``, ``genes.png`` and ``umap.png``."""
    save_figure(scores_figure(evaluation.table, evaluation.to), folder / "scores.png")
    save_figure(genes_figure(evaluation), folder / "genes.png")
    save_figure(umap_figure(evaluation), folder / "umap.png")


def scores_figure(table: pd.DataFrame, to: str, *, new: NewFigure = Figure) -> Figure:
    """Draw one panel a score, one row a type that cells were of, one marker a set; unmoved cells are left out.

    The energy distance of unmoved cells would dwarf that of the others; it is told beside the type.

    Parameters
    ----------
    table
        As in :class:`bdm.transmutation.evaluate.MoveEvaluation`.
    """
    types, sets = table.index.unique("original_type"), table.index.unique("set").drop(UNCHANGED)
    figure = new(figsize=(15, 1.8 + max(0.4, 0.08 * len(sets)) * len(types)), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (score, (title, ideal)) in zip(axes, PANELS.items(), strict=True):
        draw_types(axis, table[score].unstack("set").reindex(types)[sets], ideal=ideal, names=TRANSMUTED_SET_NAMES)
        axis.set_title(title, fontsize=9)
    before = table["energy"].xs(UNCHANGED, level="set")
    labels = [f"{shortened(name)} (before: {before.get(name, np.nan):.1f})" for name in types]
    axes[0].set_yticks(range(len(types)), labels)
    axes[0].set_ylim(len(types) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False)
    note = f"cells transmuted to {shortened(to)}; in brackets: energy distance before"
    figure.supxlabel(note, fontsize=9)
    return figure


def genes_figure(evaluation: TransmutationEvaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw, for each type that cells were of, the fold changes of the genes that tell the two types apart."""
    types, n_columns = evaluation.original_types[:MOST_TYPES], 4
    shape = -(-len(types) // n_columns), min(len(types), n_columns)
    figure = new(figsize=(4.2 * shape[1], 4.4 * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False).flat
    styles = looks(evaluation.moved)
    for axis, original_type in zip(axes, types, strict=False):
        draw_genes(axis, evaluation, original_type, styles)
    for axis in axes[len(types) :]:
        axis.remove()
    return figure


def draw_genes(axis: Axes, evaluation: TransmutationEvaluation, original_type: str, styles: dict[str, Look]) -> None:
    """Draw one point a gene and set."""
    ends = ends_of(evaluation.real, original_type, evaluation.to)
    sets = {FLOOR: ends.new, **{name: cells.of(original_type)[0] for name, cells in evaluation.moved.items()}}
    first = next(iter(evaluation.moved))
    for name, cells in sets.items():
        changes = fold_changes(cells, ends)
        axis.plot(
            changes.test,
            changes.judged,
            styles[name].marker,
            color=styles[name].colour,
            markersize=3.5,
            alpha=0.7,
            markeredgewidth=0,
            label=set_name(name, TRANSMUTED_SET_NAMES),
        )
        if name == first:
            name_genes(axis, changes.test, changes.judged, evaluation.real.names.labels.iloc[ends.changed])
    axis.axline((0, 0), slope=1, label="as in test cells", **IDEAL_LINE)
    axis.set_title(f"{shortened(original_type, width=20)} → {shortened(evaluation.to, width=20)}", fontsize=10)
    axis.set(xlabel="log2 fold change, test cells", ylabel="log2 fold change, transmuted cells")
    axis.legend(loc="upper left", frameon=False, handletextpad=0.4, handlelength=1.2, markerscale=1.5)
    axis.spines[["top", "right"]].set_visible(False)


def name_genes(axis: Axes, x: np.ndarray, y: np.ndarray, names: pd.Series) -> None:
    """Name the genes at either end of the real fold changes, where names do not overlap."""
    order = np.argsort(x, kind="stable")
    apart = 0.05 * (y.max() - y.min())
    outline = [withStroke(linewidth=2, foreground="white")]
    for side, ordered in {"left": order, "right": order[::-1]}.items():
        named: list[int] = []
        for gene in ordered[: 4 * N_NAMED]:
            if len(named) < N_NAMED and all(abs(y[gene] - y[other]) > apart for other in named):
                named.append(gene)
        for gene in named:
            offset = (5 if side == "left" else -5, -3)
            text = {"textcoords": "offset points", "ha": side, "fontsize": 7, "path_effects": outline}
            axis.annotate(gene_label(names.iloc[gene]), (x[gene], y[gene]), offset, **text)


def umap_figure(evaluation: TransmutationEvaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw moved cells, what they were, and real cells of their new type, one panel a type that cells were of."""
    types, n_columns = evaluation.original_types[:MOST_TYPES], 4
    first = next(iter(evaluation.moved.values()))
    real = some(evaluation.real.training[evaluation.real.training.cell_type == evaluation.to])
    parts = [[some(cells) for cells in first.of(original_type)] for original_type in types]
    places = joint_umap([real, *(cells for pair in parts for cells in pair)], seed=0)
    shape = -(-len(types) // n_columns), min(len(types), n_columns)
    figure = new(figsize=(4 * shape[1], 4.3 * shape[0]), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False).flat
    for i, (axis, original_type) in enumerate(zip(axes, types, strict=False)):
        after, before = places[1 + 2 * i], places[2 + 2 * i]
        axis.plot(*np.concatenate(places).T, "o", color="0.9", markersize=2, markeredgewidth=0)
        axis.plot(
            *places[0].T,
            "d",
            color=GREY,
            markersize=3,
            markeredgewidth=0,
            label=f"real {shortened(evaluation.to, width=24)}",
        )
        for name, at, marker, colour in ((UNCHANGED, before, "s", "#D55E00"), ("branched", after, "o", "#0072B2")):
            look = {"color": colour, "markersize": 3, "markeredgewidth": 0, "alpha": 0.7}
            axis.plot(*at.T, marker, label=set_name(name, TRANSMUTED_SET_NAMES), **look)
        axis.set(title=shortened(original_type, width=36), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    for axis in axes[len(types) :]:
        axis.remove()
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False, markerscale=2
    )
    return figure


def some(cells: Cells) -> Cells:
    """Take up to ``MOST_EMBEDDED_CELLS`` of cells, evenly spread."""
    return (
        cells[np.unique(np.linspace(0, len(cells) - 1, MOST_CELLS).astype(int))] if len(cells) > MOST_CELLS else cells
    )
