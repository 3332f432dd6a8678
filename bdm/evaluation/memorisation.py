"""Memorisation: whether generated cells lie nearer to training cells than to test cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from bdm.evaluation.cells import Cells, TypedCells
from bdm.evaluation.metrics import fitted_pca

BLOCK = 20_000  # training cells in memory at a time


@dataclass(frozen=True)
class QueryCells:
    """Query cells in principal components that are fitted to the query cells alone.

    Attributes
    ----------
    coordinates
        Cells x components.
    distance_to_test
        Distance of each query cell to the nearest test cell.
    training_rows
        Indices among the training cells of query cells that are training cells themselves, as in the floor.
    """

    pca: PCA
    coordinates: np.ndarray
    distance_to_test: np.ndarray
    n_test: int
    training_rows: np.ndarray

    @classmethod
    def project(
        cls,
        query: Cells,
        test: Cells,
        training_rows: np.ndarray | None = None,
        *,
        most: int | None = None,
        seed: int = 0,
    ) -> QueryCells:
        """Project ``most`` of the query cells, drawn at random, or all."""
        pca = fitted_pca(query.expression, seed=seed)
        sampled = np.sort(np.random.default_rng(seed).permutation(len(query))[:most])
        coordinates = pca.transform(query.expression[sampled])
        distance_to_test = nearest_distance(coordinates, pca.transform(test.expression))
        rows = np.array([], dtype=int) if training_rows is None else training_rows
        return cls(pca, coordinates, distance_to_test, len(test), rows)


def memorisation_shares(queries: list[QueryCells], training: TypedCells) -> list[float]:
    """Share of query cells that are nearer to a training cell than to any test cell, at equal numbers.

    There are more training cells than test cells, so a training cell is more often the nearest. Therefore each
    neighbour counts by one over the number of cells of its kind, which uses every training cell and is right for any
    numbers. The principal components are fitted to query cells alone and favour neither kind. Training cells are read
    once, in blocks.

    Parameters
    ----------
    training
        The cells that the model was fitted to.

    Returns
    -------
    For each of ``queries``, 0.5 without memorisation (as far as types have the same shares in training and test cells),
    and 1 where all cells are copies of training cells.

    References
    ----------
    The nearest-neighbour view of memorisation, e.g. Meehan et al. 2020, https://arxiv.org/abs/2004.05675
    """
    nearest = [np.full(len(query.coordinates), np.inf) for query in queries]
    for start in range(0, len(training), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(training)))
        expression = training[rows].expression
        for query, distance in zip(queries, nearest, strict=True):
            others = np.isin(rows, query.training_rows, invert=True)
            if others.any():
                neighbours = query.pca.transform(expression[others])
                np.minimum(distance, nearest_distance(query.coordinates, neighbours), out=distance)
    return [
        share(distance < query.distance_to_test, len(training) - len(query.training_rows), query.n_test)
        for query, distance in zip(queries, nearest, strict=True)
    ]


def share(is_near_training: np.ndarray, n_training: int, n_test: int) -> float:
    """Share of cells that would be nearer to training cells if there were as many test cells."""
    near_training, near_test = np.mean(is_near_training) / n_training, np.mean(~is_near_training) / n_test
    return float(near_training / (near_training + near_test))


def nearest_distance(cells: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Euclidean distance of each cell to the nearest of others."""
    return np.asarray(NearestNeighbors(n_neighbors=1).fit(among).kneighbors(cells)[0].ravel())
