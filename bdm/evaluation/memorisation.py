"""Memorisation: whether query cells are nearer to training cells than to test cells, at equal numbers of each type."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from bdm.evaluation.cells import Cells, TypedCells
from bdm.evaluation.metrics import fitted_pca

BLOCK = 20_000  # training cells in memory at a time


@dataclass(frozen=True)
class Neighbours:
    """The nearest of some cells to each query cell: its distance, infinite where there is none, and its cell type."""

    distance: np.ndarray
    cell_type: np.ndarray

    @classmethod
    def find(cls, coordinates: np.ndarray, among: np.ndarray, cell_type: np.ndarray) -> Neighbours:
        """Find them among cells of given coordinates and types."""
        if not len(among):
            return cls(np.full(len(coordinates), np.inf), np.full(len(coordinates), "", dtype=object))
        distance, index = NearestNeighbors(n_neighbors=1).fit(among).kneighbors(coordinates)
        return cls(distance.ravel(), cell_type[index.ravel()].astype(object))

    def nearer(self, other: Neighbours) -> Neighbours:
        """Take the nearer of two neighbours of each query cell, the first where they are equally near."""
        is_nearer = other.distance < self.distance
        return Neighbours(
            np.where(is_nearer, other.distance, self.distance), np.where(is_nearer, other.cell_type, self.cell_type)
        )


@dataclass(frozen=True)
class QueryCells:
    """Query cells in principal components that are fitted to the query cells alone, which favour neither other kind."""

    pca: PCA
    coordinates: np.ndarray  # cells x components
    nearest_test: Neighbours
    n_test: pd.Series  # by type
    training_rows: np.ndarray  # of query cells that are training cells, as in the floor

    @classmethod
    def project(
        cls, query: Cells, test: Cells, training_rows: np.ndarray, *, most: int | None = None, seed: int = 0
    ) -> QueryCells:
        """Project ``most`` of the query cells, drawn at random, or all."""
        pca = fitted_pca(query.expression, seed=seed)
        sampled = np.sort(np.random.default_rng(seed).permutation(len(query))[:most])
        coordinates = pca.transform(query.expression[sampled])
        nearest_test = Neighbours.find(coordinates, pca.transform(test.expression), test.cell_type)
        return cls(pca, coordinates, nearest_test, test.n_by_type, training_rows)

    def nearest_in(self, block: Cells, rows: np.ndarray) -> Neighbours:
        """Find the nearest training cells in a block, of types that have test cells, but not the query cells."""
        others = np.flatnonzero(~np.isin(rows, self.training_rows) & np.isin(block.cell_type, self.n_test.index))
        among = self.pca.transform(block.expression[others]) if len(others) else np.empty((0, 0))
        return Neighbours.find(self.coordinates, among, block.cell_type[others])


def memorisation_of(queries: Sequence[QueryCells], training: TypedCells) -> pd.DataFrame:
    """Measure the memorisation of sets of query cells, and its standard deviation without any; a row for each.

    Share of query cells that are nearer to a training cell than to any test cell, at equal numbers of each type: 0.5
    without memorisation, and 1 where all cells are copies. Training cells are read once, in blocks; those of types
    without test cells are left out. The nearest-neighbour view: e.g. Meehan et al. 2020, arXiv 2004.05675.
    """
    nearest = [Neighbours.find(query.coordinates, np.empty(0), np.empty(0)) for query in queries]
    for start in range(0, len(training), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(training)))
        block = training[rows]
        nearest = [found.nearer(query.nearest_in(block, rows)) for query, found in zip(queries, nearest, strict=True)]
    return pd.DataFrame([compared(query, found, training) for query, found in zip(queries, nearest, strict=True)])


def compared(query: QueryCells, nearest_training: Neighbours, training: TypedCells) -> dict[str, float]:
    """Compare the nearest training cells and test cells within their types, whatever their numbers.

    Without memorisation, a neighbour of a type with n training and m test cells is a training cell with odds n / m. How
    many times larger the odds are is the ratio of two sums over neighbours: of m / (n + m) over training cells, and of
    n / (n + m) over test cells (Mantel and Haenszel 1959, Journal of the National Cancer Institute 22:719-748).
    """
    own = pd.Series(training.cell_type[query.training_rows], dtype=str).value_counts()
    n_training = training.n_by_type.reindex(query.n_test.index, fill_value=0).sub(own, fill_value=0)
    test = query.nearest_test
    is_training = nearest_training.distance < test.distance
    neighbour = np.where(is_training, nearest_training.cell_type, test.cell_type)
    expected = (n_training / (n_training + query.n_test)).loc[neighbour].to_numpy()  # share of training cells
    of_training, of_test = (1 - expected)[is_training].sum(), expected[~is_training].sum()
    information = (expected * (1 - expected)).sum()  # about the logarithm of the odds
    share = float(of_training / (of_training + of_test))
    return {"memorisation": share, "memorisation_chance": float(0.25 / np.sqrt(information))}
