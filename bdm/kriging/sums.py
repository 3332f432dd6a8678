"""Sums of counts over groups of cells: shares of genes on a log scale, with their sampling variances."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import sparse

PSEUDO = 1e-4  # added to shares of counts before logarithms, one count in 10,000; below it, changes fade out
MIN_CELLS_PER_GENE = 10  # with counts; genes in fewer have no values


@dataclass(frozen=True)
class Sums:
    """Sums over the cells of each group, groups x genes, from which shares and their variances follow."""

    n: np.ndarray  # cells
    size: np.ndarray  # library sizes
    squared_size: np.ndarray
    counts: np.ndarray
    squared_counts: np.ndarray
    counts_by_size: np.ndarray

    @classmethod
    def of(cls, counts: sparse.csr_matrix, size: np.ndarray, group: np.ndarray, n_groups: int) -> "Sums":
        """Sum over cells of each group, a number from 0."""
        rows = sparse.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), (n_groups, len(group)))
        squared = counts.copy()
        squared.data = squared.data**2

        def total(values: sparse.csr_matrix) -> np.ndarray:
            return np.asarray((rows @ values).todense(), dtype=float)

        by_size = sparse.csr_matrix(sparse.diags(size) @ counts)
        return cls(rows.sum(axis=1).A1, rows @ size, rows @ size**2, total(counts), total(squared), total(by_size))

    @cached_property
    def share(self) -> np.ndarray:
        """Share of each gene in the counts of all cells of a group."""
        return np.asarray(self.counts / np.maximum(self.size, 1)[:, None])

    @cached_property
    def log_share(self) -> np.ndarray:
        """Logarithm of the shares, with a pseudo-count."""
        return np.asarray(np.log(self.share + PSEUDO))

    @cached_property
    def relative_variance(self) -> np.ndarray:
        """Sampling variance of :attr:`log_share`."""
        return np.asarray(self.variance / (self.share + PSEUDO) ** 2)

    @cached_property
    def squared_residuals(self) -> np.ndarray:
        """Sum of squared differences of counts from the share of their library size."""
        share = self.share
        found = self.squared_counts - 2 * share * self.counts_by_size + share**2 * self.squared_size[:, None]
        return np.asarray(np.maximum(found, 0))

    @property
    def variance(self) -> np.ndarray:
        """Sampling variance of the shares, where cells are independent; at least that of one more count."""
        found = self.squared_residuals / np.maximum(self.size, 1)[:, None] ** 2
        found *= (self.n / np.maximum(self.n - 1, 1))[:, None]
        return np.asarray(np.maximum(found, (self.counts + 1) / np.maximum(self.size, 1)[:, None] ** 2))

    def dispersion(self, groups: np.ndarray) -> np.ndarray:
        """Squared coefficient of variation beyond that of Poisson counts within groups, by gene, by moments.

        Genes with few counts are shrunk to 0.5, as if two more cells with one count each had been seen.
        """
        correction = (self.n / np.maximum(self.n - 1, 1))[:, None]
        beyond = (self.squared_residuals * correction - self.counts)[groups].sum(axis=0)
        expected = (self.share**2 * self.squared_size[:, None])[groups].sum(axis=0)
        return np.asarray(np.clip((beyond + 1.0) / (expected + 2.0), 1e-3, 20))
