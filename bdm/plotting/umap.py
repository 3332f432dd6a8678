"""Cells of several sets in one joint UMAP."""

from collections.abc import Sized
from itertools import cycle, islice
from math import ceil, sqrt

import numpy as np
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from bdm.evaluation.cells import set_name
from bdm.evaluation.results import COORDINATES, Evaluation
from bdm.plotting.figure import NewFigure
from bdm.plotting.style import HALO, Style, shortened

MAX_NUMBERED, N_NUMBERED = 60, 40  # types that all have numbers, and those that have numbers where there are more


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
        axis.set_title(f"{set_name(name)}, {len(types):,} cells")
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
