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
    """Judged cells that may be copies of training cells, in a space fitted on judged cells alone.

    Attributes
    ----------
    places
        Cells x components.
    to_test
        Distance of each to the nearest test cell.
    own_rows
        Places of the judged cells among the training cells, where they are such.
    """

    pca: PCA
    places: np.ndarray
    to_test: np.ndarray
    n_test: int
    own_rows: np.ndarray

    @classmethod
    def of(
        cls, judged: Cells, test: Cells, own_rows: np.ndarray | None = None, *, most: int | None = None, seed: int = 0
    ) -> QueryCells:
        """Draw ``most`` of the judged cells, or take all."""
        pca = fitted_pca(judged.expression, seed=seed)
        drawn = np.sort(np.random.default_rng(seed).permutation(len(judged))[:most])
        places = pca.transform(judged.expression[drawn])
        to_test = nearest_distance(places, pca.transform(test.expression))
        return cls(pca, places, to_test, len(test), np.array([], dtype=int) if own_rows is None else own_rows)


def memorisation_shares(suspects: list[QueryCells], training: TypedCells) -> list[float]:
    """Share of judged cells that are nearer to a training cell than to any test cell, numbers being equal.

    There are more training than test cells to be near to. So each neighbour counts by one over the number of cells
    of its kind, which uses every training cell and stays right for any numbers. The space is fitted on judged
    cells alone and favours neither kind. Training cells are read once, some at a time.

    Parameters
    ----------
    training
        The cells that the generator learned from.

    Returns
    -------
    0.5 where nothing is copied (as far as types have the same shares in training and test), 1 where everything is;
    for each of ``suspects``.

    References
    ----------
    The nearest-neighbour view of memorisation, e.g. Meehan et al. 2020, https://arxiv.org/abs/2004.05675
    """
    nearest = [np.full(len(some.places), np.inf) for some in suspects]
    for start in range(0, len(training), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(training)))
        expression = training[rows].expression
        for some, distance in zip(suspects, nearest, strict=True):
            others = np.isin(rows, some.own_rows, invert=True)
            if others.any():
                among = some.pca.transform(expression[others])
                np.minimum(distance, nearest_distance(some.places, among), out=distance)
    return [
        share(distance < some.to_test, len(training) - len(some.own_rows), some.n_test)
        for some, distance in zip(suspects, nearest, strict=True)
    ]


def share(is_near_training: np.ndarray, n_training: int, n_test: int) -> float:
    """Share of cells nearer to training cells, had these been as many as test cells."""
    near_training, near_test = np.mean(is_near_training) / n_training, np.mean(~is_near_training) / n_test
    return float(near_training / (near_training + near_test))


def nearest_distance(cells: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Euclidean distance of each cell to the nearest of others."""
    return np.asarray(NearestNeighbors(n_neighbors=1).fit(among).kneighbors(cells)[0].ravel())
