"""Values of genes and of cells, such as dispersions and effective library sizes."""

from dataclasses import dataclass

import numpy as np
from scipy import sparse
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.cells import Cells
from bdm.evaluation.genes import zero_fraction

TRIMMED_RATIOS, TRIMMED_MEANS = 0.3, 0.05  # shares of genes at either end, as in edgeR


@dataclass(frozen=True)
class GeneValues:
    """Values of each gene over cells, NaN where they are not defined.

    Attributes
    ----------
    mean, variance
        Of ``log1p(CP10k)``.
    coefficient_of_variation
        Standard deviation of CP10k over their mean.
    zero_fraction
        Share of the cells without a count.
    dispersion
        Variance of counts beyond the Poisson distribution, in units of the squared mean.
    """

    mean: np.ndarray
    variance: np.ndarray
    coefficient_of_variation: np.ndarray
    zero_fraction: np.ndarray
    dispersion: np.ndarray

    @classmethod
    def of(cls, cells: Cells) -> "GeneValues":
        """Compute the values of all genes."""
        mean, variance = mean_variance_axis(cells.expression, axis=0)
        return cls(mean, variance, coefficient_of_variation(cells), zero_fraction(cells), dispersion(cells))


def coefficient_of_variation(cells: Cells) -> np.ndarray:
    """Divide the standard deviation of the CP10k of each gene by their mean; NaN for genes without counts."""
    mean, variance = mean_variance_axis(cells.cp10k, axis=0)
    return ratio(np.sqrt(variance), mean)


def dispersion(cells: Cells) -> np.ndarray:
    """Dispersion of the negative binomial of each gene by the method of moments; NaN for genes without counts.

    Counts over the relative library size have the variance ``mean * E[1 / size] + dispersion * mean**2``.
    """
    size = np.maximum(cells.library_size, 1)
    size = size / size.mean()
    mean, variance = mean_variance_axis(sparse.csr_matrix(sparse.diags(1 / size) @ cells.counts), axis=0)
    return ratio(variance - mean * np.mean(1 / size), mean**2)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    return np.asarray(np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0))


def cell_zero_fraction(cells: Cells) -> np.ndarray:
    """Share of the genes without a count, by cell."""
    return np.asarray(1 - cells.n_detected / cells.counts.shape[1])


def effective_library_size(cells: Cells, reference: np.ndarray) -> np.ndarray:
    """Library size times the trimmed mean of the ratios of a cell's counts to those of a reference (TMM).

    Parameters
    ----------
    reference
        Sum of the counts of each gene over the reference's cells.

    Returns
    -------
    One number a cell; the library size where the cell has too few genes.

    References
    ----------
    Robinson and Oshlack 2010, https://doi.org/10.1186/gb-2010-11-3-r25
    """
    counts = cells.counts.tocoo()
    shared = reference[counts.col] > 0
    row, count, base = counts.row[shared], counts.data[shared].astype(float), reference[counts.col[shared]]
    share, base_share = count / cells.library_size[row], base / reference.sum()
    log_ratio = np.log2(share / base_share)
    variance = (1 - share) / count + (1 - base_share) / base
    kept = within_ends(log_ratio, row, TRIMMED_RATIOS) & within_ends(share * base_share, row, TRIMMED_MEANS)
    kept &= variance > 0
    weight = np.bincount(row[kept], 1 / variance[kept], minlength=len(cells))
    total = np.bincount(row[kept], log_ratio[kept] / variance[kept], minlength=len(cells))
    factor = 2 ** np.divide(total, weight, out=np.zeros(len(cells)), where=weight > 0)
    return np.asarray(cells.library_size * factor)


def within_ends(values: np.ndarray, row: np.ndarray, trimmed: float) -> np.ndarray:
    """Mask of the values that are not in the lowest or highest share ``trimmed`` of their row."""
    order = np.lexsort((values, row))
    n_values = np.bincount(row)
    start = np.cumsum(n_values) - n_values
    rank = np.empty(len(values), dtype=int)
    rank[order] = np.arange(len(values)) - start[row[order]]
    n_trimmed = np.floor(trimmed * n_values).astype(int)[row]
    return np.asarray((rank >= n_trimmed) & (rank < n_values[row] - n_trimmed))
