"""Comparison of genes between generated and test cells."""

import numpy as np
from scipy.stats import ks_2samp
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.data.cells import MIN_CELLS_FOR_MEANS, MIN_CELLS_OF_TYPE, Cells
from bdm.data.gene_tests import Agreement, log_fold_changes

N_VARIABLE = 100  # genes in the comparison of gene-gene correlations


def gene_statistics(query: Cells, test: Cells) -> dict[str, Agreement]:
    """Compare mean, variance and zero fraction of each gene.

    Mean and variance are of ``log1p(CP10k)``.
    """
    mean_query, variance_query = mean_variance_axis(query.expression, axis=0)
    mean_test, variance_test = mean_variance_axis(test.expression, axis=0)
    return {
        "mean": Agreement(mean_query, mean_test),
        "variance": Agreement(variance_query, variance_test),
        "zero_fraction": Agreement(zero_fraction(query), zero_fraction(test)),
    }


def zero_fraction(cells: Cells) -> np.ndarray:
    """Compute the share of cells without counts, by gene."""
    return 1 - np.asarray((cells.counts > 0).mean(axis=0)).ravel()


def variable_genes(cells: Cells) -> np.ndarray:
    """Select the genes with the largest variance, as column indices."""
    variance = mean_variance_axis(cells.expression, axis=0)[1]
    return np.argsort(-variance, kind="stable")[:N_VARIABLE]


def gene_pairs(query: Cells, test: Cells, genes: np.ndarray) -> Agreement:
    """Compare the gene-gene correlations of ``genes`` that vary in both sets."""
    query_r, test_r = (correlations(cells.expression[:, genes].toarray().T) for cells in (query, test))
    is_known = np.isfinite(query_r) & np.isfinite(test_r)
    return Agreement(query_r[is_known], test_r[is_known])


def correlations(rows: np.ndarray) -> np.ndarray:
    """Compute Pearson correlations of all pairs of rows; NaN for constant rows."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.corrcoef(rows)[np.triu_indices(len(rows), k=1)])


def kolmogorov_smirnov(query: np.ndarray, test: np.ndarray) -> float:
    """Compute the Kolmogorov-Smirnov distance of two samples, in [0, 1]."""
    return float(ks_2samp(query, test, method="asymp").statistic)  # its exact p-value would take longer


def marker_fold_changes(
    query: Cells, test: Cells, markers: dict[str, np.ndarray], *, fewest: int = MIN_CELLS_OF_TYPE
) -> dict[str, Agreement]:
    """Compare fold changes of markers, by type with at least ``fewest`` query cells."""
    cell_types = [cell_type for cell_type in query.types(fewest=fewest) if cell_type in markers]
    if not cell_types:
        return {}
    query_log2, test_log2 = log_fold_changes(query, cell_types), log_fold_changes(test, cell_types)
    return {
        cell_type: Agreement(query_log2[i, markers[cell_type]], test_log2[i, markers[cell_type]])
        for i, cell_type in enumerate(cell_types)
    }


def pooled_fold_changes(query: Cells, test: Cells, markers: dict[str, np.ndarray]) -> Agreement:
    """Compare fold changes of markers, pooled over all but rare types."""
    return Agreement.pooled(marker_fold_changes(query, test, markers, fewest=MIN_CELLS_FOR_MEANS).values())
