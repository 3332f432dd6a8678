"""Figures of audits, power analyses and transmutation."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.applications.audit.attacks import ATTACKS, COPIES, GENERATED
from bdm.applications.audit.audit import Audit
from bdm.applications.design.design import AXES
from bdm.applications.power.analysis import COMPOSITION, PowerAnalysis
from bdm.applications.power.differential import METHODS
from bdm.applications.transmutation.evaluate_transmuted import TransmutationEvaluation
from bdm.data.cells import TRANSMUTED, UNCHANGED
from bdm.evaluation.table import TYPE, wide
from bdm.interpretation.contrasts import Z_95
from bdm.plotting.evaluation import draw_scores_by_type, set_styles
from bdm.plotting.style import (
    GREY,
    HALO,
    IDEAL_LINE,
    MODEL,
    REAL,
    Style,
    draw_equality,
    draw_legend,
    draws,
    gene_label,
    name_rows,
    new_figure,
    open_frame,
    panels,
    shade_rows,
    shortened,
)

STYLES: dict[str, Style] = {
    GENERATED: MODEL,
    COPIES: REAL,
}
LABELS = {
    GENERATED: "generated cells (dots: folds)",
    COPIES: "copies of training cells",
}

AXIS_LABELS = {
    "donors": "donors in each condition",
    "cells": "cells of each sample",
    "depth": "factor of the library size",
    "log2_fold_change": "log2 fold change",
    "log_odds": "shift of log odds",
}
METHOD_LABELS = {**METHODS, COMPOSITION: "composition"}
OUTCOMES = {"power": "power", "false_discovery_rate": "false discovery rate"}
APART = 0.05  # shift between the first and the last method, as a share of the x axis
COSTS = ("donors", "cells")  # axes that change the number of cells to sequence


# ---- audit


@draws(Audit, "audit")
def audit(audit: Audit) -> Axes:
    """Draw the AUC of each attack on generated cells and on copies of training cells.

    Examples
    --------
    ::

        bdm.pl.audit(model.audit())
    """
    by_fold, mean = audit.by_fold, audit.attacks
    attacks = [name for name in ATTACKS if name in set(by_fold["attack"])]
    figure = new_figure(5.2, 1.5 + 0.42 * len(attacks))
    axis = figure.subplots()
    shade_rows(axis, len(attacks))
    for name, style in STYLES.items():
        aucs = mean[mean["set"] == name]
        rows = [attacks.index(attack) for attack in aucs["attack"]]
        axis.plot(aucs["auc"], rows, label=LABELS[name], zorder=3 if name == GENERATED else 2, **style)
    folds = by_fold[by_fold["set"] == GENERATED]
    rows = [attacks.index(attack) for attack in folds["attack"]]
    axis.plot(folds["auc"], rows, linestyle="", marker=".", markersize=4, color=STYLES[GENERATED]["color"], alpha=0.6)
    axis.axvline(0.5, label="members cannot be distinguished", **IDEAL_LINE)
    if np.isfinite(limit := audit.verdict.limit):
        axis.axvline(limit, color=GREY, linewidth=1, linestyle="--", label="chance reaches it in 5% of audits")
    axis.set_xlim(min(0.35, float(by_fold["auc"].min()) - 0.02), 1.02)
    axis.set_xlabel(f"AUC of members against other {audit.unit}s")
    open_frame(axis)
    name_rows(axis, [ATTACKS[name] for name in attacks])
    draw_legend(figure, axis, loc="outside lower center", ncols=2, fontsize=8)
    return axis


# ---- power


@draws(PowerAnalysis, "power")
def power(analysis: PowerAnalysis) -> Figure:
    """Draw power and false discovery rate over the grid, with 95% intervals.

    Rows are outcomes, columns are values of the second axis of the grid, and lines are methods. Further axes of the
    grid add rows. The upper axis or the title shows the number of cells to sequence.

    Examples
    --------
    ::

        bdm.pl.power(PowerAnalysis.load("power"))
    """
    table = analysis.power.fillna(dict.fromkeys(AXES, np.inf))
    varied = [axis for axis in AXES if table[axis].nunique() > 1] or [next(iter(AXES))]
    x, across, further = varied[0], varied[1:2], varied[2:]
    columns = grid_values(table, across)
    of_genes = table.loc[table["method"] != COMPOSITION, list(OUTCOMES)]
    outcomes = [name for name in OUTCOMES if name == "power" or of_genes[name].notna().any()]
    rows = [(outcome, values) for values in grid_values(table, further) for outcome in outcomes]
    figure = new_figure(0.6 + 3.2 * len(columns), 0.9 + 2.6 * len(rows))
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    styles = set_styles(table["method"].unique())
    for row, (outcome, row_values) in enumerate(rows):
        for column, column_values in enumerate(columns):
            values = {**dict(zip(across, column_values, strict=True)), **dict(zip(further, row_values, strict=True))}
            part = table[(table[list(values)] == pd.Series(values, dtype=float)).all(axis=1)]
            draw_outcome(axes[row, column], part, outcome, x, styles)
            label_values(axes[row, column], part, values, x, top=outcome == "power")
        axes[row, 0].set_ylabel(OUTCOMES[outcome])
    for axis in axes[-1] if np.isfinite(table[x]).any() else ():
        axis.set_xlabel(AXIS_LABELS[x])
    draw_legend(figure, *axes.flat, loc="outside lower center")
    return figure


def grid_values(table: pd.DataFrame, axes: list[str]) -> list[tuple[float, ...]]:
    """List the combinations of values of some axes; without axes, one empty tuple."""
    return list(dict.fromkeys(table[axes].itertuples(index=False, name=None))) if axes else [()]


def draw_outcome(axis: Axes, table: pd.DataFrame, outcome: str, x: str, styles: dict[str, Style]) -> None:
    """Draw one outcome of each method, slightly shifted to avoid overlaps."""
    values = np.unique(table[x].replace(np.inf, 0))
    apart = np.diff(values).min() if len(values) > 1 else 1.0
    width = min(APART * max(np.ptp(values), apart), 0.4 * apart)
    offsets = np.linspace(-width / 2, width / 2, len(styles)) if len(styles) > 1 else [0.0]
    for offset, (method, style) in zip(offsets, styles.items(), strict=True):
        rows = table[table["method"] == method].sort_values(x)
        if rows[outcome].isna().all() or (outcome != "power" and method == COMPOSITION):
            continue
        positions = rows[x].replace(np.inf, 0) + offset
        line = {**style, "label": METHOD_LABELS[method], "linestyle": "-", "linewidth": 1.4}
        errors = np.stack([rows["power"] - rows["low"], rows["high"] - rows["power"]]).clip(min=0)
        if outcome != "power":
            errors = Z_95 * np.stack([rows["false_discovery_error"]] * 2)
        axis.errorbar(positions, rows[outcome], errors, capsize=2, markersize=5, **line)
    axis.set_ylim(-0.03, 1.03)
    if outcome != "power":
        axis.axhline(table["fdr"].iloc[0], color=GREY, linestyle=":", linewidth=1, label="aim")
    open_frame(axis)


def label_values(axis: Axes, table: pd.DataFrame, values: dict[str, float], x: str, *, top: bool) -> None:
    """Label a panel with its values and numbers of cells to sequence."""
    cells = table.groupby(x)["n_cells"].first()
    finite = cells.index[np.isfinite(cells.index)]
    axis.set_xticks(finite, [f"{value:g}" for value in finite])
    axis.set_xmargin(0.08)
    if not top:
        return
    title = [f"{AXIS_LABELS[name]}: {value:g}" for name, value in values.items() if np.isfinite(value)]
    if x in COSTS and len(finite):
        upper = axis.secondary_xaxis("top")
        upper.set_xticks(finite, [abbreviate(cells[value]) for value in finite], fontsize=8)
        upper.set_xlabel("cells to sequence", fontsize=8)
    else:
        title.append(f"{abbreviate(cells.iloc[0])} cells to sequence")
    axis.set_title("\n".join(title), fontsize=9)


def abbreviate(number: float) -> str:
    """Abbreviate a number of cells."""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1e3:,.0f}k" if number < 1e6 else f"{number / 1e6:,.1f}M"


# ---- transmutation

PANELS = {
    "energy": ("energy distance", 0),
    "mean_r2": ("R² of means", 1),
    "variance_r2": ("R² of variances", 1),
    "slope": ("slope of log fold changes", 1),
    "library_kept": ("r of library sizes,\nbefore and after", 1),
    "variation_kept": ("r of variation within types,\nbefore and after", 1),
}
MAX_TYPES, N_COLUMNS = 8, 4  # panels of original types, and columns of panels
N_LABELS = 6  # labelled genes at either end


@draws(TransmutationEvaluation, "scores")
def transmutation(evaluation: TransmutationEvaluation) -> Figure:
    """Draw the scores of transmuted cells, with the floor.

    Examples
    --------
    ::

        adata_transmuted = model.transmute(adata, to="NK")
        bdm.pl.transmutation(model.evaluate_transmuted(adata, adata_transmuted, adata_test=adata_test))
        bdm.pl.transmutation(bdm.TransmutationEvaluation.load("transmutation"))
    """
    scores = evaluation.scores[evaluation.scores["kind"] == TYPE]
    return draw_scores_of_transmutation(scores, evaluation.original_types, evaluation.to)


def draw_scores_of_transmutation(table: pd.DataFrame, types: Sequence[str], to: str) -> Figure:
    """Draw one panel per ``score``, one row per original type (``group``), one marker per ``set``.

    The labels give the energy distance of unchanged cells, which is too large to draw.
    """
    by_score = {score: wide(rows, "group").reindex(types) for score, rows in table.groupby("score")}
    figure = new_figure(15, 1.8 + max(0.4, 0.08 * table["set"].nunique()) * len(types))
    axes = figure.subplots(1, len(PANELS), sharey=True)
    for axis, (score, (title, ideal)) in zip(axes, PANELS.items(), strict=True):
        draw_scores_by_type(axis, by_score[score].drop(columns=UNCHANGED), ideal=ideal)
        axis.set_title(title, fontsize=9)
    before = by_score["energy"][UNCHANGED]
    name_rows(axes[0], [f"{shortened(name)} (before: {before[name]:.1f})" for name in types])
    draw_legend(figure, axes[0])
    figure.supxlabel(f"cells transmuted to {shortened(to)}; in brackets: energy distance before", fontsize=9)
    return figure


@draws(TransmutationEvaluation, "genes")
def transmutation_genes(evaluation: TransmutationEvaluation) -> Figure:
    """Draw fold changes between two types, in transmuted against real cells.

    The genes differ most between the types.
    """
    styles = set_styles(evaluation.fold_changes["set"].unique())
    types = evaluation.original_types[:MAX_TYPES]
    n_columns = min(len(types), N_COLUMNS)
    figure = new_figure(4.2 * n_columns, 4.4 * -(-len(types) // N_COLUMNS))
    for original_type, axis in zip(types, panels(figure, len(types), n_columns=n_columns), strict=True):
        draw_fold_changes(axis, evaluation, original_type, styles)
    return figure


def draw_fold_changes(
    axis: Axes, evaluation: TransmutationEvaluation, original_type: str, styles: dict[str, Style]
) -> None:
    """Draw one point per gene and set."""
    table = evaluation.fold_changes[evaluation.fold_changes["original_type"] == original_type]
    for name, changes in table.groupby("set", sort=False):
        x, y = (changes[column].to_numpy() for column in ("log2_fold_change_test", "log2_fold_change"))
        axis.plot(x, y, markersize=3.5, alpha=0.7, markeredgewidth=0, **styles[name])
        if name == TRANSMUTED:
            label_outermost_genes(axis, x, y, changes["label"].to_numpy())
    axis.set_title(f"{shortened(original_type, width=20)} → {shortened(evaluation.to, width=20)}", fontsize=10)
    axis.set(xlabel="log2 fold change, test cells", ylabel="log2 fold change, transmuted cells")
    draw_equality(axis, scale=1.5)


def label_outermost_genes(axis: Axes, x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> None:
    """Label the genes at either end of the x axis, without overlaps."""
    apart, order = 0.06 * np.ptp(axis.get_ylim()), np.argsort(x, kind="stable")
    for side, candidates in {"left": order, "right": order[::-1]}.items():
        labelled: list[int] = []
        for gene in candidates[: 5 * N_LABELS]:
            if len(labelled) < N_LABELS and all(abs(y[gene] - y[previous]) > apart for previous in labelled):
                labelled.append(gene)
        style: Style = {"textcoords": "offset points", "ha": side, "fontsize": 7, "path_effects": [HALO]}
        for gene in labelled:
            axis.annotate(gene_label(labels[gene]), (x[gene], y[gene]), (5 if side == "left" else -5, -3), **style)
