"""Simulate new donors: their effects on cells, and their composition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.autoencoder.moments import PopulationMoments, Whitening
from bdm.autoencoder.observation import ObservationModel
from bdm.model.donors import DonorComposition, DonorEffects

MAX_DONOR_SHARE = 0.9  # largest fraction of the variance in any direction that is between donors


@dataclass(frozen=True, eq=False)
class DonorModel:
    """Distribution of donors. Donors do not differ within added cell types."""

    effects: DonorEffects
    composition: DonorComposition  # of all cell types of the model, including added ones
    whitening: Whitening
    moments: PopulationMoments
    cell_type_of: dict[str, str]  # cell type of each population of the model

    @property
    def n_donors(self) -> int:
        """Number of donors in the training data."""
        return self.effects.n_donors

    @property
    def concentration(self) -> float:
        """Dirichlet concentration of cell type proportions; large if donors are alike."""
        return self.composition.concentration

    def sample(self, n: int, generator: np.random.Generator) -> NewDonors:
        """Sample new donors; donor i does not depend on ``n``."""
        effects = self.effects
        n_types, n_columns = effects.sd.shape
        loadings = effects.loadings.double().numpy()
        residual = np.sqrt(np.maximum(1 - (loadings**2).sum(axis=0), 0))
        deviation, proportions, n_cells = np.zeros((n, n_types, n_columns), np.float32), [], []
        for number, rng in enumerate(generator.spawn(n)):
            for_factors, for_shared, for_types, for_cells = rng.spawn(4)
            factors = np.einsum("k,kcg->cg", for_factors.standard_normal(len(loadings)), loadings)
            shared, own = for_shared.standard_normal(n_columns), for_types.standard_normal((n_types, n_columns))
            mixed = np.sqrt(effects.shared) * shared + np.sqrt(1 - effects.shared) * own
            deviation[number] = factors + residual * mixed
            donor_proportions, donor_n_cells = self.composition.sample(for_cells)
            proportions.append(donor_proportions)
            n_cells.append(donor_n_cells)
        names = tuple(f"donor-{number}" for number in range(1, n + 1))
        table = pd.DataFrame(proportions, index=list(names))
        return NewDonors(self, names, deviation, table, np.array(n_cells, dtype=int))

    @cached_property
    def contractions(self) -> dict[str, Tensor]:
        """Linear maps that remove the variance between donors, by population.

        The map is ``C**1/2 (I - E)**1/2 C**-1/2`` with ``E = C**-1/2 B C**-1/2``, for the covariance C of all cells and
        B between donors. Mapped cells have covariance ``C - B``. All are dimensions x dimensions, in whitened space.
        """
        maps = {}
        for row, name in enumerate(self.effects.populations):
            between = self.whitening.linear(self.whitening.linear(self.effects.between[row]).T).double()
            covariance = self.moments.covariance[self.moments.populations.index(name)].double()
            value, axes = torch.linalg.eigh(covariance)
            root = value.clamp(min=1e-8).sqrt()
            half, inverse = (axes * root) @ axes.T, (axes / root) @ axes.T
            share, directions = torch.linalg.eigh(inverse @ between @ inverse)
            kept = (1 - share.clamp(0, MAX_DONOR_SHARE)).sqrt()
            maps[name] = (half @ (directions * kept) @ directions.T @ inverse).float()
        return maps


@dataclass(frozen=True, eq=False)
class NewDonors:
    """Donors sampled from a :class:`DonorModel`."""

    model: DonorModel
    names: tuple[str, ...]  # donor-1, donor-2, ...
    deviation: np.ndarray  # in standard deviations, donors x cell types with effects x (genes + library sizes)
    proportions: pd.DataFrame  # donors x populations; rows sum to 1
    n_cells: np.ndarray  # cells per donor

    def row(self, population: str) -> int | None:
        """Return the row of a population's cell type, or None without effects."""
        effects = self.model.effects
        if population not in effects.populations:
            return None
        return effects.cell_types.index(self.model.cell_type_of[population])

    def within(self, population: str, x: Tensor, donor: np.ndarray) -> Tensor:
        """Reduce whitened cells to the spread within donors, and shift their library sizes."""
        row = self.row(population)
        if row is None:
            return x
        model = self.model
        mean = model.moments.mean[model.moments.populations.index(population)]
        sizes = slice(model.effects.n_genes, None)  # last columns of effects, and last coordinates of y
        shift = model.effects.sd[row, sizes] * torch.tensor(self.deviation[donor, row, sizes])
        y = torch.cat([torch.zeros(len(x), x.shape[1] - shift.shape[1]), shift], dim=1)
        return mean + (x - mean) @ model.contractions[population].T + model.whitening.linear(y)

    def log_expression(self, population: str) -> np.ndarray:
        """Return offsets of log expression, donors x genes.

        The expected fold change, over donors, is 1.
        """
        row = self.row(population)
        genes = slice(0, self.model.effects.n_genes)
        sd = self.model.effects.sd[:, genes].double().numpy()
        if row is None:
            return np.zeros((len(self.names), sd.shape[1]))
        return np.asarray(self.deviation[:, row, genes] * sd[row] - sd[row] ** 2 / 2)

    def observation(self, population: str, model: ObservationModel) -> ObservationModel:
        """Remove the variance that :meth:`log_expression` adds from an observation model."""
        row = self.row(population)
        return model if row is None else model.within(self.model.effects.beyond[row])
