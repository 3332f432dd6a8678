"""The law by which values of genes vary over places, such as cell types or moments of a lineage, and its intervals.

The value of a gene at a place t, such as its log fold change in a cell type, is normal with the mean slope x_t and the
covariance

    cov(t, u) = 1 + level**2 x_t x_u + strength**2 (shared K(t, u) + (1 - shared) [t = u]),

where x is a covariate of the gene, and K is a kernel, such as the length of the path that two places share in their
tree (Brownian motion along its branches, Felsenstein 1985). What was measured has its sampling variance on top. A value
that was never measured is then a conditional expectation, in closed form. All genes share the slope; kernel, level,
strength and share differ from gene to gene: each combination is a hypothesis, whose prior over genes is the one with
the highest marginal likelihood (empirical Bayes), and predictions are averaged over them by their posterior.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np
import torch
from torch import Tensor

STRENGTHS = tuple(np.geomspace(0.05, 2, 6).tolist())
SHARED = (0.5, 0.9, 0.99)
LEVELS = (0.0, 0.3)
N_GENES = 1000  # with the most significant values, whose marginal likelihood decides on the prior of hypotheses
N_SCREENED = 250  # of these, on which hypotheses are left out that explain hardly any gene
MIN_PRIOR = 0.01  # of a hypothesis that is kept
MAX_HYPOTHESES = 16
N_STEPS = 60  # of expectation maximisation
ENTRIES = 2**20  # of the largest array; larger ones are slower, as the system clears their memory each time


@dataclass(frozen=True)
class Hypothesis:
    """One covariance of a gene's values; ``kernel`` is its number, or -1 where places are independent."""

    kernel: int
    shared: float
    strength: float
    level: float


@dataclass(frozen=True)
class Law:
    """Hypotheses on the covariance of values, with their shares of genes.

    Attributes
    ----------
    slope
        Mean change of a value with the covariate, over genes.
    """

    hypotheses: tuple[Hypothesis, ...]
    prior: np.ndarray
    slope: float


@dataclass(frozen=True)
class Measurements:
    """Values of genes at the places where they were measured, such as log fold changes in cell types.

    Attributes
    ----------
    effect, variance
        Values with their sampling variances, genes x measured places.
    level
        The covariate, such as the log expression in the control, relative to its mean; genes x all places.
    measured
        Rows of the measured places among all.
    """

    effect: Tensor
    variance: Tensor
    level: Tensor
    measured: np.ndarray

    def genes(self, rows: slice | np.ndarray) -> "Measurements":
        """Take some of the genes."""
        return replace(self, effect=self.effect[rows], variance=self.variance[rows], level=self.level[rows])


@dataclass(frozen=True)
class Prediction:
    """Values at places, genes x places: mean, variance, and the parts that add up to the mean."""

    mean: np.ndarray
    variance: np.ndarray
    parts: dict[str, np.ndarray]


PARTS = ("common", "level", "related", "own")


def parts_of(hypothesis: Hypothesis, kernels: list[Tensor], n: int) -> dict[str, Tensor]:
    """Covariances of n places that are the same for all genes: of all places, of related places, of one place."""
    one = torch.eye(n, dtype=torch.double)
    kernel = kernels[hypothesis.kernel] if hypothesis.kernel >= 0 else one
    shared, square = (hypothesis.shared if hypothesis.kernel >= 0 else 0.0), hypothesis.strength**2
    return {"common": torch.ones_like(one), "related": square * shared * kernel, "own": square * (1 - shared) * one}


def with_level(parts: dict[str, Tensor], hypothesis: Hypothesis, left: Tensor, right: Tensor) -> Tensor:
    """Add up covariances, and that by the covariate (``left``, ``right``, genes x places); genes x places x places."""
    alike = torch.stack([*parts.values()]).sum(dim=0)
    return torch.baddbmm(alike[None], left[:, :, None], right[:, None], alpha=hypothesis.level**2)


@dataclass(frozen=True)
class Solved:
    """A hypothesis given measurements: log evidence of each gene, weights of measurements, Cholesky factor."""

    evidence: Tensor
    weights: Tensor  # genes x measured places
    factor: Tensor


def solve(hypothesis: Hypothesis, data: Measurements, kernels: list[Tensor], slope: float) -> Solved:
    """Condition a hypothesis on measurements."""
    measured = torch.from_numpy(data.measured)
    level = data.level[:, measured]
    parts = {
        name: part[measured][:, measured] for name, part in parts_of(hypothesis, kernels, data.level.shape[1]).items()
    }
    covariance = with_level(parts, hypothesis, level, level)
    covariance.diagonal(dim1=1, dim2=2).add_(data.variance)
    factor = torch.linalg.cholesky(covariance)
    residual = (data.effect - slope * level)[:, :, None]
    weights = torch.cholesky_solve(residual, factor)
    log_determinant = 2 * torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
    evidence = -((residual * weights).sum(dim=(1, 2)) + log_determinant) / 2
    return Solved(evidence, weights.squeeze(2), factor)


def fit_law(data: Measurements, kernels: list[np.ndarray], *, levels: Sequence[float] = LEVELS) -> Law:
    """Find the prior of hypotheses with the highest marginal likelihood, from the genes with the clearest values.

    The others, most of all genes, say little of how values covary, and would make all of them small.

    Parameters
    ----------
    kernels
        Covariances that compete, places x places.
    levels
        Strengths of the covariate that compete.
    """
    sample = data.genes(most_significant(data)[:N_GENES])
    slope = slope_of(sample)
    hypotheses = [Hypothesis(-1, 0.0, strength, level) for strength in STRENGTHS for level in levels]
    hypotheses += [
        Hypothesis(number, shared, strength, level)
        for number in range(len(kernels))
        for shared in SHARED
        for strength in STRENGTHS
        for level in levels
    ]
    tensors = [torch.from_numpy(kernel) for kernel in kernels]
    few = sample.genes(slice(None, None, max(1, len(sample.effect) // N_SCREENED)))
    plausible = maximise(evidence_of(hypotheses, few, tensors, slope)) >= MIN_PRIOR / 10
    hypotheses = [hypothesis for hypothesis, kept in zip(hypotheses, plausible.tolist(), strict=True) if kept]
    evidence = evidence_of(hypotheses, sample, tensors, slope)
    prior = maximise(evidence)
    order = torch.argsort(prior, descending=True, stable=True)[:MAX_HYPOTHESES]
    kept = sorted(int(number) for number in order if prior[number] >= MIN_PRIOR) or [int(order[0])]
    return Law(tuple(hypotheses[number] for number in kept), maximise(evidence[:, kept]).numpy(), slope)


def most_significant(data: Measurements) -> np.ndarray:
    """Rows of the genes in the order of their mean squared value, in units of its sampling variance."""
    return np.argsort(-(data.effect**2 / data.variance).mean(dim=1).numpy(), kind="stable")


def evidence_of(hypotheses: list[Hypothesis], data: Measurements, kernels: list[Tensor], slope: float) -> Tensor:
    """Log evidence of each hypothesis, genes x hypotheses."""
    alike = [list(group) for _, group in groupby(hypotheses, key=lambda hypothesis: replace(hypothesis, level=0.0))]
    parts = [[evidence_by_level(group, part, kernels, slope) for group in alike] for part in in_chunks(data)]
    return torch.cat([torch.cat(of_part, dim=1) for of_part in parts])


def evidence_by_level(hypotheses: list[Hypothesis], data: Measurements, kernels: list[Tensor], slope: float) -> Tensor:
    """Log evidence of hypotheses that differ in their level alone, genes x hypotheses.

    Their covariances are C + level**2 x x', so one factor of C serves all (matrix determinant lemma).
    """
    measured = torch.from_numpy(data.measured)
    x = data.level[:, measured]
    parts = parts_of(hypotheses[0], kernels, data.level.shape[1]).values()
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


def maximise(evidence: Tensor) -> Tensor:
    """Shares of genes by hypothesis with the highest marginal likelihood, by expectation maximisation."""
    prior = torch.full((evidence.shape[1],), 1 / evidence.shape[1], dtype=torch.double)
    for _ in range(N_STEPS):
        prior = torch.softmax(evidence + prior.clamp(min=1e-12).log(), dim=1).mean(dim=0)
    return prior


def slope_of(data: Measurements) -> float:
    """Regression of values on the covariate over places, pooled over genes and weighted by precision."""
    measured = torch.from_numpy(data.measured)
    weight = 1 / (data.variance + 0.05)
    level = data.level[:, measured]
    total = weight.sum(dim=1, keepdim=True)
    x = level - (weight * level).sum(dim=1, keepdim=True) / total
    y = data.effect - (weight * data.effect).sum(dim=1, keepdim=True) / total
    return float((weight * x * y).sum() / (weight * x * x).sum().clamp(min=1e-12))


def in_chunks(data: Measurements) -> Iterator[Measurements]:
    """Divide the genes, so that a covariance matrix for each fits into memory."""
    step = max(1, ENTRIES // data.level.shape[1] ** 2)
    for start in range(0, len(data.effect), step):
        yield data.genes(slice(start, start + step))


def left_out(
    law: Law, data: Measurements, kernels: list[np.ndarray], groups: Sequence[np.ndarray] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Predict measured places from all others: mean, and variance with sampling noise, genes x measured places.

    In closed form (Sundararajan & Keerthi 2001): with the inverse Q of the covariance of measurements y, the prediction
    of the places G that are left out together differs from what was measured by Q_GG^-1 (Q y)_G, and has the covariance
    Q_GG^-1.

    Parameters
    ----------
    groups
        Columns of the measured places that are left out together, each in one group; each alone, if not given.
    """
    tensors, means, variances = [torch.from_numpy(kernel) for kernel in kernels], [], []
    for part in in_chunks(data):
        logs, expected, spread = [], [], []
        for hypothesis, prior in zip(law.hypotheses, law.prior, strict=True):
            found = solve(hypothesis, part, tensors, law.slope)
            inverse = torch.cholesky_inverse(found.factor)
            off, variance, density = (
                each_left_out(found, inverse) if groups is None else groups_left_out(found, inverse, groups)
            )
            logs.append(found.evidence[:, None] - density + np.log(prior))
            expected.append(part.effect - off)
            spread.append(variance)
        mean, variance = averaged(*(torch.stack(tensors) for tensors in (logs, expected, spread)))
        means.append(mean)
        variances.append(variance)
    return torch.cat(means).numpy(), torch.cat(variances).numpy()


def each_left_out(found: Solved, inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of places that are left out alone, their variances and log densities, genes x measured places."""
    variance = 1 / torch.diagonal(inverse, dim1=1, dim2=2)
    off = found.weights * variance
    return off, variance, -(off * found.weights + variance.log()) / 2


def groups_left_out(found: Solved, inverse: Tensor, groups: Sequence[np.ndarray]) -> tuple[Tensor, Tensor, Tensor]:
    """Errors of places that are left out with their group, their variances, and the log densities of their group."""
    off, variance, density = (torch.empty_like(found.weights) for _ in range(3))
    for group in map(torch.from_numpy, groups):
        weights, factor = found.weights[:, group], torch.linalg.cholesky(inverse[:, group[:, None], group])
        covariance = torch.cholesky_inverse(factor)
        off[:, group] = (covariance @ weights[:, :, None]).squeeze(2)
        variance[:, group] = torch.diagonal(covariance, dim1=1, dim2=2)
        log_determinant = 2 * torch.log(torch.diagonal(factor, dim1=1, dim2=2)).sum(dim=1)
        density[:, group] = ((log_determinant - (off[:, group] * weights).sum(dim=1)) / 2)[:, None]
    return off, variance, density


def averaged(logs: Tensor, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of mixtures over the first axis, whose weights are exp(logs) up to a constant."""
    weight = torch.softmax(logs, dim=0)
    average = (weight * mean).sum(dim=0)
    return average, (weight * (variance + mean**2)).sum(dim=0) - average**2


def predict(law: Law, data: Measurements, kernels: list[np.ndarray], at: np.ndarray) -> Prediction:
    """Condition the law on measurements, at the places in rows ``at``, measured or not."""
    return contrasts(law, data, kernels, np.eye(data.level.shape[1])[at])


def contrasts(
    law: Law, data: Measurements, kernels: list[np.ndarray], weights: np.ndarray, *, variances: bool = True
) -> Prediction:
    """Condition the law on measurements, and predict weighted sums over places.

    Parameters
    ----------
    weights
        Sums x places.
    variances
        Whether to compute variances, which takes longer than the means; they are only those between hypotheses if not.
    """
    tensors, results = [torch.from_numpy(kernel) for kernel in kernels], []
    weight_of, measured = torch.from_numpy(weights), torch.from_numpy(data.measured)
    for part in in_chunks(data):
        logs, means, spread, pieces = [], [], [], []
        level = part.level @ weight_of.T
        for hypothesis, prior in zip(law.hypotheses, law.prior, strict=True):
            found = solve(hypothesis, part, tensors, law.slope)
            parts = parts_of(hypothesis, tensors, part.level.shape[1])
            cross = {name: weight_of @ covariance[:, measured] for name, covariance in parts.items()}
            square = hypothesis.level**2
            added = {name: found.weights @ piece.T for name, piece in cross.items()}
            by_level = (part.level[:, measured] * found.weights).sum(dim=1, keepdim=True)
            added["level"] = (square * by_level + law.slope) * level
            logs.append(found.evidence[:, None] + np.log(prior))
            pieces.append(torch.stack([added[name] for name in PARTS]))
            means.append(pieces[-1].sum(dim=0))
            if not variances:
                spread.append(torch.zeros_like(means[-1]))
                continue
            together = with_level(cross, hypothesis, level, part.level[:, measured])
            explained = (torch.cholesky_solve(together.mT.contiguous(), found.factor).mT * together).sum(dim=2)
            alike = torch.stack([(weight_of @ whole * weight_of).sum(dim=1) for whole in parts.values()]).sum(dim=0)
            spread.append(alike + square * level**2 - explained)
        weight = torch.softmax(torch.stack(logs), dim=0)
        mean, variance = averaged(torch.stack(logs), torch.stack(means), torch.stack(spread))
        results.append((mean, variance, (weight[:, None] * torch.stack(pieces)).sum(dim=0)))
    means_of, variances_of, parts_of_mean = (torch.cat(kind, dim=-2).numpy() for kind in zip(*results, strict=True))
    return Prediction(means_of, np.maximum(variances_of, 0), dict(zip(PARTS, parts_of_mean, strict=True)))


# ---- intervals

BINS = (0.0, 0.5, 0.8, 0.95, 1.0)  # quantiles of expression between which intervals are calibrated
QUANTILE = 1.6449  # of the standard normal, between which and its negative 90% are
N_CALIBRATED = 2000  # genes, on which intervals are calibrated
MIN_GENES = 20  # of a bin whose intervals are calibrated


def calibration(
    law: Law,
    data: Measurements,
    kernels: list[np.ndarray],
    profile: np.ndarray,
    groups: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Factor of standard deviations by bin of expression, with which 90% intervals have 90% of left-out values.

    Parameters
    ----------
    profile
        Log expression at the measured places, places x genes.
    groups
        Places that are left out together; each alone, if not given.
    """
    genes = np.unique(np.linspace(0, len(data.effect) - 1, N_CALIBRATED).astype(int))
    mean, variance = left_out(law, data.genes(genes), kernels, groups)
    bins = np.stack([bins_of(of_place)[genes] for of_place in profile], axis=1)
    score = np.abs(data.effect[genes].numpy() - mean) / np.sqrt(variance)
    factors = []
    for number in range(len(BINS) - 1):
        of_bin = score[bins == number]
        factors.append(np.quantile(of_bin, 0.9) / QUANTILE if len(of_bin) >= MIN_GENES else 1.0)
    return np.array(factors)


def bins_of(profile: np.ndarray) -> np.ndarray:
    """Bin of each gene by its expression at a place."""
    edges = np.quantile(profile, BINS[1:-1])
    return np.searchsorted(edges, profile)
