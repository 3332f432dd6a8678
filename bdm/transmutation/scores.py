"""Scores of transmuted cells of one original type."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.cells import Cells
from bdm.evaluation.distances import energy_distance
from bdm.evaluation.metrics import Agreement, fitted_pca, joint_components

N_CHANGED = 100  # genes
N_COMPONENTS = 10
MAX_CELLS = 1000  # whose distances are computed


@dataclass(frozen=True, kw_only=True)
class TransmutationScores:
    """Scores of transmuted cells, in comparison with real cells of the new type and with the same cells before.

    Attributes
    ----------
    energy
        Energy distance to test cells of the new type, in joint principal components; unbiased.
    mean_r2, variance_r2
        Squared Pearson correlation with the test cells of the means and variances of ``log1p(CP10k)``, over the genes
        that differ most between the two types.
    slope
        Of the log fold changes of these genes relative to the original type, transmuted cells on test cells.
    sign
        Share of these genes that change in the same direction as in test cells.
    library_kept
        Pearson correlation of log library sizes before and after; NaN where the cells before are unknown.
    variation_kept
        The same of the variation within types: the mean over principal components of the differences of cells from
        the means of their types, weighted by their variance.
    """

    energy: float
    mean_r2: float
    variance_r2: float
    slope: float
    sign: float
    library_kept: float = np.nan
    variation_kept: float = np.nan


@dataclass(frozen=True)
class Endpoints:
    """Real cells of the original type and of the new type.

    Attributes
    ----------
    old, new
        Training cells of the two types.
    test
        Test cells of the new type.
    changed
        Column indices of the genes that differ most between the two types, see `select_endpoints`.
    """

    old: Cells
    new: Cells
    test: Cells
    changed: np.ndarray


def changed_genes(old: Cells, new: Cells) -> np.ndarray:
    """Column indices of the genes whose mean ``log1p(CP10k)`` differs most between two types."""
    difference = np.abs(mean_expression(new) - mean_expression(old))
    return np.argsort(-difference, kind="stable")[:N_CHANGED]


def score_transmutation(
    query: Cells, ends: Endpoints, *, before: Cells | None = None, seed: int
) -> TransmutationScores:
    """Compare transmuted cells with test cells of their new type.

    Parameters
    ----------
    before
        The same cells before the transmutation, if known.
    """
    genes = ends.changed
    one, other = equal_numbers(query, ends.test, seed=seed)
    means, variances = zip(*(mean_variance_axis(cells.expression, axis=0) for cells in (query, ends.test)), strict=True)
    changes = fold_changes(query, ends)
    kept = {} if before is None else shares_kept(before, query, ends, seed=seed)
    return TransmutationScores(
        energy=energy_distance(*joint_components(one.expression, other.expression, seed=seed)),
        mean_r2=Agreement(means[0][genes], means[1][genes]).correlation ** 2,
        variance_r2=Agreement(variances[0][genes], variances[1][genes]).correlation ** 2,
        slope=changes.slope,
        sign=float(np.mean(np.sign(changes.query) == np.sign(changes.test))),
        **kept,
    )


def fold_changes(query: Cells, ends: Endpoints, *, pseudocount: float = 1.0) -> Agreement:
    """Log2 fold changes from the original type of the genes that differ most; the pseudocount is in CP10k."""
    of_old, of_query, of_test = (
        np.log2(cells.cp10k[:, ends.changed].mean(axis=0).A1 + pseudocount) for cells in (ends.old, query, ends.test)
    )
    return Agreement(of_query - of_old, of_test - of_old)


def shares_kept(before: Cells, after: Cells, ends: Endpoints, *, seed: int) -> dict[str, float]:
    """Correlate cells before and after their transmutation, row by row."""
    sizes = np.log(np.maximum([before.library_size, after.library_size], 1))
    within = sparse.vstack([ends.old.expression, ends.new.expression]).toarray()
    n_old = len(ends.old)
    within[:n_old] -= within[:n_old].mean(axis=0)
    within[n_old:] -= within[n_old:].mean(axis=0)
    pca = fitted_pca(sparse.csr_matrix(within), n_components=N_COMPONENTS, seed=seed)
    one, other = pca.transform(before.expression), pca.transform(after.expression)
    correlations = [Agreement(a, b).correlation for a, b in zip(one.T, other.T, strict=True)]
    return {
        "library_kept": Agreement(*sizes).correlation,
        "variation_kept": float(np.average(correlations, weights=pca.explained_variance_)),
    }


def mean_expression(cells: Cells) -> np.ndarray:
    """Mean ``log1p(CP10k)``, by gene."""
    return np.asarray(cells.expression.mean(axis=0)).ravel()


def equal_numbers(one: Cells, other: Cells, *, seed: int) -> tuple[Cells, Cells]:
    """Draw as many cells of both as the smaller set has, or ``MAX_CELLS``."""
    n_cells = min(len(one), len(other), MAX_CELLS)
    generator = np.random.default_rng(seed)
    first, second = (cells[np.sort(generator.permutation(len(cells))[:n_cells])] for cells in (one, other))
    return first, second
