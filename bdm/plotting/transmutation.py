"""Scores, genes and UMAP of transmuted cells."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.evaluation.cells import FLOOR, TRANSMUTED, UNCHANGED
from bdm.evaluation.results import COORDINATES
from bdm.plotting.evaluation import draw_scores_by_type
from bdm.plotting.style import (
    GREY,
    IDEAL_LINE,
    NewFigure,
    SetStyle,
    Style,
    label_outermost_genes,
    panels,
    set_styles,
    shortened,
)
from bdm.transmutation.results import MAX_TYPES, TransmutationEvaluation

PANELS = {
    "energy": ("energy distance", 0),
    "mean_r2": ("R² of means", 1),
    "variance_r2": ("R² of variances", 1),
    "slope": ("slope of log fold changes", 1),
    "library_kept": ("r of library sizes,\nbefore and after", 1),
    "variation_kept": ("r of variation within types,\nbefore and after", 1),
}
N_COLUMNS = 4
N_LABELS = 6  # genes, at either end


def transmutation_scores_figure(table: pd.DataFrame, to: str, *, new: NewFigure = Figure) -> Figure:
    """Draw one panel a score, one row an original type, one marker a set; unchanged cells are left out.

    The energy distance of unchanged cells would dwarf that of the others; it stands beside the type.

    Parameters
    ----------
    table
        As in :class:`bdm.transmutation.results.TransmutationEvaluation`.
    """
    types, sets = table.index.unique("original_type"), table.index.unique("set").drop(UNCHANGED)
    figure = new(figsize=(15, 1.8 + max(0.4, 0.08 * len(sets)) * len(types)), layout="constrained")
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (score, (title, ideal)) in zip(axes, PANELS.items(), strict=True):
        draw_scores_by_type(axis, table[score].unstack("set").reindex(types)[sets], ideal=ideal)
        axis.set_title(title, fontsize=9)
    before = table["energy"].xs(UNCHANGED, level="set")
    labels = [f"{shortened(name)} (before: {before.get(name, np.nan):.1f})" for name in types]
    axes[0].set_yticks(range(len(types)), labels)
    axes[0].set_ylim(len(types) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False)
    note = f"cells transmuted to {shortened(to)}; in brackets: energy distance before"
    figure.supxlabel(note, fontsize=9)
    return figure


def transmutation_genes_figure(evaluation: TransmutationEvaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw, for each original type, the fold changes of the genes that differ most between it and the new type."""
    types = evaluation.original_types[:MAX_TYPES]
    figure = new(figsize=panel_sizes(len(types), 4.2, 4.4), layout="constrained")
    styles = set_styles(evaluation.fold_changes["set"].unique())
    for axis, original_type in zip(
        panels(figure, len(types), n_columns=min(len(types), N_COLUMNS)), types, strict=True
    ):
        draw_genes(axis, evaluation, original_type, styles)
    return figure


def panel_sizes(n_panels: int, width: float, height: float) -> tuple[float, float]:
    """Return the size of a figure whose panels have this size in inches."""
    return width * min(n_panels, N_COLUMNS), height * -(-n_panels // N_COLUMNS)


def draw_genes(
    axis: Axes, evaluation: TransmutationEvaluation, original_type: str, styles: dict[str, SetStyle]
) -> None:
    """Draw one point a gene and set."""
    of_type = evaluation.fold_changes[evaluation.fold_changes["original_type"] == original_type]
    for name, changes in of_type.groupby("set", sort=False):
        x, y = (changes[column].to_numpy() for column in ("log2_fold_change_test", "log2_fold_change"))
        axis.plot(
            x,
            y,
            styles[name].marker,
            color=styles[name].colour,
            markersize=3.5,
            alpha=0.7,
            markeredgewidth=0,
            label=name,
        )
        if name == TRANSMUTED:
            labels, order = changes["label"].to_numpy(), np.argsort(x, kind="stable")
            label_outermost_genes(axis, x, y, labels, order=order, n_labels=N_LABELS)
    axis.axline((0, 0), slope=1, label="as in test cells", **IDEAL_LINE)
    axis.set_title(f"{shortened(original_type, width=20)} → {shortened(evaluation.to, width=20)}", fontsize=10)
    axis.set(xlabel="log2 fold change, test cells", ylabel="log2 fold change, transmuted cells")
    axis.legend(loc="upper left", frameon=False, handletextpad=0.4, handlelength=1.2, markerscale=1.5)
    axis.spines[["top", "right"]].set_visible(False)


def transmutation_umap_figure(evaluation: TransmutationEvaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw transmuted cells, the same cells before, and real cells of the new type, one panel an original type."""
    types = evaluation.original_types[:MAX_TYPES]
    table = evaluation.embedding
    everything = table[COORDINATES].to_numpy()
    sets = {key: cells[COORDINATES].to_numpy() for key, cells in table.groupby(["original_type", "set"], sort=False)}
    figure = new(figsize=panel_sizes(len(types), 4, 4.3), layout="constrained")
    axes = panels(figure, len(types), n_columns=min(len(types), N_COLUMNS))
    small: Style = {"markersize": 3, "markeredgewidth": 0}
    for axis, original_type in zip(axes, types, strict=True):
        axis.plot(*everything.T, "o", color="0.9", markersize=2, markeredgewidth=0)
        label = f"real {shortened(evaluation.to, width=24)}"
        axis.plot(*sets[evaluation.to, FLOOR].T, "d", color=GREY, label=label, **small)
        for name, marker, colour in ((UNCHANGED, "s", "#D55E00"), (TRANSMUTED, "o", "#0072B2")):
            axis.plot(*sets[original_type, name].T, marker, color=colour, label=name, alpha=0.7, **small)
        axis.set(title=shortened(original_type, width=36), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    handles = axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=3, frameon=False, markerscale=2)
    return figure
