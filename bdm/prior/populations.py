"""Normals that stand for the cells of each branch, and the mixture of a branch at a noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.latent.mixtures import Mixture, denoised_by_mixture, log_densities
from bdm.latent.moments import PopulationMoments

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
        mean, axes, variance = (of[chosen].cpu().double() for of in (self.mean, self.axes, self.variance))
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
                of[chosen] for of in (self.log_weight, self.mean, self.axes, self.variance)
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
