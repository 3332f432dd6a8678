"""Counts of groups of cells: shares of genes on a log scale with their variances, and cells whose shares change."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError, counted
from bdm.data.counts import count_matrix
from bdm.data.matrix import Matrix, blocks_of_rows

PSEUDO = 1e-4  # added to shares of counts before logarithms, one count in 10,000; below it, changes fade out
MIN_CELLS_PER_GENE = 10  # with counts; genes in fewer have no values


def columns_of(cells: AnnData, genes: pd.Index, *, whose: str) -> np.ndarray:
    """Find the columns of genes, all of which cells must have."""
    column = np.asarray(cells.var_names.get_indexer(genes))
    if len(missing := genes[column < 0]):
        raise InputError(
            f"The cells lack {counted(len(missing), 'gene')} of the {whose}, for example {missing[0]!r}; give all "
            f"genes of the data of the {whose}."
        )
    return column


def sizes_and_detected(counts: Matrix) -> tuple[np.ndarray, np.ndarray]:
    """Library size of each cell, and whether each gene has counts in enough cells, from a block of cells at a time."""
    size, n_detected = np.zeros(counts.shape[0]), np.zeros(counts.shape[1], dtype=int)
    for of_block, values in blocks_of_rows(counts):
        size[of_block] = values.sum(axis=1, dtype=float).A1
        n_detected += np.bincount(count_matrix(values).indices, minlength=counts.shape[1])
    detected = n_detected >= MIN_CELLS_PER_GENE
    if not detected.any():
        raise InputError(f"No gene has counts in {MIN_CELLS_PER_GENE} cells; give more cells.")
    return size, detected


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


LEAST = 0.05  # of the counts of a gene that are left, as shares below the pseudo-count could become negative


def with_shares(
    counts: sparse.csr_matrix,
    column: np.ndarray,
    share: np.ndarray,
    new: np.ndarray,
    spread: list[np.ndarray],
    generator: np.random.Generator,
) -> sparse.csr_matrix:
    """Change the counts of some genes (``column``) of cells from their expected shares to new ones.

    Parameters
    ----------
    spread
        Dispersion of counts of each gene, before and after.
    """
    before, size = np.asarray(counts[:, column].todense()), np.asarray(counts.sum(axis=1), dtype=float).ravel()
    after = rescaled(before, size, share, np.maximum(new, LEAST * share), spread, generator)
    changed = np.flatnonzero((after != before).any(axis=0))
    difference = sparse.csr_matrix(after[:, changed] - before[:, changed])
    place = sparse.csr_matrix(
        (np.ones(len(changed), dtype=np.float32), (np.arange(len(changed)), column[changed])),
        (len(changed), counts.shape[1]),
    )
    found = sparse.csr_matrix(counts + difference @ place, dtype=np.float32)
    found.eliminate_zeros()
    return found


def rescaled(
    counts: np.ndarray,
    size: np.ndarray,
    share: np.ndarray,
    new: np.ndarray,
    spread: list[np.ndarray],
    generator: np.random.Generator,
) -> np.ndarray:
    """Thin counts, or add to them; cells x genes.

    With the mean m of a count and its dispersion d (variance m + d m**2), counts of the mean a are added whose
    dispersion is (d_new (m + a)**2 - d_old m**2) / a**2, so that the sum has the new dispersion.
    """
    old_spread, new_spread = spread
    for_thinning, for_rates, for_more = generator.spawn(3)
    changed = counts.copy()
    down = np.flatnonzero(new < share)
    changed[:, down] = for_thinning.binomial(counts[:, down].astype(np.int64), new[down] / share[down])
    up = np.flatnonzero(new > share)
    more = new[up] - share[up]
    dispersion = (new_spread[up] * new[up] ** 2 - old_spread[up] * share[up] ** 2) / more**2
    dispersion = np.clip(dispersion, 1e-3, 1e3)
    rate = for_rates.standard_gamma(1 / dispersion, size=(len(counts), len(up))) * dispersion
    changed[:, up] += for_more.poisson(rate * size[:, None] * more)
    return changed
