"""Energy distances between cells at times that were left out and what stands for them.

Distances between cells are Euclidean, each cell with itself included, in log1p of counts per thousand of the 1,000
genes that vary most among all cells. So halves of the real cells are no nearer than their number allows.
"""

from collections.abc import Mapping

import numpy as np
from anndata import AnnData
from scipy.spatial.distance import cdist

from bdm._core.seeds import numpy_generator

N_GENES = 1000
N_NEAREST = 100  # cells that stand for a sample

Rows = list[dict[str, object]]


def variable_genes(cells: AnnData) -> np.ndarray:
    """Columns of the genes that vary most."""
    return np.argsort(-log_normalised(cells, slice(None)).var(axis=0), kind="stable")[:N_GENES]


def log_normalised(cells: AnnData, genes: slice | np.ndarray) -> np.ndarray:
    """Log1p of counts per thousand, cells x genes."""
    size = np.maximum(np.asarray(cells.X.sum(axis=1)).ravel(), 1)
    return np.log1p(np.asarray(cells.X[:, genes].todense()) / size[:, None] * 1e3)


def energy(x: np.ndarray, y: np.ndarray) -> float:
    """Energy distance of two sets of cells, with distances of each cell to itself."""
    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


def scored(found: Mapping[str, AnnData], real: AnnData, seed: int, genes: slice | np.ndarray = slice(None)) -> Rows:
    """Score the cells of each method, and halves of the real cells, in all genes or some."""
    truth = log_normalised(real, genes)
    halves = np.array_split(truth[numpy_generator(seed, "halves").permutation(len(truth))], 2)
    values = {"halves": energy(*halves)}
    values |= {name: energy(log_normalised(cells, genes), truth) for name, cells in found.items()}
    return [{"n_cells": real.n_obs, "method": name, "value": value} for name, value in values.items()]
