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
from bdm.evaluation.cells import COORDINATES, Cells
from bdm.evaluation.metrics import fitted_pca

MANY = 1000  # cells from which on neighbours are found here


@using_threads()
def joint_umap(sets: Sequence[tuple[dict[str, str], Cells]], *, seed: int) -> pd.DataFrame:
    """Embed the cells of all sets together: ``COORDINATES``, ``cell_type``, and the columns that name each set."""
    expression = sparse.vstack([cells.expression for _, cells in sets]).tocsr()
    components = fitted_pca(expression, seed=seed).transform(expression)
    tables = [pd.DataFrame({"cell_type": cells.cell_type}).assign(**columns) for columns, cells in sets]
    exact: dict[str, Any] = {}
    if len(components) >= MANY:  # UMAP calls a function for each pair, or compiles a search; either takes longer
        distances, nearest = NearestNeighbors(n_neighbors=15).fit(components).kneighbors(components)
        exact["precomputed_knn"] = nearest, distances
    embedding = fitted_umap(components, min_dist=0.5, seed=seed, **exact).embedding_
    return pd.DataFrame(embedding, columns=COORDINATES).join(pd.concat(tables, ignore_index=True))


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
