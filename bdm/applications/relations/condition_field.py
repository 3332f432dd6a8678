"""Gaussian processes over conditions, for the common response of types and their deviations."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Self

import numpy as np
import pandas as pd

from bdm.applications.relations.gaussian_process import HIDDEN, N_GENES, WEAK_CONSTANTS, GaussianProcess, Prior
from bdm.applications.relations.pseudobulk import MIN_CHANGE
from bdm.applications.relations.related_conditions import ConditionKernel, RelatedConditions

N_EXPECTED = 100  # genes with the largest expected squares, for the expected error of a condition
MIN_CONDITIONS = 4  # minimum number of left-out conditions to learn how errors differ between conditions
PRIOR_MEMBERS = 16  # with fewer, a member that does not follow would be predicted worse than by unchanged cells


@dataclass(frozen=True)
class ConditionFit:
    """How conditions without measurements are predicted."""

    method: str = "logs"  # key of METHODS_OF_CONDITIONS, chosen by conditions that are left out
    common: Prior = field(default_factory=Prior)
    deviation: Prior = field(default_factory=Prior)
    # Errors of left-out conditions by those that the common prior expects: slope of logarithms, their mean, lowest and
    # highest error (1 at least)
    slope: float = 0.0
    mean_log: float = 0.0
    lowest: float = 0.0
    highest: float = 1.0

    def expected_errors(self, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
        """Return the error that the posterior expects, relative to unchanged cells, of each condition.

        It is of the ``N_EXPECTED`` genes with the largest expected squares. Arrays are genes x conditions.
        """
        variance = variance * self.common.sd_factors(mean) ** 2
        square = mean**2 + variance
        genes = np.argsort(-square, axis=0, kind="stable")[:N_EXPECTED]
        sums = (np.take_along_axis(values, genes, axis=0).sum(axis=0) for values in (variance, square))
        error, total = sums
        return np.asarray(np.sqrt(error / np.maximum(total, 1e-12)))

    def with_errors(self, expected: np.ndarray, errors: np.ndarray) -> Self:
        """Regress errors of left-out conditions on expected ones, in logarithms.

        The slope is shrunk by its sampling variance (positive-part James-Stein estimate).
        """
        x, y = np.log(np.maximum(expected, 1e-3)), np.log(np.maximum(errors, 1e-3))
        centred, n = x - x.mean(), len(x)
        if n < MIN_CONDITIONS or centred @ centred < 1e-9:
            return self
        slope = centred @ y / (centred @ centred)
        residual = y - y.mean() - slope * centred
        variance = residual @ residual / (n - 2) / (centred @ centred)
        shrunk = max(slope * (1 - variance / max(slope**2, 1e-12)), 0.0)
        return replace(
            self,
            slope=float(shrunk),
            mean_log=float(x.mean()),
            lowest=float(errors.min()),
            highest=max(float(errors.max()), 1.0),  # without relatives, conditions are predicted to be unchanged
        )


SIMPLE = ("the nearest", "the mean")  # methods without a Gaussian process
METHODS_OF_CONDITIONS = {
    "logs": "a Gaussian process of log fold changes",
    "counts": "a Gaussian process of counts",
    "the nearest": "the nearest condition",
    "the mean": "the mean of the other conditions",
}


@dataclass(frozen=True)
class ConditionField:
    """Measured responses of types to conditions, and Gaussian processes for conditions without measurements.

    The response of a type is the sum of a response that all types have in common and its own deviation. Each is a
    Gaussian process over conditions; deviations of different types are independent. Values are log fold changes, or
    relative changes of counts, in which mixtures of cells are linear. Predictions are log fold changes in any case.
    """

    effect: np.ndarray  # log fold changes, conditions x types x genes; NaN if not measured
    variance: np.ndarray  # sampling variances, likewise
    shared_error: np.ndarray  # standard deviation of the error that all conditions of a type share, types x genes
    genes: pd.Index
    related: RelatedConditions
    kernels: tuple[ConditionKernel, ...]  # candidates
    fit: ConditionFit = field(default_factory=ConditionFit)
    unit: np.ndarray | None = None  # by gene, of changes of counts relative to the control; None for log fold changes
    # Standard deviations of errors beyond `variance`, (conditions x) types x genes; they are added to parts of the
    # field, as a sum for all would be as large as `variance`
    further_errors: tuple[np.ndarray, ...] = ()

    def on_counts(self) -> Self:
        """Return the field of changes of counts, in units of the mean over conditions and the control."""
        sums = np.concatenate([np.nansum(np.exp(part.effect), axis=(0, 1)) for part in self.parts()])
        return replace(self, unit=(1 + sums) / (1 + (~np.isnan(self.effect[:, :, 0])).sum()))

    def values(self, types: slice | int = slice(None)) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the values of types, their sampling variances, and the errors that all conditions share."""
        effect, shared_error = self.effect[:, types], self.shared_error[types]
        variance = sum((error[..., types, :] ** 2 for error in self.further_errors), self.variance[:, types])
        if self.unit is None:
            return effect, variance, shared_error
        ratio = np.exp(effect)
        own = ratio**2 * np.maximum(variance - shared_error**2, 0)
        return (ratio - 1) / self.unit, (own + shared_error**2) / self.unit**2, shared_error / self.unit

    def in_logs(self, mean: np.ndarray, variance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Convert predictions (genes x others) to log fold changes and their variances."""
        if self.unit is None:
            return mean, variance
        unit = self.unit.reshape(-1, *[1] * (mean.ndim - 1))
        ratio = np.maximum(1 + unit * mean, MIN_CHANGE)
        return np.log(ratio), variance * (unit / ratio) ** 2

    def like(self, fitted: "ConditionField") -> Self:
        """Copy the fit and kernels from another field of the same conditions."""
        return replace(self, fit=fitted.fit, kernels=fitted.kernels)

    def permute(self, order: np.ndarray) -> Self:
        """Permute the conditions of kernels."""
        kernels = (replace(kernel, matrix=kernel.matrix[order][:, order]) for kernel in self.kernels)
        return replace(self, kernels=tuple(kernels))

    def select_genes(self, rows: slice | np.ndarray) -> Self:
        """Select a subset of the genes."""
        arrays = {name: getattr(self, name)[..., rows] for name in ("effect", "variance", "shared_error")}
        unit = None if self.unit is None else self.unit[rows]
        further = tuple(error[..., rows] for error in self.further_errors)
        return replace(self, **arrays, genes=self.genes[rows], unit=unit, further_errors=further)

    def parts(self) -> Iterator[Self]:
        """Divide the genes into parts, to save memory."""
        for start in range(0, len(self.genes), N_GENES):
            yield self.select_genes(slice(start, start + N_GENES))

    @cached_property
    def common(self) -> GaussianProcess:
        """Gaussian process of the response that types have in common."""
        responses = (part.common_response() for part in self.parts())
        values, variance, shared = (np.concatenate(part, axis=1).T for part in zip(*responses, strict=True))
        return GaussianProcess.from_arrays(
            values,
            variance,
            [kernel.matrix for kernel in self.kernels],
            covariate=self.related.own_transcripts(self.genes, self.related.dose),
            shared_errors=shared[:, :, None],
            prior=self.fit.common,
        )

    def common_response(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Average responses over types with random effects (DerSimonian & Laird 1986).

        The variance between types is estimated for each gene. Returns averages, the variances of their independent
        errors, and the standard deviations of the errors that conditions share, each conditions x genes.
        """
        values, noise, shared_error = self.values()
        is_measured, effect = ~np.isnan(values), np.nan_to_num(values)
        precision = np.where(is_measured, 1 / np.maximum(noise, 1e-12), 0)
        total = np.maximum(precision.sum(axis=1), 1 / HIDDEN)  # conditions may have no values in half of the cells
        mean = (precision * effect).sum(axis=1) / total
        excess = (precision * is_measured * (effect - mean[:, None]) ** 2).sum(axis=(0, 1))
        excess -= np.maximum(is_measured.sum(axis=1) - 1, 0).sum(axis=0)
        scale = (total - (precision**2).sum(axis=1) / total).sum(axis=0)
        between = np.maximum(excess / np.maximum(scale, 1e-12), 0) if self.deviates else np.zeros_like(scale)
        weight = np.where(is_measured, 1 / (noise + between), 0)
        weight = weight / np.maximum(weight.sum(axis=1, keepdims=True), 1 / HIDDEN)
        own = np.maximum(np.nan_to_num(noise) - shared_error**2, 0)
        shared = np.sqrt((weight**2 * shared_error**2).sum(axis=1))
        variance = np.where(is_measured.any(axis=1), (weight**2 * own).sum(axis=1), HIDDEN)
        return (weight * effect).sum(axis=1), variance, shared

    def deviation(self, row: int | None) -> GaussianProcess:
        """Return the Gaussian process of the deviation of a type, known or not (None)."""
        effect = np.full((len(self.genes), len(self.effect)), np.nan)
        variance, shared = np.zeros_like(effect), np.zeros((len(effect), 1))
        if row is not None:
            values, noise, shared_error = self.values(row)
            effect, shared = values.T - self.common.values.numpy(), shared_error[:, None]
            variance = noise.T - shared**2
        is_measured = ~np.isnan(effect)
        return GaussianProcess.from_arrays(
            np.nan_to_num(effect),
            np.where(is_measured, np.maximum(variance, 1e-9), HIDDEN),
            [kernel.matrix for kernel in self.kernels],
            shared_errors=np.where(is_measured, shared, 0)[:, :, None],
            prior=self.fit.deviation,
        )

    @property
    def deviates(self) -> bool:
        """Whether there are types to deviate from each other."""
        return bool(self.effect.shape[1] > 1)

    def fitted(self) -> Self:
        """Fit the priors; deviations use the most significant genes of each type."""
        fit = ConditionFit(common=self.fit_prior(self.common))
        if self.deviates:
            n_types, processes = self.effect.shape[1], list[GaussianProcess]()
            for row in range(n_types):
                process = self.deviation(row)
                processes.append(process.select_genes(process.most_significant()[: -(-N_GENES // n_types)]))
            fit = replace(fit, deviation=self.fit_prior(GaussianProcess.stack(processes)))
        return replace(self, fit=fit)

    def fit_prior(self, process: GaussianProcess) -> Prior:
        """Fit the prior of a process over conditions.

        A member of a set that no cell has either follows the set or not. The probability that it does not is 1/2 before
        members are measured, with the weight of ``PRIOR_MEMBERS``. If k of n measured members do not follow, on average
        over genes, it is (PRIOR_MEMBERS / 2 + k) / (PRIOR_MEMBERS + n).
        """
        numbers = range(len(self.kernels))
        seen = [number for number in numbers if self.kernels[number].without is not None]
        prior = replace(process, kernels=process.kernels[: len(seen)]).fit(constants=WEAK_CONSTANTS).prior
        shares = prior.kernel_shares(len(seen))
        for number in numbers[len(seen) :]:
            feature = self.kernels[number].feature
            same = [each for each in seen if self.kernels[each].feature == feature]
            whole = [each for each in same if not self.kernels[each].without]
            lacking = float(shares[same].sum() - shares[whole].sum()) / max(float(shares[same].sum()), 1e-12)
            offset = sum(self.kernels[each].feature == feature for each in range(len(seen), number))
            n_members = np.count_nonzero(np.diag(self.kernels[number].matrix))
            prior = prior.split(whole[offset], number, (PRIOR_MEMBERS / 2 + lacking) / (PRIOR_MEMBERS + n_members))
        return prior

    def predict(self, place: np.ndarray, rows: Sequence[int | None] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict the responses of types, by ``rows`` (None for an unknown type), to a new condition.

        Returns means of the common response and of the deviations, and the variance of their sum, each genes x types
        (one that does not deviate, without ``rows``).
        """
        cross, within = ([kernel(place, other) for kernel in self.kernels] for other in (self.related.dose, place))

        def moments(process: GaussianProcess, covariate: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
            predicted = process.predict(cross, within, covariate=covariate)
            return predicted.mean, predicted.variance

        of_common = moments(self.common, self.related.own_transcripts(self.genes, place))
        common, own, variance = self.simplify(*self.sum_up(of_common, moments, rows), place)
        return common[:, 0], own[:, 0], variance[:, 0]

    def leave_out(self, rows: Sequence[int] | np.ndarray = ()) -> tuple[np.ndarray, np.ndarray]:
        """Predict the responses of types by ``rows``, or the common response, to each condition from the others.

        Returns means and variances, genes x conditions (x types in ``rows``).
        """
        common, own, variance = self.simplify(*self.parts_left_out(rows))
        mean = common + own
        return (mean, variance) if len(rows) else (mean[:, :, 0], variance[:, :, 0])

    def parts_left_out(self, rows: Sequence[int] | np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Predict each condition from the others as :meth:`sum_up`."""
        return self.sum_up(self.common.leave_out(), GaussianProcess.leave_out, rows)

    def sum_up(
        self,
        common: tuple[np.ndarray, np.ndarray],
        predict: Callable[[GaussianProcess], tuple[np.ndarray, np.ndarray]],
        rows: Sequence[int | None] | np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Add deviations, which ``predict`` predicts, to means and variances of the common response.

        Returns means of both as log fold changes, and the variance of their sum, each genes x conditions x types (one
        that does not deviate, without ``rows``).
        """
        mean, variance = common
        none = np.zeros_like(mean), np.zeros_like(mean)
        first, sums = self.in_logs(mean, variance)[0], []
        for own in [predict(self.deviation(row)) if self.deviates else none for row in rows] or [none]:
            sums.append(self.in_logs(mean + own[0], variance + own[1]))
        total, variances = (np.stack(part, axis=2) for part in zip(*sums, strict=True))
        return np.broadcast_to(first[:, :, None], total.shape), total - first[:, :, None], variances

    def simple_means(self, method: str, place: np.ndarray | None = None) -> np.ndarray:
        """Return simple predictions of the common response to a new condition, or to each one from the others."""
        return np.asarray(self.common.values.numpy() @ self.related.simple_weights(method, place).T)

    def simplify(
        self, common: np.ndarray, own: np.ndarray, variance: np.ndarray, place: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Replace the common response by the simple prediction, if any; the difference is part of the variance."""
        if self.fit.method not in SIMPLE:
            return common, own, variance
        simple = self.simple_means(self.fit.method, place)[:, :, None]
        return np.broadcast_to(simple, common.shape), own, variance + (simple - common) ** 2
