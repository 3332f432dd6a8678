"""Scores of an evaluation, overall and by cell type, with its genes and UMAP; the floor is drawn with every set."""

from collections.abc import Sized
from itertools import cycle, islice
from math import ceil, sqrt

import numpy as np
import pandas as pd
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bdm.errors import InputError
from bdm.evaluation.cells import FLOOR
from bdm.evaluation.metrics import Agreement
from bdm.evaluation.results import COORDINATES, Evaluation
from bdm.evaluation.scores import SCORE_NAMES
from bdm.plotting.style import (
    GREY,
    HALO,
    IDEAL_LINE,
    NewFigure,
    SetStyle,
    Style,
    panels,
    set_styles,
    shade_rows,
    shortened,
)

IDEALS = {
    "energy": 0,
    "mmd": 0,
    "forest_auc": 0.5,
    "gene_auc": 0.5,
    "slope": 1,
    "fold_change_correlation": 1,
    "f1": 1,
    "memorisation": 0.5,
    "pair_correlation": 1,
    "library_size_ks": 0,
}
LABELS = {score: SCORE_NAMES[score] for score in IDEALS}

FLOOR_LINE: Style = {"color": GREY, "linewidth": 1.2}
LINES = {"floor (real training cells)": FLOOR_LINE, "ideal": IDEAL_LINE}

SCORES_BY_TYPE = ("energy", "forest_auc", "slope", "f1")
MAX_TYPES, N_WORST = 60, 40
MAX_NUMBERED, N_NUMBERED = 60, 40  # types that all have numbers, and those that have numbers where there are more
NOTE = "in brackets: number of test cells"


def overall_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one panel a score, one row a set, with a line at the floor and a dotted one at the ideal.

    Scores that are not known of any set, as F1 of a single cell type, have no panel.
    """
    overall = evaluation.overall
    known = [score for score in LABELS if overall.loc[score].notna().any()]
    n_columns = 5
    n_rows = -(-len(known) // n_columns)
    figure = new(figsize=(2.6 * n_columns, n_rows * (1.0 + 0.4 * overall.shape[1])), layout="constrained")
    axes = panels(figure, len(known), n_columns=n_columns, sharey=True)
    for axis, score in zip(axes, known, strict=True):
        draw_score(axis, overall.loc[score], ideal=IDEALS[score])
        axis.set_title(LABELS[score], fontsize=10)
    label_sets(axes[0], overall.columns)
    figure.legend(handles=line_handles(), loc="outside lower center", ncols=2, frameon=False)
    return figure


def plot_score(evaluation: Evaluation, score: str, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw one of the scores in ``LABELS``, one row a set.

    Raises
    ------
    InputError
        If the score is not known of any set.
    """
    overall = evaluation.overall
    check_known(overall.loc[score], score)
    if ax is None:
        ax = new(figsize=(5, 1.2 + 0.4 * overall.shape[1]), layout="constrained").add_subplot()
    draw_score(ax, overall.loc[score], ideal=IDEALS[score])
    label_sets(ax, overall.columns)
    ax.set_title(LABELS[score], fontsize=10)
    ax.legend(handles=line_handles(), loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2, frameon=False)
    return ax


def check_known(values: pd.Series | pd.DataFrame, score: str) -> None:
    """Reject a score that is not known, as scores that compare cell types are where there is one type."""
    if not np.isfinite(values.to_numpy(dtype=float)).any():
        raise InputError(
            f"The evaluation has no {LABELS[score]}, which compares cell types, as there is one cell type."
        )


def label_sets(axis: Axes, sets: pd.Index) -> None:
    """Label the rows with the names of the sets."""
    axis.set_yticks(range(len(sets)), list(sets))
    axis.set_ylim(len(sets) - 0.5, -0.8)


def line_handles() -> list[Line2D]:
    """Explain the lines of the floor and of the ideal."""
    return [Line2D([], [], label=label, **style) for label, style in LINES.items()]


def draw_score(axis: Axes, scores: pd.Series, *, ideal: float) -> None:
    """Draw one score of every set."""
    axis.axvline(ideal, **IDEAL_LINE)
    axis.axvline(scores[FLOOR], **FLOOR_LINE)
    for row, (name, style) in enumerate(set_styles(scores.index).items()):
        point = scores[name], row
        axis.hlines(row, scores[FLOOR], scores[name], color=style.colour, linewidth=1.2)
        axis.plot(*point, style.marker, color=style.colour, markersize=7)
        text = axis.annotate(f"{scores[name]:.3f}", point, (0, 6), textcoords="offset points", ha="center", fontsize=8)
        text.set_path_effects([HALO])
    axis.margins(x=0.2)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], min_n_ticks=3))  # whose labels do not touch
    axis.tick_params(axis="x", labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)


def by_type_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one panel a score, one row a type, one marker a set; the types with the most test cells come first.

    Where there are more types than rows, the types with the largest energy distance of the first generated set are
    drawn, and above them the distribution over all types. Scores that are not known of any type have no panel.
    """
    known = [score for score in SCORES_BY_TYPE if evaluation.by_type[score].notna().any()]
    n_test = evaluation.n_cells["test"]
    n_test = n_test[n_test > 0]
    cell_types = types_to_draw(evaluation, n_test.index)
    heights = [1.6, 0.4 + 0.36 * len(cell_types)] if len(cell_types) < len(n_test) else [0.4 + 0.36 * len(cell_types)]
    figure = new(figsize=(3 * max(len(known), 2), 1.1 + sum(heights)), layout="constrained")
    *above, axes = figure.subplots(len(heights), len(known), squeeze=False, height_ratios=heights)
    for column, score in enumerate(known):
        scores = evaluation.by_type[score].unstack("set").loc[:, evaluation.sets]
        draw_scores_by_type(axes[column], scores.reindex(cell_types), ideal=IDEALS[score])
        for row in above:
            draw_distribution(row[column], scores, ideal=IDEALS[score])
        (above or [axes])[0][column].set_title(LABELS[score], fontsize=10)
    for axis in axes[1:]:
        axis.sharey(axes[0])
        axis.tick_params(labelleft=False)
    label_types(axes[0], n_test[cell_types])
    for row in above:
        row[0].set_ylabel("types")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=8, frameon=False)
    note = NOTE
    if above:
        note += f"; above: all {len(n_test):,} types, below: the {len(cell_types)} of largest energy distance"
    figure.supxlabel(note, fontsize=9)
    return figure


def plot_types(evaluation: Evaluation, score: str, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw one of ``SCORES_BY_TYPE``, one row a type, one marker a set, of the types to draw.

    Raises
    ------
    InputError
        If the score is not known of any type.
    """
    check_known(evaluation.by_type[score], score)
    n_test = evaluation.n_cells["test"]
    n_test = n_test[n_test > 0]
    cell_types = types_to_draw(evaluation, n_test.index)
    if ax is None:
        ax = new(figsize=(6, 1.6 + 0.36 * len(cell_types)), layout="constrained").add_subplot()
    scores = evaluation.by_type[score].unstack("set").reindex(cell_types)[evaluation.sets]
    draw_scores_by_type(ax, scores, ideal=IDEALS[score])
    label_types(ax, n_test[cell_types])
    ax.set_xlabel(f"{LABELS[score]}\n{NOTE}", fontsize=9)
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False)
    return ax


def label_types(axis: Axes, n_test: pd.Series) -> None:
    """Label the rows with the cell types and their numbers of test cells."""
    axis.set_yticks(range(len(n_test)), [f"{shortened(name)} ({n_cells})" for name, n_cells in n_test.items()])
    axis.set_ylim(len(n_test) - 0.5, -0.5)


def types_to_draw(evaluation: Evaluation, cell_types: pd.Index) -> pd.Index:
    """Choose the types to draw: all, or the types of the largest energy distance of the first generated set."""
    if len(cell_types) <= MAX_TYPES:
        return cell_types
    first = next(name for name in evaluation.sets if name != FLOOR)
    energy = evaluation.by_type.loc[first, "energy"].reindex(cell_types)
    return energy.sort_values(ascending=False, kind="stable", na_position="last").index[:N_WORST]


def draw_distribution(axis: Axes, scores: pd.DataFrame, *, ideal: float) -> None:
    """Draw the distribution of a score over cell types, for each set."""
    low, high = np.nanquantile(scores, [0.005, 0.995])
    bins = np.linspace(low, high, 31).tolist()
    axis.axvline(ideal, **IDEAL_LINE)
    for name, style in set_styles(scores).items():
        axis.hist(scores[name].dropna().clip(low, high), bins=bins, histtype="step", color=style.colour, linewidth=1.5)
    axis.spines[["top", "right"]].set_visible(False)


def draw_scores_by_type(axis: Axes, scores: pd.DataFrame, *, ideal: float) -> None:
    """Draw one score, types x sets, with the sets of a type a little below each other, and a line at the ideal.

    The marks of generated cells are in front of the marks of all other sets.
    """
    shade_rows(axis, len(scores))
    offsets = np.linspace(-0.25, 0.25, scores.shape[1])
    for offset, (name, style) in zip(offsets, set_styles(scores).items(), strict=True):
        rows = np.arange(len(scores)) + offset
        mark: Style = {"color": style.colour, "markersize": 5, "zorder": 2 if name == FLOOR else 3 - offset}
        axis.plot(scores[name], rows, style.marker, label=name, **mark)
    axis.axvline(ideal, label="ideal", zorder=1, **IDEAL_LINE)
    axis.spines[["top", "right"]].set_visible(False)


def genes_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one row a generated set, one panel a statistic of genes, against test cells; the floor is drawn below."""
    by_set = {name: gene_panels(evaluation, name) for name in evaluation.sets}
    floor = by_set.pop(FLOOR)
    styles = set_styles(evaluation.sets)
    figure = new(figsize=(3.4 * len(floor), 3.6 * len(by_set)), layout="constrained")
    axes = figure.subplots(len(by_set), len(floor), squeeze=False)
    for row, name in zip(axes, by_set, strict=True):
        for axis, (title, agreement) in zip(row, by_set[name].items(), strict=True):
            draw_genes(axis, floor[title], styles[FLOOR], label=FLOOR)
            draw_genes(axis, agreement, styles[name], label=name)
            axis.axline((0, 0), slope=1, label="as in test cells", **IDEAL_LINE)
            axis.set(title=title, xlabel="test cells", ylabel=name)
            axis.legend(loc="upper left", frameon=False, handletextpad=0.4, handlelength=1.2, markerscale=2)
            axis.spines[["top", "right"]].set_visible(False)
    return figure


def gene_panels(evaluation: Evaluation, name: str) -> dict[str, Agreement]:
    """Compare the genes of a set with the genes of as many test cells, by the title of the panel."""
    genes, changes = (table[table["set"] == name] for table in (evaluation.gene_statistics, evaluation.fold_changes))
    columns = {
        "mean of log1p(CP10k)": genes[["mean", "mean_test"]],
        "variance of log1p(CP10k)": genes[["variance", "variance_test"]],
        "fraction of zeros": genes[["zero_fraction", "zero_fraction_test"]],
        "log2 fold change of markers": changes[["log2_fold_change", "log2_fold_change_test"]],
    }
    return {title: Agreement(*table.to_numpy().T) for title, table in columns.items() if len(table)}


def draw_genes(axis: Axes, agreement: Agreement, style: SetStyle, *, label: str) -> None:
    """Draw one point a gene."""
    axis.plot(
        agreement.test,
        agreement.query,
        style.marker,
        color=style.colour,
        markersize=2.5,
        markeredgewidth=0,
        alpha=0.6,
        label=f"{label}, r = {agreement.correlation:.3f}",
    )


def umap_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one panel a set in a joint UMAP, over test cells in grey; types have colours and numbers.

    Where there are too many types, the types with the most test cells have numbers.
    """
    table = evaluation.embedding
    coordinates = {name: table.loc[table["set"] == name, COORDINATES].to_numpy() for name in ["test", *evaluation.sets]}
    n_test = evaluation.n_compared["test"]
    cell_types = n_test.index[n_test > 0].tolist()
    colours = list(islice(cycle(sc.pl.palettes.default_20), len(cell_types)))

    n_columns = ceil(sqrt(len(coordinates)))
    n_rows = -(-len(coordinates) // n_columns)
    figure = new(figsize=(4 * n_columns + 3, 4.2 * n_rows), layout="constrained")
    for i, name in enumerate(coordinates, start=1):
        types = table.loc[table["set"] == name, "cell_type"].to_numpy()
        axis = figure.add_subplot(n_rows, n_columns, i)
        axis.plot(*coordinates["test"].T, "o", color="0.85", markersize=3, markeredgewidth=0)
        draw_cells_by_type(axis, coordinates[name], [types == cell_type for cell_type in cell_types], colours)
        axis.set_title(f"{name}, {len(types):,} cells")
    n_keys = n_numbered(cell_types)
    title = None if n_keys == len(cell_types) else f"{n_keys} of {len(cell_types):,} types"
    handles = keys(cell_types[:n_keys], colours[:n_keys])
    keys_of_column = int(5 * figure.get_size_inches()[1])
    columns = -(-len(handles) // keys_of_column)
    figure.set_figwidth(figure.get_figwidth() + 2 * (columns - 1))
    figure.legend(handles=handles, title=title, loc="outside right center", frameon=False, ncols=columns)
    return figure


def n_numbered(cell_types: Sized) -> int:
    """Return how many cell types have numbers: all, or the first ones where there are too many."""
    return len(cell_types) if len(cell_types) <= MAX_NUMBERED else N_NUMBERED


def draw_cells_by_type(axis: Axes, coordinates: np.ndarray, of_types: list[np.ndarray], colours: list[str]) -> None:
    """Draw the cells of each type, then the numbers of the first in their middles."""
    for of_type, colour in zip(of_types, colours, strict=True):
        axis.plot(*coordinates[of_type].T, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.8)
    for number, of_type in enumerate(of_types[: n_numbered(of_types)], start=1):
        if of_type.any():
            x, y = most_central(coordinates[of_type])
            text: Style = {"ha": "center", "textcoords": "offset points", "weight": "bold", "fontsize": 9}
            axis.annotate(str(number), (x, y), (0, 3), path_effects=[HALO], **text)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def most_central(coordinates: np.ndarray) -> np.ndarray:
    """Return the coordinates nearest to the median, which may itself lie between two clusters."""
    distance = np.linalg.norm(coordinates - np.median(coordinates, axis=0), axis=1)
    return np.asarray(coordinates[distance.argmin()])


def keys(cell_types: list[str], colours: list[str]) -> list[Line2D]:
    """Explain numbers and colours."""
    return [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"{number}  {shortened(cell_type)}")
        for number, (cell_type, colour) in enumerate(zip(cell_types, colours, strict=True), start=1)
    ]
