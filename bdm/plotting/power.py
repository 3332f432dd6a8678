"""Power and false discoveries by the values of a grid, with the cost of each experiment."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.design.settings import AXES
from bdm.plotting.style import GREY, NewFigure, SetStyle, Style, set_styles, shown
from bdm.power.analysis import PowerAnalysis
from bdm.power.grid import COMPOSITION
from bdm.power.tests import METHODS

AXIS_LABELS = {
    "donors": "donors in each condition",
    "cells": "cells of each sample",
    "depth": "factor of the library size",
    "log2_fold_change": "log2 fold change",
    "log_odds": "shift of log odds",
}
METHOD_LABELS = {**METHODS, COMPOSITION: "composition"}
OUTCOMES = {"power": "power", "false_discovery_rate": "false discovery rate"}
BESIDE = 0.05  # of the x axis, between the first method and the last
COSTS = ("donors", "cells")  # values on which the number of cells depends


def power(analysis: PowerAnalysis, *, show: bool | None = None) -> list[Axes] | None:
    """Draw power, with 95% intervals, and false discoveries, by the values of the grid.

    The upper axis, or the title, has the number of cells to sequence.

    Parameters
    ----------
    analysis
        What :meth:`bdm.BranchedDiffusion.power` returned, or ``bdm.tl.PowerAnalysis.load(folder)``.

    Examples
    --------
    ::

        bdm.pl.power(PowerAnalysis.load("power"))
    """
    return shown(power_figure(analysis, new=plt.figure), show=show)


def power_figure(analysis: PowerAnalysis, *, new: NewFigure = Figure) -> Figure:
    """Draw a row for each outcome, a column for each value of the second axis of the grid, and a line for each method.

    Further axes of the grid have rows of their own.
    """
    table = analysis.power.fillna(dict.fromkeys(AXES, np.inf))
    varied = [axis for axis in AXES if table[axis].nunique() > 1] or [next(iter(AXES))]
    x, across, further = varied[0], varied[1:2], varied[2:]
    columns = values_of(table, across)
    rows = [(outcome, values) for values in values_of(table, further) for outcome in outcomes_of(table)]
    figure = new(figsize=(0.6 + 3.2 * len(columns), 0.9 + 2.6 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey="row")
    styles = {name: style for name, style in set_styles(table["method"].unique()).items() if name in METHOD_LABELS}
    for row, (outcome, of_row) in enumerate(rows):
        for column, of_column in enumerate(columns):
            where = {**dict(zip(across, of_column, strict=True)), **dict(zip(further, of_row, strict=True))}
            of_panel = table[(table[list(where)] == pd.Series(where, dtype=float)).all(axis=1)]
            draw(axes[row, column], of_panel, outcome, x, styles)
            label(axes[row, column], of_panel, where, x, top=outcome == "power")
        axes[row, 0].set_ylabel(OUTCOMES[outcome])
    for axis in axes[-1]:
        axis.set_xlabel(AXIS_LABELS[x])
    handles = {text: handle for ax in axes.flat for handle, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    return figure


def values_of(table: pd.DataFrame, axes: list[str]) -> list[tuple[float, ...]]:
    """List the combinations of the values of some axes of a grid; one that is empty if there are no axes."""
    return list(dict.fromkeys(table[axes].itertuples(index=False, name=None))) if axes else [()]


def outcomes_of(table: pd.DataFrame) -> list[str]:
    """Name the outcomes that a table has."""
    of_genes = table["method"] != COMPOSITION
    return [name for name in OUTCOMES if name == "power" or table.loc[of_genes, name].notna().any()]


def draw(ax: Axes, table: pd.DataFrame, outcome: str, x: str, styles: dict[str, SetStyle]) -> None:
    """Draw one outcome of each method, a little beside those of others, which may have the same values."""
    values = np.unique(table[x].replace(np.inf, 0))
    apart = np.diff(values).min() if len(values) > 1 else 1.0
    width = min(BESIDE * max(np.ptp(values), apart), 0.4 * apart)
    offsets = np.linspace(-width / 2, width / 2, len(styles)) if len(styles) > 1 else [0.0]
    for offset, (method, style) in zip(offsets, styles.items(), strict=True):
        of = table[table["method"] == method].sort_values(x)
        if of[outcome].isna().all() or (outcome != "power" and method == COMPOSITION):
            continue
        at = of[x].replace(np.inf, 0) + offset
        how: Style = {"color": style.colour, "marker": style.marker, "markersize": 5, "label": METHOD_LABELS[method]}
        if outcome == "power":
            errors = np.stack([of["power"] - of["low"], of["high"] - of["power"]]).clip(min=0)
            ax.errorbar(at, of["power"], errors, capsize=2, linewidth=1.4, **how)
        else:
            ax.plot(at, of[outcome], linewidth=1.4, **how)
    ax.set_ylim(-0.03, 1.03)
    if outcome != "power":
        ax.axhline(table["fdr"].iloc[0], color=GREY, linestyle=":", linewidth=1, label="aim")
    ax.spines[["top", "right"]].set_visible(False)


def label(ax: Axes, table: pd.DataFrame, where: dict[str, float], x: str, *, top: bool) -> None:
    """Name the values of a panel, and the number of cells to sequence: above the ticks, or in the title."""
    cells = table.groupby(x)["n_cells"].first()
    finite = cells.index[np.isfinite(cells.index)]
    ax.set_xticks(finite, [f"{value:g}" for value in finite])
    ax.set_xmargin(0.08)
    title = [f"{AXIS_LABELS[axis]}: {value:g}" for axis, value in where.items() if np.isfinite(value)]
    if top and x in COSTS and len(finite):
        upper = ax.secondary_xaxis("top")
        upper.set_xticks(finite, [short(cells[value]) for value in finite], fontsize=8)
        upper.set_xlabel("cells to sequence", fontsize=8)
    elif top:
        title.append(f"{short(cells.iloc[0])} cells to sequence")
    if top:
        ax.set_title("\n".join(title), fontsize=9)


def short(number: float) -> str:
    """Write a number of cells in few letters."""
    if number < 10_000:
        return f"{number:,.0f}"
    return f"{number / 1e3:,.0f}k" if number < 1e6 else f"{number / 1e6:,.1f}M"
