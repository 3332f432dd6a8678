"""UMAP: of several sets of cells together, with its compiled functions kept on disk from one process to the next."""

import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import umap
import umap.distances
import umap.layouts
import umap.umap_
import umap.utils
from numba.core.dispatcher import Dispatcher
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from bdm._core.parallel import using_threads
from bdm.evaluation.cells import Cells
from bdm.evaluation.metrics import fitted_pca
from bdm.evaluation.results import COORDINATES

MANY = 1000  # cells from which on neighbours are found here


@using_threads()
def joint_umap(sets: Sequence[tuple[dict[str, str], Cells]], *, seed: int) -> pd.DataFrame:
    """Embed the cells of all sets together: ``COORDINATES``, ``cell_type``, and the columns that name each set."""
    expression = sparse.vstack([cells.expression for _, cells in sets]).tocsr()
    components = fitted_pca(expression, seed=seed).transform(expression)
    tables = [pd.DataFrame({"cell_type": cells.cell_type}).assign(**columns) for columns, cells in sets]
    coordinates = pd.DataFrame(umap_coordinates(components, seed=seed), columns=COORDINATES)
    return coordinates.join(pd.concat(tables, ignore_index=True))


def umap_coordinates(components: np.ndarray, *, seed: int) -> np.ndarray:
    """Embed cells in two dimensions, with exact neighbours where there are many cells.

    UMAP calls a function for each pair of cells, and from 4,096 cells on compiles a search; either takes longer.
    """
    exact: dict[str, Any] = {"precomputed_knn": nearest_neighbours(components)} if len(components) >= MANY else {}
    return np.asarray(fitted_umap(components, min_dist=0.5, seed=seed, **exact).embedding_)


def nearest_neighbours(components: np.ndarray, *, n_neighbors: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest cells of each cell, itself the first: their indices and distances."""
    distances, cells = NearestNeighbors(n_neighbors=n_neighbors).fit(components).kneighbors(components)
    return cells, distances


def fitted_umap(x: np.ndarray, *, min_dist: float, n_neighbors: int = 15, seed: int, **settings: Any) -> umap.UMAP:
    """Fit UMAP (McInnes et al. 2018, https://arxiv.org/abs/1802.03426), the same for the same seed."""
    keep_compiled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn")
        warnings.filterwarnings("ignore", message="Graph is not fully connected")  # types far apart, as they should be
        return umap.UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed, n_jobs=1, **settings).fit(x)


@cache
def keep_compiled() -> None:
    """Let numba keep on disk what it compiles for UMAP, which takes 10 to 15 s in each process otherwise."""
    for module in (umap.distances, umap.layouts, umap.umap_, umap.utils):
        for function in vars(module).values():
            if isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__:
                with suppress(RuntimeError):  # none of these folders can be written
                    function.enable_caching()
