"""UMAP, with its compiled functions kept on disk from one process to the next."""

import warnings
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import umap
import umap.distances
import umap.layouts
import umap.umap_
import umap.utils
from numba.core.dispatcher import Dispatcher


def fitted_umap(x: np.ndarray, *, min_dist: float, n_neighbors: int = 15, seed: int, **settings: Any) -> umap.UMAP:
    """Fit UMAP to x (cells x dimensions) on one thread, and the same way for the same seed.

    References
    ----------
    McInnes et al. 2018, https://arxiv.org/abs/1802.03426
    """
    keep_compiled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn")
        warnings.filterwarnings("ignore", message="Graph is not fully connected")  # types far apart, as they should be
        return umap.UMAP(n_neighbors=n_neighbors, min_dist=min_dist, random_state=seed, n_jobs=1, **settings).fit(x)


@cache
def keep_compiled() -> None:
    """Let numba keep on disk what it compiles for UMAP, which takes 10 to 15 s in each process otherwise.

    Numba chooses the folder: that of ``NUMBA_CACHE_DIR``, or the package's, or one in the user's cache.
    """
    for module in (umap.distances, umap.layouts, umap.umap_, umap.utils):
        for function in vars(module).values():
            if isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__:
                with suppress(RuntimeError):  # none of these folders can be written
                    function.enable_caching()
