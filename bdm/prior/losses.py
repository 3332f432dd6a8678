"""What the network of the prior is trained by: noise levels, their branches, and the loss of a minibatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from bdm._core.seeds import Minibatches, derive
from bdm._core.training import TrainingPlan
from bdm.hierarchy.tree import Hierarchy
from bdm.prior.base import PriorData
from bdm.settings import PriorSettings

BLOCK = 4096  # cells that are denoised together


Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # as LatentPrior.denoise


def sample_noised(
    x: Tensor, settings: PriorSettings, highest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Add noise to cells (cells x dimensions), each at a random level up to ``highest``; returns cells and levels."""
    log_sigma = torch.randn(len(x), generator=generator) * settings.log_sigma_scale
    sigma = (log_sigma + settings.log_sigma_mean).exp().clamp(max=highest)
    return x + sigma[:, None] * torch.randn(x.shape, generator=generator), sigma


def denoised_in_blocks(denoise: Denoise, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
    """Denoise many cells, ``BLOCK`` at a time; each has its own noise level and branch."""
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
    """Highest noise level, and row in the prior, of each branch on the path of a population, from the leaf up.

    Both are populations x longest path, the last level infinite; ``searchsorted`` in the first gives the column in the
    second.
    """
    paths = [hierarchy.path(population)[::-1] for population in populations]
    longest = max(len(path) for path in paths)
    upper = torch.full((len(paths), longest), torch.inf)
    branch = torch.zeros(len(paths), longest, dtype=torch.long)
    for row, path in enumerate(paths):
        for column, segment in enumerate(path):
            upper[row, column] = segment.high if column + 1 < len(path) else torch.inf
            branch[row, column] = segment.row
    return upper, branch


@dataclass(frozen=True, eq=False)
class MinibatchLoss:
    """Loss of a minibatch of cells."""

    data: PriorData
    trained: Tensor  # indices of the cells to draw from
    denoised: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # by network, noised x, levels and branches
    settings: PriorSettings
    device: torch.device
    first_row: int = 0  # row in the prior of the first branch of the tree

    @cached_property
    def minibatches(self) -> Minibatches:
        """Cells to draw from, by population."""
        return Minibatches.from_populations(self.data.cells.population[self.trained])

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """Branches on the path of each population."""
        return branch_table(self.data.hierarchy, self.data.cells.populations)

    def of_cells(self, network: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Losses of the cells of a minibatch, and their populations."""
        data = self.data
        index = self.trained[self.minibatches.draw(self.settings.batch_size, generator)]
        x = data.whitening(data.cells.sample(index, generator))
        noised, sigma = sample_noised(x, self.settings, data.hierarchy.sigma_max, generator)
        population = data.cells.population[index]
        branch = self.first_row + branches_at(self.table, population, sigma)
        x, noised, sigma, branch = (values.to(self.device) for values in (x, noised, sigma, branch))
        return denoising_losses(self.denoised(network, noised, sigma, branch), x, sigma), population

    def __call__(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Mean loss."""
        return self.of_cells(network, generator)[0].mean()

    def by_population(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Mean loss of the cells of each population in the minibatch."""
        losses, population = self.of_cells(network, generator)
        names = self.data.cells.populations
        return {names[code]: float(losses.cpu()[population == code].mean()) for code in population.unique()}


def training_plan(settings: PriorSettings, device: torch.device, *, seed: int, **more: Any) -> TrainingPlan:
    """Plan of the training of a network; ``more`` are fields of :class:`bdm._core.training.TrainingPlan`."""
    return TrainingPlan(
        settings.n_steps,
        settings.learning_rate,
        seed=derive(seed, "denoiser steps"),
        device=device,
        what="the network of the prior",
        averaging=settings.averaging,
        **more,
    )
