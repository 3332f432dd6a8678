"""The default prior: a tree of Gaussian mixtures in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from bdm.autoencoder.moments import PopulationMoments
from bdm.hierarchy.tree import Hierarchy
from bdm.prior.base import FittedPrior, LatentPrior, PriorData
from bdm.prior.populations import BranchPopulations
from bdm.prior.sampler import HierarchicalSampler
from bdm.settings import TrainSettings


@dataclass(frozen=True, eq=False)
class GaussianMixturePrior(LatentPrior, name="mixture"):
    """A normal for each population; each branch is the mixture of its populations.

    The diffusion of a mixture has a closed form, so nothing is trained. With components k (:class:`BranchPopulations`)
    and their responsibilities r_k at noise level sigma, the denoised x is
    ``sum_k r_k(x) (m_k + C_k (C_k + sigma**2)**-1 (x - m_k))``.
    """

    populations: BranchPopulations

    @classmethod
    def from_moments(cls, moments: PopulationMoments, hierarchy: Hierarchy) -> GaussianMixturePrior:
        """Build the prior from the moments of its populations."""
        return GaussianMixturePrior(hierarchy, BranchPopulations.from_moments(moments, hierarchy))

    @classmethod
    def fit(
        cls,
        data: PriorData,
        settings: TrainSettings,
        *,
        seed: int,
        device: str = "auto",
    ) -> FittedPrior:
        """Build the prior from the moments of the populations."""
        return FittedPrior(cls.from_moments(data.moments, data.hierarchy))

    @property
    def description(self) -> str:
        """Short description for reports."""
        return "a normal distribution of each population, in closed form"

    @property
    def uses_network(self) -> Tensor:
        """Mask of the branches with a network, by row: none."""
        return torch.zeros(len(self.populations.mean), dtype=torch.bool)

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on a device."""
        return replace(self, populations=self.populations.to(torch.device(device)))

    def sampler(self) -> HierarchicalSampler:
        """Return a sampler along the hierarchy."""
        return HierarchicalSampler(self)

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoise cells in closed form, see :meth:`LatentPrior.denoise`."""
        return self.populations.denoised(x, sigma, branch)

    def log_prob(self, x: Tensor, population: str) -> Tensor:
        """Return the log density of cells (cells x dimensions) in a population, in nats."""
        return self.populations.mixture(self.hierarchy.rows[population], 0.0).log_prob(x)

    def condition(self, direction: Tensor, value: float) -> GaussianMixturePrior:
        """Condition the normals and weights of the populations on ``x @ direction == value``."""
        return replace(self, populations=self.populations.conditioned(direction, value))

    def extended(
        self, hierarchy: Hierarchy, tree: Hierarchy, moments: PopulationMoments, state: dict[str, Tensor]
    ) -> Self:
        """Add branches without changing the mixtures of existing ones."""
        added = BranchPopulations.from_moments(moments, tree).to(self.populations.device)
        return replace(self, hierarchy=hierarchy, populations=self.populations.joined(added))
