"""Energy distances between left-out and generated cells.

Distances are Euclidean, in log1p counts per thousand of the 1,000 most variable genes. They are unbiased, so halves of
the real cells have a distance of 0 on average.
"""

from collections.abc import Mapping

import numpy as np
from anndata import AnnData

from bdm._core.seeds import numpy_generator
from bdm.evaluation.metrics import energy_distance, pair_distances

N_GENES = 1000
N_NEAREST = 100  # number of neighbouring cells

Rows = list[dict[str, object]]


def variable_genes(cells: AnnData) -> np.ndarray:
    """Return the columns of the most variable genes."""
    return np.argsort(-log_normalised(cells, slice(None)).var(axis=0), kind="stable")[:N_GENES]


def log_normalised(cells: AnnData, genes: slice | np.ndarray) -> np.ndarray:
    """Return log1p counts per thousand, cells x genes."""
    size = np.maximum(np.asarray(cells.X.sum(axis=1)).ravel(), 1)
    return np.log1p(np.asarray(cells.X[:, genes].todense()) / size[:, None] * 1e3)


def sample_rows(rows: np.ndarray, n: int, generator: np.random.Generator) -> np.ndarray:
    """Sample ``n`` rows, and repeat none before all are used, as repeated cells would have a distance of 0."""
    return np.resize(generator.permutation(rows), n)


def scored(generated: Mapping[str, AnnData], real: AnnData, seed: int, genes: slice | np.ndarray = slice(None)) -> Rows:
    """Score the cells of each method, and halves of the real cells."""
    truth = log_normalised(real, genes)
    halves = np.array_split(truth[numpy_generator(seed, "halves").permutation(len(truth))], 2)
    values = {"halves": energy_distance(pair_distances(*halves), len(halves[0]))}
    for name, cells in generated.items():
        values[name] = energy_distance(pair_distances(log_normalised(cells, genes), truth), cells.n_obs)
    return [{"n_cells": real.n_obs, "method": name, "value": value} for name, value in values.items()]
