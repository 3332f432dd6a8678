"""Metrics: distances with what chance gives to them, classifiers, agreement, components, memorisation, and UMAP."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.stats import pearson3
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bdm.evaluation.cells import Cells, TypedCells

TINY = np.finfo(float).tiny


def fitted_pca(expression: sparse.csr_matrix, *, n_components: int = 30, seed: int = 0) -> PCA:
    """Principal components of cells (cells x genes), unscaled.

    Cells that they are fitted to spread wider along them than others, so fit them to both compared sets, or to neither.
    """
    n_components = min(n_components, min(expression.shape) - 1)
    return PCA(n_components, svd_solver="arpack", random_state=seed).fit(expression)


def joint_components(
    query: sparse.csr_matrix, test: sparse.csr_matrix, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of two sets of cells, fitted on both together."""
    pca = fitted_pca(sparse.vstack([query, test]).tocsr(), seed=seed)
    return pca.transform(query), pca.transform(test)


@dataclass(frozen=True)
class Agreement:
    """Values of the same things in query cells and in test cells, and how well they agree."""

    query: np.ndarray
    test: np.ndarray

    @classmethod
    def pooled(cls, agreements: Iterable[Agreement]) -> Agreement:
        """Join the values of several."""
        pairs = [(np.empty(0), np.empty(0)), *((one.query, one.test) for one in agreements)]
        return cls(*map(np.concatenate, zip(*pairs, strict=True)))

    def subset(self, index: np.ndarray) -> Agreement:
        """Select some of the values."""
        return Agreement(self.query[index], self.test[index])

    @property
    def correlation(self) -> float:
        """Pearson correlation; NaN where either is constant, or there are fewer than two values."""
        if len(self.test) < 2:
            return float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.corrcoef(self.test, self.query)[0, 1])

    def correlation_chance(self, *, independent: float) -> float:
        """Compute the standard deviation of its difference from another's, by the share of values that are independent.

        Fisher 1915, Biometrika 10:507-521.
        """
        return float((1 - self.correlation**2) * np.sqrt(2 / max(independent * len(self.test) - 3, 1)))

    @property
    def slope(self) -> float:
        """Slope of the least-squares line of query values on test values; NaN where the correlation is."""
        if len(self.test) < 2:
            return float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.cov(self.test, self.query)[0, 1] / np.var(self.test, ddof=1))

    @property
    def rmse(self) -> float:
        """Root of the mean squared difference."""
        return float(np.sqrt(np.mean((self.query - self.test) ** 2)))

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference."""
        return float(np.mean(np.abs(self.query - self.test)))


N_TREES = 100  # of a random forest
CLASSIFIER_BLOCK = 10_000  # cells with all genes that are predicted at a time


def forest(*, by_tree: int | None = None, seed: int) -> ClassifierMixin:
    """Random forest, for a few dimensions; each tree is fitted to ``by_tree`` sampled cells, or to as many as all."""
    return RandomForestClassifier(n_estimators=N_TREES, max_samples=by_tree, random_state=seed)


def linear_classifier() -> ClassifierMixin:
    """Logistic regression on standardised genes, with a penalty that suits more genes than cells."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))


def cross_validated_probabilities(
    classifier: ClassifierMixin,
    query: np.ndarray | sparse.csr_matrix,
    test: np.ndarray | sparse.csr_matrix,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Probability of being a query cell, of query and test cells, by a classifier not fitted to the cell (five folds).

    The AUC of the one against the other is 0.5 where the classifier cannot distinguish them. Lopez-Paz and Oquab 2017,
    Revisiting Classifier Two-Sample Tests, https://arxiv.org/abs/1610.06545.
    """
    is_query = np.repeat([True, False], [query.shape[0], test.shape[0]])
    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=seed)
    features = np.concatenate([cells if isinstance(cells, np.ndarray) else cells.toarray() for cells in (query, test)])
    _, probability = cross_val_predict(classifier, features, is_query, cv=folds, method="predict_proba").T
    return probability[is_query], probability[~is_query]


def classifier_f1(query: Cells, test: Cells) -> dict[str, float]:
    """F1 of each type of test cells by a classifier fitted to query cells; NaN where there is one type.

    Esteban et al. 2017, Train on Synthetic, Test on Real, https://arxiv.org/abs/1706.02633.
    """
    cell_types = np.unique(test.cell_type)
    if len(cell_types) == len(np.unique(query.cell_type)) == 1:
        return {str(cell_types[0]): float("nan")}
    classifier = linear_classifier().fit(query.expression.toarray(), query.cell_type)
    blocks = np.split(np.arange(len(test)), range(CLASSIFIER_BLOCK, len(test), CLASSIFIER_BLOCK))
    predicted = np.concatenate([classifier.predict(test.expression[rows].toarray()) for rows in blocks])
    f1 = f1_score(test.cell_type, predicted, labels=cell_types, average=None, zero_division=0)
    return dict(zip(cell_types.tolist(), f1.tolist(), strict=True))


# ---- distances


@dataclass(frozen=True)
class Chance:
    """What chance gives to a score without a difference: its standard deviation around 0, and its skewness."""

    deviation: float
    skewness: float = 0.0

    def largest(self, level: float) -> float:
        """Value that is exceeded with a probability of ``level``, by a Pearson distribution of type III."""
        return float(self.deviation * pearson3.isf(level, max(self.skewness, 0.0)))


@dataclass(frozen=True)
class PairDistances:
    """Euclidean distances between all pairs of samples of two sets, x and y."""

    matrix: np.ndarray  # samples of x, then those of y, by the same
    n: int  # number of samples of x

    @classmethod
    def between(cls, x: np.ndarray, y: np.ndarray) -> PairDistances:
        """Compute them from coordinates, samples x dimensions."""
        both = np.concatenate([x, y])
        return cls(cdist(both, both), len(x))

    @property
    def within_x(self) -> np.ndarray:
        """Distances between samples of x."""
        return self.matrix[: self.n, : self.n]

    @property
    def within_y(self) -> np.ndarray:
        """Distances between samples of y."""
        return self.matrix[self.n :, self.n :]

    @property
    def across(self) -> np.ndarray:
        """Distances of samples of x to samples of y."""
        return self.matrix[: self.n, self.n :]

    @cached_property
    def spread(self) -> float:
        """Mean distance between two samples of y, in units of the space; above 0, also where all are the same."""
        return float(max(mean_of_pairs(self.within_y), TINY))

    @property
    def energy(self) -> float:
        """Energy distance, see :func:`energy_distance`."""
        return float(2 * self.across.mean() - mean_of_pairs(self.within_x) - self.spread)

    @property
    def energy_with_themselves(self) -> float:
        """Energy distance with the distances of samples to themselves, which is never negative, and biased."""
        return float(2 * self.across.mean() - self.within_x.mean() - self.within_y.mean())

    @cached_property
    def energy_chance(self) -> Chance:
        """Energy distance if samples are assigned to x and y at random, in closed form.

        The eigenvalues of the centred distances weight the chi-squared variables whose sum the energy distance of
        samples of one distribution is. Unbiased centring: Székely and Rizzo 2014, https://doi.org/10.1214/14-AOS1255.
        """
        n_x, n_y = self.across.shape
        n = n_x + n_y
        if n < 4:
            return Chance(np.nan, np.nan)
        sums = self.matrix.sum(axis=0) / (n - 2)
        centred = (self.matrix - sums - sums[:, None] + sums.sum() / (n - 1)).astype(np.float32)
        np.fill_diagonal(centred, 0)
        squares = max(float(np.vdot(centred, centred)), TINY)
        cubes = -float(np.vdot(centred @ centred, centred))  # minus, as a distance is the opposite of a product
        deviation = (1 / n_x + 1 / n_y) * np.sqrt(2 * squares / (n * (n - 3)))
        return Chance(float(deviation), float(np.sqrt(8) * cubes / squares**1.5))

    @property
    def energy_error(self) -> float:
        """Standard error of the energy distance, by the influence of each sample on it."""
        n_x, n_y = self.across.shape
        of_x = self.across.mean(axis=1) - self.within_x.sum(axis=1) / (n_x - 1)
        of_y = self.across.mean(axis=0) - self.within_y.sum(axis=1) / (n_y - 1)
        return float(2 * np.sqrt(of_x.var(ddof=1) / n_x + of_y.var(ddof=1) / n_y))

    @property
    def maximum_mean_discrepancy(self) -> float:
        """Squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance; unbiased.

        Gretton et al. 2012, Journal of Machine Learning Research 13:723-773.
        """
        squared = self.matrix**2
        width = max(np.median(squared[np.triu_indices(len(squared), k=1)]), TINY)
        kernel = np.exp(-squared / (2 * width))
        n = self.n
        return float(mean_of_pairs(kernel[:n, :n]) + mean_of_pairs(kernel[n:, n:]) - 2 * kernel[:n, n:].mean())


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Energy distance between two samples, ``2 E|x - y| - E|x - x'| - E|y - y'|``; NaN with fewer than two of either.

    Unbiased, so it may be slightly negative: Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018.
    """
    return PairDistances.between(x, y).energy


def mean_of_pairs(matrix: np.ndarray) -> float:
    """Mean of a square matrix without its diagonal: over pairs of different samples; NaN with fewer than two."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1))) if n > 1 else float("nan")


# ---- memorisation

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
        distance, nearer = np.minimum(self.distance, other.distance), other.distance < self.distance
        return Neighbours(distance, np.where(nearer, other.cell_type, self.cell_type))


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

    It is the share of query cells that are nearer to a training cell than to any test cell, at equal numbers of each
    type, of types with test cells: 0.5 without memorisation, and 1 where all cells are copies. E.g. Meehan et al. 2020,
    arXiv 2004.05675.
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


# ---- UMAP

N_NEIGHBOURS, MANY = 15, 1000  # of a cell, and cells from which on neighbours are found here


def umap_of(x: np.ndarray, *, seed: int) -> np.ndarray:
    """Embed by UMAP (McInnes et al. 2018, https://arxiv.org/abs/1802.03426), the same for the same seed."""
    import umap  # late, as it takes seconds to import

    exact: dict[str, Any] = {}
    if len(x) >= MANY:  # UMAP calls a function for each pair, or compiles a search; either takes longer
        distances, nearest = NearestNeighbors(n_neighbors=N_NEIGHBOURS).fit(x).kneighbors(x)
        exact["precomputed_knn"] = nearest, distances
    keep_compiled()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="precomputed_knn")
        warnings.filterwarnings("ignore", message="Graph is not fully connected")  # types far apart, as they should be
        fitted = umap.UMAP(n_neighbors=N_NEIGHBOURS, min_dist=0.5, random_state=seed, n_jobs=1, **exact).fit(x)
    return np.asarray(fitted.embedding_)


@cache
def keep_compiled() -> None:
    """Let numba keep on disk what it compiles for UMAP, which takes 10 to 15 s in each process otherwise."""
    import umap
    from numba.core.dispatcher import Dispatcher

    for module in (umap.distances, umap.layouts, umap.umap_, umap.utils):
        for function in vars(module).values():
            if isinstance(function, Dispatcher) and function.py_func.__module__ == module.__name__:
                with suppress(RuntimeError):  # none of these folders can be written
                    function.enable_caching()
