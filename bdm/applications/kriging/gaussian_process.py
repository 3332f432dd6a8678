"""Gaussian-process prior over cell types, conditions, times or locations ("places"), and its intervals.

The value of a gene at place t, such as its log fold change in a cell type, is normal with the moments

    mean(t) = slope x_t
    cov(t, u) = 1 + level**2 x_t x_u + strength**2 (shared K(t, u) + (1 - shared) [t = u]),

where x is a covariate of the gene and K is a kernel. For a tree, K is the path length that two places share (Brownian
motion along branches, Felsenstein 1985). Measurements add their sampling variance. Values at places without
measurements are predicted by their posterior, in closed form. All genes share the slope. Kernel, level, strength and
share differ between genes: each combination is a hypothesis. The shares of genes that follow each hypothesis are
estimated by maximum marginal likelihood (empirical Bayes), and the predictions for a gene are averaged over hypotheses
by posterior probability.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

# Candidate hyperparameters
STRENGTHS = tuple(np.geomspace(0.05, 2, 6).tolist())
SHARED = (0.5, 0.9, 0.99)
LEVELS = (0.0, 0.3)
N_GENES = 1000  # most significant genes, to fit the prior
N_SCREENED = 250  # subset of these, to screen hypotheses
MIN_PRIOR = 0.01  # minimum share of genes of a hypothesis
MAX_HYPOTHESES = 16
N_STEPS = 60  # of expectation maximisation
ENTRIES = 2**20  # of the largest array; larger ones are slower, as the operating system zeroes new memory each time


@dataclass(frozen=True)
class Hypothesis:
    """Hyperparameters of the covariance of a gene's values."""

    kernel: int  # index of the kernel; -1 for independent places
    shared: float
    strength: float
    level: float


@dataclass(frozen=True)
class Law:
    """Fitted Gaussian-process prior: a mixture of hypotheses about the covariance.

    Attributes
    ----------
    hypotheses
        Hyperparameters of each component.
    prior
        Share of genes that follow each hypothesis.
    slope
        Mean change of a value per unit of the covariate, shared by all genes.
    """

    hypotheses: tuple[Hypothesis, ...]
    prior: np.ndarray
    slope: float


@dataclass(frozen=True)
class Measurements:
    """Measured values of genes, such as log fold changes in cell types.

    Attributes
    ----------
    effect, variance
        Values and their sampling variances, genes x measured places.
    level
        Centred covariate, such as log expression in the control, genes x all places.
    measured
        Indices of the measured places.
    """

    effect: Tensor
    variance: Tensor
    level: Tensor
    measured: np.ndarray

    def genes(self, rows: slice | np.ndarray) -> "Measurements":
        """Select a subset of the genes."""
        return replace(self, effect=self.effect[rows], variance=self.variance[rows], level=self.level[rows])


@dataclass(frozen=True)
class Prediction:
    """Posterior of values at places, each array genes x places."""

    mean: np.ndarray
    variance: np.ndarray
    parts: dict[str, np.ndarray]  # terms of the mean, by the names in PARTS


PARTS = ("common", "level", "related", "own")


def prior_covariances(hypothesis: Hypothesis, kernels: list[Tensor], n: int) -> dict[str, Tensor]:
    """Return the terms of the prior covariance that all genes share."""
    identity = torch.eye(n, dtype=torch.double)
    kernel = kernels[hypothesis.kernel] if hypothesis.kernel >= 0 else identity
    shared, square = (hypothesis.shared if hypothesis.kernel >= 0 else 0.0), hypothesis.strength**2
    common, own = torch.ones_like(identity), square * (1 - shared) * identity
    return {"common": common, "related": square * shared * kernel, "own": own}


def add_level(parts: dict[str, Tensor], hypothesis: Hypothesis, left: Tensor, right: Tensor) -> Tensor:
    """Sum the covariances and the term of the covariate, genes x places x places."""
    equal = torch.stack([*parts.values()]).sum(dim=0)
    return torch.baddbmm(equal[None], left[:, :, None], right[:, None], alpha=hypothesis.level**2)


@dataclass(frozen=True)
class Solved:
    """Posterior under one hypothesis, for C the covariance of measurements y with mean m."""

    evidence: Tensor  # log marginal likelihood of each gene, up to a constant
    weights: Tensor  # C^-1 (y - m), genes x measured places
    factor: Tensor  # Cholesky factor of C, genes x measured places x measured places


def solve(hypothesis: Hypothesis, data: Measurements, kernels: list[Tensor], slope: float) -> Solved:
    """Condition a hypothesis on the measurements."""
    measured = torch.from_numpy(data.measured)
    level = data.level[:, measured]
    parts = {
        name: part[measured][:, measured]
        for name, part in prior_covariances(hypothesis, kernels, data.level.shape[1]).items()
    }
    covariance = add_level(parts, hypothesis, level, level)
    covariance.diagonal(dim1=1, dim2=2).add_(data.variance)
    factor = torch.linalg.cholesky(covariance)
    residual = (data.effect - slope * level)[:, :, None]
    weights = torch.cholesky_solve(residual, factor)
    log_determinant = 2 * torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
    evidence = -((residual * weights).sum(dim=(1, 2)) + log_determinant) / 2
    return Solved(evidence, weights.squeeze(2), factor)


def fit_law(data: Measurements, kernels: list[np.ndarray], *, levels: Sequence[float] = LEVELS) -> Law:
    """Fit the prior of hypotheses by maximum marginal likelihood on the most significant genes.

    Most genes are uninformative about the covariance and would shrink it.

    Parameters
    ----------
    data
        Measurements.
    kernels
        Candidate kernels, places x places.
    levels
        Candidate strengths of the covariate.
    """
    sample = data.genes(most_significant(data)[:N_GENES])
    slope = fit_slope(sample)
    hypotheses = [Hypothesis(-1, 0.0, strength, level) for strength in STRENGTHS for level in levels]
    hypotheses += [
        Hypothesis(number, shared, strength, level)
        for number in range(len(kernels))
        for shared in SHARED
        for strength in STRENGTHS
        for level in levels
    ]
    tensors = [torch.from_numpy(kernel) for kernel in kernels]
    subsample = sample.genes(slice(None, None, max(1, len(sample.effect) // N_SCREENED)))
    plausible = fit_shares(evidence_of(hypotheses, subsample, tensors, slope)) >= MIN_PRIOR / 10
    hypotheses = [hypothesis for hypothesis, keep in zip(hypotheses, plausible.tolist(), strict=True) if keep]
    evidence = evidence_of(hypotheses, sample, tensors, slope)
    prior = fit_shares(evidence)
    order = torch.argsort(prior, descending=True, stable=True)[:MAX_HYPOTHESES]
    kept = sorted(int(number) for number in order if prior[number] >= MIN_PRIOR) or [int(order[0])]
    return Law(tuple(hypotheses[number] for number in kept), fit_shares(evidence[:, kept]).numpy(), slope)


def most_significant(data: Measurements) -> np.ndarray:
    """Sort genes by mean squared z score, largest first, and return their rows."""
    return np.argsort(-(data.effect**2 / data.variance).mean(dim=1).numpy(), kind="stable")


def evidence_of(hypotheses: list[Hypothesis], data: Measurements, kernels: list[Tensor], slope: float) -> Tensor:
    """Compute the log marginal likelihood, genes x hypotheses."""
    groups = [list(group) for _, group in groupby(hypotheses, key=lambda hypothesis: replace(hypothesis, level=0.0))]
    chunks = [[evidence_of_levels(group, chunk, kernels, slope) for group in groups] for chunk in in_chunks(data)]
    return torch.cat([torch.cat(chunk, dim=1) for chunk in chunks])


def evidence_of_levels(hypotheses: list[Hypothesis], data: Measurements, kernels: list[Tensor], slope: float) -> Tensor:
    """Compute the log marginal likelihood of hypotheses that differ only in level.

    Their covariances are C + level**2 x x', so all share one factorisation of C (matrix determinant lemma).
    """
    measured = torch.from_numpy(data.measured)
    x = data.level[:, measured]
    parts = prior_covariances(hypotheses[0], kernels, data.level.shape[1]).values()
    covariance = torch.stack([*parts]).sum(dim=0)[measured][:, measured] + torch.diag_embed(data.variance)
    factor = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(factor, torch.stack([data.effect - slope * x, x], dim=2), upper=False)
    products = whitened.mT @ whitened
    log_determinant = 2 * torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
    square = torch.tensor([hypothesis.level**2 for hypothesis in hypotheses], dtype=torch.double)
    added = square * products[:, 1, 1, None]
    explained = square * products[:, 0, 1, None] ** 2 / (1 + added)
    log_determinant = log_determinant[:, None] + torch.log1p(added)
    evidence: Tensor = -(products[:, 0, 0, None] - explained + log_determinant) / 2
    return evidence


def fit_shares(evidence: Tensor) -> Tensor:
    """Estimate the share of genes of each hypothesis by expectation maximisation."""
    prior = torch.full((evidence.shape[1],), 1 / evidence.shape[1], dtype=torch.double)
    for _ in range(N_STEPS):
        prior = torch.softmax(evidence + prior.clamp(min=1e-12).log(), dim=1).mean(dim=0)
    return prior


def fit_slope(data: Measurements) -> float:
    """Regress values on the covariate within genes, weighted by precision; return the slope."""
    measured = torch.from_numpy(data.measured)
    weight = 1 / (data.variance + 0.05)
    level = data.level[:, measured]
    total = weight.sum(dim=1, keepdim=True)
    x = level - (weight * level).sum(dim=1, keepdim=True) / total
    y = data.effect - (weight * data.effect).sum(dim=1, keepdim=True) / total
    return float((weight * x * y).sum() / (weight * x * x).sum().clamp(min=1e-12))


def in_chunks(data: Measurements) -> Iterator[Measurements]:
    """Yield chunks of genes with covariance matrices of at most ``ENTRIES`` entries in total."""
    step = max(1, ENTRIES // data.level.shape[1] ** 2)
    for start in range(0, len(data.effect), step):
        yield data.genes(slice(start, start + step))


def left_out(
    law: Law, data: Measurements, kernels: list[np.ndarray], groups: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predict measured values by leave-one-out or leave-group-out cross-validation.

    Closed form (Sundararajan & Keerthi 2001): let y be the residuals of measurements and Q the inverse of their
    covariance. The error of the prediction of the left-out places G is Q_GG^-1 (Q y)_G, with covariance Q_GG^-1.

    Parameters
    ----------
    law
        Fitted prior.
    data
        Measurements.
    kernels
        Kernels of the hypotheses, places x places.
    groups
        Columns of measured places to leave out together; each place is in one group. None to leave out one at a time.

    Returns
    -------
    Means and variances (including sampling variance), each genes x measured places.
    """
    tensors, means, variances = [torch.from_numpy(kernel) for kernel in kernels], [], []
    for chunk in in_chunks(data):
        logs, expected, spread = [], [], []
        for hypothesis, prior in zip(law.hypotheses, law.prior, strict=True):
            posterior = solve(hypothesis, chunk, tensors, law.slope)
            inverse = torch.cholesky_inverse(posterior.factor)
            error, variance, density = (
                leave_each_out(posterior, inverse) if groups is None else leave_groups_out(posterior, inverse, groups)
            )
            logs.append(posterior.evidence[:, None] - density + np.log(prior))
            expected.append(chunk.effect - error)
            spread.append(variance)
        mean, variance = average_mixture(*(torch.stack(tensors) for tensors in (logs, expected, spread)))
        means.append(mean)
        variances.append(variance)
    return torch.cat(means).numpy(), torch.cat(variances).numpy()


def leave_each_out(posterior: Solved, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return leave-one-out errors, variances and log densities, genes x measured places."""
    variance = 1 / torch.diagonal(inverse, dim1=1, dim2=2)
    error = posterior.weights * variance
    return error, variance, -(error * posterior.weights + variance.log()) / 2


def leave_groups_out(posterior: Solved, inverse: Tensor, groups: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Return leave-group-out errors, variances and log densities of groups, genes x measured places."""
    error, variance, density = (torch.empty_like(posterior.weights) for _ in range(3))
    for group in map(torch.from_numpy, groups):
        weights, factor = posterior.weights[:, group], torch.linalg.cholesky(inverse[:, group[:, None], group])
        covariance = torch.cholesky_inverse(factor)
        error[:, group] = (covariance @ weights[:, :, None]).squeeze(2)
        variance[:, group] = torch.diagonal(covariance, dim1=1, dim2=2)
        log_determinant = 2 * torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
        density[:, group] = ((log_determinant - (error[:, group] * weights).sum(dim=1)) / 2)[:, None]
    return error, variance, density


def average_mixture(logs: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of mixtures over the first axis with weights softmax(logs)."""
    weight = torch.softmax(logs, dim=0)
    average = (weight * mean).sum(dim=0)
    return average, (weight * (variance + mean**2)).sum(dim=0) - average**2


def predict(law: Law, data: Measurements, kernels: list[np.ndarray], at: np.ndarray) -> Prediction:
    """Predict values at the places with indices ``at``, measured or not."""
    return contrasts(law, data, kernels, np.eye(data.level.shape[1])[at])


def contrasts(
    law: Law, data: Measurements, kernels: list[np.ndarray], weights: np.ndarray, *, variances: bool = True
) -> Prediction:
    """Predict weighted sums of values over places.

    Parameters
    ----------
    law
        Fitted prior.
    data
        Measurements.
    kernels
        Kernels of the hypotheses, places x places.
    weights
        Weights of the places in each sum, sums x places.
    variances
        Whether to compute posterior variances, which takes longer than means. If False, variances only include the
        differences between hypotheses.

    Returns
    -------
    Posterior of the sums, genes x sums.
    """
    tensors, results = [torch.from_numpy(kernel) for kernel in kernels], []
    place_weights, measured = torch.from_numpy(weights), torch.from_numpy(data.measured)
    for chunk in in_chunks(data):
        logs, means, spread, terms = [], [], [], []
        level = chunk.level @ place_weights.T
        for hypothesis, prior in zip(law.hypotheses, law.prior, strict=True):
            posterior = solve(hypothesis, chunk, tensors, law.slope)
            parts = prior_covariances(hypothesis, tensors, chunk.level.shape[1])
            cross = {name: place_weights @ covariance[:, measured] for name, covariance in parts.items()}
            square = hypothesis.level**2
            by_part = {name: posterior.weights @ part.T for name, part in cross.items()}
            by_level = (chunk.level[:, measured] * posterior.weights).sum(dim=1, keepdim=True)
            by_part["level"] = (square * by_level + law.slope) * level
            logs.append(posterior.evidence[:, None] + np.log(prior))
            terms.append(torch.stack([by_part[name] for name in PARTS]))
            means.append(terms[-1].sum(dim=0))
            if not variances:
                spread.append(torch.zeros_like(means[-1]))
                continue
            covariance = add_level(cross, hypothesis, level, chunk.level[:, measured])
            explained = (torch.cholesky_solve(covariance.mT.contiguous(), posterior.factor).mT * covariance).sum(dim=2)
            common = [(place_weights @ part * place_weights).sum(dim=1) for part in parts.values()]
            spread.append(torch.stack(common).sum(dim=0) + square * level**2 - explained)
        weight = torch.softmax(torch.stack(logs), dim=0)
        mean, variance = average_mixture(torch.stack(logs), torch.stack(means), torch.stack(spread))
        results.append((mean, variance, (weight[:, None] * torch.stack(terms)).sum(dim=0)))
    all_means, all_variances, all_terms = (torch.cat(part, dim=-2).numpy() for part in zip(*results, strict=True))
    return Prediction(all_means, np.maximum(all_variances, 0), dict(zip(PARTS, all_terms, strict=True)))


# ---- intervals

BINS = (0.0, 0.5, 0.8, 0.95, 1.0)  # quantiles of expression; each bin has its own calibration factor
QUANTILE = 1.6449  # 95% quantile of the standard normal, half the width of a 90% interval
N_CALIBRATED = 2000  # genes to calibrate on
MIN_GENES = 20  # minimum left-out values per bin; smaller bins are not calibrated


def calibration(
    law: Law,
    data: Measurements,
    kernels: list[np.ndarray],
    profile: np.ndarray,
    groups: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Calibrate 90% intervals on left-out values, by bin of expression.

    Parameters
    ----------
    law
        Fitted prior.
    data
        Measurements.
    kernels
        Kernels of the hypotheses, places x places.
    profile
        Log expression at the measured places, places x genes.
    groups
        Columns of measured places to leave out together; None to leave out one at a time.

    Returns
    -------
    Factor by bin; multiplied by it, standard deviations give intervals that cover 90% of left-out values.
    """
    genes = np.unique(np.linspace(0, len(data.effect) - 1, N_CALIBRATED).astype(int))
    mean, variance = left_out(law, data.genes(genes), kernels, groups)
    bins = np.stack([bins_of(log_expression)[genes] for log_expression in profile], axis=1)
    score = np.abs(data.effect[genes].numpy() - mean) / np.sqrt(variance)
    factors = []
    for number in range(len(BINS) - 1):
        scores = score[bins == number]
        factors.append(np.quantile(scores, 0.9) / QUANTILE if len(scores) >= MIN_GENES else 1.0)
    return np.array(factors)


def bins_of(profile: np.ndarray) -> np.ndarray:
    """Return the bin of each gene by its expression at one place."""
    edges = np.quantile(profile, BINS[1:-1])
    return np.searchsorted(edges, profile)
