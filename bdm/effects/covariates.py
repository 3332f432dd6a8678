"""Effects of covariates on latents and proportions: curves, chosen by cross-validation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import combinations

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy.special import ndtr, ndtri
from torch import Tensor

from bdm._core.errors import counted
from bdm._core.seeds import numpy_generator, to_tensor
from bdm._core.store import concat, updated
from bdm.autoencoder.latent import LatentCells, latent_cells
from bdm.data.filters import is_fitted
from bdm.data.prepare import recorded_covariates
from bdm.effects.curves import (
    CONSTANT,
    FORMS,
    MIN_CELLS,
    N_FOLDS,
    Curve,
    fit_curve,
    fit_proportions,
    unshrunk,
)
from bdm.effects.effect import MIN_UNEXPLAINED, CellsToFit, Shift

PROBABILITIES = np.linspace(0, 1, 51)  # of tabulated quantiles
MIN_EIGENVALUE = 1e-3  # of correlations, so that no covariate determines another


@dataclass(frozen=True, eq=False)
class TypeCurves:
    """Tabulated curve of each cell type."""

    cell_types: tuple[str, ...]
    forms: tuple[str, ...]  # constant, linear or smooth; spline in models of bdm 0.1.0
    positions: Tensor  # tabulated covariates, types x covariates x points
    shift: Tensor  # of y, types x covariates x points x dimensions; only differences matter


@dataclass(frozen=True, eq=False)
class PopulationValues:
    """Distribution of covariates in each population, and its proportion of the cell type."""

    populations: tuple[str, ...]
    # statistics of training cells, populations x dimensions
    mean: Tensor  # of y
    centre: Tensor  # mean shift of y
    unexplained: Tensor  # fraction of the prior variance of y that the curve leaves
    # distribution of covariates: a Gaussian copula
    quantiles: Tensor  # populations x covariates x points
    correlation: Tensor  # of normal scores, populations x covariates x covariates
    # log ratio of proportions to their mean: a sum over covariates, and a constant
    log_odds: Tensor  # populations x covariates x points, at the positions of the cell type
    offset: Tensor  # populations


@dataclass(frozen=True, eq=False)
class DonorValues:
    """Distribution over donors of the covariates that do not differ within them, such as the age: a Gaussian copula."""

    names: tuple[str, ...]
    quantiles: Tensor  # covariates x points
    correlation: Tensor  # of normal scores, covariates x covariates

    def sample(self, stepwise: tuple[bool, ...], scores: np.ndarray) -> np.ndarray:
        """Sample values, donors x covariates, from standard normal ``scores`` of the same shape."""
        missing = np.full(scores.shape, np.nan)
        return sample_missing(self.quantiles.numpy(), self.correlation.numpy(), stepwise, missing, scores)


@dataclass(frozen=True, eq=False)
class CovariateEffects(Shift, name="covariates"):
    """Effects of continuous covariates on cells.

    At covariates t, the mean of y = (latent, log library size) in a population is ``m + f(t) - c``: m is the
    population's mean, f the curve of its cell type, and c the mean of f over the population's training cells. The prior
    of latents is fitted to residuals, y without ``f(t) - c``. Proportions of a type's populations follow a logistic
    regression on t. Types and populations without an entry do not depend on covariates.
    """

    names: tuple[str, ...]  # columns of ``obs``
    stepwise: tuple[bool, ...]  # whether a covariate has few distinct values; generated cells then repeat them
    curves: TypeCurves
    values: PopulationValues
    of_donors: DonorValues | None = None  # None if all covariates differ within donors

    @classmethod
    def fit(cls, cells: CellsToFit) -> CovariateEffects | None:
        """Fit effects of covariates; None without these, or if cells of an added type lack those of the model."""
        if cells.extended is None:
            names = recorded_covariates(cells.prepared)
            stepwise = tuple(cells.fitted_obs[name].nunique() <= len(PROBABILITIES) for name in names)
        elif isinstance(known := cells.extended.get(cls.name), cls):
            names, stepwise = known.names, known.stepwise
        else:
            return None
        if not names or cells.latent.obs[list(names)].isna().any(axis=None):
            return None
        return fit_effects(names, stepwise, cells.latent)

    def joined(self, added: CovariateEffects) -> CovariateEffects:
        """Add types and populations, replacing entries of the same name."""
        curves = updated([self.curves, added.curves], by="cell_types")
        return replace(self, curves=curves, values=updated([self.values, added.values], by="populations"))

    @property
    def summary(self) -> str:
        """Short summary for reports."""
        counts = Counter(self.curves.forms)
        order = dict.fromkeys((*FORMS[::-1], *counts))
        forms = ", ".join(f"{form} in {counts[form]}" for form in order if counts[form])
        return f"{', '.join(self.names)}; curves of {counted(len(self.curves.forms), 'type')}: {forms}"

    def has(self, population: str) -> bool:
        """Return whether a population depends on covariates."""
        return population in self.values.populations

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the effect reads."""
        return self.names

    def moments(self, population: str) -> tuple[Tensor, Tensor]:
        """Return the population's mean of y, and the fraction of the prior variance of y that the curve leaves."""
        row = self.values.populations.index(population)
        return self.values.mean[row], self.values.unexplained[row]

    def latent(self, at: pd.DataFrame, population: str, cell_type: str) -> Tensor:
        """Return the shift ``f(t) - c`` of y, for covariates t of cells."""
        if not self.has(population):
            return torch.zeros(len(at), self.values.centre.shape[1])
        row, covariates = self.curves.cell_types.index(cell_type), at[list(self.names)].to_numpy(dtype=float)
        total = total_shift(covariates, self.curves.positions[row], self.curves.shift[row])
        return (total - self.values.centre[self.values.populations.index(population)]).float()

    def shares(self, cell_type: str, weight: dict[str, float], covariates: np.ndarray) -> np.ndarray:
        """Return the proportions of a type's populations at each cell's covariates.

        ``weight`` are the mean proportions by population, ``covariates`` is cells x covariates; NaN has no effect.
        """
        logits = np.log(np.maximum(list(weight.values()), 1e-300))[None].repeat(len(covariates), axis=0)
        if cell_type in self.curves.cell_types and not np.isnan(covariates).all():
            positions = self.curves.positions[self.curves.cell_types.index(cell_type)]
            for column, name in enumerate(weight):
                if not self.has(name):
                    continue
                row = self.values.populations.index(name)
                logits[:, column] += float(self.values.offset[row])
                for k in range(len(self.names)):
                    values, table = covariates[:, k], self.values.log_odds[row, k][:, None]
                    odds = interpolated(values, positions[k], table)[:, 0].numpy()
                    logits[:, column] += np.where(np.isnan(values), 0, odds)
        share = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(share / share.sum(axis=1, keepdims=True))

    def training_range(self, cell_type: str, covariate: str) -> tuple[float, float] | None:
        """Return the range of a covariate in training cells, or None without effects."""
        if cell_type not in self.curves.cell_types:
            return None
        positions = self.curves.positions[self.curves.cell_types.index(cell_type), self.names.index(covariate)]
        return float(positions[0]), float(positions[-1])

    def complete(self, at: pd.DataFrame, population: str, seed: int) -> pd.DataFrame:
        """Sample missing covariates of cells from their known ones.

        Their distribution is a Gaussian copula of the population's training cells.
        """
        requested = at.reindex(columns=list(self.names)).to_numpy(dtype=float)
        generator = numpy_generator(seed, "covariates", population)
        return at.assign(**dict(zip(self.names, self.sample(population, requested, generator).T, strict=True)))

    def sample(self, population: str, covariates: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sample missing covariates (NaN), cells x covariates."""
        scores = generator.standard_normal(covariates.shape)  # for known values, too: no cell depends on another
        if not self.has(population):
            return covariates
        row = self.values.populations.index(population)
        quantiles, correlation = (table[row].numpy() for table in (self.values.quantiles, self.values.correlation))
        return sample_missing(quantiles, correlation, self.stepwise, covariates, scores)

    def sample_donors(self, n_donors: int, generator: np.random.Generator) -> pd.DataFrame:
        """Sample the covariates that do not differ within donors, donors x covariates; no donor depends on others."""
        if self.of_donors is None:
            return pd.DataFrame(index=range(n_donors))
        stepwise = tuple(self.stepwise[self.names.index(name)] for name in self.of_donors.names)
        scores = generator.standard_normal((n_donors, len(stepwise)))
        return pd.DataFrame(self.of_donors.sample(stepwise, scores), columns=list(self.of_donors.names))


def sample_missing(
    quantiles: np.ndarray,
    correlation: np.ndarray,
    stepwise: tuple[bool, ...],
    covariates: np.ndarray,
    scores: np.ndarray,
) -> np.ndarray:
    """Sample missing covariates (NaN) given known ones, cells x covariates, from a Gaussian copula.

    ``scores`` are standard normal, of the same shape.
    """
    completed = covariates.copy()
    for missing in np.unique(np.isnan(covariates), axis=0):
        cells, known = (np.isnan(covariates) == missing).all(axis=1), ~missing
        normal = np.column_stack([normal_scores(covariates[cells, k], quantiles[k]) for k in range(len(missing))])
        weights = np.linalg.solve(correlation[np.ix_(known, known)], correlation[np.ix_(known, missing)])
        rest = correlation[np.ix_(missing, missing)] - correlation[np.ix_(missing, known)] @ weights
        probability = ndtr(normal[:, known] @ weights + scores[np.ix_(cells, missing)] @ np.linalg.cholesky(rest).T)
        for column, k in enumerate(np.flatnonzero(missing)):
            step = np.round(probability[:, column] * (len(PROBABILITIES) - 1)).astype(int)
            interpolation = np.interp(probability[:, column], PROBABILITIES, quantiles[k])
            completed[cells, k] = quantiles[k][step] if stepwise[k] else interpolation
    return completed


def interpolated(values: np.ndarray, positions: Tensor, table: Tensor) -> Tensor:
    """Interpolate a table (points x columns), constant beyond its ends; NaN stays NaN."""
    x = torch.from_numpy(np.ascontiguousarray(values, dtype=float)).clamp(float(positions[0]), float(positions[-1]))
    positions, table = positions.double().contiguous(), table.double()
    above = torch.searchsorted(positions, x.nan_to_num(), right=True).clamp(1, len(positions) - 1)
    low, high = positions[above - 1], positions[above]
    part = ((x - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)[:, None]
    return table[above - 1] * (1 - part) + table[above] * part


def normal_scores(values: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """Return the normal scores of values; ties have the middle score."""
    low, high = (np.searchsorted(quantiles, values, side=side) / len(quantiles) for side in ("left", "right"))
    return np.asarray(ndtri(np.clip((low + high) / 2, 0.01, 0.99)))


# ---- fit


def fit_effects(names: tuple[str, ...], stepwise: tuple[bool, ...], latent: ad.AnnData) -> CovariateEffects:
    """Fit the effects of covariates in ``obs`` to encoded cells, excluding test cells."""
    cells, obs = latent_cells(latent), latent.obs[is_fitted(latent.obs)]
    values, labels = obs[list(names)].to_numpy(dtype=float), np.array(cells.labels)[cells.population.numpy()]
    donor = obs["donor"].astype(str).to_numpy() if "donor" in obs else np.arange(len(obs))
    by_donor = obs[list(names)].groupby(donor)
    of_donors = tuple("donor" in obs and bool((by_donor[name].nunique() == 1).all()) for name in names)
    effects = [
        fit_type(name, stepwise, of_donors, cells.subset(torch.from_numpy(rows)), values[rows], donor[rows])
        for name in dict.fromkeys(cells.labels)
        if len(rows := np.flatnonzero(labels == name))
    ]
    curves, population_values = zip(*effects, strict=True)
    donors = None
    if any(of_donors):
        first, columns = by_donor.first().loc[:, list(of_donors)], [k for k, is_of in enumerate(of_donors) if is_of]
        quantiles = covariate_quantiles(first.to_numpy(dtype=float), tuple(stepwise[k] for k in columns))
        correlation = normal_correlation(first.to_numpy(dtype=float))
        donors = DonorValues(tuple(first.columns), to_tensor(quantiles), float_tensor(correlation))
    return CovariateEffects(names, stepwise, concat(curves), concat(population_values), donors)


def fit_type(
    name: str,
    stepwise: tuple[bool, ...],
    of_donors: tuple[bool, ...],
    cells: LatentCells,
    values: np.ndarray,
    donor: np.ndarray,
) -> tuple[TypeCurves, PopulationValues]:
    """Fit the curves of a cell type, and the distributions of its populations.

    ``values`` are cells x covariates. Curves of the covariates ``of_donors`` are fitted to means of donors, beyond the
    other curves.
    """
    codes, group = np.unique(cells.population.numpy(), return_inverse=True)
    positions = tabulation_points(values)
    target, weight = unshrunk(group, cells.mean.double().numpy(), cells.scale.double().numpy())
    shift, form = np.zeros((*positions.shape, target.shape[1])), CONSTANT
    for is_of_donors in (False, True) if len(values) >= MIN_CELLS else ():
        columns = np.array(of_donors) == is_of_donors
        if columns.any():
            curve = fit_curve(values[:, columns], group, target, weight, donor if is_of_donors else None)
            shift[columns] = tabulated(curve, positions[columns])[0]
            target, form = target - curve(values[:, columns]), max(form, curve.form, key=FORMS.index)
    fold = np.unique(donor, return_inverse=True)[1] if any(of_donors) else np.arange(len(values))
    log_odds, offset = tabulated(fit_proportions(values, group, fold % N_FOLDS), positions)
    curves = TypeCurves((name,), (form,), to_tensor(positions[None]), float_tensor(shift[None]))
    groups = [values[group == number] for number in range(len(codes))]
    shifts = [total_shift(part, curves.positions[0], curves.shift[0]) for part in groups]
    explained = torch.stack([shift.var(dim=0, correction=0) for shift in shifts])
    return curves, PopulationValues(
        populations=tuple(cells.populations[code] for code in codes),
        mean=torch.stack([cells.mean[torch.from_numpy(group == number)].mean(dim=0) for number in range(len(codes))]),
        centre=torch.stack([shift.mean(dim=0) for shift in shifts]).float(),
        unexplained=(1 - explained).clamp(min=MIN_UNEXPLAINED).float(),
        quantiles=to_tensor(np.stack([covariate_quantiles(part, stepwise) for part in groups])),
        correlation=float_tensor(np.stack([normal_correlation(part) for part in groups])),
        log_odds=float_tensor(np.moveaxis(log_odds, 2, 0)),
        offset=float_tensor(offset),
    )


def tabulation_points(values: np.ndarray) -> np.ndarray:
    """Return points to tabulate curves at: half quantiles, half evenly spaced; covariates x points."""
    dense = np.quantile(values, PROBABILITIES[::2], axis=0)
    even = np.linspace(values.min(axis=0), values.max(axis=0), len(PROBABILITIES) - len(dense) + 2)[1:-1]
    return np.sort(np.concatenate([dense, even]), axis=0).T


def covariate_quantiles(values: np.ndarray, stepwise: tuple[bool, ...]) -> np.ndarray:
    """Return quantiles of covariates, covariates x points; stepwise ones are not interpolated."""
    methods = ["inverted_cdf" if is_stepwise else "linear" for is_stepwise in stepwise]
    return np.stack([np.quantile(x, PROBABILITIES, method=method) for x, method in zip(values.T, methods, strict=True)])  # type: ignore[call-overload]


def normal_correlation(values: np.ndarray) -> np.ndarray:
    """Estimate the correlation of normal scores from Kendall's tau; 0 for constants."""
    from scipy.stats import kendalltau  # slow import

    correlation = np.eye(values.shape[1])
    for i, j in combinations(range(values.shape[1]), 2):
        tau = float(np.nan_to_num(kendalltau(values[:, i], values[:, j]).statistic))
        correlation[i, j] = correlation[j, i] = np.sin(np.pi / 2 * tau)
    value, axes = np.linalg.eigh(correlation)
    positive = (axes * np.maximum(value, MIN_EIGENVALUE)) @ axes.T
    scale = np.sqrt(np.diag(positive))
    return np.asarray(positive / np.outer(scale, scale))


def total_shift(covariates: np.ndarray, positions: Tensor, shift: Tensor) -> Tensor:
    """Sum the shifts by all covariates, cells x dimensions."""
    shifts = [interpolated(covariates[:, k], positions[k], shift[k]) for k in range(len(positions))]
    return torch.stack(shifts).sum(dim=0)


def float_tensor(values: np.ndarray) -> Tensor:
    """Convert an array to a float32 tensor."""
    return to_tensor(np.ascontiguousarray(values, dtype=np.float32))


def tabulated(curve: Curve, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tabulate each covariate's function, centred at mean 0; returns tables and constant.

    ``positions`` is covariates x points; the tables are covariates x points x dimensions. The constant is the sum of
    the means (dimensions).
    """
    middle = positions[:, positions.shape[1] // 2]
    constant, tables = curve(middle[None])[0], []
    for k, points in enumerate(positions):
        values = np.repeat(middle[None], len(points), axis=0)
        values[:, k] = points
        table = curve(values) - curve(middle[None])
        tables.append(table - table.mean(axis=0))
        constant = constant + table.mean(axis=0)
    return np.stack(tables), constant
