import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.evaluation.cells import SET_NAMES, set_name
from bdm.evaluation.evaluate import FLOOR, Evaluation
from bdm.evaluation.figures.looks import IDEALS, LABELS, looks, shortened
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import IDEAL_LINE

SCORES = ("energy", "forest_auc", "slope", "f1")
MAX_TYPES, N_WORST = 60, 40
NOTE = "in brackets: number of test cells"


def by_type_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one panel a score, one row a type, one marker a set; types of most test cells come first.

    Of more types than there is room for, the rows are those that the first generated set is worst at, and above them
    is how all types are distributed.
    """
    n_test = evaluation.n_cells["test"]
    n_test = n_test[n_test > 0]
    shown = shown_types(evaluation, n_test.index)
    heights = [1.6, 0.4 + 0.36 * len(shown)] if len(shown) < len(n_test) else [0.4 + 0.36 * len(shown)]
    figure = new(figsize=(12, 1.1 + sum(heights)), layout="constrained")
    *above, axes = figure.subplots(len(heights), len(SCORES), squeeze=False, height_ratios=heights)
    for column, score in enumerate(SCORES):
        scores = evaluation.by_type[score].unstack("set").loc[:, list(evaluation.judged)]
        draw_types(axes[column], scores.reindex(shown), ideal=IDEALS[score])
        for row in above:
            draw_distribution(row[column], scores, ideal=IDEALS[score])
        (above or [axes])[0][column].set_title(LABELS[score], fontsize=10)
    for axis in axes[1:]:
        axis.sharey(axes[0])
        axis.tick_params(labelleft=False)
    name_types(axes[0], n_test[shown])
    for row in above:
        row[0].set_ylabel("types")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False)
    note = NOTE
    if above:
        note += f"; above: all {len(n_test):,} types, below: the {len(shown)} of largest energy distance"
    figure.supxlabel(note, fontsize=9)
    return figure


def plot_types(evaluation: Evaluation, score: str, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw one of ``SCORES``, one row a type, one marker a set; of too many types those worst in energy distance."""
    n_test = evaluation.n_cells["test"]
    n_test = n_test[n_test > 0]
    shown = shown_types(evaluation, n_test.index)
    if ax is None:
        ax = new(figsize=(6, 1.6 + 0.36 * len(shown)), layout="constrained").add_subplot()
    scores = evaluation.by_type[score].unstack("set").reindex(shown)[list(evaluation.judged)]
    draw_types(ax, scores, ideal=IDEALS[score])
    name_types(ax, n_test[shown])
    ax.set_xlabel(f"{LABELS[score]}\n{NOTE}", fontsize=9)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    return ax


def name_types(axis: Axes, n_test: pd.Series) -> None:
    """Name the rows, with their numbers of test cells."""
    axis.set_yticks(range(len(n_test)), [f"{shortened(name)} ({n_cells})" for name, n_cells in n_test.items()])
    axis.set_ylim(len(n_test) - 0.5, -0.5)


def shown_types(evaluation: Evaluation, cell_types: pd.Index) -> pd.Index:
    """Choose the types of a row each: all, or those that the first generated set is worst at, the worst first."""
    if len(cell_types) <= MAX_TYPES:
        return cell_types
    judged = next(name for name in evaluation.judged if name != FLOOR)
    energy = evaluation.by_type.loc[judged, "energy"].reindex(cell_types)
    return energy.sort_values(ascending=False, kind="stable", na_position="last").index[:N_WORST]


def draw_distribution(axis: Axes, scores: pd.DataFrame, *, ideal: float) -> None:
    """Draw how many types have which score, for each set."""
    low, high = np.nanquantile(scores, [0.005, 0.995])
    bins = np.linspace(low, high, 31)
    axis.axvline(ideal, **IDEAL_LINE)
    for name, look in looks(scores).items():
        axis.hist(scores[name].dropna().clip(low, high), bins=bins, histtype="step", color=look.colour, linewidth=1.5)
    axis.spines[["top", "right"]].set_visible(False)


def draw_types(axis: Axes, scores: pd.DataFrame, *, ideal: float, names: dict[str, str] = SET_NAMES) -> None:
    """Draw one score, types x sets, with the sets of a type a little below each other, and a line at the ideal."""
    for row in range(0, len(scores), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0)
    offsets = np.linspace(-0.25, 0.25, scores.shape[1])
    for offset, (name, look) in zip(offsets, looks(scores).items(), strict=True):
        rows = np.arange(len(scores)) + offset
        axis.plot(scores[name], rows, look.marker, color=look.colour, markersize=5, label=set_name(name, names))
    axis.axvline(ideal, label="ideal", zorder=1, **IDEAL_LINE)
    axis.spines[["top", "right"]].set_visible(False)
