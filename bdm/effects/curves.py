"""Curves of latents and proportions over covariates, as far as left-out cells support them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular

from bdm.autoencoder.moments import MIN_INFORMATION
from bdm.effects.odds import choose_ridge, fit_log_odds
from bdm.effects.surfaces import STRENGTHS, BlockDesign, centred, held_out_gain, remaining_variance

MIN_CELLS = 20  # cell types with fewer cells stay constant
N_FUNCTIONS = 20  # of each covariate
ROUGHNESS = (1e2, 1e3)  # candidate variances of the spline, relative to lines
JITTER = 1e-6  # relative, on the diagonal of kernels
N_FOLDS = 10  # groups of cells to leave out
MIN_VALUES = 6  # covariates with fewer distinct values have lines only
MIN_GAIN = 7.0  # held-out log density that a curve must gain, in nats; 2% of types without one gain as much
GAIN_PER_OUTPUT = 1.0  # that each output of a curve must gain, if each has its own strength
GAIN_BEYOND_LINE = 5.0  # that a curve must gain beyond lines

FORMS = CONSTANT, LINEAR, SMOOTH = "constant", "linear", "smooth"  # simplest first


@dataclass(frozen=True, eq=False)
class CurveBasis:
    """Functions of covariates: lines, and smoothing splines that are summed over covariates.

    With normal coefficients, the functions are a cubic smoothing spline (Wahba 1990, *Spline Models for Observational
    Data*): a Gaussian process whose curvature is penalised, so that it bridges gaps between values smoothly. It is
    approximated at knots (Nyström).
    """

    low: np.ndarray  # range of each covariate in training cells, to which values are clamped
    high: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    roughness: float | None  # None for lines
    knots: tuple[np.ndarray, ...]  # of each covariate, from 0 to 1; none for lines
    middle: np.ndarray  # mean of each function

    @classmethod
    def from_values(cls, values: np.ndarray, roughness: float | None = None) -> CurveBasis:
        """Place knots at quantiles of the values (cells x covariates)."""
        low, high, centre, spread = (f(values, axis=0) for f in (np.min, np.max, np.mean, np.std))
        knots = []
        for column in ((values - low) / (high - low)).T if roughness is not None else []:
            distinct = np.unique(column)
            probabilities = np.linspace(0, 1, min(N_FUNCTIONS, len(distinct)))
            knots.append(np.quantile(distinct, probabilities) if len(distinct) > MIN_VALUES else distinct[:0])
        basis = cls(low, high, centre, spread, roughness, tuple(knots), np.zeros(1))
        return replace(basis, middle=basis(values).mean(axis=0))

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Evaluate the functions at covariates (cells x covariates); returns cells x functions."""
        values = np.clip(values, self.low, self.high)
        parts = [(values - self.centre) / self.spread]
        if self.roughness is not None:
            for column, knots in zip(((values - self.low) / (self.high - self.low)).T, self.knots, strict=True):
                kernel, cross = (self.roughness * spline_kernel(knots, x) for x in (knots, column))
                kernel += JITTER * np.diag(kernel).max(initial=0) * np.eye(len(knots))
                parts.append(solve_triangular(np.linalg.cholesky(kernel), cross, lower=True).T)
        return np.asarray(np.column_stack(parts) - self.middle)

    @property
    def form(self) -> str:
        """Name of the form."""
        return LINEAR if self.roughness is None else SMOOTH


@dataclass(frozen=True, eq=False)
class Curve:
    """Additive function of covariates; only differences between its values matter."""

    basis: CurveBasis | None  # None for a constant
    coefficients: np.ndarray  # functions x outputs

    @property
    def form(self) -> str:
        """Form: constant, linear or smooth."""
        return CONSTANT if self.basis is None else self.basis.form

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Evaluate the curve at covariates (cells x covariates); returns cells x outputs."""
        if self.basis is None:
            return np.zeros((len(values), self.coefficients.shape[1]))
        return np.asarray(self.basis(values) @ self.coefficients)


def spline_kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the covariance of a cubic smoothing spline on 0 to 1, without its line.

    It is made of Bernoulli polynomials (Gu 2013, *Smoothing Spline ANOVA Models*, section 2.3.3).
    """

    def square(x: np.ndarray) -> np.ndarray:
        return np.asarray(((x - 0.5) ** 2 - 1 / 12) / 2)

    centred_difference = (np.abs(first[:, None] - second) - 0.5) ** 2
    quartic = (centred_difference**2 - centred_difference / 2 + 7 / 240) / 24
    return np.asarray(square(first)[:, None] * square(second) - quartic)


def candidates(values: np.ndarray, *, smooth: bool = True) -> Iterator[CurveBasis]:
    """Yield candidate bases: lines, then smooth ones if allowed; none if a covariate is constant."""
    if not np.ptp(values, axis=0).all():
        return
    yield CurveBasis.from_values(values)
    if smooth and any(len(np.unique(column)) > MIN_VALUES for column in values.T):
        for roughness in ROUGHNESS:
            yield CurveBasis.from_values(values, roughness)


def unshrunk(group: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Undo the shrinkage of posterior means, and centre populations.

    Posterior means y are shrunk towards the population mean m by the prior, which has unit variance. With the posterior
    variance v, ``u = m + (y - m) / (1 - v)`` has variance ``1 / (1 - v)`` around a curve.

    Parameters
    ----------
    group
        Population index of each cell.
    mean, scale
        Mean and standard deviation of the posteriors of y, cells x dimensions.

    Returns
    -------
    ``u - m``, cells x dimensions; and the weight of each cell.
    """
    information = np.maximum(1 - scale.astype(float) ** 2, MIN_INFORMATION)
    weight = information.mean(axis=1)
    members = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    return centred(centred(mean, members, np.ones(len(mean))) / information, members, weight), weight


def fit_curve(
    values: np.ndarray, group: np.ndarray, target: np.ndarray, weight: np.ndarray, donor: np.ndarray | None = None
) -> Curve:
    """Fit the curve of a cell type, with the form and the strength of each output that left-out cells support.

    Parameters
    ----------
    values
        Covariates, cells x covariates.
    group
        Population index of each cell; populations have separate means.
    target, weight
        Values around the curve, cells x outputs, and the weight of each cell.
    donor
        Donor of each cell, for covariates that do not differ within donors. The curve is then fitted to means of
        donors, as a curve of cells would follow differences between donors.
    """
    members = [np.flatnonzero(group == number) for number in range(group.max() + 1)]
    row = np.arange(len(values)) if donor is None else np.unique(donor, return_inverse=True)[1]
    n_cells = np.bincount(row, weight)

    def rows(table: np.ndarray) -> np.ndarray:
        table = centred(table, members, weight)
        if donor is None:
            return table
        return np.stack([np.bincount(row, weight * column) for column in table.T], axis=1) / n_cells[:, None]

    outputs, row_weight = rows(target), weight / weight.mean() if donor is None else np.ones(len(n_cells))
    fold, best, most = np.arange(len(outputs)) % N_FOLDS, Curve(None, np.zeros((0, target.shape[1]))), 0.0
    for basis in candidates(values, smooth=len(outputs) >= MIN_CELLS):
        coefficients, gain = fit_strengths(BlockDesign(rows(basis(values)), row_weight, fold), outputs)
        if gain > most + (GAIN_BEYOND_LINE if best.form == LINEAR else 0.0):
            best, most = Curve(basis, coefficients), gain
    return best


def fit_strengths(design: BlockDesign, values: np.ndarray) -> tuple[np.ndarray, float]:
    """Fit outputs (cells x outputs) with strengths that left-out cells support together.

    Strengths are equal; each at its best; or each at its best, but 0 if the output alone does not gain enough. These
    are best for curves in all outputs of few cells, in all outputs, and in few outputs. Returns coefficients, and the
    largest gain beyond its minimum in nats.
    """
    statistics, total = design.statistics(values), design.variance(values).clip(min=1e-12)
    gains = np.stack([held_out_gain(statistics, strength * total, total) for strength in STRENGTHS])
    strengths, alone = np.array(STRENGTHS), np.vstack([gains[:1], gains[1:] - MIN_GAIN])
    choices = [
        (gains.sum(axis=1).max() - MIN_GAIN, strengths[gains.sum(axis=1).argmax()].repeat(len(total))),
        (gains.max(axis=0).sum() - MIN_GAIN - GAIN_PER_OUTPUT * len(total), strengths[gains.argmax(axis=0)]),
        (alone.max(axis=0).sum(), strengths[alone.argmax(axis=0)]),
    ]
    gain, strength = max(choices, key=lambda choice: choice[0])
    variance = strength * total
    return statistics[0].coefficients(variance, remaining_variance(total, variance)), float(gain)


def fit_proportions(values: np.ndarray, group: np.ndarray, fold: np.ndarray) -> Curve:
    """Fit the log ratio of population proportions to their means, where left-out groups of cells support it.

    The outputs of the curve are populations.

    Parameters
    ----------
    values
        Covariates, cells x covariates.
    group
        Population index of each cell.
    fold
        Group of each cell to leave out, such as its donor.
    """
    n_cells = np.bincount(group)
    log_share = np.log(n_cells / n_cells.sum())
    best, most = Curve(None, np.zeros((0, len(n_cells)))), 0.0
    for basis in candidates(values) if len(n_cells) > 1 and len(values) >= MIN_CELLS else []:
        functions = basis(values)
        ridge, gain = choose_ridge(functions, group, log_share, fold)
        if ridge is not None and gain > most + (GAIN_BEYOND_LINE if best.form == LINEAR else 0.0):
            start = np.zeros((functions.shape[1], len(n_cells)))
            best, most = Curve(basis, fit_log_odds(functions, group, log_share, ridge, start)), gain
    return best
