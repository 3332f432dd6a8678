"""The default prior: a tree of Gaussian mixtures, whose diffusion, density and conditioning are in closed form."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bdm.hierarchy.tree import Hierarchy
from bdm.latent.mixtures import Mixture
from bdm.latent.moments import PopulationMoments
from bdm.prior.base import FittedPrior, LatentPrior, PriorData
from bdm.prior.populations import BranchPopulations
from bdm.prior.sampler import HierarchicalSampler
from bdm.settings import PriorSettings, SamplerSettings


@dataclass(frozen=True, eq=False)
class GaussianMixturePrior(LatentPrior, name="mixture"):
    """A normal for each population, and on each branch the mixture of the populations below it.

    The diffusion of a mixture of normals is known in closed form, so nothing is trained: the denoised x on a branch is
    ``sum_k r_k(x) (m_k + C_k (C_k + sigma**2)**-1 (x - m_k))`` with the components k of its mixture
    (:class:`bdm.prior.populations.BranchPopulations`) and their responsibilities r_k at sigma.
    """

    populations: BranchPopulations

    @classmethod
    def from_moments(cls, moments: PopulationMoments, hierarchy: Hierarchy) -> GaussianMixturePrior:
        """Make the prior of populations with these moments."""
        return GaussianMixturePrior(hierarchy, BranchPopulations.of(moments, hierarchy))

    @classmethod
    def fit(
        cls,
        data: PriorData,
        settings: PriorSettings,
        *,
        seed: int,
        device: str = "auto",
    ) -> FittedPrior:
        """Take the moments of the populations."""
        return FittedPrior(cls.from_moments(data.moments, data.hierarchy))

    @property
    def description(self) -> str:
        """What generates the latents, in a few words."""
        return "a tree of Gaussian mixtures in closed form"

    @property
    def learned(self) -> Tensor:
        """Whether a network is used on each branch, by row."""
        return torch.zeros(len(self.populations.mean), dtype=torch.bool)

    @property
    def device(self) -> torch.device:
        """Where the prior computes."""
        return self.populations.mean.device

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        return replace(self, populations=self.populations.to(torch.device(device)))

    def sampler(self, settings: SamplerSettings = SamplerSettings()) -> HierarchicalSampler:
        """Sampler by these settings."""
        return HierarchicalSampler(self, settings)

    def sample(self, population: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells of a population, independent of each other, cells x dimensions."""
        return self.sampler().sample(population, n_cells, generator)

    def sample_shared(self, branches: Collection[str], n_cells: int, seed: int) -> dict[str, Tensor]:
        """Sample cells at the lower end of each branch; row i of all descends from one sample of the root."""
        return self.sampler().sample_shared(branches, n_cells, seed)

    def transmute(self, x: Tensor, population: str, to: str, generator: torch.Generator) -> Tensor:
        """Turn cells of a population (cells x dimensions) into cells of another."""
        return self.sampler().transmute(x, population, to, generator)

    def denoised(self, x: Tensor, branch: str) -> Tensor:
        """Mean of the cells without noise, given cells at the lower end of a branch, cells x dimensions."""
        return self.sampler().denoised(x, branch)

    def population(self, branch: int, sigma: float) -> Mixture:
        """Mixture, without noise, of the cells of a branch, with the components that it has at a noise level."""
        return self.populations.mixture(branch, sigma)

    def closed_form(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoised x of the mixtures; the arguments as of :meth:`denoise`."""
        with torch.autocast("cuda", enabled=False):
            return self.populations.denoised(x, sigma, branch)

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Mean of the cells without noise, given noised cells; see :meth:`LatentPrior.denoise`."""
        return self.closed_form(x, sigma, branch)

    def log_prob(self, x: Tensor, population: str) -> Tensor:
        """Log density of each cell (cells x dimensions) in a population, in nats."""
        return self.population(self.hierarchy.rows[population], 0.0).log_prob(x)

    def condition(self, direction: Tensor, value: float) -> GaussianMixturePrior:
        """Prior of the cells whose product with a direction is ``value``: conditional normals, and weights of each."""
        return replace(self, populations=self.populations.conditioned(direction, value))

    def extended(
        self, hierarchy: Hierarchy, tree: Hierarchy, moments: PopulationMoments, state: dict[str, Tensor]
    ) -> Self:
        """Take up branches, which are in no mixture of the others."""
        added = BranchPopulations.of(moments, tree).to(self.device)
        return replace(self, hierarchy=hierarchy, populations=self.populations.joined(added))
