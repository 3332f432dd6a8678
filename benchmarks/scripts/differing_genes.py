"""Comparison of the genes that differ between a cell type and all others."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import chi2, kstwobign, ttest_ind_from_stats
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.data.cells import Cells
from bdm.data.gene_tests import adjusted

GENE_TESTS = {
    "de": "differentially expressed",
    "dv": "differentially variable",
    "dd": "differentially distributed",
    "dp": "differentially detected",
    "bd": "bimodal",
}
FALSE_DISCOVERIES = 0.1  # false discovery rate of the tests, as in SimBench
BIMODAL = 0.3  # minimum difference of means of a bimodal gene, in standard deviations, as in SimBench


@dataclass(frozen=True)
class OrderedValues:
    """Non-zero values of ``log1p(CP10k)``, sorted by gene and value."""

    gene: np.ndarray  # gene index of each value
    cell: np.ndarray  # cell index of each value
    start: np.ndarray  # index of the first value of each gene, then the number of values
    is_last: np.ndarray  # whether a value is the last of its ties within a gene

    @classmethod
    def from_cells(cls, cells: Cells) -> "OrderedValues":
        """Sort the values of all genes."""
        columns = cells.expression.tocsc()
        columns.eliminate_zeros()
        gene = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
        order = np.lexsort((columns.data, gene))
        value = columns.data[order]
        is_last = np.ones(len(value), dtype=bool)
        is_last[:-1] = (np.diff(gene) > 0) | (np.diff(value) > 0)
        return cls(gene, columns.indices[order], columns.indptr, is_last)


def compare_genes(query: Cells, test: Cells, labels: list[str]) -> dict[str, dict[str, float]]:
    """Compare the genes that differ between a cell type and all others.

    Results are by type and property: ``*_share`` is the absolute difference of the shares of genes that differ;
    ``*_overlap`` is the Jaccard distance between the two sets of genes.
    """
    compared: dict[str, dict[str, float]] = {label: {} for label in labels}
    by_query, by_test = genes_that_differ(query, labels), genes_that_differ(test, labels)
    for label, differences in compared.items():
        for name in GENE_TESTS:
            in_query, in_test = by_query[label][name], by_test[label][name]
            either = (in_query | in_test).sum()
            differences[f"{name}_share"] = float(abs(in_query.mean() - in_test.mean()))
            differences[f"{name}_overlap"] = float(1 - (in_query & in_test).sum() / either) if either else float("nan")
    return compared


def genes_that_differ(cells: Cells, labels: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Test which genes differ between each cell type and all others.

    Returns masks of genes, by type and test. The five tests are from SimBench, Cao et al. 2021, https://doi.org/10.1038/s41467-021-27130-w.
    """
    ordered, masks = OrderedValues.from_cells(cells), {}
    for label in labels:
        is_type = cells.cell_type == label
        inside, outside = (Moments.from_cells(cells, np.flatnonzero(rows)) for rows in (is_type, ~is_type))
        p_values = {
            "de": welch(inside, outside),
            "dv": bartlett(inside, outside),
            "dd": ks_test(ordered, is_type),
            "dp": chi_squared(inside, outside),
        }
        masks[label] = {name: adjusted(p) < FALSE_DISCOVERIES for name, p in p_values.items()}
        masks[label]["bd"] = bimodality(inside, outside) > BIMODAL
    return masks


@dataclass(frozen=True)
class Moments:
    """Number of cells, and statistics of each gene."""

    n_cells: int
    mean: np.ndarray
    variance: np.ndarray  # unbiased
    n_detected: np.ndarray  # cells with counts

    @classmethod
    def from_cells(cls, cells: Cells, rows: np.ndarray) -> "Moments":
        """Compute the statistics of ``log1p(CP10k)`` in the cells at ``rows``."""
        expression = cells.expression[rows]
        mean, variance = mean_variance_axis(expression, axis=0)
        n_cells = expression.shape[0]
        return cls(n_cells, mean, variance * n_cells / (n_cells - 1), expression.getnnz(axis=0))


def welch(inside: Moments, outside: Moments) -> np.ndarray:
    """Compute p-values of Welch's t-test; NaN for constant genes."""
    moments = [(side.mean, np.sqrt(side.variance), side.n_cells) for side in (inside, outside)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue)


def bartlett(inside: Moments, outside: Moments) -> np.ndarray:
    """Compute p-values of Bartlett's test of equal variances.

    NaN for genes that are constant on either side.
    """
    degrees = np.array([inside.n_cells - 1, outside.n_cells - 1])
    variances = np.stack([inside.variance, outside.variance])
    pooled = degrees @ variances / degrees.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = degrees.sum() * np.log(pooled) - degrees @ np.log(variances)
        correction = 1 + ((1 / degrees).sum() - 1 / degrees.sum()) / 3
        return np.where((variances > 0).all(axis=0), chi2.sf(statistic / correction, 1), np.nan)


def chi_squared(inside: Moments, outside: Moments) -> np.ndarray:
    """Compute p-values of the chi-squared test of detection rates.

    NaN for genes detected in all cells, or in no cell.
    """
    n_cells = np.array([inside.n_cells, outside.n_cells])
    detected = np.stack([inside.n_detected, outside.n_detected])
    share = detected.sum(axis=0) / n_cells.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = (detected - n_cells[:, None] * share) ** 2 / (n_cells[:, None] * share * (1 - share))
    return np.asarray(chi2.sf(squares.sum(axis=0), 1))


def ks_test(values: OrderedValues, is_inside: np.ndarray) -> np.ndarray:
    """Compute asymptotic Kolmogorov-Smirnov p-values of masked cells against the rest."""
    n_inside, n_outside = int(is_inside.sum()), int((~is_inside).sum())
    weight = np.where(is_inside, 1 / n_inside, -1 / n_outside)[values.cell]
    total = np.concatenate([[0], np.cumsum(weight)])
    at_zero = -np.diff(total[values.start])  # weights sum to 0 over all cells
    difference = np.abs(total[1:] - total[values.start[:-1]][values.gene] + at_zero[values.gene])[values.is_last]
    distance = np.abs(at_zero)
    np.maximum.at(distance, values.gene[values.is_last], difference)
    return np.asarray(kstwobign.sf(distance * np.sqrt(n_inside * n_outside / (n_inside + n_outside))))


def bimodality(inside: Moments, outside: Moments) -> np.ndarray:
    """Compute the difference of means in pooled standard deviations.

    0 for constant genes.
    """
    n_cells = np.array([inside.n_cells, outside.n_cells])
    spread = np.sqrt(n_cells @ np.stack([inside.variance, outside.variance]) / n_cells.sum())
    difference = np.abs(inside.mean - outside.mean)
    return np.asarray(np.divide(difference, spread, out=np.zeros(len(spread)), where=spread > 0))
