"""Comparison of genes between generated and test cells."""

import numpy as np
from scipy.stats import ks_2samp
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.data.cells import MIN_CELLS_FOR_MEANS, MIN_CELLS_OF_TYPE, Cells
from bdm.data.gene_tests import Agreement, log_fold_changes

N_VARIABLE = 100  # genes in the comparison of gene-gene correlations
MIN_CELLS_FOR_VARIANCES = 30  # with fewer, variances are mostly noise
MIN_MEAN_COUNT = 1  # of an expressed gene; variances of rarer genes are little more than their means


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


def variance_ratios(query: Cells, test: Cells) -> dict[str, np.ndarray]:
    """Compute the ratios of variances of counts in query and test cells, by type.

    Query and test cells have equal numbers per type; types with fewer than 30 are left out. Each ratio is of a gene
    that varies in both sets and has a mean count above 1 over both. The mean of test cells alone would select genes
    with unusual test cells, and make the ratios of real cells too small.
    """
    ratios = {}
    for cell_type in query.types(fewest=MIN_CELLS_FOR_VARIANCES):
        (mean, variance), (mean_test, variance_test) = (
            mean_variance_axis(cells.counts[cells.cell_type == cell_type], axis=0) for cells in (query, test)
        )
        is_expressed = (mean + mean_test > 2 * MIN_MEAN_COUNT) & (variance > 0) & (variance_test > 0)
        ratios[cell_type] = variance[is_expressed] / variance_test[is_expressed]
    return ratios


def geometric_mean(values: np.ndarray) -> float:
    """Compute the geometric mean of positive values; NaN without values."""
    return float(np.exp(np.log(values).mean())) if len(values) else float("nan")


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
