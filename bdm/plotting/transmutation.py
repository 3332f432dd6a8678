"""Scores and genes of transmuted cells."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.evaluation.cells import TRANSMUTED, UNCHANGED
from bdm.plotting.evaluation import SetStyle, draw_scores_by_type, set_styles
from bdm.plotting.style import (
    HALO,
    Style,
    checked,
    draw_identity,
    explain,
    gene_label,
    new_figure,
    open_frame,
    panels,
    shortened,
    shown_panels,
)
from bdm.transmutation.evaluate import TransmutationEvaluation

PANELS = {
    "energy": ("energy distance", 0),
    "mean_r2": ("R² of means", 1),
    "variance_r2": ("R² of variances", 1),
    "slope": ("slope of log fold changes", 1),
    "library_kept": ("r of library sizes,\nbefore and after", 1),
    "variation_kept": ("r of variation within types,\nbefore and after", 1),
}
MAX_TYPES, N_COLUMNS = 8, 4  # original types whose genes are drawn
N_LABELS = 6  # genes, at either end


def transmutation(evaluation: TransmutationEvaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the scores of transmuted cells, with the floor.

    Parameters
    ----------
    evaluation
        Result of :meth:`~bdm.BranchedDiffusion.evaluate_transmuted`.

    Examples
    --------
    ::

        adata_transmuted = model.transmute(adata, to="NK")
        bdm.pl.transmutation(model.evaluate_transmuted(adata_transmuted, adata, adata_test))
        bdm.pl.transmutation(bdm.TransmutationEvaluation.load("transmutation"))
    """
    checked(evaluation, TransmutationEvaluation)
    return shown_panels(draw_transmutation_scores(evaluation.table, evaluation.to), show=show)


def draw_transmutation_scores(table: pd.DataFrame, to: str) -> Figure:
    """Draw one panel a score, one row an original type, one marker a set.

    The energy distance of unchanged cells, which would dwarf the others, is in the labels.
    """
    types, sets = table.index.unique("original_type"), table.index.unique("set").drop(UNCHANGED)
    figure = new_figure(15, 1.8 + max(0.4, 0.08 * len(sets)) * len(types))
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (score, (title, ideal)) in zip(axes, PANELS.items(), strict=True):
        draw_scores_by_type(axis, table[score].unstack("set").reindex(types)[sets], ideal=ideal)
        axis.set_title(title, fontsize=9)
    before = table["energy"].xs(UNCHANGED, level="set")
    labels = [f"{shortened(name)} (before: {before.get(name, np.nan):.1f})" for name in types]
    axes[0].set_yticks(range(len(types)), labels)
    axes[0].set_ylim(len(types) - 0.5, -0.5)
    explain(figure, axes[0])
    figure.supxlabel(f"cells transmuted to {shortened(to)}; in brackets: energy distance before", fontsize=9)
    return figure


def transmutation_genes(evaluation: TransmutationEvaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the fold changes of the genes that differ most between two types, in transmuted and in real cells."""
    checked(evaluation, TransmutationEvaluation)
    styles = set_styles(evaluation.fold_changes["set"].unique())
    types = evaluation.original_types[:MAX_TYPES]
    n_columns = min(len(types), N_COLUMNS)
    figure = new_figure(4.2 * n_columns, 4.4 * -(-len(types) // N_COLUMNS))
    for original_type, axis in zip(types, panels(figure, len(types), n_columns=n_columns), strict=True):
        draw_genes(axis, evaluation, original_type, styles)
    return shown_panels(figure, show=show)


def draw_genes(
    axis: Axes, evaluation: TransmutationEvaluation, original_type: str, styles: dict[str, SetStyle]
) -> None:
    """Draw one point a gene and set."""
    of_type = evaluation.fold_changes[evaluation.fold_changes["original_type"] == original_type]
    for name, changes in of_type.groupby("set", sort=False):
        x, y = (changes[column].to_numpy() for column in ("log2_fold_change_test", "log2_fold_change"))
        points: Style = {"color": styles[name].colour, "markersize": 3.5, "alpha": 0.7, "markeredgewidth": 0}
        axis.plot(x, y, styles[name].marker, label=name, **points)
        if name == TRANSMUTED:
            label_outermost_genes(axis, x, y, changes["label"].to_numpy())
    draw_identity(axis)
    axis.set_title(f"{shortened(original_type, width=20)} → {shortened(evaluation.to, width=20)}", fontsize=10)
    axis.set(xlabel="log2 fold change, test cells", ylabel="log2 fold change, transmuted cells")
    axis.legend(loc="upper left", frameon=False, handletextpad=0.4, handlelength=1.2, markerscale=1.5)
    open_frame(axis)


def label_outermost_genes(axis: Axes, x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> None:
    """Label genes at either end of the x axis whose labels do not overlap."""
    apart, order = 0.06 * np.ptp(axis.get_ylim()), np.argsort(x, kind="stable")
    for side, candidates in {"left": order, "right": order[::-1]}.items():
        chosen: list[int] = []
        for gene in candidates[: 5 * N_LABELS]:
            if len(chosen) < N_LABELS and all(abs(y[gene] - y[other]) > apart for other in chosen):
                chosen.append(gene)
        style: Style = {"textcoords": "offset points", "ha": side, "fontsize": 7, "path_effects": [HALO]}
        for gene in chosen:
            axis.annotate(gene_label(labels[gene]), (x[gene], y[gene]), (5 if side == "left" else -5, -3), **style)
