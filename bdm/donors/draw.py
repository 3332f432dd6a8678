"""New donors: their effects on cells, and their composition."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.autoencoder.observation import ObservationModel
from bdm.donors.effects import DonorComposition, DonorEffects
from bdm.latent.moments import PopulationMoments, Whitening

MAX_DONOR_SHARE = 0.9  # of the variance of cells in any direction, that can be between donors


@dataclass(frozen=True, eq=False)
class DonorModel:
    """Distribution of donors, from which new ones are drawn; added cell types have no effects of donors."""

    effects: DonorEffects
    composition: DonorComposition  # of the cell types of the model, with those that were added
    whitening: Whitening
    moments: PopulationMoments
    cell_type_of: dict[str, str]  # cell type of each population of the model

    @property
    def n_donors(self) -> int:
        """Number of donors that it was learned from."""
        return self.effects.n_donors

    @property
    def concentration(self) -> float:
        """Concentration of the shares of cell types: the larger, the less donors differ."""
        return self.composition.concentration

    def sample(self, n: int, generator: np.random.Generator) -> NewDonors:
        """Draw new donors; a donor depends on the generator and on its number alone."""
        effects = self.effects
        n_types, n_columns = effects.sd.shape
        loadings = effects.loadings.double().numpy()
        rest = np.sqrt(np.maximum(1 - (loadings**2).sum(axis=0), 0))
        deviation, shares, n_cells = np.zeros((n, n_types, n_columns), np.float32), [], []
        for number, rng in enumerate(generator.spawn(n)):
            for_factors, for_shared, for_types, for_cells = rng.spawn(4)
            factors = np.einsum("k,kcg->cg", for_factors.standard_normal(len(loadings)), loadings)
            shared, own = for_shared.standard_normal(n_columns), for_types.standard_normal((n_types, n_columns))
            mixed = np.sqrt(effects.shared) * shared + np.sqrt(1 - effects.shared) * own
            deviation[number] = factors + rest * mixed
            of_donor, number_of_cells = self.composition.sample(for_cells)
            shares.append(of_donor)
            n_cells.append(number_of_cells)
        names = tuple(f"donor-{number}" for number in range(1, n + 1))
        proportions = pd.DataFrame(shares, index=list(names))
        return NewDonors(self, names, deviation, proportions, np.array(n_cells, dtype=int))

    @cached_property
    def contractions(self) -> dict[str, Tensor]:
        """Maps that bring the cells of each population to the spread within a donor, dimensions x dimensions.

        With the covariances C of all cells and B between donors in whitened space, the map is ``C**1/2 (I - E)**1/2
        C**-1/2`` with ``E = C**-1/2 B C**-1/2``: the spread becomes ``C - B``.
        """
        found = {}
        for row, name in enumerate(self.effects.populations):
            within = self.whitening.linear(self.whitening.linear(self.effects.between[row]).T).double()
            covariance = self.moments.covariance[self.moments.populations.index(name)].double()
            value, axes = torch.linalg.eigh(covariance)
            root = value.clamp(min=1e-8).sqrt()
            half, inverse = (axes * root) @ axes.T, (axes / root) @ axes.T
            share, directions = torch.linalg.eigh(inverse @ within @ inverse)
            kept = (1 - share.clamp(0, MAX_DONOR_SHARE)).sqrt()
            found[name] = (half @ (directions * kept) @ directions.T @ inverse).float()
        return found


@dataclass(frozen=True, eq=False)
class NewDonors:
    """Donors that were drawn from a model."""

    model: DonorModel
    names: tuple[str, ...]  # ``donor-1``, ``donor-2`` and so on
    deviation: np.ndarray  # in standard deviations: donors x cell types with effects x (genes + library sizes)
    proportions: pd.DataFrame  # shares of populations, donors x populations; the rows sum to 1
    n_cells: np.ndarray  # number of cells of each donor

    def row(self, population: str) -> int | None:
        """Row of the cell type of a population among those with effects; None if donors do not differ in it."""
        effects = self.model.effects
        if population not in effects.populations:
            return None
        return effects.cell_types.index(self.model.cell_type_of[population])

    def within(self, population: str, x: Tensor, donor: np.ndarray) -> Tensor:
        """Bring whitened cells of a population to the spread within their donors, and to their library sizes."""
        row = self.row(population)
        if row is None:
            return x
        model = self.model
        mean = model.moments.mean[model.moments.populations.index(population)]
        sizes = slice(model.effects.n_genes, None)  # the last coordinates of y, and last columns of effects
        shift = model.effects.sd[row, sizes] * torch.tensor(self.deviation[donor, row, sizes])
        y = torch.cat([torch.zeros(len(x), x.shape[1] - shift.shape[1]), shift], dim=1)
        return mean + (x - mean) @ model.contractions[population].T + model.whitening.linear(y)

    def log_expression(self, population: str) -> np.ndarray:
        """Offsets of natural log expression, donors x genes; the mean of their exponentials over donors is 1."""
        row = self.row(population)
        genes = slice(0, self.model.effects.n_genes)
        sd = self.model.effects.sd[:, genes].double().numpy()
        if row is None:
            return np.zeros((len(self.names), sd.shape[1]))
        return np.asarray(self.deviation[:, row, genes] * sd[row] - sd[row] ** 2 / 2)

    def observation(self, population: str, model: ObservationModel) -> ObservationModel:
        """Observation model of the counts of one donor, without the variance that :meth:`log_expression` adds."""
        row = self.row(population)
        return model if row is None else model.within(self.model.effects.beyond[row])
