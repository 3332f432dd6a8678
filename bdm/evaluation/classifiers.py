import numpy as np
from scipy import sparse
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from bdm.evaluation.cells import Cells

BLOCK = 10_000  # cells with all genes that are predicted at a time


def forest(*, by_tree: int | None = None, seed: int) -> ClassifierMixin:
    """Random forest, for a few dimensions; each tree learns from a draw of ``by_tree`` cells, or of as many as all."""
    return RandomForestClassifier(n_estimators=100, max_samples=by_tree, random_state=seed)


def linear_classifier() -> ClassifierMixin:
    """Logistic regression on standardised genes, with a penalty that suits more genes than cells."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))


def chances_of_being_judged(
    classifier: ClassifierMixin,
    judged: np.ndarray | sparse.csr_matrix,
    test: np.ndarray | sparse.csr_matrix,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Let a classifier tell judged from real cells, each by a model that was not shown the cell (five folds).

    Parameters
    ----------
    judged, test
        Cells x dimensions, equal in number.

    Returns
    -------
    The probability of being a judged cell, for the judged and for the test cells. The area under the ROC curve of
    the one against the other is 0.5 where they cannot be told apart.

    References
    ----------
    Lopez-Paz and Oquab 2017, Revisiting Classifier Two-Sample Tests, https://arxiv.org/abs/1610.06545
    """
    is_judged = np.repeat([True, False], [judged.shape[0], test.shape[0]])
    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=seed)
    features = sparse.vstack([judged, test]).toarray() if sparse.issparse(test) else np.concatenate([judged, test])
    chances = cross_val_predict(classifier, features, is_judged, cv=folds, method="predict_proba")[:, 1]
    return chances[is_judged], chances[~is_judged]


def typing_f1(judged: Cells, test: Cells) -> dict[str, float]:
    """Train a classifier of cell types on judged cells, test it on real ones.

    Returns
    -------
    F1 of each type of ``test``; 0 for a type that ``judged`` lacks.

    References
    ----------
    Esteban et al. 2017, Train on Synthetic, Test on Real, https://arxiv.org/abs/1706.02633
    """
    cell_types = np.unique(test.cell_type)
    classifier = linear_classifier().fit(judged.expression.toarray(), judged.cell_type)
    blocks = np.split(np.arange(len(test)), range(BLOCK, len(test), BLOCK))
    predicted = np.concatenate([classifier.predict(test.expression[rows].toarray()) for rows in blocks])
    f1 = f1_score(test.cell_type, predicted, labels=cell_types, average=None, zero_division=0)
    return dict(zip(cell_types.tolist(), f1.tolist(), strict=True))
