"""Metrics: distances with what chance gives to them, classifiers, agreement, and joint principal components."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.stats import pearson3
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bdm.evaluation.cells import Cells

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
        nothing = cls(np.empty(0), np.empty(0))
        agreements = [nothing, *agreements]
        return cls(
            query=np.concatenate([agreement.query for agreement in agreements]),
            test=np.concatenate([agreement.test for agreement in agreements]),
        )

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
        """Compute the standard deviation of its difference from another set's (Fisher 1915, Biometrika 10:507-521).

        ``independent`` is the share of the values that are independent of each other.
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
QUERY_CLASS = 1  # column of probabilities: the classes are False and True, in this order


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
    by_class = cross_val_predict(classifier, features, is_query, cv=folds, method="predict_proba")
    probabilities = by_class[:, QUERY_CLASS]
    return probabilities[is_query], probabilities[~is_query]


def typing_f1(query: Cells, test: Cells) -> dict[str, float]:
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
        """Mean distance between two samples of y, in units of the space."""
        return mean_of_pairs(self.within_y)

    @property
    def energy(self) -> float:
        """Energy distance, see :func:`energy_distance`."""
        return float(2 * self.across.mean() - mean_of_pairs(self.within_x) - self.spread)

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
