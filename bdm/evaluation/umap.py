"""UMAP of several sets of cells together."""

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

from bdm.embedding import fitted_umap
from bdm.evaluation.cells import Cells
from bdm.evaluation.metrics import fitted_pca
from bdm.evaluation.results import COORDINATES
from bdm.threads import using_threads

MANY = 1000  # cells from which on neighbours are found here


@using_threads()
def joint_umap(sets: list[Cells], *, seed: int) -> list[pd.DataFrame]:
    """Embed all cells together.

    Returns
    -------
    For each set a table with ``cell_type`` and ``COORDINATES`` of each cell.

    References
    ----------
    McInnes et al. 2018, https://arxiv.org/abs/1802.03426
    """
    expression = sparse.vstack([cells.expression for cells in sets]).tocsr()
    components = fitted_pca(expression, seed=seed).transform(expression)
    ends = np.cumsum([len(cells) for cells in sets])[:-1]
    return [
        pd.DataFrame(coordinates, columns=COORDINATES).assign(cell_type=cells.cell_type)
        for cells, coordinates in zip(sets, np.split(umap(components, seed=seed), ends), strict=True)
    ]


def umap(components: np.ndarray, *, seed: int) -> np.ndarray:
    """Embed cells in two dimensions.

    UMAP calls a function for each pair of cells, and from 4,096 cells on searches neighbours by a method that is
    compiled in each process; either takes longer than the exact search.
    """
    exact: dict[str, Any] = {"precomputed_knn": nearest_neighbours(components)} if len(components) >= MANY else {}
    return np.asarray(fitted_umap(components, min_dist=0.5, seed=seed, **exact).embedding_)


def nearest_neighbours(components: np.ndarray, *, n_neighbors: int = 15) -> tuple[np.ndarray, np.ndarray]:
    """Find the nearest cells of each cell, itself the first: their indices and distances."""
    distances, cells = NearestNeighbors(n_neighbors=n_neighbors).fit(components).kneighbors(components)
    return cells, distances
