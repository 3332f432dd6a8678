"""Noise of training: its levels, the branches that these are on, and the loss of denoised cells."""

from collections.abc import Callable

import torch
from torch import Tensor

from bdm.hierarchy.tree import Hierarchy
from bdm.settings import DenoiserSettings

BLOCK = 4096  # cells that are denoised together


def sample_noised(
    x: Tensor, settings: DenoiserSettings, highest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Add noise to cells (cells x dimensions), each at a random level up to ``highest``; returns cells and levels."""
    log_sigma = torch.randn(len(x), generator=generator) * settings.log_sigma_scale
    sigma = (log_sigma + settings.log_sigma_mean).exp().clamp(max=highest)
    return x + sigma[:, None] * torch.randn(x.shape, generator=generator), sigma


def denoised_in_blocks(
    denoise: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, sigma: Tensor, branch: Tensor
) -> Tensor:
    """Denoise many cells, some at a time; the arguments as of :meth:`bdm.diffusion.denoiser.BranchedDenoiser.forward`.

    Each cell has its own noise level and branch.
    """
    blocks = zip(x.split(BLOCK), sigma.split(BLOCK), branch.split(BLOCK), strict=True)
    return torch.cat([denoise(*block) for block in blocks])


def denoising_losses(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error of each denoised cell, weighted by noise level."""
    return ((1 + 1 / sigma**2)[:, None] * (denoised - x) ** 2).mean(dim=1)


def branches_at(table: tuple[Tensor, Tensor], population: Tensor, sigma: Tensor) -> Tensor:
    """Denoiser's branch on the path of each cell at its noise level, given the :func:`branch_table`."""
    upper, branch = table
    return branch[population].gather(1, torch.searchsorted(upper[population], sigma[:, None])).squeeze(1)


def branch_table(hierarchy: Hierarchy, populations: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Branches on the path of each population, from the leaf up.

    Returns
    -------
    The highest noise level of each branch (infinite for the last) and its index in the denoiser, both populations x
    longest path; ``searchsorted`` in the first gives the column in the second.
    """
    paths = [hierarchy.path(population)[::-1] for population in populations]
    longest = max(len(path) for path in paths)
    upper = torch.full((len(paths), longest), torch.inf)
    branch = torch.zeros(len(paths), longest, dtype=torch.long)
    for row, path in enumerate(paths):
        for column, segment in enumerate(path):
            upper[row, column] = segment.high if column + 1 < len(path) else torch.inf
            branch[row, column] = segment.denoiser_branch
    return upper, branch
