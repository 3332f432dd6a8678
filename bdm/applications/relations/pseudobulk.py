"""Pseudobulk shares of genes with their variances, and cells with changed shares."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.optimize import brentq
from scipy.special import polygamma

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
    n_detected: np.ndarray  # number of cells with each gene

    @classmethod
    def from_matrix(cls, matrix: Matrix) -> "Counts":
        """Compute library sizes, and find the detected genes."""
        size, n_detected = np.zeros(matrix.shape[0]), np.zeros(matrix.shape[1], dtype=int)
        for rows, values in blocks_of_rows(matrix):
            size[rows] = values.sum(axis=1, dtype=float).A1
            n_detected += np.bincount(count_matrix(values).indices, minlength=matrix.shape[1])
        if n_detected.max(initial=0) < MIN_CELLS_PER_GENE:
            raise InputError(f"No gene is detected in {MIN_CELLS_PER_GENE} cells; use more cells.")
        return cls(matrix, size, n_detected)

    @property
    def detected(self) -> np.ndarray:
        """Whether each gene is detected in enough cells; sums are limited to these genes."""
        return np.asarray(self.n_detected >= MIN_CELLS_PER_GENE)

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

    def pooled(self, n: int, selected: slice | np.ndarray = slice(None)) -> "Sums":
        """Add up each ``n`` consecutive groups, or a selection of these."""
        values = (getattr(self, entry.name) for entry in fields(self))
        return Sums(*(each.reshape(-1, n, *each.shape[1:])[:, selected].sum(axis=1) for each in values))

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


# ---- errors of profiles and effects

N_BINS = 10  # bins of genes by expression; each has its own prior of variances
PRIOR_TYPES = 4  # weight of the prior of the variance between types, in types
MAX_PRIOR_DEGREES = 100.0
UNKNOWN_CORRELATION = 0.5  # between types with the same donors, where no two types have replicates


@dataclass(frozen=True)
class ShrunkenProfiles:
    """Posterior means of control profiles, each array types x genes.

    The error of a posterior mean is not correlated with it. Effects relative to it do not regress to the mean, as
    effects relative to a measured profile do.
    """

    profile: np.ndarray
    variance: np.ndarray  # of the errors that types do not share
    common_error: np.ndarray  # of all types: the error of the mean over types, as standard deviation
    kept: np.ndarray  # weight of the measured profile

    @classmethod
    def from_measured(cls, profile: np.ndarray, variance: np.ndarray) -> "ShrunkenProfiles":
        """Shrink profiles towards the mean of each gene over types.

        The variance between types is shrunk to its mean over genes of similar expression.
        """
        n = len(profile)
        if n < 2:
            return cls(profile, variance, np.zeros_like(profile), np.ones_like(profile))
        excess = profile.var(axis=0, ddof=1) - variance.mean(axis=0)
        usual = np.maximum(mean_of_similar(excess, profile.mean(axis=0)), 1e-4)
        between = np.maximum((PRIOR_TYPES * usual + (n - 1) * excess) / (PRIOR_TYPES + n - 1), 1e-4)
        weight = 1 / (variance + between)
        mean = (weight * profile).sum(axis=0) / weight.sum(axis=0)
        kept = between / (between + variance)
        common_error = (1 - kept) / np.sqrt(weight.sum(axis=0))
        return cls(mean + kept * (profile - mean), variance * kept, common_error, kept)


def variance_between_donors(
    influence: np.ndarray, degrees: np.ndarray, between_cells: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Estimate the variance that donors add to the sampling variance of effects.

    The sum of squared influences is a cluster-robust estimate. It is shrunk to the variance between cells times the
    mean ratio of both variances among genes of similar expression; the weight of this prior is estimated from the
    spread of ratios (Smyth 2004). Types without degrees of freedom get the mean ratio of the others.

    ``influence`` of donors is scaled to unbiased variances, types x donors x genes. ``between_cells``, the variance for
    independent cells, ``share`` of counts in the control, and the result are types x genes.
    """
    added, usual = np.zeros_like(between_cells), np.ones_like(between_cells)
    measured = np.flatnonzero(degrees > 0)
    for row in measured:
        ratio = (influence[row] ** 2).sum(axis=0) / between_cells[row]
        usual[row] = np.maximum(mean_of_similar(ratio, share[row]), 1)
        prior = prior_degrees(ratio / usual[row], int(degrees[row]))
        shrunken = (prior * usual[row] + degrees[row] * ratio) / (prior + degrees[row])
        added[row] = np.maximum(shrunken - 1, 0) * between_cells[row]
    if len(measured):
        added[degrees == 0] = ((usual[measured].mean(axis=0) - 1) * between_cells)[degrees == 0]
    return added


def prior_degrees(ratio: np.ndarray, degrees: int) -> float:
    """Estimate degrees of freedom of the prior of variances from ratios (Smyth 2004)."""
    spread = np.log(ratio[ratio > 0]).var() - polygamma(1, degrees / 2)

    def difference(prior: float) -> float:
        return float(polygamma(1, prior / 2) - spread)

    if difference(MAX_PRIOR_DEGREES) > 0:
        return MAX_PRIOR_DEGREES
    return 1.0 if difference(1.0) < 0 else float(brentq(difference, 1, MAX_PRIOR_DEGREES))


def correlation_between_types(influence: np.ndarray, donor_variance: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Estimate how errors that donors cause correlate between types, types x types.

    Influences of donors are correlated over genes. Arrays are as in
    :func:`variance_between_donors`; ``total`` is the sampling variance of effects.
    """
    root, weight = np.sqrt(donor_variance), 1 / total.mean(axis=0)
    products = np.einsum("tdg,udg,g->tu", influence, influence, weight, optimize=True)
    scale = np.einsum("tg,ug,g->tu", root, root, weight, optimize=True)
    correlation = np.clip(products / np.maximum(scale, 1e-12), 0, 1)
    return nearest_correlation(correlation)


def variance_of_single_donors(
    added: np.ndarray, weight: np.ndarray, share: np.ndarray, source: np.ndarray
) -> np.ndarray:
    """Estimate the variances that donors add to effects of types without replicates from the other types.

    The variance of log expression between donors is averaged over the ``source`` types, which have replicates, and
    shrunk to its mean over genes with the weight of one type. ``added`` by donors and ``share`` of counts in the
    control are types x genes. ``weight`` of donors in the control and in the condition is types x (two per donor).
    """
    size = (weight**2).sum(axis=1)[:, None] * (share / (share + PSEUDO)) ** 2  # per variance of log expression
    usual, one = added[source].sum() / size[source].sum(), size[source].mean()
    per_donor = (added[source].sum(axis=0) + usual * one) / (size[source].sum(axis=0) + one)
    return np.asarray(per_donor * size)


def correlation_of_single_donors(
    correlation: np.ndarray, weight: np.ndarray, source: np.ndarray, is_single: np.ndarray
) -> np.ndarray:
    """Correlate errors of types without replicates with all types by their common donors.

    Arguments are as in :func:`variance_of_single_donors`. Types with the same donors are as correlated as the
    ``source`` types.
    """
    length = np.sqrt((weight**2).sum(axis=1).clip(min=1e-12))
    overlap = weight @ weight.T / length / length[:, None]
    pairs = np.triu(np.outer(source, source) & (overlap > 0.1), 1)
    of_same = np.clip((correlation[pairs] / overlap[pairs]).mean(), 0, 1) if pairs.any() else UNKNOWN_CORRELATION
    filled = np.where(is_single | is_single[:, None], of_same * overlap, correlation)
    return nearest_correlation(filled)


def nearest_correlation(correlation: np.ndarray) -> np.ndarray:
    """Return a positive semi-definite matrix with unit diagonal near a symmetric one."""
    np.fill_diagonal(correlation, 1)
    values, vectors = np.linalg.eigh(correlation)
    nearest = (vectors * np.maximum(values, 0)) @ vectors.T
    deviation = np.sqrt(np.diag(nearest))
    return np.asarray(nearest / deviation / deviation[:, None])


def mean_of_similar(values: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """Average values over genes of similar expression."""
    bins = (np.argsort(np.argsort(expression)) * N_BINS) // len(expression)
    means = np.array([values[bins == number].mean() if (bins == number).any() else 1.0 for number in range(N_BINS)])
    return np.asarray(means[bins])


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
    """Thin or add counts (cells x all genes) to change the shares of the genes in ``column``.

    A count with mean m and dispersion d has variance m + d m**2. Added counts with mean a have dispersion
    (d_new (m + a)**2 - d_old m**2) / a**2, so that the sum has the new one. ``dispersions`` are before and after.
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
