"""What is learned of covariates, from the latents of prepared cells, and its files."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations

import anndata as ad
import numpy as np
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from bdm._core.errors import counted
from bdm._core.seeds import to_tensor
from bdm._core.store import concat, updated
from bdm.covariates.curves import CONSTANT, LINEAR, SPLINE, fit_curve, fit_log_odds, tabulated
from bdm.data.prepare import recorded_covariates
from bdm.latent.cells import RESIDUAL, RESIDUAL_SCALE, LatentCells, latent_cells
from bdm.latent.moments import fit_whitening, matrix_power

LEVELS = np.linspace(0, 1, 51)  # of quantiles
MIN_UNEXPLAINED = 0.05  # of the variance of the prior of y
MIN_EIGENVALUE = 1e-3  # of the correlation of covariates in a population, so that one never determines another


@dataclass(frozen=True, eq=False)
class TypeCurves:
    """How the cells of each type change, in tables at quantiles of the values of its training cells."""

    cell_types: tuple[str, ...]
    forms: tuple[str, ...]  # of their curves: constant, linear or spline
    positions: Tensor  # values of the covariates, types x covariates x levels
    shift: Tensor  # of y, types x covariates x levels x dimensions; differences have a meaning


@dataclass(frozen=True, eq=False)
class PopulationValues:
    """The values that cells of each population have, and its share of the cells of its type at each of them."""

    populations: tuple[str, ...]
    # Of its training cells, populations x dimensions: mean of y, mean shift of y, and the part of the unit variance of
    # the prior of y that the curve leaves
    mean: Tensor
    centre: Tensor
    unexplained: Tensor
    quantiles: Tensor  # of the values of its training cells, populations x covariates x levels
    correlation: Tensor  # of the normal scores of these, populations x covariates x covariates
    # Log of the factor by which its share differs from the mean, populations x covariates x levels (of its type), and
    # a constant beside these
    log_odds: Tensor
    offset: Tensor


@dataclass(frozen=True, eq=False)
class CovariateEffects:
    """How cells depend on continuous covariates.

    The mean of y = (latent, log library size) of a population at t is ``m + f(t) - f``, with its mean m, the curve f of
    its type, and the mean f of its training cells. Its covariance, and the prior of latents, are those of latents
    without ``f(t) - f``. The share of a population among the cells of its type at t follows a logistic regression. A
    type or population that is not named here does not depend on covariates.
    """

    names: tuple[str, ...]  # of the columns of ``obs``
    stepwise: tuple[bool, ...]  # whether training cells have so few different values that generated cells have the same
    curves: TypeCurves
    values: PopulationValues

    def joined(self, other: CovariateEffects) -> CovariateEffects:
        """Add types and populations, which take the place of those with the same names."""
        curves = updated([self.curves, other.curves], by="cell_types")
        return replace(self, curves=curves, values=updated([self.values, other.values], by="populations"))

    @property
    def summary(self) -> str:
        """What was learned of covariates, in a few words."""
        numbers = Counter(self.curves.forms)
        kinds = ", ".join(f"{kind} in {numbers[kind]}" for kind in (SPLINE, LINEAR, CONSTANT) if numbers[kind])
        return f"{', '.join(self.names)}; curves of {counted(len(self.curves.forms), 'type')}: {kinds}"

    def has(self, population: str) -> bool:
        """Whether a population depends on covariates."""
        return population in self.values.populations

    def shift(self, population: str, cell_type: str, at: np.ndarray) -> Tensor:
        """Shift of y of cells of a population from its mean, cells x dimensions; ``at``: cells x covariates."""
        if not self.has(population):
            return torch.zeros(len(at), self.values.centre.shape[1])
        row = self.curves.cell_types.index(cell_type)
        total = total_shift(at, self.curves.positions[row], self.curves.shift[row])
        return (total - self.values.centre[self.values.populations.index(population)]).float()

    def shares(self, cell_type: str, weight: dict[str, float], at: np.ndarray) -> np.ndarray:
        """Shares of the populations of a type at each cell's values, cells x populations.

        ``weight`` has their shares whatever the values; covariates whose values are NaN are not considered.
        """
        logits = np.log(np.maximum(list(weight.values()), 1e-300))[None].repeat(len(at), axis=0)
        if cell_type in self.curves.cell_types and not np.isnan(at).all():
            positions = self.curves.positions[self.curves.cell_types.index(cell_type)]
            for column, name in enumerate(weight):
                if not self.has(name):
                    continue
                row = self.values.populations.index(name)
                logits[:, column] += float(self.values.offset[row])
                for k in range(len(self.names)):
                    odds = interpolated(at[:, k], positions[k], self.values.log_odds[row, k][:, None])[:, 0].numpy()
                    logits[:, column] += np.where(np.isnan(at[:, k]), 0, odds)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(share / share.sum(axis=1, keepdims=True))

    def range(self, cell_type: str, covariate: str) -> tuple[float, float] | None:
        """Smallest and largest value of the training cells of a type; None if it does not depend on covariates."""
        if cell_type not in self.curves.cell_types:
            return None
        positions = self.curves.positions[self.curves.cell_types.index(cell_type), self.names.index(covariate)]
        return float(positions[0]), float(positions[-1])

    def complete(self, population: str, given: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Draw the values that are NaN as those of the training cells of a population, given the others of a cell.

        Normal scores of the covariates have a normal distribution (a Gaussian copula); ``given``: cells x covariates.
        """
        scores = generator.standard_normal(given.shape)
        if not self.has(population):
            return given
        row, found = self.values.populations.index(population), given.copy()
        quantiles, correlation = (table[row].numpy() for table in (self.values.quantiles, self.values.correlation))
        for missing in np.unique(np.isnan(given), axis=0):
            cells, known = (np.isnan(given) == missing).all(axis=1), ~missing
            of_known = np.column_stack([score_of(given[cells, k], quantiles[k]) for k in range(len(missing))])[:, known]
            weights = np.linalg.solve(correlation[np.ix_(known, known)], correlation[np.ix_(known, missing)])
            rest = correlation[np.ix_(missing, missing)] - correlation[np.ix_(missing, known)] @ weights
            level = ndtr(of_known @ weights + scores[np.ix_(cells, missing)] @ np.linalg.cholesky(rest).T)
            for column, k in enumerate(np.flatnonzero(missing)):
                step = np.round(level[:, column] * (len(LEVELS) - 1)).astype(int)
                between = np.interp(level[:, column], LEVELS, quantiles[k])
                found[cells, k] = quantiles[k][step] if self.stepwise[k] else between
        return found


def interpolated(at: np.ndarray, positions: Tensor, table: Tensor) -> Tensor:
    """Interpolate a table (levels x columns) at values, which it holds at its ends; NaN where a value is."""
    x = torch.from_numpy(np.ascontiguousarray(at, dtype=float)).clamp(float(positions[0]), float(positions[-1]))
    positions, table = positions.double().contiguous(), table.double()
    above = torch.searchsorted(positions, x.nan_to_num(), right=True).clamp(1, len(positions) - 1)
    low, high = positions[above - 1], positions[above]
    part = ((x - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)[:, None]
    return table[above - 1] * (1 - part) + table[above] * part


def score_of(values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Find the normal score of values among quantiles: the middle one where quantiles are the same."""
    low, high = (np.searchsorted(quantiles, values, side=side) / len(quantiles) for side in ("left", "right"))
    return np.asarray(ndtri(np.clip((low + high) / 2, 0.01, 0.99)))


# ---- fit


def fit_covariates(prepared: ad.AnnData, latent: ad.AnnData) -> CovariateEffects | None:
    """Learn how cells depend on covariates, from all cells but the test cells; None if no covariates are named."""
    names = recorded_covariates(prepared)
    if not names:
        return None
    values = prepared.obs.loc[(prepared.obs["split"] != "test").to_numpy(), list(names)]
    stepwise = tuple(values[name].nunique() <= len(LEVELS) for name in names)
    return fit_effects(names, stepwise, latent)


def fit_effects(names: tuple[str, ...], stepwise: tuple[bool, ...], latent: ad.AnnData) -> CovariateEffects:
    """Learn how the encoded cells of each type depend on the covariates in their ``obs``; but the test cells."""
    cells = latent_cells(latent)
    values = latent.obs.loc[(latent.obs["split"] != "test").to_numpy(), list(names)].to_numpy(dtype=float)
    whiten = matrix_power(fit_whitening(cells).covariance, -0.5).double().numpy()
    labels = np.array(cells.labels)[cells.population.numpy()]
    found = [
        effects_of_type(name, stepwise, cells.subset(torch.from_numpy(rows)), values[rows], whiten)
        for name in dict.fromkeys(cells.labels)
        if len(rows := np.flatnonzero(labels == name))
    ]
    curves, of_populations = zip(*found, strict=True)
    return CovariateEffects(names, stepwise, concat(curves), concat(of_populations))


def effects_of_type(
    name: str, stepwise: tuple[bool, ...], cells: LatentCells, values: np.ndarray, whiten: np.ndarray
) -> tuple[TypeCurves, PopulationValues]:
    """Fit the curve of a type, and the values of each of its populations."""
    codes, group = np.unique(cells.population.numpy(), return_inverse=True)
    positions = positions_of(values)
    curve = fit_curve(values, group, cells.mean.double().numpy(), cells.scale.double().numpy(), whiten)
    shift, _ = tabulated(curve, positions)
    log_odds, offset = tabulated(fit_log_odds(values, group), positions)
    curves = TypeCurves((name,), (curve.form,), to_tensor(positions[None]), float_tensor(shift[None]))
    of_groups = [values[group == number] for number in range(len(codes))]
    shifts = [total_shift(shift, curves.positions[0], curves.shift[0]) for shift in of_groups]
    explained = torch.stack([shift.var(dim=0, correction=0) for shift in shifts])
    return curves, PopulationValues(
        populations=tuple(cells.populations[code] for code in codes),
        mean=torch.stack([cells.mean[torch.from_numpy(group == number)].mean(dim=0) for number in range(len(codes))]),
        centre=torch.stack([shift.mean(dim=0) for shift in shifts]).float(),
        unexplained=(1 - explained).clamp(min=MIN_UNEXPLAINED).float(),
        quantiles=to_tensor(np.stack([quantiles_of(values, stepwise) for values in of_groups])),
        correlation=float_tensor(np.stack([normal_correlation(values) for values in of_groups])),
        log_odds=float_tensor(np.moveaxis(log_odds, 2, 0)),
        offset=float_tensor(offset),
    )


def positions_of(values: np.ndarray) -> np.ndarray:
    """Values at which curves are tabulated, covariates x levels: half where cells are, half evenly, also in gaps."""
    dense = np.quantile(values, LEVELS[::2], axis=0)
    even = np.linspace(values.min(axis=0), values.max(axis=0), len(LEVELS) - len(dense) + 2)[1:-1]
    return np.sort(np.concatenate([dense, even]), axis=0).T


def quantiles_of(values: np.ndarray, stepwise: tuple[bool, ...]) -> np.ndarray:
    """Quantiles of each covariate, covariates x levels: values of cells where there are few, else between these."""
    methods = ["inverted_cdf" if few else "linear" for few in stepwise]
    return np.stack([np.quantile(x, LEVELS, method=method) for x, method in zip(values.T, methods, strict=True)])  # type: ignore[call-overload]


def normal_correlation(values: np.ndarray) -> np.ndarray:
    """Correlation of the normal scores of covariates (cells x covariates), from Kendall's tau; 0 if one is constant."""
    from scipy.stats import kendalltau  # late, as it takes a second to import, and few cells have covariates

    correlation = np.eye(values.shape[1])
    for i, j in combinations(range(values.shape[1]), 2):
        tau = float(np.nan_to_num(kendalltau(values[:, i], values[:, j]).statistic))
        correlation[i, j] = correlation[j, i] = np.sin(np.pi / 2 * tau)
    value, axes = np.linalg.eigh(correlation)
    positive = (axes * np.maximum(value, MIN_EIGENVALUE)) @ axes.T
    scale = np.sqrt(np.diag(positive))
    return np.asarray(positive / np.outer(scale, scale))


def total_shift(at: np.ndarray, positions: Tensor, shift: Tensor) -> Tensor:
    """Sum the shifts by all covariates, cells x dimensions; tables are covariates x levels, and these x dimensions."""
    return torch.stack([interpolated(at[:, k], positions[k], shift[k]) for k in range(len(positions))]).sum(dim=0)


def float_tensor(values: np.ndarray) -> Tensor:
    """Copy an array to a tensor of single precision."""
    return to_tensor(np.ascontiguousarray(values, dtype=np.float32))


# ---- latents


def with_residuals(latent: ad.AnnData, effects: CovariateEffects | None) -> ad.AnnData:
    """Add to encoded cells the posteriors of what their covariates leave unexplained, which :func:`latent_cells` takes.

    A posterior has the mean ``m + (1 - v) (u - m)`` and the variance v, for the prior N(m, 1), where u is what the
    counts suggest. For the prior N(m + f, r), with the shift f at the cell's values and the variance r around the
    curve, the variance is ``q v``, ``q = 1 / (1 + v (1 / r - 1))``, and the mean without f is ``m + q (1 - v) (u - m -
    f)``. Cells whose values are missing stay as they are.
    """
    if effects is None:
        return latent
    values, at = effects.values, latent.obs[list(effects.names)].to_numpy(dtype=float)
    mean, scale = np.array(latent.X, dtype=np.float32), np.array(latent.layers["scale"], dtype=np.float32)
    known = np.flatnonzero(~np.isnan(at).any(axis=1))
    groups = latent.obs.iloc[known].groupby(["cell_type", "sub_population"], observed=True).indices
    for (cell_type, population), members in groups.items():
        if not effects.has(population):
            continue
        rows, row = known[members], values.populations.index(population)
        centre, left = values.mean[row].numpy(), values.unexplained[row].numpy()
        kept = 1 / (1 + scale[rows] ** 2 * (1 / left - 1))
        shift = effects.shift(population, cell_type, at[rows]).numpy()
        mean[rows] = centre + kept * (mean[rows] - centre - (1 - scale[rows] ** 2) * shift)
        scale[rows] *= np.sqrt(kept)
    latent.layers.update({RESIDUAL: mean, RESIDUAL_SCALE: scale})
    return latent
