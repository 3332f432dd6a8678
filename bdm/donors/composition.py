"""Composition and number of cells of donors: the fit, and draws for new donors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import digamma, gammaln

from bdm.donors.variance import certainty

MAX_SUM = 1e4  # sum of parameters; from about there on, donors differ by the sampling of their cells alone
N_QUANTILES = 21
MIN_VARIANCE = 1e-12  # variance of logarithms of numbers that are not the same


@dataclass(frozen=True)
class DonorComposition:
    """Distribution of a donor's shares of cell types and of their populations, and of its number of cells."""

    # Parameters of the Dirichlet distribution of the shares of cell types; their sum is the concentration
    cell_types: dict[str, float]
    # For each cell type, the parameters of the Dirichlet distribution of the shares of its populations
    populations: dict[str, dict[str, float]]
    n_cells: tuple[float, ...]  # quantiles of the numbers of cells of donors, at equal distances, see :func:`quantiles`

    @property
    def concentration(self) -> float:
        """Concentration of the shares of cell types: the larger, the less donors differ."""
        return sum(self.cell_types.values())

    def with_type(
        self, name: str, populations: Sequence[str], share: float, n_cells: Sequence[float]
    ) -> DonorComposition:
        """Add a cell type with its share of all cells, and populations with their numbers of cells."""
        parameter = self.concentration * share / (1 - share)
        within = np.asarray(n_cells) / np.sum(n_cells) * MAX_SUM
        added = dict(zip(populations, within.tolist(), strict=True))
        return DonorComposition(self.cell_types | {name: parameter}, self.populations | {name: added}, self.n_cells)

    def sample(self, generator: np.random.Generator) -> tuple[pd.Series, int]:
        """Draw the shares of populations, which sum to 1, and the number of cells of a donor."""
        number, types, *within = generator.spawn(2 + len(self.populations))
        quantiles = np.linspace(0, 1, len(self.n_cells))
        n_cells = max(round(float(np.interp(number.random(), quantiles, self.n_cells))), 1)
        shares = dict(zip(self.cell_types, types.dirichlet(list(self.cell_types.values())), strict=True))
        drawn = {
            population: float(shares[cell_type] * share)
            for (cell_type, parameters), rng in zip(self.populations.items(), within, strict=True)
            for population, share in zip(parameters, rng.dirichlet(list(parameters.values())), strict=True)
        }
        return pd.Series(drawn), n_cells


def fit_composition(
    donor: np.ndarray, population: np.ndarray, cell_type_of: dict[str, str], *, share_fitted: float
) -> DonorComposition:
    """Fit the composition of donors by maximum likelihood."""
    table = pd.crosstab(donor, population).reindex(columns=list(cell_type_of), fill_value=0)
    of_type: dict[str, list[str]] = {}
    for name, cell_type in cell_type_of.items():
        of_type.setdefault(cell_type, []).append(name)
    by_type = pd.DataFrame({cell_type: table[names].sum(axis=1) for cell_type, names in of_type.items()})
    return DonorComposition(
        dirichlet_parameters(by_type),
        {cell_type: dirichlet_parameters(table[names]) for cell_type, names in of_type.items()},
        quantiles(table.sum(axis=1).to_numpy() / share_fitted),
    )


def quantiles(n_cells: np.ndarray) -> tuple[float, ...]:
    """Quantiles of numbers of cells, spread until numbers interpolated between them vary as donors do."""
    log_n = np.log(n_cells)
    found = np.quantile(log_n, np.linspace(0, 1, N_QUANTILES))
    low, high = found[:-1], found[1:]
    mean = float((low + high).mean() / 2)
    variance = float((low**2 + low * high + high**2).mean() / 3 - mean**2)
    if variance > MIN_VARIANCE:
        found = mean + (found - mean) * np.sqrt(certainty(len(n_cells)) * log_n.var(ddof=1) / variance)
    return tuple(np.round(np.exp(found), 1).tolist())


def dirichlet_parameters(numbers: pd.DataFrame) -> dict[str, float]:
    """Fit a Dirichlet-multinomial to donors x groups by maximum likelihood; few donors have less variance."""
    counts = numbers.to_numpy(dtype=float)
    counts = counts[counts.sum(axis=1) > 0]
    n_donors, n_groups = counts.shape
    if n_groups == 1:
        return {str(numbers.columns[0]): MAX_SUM}
    totals = counts.sum(axis=1)
    start = np.log(np.maximum(counts.mean(axis=0), 1e-3) / counts.mean(axis=0).sum() * 10)

    def negative(log_parameters: np.ndarray) -> tuple[float, np.ndarray]:
        a = np.exp(log_parameters)
        total = a.sum()
        value = (gammaln(total) - gammaln(totals + total)).sum() + (gammaln(counts + a) - gammaln(a)).sum()
        slope = (digamma(total) - digamma(totals + total)).sum() + (digamma(counts + a) - digamma(a)).sum(axis=0)
        return -float(value), -slope * a

    bounds = [(np.log(1e-4), np.log(MAX_SUM))] * n_groups
    found = np.exp(minimize(negative, start, jac=True, bounds=bounds, method="L-BFGS-B").x)
    total = min(found.sum(), MAX_SUM)
    kept = certainty(n_donors)
    concentration = min((total + 1) / kept - 1, MAX_SUM) if kept > 0 else MAX_SUM
    parameters = found / found.sum() * concentration
    return dict(zip(map(str, numbers.columns), parameters.tolist(), strict=True))
