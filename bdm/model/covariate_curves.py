"""Curves of mean latents and proportions along covariates, chosen by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bdm.autoencoder.moments import MIN_INFORMATION

MIN_CELLS = 20  # cell types with fewer cells stay constant
N_KNOTS = 6  # of a spline
RIDGES = (0.1, 1.0, 10.0, 100.0)  # ridge penalties of a spline's deviation from a line

CONSTANT, LINEAR, SPLINE = "constant", "linear", "spline"
Basis = Callable[[np.ndarray], np.ndarray]  # cells x covariates to cells x basis functions


@dataclass(frozen=True)
class Curve:
    """Additive function of covariates; only differences between its values matter."""

    form: str
    basis: Basis
    penalty: np.ndarray  # ridge penalty of each function
    coefficients: np.ndarray  # functions x dimensions

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Evaluate the curve at covariates (cells x covariates); returns cells x dimensions."""
        return np.asarray(self.basis(values) @ self.coefficients)


def fit_curve(values: np.ndarray, group: np.ndarray, mean: np.ndarray, scale: np.ndarray, whiten: np.ndarray) -> Curve:
    """Fit the curve of a cell type, choosing its form by leave-one-out cross-validation.

    Posterior means y are shrunk towards the population mean m by the prior, which has unit variance. The fit undoes
    this: with the posterior variance v, ``u = m + (y - m) / (1 - v)`` has variance ``1 / (1 - v)`` around the curve. A
    more complex curve is chosen if its squared error in whitened space is lower by more than a standard error.

    Parameters
    ----------
    values
        Covariates, cells x covariates.
    group
        Population index of each cell; populations have separate means.
    mean, scale
        Mean and standard deviation of the posteriors of y, cells x dimensions.
    whiten
        Linear map from differences of y to whitened space, dimensions x dimensions.
    """
    weight = information(scale)
    indicator = np.eye(group.max() + 1)[group]
    means = (indicator.T @ mean) / indicator.sum(axis=0)[:, None]
    unshrunk = (mean - means[group]) / weight
    best, lowest = None, np.empty(0)
    for curve in candidates(values, n_dims=mean.shape[1]):
        functions = np.column_stack([indicator, curve.basis(values)])
        penalty = np.append(np.full(indicator.shape[1], 1e-6), curve.penalty)
        coefficients, errors = fit_ridge(functions, penalty, unshrunk, weight)
        loss = ((errors @ whiten) ** 2).sum(axis=1)
        fitted = Curve(curve.form, curve.basis, curve.penalty, coefficients[indicator.shape[1] :])
        if best is None:
            best, lowest = fitted, loss
        gain = lowest - loss
        if gain.mean() > (gain.std() / np.sqrt(len(gain)) if best.form != fitted.form else 0):
            best, lowest = fitted, loss
    assert best is not None
    return best


def information(scale: np.ndarray) -> np.ndarray:
    """Return the weight of the counts, relative to the prior, in a posterior mean."""
    return np.asarray(np.maximum(1 - scale.astype(float) ** 2, MIN_INFORMATION))


def candidates(values: np.ndarray, *, n_dims: int) -> Iterator[Curve]:
    """Yield unfitted candidate curves, simplest first."""
    yield Curve(CONSTANT, lambda at: np.empty((len(at), 0)), np.empty(0), np.empty((0, n_dims)))
    n_cells, n_covariates = values.shape
    if n_cells < MIN_CELLS or not np.ptp(values, axis=0).all():
        return
    line = lines(values)
    yield Curve(LINEAR, line, np.ones(n_covariates), np.empty((n_covariates, n_dims)))
    curved = [k for k, column in enumerate(values.T) if len(np.unique(column)) > N_KNOTS]
    if not curved or n_cells < MIN_CELLS + len(curved) * N_KNOTS:
        return
    spline = splines(values, curved)
    n_splines = spline(values[:1]).shape[1] - n_covariates
    for ridge in RIDGES[::-1]:
        penalty = np.repeat([1.0, ridge], [n_covariates, n_splines])
        yield Curve(SPLINE, spline, penalty, np.empty((len(penalty), n_dims)))


def lines(values: np.ndarray) -> Basis:
    """Return the linear basis: standardised covariates, clamped to the range of ``values``."""
    centre, spread, low, high = values.mean(axis=0), values.std(axis=0), values.min(axis=0), values.max(axis=0)
    return lambda at: np.asarray((np.clip(at, low, high) - centre) / spread)


def splines(values: np.ndarray, curved: list[int]) -> Basis:
    """Return a basis of lines, then cubic splines orthogonal to them, clamped likewise."""
    from sklearn.preprocessing import SplineTransformer  # slow import

    knots = np.column_stack([np.quantile(np.unique(values[:, k]), np.linspace(0, 1, N_KNOTS)) for k in curved])
    spline = SplineTransformer(knots=knots, extrapolation="constant", include_bias=False).fit(values[:, curved])
    line = lines(values)

    def linear(at: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(at)), line(at)])

    projection = np.linalg.lstsq(linear(values), spline.transform(values[:, curved]), rcond=None)[0]
    return lambda at: np.column_stack([line(at), spline.transform(at[:, curved]) - linear(at) @ projection])


def fit_ridge(
    functions: np.ndarray, penalty: np.ndarray, target: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit each dimension by weighted ridge regression; returns coefficients and leave-one-out errors."""
    coefficients, errors = np.empty((functions.shape[1], target.shape[1])), np.empty_like(target)
    for j in range(target.shape[1]):
        weighted = functions * weight[:, [j]]
        inverse = np.linalg.inv(weighted.T @ functions + np.diag(penalty))
        coefficients[:, j] = inverse @ (weighted.T @ target[:, j])
        leverage = np.einsum("nf,fg,ng->n", weighted, inverse, functions, optimize=True)
        error = target[:, j] - functions @ coefficients[:, j]
        errors[:, j] = np.sqrt(weight[:, j]) * error / np.maximum(1 - leverage, 1e-3)
    return coefficients, errors


def fit_log_odds(values: np.ndarray, group: np.ndarray) -> Curve:
    """Fit the log ratio of population proportions to their means, by logistic regression.

    The basis depends on the number of cells: splines, lines or none. The dimensions of the curve are populations.

    Parameters
    ----------
    values
        Covariates, cells x covariates.
    group
        Population index of each cell.
    """
    from sklearn.linear_model import LogisticRegression

    n_cells = np.bincount(group)
    *_, candidate = candidates(values, n_dims=len(n_cells))  # the most complex
    if len(n_cells) == 1 or candidate.form == CONSTANT:
        return Curve(CONSTANT, lambda at: np.empty((len(at), 0)), np.empty(0), np.empty((0, len(n_cells))))
    fitted = LogisticRegression(max_iter=1000).fit(candidate.basis(values), group)
    rows = np.column_stack([fitted.intercept_, fitted.coef_])
    rows = rows if len(n_cells) > 2 else np.concatenate([-rows, rows]) / 2
    rows[:, 0] -= np.log(n_cells / n_cells.sum())
    return Curve(
        candidate.form,
        lambda at: np.column_stack([np.ones(len(at)), candidate.basis(at)]),
        np.append(0, candidate.penalty),
        rows.T,
    )


def tabulated(curve: Curve, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate each covariate's function, centred at mean 0; returns tables and constant.

    ``positions`` is covariates x levels; the tables are covariates x levels x dimensions. The constant is the sum of
    the means (dimensions).
    """
    middle = positions[:, positions.shape[1] // 2]
    constant, tables = curve(middle[None])[0], []
    for k, levels in enumerate(positions):
        at = np.repeat(middle[None], len(levels), axis=0)
        at[:, k] = levels
        table = curve(at) - curve(middle[None])
        tables.append(table - table.mean(axis=0))
        constant = constant + table.mean(axis=0)
    return np.stack(tables), constant
