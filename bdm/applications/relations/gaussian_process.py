"""Gaussian process of gene values over places.

Places are cell types, or nodes and times of a lineage. The value of a gene at place t, such as its log fold change in
a cell type, is normal with the moments

    mean(t) = slope x_t
    cov(t, u) = 1 + level**2 x_t x_u + strength**2 (shared K(t, u) + (1 - shared) [t = u]),

where x is a covariate of the gene and K is a kernel. For a tree, K is the path length that two places share (Brownian
motion along branches, Felsenstein 1985). Measurements add their sampling variance. Values at places without
measurements are predicted by their posterior, in closed form (kriging). All genes share the slope. Kernel, level,
strength and share differ between genes: each combination is a hypothesis. The shares of genes that follow each
hypothesis are estimated by maximum marginal likelihood (empirical Bayes), and the predictions for a gene are averaged
over hypotheses by posterior probability.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, groupby, product
from typing import Self

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
MAX_ENTRIES = 2**20  # of an array; larger arrays are slower, as the operating system zeroes new memory each time

# Calibration of intervals
BINS = (0.0, 0.5, 0.8, 0.95, 1.0)  # quantiles of expression; each bin has its own calibration factor
QUANTILE = 1.6449  # 95% quantile of the standard normal, half the width of a 90% interval
N_CALIBRATED = 2000  # genes to calibrate on
MIN_VALUES = 20  # minimum left-out values per bin; smaller bins are not calibrated

TERMS = ("common", "level", "related", "own")  # of the posterior mean


@dataclass(frozen=True)
class Hypothesis:
    """Hyperparameters of the covariance of a gene's values."""

    kernel: int  # index of the kernel; -1 for independent places
    shared: float
    strength: float
    level: float


@dataclass(frozen=True)
class Prior:
    """Fitted Gaussian-process prior: a mixture of hypotheses about the covariance."""

    hypotheses: tuple[Hypothesis, ...] = ()
    shares: np.ndarray = field(default_factory=lambda: np.empty(0))  # of genes that follow each hypothesis
    slope: float = 0.0  # mean change of a value per unit of the covariate, shared by all genes
    # Factors of posterior standard deviations, by bin of expression; 90% intervals cover 90% of left-out values
    calibration: np.ndarray = field(default_factory=lambda: np.ones(len(BINS) - 1))

    def sd_factors(self, profile: np.ndarray) -> np.ndarray:
        """Return the calibration factor of each gene from its log expression at a place."""
        return np.asarray(self.calibration[bins_of(profile)])


@dataclass(frozen=True)
class Posterior:
    """Posterior under one hypothesis, for C the covariance of measurements y with mean m."""

    evidence: Tensor  # log marginal likelihood of each gene, up to a constant
    weights: Tensor  # C^-1 (y - m), genes x measured places
    factor: Tensor  # Cholesky factor of C, genes x measured places x measured places

    def leave_out(self, groups: Sequence[np.ndarray] | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return errors, variances and log densities of left-out groups, genes x measured places."""
        inverse = torch.cholesky_inverse(self.factor)
        if groups is None:
            variance = 1 / torch.diagonal(inverse, dim1=1, dim2=2)
            error = self.weights * variance
            return error, variance, -(error * self.weights + variance.log()) / 2
        error, variance, density = (torch.empty_like(self.weights) for _ in range(3))
        for group in map(torch.from_numpy, groups):
            weights, factor = self.weights[:, group], torch.linalg.cholesky(inverse[:, group[:, None], group])
            covariance = torch.cholesky_inverse(factor)
            error[:, group] = (covariance @ weights[:, :, None]).squeeze(2)
            variance[:, group] = torch.diagonal(covariance, dim1=1, dim2=2)
            density[:, group] = ((log_determinant(factor) - (error[:, group] * weights).sum(dim=1)) / 2)[:, None]
        return error, variance, density


@dataclass(frozen=True)
class Prediction:
    """Posterior of weighted sums of values, each array genes x sums."""

    mean: np.ndarray
    variance: np.ndarray
    terms: dict[str, np.ndarray]  # of the mean, by the names in TERMS


@dataclass(frozen=True)
class GaussianProcess:
    """Gene values at places, with a Gaussian process for the places without measurements."""

    values: Tensor  # genes x measured places
    variance: Tensor  # sampling variance of the values
    covariate: Tensor  # centred x, such as log expression in the control, genes x all places
    measured: np.ndarray  # indices of the measured places
    kernels: list[Tensor]  # candidates, each places x places
    prior: Prior = field(default_factory=Prior)  # without hypotheses before it is fitted

    @property
    def n_places(self) -> int:
        """Number of places, measured or not."""
        return self.covariate.shape[1]

    @property
    def measured_covariate(self) -> Tensor:
        """Covariate at the measured places."""
        return self.covariate[:, torch.from_numpy(self.measured)]

    def select_genes(self, rows: slice | np.ndarray) -> Self:
        """Select a subset of the genes."""
        selected = {name: getattr(self, name)[rows] for name in ("values", "variance", "covariate")}
        return replace(self, **selected)

    def chunks(self) -> Iterator[Self]:
        """Yield chunks of genes with covariance matrices of at most ``MAX_ENTRIES`` entries in total."""
        step = max(1, MAX_ENTRIES // self.n_places**2)
        for start in range(0, len(self.values), step):
            yield self.select_genes(slice(start, start + step))

    def most_significant(self) -> np.ndarray:
        """Sort genes by mean squared z score, largest first, and return their rows."""
        return np.argsort(-(self.values**2 / self.variance).mean(dim=1).numpy(), kind="stable")

    # ---- prior

    def fit(self, *, levels: Sequence[float] = LEVELS) -> Self:
        """Fit the prior of hypotheses by maximum marginal likelihood on the most significant genes.

        Most genes are uninformative about the covariance and would shrink it. ``levels`` are the candidate strengths of
        the covariate.
        """
        sample = self.select_genes(self.most_significant()[:N_GENES])
        slope = sample.fit_slope()
        unrelated = product([-1], [0.0], STRENGTHS, levels)
        related = product(range(len(self.kernels)), SHARED, STRENGTHS, levels)
        hypotheses = [Hypothesis(*hyperparameters) for hyperparameters in chain(unrelated, related)]
        subsample = sample.select_genes(slice(None, None, max(1, len(sample.values) // N_SCREENED)))
        plausible = fit_shares(subsample.evidence(hypotheses, slope)) >= MIN_PRIOR / 10  # lenient, from few genes
        hypotheses = [hypothesis for hypothesis, keep in zip(hypotheses, plausible.tolist(), strict=True) if keep]
        evidence = sample.evidence(hypotheses, slope)
        shares = fit_shares(evidence)
        order = torch.argsort(shares, descending=True, stable=True)[:MAX_HYPOTHESES]
        kept = sorted(int(number) for number in order if shares[number] >= MIN_PRIOR) or [int(order[0])]
        prior = Prior(tuple(hypotheses[number] for number in kept), fit_shares(evidence[:, kept]).numpy(), slope)
        return replace(self, prior=prior)

    def fit_slope(self) -> float:
        """Regress values on the covariate within genes, weighted by precision; return the slope."""
        weight, covariate = 1 / (self.variance + 0.05), self.measured_covariate
        total = weight.sum(dim=1, keepdim=True)
        x = covariate - (weight * covariate).sum(dim=1, keepdim=True) / total
        y = self.values - (weight * self.values).sum(dim=1, keepdim=True) / total
        return float((weight * x * y).sum() / (weight * x * x).sum().clamp(min=1e-12))

    def evidence(self, hypotheses: list[Hypothesis], slope: float) -> Tensor:
        """Compute the log marginal likelihood, genes x hypotheses."""
        groups = [list(group) for _, group in groupby(hypotheses, key=lambda each: replace(each, level=0.0))]
        chunks = [[chunk.evidence_of_levels(group, slope) for group in groups] for chunk in self.chunks()]
        return torch.cat([torch.cat(chunk, dim=1) for chunk in chunks])

    def evidence_of_levels(self, hypotheses: list[Hypothesis], slope: float) -> Tensor:
        """Compute the log marginal likelihood of hypotheses that differ only in level.

        Their covariances are C + level**2 x x', so all share one factorisation of C (matrix determinant lemma).
        """
        measured, x = torch.from_numpy(self.measured), self.measured_covariate
        covariance = torch.stack([*self.prior_covariances(hypotheses[0]).values()]).sum(dim=0)[measured][:, measured]
        factor = torch.linalg.cholesky(covariance + torch.diag_embed(self.variance))
        whitened = torch.linalg.solve_triangular(factor, torch.stack([self.values - slope * x, x], dim=2), upper=False)
        products = whitened.mT @ whitened
        square = torch.tensor([hypothesis.level**2 for hypothesis in hypotheses], dtype=torch.double)
        added = square * products[:, 1, 1, None]
        explained = square * products[:, 0, 1, None] ** 2 / (1 + added)
        determinants = log_determinant(factor)[:, None] + torch.log1p(added)
        evidence: Tensor = -(products[:, 0, 0, None] - explained + determinants) / 2
        return evidence

    def prior_covariances(self, hypothesis: Hypothesis) -> dict[str, Tensor]:
        """Return the terms of the prior covariance that all genes share."""
        identity = torch.eye(self.n_places, dtype=torch.double)
        is_related = hypothesis.kernel >= 0
        kernel, shared = (self.kernels[hypothesis.kernel], hypothesis.shared) if is_related else (identity, 0.0)
        square = hypothesis.strength**2
        own = square * (1 - shared) * identity
        return {"common": torch.ones_like(identity), "related": square * shared * kernel, "own": own}

    # ---- posterior

    def condition(self, hypothesis: Hypothesis, slope: float) -> Posterior:
        """Condition a hypothesis on the measurements."""
        measured, covariate = torch.from_numpy(self.measured), self.measured_covariate
        terms = [term[measured][:, measured] for term in self.prior_covariances(hypothesis).values()]
        covariance = total_covariance(terms, hypothesis, covariate, covariate)
        covariance.diagonal(dim1=1, dim2=2).add_(self.variance)
        factor = torch.linalg.cholesky(covariance)
        residual = (self.values - slope * covariate)[:, :, None]
        weights = torch.cholesky_solve(residual, factor)
        evidence = -((residual * weights).sum(dim=(1, 2)) + log_determinant(factor)) / 2
        return Posterior(evidence, weights.squeeze(2), factor)

    def posteriors(self) -> Iterator[tuple[Hypothesis, float, Posterior]]:
        """Yield each hypothesis with its log share of genes and its posterior."""
        for hypothesis, share in zip(self.prior.hypotheses, self.prior.shares, strict=True):
            yield hypothesis, np.log(share), self.condition(hypothesis, self.prior.slope)

    def predict(self, places: np.ndarray) -> Prediction:
        """Predict values at places by their indices, measured or not."""
        return self.contrasts(np.eye(self.n_places)[places])

    def contrasts(self, weights: np.ndarray, *, variances: bool = True) -> Prediction:
        """Predict weighted sums of values over places.

        Parameters
        ----------
        weights
            Weights of the places in each sum, sums x places.
        variances
            Whether to compute posterior variances, which takes longer than means. If False, variances only include the
            differences between hypotheses.

        Returns
        -------
        Posterior of the sums, genes x sums.
        """
        place_weights, results = torch.from_numpy(weights), []
        for chunk in self.chunks():
            logs, means, spread, terms = [], [], [], []
            sum_covariate = chunk.covariate @ place_weights.T
            for hypothesis, log_share, posterior in chunk.posteriors():
                parts = chunk.prior_covariances(hypothesis)
                cross = {name: place_weights @ part[:, torch.from_numpy(self.measured)] for name, part in parts.items()}
                square = hypothesis.level**2
                by_term = {name: posterior.weights @ part.T for name, part in cross.items()}
                by_level = (chunk.measured_covariate * posterior.weights).sum(dim=1, keepdim=True)
                by_term["level"] = (square * by_level + self.prior.slope) * sum_covariate
                logs.append(posterior.evidence[:, None] + log_share)
                terms.append(torch.stack([by_term[name] for name in TERMS]))
                means.append(terms[-1].sum(dim=0))
                if not variances:
                    spread.append(torch.zeros_like(means[-1]))
                    continue
                covariance = total_covariance([*cross.values()], hypothesis, sum_covariate, chunk.measured_covariate)
                solved = torch.cholesky_solve(covariance.mT.contiguous(), posterior.factor)
                prior_variances = [(place_weights @ part * place_weights).sum(dim=1) for part in parts.values()]
                explained = (solved.mT * covariance).sum(dim=2)
                spread.append(torch.stack(prior_variances).sum(dim=0) + square * sum_covariate**2 - explained)
            weight = torch.softmax(torch.stack(logs), dim=0)
            mean, variance = average_mixture(logs, means, spread)
            results.append((mean, variance, (weight[:, None] * torch.stack(terms)).sum(dim=0)))
        all_means, all_variances, all_terms = (torch.cat(part, dim=-2).numpy() for part in zip(*results, strict=True))
        return Prediction(all_means, np.maximum(all_variances, 0), dict(zip(TERMS, all_terms, strict=True)))

    # ---- cross-validation

    def leave_out(self, groups: Sequence[np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Predict measured values by leave-one-out or leave-group-out cross-validation.

        Closed form (Sundararajan & Keerthi 2001): let y be the residuals of measurements and Q the inverse of their
        covariance. The error of the prediction of the left-out places G is Q_GG^-1 (Q y)_G, with covariance Q_GG^-1.

        Parameters
        ----------
        groups
            Columns of measured places to leave out together; each place is in one group. None to leave out one at a
            time.

        Returns
        -------
        Means and variances (including sampling variance), each genes x measured places.
        """
        results = []
        for chunk in self.chunks():
            logs, expected, spread = [], [], []
            for _, log_share, posterior in chunk.posteriors():
                error, variance, density = posterior.leave_out(groups)
                logs.append(posterior.evidence[:, None] - density + log_share)  # evidence of the other values
                expected.append(chunk.values - error)
                spread.append(variance)
            results.append(average_mixture(logs, expected, spread))
        means, variances = (torch.cat(part).numpy() for part in zip(*results, strict=True))
        return means, variances

    def calibrate(self, profile: np.ndarray, groups: Sequence[np.ndarray] | None = None) -> Self:
        """Calibrate 90% intervals on left-out values, by bin of expression.

        Parameters
        ----------
        profile
            Log expression at the measured places, places x genes.
        groups
            Columns of measured places to leave out together; None to leave out one at a time.
        """
        genes = np.unique(np.linspace(0, len(self.values) - 1, N_CALIBRATED).astype(int))
        mean, variance = self.select_genes(genes).leave_out(groups)
        bins = np.stack([bins_of(log_expression)[genes] for log_expression in profile], axis=1)
        score = np.abs(self.values[genes].numpy() - mean) / np.sqrt(variance)
        scores = [score[bins == number] for number in range(len(BINS) - 1)]
        factors = [np.quantile(of_bin, 0.9) / QUANTILE if len(of_bin) >= MIN_VALUES else 1.0 for of_bin in scores]
        return replace(self, prior=replace(self.prior, calibration=np.array(factors)))


def as_tensor(array: np.ndarray) -> Tensor:
    """Convert an array to double precision; its memory layout stays."""
    return torch.from_numpy(np.asarray(array, dtype=float))


def bins_of(profile: np.ndarray) -> np.ndarray:
    """Return the bin of each gene by its expression at one place."""
    return np.searchsorted(np.quantile(profile, BINS[1:-1]), profile)


def total_covariance(terms: list[Tensor], hypothesis: Hypothesis, left: Tensor, right: Tensor) -> Tensor:
    """Sum the covariance terms and the covariate's term, genes x places x places."""
    same_for_genes = torch.stack(terms).sum(dim=0)
    return torch.baddbmm(same_for_genes[None], left[:, :, None], right[:, None], alpha=hypothesis.level**2)


def log_determinant(factor: Tensor) -> Tensor:
    """Return log determinants of matrices from their Cholesky factors."""
    return 2 * torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)


def fit_shares(evidence: Tensor) -> Tensor:
    """Estimate the share of genes of each hypothesis by expectation maximisation."""
    shares = torch.full((evidence.shape[1],), 1 / evidence.shape[1], dtype=torch.double)
    for _ in range(N_STEPS):
        shares = torch.softmax(evidence + shares.clamp(min=1e-12).log(), dim=1).mean(dim=0)
    return shares


def average_mixture(logs: list[Tensor], means: list[Tensor], variances: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and variance of mixtures; the components have weights softmax(logs)."""
    weight, mean = torch.softmax(torch.stack(logs), dim=0), torch.stack(means)
    average = (weight * mean).sum(dim=0)
    return average, (weight * (torch.stack(variances) + mean**2)).sum(dim=0) - average**2
