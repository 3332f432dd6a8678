import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from bdm.evaluation.cells import set_name
from bdm.evaluation.evaluate import FLOOR, Evaluation
from bdm.evaluation.figures.looks import GREY, IDEALS, LABELS, looks
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import IDEAL_LINE

FLOOR_LINE = {"color": GREY, "linewidth": 1.2}
LINES = {"floor (real training cells)": FLOOR_LINE, "ideal": IDEAL_LINE}


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
    figure.legend(handles=line_keys(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_score(evaluation: Evaluation, score: str, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw one of the scores in ``LABELS``, one row a set."""
    overall = evaluation.overall
    if ax is None:
        ax = new(figsize=(5, 1.2 + 0.4 * overall.shape[1]), layout="constrained").add_subplot()
    draw_score(ax, overall.loc[score], ideal=IDEALS[score])
    name_sets(ax, overall.columns)
    ax.set_title(LABELS[score], fontsize=10)
    ax.legend(handles=line_keys(), loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    return ax


def name_sets(axis: Axes, sets: pd.Index) -> None:
    """Name the rows."""
    axis.set_yticks(range(len(sets)), map(set_name, sets))
    axis.set_ylim(len(sets) - 0.5, -0.8)


def line_keys() -> list[Line2D]:
    """Explain the lines of the floor and of the ideal."""
    return [Line2D([], [], label=label, **look) for label, look in LINES.items()]


def draw_score(axis: Axes, scores: pd.Series, *, ideal: float) -> None:
    """Draw one score of every set."""
    axis.axvline(ideal, **IDEAL_LINE)
    axis.axvline(scores[FLOOR], **FLOOR_LINE)
    for row, (name, look) in enumerate(looks(scores.index).items()):
        place = scores[name], row
        axis.hlines(row, scores[FLOOR], scores[name], color=look.colour, linewidth=1.2)
        axis.plot(*place, look.marker, color=look.colour, markersize=7)
        text = axis.annotate(f"{scores[name]:.3f}", place, (0, 6), textcoords="offset points", ha="center", fontsize=8)
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])
    axis.margins(x=0.2)
    axis.spines[["top", "right"]].set_visible(False)
