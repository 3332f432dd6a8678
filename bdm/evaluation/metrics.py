"""Metrics: distances, classifiers and agreement, in a joint principal component space."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bdm.evaluation.cells import Cells


def fitted_pca(expression: sparse.csr_matrix, *, n_components: int = 30, seed: int = 0) -> PCA:
    """Principal components of cells (cells x genes), unscaled.

    Cells that the components were fitted on spread wider along them than held-out cells do. So fit them on both
    sets to be compared, equal in number, or on neither of the two.
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

    @property
    def correlation(self) -> float:
        """Pearson correlation; NaN where either is constant, or there are fewer than two values."""
        if len(self.test) < 2:
            return float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.corrcoef(self.test, self.query)[0, 1])

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


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Energy distance between two samples, ``2 E|x - y| - E|x - x'| - E|y - y'|``.

    Unbiased: 0 on average for samples of one distribution, so it may be slightly negative.

    Parameters
    ----------
    x, y
        Samples x dimensions; the numbers of samples may differ.

    Returns
    -------
    The distance in units of the space; NaN with fewer than two samples of either.

    References
    ----------
    Székely and Rizzo 2013, Journal of Statistical Planning and Inference, https://doi.org/10.1016/j.jspi.2013.03.018
    """
    return float(2 * cdist(x, y).mean() - mean_of_pairs(cdist(x, x)) - mean_of_pairs(cdist(y, y)))


def maximum_mean_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance; unbiased.

    Parameters
    ----------
    x, y
        Samples x dimensions; the numbers of samples may differ.

    Returns
    -------
    A number without unit, slightly negative at times; NaN with fewer than two samples of either.

    References
    ----------
    Gretton et al. 2012, Journal of Machine Learning Research 13:723-773
    """
    pooled = np.concatenate([x, y])
    squared = cdist(pooled, pooled, "sqeuclidean")
    width = max(np.median(squared[np.triu_indices(len(pooled), k=1)]), np.finfo(float).tiny)
    kernel = np.exp(-squared / (2 * width))
    n = len(x)
    return float(mean_of_pairs(kernel[:n, :n]) + mean_of_pairs(kernel[n:, n:]) - 2 * kernel[:n, n:].mean())


def spread(x: np.ndarray) -> float:
    """Mean distance between two samples of one set, in units of the space; NaN with fewer than two."""
    return mean_of_pairs(cdist(x, x))


def mean_of_pairs(matrix: np.ndarray) -> float:
    """Mean of a square matrix without its diagonal: over pairs of different samples."""
    n = len(matrix)
    return (matrix.sum() - np.trace(matrix)) / (n * (n - 1)) if n > 1 else float("nan")


CLASSIFIER_BLOCK = 10_000  # cells with all genes that are predicted at a time
QUERY_CLASS = 1  # column of probabilities: the classes are False and True, in this order


def forest(*, by_tree: int | None = None, seed: int) -> ClassifierMixin:
    """Random forest, for a few dimensions; each tree is fitted to ``by_tree`` sampled cells, or to as many as all."""
    return RandomForestClassifier(n_estimators=100, max_samples=by_tree, random_state=seed)


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
    """Classify query cells against test cells, each cell by a classifier that was not fitted to it (five folds).

    Parameters
    ----------
    query, test
        Cells x dimensions, equal in number.

    Returns
    -------
    The probability of being a query cell, for the query cells and for the test cells. The area under the ROC curve of
    the one against the other is 0.5 where the classifier cannot distinguish them.

    References
    ----------
    Lopez-Paz and Oquab 2017, Revisiting Classifier Two-Sample Tests, https://arxiv.org/abs/1610.06545
    """
    is_query = np.repeat([True, False], [query.shape[0], test.shape[0]])
    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=seed)
    features = np.concatenate([cells if isinstance(cells, np.ndarray) else cells.toarray() for cells in (query, test)])
    by_class = cross_val_predict(classifier, features, is_query, cv=folds, method="predict_proba")
    probabilities = by_class[:, QUERY_CLASS]
    return probabilities[is_query], probabilities[~is_query]


def typing_f1(query: Cells, test: Cells) -> dict[str, float]:
    """Fit a classifier of cell types to query cells, and test it on test cells.

    Returns
    -------
    F1 of each type of ``test``; 0 for a type that ``query`` lacks, and NaN where there is one type in all.

    References
    ----------
    Esteban et al. 2017, Train on Synthetic, Test on Real, https://arxiv.org/abs/1706.02633
    """
    cell_types = np.unique(test.cell_type)
    if len(cell_types) == len(np.unique(query.cell_type)) == 1:
        return {str(cell_types[0]): float("nan")}
    classifier = linear_classifier().fit(query.expression.toarray(), query.cell_type)
    blocks = np.split(np.arange(len(test)), range(CLASSIFIER_BLOCK, len(test), CLASSIFIER_BLOCK))
    predicted = np.concatenate([classifier.predict(test.expression[rows].toarray()) for rows in blocks])
    f1 = f1_score(test.cell_type, predicted, labels=cell_types, average=None, zero_division=0)
    return dict(zip(cell_types.tolist(), f1.tolist(), strict=True))
