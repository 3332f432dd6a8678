"""Composition of donors: proportions of cell types, and numbers of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from bdm.effects.donor_variance import certainty

MAX_SUM = 1e4  # sum of Dirichlet parameters above which donors hardly differ
N_QUANTILES = 21
MIN_VARIANCE = 1e-12  # of log numbers of cells, to tell donors with equal numbers


@dataclass(frozen=True)
class DonorComposition:
    """Distribution of a donor's proportions of populations and number of cells."""

    cell_types: dict[str, float]  # Dirichlet parameters of cell type proportions
    populations: dict[str, dict[str, float]]  # by cell type, Dirichlet parameters of population proportions
    n_cells: tuple[float, ...]  # quantiles of the number of cells, evenly spaced, see :func:`cell_number_quantiles`

    @property
    def concentration(self) -> float:
        """Sum of the parameters of cell types; large if donors are alike."""
        return sum(self.cell_types.values())

    def with_type(
        self, name: str, populations: Sequence[str], share: float, n_cells: Sequence[float]
    ) -> DonorComposition:
        """Add a cell type with its share of all cells."""
        parameter = self.concentration * share / (1 - share)
        within = np.asarray(n_cells) / np.sum(n_cells) * MAX_SUM
        added = dict(zip(populations, within.tolist(), strict=True))
        return DonorComposition(self.cell_types | {name: parameter}, self.populations | {name: added}, self.n_cells)

    def sample(self, generator: np.random.Generator) -> tuple[pd.Series, int]:
        """Sample the proportions of populations and the number of cells of a donor."""
        for_number, for_types, *for_populations = generator.spawn(2 + len(self.populations))
        quantiles = np.linspace(0, 1, len(self.n_cells))
        n_cells = max(round(float(np.interp(for_number.random(), quantiles, self.n_cells))), 1)
        shares = dict(zip(self.cell_types, for_types.dirichlet(list(self.cell_types.values())), strict=True))
        proportions = {
            population: float(shares[cell_type] * share)
            for (cell_type, parameters), rng in zip(self.populations.items(), for_populations, strict=True)
            for population, share in zip(parameters, rng.dirichlet(list(parameters.values())), strict=True)
        }
        return pd.Series(proportions), n_cells


def fit_composition(
    donor: np.ndarray, population: np.ndarray, cell_type_of: dict[str, str], *, share_fitted: float
) -> DonorComposition:
    """Fit the composition of donors by maximum likelihood.

    ``share_fitted`` is the fraction of all cells in ``donor`` and ``population``.
    """
    table = pd.crosstab(donor, population).reindex(columns=list(cell_type_of), fill_value=0)
    populations: dict[str, list[str]] = {}
    for name, cell_type in cell_type_of.items():
        populations.setdefault(cell_type, []).append(name)
    by_type = pd.DataFrame({cell_type: table[names].sum(axis=1) for cell_type, names in populations.items()})
    return DonorComposition(
        dirichlet_parameters(by_type),
        {cell_type: dirichlet_parameters(table[names]) for cell_type, names in populations.items()},
        cell_number_quantiles(table.sum(axis=1).to_numpy() / share_fitted),
    )


def cell_number_quantiles(n_cells: np.ndarray) -> tuple[float, ...]:
    """Return quantiles of numbers of cells, to sample from by interpolation.

    They are spread such that samples have the variance of log numbers between donors.
    """
    log_n = np.log(n_cells)
    quantiles = np.quantile(log_n, np.linspace(0, 1, N_QUANTILES))
    low, high = quantiles[:-1], quantiles[1:]
    mean = float((low + high).mean() / 2)
    variance = float((low**2 + low * high + high**2).mean() / 3 - mean**2)
    if variance > MIN_VARIANCE:
        quantiles = mean + (quantiles - mean) * np.sqrt(certainty(len(n_cells)) * log_n.var(ddof=1) / variance)
    return tuple(np.round(np.exp(quantiles), 1).tolist())


def dirichlet_parameters(numbers: pd.DataFrame) -> dict[str, float]:
    """Fit a Dirichlet-multinomial to counts (donors x groups) by maximum likelihood.

    With few donors, the variance is shrunk, see :func:`bdm.effects.donor_variance.certainty`.
    """
    counts = numbers.to_numpy(dtype=float)
    counts = counts[counts.sum(axis=1) > 0]
    n_donors, n_groups = counts.shape
    if n_groups == 1:
        return {str(numbers.columns[0]): MAX_SUM}
    totals = counts.sum(axis=1)
    start = np.log(np.maximum(counts.mean(axis=0), 1e-3) / counts.mean(axis=0).sum() * 10)

    def negative_log_likelihood(log_parameters: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(log_parameters)
        total = a.sum()
        value = (gammaln(total) - gammaln(totals + total)).sum() + (gammaln(counts + a) - gammaln(a)).sum()
        slope = (digamma(total) - digamma(totals + total)).sum() + (digamma(counts + a) - digamma(a)).sum(axis=0)
        return -float(value), -slope * a

    bounds = [(np.log(1e-4), np.log(MAX_SUM))] * n_groups
    fitted = np.exp(minimize(negative_log_likelihood, start, jac=True, bounds=bounds, method="L-BFGS-B").x)
    total = min(fitted.sum(), MAX_SUM)
    kept = certainty(n_donors)
    concentration = min((total + 1) / kept - 1, MAX_SUM) if kept > 0 else MAX_SUM
    parameters = fitted / fitted.sum() * concentration
    return dict(zip(map(str, numbers.columns), parameters.tolist(), strict=True))
