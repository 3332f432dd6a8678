import warnings
from collections.abc import Sized
from itertools import cycle, islice
from math import ceil, sqrt

import numpy as np
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from scipy import sparse
from sklearn.neighbors import NearestNeighbors
from umap import UMAP

from bdm.evaluation.cells import Cells, sample_at_most, set_name
from bdm.evaluation.evaluate import Evaluation
from bdm.evaluation.figures.looks import shortened
from bdm.evaluation.metrics import fitted_pca
from bdm.plotting.figure import NewFigure
from bdm.threads import using_threads

MANY = 4096  # cells from which UMAP finds neighbours about, and before which exactly
MAX_NAMED, N_NAMED = 60, 40  # types that all have numbers, and those that have where there are more


def umap_figure(evaluation: Evaluation, *, new: NewFigure = Figure) -> Figure:
    """Draw one panel a set in a joint UMAP, over test cells in grey; types have colours and numbers.

    Of more types than there is room for, those of most test cells have numbers.
    """
    seed = evaluation.seed
    sets = {"test": evaluation.test, **evaluation.judged}
    most = evaluation.bounds.mapped // len(sets)
    sets = {name: sample_at_most(cells, most=most, seed=seed) for name, cells in sets.items()}
    places = dict(zip(sets, joint_umap(list(sets.values()), seed=seed), strict=True))
    cell_types = [name for name in evaluation.n_cells.index if name in evaluation.test.n_by_type]
    colours = list(islice(cycle(sc.pl.palettes.default_20), len(cell_types)))

    n_columns = ceil(sqrt(len(sets)))
    n_rows = -(-len(sets) // n_columns)
    figure = new(figsize=(4 * n_columns + 3, 4.2 * n_rows), layout="constrained")
    for i, (name, cells) in enumerate(sets.items(), start=1):
        axis = figure.add_subplot(n_rows, n_columns, i)
        axis.plot(*places["test"].T, "o", color="0.85", markersize=3, markeredgewidth=0)
        draw_types(axis, places[name], [cells.cell_type == cell_type for cell_type in cell_types], colours)
        axis.set_title(f"{set_name(name)}, {len(cells):,} cells")
    n_named = n_numbered(cell_types)
    title = None if n_named == len(cell_types) else f"{n_named} of {len(cell_types):,} types"
    handles = keys(cell_types[:n_named], colours[:n_named])
    n_keys = int(5 * figure.get_size_inches()[1])  # of one column
    columns = -(-len(handles) // n_keys)
    figure.set_figwidth(figure.get_figwidth() + 2 * (columns - 1))
    figure.legend(handles=handles, title=title, loc="outside right center", frameon=False, ncols=columns)
    return figure


def n_numbered(cell_types: Sized) -> int:
    """Tell how many cell types have numbers: all, or the first where they are too many."""
    return len(cell_types) if len(cell_types) <= MAX_NAMED else N_NAMED


@using_threads()
def joint_umap(sets: list[Cells], *, seed: int) -> list[np.ndarray]:
    """Embed all cells together, and give the places of each set (cells x 2).

    References
    ----------
    McInnes et al. 2018, https://arxiv.org/abs/1802.03426
    """
    expression = sparse.vstack([cells.expression for cells in sets]).tocsr()
    components = fitted_pca(expression, seed=seed).transform(expression)
    return np.split(umap(components, seed=seed), np.cumsum([len(cells) for cells in sets])[:-1])


def umap(components: np.ndarray, *, seed: int) -> np.ndarray:
    """Embed cells in two dimensions.

    UMAP seeks the neighbours of many cells by a method that is compiled anew in each process, for longer than it takes
    to find them exactly.
    """
    known = {"precomputed_knn": neighbours(components)} if len(components) >= MANY else {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn")
        return UMAP(min_dist=0.5, random_state=seed, n_jobs=1, **known).fit_transform(components)


def neighbours(components: np.ndarray, *, n_neighbors: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest cells of each cell, itself the first: which, and how far they are."""
    distances, cells = NearestNeighbors(n_neighbors=n_neighbors).fit(components).kneighbors(components)
    return cells, distances


def draw_types(axis: Axes, places: np.ndarray, of_types: list[np.ndarray], colours: list[str]) -> None:
    """Draw the cells of each type, then the numbers of the first in their middles."""
    for of_type, colour in zip(of_types, colours, strict=True):
        axis.plot(*places[of_type].T, "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.8)
    for number, of_type in enumerate(of_types[: n_numbered(of_types)], start=1):
        if of_type.any():
            middle = central(places[of_type])
            outline = [withStroke(linewidth=2.5, foreground="white")]
            text = {"ha": "center", "textcoords": "offset points", "weight": "bold", "fontsize": 9}
            axis.annotate(str(number), middle, (0, 3), path_effects=outline, **text)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def central(places: np.ndarray) -> np.ndarray:
    """Give the place nearest to the median, which by itself may lie between two clusters."""
    return places[np.linalg.norm(places - np.median(places, axis=0), axis=1).argmin()]


def keys(cell_types: list[str], colours: list[str]) -> list[Line2D]:
    """Explain numbers and colours."""
    return [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"{number}  {shortened(cell_type)}")
        for number, (cell_type, colour) in enumerate(zip(cell_types, colours, strict=True), start=1)
    ]
