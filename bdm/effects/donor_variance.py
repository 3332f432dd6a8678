"""Estimate the variance between donors of each gene from pseudobulks."""

from collections.abc import Callable
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import digamma, gammaln, logsumexp, xlogy

from bdm.autoencoder.decoder import MIN_SIZE
from bdm.data.matrix import blocks_of_rows
from bdm.data.modalities import Modality

GRID = np.concatenate([[0.0], np.geomspace(1e-3, 2, 22)])  # variances of a donor's fold change of a gene
N_ITERATIONS = 100  # of expectation maximisation, well beyond convergence
HALF_WEIGHT_CELLS = 20  # a donor with this many cells has half the weight of a donor with unlimited cells
MAX_EFFECT = 3.0  # largest effect of a donor in standard deviations
FEW_DONORS = 5  # with fewer donors, variances are shrunk


@dataclass(frozen=True)
class Pseudobulk:
    """Observed and expected counts of a cell type, summed by donor.

    Expected counts assume that donors do not differ, given effects and library sizes.
    """

    observed: np.ndarray  # donors x genes
    expected: np.ndarray  # donors x genes
    squared: np.ndarray  # sum over cells of squared expected counts, donors x genes
    overdispersion: np.ndarray  # of each gene over all cells: extra-Poisson variance / squared mean
    n_cells: np.ndarray  # cells per donor
    library_size: np.ndarray  # mean log library size of each donor without effects, minus the overall mean
    library_variance: float  # of log library sizes within donors


@dataclass(frozen=True)
class Groups:
    """Sums over groups of cells with the same donor, cell type, population and batch."""

    # codes donor, cell_type, population, batch; n_cells; sums library_size, square (squared sizes), log_library_size,
    # log_square (squared logs)
    table: pd.DataFrame
    counts: sparse.csr_matrix  # groups x genes
    weighted: sparse.csr_matrix  # counts times library sizes, groups x genes
    squares: sparse.csr_matrix  # squared counts, groups x genes


KEYS = ["donor", "cell_type", "population", "batch"]


def group_cells(
    adata: ad.AnnData, rows: np.ndarray, codes: pd.DataFrame, block: Modality, *, shift: np.ndarray | float = 0.0
) -> Groups:
    """Sum the counts of a block of features by group, in parts of the cells.

    Blocks without library size, such as proteins, have size 1. ``shift`` is subtracted from the log library sizes.
    """
    group = codes.groupby(KEYS, sort=True).ngroup().to_numpy()
    table = codes.assign(group=group).drop_duplicates("group").sort_values("group")[KEYS].reset_index(drop=True)
    shape = (len(table), block.n_features)
    counts, weighted, squares = (sparse.csr_matrix(shape) for _ in range(3))
    library_size = np.zeros(len(rows))
    for read, part in blocks_of_rows(adata.X, rows):
        x = sparse.csr_matrix(part, dtype=float)[:, block.features]
        sizes = np.asarray(x.sum(axis=1)).ravel() if block.normalised else np.ones(x.shape[0])
        library_size[read] = sizes
        cells = np.arange(x.shape[0])
        member = sparse.csr_matrix((np.ones(len(cells)), (group[read], cells)), shape=(shape[0], len(cells)))
        counts = counts + member @ x
        weighted = weighted + (member @ sparse.diags(sizes)) @ x
        squares = squares + member @ x.multiply(x).tocsr()
    logs = np.log(np.maximum(library_size, MIN_SIZE)) - shift
    values = {"n_cells": None, "library_size": library_size, "square": library_size**2}
    values |= {"log_library_size": logs, "log_square": logs**2}
    for name, weights in values.items():
        table[name] = np.bincount(group, weights=weights, minlength=len(table))
    return Groups(table, counts, weighted, squares)


Factors = Callable[[pd.DataFrame], np.ndarray]  # table of groups to their expected fold changes, groups x genes


def pseudobulks(groups: Groups, factors: Factors, *, n_donors: int) -> dict[int, Pseudobulk]:
    """Compute pseudobulks by cell type code."""
    return {
        int(code): pseudobulk(groups, rows.to_numpy(), factors, n_donors=n_donors)
        for code, rows in pd.Series(groups.table.index).groupby(groups.table["cell_type"])
    }


def pseudobulk(groups: Groups, rows: np.ndarray, factors: Factors, *, n_donors: int) -> Pseudobulk:
    """Compute the pseudobulk of the cell type with these rows."""
    factor = factors(groups.table.iloc[rows])
    table = groups.table.iloc[rows].reset_index(drop=True)
    counts, weighted, squares = (
        np.asarray(matrix[rows].todense()) for matrix in (groups.counts, groups.weighted, groups.squares)
    )
    sizes, square = table["library_size"].to_numpy()[:, None], table["square"].to_numpy()[:, None]
    rate = factor * (counts.sum(axis=0) + 0.5) / (sizes * factor).sum(axis=0)  # pseudocount, as rates must be positive
    member = sparse.csr_matrix(
        (np.ones(len(table)), (table["donor"], np.arange(len(table)))), shape=(n_donors, len(table))
    )
    total = (square * rate**2).sum(axis=0)
    # sum over cells of (count - size rate)**2 - size rate
    excess = squares.sum(axis=0) - 2 * (rate * weighted).sum(axis=0) + total - (sizes * rate).sum(axis=0)
    centre = table["log_library_size"].sum() / table["n_cells"].sum()
    n_cells = member @ table["n_cells"].to_numpy()
    deviation = member @ (table["log_library_size"] - table["n_cells"] * centre).to_numpy()
    around = table["log_square"] - 2 * centre * table["log_library_size"] + table["n_cells"] * centre**2
    mean = deviation / np.maximum(n_cells, 1)
    within = float(around.sum() - (n_cells * mean**2).sum()) / max(float(n_cells.sum()) - (n_cells > 0).sum(), 1)
    return Pseudobulk(
        observed=member @ counts,
        expected=member @ (sizes * rate),
        squared=member @ (square * rate**2),
        overdispersion=np.maximum(excess, 0) / total,
        n_cells=n_cells,
        library_size=mean,
        library_variance=max(within, 0.0),
    )


# ---- variance


@dataclass(frozen=True)
class DonorVariance:
    """Differences between donors; columns are genes, then the log library size."""

    variance: np.ndarray  # of log expression between donors
    score: np.ndarray  # posterior mean effect of each donor in standard deviations, donors x columns; 0 without cells
    weight: np.ndarray  # reliability of the scores: 1 without sampling noise, 0 without cells


def certainty(n_donors: int) -> float:
    """Return the shrinkage factor of variances: 0 for one donor, 1 from five."""
    return min((n_donors - 1) / (FEW_DONORS - 1), 1.0)


def donor_variance(bulk: Pseudobulk) -> DonorVariance | None:
    """Estimate the variance between donors in a cell type by empirical Bayes.

    The counts of a donor are negative binomial. Their variance has two parts: the sampling of cells, and the variance s
    of the donor's fold change. The prior over a grid of s is estimated from all genes by expectation maximisation
    (Stephens 2017, https://doi.org/10.1093/biostatistics/kxw041). None if fewer than two donors have cells.
    """
    seen = bulk.n_cells > 0
    n_donors = int(seen.sum())
    if n_donors < 2:
        return None
    observed, mean = bulk.observed[seen], centred_expectation(bulk, seen)
    squared = bulk.squared[seen] * (mean / bulk.expected[seen]) ** 2
    log_likelihood = np.stack([log_marginal(observed, mean, squared, bulk.overdispersion, s) for s in GRID], axis=1)
    posterior = posterior_on_grid(log_likelihood)
    factor_variance, log_variance = posterior @ GRID, posterior @ log_variances(GRID)
    noise = (mean + squared * overdispersion_within(bulk.overdispersion, factor_variance)) / mean**2
    score = np.sqrt(factor_variance) * (observed / mean - 1) / (factor_variance + noise)
    weight = factor_variance / (factor_variance + noise)

    sizes, errors = bulk.library_size[seen], bulk.library_variance / bulk.n_cells[seen]
    size_variance, size_mean = normal_variance(sizes, errors)
    score = np.column_stack([score, np.sqrt(size_variance) * (sizes - size_mean) / (size_variance + errors)])
    weight = np.column_stack([weight, size_variance / (size_variance + errors)])
    degrees = certainty(n_donors) * n_donors / (n_donors - 1)  # the mean is estimated, too
    return DonorVariance(
        variance=degrees * np.append(log_variance, size_variance),
        score=spread_rows(np.clip(score, -MAX_EFFECT, MAX_EFFECT), seen),
        weight=spread_rows(weight, seen),
    )


def log_variances(factor_variance: np.ndarray) -> np.ndarray:
    """Convert variances of gamma-distributed fold changes to variances of log fold changes.

    For log-normal fold changes of log variance v, the best-fitting gamma distribution has mean 1 and shape k with
    ``2 (log k - digamma(k)) = v``; its variance is 1 / k.
    """
    converted, positive = np.zeros_like(factor_variance), factor_variance > 0
    shape = 1 / factor_variance[positive]
    converted[positive] = 2 * (np.log(shape) - digamma(shape))
    return converted


def centred_expectation(bulk: Pseudobulk, seen: np.ndarray) -> np.ndarray:
    """Scale expected counts (donors x genes) so that observed / expected averages 1.

    Weights saturate with the number of cells, so that no donor dominates.
    """
    n_cells, expected = bulk.n_cells[seen], bulk.expected[seen]
    weight = n_cells / (n_cells + HALF_WEIGHT_CELLS)
    ratio = weight @ (bulk.observed[seen] / expected) / weight.sum()
    return np.asarray(expected * (ratio + 0.5 / expected.sum(axis=0)))  # pseudocount of 0.5, as means must be positive


def overdispersion_within(overdispersion: np.ndarray, factor_variance: np.ndarray | float) -> np.ndarray:
    """Return the overdispersion within donors, given the variance of their fold changes."""
    return np.maximum((1 + overdispersion) / (1 + factor_variance) - 1, 0)


def log_marginal(
    observed: np.ndarray, mean: np.ndarray, squared: np.ndarray, overdispersion: np.ndarray, factor_variance: float
) -> np.ndarray:
    """Return the log marginal likelihood of each gene, summed over donors (donors x genes)."""
    excess = squared * overdispersion_within(overdispersion, factor_variance) + mean**2 * factor_variance
    r = mean**2 / np.maximum(excess, 1e-6 * mean)
    log_p = gammaln(observed + r) - gammaln(r) - gammaln(observed + 1)
    log_p += -r * np.log1p(mean / r) + xlogy(observed, mean / (r + mean))
    return np.asarray(log_p.sum(axis=0))


def posterior_on_grid(log_likelihood: np.ndarray) -> np.ndarray:
    """Compute the posterior over the grid, with a prior from all genes.

    ``log_likelihood`` and the posterior are genes x values.
    """
    log_share = np.full(log_likelihood.shape[1], -np.log(log_likelihood.shape[1]))
    for _ in range(N_ITERATIONS):
        joint = log_likelihood + log_share
        posterior: np.ndarray = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        log_share = np.log(np.maximum(posterior.mean(axis=0), 1e-300))
    return posterior


def normal_variance(values: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Fit variance and mean of normal values with known error variances."""

    def mean(variance: float) -> float:
        return float(np.average(values, weights=1 / (variance + errors + 1e-12)))

    def negative_log_likelihood(log_variance: float) -> float:
        total = np.exp(log_variance) + errors + 1e-12
        return float((np.log(total) + (values - mean(np.exp(log_variance))) ** 2 / total).sum())

    bounds = (np.log(1e-8), np.log(10.0))
    variance = float(np.exp(minimize_scalar(negative_log_likelihood, bounds=bounds, method="bounded").x))
    return variance, mean(variance)


def spread_rows(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Return rows for all donors; 0 for donors without cells."""
    rows = np.zeros((len(seen), values.shape[1]))
    rows[seen] = values
    return rows
