"""Gaussian process of gene values over places.

Places are cell types, conditions, or nodes and times of a lineage. The value of a gene at place t, such as its log fold
change in a cell type, is normal with the moments

    mean(t) = slope x_t
    cov(t, u) = constant**2 + level**2 x_t x_u + strength**2 (shared K(t, u) + (1 - shared) [t = u]),

where x is a covariate of the gene and K is a kernel. For a tree, K is the path length that two places share (Brownian
motion along branches, Felsenstein 1985). A measurement adds its sampling error, which may be correlated with the errors
of other measurements, as if the same donors or controls are in both. Values at places without measurements are
predicted by their posterior, in closed form (kriging), from their kernels with the measured places alone. All genes
share the slope. Kernel, constant, level, strength and
share differ between genes: each combination is a hypothesis, and one of them says that the gene does not vary. The
shares of genes that follow each hypothesis are estimated by maximum marginal likelihood (empirical Bayes), and the
predictions for a gene are averaged over hypotheses by posterior probability.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import chain, groupby, product
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.errors import InputError
from bdm._core.files import write_table
from bdm._core.store import Result

# Candidate hyperparameters
STRENGTHS = tuple(np.geomspace(0.1, 2, 5).tolist())
SHARED = (0.5, 0.9, 0.99)
LEVELS = (0.0, 0.3)
CONSTANTS = (1.0,)  # weaker ones shrink the common responses of the genes that change most
WEAK_CONSTANTS = (0.0, 0.3)  # for values that other predictions are subtracted from, or centred values
N_GENES = 1000  # most significant genes, to fit the prior
N_SCREENED = 250  # subset of these, to screen hypotheses
MIN_PRIOR = 0.01  # minimum share of genes of a hypothesis
MAX_HYPOTHESES = 16
N_STEPS = 60  # of expectation maximisation
MAX_ENTRIES = 2**20  # of an array; larger arrays are slower, as the operating system zeroes new memory each time
MIN_PLACES_PER_COLUMN = 3  # of a low-rank covariance; with fewer, a dense one is as fast
HIDDEN = 1e6  # sampling variance of values that are unknown

# Calibration of intervals
SIZES = (0.5, 1.0, 2.0)  # limits of bins of predictions, as absolute log2 values; each bin has its own factor
QUANTILE = 1.6449  # 95% quantile of the standard normal, half the width of a 90% interval
N_CALIBRATED = 1000  # genes to calibrate on: as many of the most significant ones as of all
MIN_VALUES = 50  # minimum predictions of a group in a bin, such as a condition, to say how well its intervals hold
FEWEST_VALUES = 9  # of a bin; with fewer, the factor is that of smaller predictions, or larger
MOST_GROUPS = 0.9  # of groups of predictions, each with a coverage of 90%
MIN_FACTOR = 1.0  # of standard deviations; sampling variances of rare genes are overestimated, which narrows intervals

BY_GENE = ("values", "variance", "covariate", "shared_errors")  # arrays of a process with a row for each gene
TERMS = ("common", "level", "related", "own")  # of the posterior mean


@dataclass(frozen=True)
class Hypothesis:
    """Hyperparameters of the covariance of a gene's values."""

    kernel: int  # index of the kernel; -1 for independent places
    shared: float
    strength: float
    constant: float
    level: float

    @property
    def squares(self) -> dict[str, float]:
        """Variances of what all, related and single places have in common, and of the effect of the covariate."""
        square, shared = self.strength**2, self.shared if self.kernel >= 0 else 0.0
        of_places = {"common": self.constant**2, "related": square * shared, "own": square * (1 - shared)}
        return of_places | {"level": self.level**2}


UNCHANGED = Hypothesis(kernel=-1, shared=0.0, strength=0.05, constant=0.0, level=0.0)  # but for 5% at each place


@dataclass(frozen=True)
class Prior:
    """Fitted Gaussian-process prior: a mixture of hypotheses about the covariance."""

    hypotheses: tuple[Hypothesis, ...] = ()
    shares: np.ndarray = field(default_factory=lambda: np.empty(0))  # of genes that follow each hypothesis
    slope: float = 0.0  # mean change of a value per unit of the covariate, shared by all genes
    # Factors of posterior standard deviations, kinds of predictions x bins of size, so that 90% intervals cover 90% of
    # independent measurements
    calibration: np.ndarray = field(default_factory=lambda: np.ones((1, len(SIZES) + 1)))

    def sd_factors(self, mean: np.ndarray, kind: int | np.ndarray = 0) -> np.ndarray:
        """Return the calibration factor of each prediction by its kind, in the shape of ``mean``."""
        return np.asarray(self.calibration[np.minimum(kind, len(self.calibration) - 1), bins_of(mean)])

    def calibrated(self, *kinds: "Sequence[Intervals]") -> Self:
        """Calibrate the intervals of each kind of predictions."""
        none = np.ones(len(SIZES) + 1)
        return replace(self, calibration=np.array([Intervals.join(each).factors() if each else none for each in kinds]))

    def kernel_shares(self, n_kernels: int) -> np.ndarray:
        """Sum the shares of genes that follow each kernel."""
        numbers = [hypothesis.kernel + 1 for hypothesis in self.hypotheses]
        return np.bincount(numbers, self.shares, n_kernels + 1)[1:]

    def split(self, kernel: int, other: int, share: float) -> Self:
        """Move a share of the genes of a kernel to another one, which measurements cannot tell apart."""
        pairs = [*zip(self.hypotheses, self.shares, strict=True)]
        kept = [(each, part * (1 - share if each.kernel == kernel else 1)) for each, part in pairs]
        moved = [(replace(each, kernel=other), part * share) for each, part in pairs if each.kernel == kernel]
        hypotheses, shares = zip(*kept, *moved, strict=True)
        return replace(self, hypotheses=hypotheses, shares=np.array(shares))


@dataclass(frozen=True)
class Covariance:
    """Covariance C of the measurements of each gene, inverted: C^-1 = diag(weight) + sign V M^-1 V'."""

    weight: Tensor  # genes x places
    sign: int
    columns: Tensor  # V, genes x places x columns
    factor: Tensor  # Cholesky factor of M

    @classmethod
    def from_matrix(cls, matrix: Tensor) -> Self:
        """Invert dense matrices M = C."""
        identity = torch.eye(matrix.shape[1], dtype=torch.double)
        return cls(torch.zeros(matrix.shape[:2], dtype=torch.double), 1, identity, torch.linalg.cholesky(matrix))

    @classmethod
    def from_columns(cls, diagonal: Tensor, columns: Tensor) -> Self:
        """Invert C = D + U U' by the Woodbury identity; with few columns, this is far faster than a dense matrix."""
        weighted, identity = columns / diagonal[:, :, None], torch.eye(columns.shape[2], dtype=torch.double)
        return cls(1 / diagonal, -1, weighted, torch.linalg.cholesky(identity + columns.mT @ weighted))

    @property
    def log_determinant(self) -> Tensor:
        """Log determinant of C, by gene."""
        of_factor = log_determinant(self.factor)
        return of_factor if self.sign > 0 else of_factor - self.weight.log().sum(dim=1)

    def solve(self, columns: Tensor) -> Tensor:
        """Return C^-1 times columns, genes x places x columns."""
        solved = torch.cholesky_solve(self.columns.mT @ columns, self.factor)
        return self.weight[:, :, None] * columns + self.sign * (self.columns @ solved)

    @cached_property
    def root(self) -> Tensor:
        """Root A of V M^-1 V' = A A'."""
        root: Tensor = torch.linalg.solve_triangular(self.factor, self.columns.mT, upper=False).mT
        return root

    def inverse_blocks(self, groups: Tensor) -> Tensor:
        """Return the blocks of C^-1 for groups of places (groups x size), genes x groups x size x size."""
        root = self.root[:, groups]
        blocks: Tensor = torch.diag_embed(self.weight[:, groups]) + self.sign * (root @ root.mT)
        return blocks


@dataclass(frozen=True)
class Posterior:
    """Posterior under one hypothesis, for C the covariance of measurements y with mean m."""

    evidence: Tensor  # log marginal likelihood of each gene, up to a constant
    weights: Tensor  # C^-1 (y - m), genes x measured places
    covariance: Covariance  # C


@dataclass(frozen=True)
class Prediction:
    """Posterior of weighted sums of values, each array genes x sums."""

    mean: np.ndarray
    variance: np.ndarray
    terms: dict[str, np.ndarray]  # of the mean, by the names in TERMS


@dataclass(frozen=True)
class GaussianProcess(Result):
    """Gene values at measured places, with a Gaussian process for other places.

    ::

        process = bdm.tl.GaussianProcess.from_arrays(values, variance, [kernel(measured, measured)]).fit()
        predicted = process.predict([kernel(new, measured)], [kernel(new, new)])  # mean, variance: genes x new

    A kernel is any positive semi-definite function of two places that is about 1 for equal ones, such as
    ``lambda a, b: np.exp(-np.abs(np.subtract.outer(a, b)))``.

    Attributes
    ----------
    values, variance
        Measured values, and the variances of their independent errors, genes x places.
    covariate
        Covariate x of the mean and covariance, genes x places.
    kernels
        Candidate kernels, each places x places.
    shared_errors
        Errors that measurements share, genes x places x sources: what one standard deviation of each source,
        such as the cells of a common control, adds to each measurement.
    prior
        Mixture of hypotheses; empty before :meth:`fit`.
    """

    kind = "gaussian_process"

    values: Tensor
    variance: Tensor
    covariate: Tensor
    kernels: tuple[Tensor, ...]
    shared_errors: Tensor
    prior: Prior = field(default_factory=Prior)

    @classmethod
    def from_arrays(
        cls,
        values: np.ndarray,
        variance: np.ndarray,
        kernels: Sequence[np.ndarray] = (),
        *,
        covariate: np.ndarray | None = None,
        shared_errors: np.ndarray | None = None,
        prior: Prior = Prior(),
    ) -> Self:
        """Make a Gaussian process from arrays; see the attributes for their shapes.

        By default, the covariate is 0, and no errors are shared.

        Raises
        ------
        InputError
            If the shapes do not agree.
        """
        x = np.zeros(values.shape) if covariate is None else covariate
        errors = np.zeros((*values.shape, 0)) if shared_errors is None else shared_errors
        reject_shapes({"variance": variance, "covariate": x}, values.shape)
        reject_shapes({"shared_errors": errors}, (*values.shape, errors.shape[-1]))
        reject_shapes({f"kernel {number}": each for number, each in enumerate(kernels)}, values.shape[1:] * 2)
        by_gene = dict(zip(BY_GENE, map(as_tensor, (values, variance, x, errors)), strict=True))
        return cls(**by_gene, kernels=tuple(map(as_tensor, kernels)), prior=prior)

    @property
    def n_places(self) -> int:
        """Number of measured places."""
        return self.values.shape[1]

    @cached_property
    def sampling_covariance(self) -> Tensor:
        """Covariance of the errors of measurements, genes x places x places."""
        return torch.diag_embed(self.variance) + self.shared_errors @ self.shared_errors.mT

    @property
    def sampling_variance(self) -> Tensor:
        """Variance of the errors of measurements, genes x places."""
        return self.variance + (self.shared_errors**2).sum(dim=2)

    def select_genes(self, rows: slice | np.ndarray) -> Self:
        """Select a subset of the genes."""
        return replace(self, **{name: getattr(self, name)[rows] for name in BY_GENE})

    @classmethod
    def stack(cls, processes: "Sequence[GaussianProcess]") -> "GaussianProcess":
        """Join the genes of processes with the same places."""
        joined = {name: torch.cat([getattr(process, name) for process in processes]) for name in BY_GENE}
        return replace(processes[0], **joined)  # type: ignore[arg-type]

    @property
    def chunk_size(self) -> int:
        """Number of genes whose covariance matrices have at most ``MAX_ENTRIES`` entries in total."""
        return max(1, MAX_ENTRIES // self.n_places**2)

    def chunks(self) -> Iterator[Self]:
        """Yield chunks of genes."""
        for start in range(0, len(self.values), self.chunk_size):
            chunk = self.select_genes(slice(start, start + self.chunk_size))
            vars(chunk)["roots"] = self.roots  # which all genes share
            yield chunk

    def most_significant(self) -> np.ndarray:
        """Sort genes by mean squared z score, largest first, and return their rows."""
        return np.argsort(-(self.values**2 / self.sampling_variance).mean(dim=1).numpy(), kind="stable")

    def _write_tables(self, folder: Path) -> None:
        table = pd.DataFrame(self.prior.hypotheses, columns=list(Hypothesis.__annotations__))
        write_table(table.assign(share=self.prior.shares), folder / "hypotheses.csv", digits=4)

    # ---- prior

    def fit(self, *, levels: Sequence[float] = LEVELS, constants: Sequence[float] = CONSTANTS) -> Self:
        """Fit the prior of hypotheses by maximum marginal likelihood on the most significant genes.

        Most genes are uninformative about the covariance and would shrink it. The hypothesis that a gene is
        unchanged is always kept.

        Parameters
        ----------
        levels, constants
            Candidate strengths of the covariate and of the constant.
        """
        slope = self.fit_slope()
        sample = self.select_genes(self.most_significant()[:N_GENES])
        unrelated = product([-1], [0.0], STRENGTHS, constants, levels)
        related = product(range(len(self.kernels)), SHARED, STRENGTHS, constants, levels)
        hypotheses = [UNCHANGED, *(Hypothesis(*hyperparameters) for hyperparameters in chain(unrelated, related))]
        subsample = sample.select_genes(slice(None, None, max(1, len(sample.values) // N_SCREENED)))
        shares = fit_shares(subsample.evidence(hypotheses, slope))
        is_plausible = shares >= MIN_PRIOR / 10  # lenient, from few genes
        is_plausible[hypotheses.index(UNCHANGED)] = True
        plausible = [each for each, keep in zip(hypotheses, is_plausible.tolist(), strict=True) if keep]
        kept, shares = select_hypotheses(sample.evidence(plausible, slope), plausible.index(UNCHANGED))
        prior = Prior(tuple(plausible[number] for number in kept), shares.clamp(min=MIN_PRIOR / 10).numpy(), slope)
        return replace(self, prior=prior)

    def fit_slope(self) -> float:
        """Regress values on the covariate within genes, weighted by precision.

        Returns the slope, shrunk by its sampling variance (positive-part James-Stein estimate).
        """
        weight, covariate = 1 / (self.sampling_variance + 0.05), self.covariate
        total = weight.sum(dim=1, keepdim=True)
        x = covariate - (weight * covariate).sum(dim=1, keepdim=True) / total
        y = self.values - (weight * self.values).sum(dim=1, keepdim=True) / total
        information = float((weight * x * x).sum().clamp(min=1e-12))
        slope = float((weight * x * y).sum()) / information
        return slope * max(1 - 1 / max(information * slope**2, 1e-12), 0)

    def evidence(self, hypotheses: list[Hypothesis], slope: float) -> Tensor:
        """Compute the log marginal likelihood, genes x hypotheses."""
        same_factor = groupby(hypotheses, key=lambda each: replace(each, constant=0.0, level=0.0))
        groups = [list(group) for _, group in same_factor]
        chunks = [[chunk.evidence_of_group(group, slope) for group in groups] for chunk in self.chunks()]
        return torch.cat([torch.cat(chunk, dim=1) for chunk in chunks])

    def evidence_of_group(self, hypotheses: list[Hypothesis], slope: float) -> Tensor:
        """Compute the log marginal likelihood of hypotheses that differ only in constant and level.

        Their covariances are C + U U', where U has the columns constant and level x, so all share one factorisation of
        C (matrix determinant lemma).
        """
        x, covariance = self.covariate, self.covariance(replace(hypotheses[0], constant=0.0, level=0.0))
        columns = torch.stack([self.values - slope * x, torch.ones_like(x), x], dim=2)
        products = columns.mT @ covariance.solve(columns)
        strengths = torch.tensor([(each.constant, each.level) for each in hypotheses], dtype=torch.double)
        inner = strengths[:, :, None] * products[:, None, 1:, 1:] * strengths[:, None]
        inner = inner + torch.eye(2, dtype=torch.double)
        right = strengths * products[:, None, 0, 1:]
        explained = (right * torch.linalg.solve(inner, right)).sum(dim=2)
        determinants = covariance.log_determinant[:, None] + torch.logdet(inner)
        evidence: Tensor = -(products[:, 0, 0, None] - explained + determinants) / 2
        return evidence

    @cached_property
    def roots(self) -> dict[int, Tensor | None]:
        """Low-rank roots of kernels, as far as they were needed."""
        return {-1: torch.zeros((self.n_places, 0), dtype=torch.double)}

    def root(self, kernel: int) -> Tensor | None:
        """Return the low-rank root of a kernel; None if its rank is not low."""
        if kernel not in self.roots:
            max_rank = self.n_places // MIN_PLACES_PER_COLUMN - self.shared_errors.shape[2] - 2
            self.roots[kernel] = low_rank_root(self.kernels[kernel], max_rank)
        return self.roots[kernel]

    def covariance(self, hypothesis: Hypothesis) -> Covariance:
        """Return the covariance of the measurements of each gene."""
        x, root, squares = self.covariate, self.root(hypothesis.kernel), hypothesis.squares
        if root is None:
            identity = torch.eye(self.n_places, dtype=torch.double)
            same = squares["related"] * self.kernels[hypothesis.kernel] + squares["own"] * identity
            covariance = with_level(squares["common"] + same, squares["level"], x, x) + self.sampling_covariance
            return Covariance.from_matrix(covariance)
        related = (squares["related"] ** 0.5 * root).expand(len(x), *root.shape)
        constant, level = torch.full_like(x, hypothesis.constant), hypothesis.level * x
        columns = torch.cat([self.shared_errors, constant[:, :, None], level[:, :, None], related], dim=2)
        return Covariance.from_columns(self.variance + squares["own"], columns)

    # ---- posterior

    def posteriors(self) -> Iterator[tuple[Hypothesis, float, Posterior]]:
        """Yield each hypothesis with its log share of genes and its posterior."""
        residual = (self.values - self.prior.slope * self.covariate)[:, :, None]
        for hypothesis, share in zip(self.prior.hypotheses, self.prior.shares, strict=True):
            covariance = self.covariance(hypothesis)
            weights = covariance.solve(residual)
            evidence = -((residual * weights).sum(dim=(1, 2)) + covariance.log_determinant) / 2
            yield hypothesis, np.log(share), Posterior(evidence, weights.squeeze(2), covariance)

    def predict(
        self,
        cross: Sequence[np.ndarray],
        within: Sequence[np.ndarray],
        *,
        covariate: np.ndarray | None = None,
        measured: np.ndarray | None = None,
        weights: np.ndarray | None = None,
        variances: bool = True,
    ) -> Prediction:
        """Predict values at places, measured or not, or weighted sums of these values.

        Parameters
        ----------
        cross, within
            Each kernel between the places to predict and the measured ones, and between the places to predict.
        covariate
            Covariate at the places to predict, genes x places; 0 by default.
        measured
            Measured place that each place to predict is, by index; -1 for places without measurements, the default.
        weights
            Weights of the places in each sum, sums x places. By default, each place is a sum of its own.
        variances
            Whether to compute posterior variances, which takes longer than means. If False, variances only include the
            differences between hypotheses.

        Returns
        -------
        Posterior of the sums, genes x sums.
        """
        place = np.full(len(within[0]), -1) if measured is None else measured
        n, is_same = len(place), np.equal.outer(place, np.arange(self.n_places))
        reject_shapes({f"cross kernel {number}": each for number, each in enumerate(cross)}, is_same.shape)
        weight = torch.from_numpy(np.eye(n) if weights is None else weights)
        total, x = weight.sum(dim=1), as_tensor(np.zeros((len(self.values), n)) if covariate is None else covariate)
        with_measured = [weight @ as_tensor(each) for each in (*cross, is_same)]  # independent places come last
        alone = [(weight @ as_tensor(each) * weight).sum(dim=1) for each in (*within, np.eye(n))]
        results = []
        for chunk, sums in zip(self.chunks(), (x @ weight.T).split(self.chunk_size), strict=True):
            logs, means, spread, terms = [], [], [], []
            for hypothesis, log_share, posterior in chunk.posteriors():
                squares, number = hypothesis.squares, hypothesis.kernel
                parts = {
                    "common": squares["common"] * total[:, None].expand(-1, self.n_places),
                    "related": squares["related"] * with_measured[number],
                    "own": squares["own"] * with_measured[-1],
                }
                by_term = {name: posterior.weights @ part.T for name, part in parts.items()}
                by_level = (chunk.covariate * posterior.weights).sum(dim=1, keepdim=True)
                by_term["level"] = (squares["level"] * by_level + self.prior.slope) * sums
                logs.append(posterior.evidence[:, None] + log_share)
                terms.append(torch.stack([by_term[name] for name in TERMS]))
                means.append(terms[-1].sum(dim=0))
                if not variances:
                    spread.append(torch.zeros_like(means[-1]))
                    continue
                same_for_genes = parts["common"] + parts["related"] + parts["own"]
                covariance = with_level(same_for_genes, squares["level"], sums, chunk.covariate)
                explained = (posterior.covariance.solve(covariance.mT.contiguous()).mT * covariance).sum(dim=2)
                prior = squares["common"] * total**2 + squares["related"] * alone[number] + squares["own"] * alone[-1]
                spread.append(prior + squares["level"] * sums**2 - explained)
            share = torch.softmax(torch.stack(logs), dim=0)
            mean, variance = average_mixture(logs, means, spread)
            results.append((mean, variance, (share[:, None] * torch.stack(terms)).sum(dim=0)))
        all_means, all_variances, all_terms = (torch.cat(part, dim=-2).numpy() for part in zip(*results, strict=True))
        return Prediction(all_means, np.maximum(all_variances, 0), dict(zip(TERMS, all_terms, strict=True)))

    # ---- cross-validation

    def leave_out(self, groups: Sequence[np.ndarray] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Predict values at measured places by leave-one-out or leave-group-out cross-validation.

        The values of a group of places G are predicted from the other measurements, without their sampling errors.
        Closed form (after Sundararajan & Keerthi 2001): let r be the residuals of measurements, S the covariance of
        their errors, and Q the inverse of their covariance. With B = (1 - S Q)_GG, the residuals are predicted as
        (r - S Q r)_G - B Q_GG^-1 (Q r)_G. Their covariance is (S - S Q S)_GG + B Q_GG^-1 B'.

        Parameters
        ----------
        groups
            Indices of places to leave out together; each place is in one group. None to leave out one at a time.

        Returns
        -------
        Means and variances of the values, each genes x places.
        """
        return self.smooth_and_leave_out(groups)[1]

    def smooth_and_leave_out(
        self, groups: Sequence[np.ndarray] | None = None
    ) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Predict values at measured places from all measurements, and from those of other groups.

        Returns means and variances of both; the first ones are r - S Q r and S - S Q S (see :meth:`leave_out`).
        """
        singles, results = torch.arange(self.n_places)[:, None], []
        ordered = groupby(sorted(singles.numpy() if groups is None else groups, key=len), key=len)
        by_size = [torch.from_numpy(np.stack([*same])) for _, same in ordered]  # each groups x size
        for chunk in self.chunks():
            noise, shared = chunk.variance, chunk.shared_errors  # S = diag(noise) + E E'
            logs, means, variances, all_measured = [], [], [], []
            for _, log_share, posterior in chunk.posteriors():
                product, weights = posterior.covariance.solve(shared), posterior.weights[:, :, None]  # Q E
                smoothed = chunk.values - noise * posterior.weights - (shared @ (shared.mT @ weights)).squeeze(2)
                explained = noise**2 * posterior.covariance.inverse_blocks(singles)[:, :, 0, 0]  # of S Q S, by term
                explained += 2 * noise * (shared * product).sum(dim=2)
                explained += ((shared @ (shared.mT @ product)) * shared).sum(dim=2)
                remaining = chunk.sampling_variance - explained
                mean, variance, density = (torch.empty_like(smoothed) for _ in range(3))
                for group in by_size:
                    block = posterior.covariance.inverse_blocks(group)
                    root = inverse_cholesky(block)
                    filtered = noise[:, group, None] * block + shared[:, group] @ product[:, group].mT  # (S Q)_GG
                    kept = torch.eye(group.shape[1], dtype=torch.double) - filtered
                    scaled = root @ weights[:, group]
                    mean[:, group] = smoothed[:, group] - (kept @ (root.mT @ scaled)).squeeze(3)
                    variance[:, group] = remaining[:, group] + ((kept @ root.mT) ** 2).sum(dim=3)
                    log_density = -(log_determinant(root) + (scaled**2).sum(dim=(2, 3))) / 2
                    density[:, group] = log_density[:, :, None]
                logs.append(posterior.evidence[:, None] - density + log_share)  # evidence of the other values
                means.append(mean)
                variances.append(variance)
                all_measured.append((posterior.evidence[:, None] + log_share, smoothed, remaining))
            smooth = average_mixture(*map(list, zip(*all_measured, strict=True)))
            results.append((*smooth, *average_mixture(logs, means, variances)))
        moments = [torch.cat(part).numpy() for part in zip(*results, strict=True)]
        return (moments[0], np.maximum(moments[1], 0)), (moments[2], moments[3])

    def calibrate(self, groups: Sequence[np.ndarray] | None = None) -> Self:
        """Calibrate 90% intervals of predictions on left-out measurements, by size of the prediction.

        The sampling errors of different groups must be independent. ``groups`` is as in :meth:`leave_out`.
        """
        process = self.select_genes(self.genes_to_calibrate())
        return replace(self, prior=self.prior.calibrated([process.intervals(groups)]))

    def intervals(self, groups: Sequence[np.ndarray] | None = None) -> "Intervals":
        """Return predictions of left-out measurements, as in :meth:`leave_out`, and the measurements."""
        return Intervals(*self.leave_out(groups), self.values.numpy(), self.sampling_variance.numpy())

    def genes_to_calibrate(self, n: int = N_CALIBRATED) -> np.ndarray:
        """Select genes for calibration: the ``n`` most significant ones, and a sample of as many of all."""
        sample = np.linspace(0, len(self.values) - 1, n).astype(int)
        return np.union1d(sample, self.most_significant()[:n])


@dataclass(frozen=True)
class Intervals:
    """Predictions and independent measurements of the same values, all of one shape."""

    mean: np.ndarray
    variance: np.ndarray
    measured: np.ndarray
    noise: np.ndarray  # sampling variance of the measurements
    group: np.ndarray | int = 0  # such as the condition that was left out; errors of its values are related

    @classmethod
    def join(cls, parts: "Sequence[Intervals]") -> "Intervals":
        """Concatenate the values of several sets."""
        names = [entry.name for entry in fields(cls)]
        arrays = [np.broadcast_arrays(*(getattr(part, name) for name in names)) for part in parts]
        return cls(*(np.concatenate([np.ravel(array) for array in each]) for each in zip(*arrays, strict=True)))

    def select(self, rows: np.ndarray) -> "Intervals":
        """Select values by row."""
        return Intervals(self.mean[rows], self.variance[rows], self.measured[rows], self.noise[rows], self.group)

    def factors(self) -> np.ndarray:
        """Return the factor of standard deviations in each bin, for a coverage of 90% of all values.

        Most groups with enough values have this coverage, too. Bins with too few values get the factor of the smaller
        predictions; with groups, twice this, so that the interval is as wide relative to the prediction.
        """
        needed = ((self.measured - self.mean) / QUANTILE) ** 2 - self.noise
        table = pd.DataFrame({"square": np.ravel(needed / np.maximum(self.variance, 1e-12))})
        table["bin"], table["group"] = np.ravel(bins_of(self.mean)), np.ravel(np.broadcast_to(self.group, needed.shape))
        factors, growth = list[float](), SIZES[1] / SIZES[0] if table["group"].nunique() > 1 else 1.0
        for number in range(len(SIZES) + 1):
            of_bin = table[table["bin"] == number]
            if len(of_bin) < FEWEST_VALUES:
                factors.append(factors[-1] * growth if factors else MIN_FACTOR)
                continue
            groups = [values for _, values in of_bin.groupby("group")["square"] if len(values) >= MIN_VALUES]
            square = upper_quantile(of_bin["square"], 0.9)
            if len(groups) > 1:
                square = max(square, upper_quantile([values.quantile(0.9) for values in groups], MOST_GROUPS))
            factors.append(float(np.sqrt(max(square, MIN_FACTOR**2))))
        return np.array(factors)


def upper_quantile(values: Sequence[float], level: float) -> float:
    """Return a quantile that a further value exceeds with probability 1 - ``level`` at most (conformal prediction).

    With too few values for this level, it is the largest.
    """
    return float(np.sort(values)[min(int(np.ceil(level * (len(values) + 1))), len(values)) - 1])


def reject_shapes(arrays: dict[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Reject arrays of another shape."""
    for name, array in arrays.items():
        if array.shape != shape:
            raise InputError(f"{name} has the shape {array.shape}, but must have {shape} to match values.")


def as_tensor(array: np.ndarray) -> Tensor:
    """Convert an array to double precision; its memory layout stays."""
    return torch.from_numpy(np.asarray(array, dtype=float))


def bins_of(mean: np.ndarray) -> np.ndarray:
    """Return the bin of each prediction by its size."""
    return np.asarray(np.searchsorted(np.log(2) * np.array(SIZES), np.abs(mean)))


def inverse_cholesky(matrices: Tensor) -> Tensor:
    """Return inverse Cholesky factors; quickly for matrices of one entry, as for places that are left out alone."""
    if matrices.shape[-1] == 1:
        return matrices.rsqrt()
    identity = torch.eye(matrices.shape[-1], dtype=torch.double)
    root: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(matrices), identity, upper=False)
    return root


def log_determinant(factor: Tensor) -> Tensor:
    """Return log determinants of matrices from their Cholesky factors."""
    return 2 * torch.log(torch.diagonal(factor, dim1=-2, dim2=-1)).sum(dim=-1)


def low_rank_root(kernel: Tensor, max_rank: int) -> Tensor | None:
    """Return L with L L' equal to a kernel by pivoted Cholesky decomposition; None above a rank."""
    rest, columns = kernel.clone(), list[Tensor]()
    least = 1e-10 * kernel.diagonal().max()
    while rest.diagonal().max() > least:
        if len(columns) >= max_rank:
            return None
        pivot = int(rest.diagonal().argmax())
        columns.append(rest[:, pivot] / rest[pivot, pivot].sqrt())
        rest = rest - torch.outer(columns[-1], columns[-1])
    return torch.stack(columns, dim=1) if columns else kernel[:, :0]


def with_level(covariance: Tensor, square: float, left: Tensor, right: Tensor) -> Tensor:
    """Add the covariate's term to a covariance that all genes share, genes x places x places."""
    return torch.baddbmm(covariance[None], left[:, :, None], right[:, None], alpha=square)


def select_hypotheses(evidence: Tensor, always: int) -> tuple[list[int], Tensor]:
    """Select hypotheses by backward elimination.

    Each step drops those with the smallest shares, at most a quarter of all, so that the genes of hypotheses that are
    almost equal gather in a few of them. The column ``always`` stays. Returns the columns of ``evidence``
    that are left, and their shares of genes.
    """
    kept = list(range(evidence.shape[1]))
    while True:
        shares = fit_shares(evidence[:, kept])
        order = [number for number in torch.argsort(shares, stable=True).tolist() if kept[number] != always]
        rare = sum(bool(shares[number] < MIN_PRIOR) for number in order)
        n_dropped = min(max(rare, len(kept) - MAX_HYPOTHESES), len(order), max(1, len(kept) // 4))
        if n_dropped <= 0:
            return kept, shares
        dropped = set(order[:n_dropped])
        kept = [column for number, column in enumerate(kept) if number not in dropped]


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
