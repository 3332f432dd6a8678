"""Normal approximations of branches, and the mixtures that they combine into."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from bdm.autoencoder.moments import Mixture, PopulationMoments, denoised_by_mixture, log_densities
from bdm.hierarchy.tree import Branch, Hierarchy

MERGING_FACTOR = 3.0  # a branch is one normal once the noise exceeds its spread by this factor


@dataclass(frozen=True)
class BranchPopulations:
    """Normal approximation of every branch; branches combine into mixtures.

    The components of branch v at noise level sigma are v and its descendants with ``lower <= sigma < upper``: leaves
    at low noise, and whole clades once the noise has merged their children. v itself has no upper limit.
    """

    mean: Tensor  # branches x dimensions
    axes: Tensor  # principal axes in columns, branches x dimensions x dimensions
    variance: Tensor  # along the axes, branches x dimensions
    log_weight: Tensor  # log share of each branch in training, up to a constant
    lower: Tensor  # lowest noise level at which a branch is one component
    upper: Tensor  # noise level from which its parent replaces it
    below: Tensor  # whether a branch (column) is the same as another (row) or a descendant of it

    @classmethod
    def from_moments(
        cls, moments: PopulationMoments, hierarchy: Hierarchy, *, merging_factor: float = MERGING_FACTOR
    ) -> BranchPopulations:
        """Compute the normal of each branch, in the order of the hierarchy."""
        names = [branch.name for branch in hierarchy.branches]
        row = {name: i for i, name in enumerate(names)}
        weight = dict(zip(moments.populations, moments.weight.double().tolist(), strict=True))
        leaves_of_branches = [tuple(hierarchy.leaves(name)) for name in names]
        normals = [moments.mixture_moments(leaves) for leaves in leaves_of_branches]
        axes, variance = principal_axes(torch.stack([normal.covariance for normal in normals]))
        below = torch.eye(len(names), dtype=torch.bool)
        for branch in reversed(hierarchy.branches):  # children before their parents
            if branch.parent is not None:
                below[row[branch.parent]] |= below[row[branch.name]]
        parents = [None if branch.parent is None else hierarchy.by_name[branch.parent] for branch in hierarchy.branches]
        return cls(
            torch.stack([normal.mean for normal in normals]),
            axes,
            variance,
            torch.tensor([math.log(sum(weight[leaf] for leaf in leaves)) for leaves in leaves_of_branches]),
            torch.tensor([merging_level(branch, merging_factor) for branch in hierarchy.branches]),
            torch.tensor([math.inf if parent is None else merging_level(parent, merging_factor) for parent in parents]),
            below,
        )

    def joined(self, other: BranchPopulations) -> BranchPopulations:
        """Add branches without changing the mixtures of existing ones."""
        pairs = {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)}
        below = torch.block_diag(*(mask.to(torch.uint8) for mask in pairs.pop("below"))).bool()
        return BranchPopulations(**{name: torch.cat(pair) for name, pair in pairs.items()}, below=below)

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.mean.device

    def to(self, device: torch.device) -> BranchPopulations:
        """Return a copy on a device."""
        return BranchPopulations(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})

    def components(self, sigma: Tensor, branch: Tensor) -> Tensor:
        """Return a mask of the branches in each cell's mixture, cells x branches.

        ``sigma`` and ``branch`` are of each cell or of all (length 1).
        """
        itself = torch.arange(len(self.below), device=branch.device) == branch[:, None]
        active = (self.lower <= sigma[:, None]) & ((sigma[:, None] < self.upper) | itself)
        return self.below[branch] & active

    def mixture(self, branch: int, sigma: float) -> Mixture:
        """Return the mixture of a branch without noise, with its components at noise level ``sigma``."""
        level, index = torch.tensor([sigma], device=self.device), torch.tensor([branch], device=self.device)
        members = self.components(level, index)[0].nonzero().squeeze(1)
        mean, axes, variance = (tensor[members].cpu().double() for tensor in (self.mean, self.axes, self.variance))
        weight = self.log_weight[members].cpu().double().softmax(dim=0)
        return Mixture(weight, mean, (axes * variance[:, None]) @ axes.mT)

    def conditioned(self, direction: Tensor, value: float) -> BranchPopulations:
        """Condition on ``x @ direction == value``, inner branches through their leaves."""
        mixtures = [self.mixture(branch, 0.0) for branch in range(len(self.below))]
        normals = [mixture.conditioned(direction, value).moments for mixture in mixtures]
        axes, variance = principal_axes(torch.stack([normal.covariance for normal in normals]))
        density = torch.stack([mixture.log_densities_along(direction, value).logsumexp(dim=0) for mixture in mixtures])
        return replace(
            self,
            mean=torch.stack([normal.mean for normal in normals]).float(),
            axes=axes,
            variance=variance,
            log_weight=self.log_weight + density.float(),
        )

    def standardise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Standardise noised cells by their branch: ``(C + sigma**2)**-0.5 (x - m)``."""
        axes = self.axes[branch]
        with torch.autocast("cuda", enabled=False):
            along = _multiply(x - self.mean[branch], axes)
            return _multiply(along * (self.variance[branch] + sigma[:, None] ** 2).rsqrt(), axes.mT)

    def denoised(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoise cells by the mixtures of their branches, see :meth:`LatentPrior.denoise`."""
        components = self.components(sigma, branch)
        with torch.autocast("cuda", enabled=False):
            if len(components) == 1:  # all cells have the same components
                members = components[0].nonzero().squeeze(1)
                log_weight, mean, axes, variance = (
                    tensor[members] for tensor in (self.log_weight, self.mean, self.axes, self.variance)
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
            filtered = (along.squeeze(1) * variance / (variance + noise))[:, None] @ axes.mT
            clean = self.mean[component] + filtered.squeeze(1)
            return torch.zeros_like(x).index_add(0, cell, share[:, None] * clean)


def merging_level(branch: Branch, merging_factor: float = MERGING_FACTOR) -> float:
    """Return the noise level above which a branch is one normal."""
    return merging_factor * math.hypot(1, branch.level) if branch.level else 0.0


def principal_axes(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the principal axes (columns) of covariances, and the variances along them."""
    variance, axes = torch.linalg.eigh(covariance.double())
    # contiguous, as the last digits of products depend on the memory layout
    return axes.float().contiguous(), variance.clamp(min=0).float()


def _multiply(x: Tensor, matrices: Tensor) -> Tensor:
    """Multiply each row of x by its own or a shared matrix."""
    return x @ matrices[0] if len(matrices) == 1 else (x[:, None] @ matrices).squeeze(1)
