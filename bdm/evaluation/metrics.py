"""Metrics: classifiers and agreement, and the joint principal components in which cells are compared."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy import sparse
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
