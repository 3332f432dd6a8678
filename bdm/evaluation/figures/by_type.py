import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.evaluation.evaluate import Evaluation
from bdm.evaluation.figures.looks import IDEALS, LABELS, looks, shortened

SCORES = ("energy", "forest_auc", "slope", "f1")


def by_type_figure(evaluation: Evaluation) -> Figure:
    """Draw one panel a score, one row a type, one marker a set; types of most test cells come first."""
    n_test = evaluation.n_cells["test"]
    n_test = n_test[n_test > 0]
    figure = Figure(figsize=(12, 1.5 + 0.36 * len(n_test)), layout="constrained")
    axes = figure.subplots(1, len(SCORES), sharey=True)
    for axis, score in zip(axes, SCORES, strict=True):
        scores = evaluation.by_type[score].unstack("set").loc[:, list(evaluation.judged)]
        draw_types(axis, scores.reindex(n_test.index), ideal=IDEALS[score])
        axis.set_title(LABELS[score], fontsize=10)
    axes[0].set_yticks(range(len(n_test)), [f"{shortened(name)} ({n})" for name, n in n_test.items()])
    axes[0].set_ylim(len(n_test) - 0.5, -0.5)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False)
    figure.supxlabel("dotted line: ideal; in brackets: number of test cells", fontsize=9)
    return figure


def draw_types(axis: Axes, scores: pd.DataFrame, *, ideal: float) -> None:
    """Draw one score, types x sets, with the sets of a type a little below each other."""
    axis.axvline(ideal, color="black", linewidth=0.8, linestyle=":")
    for row in range(0, len(scores), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0)
    offsets = np.linspace(-0.25, 0.25, scores.shape[1])
    for offset, (name, look) in zip(offsets, looks(scores).items(), strict=True):
        rows = np.arange(len(scores)) + offset
        axis.plot(scores[name], rows, look.marker, color=look.colour, markersize=5, label=name)
    axis.spines[["top", "right"]].set_visible(False)
