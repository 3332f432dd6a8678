"""Pseudobulk shares of genes with their variances, and cells with changed shares."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError
from bdm._core.files import provenance, storable
from bdm.data.columns import writable
from bdm.data.counts import count_matrix
from bdm.data.matrix import Matrix, blocks_of_rows, take_rows

PSEUDO = 1e-4  # pseudo-count added to shares before logarithms (one count in 10,000); mutes changes of rarer genes
MIN_SHARE = 1e-7  # minimum predicted share of counts
MIN_CELLS_PER_GENE = 10  # genes detected in fewer cells have no values


@dataclass(frozen=True)
class Counts:
    """Raw counts, in memory or on disk, to sum over groups of cells."""

    matrix: Matrix  # cells x all genes
    size: np.ndarray  # library size of each cell
    detected: np.ndarray  # whether each gene is detected in enough cells; sums are limited to these genes

    @classmethod
    def from_matrix(cls, matrix: Matrix) -> "Counts":
        """Compute library sizes, and find the detected genes."""
        size, n_detected = np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1], dtype=int)
        for rows, values in blocks_of_rows(matrix):
            size[rows] = values.sum(axis=1, dtype=float).A1
            n_detected += np.bincount(count_matrix(values).indices, minlength=matrix.shape[1])
        detected = n_detected >= MIN_CELLS_PER_GENE
        if not detected.any():
            raise InputError(f"No gene is detected in {MIN_CELLS_PER_GENE} cells; use more cells.")
        return cls(matrix, size, detected)

    def sums(self, rows: np.ndarray, group: np.ndarray, n_groups: int) -> "Sums":
        """Sum the counts of the cells in ``rows`` by ``group``."""
        counts = count_matrix(take_rows(self.matrix, rows))[:, self.detected].astype(float)
        member = sparse.csr_matrix((np.ones(len(group)), (group, np.arange(len(group)))), (n_groups, len(group)))
        squared, size = counts.copy(), self.size[rows]
        squared.data = squared.data**2
        by_size = sparse.csr_matrix(sparse.diags(size) @ counts)
        totals = (np.asarray((member @ values).todense(), dtype=float) for values in (counts, squared, by_size))
        return Sums(member.sum(axis=1).A1, member @ size, member @ size**2, *totals)


@dataclass(frozen=True)
class Sums:
    """Sums over the cells of each group, for shares and variances."""

    n: np.ndarray  # number of cells, groups
    size: np.ndarray  # library sizes, groups
    squared_size: np.ndarray  # groups
    counts: np.ndarray  # groups x genes
    squared_counts: np.ndarray  # groups x genes
    counts_by_size: np.ndarray  # counts x library size, groups x genes

    def pooled(self, n: int) -> "Sums":
        """Add up each ``n`` consecutive groups."""
        values = (getattr(self, entry.name) for entry in fields(self))
        return Sums(*(each.reshape(-1, n, *each.shape[1:]).sum(axis=1) for each in values))

    @cached_property
    def share(self) -> np.ndarray:
        """Share of each gene in the counts of a group, groups x genes."""
        return np.asarray(self.counts / np.maximum(self.size, 1)[:, None])

    @cached_property
    def log_share(self) -> np.ndarray:
        """Logarithm of the shares with a pseudo-count."""
        return np.asarray(np.log(self.share + PSEUDO))

    @cached_property
    def squared_residuals(self) -> np.ndarray:
        """Sum over cells of squared differences between counts and share x library size."""
        share = self.share
        squares = self.squared_counts - 2 * share * self.counts_by_size + share**2 * self.squared_size[:, None]
        return np.asarray(np.maximum(squares, 0))

    @property
    def variance(self) -> np.ndarray:
        """Sampling variance of :attr:`log_share`, for independent cells."""
        variance = self.squared_residuals / np.maximum(self.size, 1)[:, None] ** 2
        variance *= (self.n / np.maximum(self.n - 1, 1))[:, None]
        poisson = (self.counts + 1) / np.maximum(self.size, 1)[:, None] ** 2  # above 0 for undetected genes
        return np.asarray(np.maximum(variance, poisson) / (self.share + PSEUDO) ** 2)

    def dispersion(self, groups: np.ndarray) -> np.ndarray:
        """Estimate the dispersion of each gene within groups by the method of moments.

        Dispersion is the squared coefficient of variation in excess of Poisson noise. Genes with few counts are shrunk
        towards 0.5.
        """
        correction = (self.n / np.maximum(self.n - 1, 1))[:, None]
        excess = (self.squared_residuals * correction - self.counts)[groups].sum(axis=0)
        expected = (self.share**2 * self.squared_size[:, None])[groups].sum(axis=0)
        return np.asarray(np.clip((excess + 1.0) / (expected + 2.0), 1e-3, 20))


def shares_from(log_share: np.ndarray) -> np.ndarray:
    """Invert the log with pseudo-count; shares are at least MIN_SHARE."""
    return np.asarray(np.maximum(np.exp(log_share) - PSEUDO, MIN_SHARE))


def share_of(counts: sparse.csr_matrix, column: np.ndarray) -> np.ndarray:
    """Return the share of each of some genes in the summed counts."""
    return np.asarray(counts[:, column].sum(axis=0), dtype=float).ravel() / float(max(counts.sum(dtype=float), 1))


# ---- cells with changed shares

MIN_CHANGE = 0.05  # minimum fold change of a share; below the pseudo-count, new shares could be negative


def with_shares(
    counts: sparse.csr_matrix,
    column: np.ndarray,
    share: np.ndarray,
    new_share: np.ndarray,
    dispersions: list[np.ndarray],
    generator: np.random.Generator,
) -> sparse.csr_matrix:
    """Thin or add counts to change the shares of genes.

    A count with mean m and dispersion d has variance m + d m**2. Added counts with mean a have dispersion
    (d_new (m + a)**2 - d_old m**2) / a**2, so that the sum has the new dispersion.

    Parameters
    ----------
    counts
        Cells x all genes.
    column
        Columns of the genes to change.
    share, new_share
        Expected share of each of these genes before and after.
    dispersions
        Dispersion of each of these genes before and after.
    generator
        Source of all random numbers.

    Returns
    -------
    Changed counts, cells x all genes.
    """
    before, size = np.asarray(counts[:, column].todense()), np.asarray(counts.sum(axis=1), dtype=float).ravel()
    after, target, (old, new) = before.copy(), np.maximum(new_share, MIN_CHANGE * share), dispersions
    for_thinning, for_rates, for_counts = generator.spawn(3)
    down = np.flatnonzero(target < share)
    after[:, down] = for_thinning.binomial(before[:, down].astype(np.int64), target[down] / share[down])
    up = np.flatnonzero(target > share)
    added = target[up] - share[up]
    dispersion = np.clip((new[up] * target[up] ** 2 - old[up] * share[up] ** 2) / added**2, 1e-3, 1e3)
    rate = for_rates.standard_gamma(1 / dispersion, size=(len(before), len(up))) * dispersion
    after[:, up] += for_counts.poisson(rate * size[:, None] * added)
    changed = np.flatnonzero((after != before).any(axis=0))
    difference = sparse.csr_matrix(after[:, changed] - before[:, changed])
    to_columns = sparse.csr_matrix(
        (np.ones(len(changed), dtype=np.float32), (np.arange(len(changed)), column[changed])),
        (len(changed), counts.shape[1]),
    )
    total = sparse.csr_matrix(counts + difference @ to_columns, dtype=np.float32)
    total.eliminate_zeros()
    return total


def assemble_cells(
    pieces: list[tuple[np.ndarray, sparse.csr_matrix]], obs: pd.DataFrame, var: pd.DataFrame, **record: Any
) -> AnnData:
    """Assemble synthetic cells from counts by rows of ``obs``, and record their origin."""
    rows, counts = zip(*pieces, strict=True)
    stacked = sparse.csr_matrix(sparse.vstack(counts, format="csr")[np.argsort(np.concatenate(rows))])
    obs = writable(obs.assign(synthetic=True))
    return AnnData(stacked, obs=obs, var=writable(var), uns={"bdm": storable(provenance(**record))})
