"""Variance between donors by gene, from pseudobulks: counts summed by donor and cell type, and their expectation."""

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import minimize_scalar
from scipy.special import digamma, gammaln, logsumexp, xlogy

from bdm.data.matrix import blocks_of_rows
from bdm.data.modalities import Modality

# Variances of the factor by which a donor changes a gene's expression
GRID = np.concatenate([[0.0], np.geomspace(1e-3, 2, 22)])
N_ITERATIONS = 100  # of expectation maximisation for the shares of the variances; far more than change them
N_EQUAL = 20  # cells at which a donor has half the weight of one with very many
MAX_EFFECT = 3.0  # standard deviations that a donor's effect can have
FEW = 5  # donors, below which effects are drawn towards none


@dataclass(frozen=True)
class Pseudobulk:
    """Counts of one cell type by donor, with their expectation given batches and library sizes."""

    observed: np.ndarray  # sum of the counts, donors x genes
    expected: np.ndarray  # sum of the expected counts if donors do not differ, donors x genes
    squared: np.ndarray  # sum of the squares of the expected counts of cells, donors x genes
    # Variance of a cell's count beyond Poisson, as a share of its squared mean, one per gene; includes the variance
    # between donors
    overdispersion: np.ndarray
    n_cells: np.ndarray  # number of cells of each donor
    # library_size, library_variance: mean log library size of a donor's cells, minus the mean of all; and the variance
    # of a cell around the mean of its donor
    library_size: np.ndarray
    library_variance: float


@dataclass(frozen=True)
class Groups:
    """Cells by donor, cell type, population and batch, with the sums over the cells of each group."""

    # A row for each combination that has cells: codes of ``donor``, ``cell_type``, ``population`` and ``batch``;
    # ``n_cells``; sums of ``library_size`` and of its ``square``, of ``log_library_size`` and of its ``log_square``
    table: pd.DataFrame
    counts: sparse.csr_matrix  # sum of the counts, groups x genes
    weighted: sparse.csr_matrix  # sum of the counts times library sizes, groups x genes
    squares: sparse.csr_matrix  # sum of the squared counts, groups x genes


KEYS = ["donor", "cell_type", "population", "batch"]


def group_cells(adata: ad.AnnData, rows: np.ndarray, codes: pd.DataFrame, modality: Modality | None = None) -> Groups:
    """Sum the counts of cells by group, of one modality if there are several, in blocks of cells.

    Cells have a size of 1 in place of the library size where counts are no shares of one, as those of proteins.
    """
    features = slice(0, adata.n_vars) if modality is None else modality.features
    group = codes.groupby(KEYS, sort=True).ngroup().to_numpy()
    table = codes.assign(group=group).drop_duplicates("group").sort_values("group")[KEYS].reset_index(drop=True)
    shape = (len(table), features.stop - features.start)
    counts, weighted, squares = (sparse.csr_matrix(shape) for _ in range(3))
    library_size = np.zeros(len(rows))
    for read, block in blocks_of_rows(adata.X, rows):
        x = sparse.csr_matrix(block, dtype=float)[:, features]
        has_size = modality is None or modality.normalised
        sizes = np.asarray(x.sum(axis=1)).ravel() if has_size else np.ones(x.shape[0])
        library_size[read] = sizes
        cells = np.arange(x.shape[0])
        member = sparse.csr_matrix((np.ones(len(cells)), (group[read], cells)), shape=(shape[0], len(cells)))
        counts = counts + member @ x
        weighted = weighted + (member @ sparse.diags(sizes)) @ x
        squares = squares + member @ x.multiply(x).tocsr()
    logs = np.log(library_size)
    values = {"n_cells": None, "library_size": library_size, "square": library_size**2}
    values |= {"log_library_size": logs, "log_square": logs**2}
    for name, of_cells in values.items():
        table[name] = np.bincount(group, weights=of_cells, minlength=len(table))
    return Groups(table, counts, weighted, squares)


def pseudobulks(groups: Groups, batch_factor: np.ndarray, *, n_donors: int) -> dict[int, Pseudobulk]:
    """Compute the pseudobulks of each cell type, by its code; ``batch_factor``: batches x genes."""
    return {
        int(code): pseudobulk(groups, rows.to_numpy(), batch_factor, n_donors=n_donors)
        for code, rows in pd.Series(groups.table.index).groupby(groups.table["cell_type"])
    }


def pseudobulk(groups: Groups, rows: np.ndarray, batch_factor: np.ndarray, *, n_donors: int) -> Pseudobulk:
    """Compute the pseudobulks of one cell type, from the rows of its groups."""
    table = groups.table.iloc[rows].reset_index(drop=True)
    counts, weighted, squares = (
        np.asarray(matrix[rows].todense()) for matrix in (groups.counts, groups.weighted, groups.squares)
    )
    factor = batch_factor[table["batch"]]
    exposure = table["library_size"].to_numpy()[:, None] * factor
    rate = factor * (counts.sum(axis=0) + 0.5) / exposure.sum(axis=0)  # half a count, as no rate may be 0
    sizes, square = table["library_size"].to_numpy()[:, None], table["square"].to_numpy()[:, None]
    member = sparse.csr_matrix(
        (np.ones(len(table)), (table["donor"], np.arange(len(table)))), shape=(n_donors, len(table))
    )
    total = (square * rate**2).sum(axis=0)
    beyond = squares.sum(axis=0) - 2 * (rate * weighted).sum(axis=0) + total - (sizes * rate).sum(axis=0)
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
        overdispersion=np.maximum(beyond, 0) / total,
        n_cells=n_cells,
        library_size=mean,
        library_variance=max(within, 0.0),
    )


# ---- variance


@dataclass(frozen=True)
class DonorVariance:
    """How the donors of one cell type differ."""

    # Variance between donors of the log expression of each gene and, last, of the log library size
    variance: np.ndarray
    # Expected deviation of each donor in standard deviations, donors x the same; 0 where the donor has no cells
    score: np.ndarray
    weight: np.ndarray  # how much of each deviation the donor's cells show: 1 without sampling noise, 0 without cells


def certainty(n_donors: int) -> float:
    """Share of the estimated variance that is kept: 1 from five donors on, and 0 for a single one."""
    return min((n_donors - 1) / (FEW - 1), 1.0)


def donor_variance(bulk: Pseudobulk) -> DonorVariance | None:
    """Estimate the variance between donors in a cell type by maximum marginal likelihood; None if one donor has cells.

    The counts of a donor are negative binomial, with a variance that has two parts: the sampling of the donor's cells,
    and the variance s of the factor by which the donor changes the expression of the gene. The likelihood of s on a
    grid of values is combined with the shares of these values over all genes, which expectation maximisation finds
    (empirical Bayes, as Stephens 2017, https://doi.org/10.1093/biostatistics/kxw041).
    """
    seen = bulk.n_cells > 0
    n_donors = int(seen.sum())
    if n_donors < 2:
        return None
    observed, mean = bulk.observed[seen], centred(bulk, seen)
    squared = bulk.squared[seen] * (mean / bulk.expected[seen]) ** 2
    log_likelihood = np.stack([log_marginal(observed, mean, squared, bulk.overdispersion, s) for s in GRID], axis=1)
    posterior = posterior_on_grid(log_likelihood)
    factor_variance, log_variance = posterior @ GRID, posterior @ log_variances(GRID)
    noise = (mean + squared * within(bulk.overdispersion, factor_variance)) / mean**2
    score = np.sqrt(factor_variance) * (observed / mean - 1) / (factor_variance + noise)
    weight = factor_variance / (factor_variance + noise)

    sizes, errors = bulk.library_size[seen], bulk.library_variance / bulk.n_cells[seen]
    size_variance, size_mean = normal_variance(sizes, errors)
    score = np.column_stack([score, np.sqrt(size_variance) * (sizes - size_mean) / (size_variance + errors)])
    weight = np.column_stack([weight, size_variance / (size_variance + errors)])
    degrees = certainty(n_donors) * n_donors / (n_donors - 1)  # the mean is estimated, too
    return DonorVariance(
        variance=degrees * np.append(log_variance, size_variance),
        score=of_all(np.clip(score, -MAX_EFFECT, MAX_EFFECT), seen),
        weight=of_all(weight, seen),
    )


def log_variances(factor_variance: np.ndarray) -> np.ndarray:
    """Variance of a normal log factor that maximum likelihood takes for a gamma factor of the given variance.

    The likelihood is of gamma factors of mean 1 and shape k, the inverse of their variance. Of all gamma distributions,
    that with ``2 (log k - digamma(k)) = v`` is the most likely one for log-normal factors of log variance v.
    """
    found, above = np.zeros_like(factor_variance), factor_variance > 0
    shape = 1 / factor_variance[above]
    found[above] = 2 * (np.log(shape) - digamma(shape))
    return found


def centred(bulk: Pseudobulk, seen: np.ndarray) -> np.ndarray:
    """Scale the expected counts of donors, donors x genes, such that the mean ratio to the observed counts is 1.

    In the mean, a donor weighs by its cells up to a limit, so that none dominates.
    """
    n_cells, expected = bulk.n_cells[seen], bulk.expected[seen]
    weight = n_cells / (n_cells + N_EQUAL)
    ratio = weight @ (bulk.observed[seen] / expected) / weight.sum()
    return np.asarray(expected * (ratio + 0.5 / expected.sum(axis=0)))  # half a count more, as no mean may be 0


def within(overdispersion: np.ndarray, factor_variance: np.ndarray | float) -> np.ndarray:
    """Overdispersion of cells within donors, whose factors have the given variance; both are one per gene."""
    return np.maximum((1 + overdispersion) / (1 + factor_variance) - 1, 0)


def log_marginal(
    observed: np.ndarray, mean: np.ndarray, squared: np.ndarray, overdispersion: np.ndarray, factor_variance: float
) -> np.ndarray:
    """Log likelihood of counts (donors x genes), summed over donors, with their factors integrated out."""
    beyond = squared * within(overdispersion, factor_variance) + mean**2 * factor_variance
    r = mean**2 / np.maximum(beyond, 1e-6 * mean)
    log_p = gammaln(observed + r) - gammaln(r) - gammaln(observed + 1)
    log_p += -r * np.log1p(mean / r) + xlogy(observed, mean / (r + mean))
    return np.asarray(log_p.sum(axis=0))


def posterior_on_grid(log_likelihood: np.ndarray) -> np.ndarray:
    """Posterior of each gene on the grid, genes x values, with the shares of the values over all genes as prior."""
    log_share = np.full(log_likelihood.shape[1], -np.log(log_likelihood.shape[1]))
    for _ in range(N_ITERATIONS):
        joint = log_likelihood + log_share
        posterior: np.ndarray = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
        log_share = np.log(np.maximum(posterior.mean(axis=0), 1e-300))
    return posterior


def normal_variance(values: np.ndarray, errors: np.ndarray) -> tuple[float, float]:
    """Variance between normal values that have errors of known variances, by maximum likelihood; and their mean."""

    def mean(variance: float) -> float:
        return float(np.average(values, weights=1 / (variance + errors + 1e-12)))

    def negative(log_variance: float) -> float:
        total = np.exp(log_variance) + errors + 1e-12
        return float((np.log(total) + (values - mean(np.exp(log_variance))) ** 2 / total).sum())

    found = minimize_scalar(negative, bounds=(np.log(1e-8), np.log(10.0)), method="bounded")
    variance = float(np.exp(found.x))
    return variance, mean(variance)


def of_all(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Values of all donors, from the values of those with cells; 0 for others."""
    found = np.zeros((len(seen), values.shape[1]))
    found[seen] = values
    return found
