"""Figures of an evaluation: scores, genes, UMAP, covariates, and maps of cells in space."""

from collections.abc import Iterable, Sequence
from itertools import cycle, islice, product
from math import ceil, sqrt
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from bdm._core.errors import InputError, abbreviated
from bdm.data.cells import FLOOR, GENERATED
from bdm.data.columns import as_names
from bdm.data.gene_tests import Agreement
from bdm.data.space import SECTION
from bdm.evaluation.evaluate import Evaluation
from bdm.evaluation.modality_scores import COORDINATES
from bdm.evaluation.table import SCORES, SPACE, TYPE, wide
from bdm.plotting.style import (
    COLOURS,
    FLOOR_LINE,
    GREY,
    HALO,
    IDEAL_LINE,
    LETTER,
    MARKERS,
    TYPE_COLOURS,
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

DRAWN = (
    *("energy", "mmd", "forest_auc", "gene_auc", "slope", "fold_change_correlation", "f1", "memorisation"),
    *("outlying_counts", "pair_correlation", "variance_ratio", "library_size_ks"),
)
N_COLUMNS = 4

SCORES_BY_TYPE = ("energy", "forest_auc", "fold_change_correlation", "f1")  # slopes within a type are mostly noise
KEY_WIDTH, KEY_HEIGHT = 0.5, 0.22  # inches of a number and its colour in the legend, and of a row
NUMBER_SIZE = 0.05  # size of a number, as a share of a panel
MAX_TYPES, N_WORST = 60, 40  # with more than MAX_TYPES types, only N_WORST have rows or numbers


def set_styles(sets: Iterable[str]) -> dict[str, Style]:
    """Assign labels, colours and markers to sets; the floor is grey and comes first."""
    names = list(sets)
    styles: dict[str, Style] = {FLOOR: {"label": FLOOR, "color": GREY, "marker": "d"}} if FLOOR in names else {}
    generated = [name for name in names if name != FLOOR]
    for name, colour, marker in zip(generated, cycle(COLOURS), cycle(MARKERS), strict=False):
        styles[name] = {"label": shortened(name), "color": colour, "marker": marker}
    return {name: {"linestyle": "", **style} for name, style in styles.items()}


# ---- scores


@draws(Evaluation, "overall")
def scores(evaluation: Evaluation) -> Figure:
    """Draw the scores of generated cells, with floor and ideal.

    Scores without values, such as F1 of a single cell type, are left out.

    Examples
    --------
    ::

        bdm.pl.scores(model.evaluate(adata_test=adata_test))
        bdm.pl.scores(bdm.Evaluation.load("evaluation"))
    """
    overall = evaluation.overall
    known = [score for score in DRAWN if score in overall.index and overall.loc[score].notna().any()]
    figure = new_figure(2.6 * N_COLUMNS, -(-len(known) // N_COLUMNS) * (1.0 + 0.4 * overall.shape[1]))
    axes = panels(figure, len(known), n_columns=N_COLUMNS, sharey=True)
    for axis, score in zip(axes, known, strict=True):
        draw_score(axis, overall.loc[score], score)
    draw_legend(figure, axes[0], loc="outside lower center", ncols=2)
    return figure


def draw_score(axis: Axes, values: pd.Series, score: str) -> None:
    """Draw one score, one row per set, with lines at floor and ideal."""
    axis.axvline(values[FLOOR], label="floor (real cells)", **FLOOR_LINE)
    axis.axvline(np.nan_to_num(SCORES[score].ideal, nan=values[FLOOR]), label="ideal", **IDEAL_LINE)
    for row, (name, style) in enumerate(set_styles(values.index).items()):
        point = values[name], row
        axis.hlines(row, values[FLOOR], values[name], color=style["color"], linewidth=1.2)
        axis.plot(*point, style["marker"], color=style["color"], markersize=7)
        text = axis.annotate(f"{values[name]:.3f}", point, (0, 6), textcoords="offset points", ha="center", fontsize=8)
        text.set_path_effects([HALO])
    axis.margins(x=0.2)
    axis.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10], min_n_ticks=3))  # labels do not touch
    axis.tick_params(axis="x", labelsize=8)
    axis.set_yticks(range(len(values)), [*map(shortened, values.index)])
    axis.set_ylim(len(values) - 0.5, -0.8)
    axis.set_title(SCORES[score].name, fontsize=10)
    open_frame(axis)


@draws(Evaluation, "by_type")
def scores_by_type(evaluation: Evaluation) -> Figure:
    """Draw the scores of each cell type, with the floor.

    Types are sorted by number of test cells. With more types than rows, the types with the largest energy distance in
    the first generated set are drawn. Scores without values are left out.
    """
    n_test = evaluation.n_cells["test"]
    n_test = n_test[n_test > 0]
    cell_types = select_types(evaluation, n_test.index)
    table = evaluation.scores_of(TYPE)
    by_score = {score: wide(table[table["score"] == score], "group") for score in SCORES_BY_TYPE}
    known = [score for score, values in by_score.items() if values.notna().any(axis=None)]
    figure = new_figure(3 * max(len(known), 2), 1.5 + 0.36 * len(cell_types))
    axes = figure.subplots(1, len(known), squeeze=False, sharey=True)[0]
    for axis, score in zip(axes, known, strict=True):
        draw_scores_by_type(axis, by_score[score].reindex(cell_types), ideal=SCORES[score].ideal)
        axis.set_title(SCORES[score].name, fontsize=10)
    name_rows(axes[0], [f"{shortened(name)} ({n_cells})" for name, n_cells in n_test[cell_types].items()])
    draw_legend(figure, axes[0])
    left_out = f"; the {len(cell_types)} of {len(n_test):,} types with the largest energy distance"
    note = "in brackets: number of test cells" + (left_out if len(cell_types) < len(n_test) else "")
    figure.supxlabel(note, fontsize=9)
    return figure


def select_types(evaluation: Evaluation, cell_types: pd.Index) -> pd.Index:
    """Select the types to draw: all, or the types with the worst energy distance."""
    if len(cell_types) <= MAX_TYPES:
        return cell_types
    table = evaluation.scores_of(TYPE)
    is_first = (table["set"] == evaluation.sets[1]) & (table["score"] == "energy")
    energy = table[is_first].set_index("group")["value"].reindex(cell_types)
    return energy.sort_values(ascending=False, kind="stable", na_position="last").index[:N_WORST]


def draw_scores_by_type(axis: Axes, values: pd.DataFrame, *, ideal: float) -> None:
    """Draw one score, types x sets, with shifted markers per set.

    Generated cells are in front of the floor.
    """
    shade_rows(axis, len(values))
    offsets = np.linspace(-0.25, 0.25, values.shape[1])
    for offset, (name, style) in zip(offsets, set_styles(values).items(), strict=True):
        rows = np.arange(len(values)) + offset
        axis.plot(values[name], rows, markersize=5, zorder=2 if name == FLOOR else 3 - offset, **style)
    axis.axvline(ideal, label="ideal", zorder=1, **IDEAL_LINE)
    open_frame(axis)


# ---- genes


@draws(Evaluation, "genes")
def genes(evaluation: Evaluation) -> Figure:
    """Draw statistics of each gene in generated cells against test cells.

    The floor is drawn behind.
    """
    by_set = {name: agreement_by_title(evaluation, name) for name in evaluation.sets}
    floor = by_set.pop(FLOOR)
    styles = set_styles(evaluation.sets)
    figure = new_figure(3.4 * len(floor), 3.6 * len(by_set))
    axes = figure.subplots(len(by_set), len(floor), squeeze=False)
    for row, name in zip(axes, by_set, strict=True):
        for axis, (title, agreement) in zip(row, by_set[name].items(), strict=True):
            draw_genes(axis, floor[title], styles[FLOOR])
            draw_genes(axis, agreement, styles[name])
            axis.set(title=title, xlabel="test cells", ylabel=styles[name]["label"])
            draw_equality(axis, scale=2)
    return figure


def agreement_by_title(evaluation: Evaluation, name: str) -> dict[str, Agreement]:
    """Collect the statistics of genes in a set, by title of the panel."""
    statistics, changes = (
        table[table["set"] == name] for table in (evaluation.gene_statistics, evaluation.fold_changes)
    )
    columns = {
        "mean of log1p(CP10k)": statistics[["mean", "mean_test"]],
        "variance of log1p(CP10k)": statistics[["variance", "variance_test"]],
        "fraction of zeros": statistics[["zero_fraction", "zero_fraction_test"]],
        "log2 fold change of markers": changes[["log2_fold_change", "log2_fold_change_test"]],
    }
    return {title: Agreement(*table.to_numpy().T) for title, table in columns.items() if len(table)}


def draw_genes(axis: Axes, agreement: Agreement, style: Style) -> None:
    """Draw one point per gene."""
    points = {**style, "label": f"{style['label']}, r = {agreement.correlation:.3f}"}
    axis.plot(agreement.test, agreement.query, markersize=2.5, markeredgewidth=0, alpha=0.6, **points)


# ---- cells


@draws(Evaluation, "umap")
def umap(evaluation: Evaluation) -> Figure:
    """Draw a joint UMAP, one panel per set, with test cells in grey behind.

    Types have colours and numbers; with many types, only those with the most test cells have numbers. A single type is
    coloured by its sub-populations, if they are known.
    """
    table = evaluation.embedding
    coordinates = {name: table.loc[table["set"] == name, COORDINATES].to_numpy() for name in ["test", *evaluation.sets]}
    n_test = evaluation.n_compared["test"]
    label, groups = "cell_type", n_test.index[n_test > 0].tolist()
    if len(groups) == 1 and "sub_population" in table:
        label = "sub_population"
        groups = sorted(table.loc[table["set"] == "test", label].unique(), key=lambda name: (len(name), name))
    n_numbered = len(groups) if len(groups) <= MAX_TYPES else N_WORST
    colours = list(islice(cycle(TYPE_COLOURS), len(groups)))

    n_columns = 3 if len(coordinates) == 3 else ceil(sqrt(len(coordinates)))
    n_rows = -(-len(coordinates) // n_columns)
    keys = [f"{number}  {shortened(group)}" for number, group in enumerate(groups[:n_numbered], start=1)]
    n_columns_of_keys = max(int(4 * n_columns / (KEY_WIDTH + LETTER * max(map(len, keys)))), 1)
    height = 4 * n_rows + KEY_HEIGHT * (-(-len(keys) // n_columns_of_keys) + 1)
    figure = new_figure(4 * n_columns, height)
    for i, name in enumerate(coordinates, start=1):
        labels = table.loc[table["set"] == name, label].to_numpy()
        axis = figure.add_subplot(n_rows, n_columns, i)
        axis.plot(*coordinates["test"].T, "o", color="0.85", markersize=3, markeredgewidth=0)
        draw_groups(axis, [coordinates[name][labels == group] for group in groups], colours, n_numbered=n_numbered)
        axis.set_title(f"{shortened(name)}, {len(labels):,} cells")
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=key)
        for key, colour in zip(keys, colours, strict=False)
    ]
    title = None if n_numbered == len(groups) else f"{n_numbered} of {len(groups):,} types"
    figure.legend(handles=handles, title=title, loc="outside lower center", frameon=False, ncols=n_columns_of_keys)
    return figure


def draw_groups(axis: Axes, groups: list[np.ndarray], colours: Sequence[Sequence[float]], *, n_numbered: int) -> None:
    """Draw the cells of each group (cells x 2), and number the first groups.

    Numbers are near the median of a group, apart from each other.
    """
    for cells, colour in zip(groups, colours, strict=True):
        axis.plot(*cells.T, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.8)
    text: Style = {"ha": "center", "textcoords": "offset points", "weight": "bold", "fontsize": 9}
    positions: list[np.ndarray] = []
    for number, cells in enumerate(groups[:n_numbered], start=1):
        if len(cells):  # at a cell, as the median may lie between two clusters
            order = np.linalg.norm(cells - np.median(cells, axis=0), axis=1).argsort(kind="stable")
            free = np.ones(len(cells), dtype=bool)
            for position in positions:
                free &= np.linalg.norm((cells - position) / axis.dataLim.size, axis=1) > NUMBER_SIZE
            positions.append(cells[order[free[order].argmax()]])
            axis.annotate(str(number), tuple(positions[-1]), (0, 3), path_effects=[HALO], **text)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


# ---- along covariates

N_GENES, GENES_PER_ROW = 6, 3  # drawn along a covariate by default


@draws(Evaluation, "covariates")
def covariates(
    evaluation: Evaluation,
    genes: str | Sequence[str] = (),
    *,
    covariate: str | None = None,
    name: str = GENERATED,
) -> Figure | str:
    """Draw the expression of genes along a covariate, with test cells and floor.

    Points are means in bins with equal numbers of test cells, and bars are two standard errors.

    Parameters
    ----------
    genes
        Genes of the table ``along``, which has the most variable genes; by default, the first six.
    covariate
        Name of the covariate; by default, the first.
    """
    table = evaluation.along
    if not len(table):
        return "The cells have no covariates."
    covariate, genes = covariate or str(table["covariate"].iloc[0]), list(as_names(genes))
    known = list(dict.fromkeys(table.loc[table["covariate"] == covariate, "gene"]))
    for noun, requested, available in (
        ("covariate", [covariate], list(dict.fromkeys(table["covariate"]))),
        ("set", [name], evaluation.sets),
        (f"gene along {covariate}", genes, known),
    ):
        if unknown := [each for each in requested if each not in available]:
            names = abbreviated(available, n_shown=12)
            raise InputError(f"The evaluation has no {noun} {unknown[0]!r}; it has {names}.")
    table, chosen = table[table["covariate"] == covariate], genes or known[:N_GENES]
    figure = new_figure(3.0 * min(GENES_PER_ROW, len(chosen)), 0.8 + 2.1 * -(-len(chosen) // GENES_PER_ROW))
    styles: dict[str, Style] = {
        FLOOR: {"label": "floor (real training cells)", "color": GREY, "marker": "d", "markersize": 4},
        "test": {"label": "test cells", "color": "black", "marker": "o", "markersize": 4, "linestyle": ""},
        name: {**set_styles(evaluation.sets)[name], "marker": "s", "markersize": 3.5, "linestyle": "-"},
    }
    axes = panels(figure, len(chosen), n_columns=GENES_PER_ROW)
    for axis, gene in zip(axes, chosen, strict=True):
        for key, style in styles.items():
            rows = table[(table["gene"] == gene) & (table["set"] == key)]
            axis.errorbar(rows["value"], rows["mean"], 2 * rows["error"], elinewidth=0.8, linewidth=1, **style)
        axis.set_title(gene_label(gene), fontsize=10)
        open_frame(axis)
    draw_legend(figure, axes[0])
    figure.supxlabel(shortened(covariate), fontsize=9)
    figure.supylabel("mean log1p(CP10k)", fontsize=9)
    return figure


# ---- in space

WIDTH, MIN_HEIGHT, MAX_HEIGHT = 2.2, 1.4, 3.4  # of a map in inches
COVERED = 0.4  # share of a map that its cells cover
OTHER = "0.9"  # colour of cell types after the first 20


@draws(Evaluation, "space")
def space(evaluation: Evaluation, *, name: str = GENERATED) -> Figure | str:
    """Draw maps of cell types and the most spatial genes, and Moran's I of all genes.

    Maps show real cells (training and test cells) beside as many generated cells, in the two largest sections. The
    three genes have the highest Moran's I in real cells.
    """
    maps = evaluation.space
    if maps is None:
        return "The cells have no positions."
    cells, colours = maps.cells, colours_by_type(maps.cells)
    if name not in (sets := list(cells["set"].unique()[1:])):
        raise InputError(f"The evaluation has no set {name!r} with positions; it has {abbreviated(sets)}.")
    columns = {gene_label(gene): x for gene, x in zip(maps.mapped_genes, maps.expression.T, strict=True)}
    if len(colours) > 1 or not columns:
        columns = {"cell type": np.array([to_rgb(colours.get(each, OTHER)) for each in cells["cell_type"]]), **columns}
    extent = cells.groupby(SECTION)[["x", "y"]].agg(np.ptp).max() + 1e-9
    height = float(np.clip(WIDTH * extent["y"] / extent["x"], MIN_HEIGHT, MAX_HEIGHT))
    figure = new_figure(WIDTH * len(columns) + 4, 2 * cells[SECTION].nunique() * height + 1)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[WIDTH * len(columns), 4])[0]
    draw_maps(left, cells, name, columns, area=72**2 * WIDTH * height)
    draw_morans(right.subplots(), evaluation, name)
    if len(colours) > 1:
        points = [Line2D([], [], marker="o", linestyle="", color=each) for each in colours.values()]
        right.legend(points, map(shortened, colours), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def colours_by_type(cells: pd.DataFrame) -> dict[str, Any]:
    """Assign colours to the cell types with the most real cells."""
    n_real = cells.loc[cells["set"] == FLOOR, "cell_type"].value_counts()
    colours = dict(zip(n_real.index, TYPE_COLOURS, strict=False))
    return colours if len(colours) == len(n_real) else {**colours, "other types": OTHER}


def draw_maps(
    figure: SubFigure, cells: pd.DataFrame, name: str, columns: dict[str, np.ndarray], *, area: float
) -> None:
    """Draw maps of colours or numbers of ``cells``, one column each; ``area`` of a map is in square points."""
    is_real = (cells["set"] == FLOOR).to_numpy()
    sections = cells.loc[is_real, SECTION].unique()
    maps = list(product(sections, {FLOOR: "real", name: shortened(name)}.items()))
    axes = figure.subplots(len(maps), len(columns), squeeze=False)
    for axis, (section, (_, label)) in zip(axes[:, 0], maps, strict=True):
        axis.set_ylabel(f"{shortened(section)}: {label}" if len(sections) > 1 else f"{label} cells")
    for column, (title, values) in zip(axes.T, columns.items(), strict=True):
        scale = {"vmin": 0, "vmax": np.quantile(values[is_real], 0.99)} if values.ndim == 1 else {}
        for axis, (section, (key, _)) in zip(column, maps, strict=True):
            rows = np.flatnonzero((cells[SECTION] == section) & (cells["set"] == key))
            size = np.clip(COVERED * area / max(len(rows), 1), 0.3, 40)
            x, y = cells.loc[rows, ["x", "y"]].to_numpy().T
            points = axis.scatter(x, y, s=size, c=values[rows], linewidths=0, **scale)
            axis.set(xticks=[], yticks=[], aspect="equal")
            axis.spines[:].set_visible(False)
        column[0].set_title(title, fontsize=10)
        if scale:
            figure.colorbar(points, ax=list(column), location="bottom", label="log1p of normalised counts")


def draw_morans(axis: Axes, evaluation: Evaluation, name: str) -> None:
    """Draw Moran's I of each gene in generated cells against real cells."""
    assert evaluation.space is not None
    genes, scores = evaluation.space.genes, evaluation.scores_of(SPACE)
    table, values = genes[genes["set"] == name], scores[scores["set"] == name].set_index("score")
    for column, label, colour in (("moran", "all cells", COLOURS[0]), ("moran_within", "within types", COLOURS[1])):
        known = table[[f"{column}_real", column]].dropna().to_numpy()
        if len(known):
            r, floor = values.loc[f"{column}_correlation", ["value", "floor"]]
            label = f"{label}: r = {r:.2f} (floor {floor:.2f})"
            axis.plot(*known.T, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.6, label=label)
    axis.axline((0, 0), slope=1, label="as in real cells", **IDEAL_LINE)
    axis.set(xlabel="Moran's I in real cells", ylabel=f"Moran's I in {shortened(name)} cells")
    bounds = *axis.get_xlim(), *axis.get_ylim()
    axis.set(xlim=(min(bounds), max(bounds)), ylim=(min(bounds), max(bounds)), aspect="equal")
    axis.legend(loc="upper left", bbox_to_anchor=(0, 1.25), frameon=False)
    open_frame(axis)
