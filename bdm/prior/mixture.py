"""The default prior: a tree of Gaussian mixtures, whose diffusion, density and conditioning are in closed form."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor

from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.latent.moments import Mixture, PopulationMoments, denoised_by_mixture, log_densities
from bdm.prior.base import FittedPrior, LatentPrior, PriorData
from bdm.prior.sampler import HierarchicalSampler
from bdm.settings import SamplerSettings, TrainSettings

MERGED = 3.0  # from so many times its spread on, the cells of a branch count as one normal


@dataclass(frozen=True)
class BranchPopulations:
    """Normals that stand for the cells of each branch, from which the mixture at a branch and noise level is made.

    The mixture of branch v at noise level sigma has as components the branches below v, or v itself, whose interval
    from ``lower`` to ``upper`` contains sigma: the leaves at little noise and, where the children of a clade have
    merged, the clade as one normal. The interval of v itself has no upper end.
    """

    mean: Tensor  # branches x dimensions
    axes: Tensor  # principal axes in columns, branches x dimensions x dimensions
    variance: Tensor  # along the axes, branches x dimensions
    log_weight: Tensor  # logarithm of the share of each branch in training, up to a constant
    lower: Tensor
    upper: Tensor
    below: Tensor  # whether a branch (column) is another (row), or below it

    @classmethod
    def of(cls, moments: PopulationMoments, hierarchy: Hierarchy, *, merged: float = MERGED) -> BranchPopulations:
        """Compute the populations of the branches of a hierarchy, in its order."""
        names = [branch.name for branch in hierarchy.branches]
        row = {name: i for i, name in enumerate(names)}
        weight = dict(zip(moments.populations, moments.weight.double().tolist(), strict=True))
        leaves = [tuple(hierarchy.leaves(name)) for name in names]
        normals = [moments.mixture(of_branch) for of_branch in leaves]
        axes, variance = principal_axes(torch.stack([normal.covariance for normal in normals]))
        below = torch.eye(len(names), dtype=torch.bool)
        for branch in reversed(hierarchy.branches):  # every parent comes before its children
            if branch.parent is not None:
                below[row[branch.parent]] |= below[row[branch.name]]
        parents = [None if branch.parent is None else hierarchy.by_name[branch.parent] for branch in hierarchy.branches]
        return cls(
            torch.stack([normal.mean for normal in normals]),
            axes,
            variance,
            torch.tensor([math.log(sum(weight[leaf] for leaf in of_branch)) for of_branch in leaves]),
            torch.tensor([merging_level(branch, merged) for branch in hierarchy.branches]),
            torch.tensor([math.inf if parent is None else merging_level(parent, merged) for parent in parents]),
            below,
        )

    def joined(self, other: BranchPopulations) -> BranchPopulations:
        """Add branches that are in no mixture of the others."""
        rows = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        square = torch.block_diag(*(below.to(torch.uint8) for below in rows.pop("below"))).bool()
        return BranchPopulations(**{name: torch.cat(both) for name, both in rows.items()}, below=square)

    def to(self, device: torch.device) -> BranchPopulations:
        """Move to a device."""
        return BranchPopulations(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def components(self, sigma: Tensor, branch: Tensor) -> Tensor:
        """Whether each branch is in a cell's mixture, cells x branches; sigma and branch: one per cell, or for all."""
        itself = torch.arange(len(self.below), device=branch.device) == branch[:, None]
        within = (self.lower <= sigma[:, None]) & ((sigma[:, None] < self.upper) | itself)
        return self.below[branch] & within

    def mixture(self, branch: int, sigma: float) -> Mixture:
        """Mixture, without noise, of the cells of a branch, with the components that it has at a noise level."""
        level, index = torch.tensor([sigma], device=self.mean.device), torch.tensor([branch], device=self.mean.device)
        chosen = self.components(level, index)[0].nonzero().squeeze(1)
        mean, axes, variance = (tensor[chosen].cpu().double() for tensor in (self.mean, self.axes, self.variance))
        weight = self.log_weight[chosen].cpu().double().softmax(dim=0)
        return Mixture(weight, mean, (axes * variance[:, None]) @ axes.mT)

    def conditioned(self, direction: Tensor, value: float) -> BranchPopulations:
        """Condition leaves on cells whose product with a direction is ``value``; branches above follow from these."""
        mixtures = [self.mixture(branch, 0.0) for branch in range(len(self.below))]
        found = [mixture.conditioned(direction, value).moments for mixture in mixtures]
        axes, variance = principal_axes(torch.stack([normal.covariance for normal in found]))
        density = torch.stack([mixture.log_densities_of(direction, value).logsumexp(dim=0) for mixture in mixtures])
        return replace(
            self,
            mean=torch.stack([normal.mean for normal in found]).float(),
            axes=axes,
            variance=variance,
            log_weight=self.log_weight + density.float(),
        )

    def standardise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Standardise noised cells, ``(C + sigma**2)**-0.5 (x - m)``, with mean m and covariance C of their branch."""
        axes = self.axes[branch]
        away = _multiply(x - self.mean[branch], axes)
        return _multiply(away * (self.variance[branch] + sigma[:, None] ** 2).rsqrt(), axes.mT)

    def denoised(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoised x of the mixtures of the branches; the arguments as of :meth:`LatentPrior.denoise`."""
        components = self.components(sigma, branch)
        if len(components) == 1:
            chosen = components[0].nonzero().squeeze(1)
            log_weight, mean, axes, variance = (
                tensor[chosen] for tensor in (self.log_weight, self.mean, self.axes, self.variance)
            )
            return denoised_by_mixture(x, log_weight, mean, axes, variance, sigma**2)
        cell, component = components.nonzero(as_tuple=True)
        noise = sigma.expand(len(x))[cell, None] ** 2
        axes, variance = self.axes[component], self.variance[component]
        along = (x[cell] - self.mean[component])[:, None] @ axes
        density = log_densities(along, variance + noise, self.log_weight[component]).squeeze(1)
        share = torch.full(components.shape, -torch.inf, device=x.device)
        share[cell, component] = density
        share = share.softmax(dim=1)[cell, component]
        clean = self.mean[component] + ((along.squeeze(1) * variance / (variance + noise))[:, None] @ axes.mT).squeeze(
            1
        )
        return torch.zeros_like(x).index_add(0, cell, share[:, None] * clean)


def merging_level(branch: Branch, merged: float = MERGED) -> float:
    """Noise level from which on the cells of a branch count as one normal: 0 for a leaf."""
    return merged * math.hypot(1, branch.level) if branch.level else 0.0


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Principal axes of covariances (... x dimensions x dimensions), and the variances along these."""
    variance, axes = torch.linalg.eigh(covariance.double())
    # in one order in memory, on which the last digits of products depend
    return axes.float().contiguous(), variance.clamp(min=0).float()


def _multiply(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each row of x by its matrix, or all rows by the only one."""
    return x @ matrices[0] if len(matrices) == 1 else (x[:, None] @ matrices).squeeze(1)


@dataclass(frozen=True, eq=False)
class GaussianMixturePrior(LatentPrior, name="mixture"):
    """A normal for each population, and on each branch the mixture of the populations below it.

    The diffusion of a mixture of normals is known in closed form, so nothing is trained: the denoised x on a branch is
    ``sum_k r_k(x) (m_k + C_k (C_k + sigma**2)**-1 (x - m_k))`` with the components k of its mixture
    (:class:`bdm.prior.mixture.BranchPopulations`) and their responsibilities r_k at sigma.
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
        settings: TrainSettings,
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
