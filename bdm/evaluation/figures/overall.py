import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from bdm.evaluation.evaluate import FLOOR, Evaluation
from bdm.evaluation.figures.looks import GREY, IDEALS, LABELS, looks
from bdm.plotting.figure import NewFigure

NOTE = "grey line: floor (real training cells); dotted line: ideal"


def overall_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one panel a score, one row a set, with a line at the floor and a dotted one at the ideal."""
    overall = evaluation.overall
    n_columns = 5
    n_rows = -(-len(LABELS) // n_columns)
    figure = new(figsize=(2.6 * n_columns, n_rows * (1.0 + 0.4 * overall.shape[1])), layout="constrained")
    axes = figure.subplots(n_rows, n_columns, sharey=True)
    for axis, score in zip(axes.flat, LABELS, strict=True):
        draw_score(axis, overall.loc[score], ideal=IDEALS[score])
        axis.set_title(LABELS[score], fontsize=10)
    name_sets(axes.flat[0], overall.columns)
    figure.supxlabel(NOTE, fontsize=9)
    return figure


def plot_score(evaluation: Evaluation, score: str, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw one of the scores in ``LABELS``, one row a set."""
    overall = evaluation.overall
    if ax is None:
        ax = new(figsize=(5, 1.2 + 0.4 * overall.shape[1]), layout="constrained").add_subplot()
    draw_score(ax, overall.loc[score], ideal=IDEALS[score])
    name_sets(ax, overall.columns)
    ax.set_title(LABELS[score], fontsize=10)
    ax.set_xlabel(NOTE, fontsize=9)
    return ax


def name_sets(axis: Axes, sets: pd.Index) -> None:
    """Name the rows."""
    axis.set_yticks(range(len(sets)), sets)
    axis.set_ylim(len(sets) - 0.5, -0.8)


def draw_score(axis: Axes, scores: pd.Series, *, ideal: float) -> None:
    """Draw one score of every set."""
    axis.axvline(ideal, color="black", linewidth=0.8, linestyle=":")
    axis.axvline(scores[FLOOR], color=GREY, linewidth=1.2)
    for row, (name, look) in enumerate(looks(scores.index).items()):
        place = scores[name], row
        axis.hlines(row, scores[FLOOR], scores[name], color=look.colour, linewidth=1.2)
        axis.plot(*place, look.marker, color=look.colour, markersize=7)
        text = axis.annotate(f"{scores[name]:.3f}", place, (0, 6), textcoords="offset points", ha="center", fontsize=8)
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)
