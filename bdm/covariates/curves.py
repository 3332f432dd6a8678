"""Curves: how the mean latent of a cell type changes along covariates, and which curve held-out cells support."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bdm.latent.moments import MIN_INFORMATION

MIN_CELLS = 20  # of a type, with fewer of which it stays constant
N_KNOTS = 6  # of a spline
RIDGES = (0.1, 1.0, 10.0, 100.0)  # penalties of a spline's departure from a line, in cells of unit variance

CONSTANT, LINEAR, SPLINE = "constant", "linear", "spline"
Basis = Callable[[np.ndarray], np.ndarray]  # from values (cells x covariates) to functions of them (cells x functions)


@dataclass(frozen=True)
class Curve:
    """A sum of a function of each covariate; differences between its values have a meaning, not the values."""

    form: str
    basis: Basis
    penalty: np.ndarray  # of each function in a fit
    coefficients: np.ndarray  # functions x dimensions

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Evaluate at values of the covariates (cells x covariates), cells x dimensions."""
        return np.asarray(self.basis(values) @ self.coefficients)


def fit_curve(values: np.ndarray, group: np.ndarray, mean: np.ndarray, scale: np.ndarray, whiten: np.ndarray) -> Curve:
    """Fit the curve that the populations of a type share, as simple as the prediction of left-out cells allows.

    A cell's counts suggest ``u = m + (y - m) / (1 - v)``, with the mean m of its population, and the mean y and the
    variance v of its posterior, whose prior has unit variance: u has variance ``1 / (1 - v)`` around the curve. Each
    cell is left out in turn (in closed form). A curve replaces a simpler one if its squared errors, in whitened space,
    are lower by more than a standard error.

    Parameters
    ----------
    values
        Of the covariates, cells x covariates.
    group
        Population of each cell, from 0; each has a mean of its own.
    mean, scale
        Of the posteriors of y, cells x dimensions.
    whiten
        Map of differences of y to whitened space, dimensions x dimensions.
    """
    weight = information(scale)
    of_group = np.eye(group.max() + 1)[group]
    means = (of_group.T @ mean) / of_group.sum(axis=0)[:, None]
    suggested = (mean - means[group]) / weight
    best, least = None, np.empty(0)
    for curve in candidates(values, n_dims=mean.shape[1]):
        functions = np.column_stack([of_group, curve.basis(values)])
        penalty = np.append(np.full(of_group.shape[1], 1e-6), curve.penalty)
        coefficients, errors = left_out(functions, penalty, suggested, weight)
        loss = ((errors @ whiten) ** 2).sum(axis=1)
        fitted = Curve(curve.form, curve.basis, curve.penalty, coefficients[of_group.shape[1] :])
        if best is None:
            best, least = fitted, loss
        gain = least - loss
        if gain.mean() > (gain.std() / np.sqrt(len(gain)) if best.form != fitted.form else 0):
            best, least = fitted, loss
    assert best is not None
    return best


def information(scale: np.ndarray) -> np.ndarray:
    """Weight of a cell's counts, against the prior, in the mean of its posterior with the given scale."""
    return np.asarray(np.maximum(1 - scale.astype(float) ** 2, MIN_INFORMATION))


def candidates(values: np.ndarray, *, n_dims: int) -> Iterator[Curve]:
    """List the curves to choose from, without coefficients, the simplest first."""
    yield Curve(CONSTANT, lambda at: np.empty((len(at), 0)), np.empty(0), np.empty((0, n_dims)))
    n_cells, n_covariates = values.shape
    if n_cells < MIN_CELLS or not np.ptp(values, axis=0).all():
        return
    line = lines(values)
    yield Curve(LINEAR, line, np.ones(n_covariates), np.empty((n_covariates, n_dims)))
    curved = [k for k, column in enumerate(values.T) if len(np.unique(column)) > N_KNOTS]
    if not curved or n_cells < MIN_CELLS + len(curved) * N_KNOTS:
        return
    bent = splines(values, curved)
    n_bent = bent(values[:1]).shape[1] - n_covariates
    for ridge in RIDGES[::-1]:
        penalty = np.repeat([1.0, ridge], [n_covariates, n_bent])
        yield Curve(SPLINE, bent, penalty, np.empty((len(penalty), n_dims)))


def lines(values: np.ndarray) -> Basis:
    """Make the covariates themselves, standardised, and held at the ends of their values."""
    centre, spread, low, high = values.mean(axis=0), values.std(axis=0), values.min(axis=0), values.max(axis=0)
    return lambda at: np.asarray((np.clip(at, low, high) - centre) / spread)


def splines(values: np.ndarray, curved: list[int]) -> Basis:
    """Make lines, then cubic splines of some covariates without the lines in them, held at the ends of the values."""
    from sklearn.preprocessing import SplineTransformer  # late, as it takes a second to import

    knots = np.column_stack([np.quantile(np.unique(values[:, k]), np.linspace(0, 1, N_KNOTS)) for k in curved])
    spline = SplineTransformer(knots=knots, extrapolation="constant", include_bias=False).fit(values[:, curved])
    line = lines(values)

    def straight(at: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(at)), line(at)])

    in_splines = np.linalg.lstsq(straight(values), spline.transform(values[:, curved]), rcond=None)[0]
    return lambda at: np.column_stack([line(at), spline.transform(at[:, curved]) - straight(at) @ in_splines])


def left_out(
    functions: np.ndarray, penalty: np.ndarray, suggested: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fit each dimension by weighted ridge regression: coefficients, and the error of each cell if it is left out."""
    coefficients, errors = np.empty((functions.shape[1], suggested.shape[1])), np.empty_like(suggested)
    for j in range(suggested.shape[1]):
        weighted = functions * weight[:, [j]]
        inverse = np.linalg.inv(weighted.T @ functions + np.diag(penalty))
        coefficients[:, j] = inverse @ (weighted.T @ suggested[:, j])
        leverage = np.einsum("nf,fg,ng->n", weighted, inverse, functions, optimize=True)
        error = suggested[:, j] - functions @ coefficients[:, j]
        errors[:, j] = np.sqrt(weight[:, j]) * error / np.maximum(1 - leverage, 1e-3)
    return coefficients, errors


def fit_log_odds(values: np.ndarray, group: np.ndarray) -> Curve:
    """Fit the log of the factor by which shares of the populations of a type differ from their means, by population.

    It is a logistic regression on splines, lines, or nothing if there are few cells.

    Parameters
    ----------
    values
        Of the covariates, cells x covariates.
    group
        Population of each cell, from 0.
    """
    from sklearn.linear_model import LogisticRegression

    n_cells = np.bincount(group)
    *_, splined = candidates(values, n_dims=len(n_cells))
    if len(n_cells) == 1 or splined.form == CONSTANT:
        return Curve(CONSTANT, lambda at: np.empty((len(at), 0)), np.empty(0), np.empty((0, len(n_cells))))
    fitted = LogisticRegression(max_iter=1000).fit(splined.basis(values), group)
    rows = np.column_stack([fitted.intercept_, fitted.coef_])
    rows = rows if len(n_cells) > 2 else np.concatenate([-rows, rows]) / 2
    rows[:, 0] -= np.log(n_cells / n_cells.sum())
    return Curve(
        splined.form,
        lambda at: np.column_stack([np.ones(len(at)), splined.basis(at)]),
        np.append(0, splined.penalty),
        rows.T,
    )


def tabulated(curve: Curve, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate the function of each covariate at its positions, with a mean of 0; and the sum of what is taken away.

    ``positions`` is covariates x levels; the tables are covariates x levels x dimensions.
    """
    middle = positions[:, positions.shape[1] // 2]
    constant, tables = curve(middle[None])[0], []
    for k, of_covariate in enumerate(positions):
        at = np.repeat(middle[None], len(of_covariate), axis=0)
        at[:, k] = of_covariate
        table = curve(at) - curve(middle[None])
        tables.append(table - table.mean(axis=0))
        constant = constant + table.mean(axis=0)
    return np.stack(tables), constant
