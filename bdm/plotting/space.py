"""Figure of an evaluation in space: maps of cell types and genes, and Moran's I."""

from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D

from bdm._core.errors import InputError, abbreviated
from bdm.data.cells import FLOOR, GENERATED
from bdm.data.space import SECTION
from bdm.evaluation.evaluate import Evaluation
from bdm.evaluation.space_scores import SpaceScores
from bdm.plotting.style import (
    COLOURS,
    IDEAL_LINE,
    TYPE_COLOURS,
    check_class,
    documented,
    gene_label,
    new_figure,
    open_frame,
    shortened,
    show_or_return_panels,
    text_axes,
)

WIDTH, MIN_HEIGHT, MAX_HEIGHT = 2.2, 1.4, 3.4  # of a map in inches
COVERED = 0.4  # share of a map that its cells cover
OTHER = "0.9"  # colour of cell types after the first 20


@documented
def space(evaluation: Evaluation, *, name: str = GENERATED, show: bool | None = None) -> list[Axes] | None:
    """Draw maps of cell types and the most spatial genes, and Moran's I of all genes.

    Maps show real cells (training and test cells) beside generated cells, in the two largest sections. The three genes
    have the highest Moran's I in real cells.
    """
    scores = check_class(evaluation, Evaluation).space
    if not len(scores.scores):
        return show_or_return_panels(text_axes("The cells have no positions."), show=show)
    if name not in (sets := list(scores.scores["set"].unique()[1:])):
        raise InputError(f"The evaluation has no set {name!r} with positions; it has {abbreviated(sets)}.")
    cells, colours = scores.cells, colours_by_type(scores)
    columns = {gene_label(gene): x for gene, x in zip(scores.mapped_genes, scores.expression.T, strict=True)}
    if len(colours) > 1 or not columns:
        columns = {"cell type": np.array([to_rgb(colours.get(each, OTHER)) for each in cells["cell_type"]]), **columns}
    extent = cells.groupby(SECTION)[["x", "y"]].agg(np.ptp).max() + 1e-9
    height = float(np.clip(WIDTH * extent["y"] / extent["x"], MIN_HEIGHT, MAX_HEIGHT))
    figure = new_figure(WIDTH * len(columns) + 4, 2 * cells[SECTION].nunique() * height + 1)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[WIDTH * len(columns), 4])[0]
    draw_maps(left, cells, name, columns, area=72**2 * WIDTH * height)
    draw_morans(right.subplots(), scores, name)
    if len(colours) > 1:
        points = [Line2D([], [], marker="o", linestyle="", color=each) for each in colours.values()]
        right.legend(points, map(shortened, colours), loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return show_or_return_panels(figure, show=show)


def colours_by_type(scores: SpaceScores) -> dict[str, Any]:
    """Assign colours to the cell types with the most real cells."""
    n_real = scores.cells.loc[scores.cells["set"] == FLOOR, "cell_type"].value_counts()
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


def draw_morans(axis: Axes, scores: SpaceScores, name: str) -> None:
    """Draw Moran's I of each gene in generated cells against real cells."""
    table = scores.genes[scores.genes["set"] == name]
    values = scores.scores.set_index(["set", "score"])["value"]
    for column, label, colour in (("moran", "all cells", COLOURS[0]), ("moran_within", "within types", COLOURS[1])):
        known = table[[f"{column}_real", column]].dropna().to_numpy()
        if len(known):
            r, floor = (values[key, f"{column}_correlation"] for key in (name, FLOOR))
            label = f"{label}: r = {r:.2f} (floor {floor:.2f})"
            axis.plot(*known.T, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.6, label=label)
    axis.axline((0, 0), slope=1, label="as in real cells", **IDEAL_LINE)
    axis.set(xlabel="Moran's I in real cells", ylabel=f"Moran's I in {shortened(name)} cells")
    bounds = *axis.get_xlim(), *axis.get_ylim()
    axis.set(xlim=(min(bounds), max(bounds)), ylim=(min(bounds), max(bounds)), aspect="equal")
    axis.legend(loc="upper left", bbox_to_anchor=(0, 1.25), frameon=False)
    open_frame(axis)
