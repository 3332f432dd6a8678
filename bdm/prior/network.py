"""Priors with a network: its trunk that all branches share, the loss that it is trained by, and added branches."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from bdm._core.errors import InputError
from bdm._core.seeds import derive, torch_generator
from bdm._core.training import TrainingPlan, train
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import PopulationMoments, population_weight
from bdm.prior.base import PriorData
from bdm.prior.mixture import BranchPopulations, GaussianMixturePrior
from bdm.settings import TrainSettings


@dataclass(frozen=True)
class NetworkShape:
    """Sizes that fix a network's parameters."""

    n_input: int  # dimensions of whitened space
    n_branches: int
    width: int = 128
    n_layers: int = 3


class ResidualBlock(nn.Module):
    """Residual perceptron whose normalised input is scaled and shifted by noise level and branch."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Next h, cells x width, given the condition, cells (or one for all) x width."""
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        inner = nn.functional.silu(self.norm(h) * (1 + scale) + shift)
        change: Tensor = self.out(nn.functional.silu(self.hidden(inner)))
        return h + change


class BranchNetwork(nn.Module):
    """Network F(x; c_noise, branch), 0 before training; the trunk is shared, so hundreds of branches take no longer."""

    frequencies: Tensor

    def __init__(self, shape: NetworkShape) -> None:
        super().__init__()
        self.shape = shape
        width = shape.width
        self.register_buffer("frequencies", 2 * math.pi * torch.logspace(-2, 1, 32))
        self.noise = nn.Sequential(nn.Linear(2 * len(self.frequencies), width), nn.SiLU())
        self.branch = nn.Embedding(shape.n_branches, width)
        nn.init.normal_(self.branch.weight, std=0.3)
        self.enter = nn.Linear(shape.n_input, width)
        self.blocks = nn.ModuleList(ResidualBlock(width) for _ in range(shape.n_layers))
        self.leave = nn.Linear(width, shape.n_input)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    @classmethod
    def initial(cls, data: PriorData, settings: TrainSettings, *, seed: int) -> BranchNetwork:
        """Make the network of a hierarchy before training; torch's global random generator is left alone."""
        n_branches = len(data.hierarchy.branches)
        shape = NetworkShape(data.moments.mean.shape[1], n_branches, settings.width, settings.n_layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "denoiser"))
            return cls(shape)

    def forward(self, x: Tensor, c_noise: Tensor, branch: Tensor) -> Tensor:
        """F of standardised x, cells x dimensions; c_noise (n x 1) and row of the branch (n): n cells, or 1 for all."""
        angles = c_noise * self.frequencies
        condition = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.branch(branch)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        learned: Tensor = self.leave(h)
        return learned

    def with_branches(self, embeddings: Tensor) -> BranchNetwork:
        """Copy the network with more branches, by their embeddings (branches x width)."""
        known = self.branch.weight
        with torch.random.fork_rng(devices=[]):
            extended = BranchNetwork(replace(self.shape, n_branches=len(known) + len(embeddings)))
        rows = torch.cat([known.detach(), embeddings.to(known)])
        extended.load_state_dict({**self.state_dict(), "branch.weight": rows})
        return extended.eval().requires_grad_(False).to(known.device)


BLOCK = 4096  # cells that are denoised together
LOG_SIGMA_MEAN, LOG_SIGMA_SCALE = -0.5, 1.2  # of the noise levels in training, whose logarithm is normal (Karras 2022)
PATIENCE = 5  # times 100 steps without a gain for held-out cells, after which training ends
N_HELD_OUT = 10_000  # most cells that a network is compared on
SHARE = 0.1  # of cells that are held out where there are no validation cells


Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # as LatentPrior.denoise


def sample_noised(x: Tensor, highest: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add noise to cells (cells x dimensions), each at a random level up to ``highest``; returns cells and levels."""
    log_sigma = torch.randn(len(x), generator=generator) * LOG_SIGMA_SCALE
    sigma = (log_sigma + LOG_SIGMA_MEAN).exp().clamp(max=highest)
    return x + sigma[:, None] * torch.randn(x.shape, generator=generator), sigma


def denoised_in_blocks(denoise: Denoise, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
    """Denoise many cells, ``BLOCK`` at a time; each has its own noise level and branch."""
    blocks = zip(x.split(BLOCK), sigma.split(BLOCK), branch.split(BLOCK), strict=True)
    return torch.cat([denoise(*block) for block in blocks])


def denoising_losses(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error of each denoised cell, weighted by noise level."""
    return ((1 + 1 / sigma**2)[:, None] * (denoised - x) ** 2).mean(dim=1)


def branches_at(table: tuple[Tensor, Tensor], population: Tensor, sigma: Tensor) -> Tensor:
    """Denoiser's branch on the path of each cell at its noise level, given the :func:`table_of_paths`."""
    upper, branch = table
    return branch[population].gather(1, torch.searchsorted(upper[population], sigma[:, None])).squeeze(1)


def table_of_paths(hierarchy: Hierarchy, populations: tuple[str, ...]) -> tuple[Tensor, Tensor]:
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


@dataclass(frozen=True)
class Minibatches:
    """Sampling of cells with replacement: a population by its weight, then any of its cells."""

    order: Tensor  # indices of cells, sorted by population
    n_cells: Tensor  # number of cells of each population

    @classmethod
    def from_populations(cls, population: Tensor) -> Minibatches:
        """Group cells by the index of their population."""
        return cls(torch.argsort(population, stable=True), torch.bincount(population))

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw the indices of ``size`` cells."""
        population = torch.multinomial(population_weight(self.n_cells), size, replacement=True, generator=generator)
        within = torch.rand(size, generator=generator, dtype=torch.float64) * self.n_cells[population]
        start = self.n_cells.cumsum(0) - self.n_cells
        return self.order[start[population] + within.long()]


def held_out_mask(cells: LatentCells, validation: Tensor | None, *, seed: int) -> Tensor:
    """Choose the cells to compare the network on: validation cells or a tenth of all, at most ``N_HELD_OUT``.

    A population keeps a cell to train on.
    """
    n_cells = len(cells.population)
    order = torch.randperm(n_cells, generator=torch_generator(seed, "held-out cells"))
    if validation is not None and validation.any():
        chosen = order[validation[order]][:N_HELD_OUT]
    else:
        chosen = order[: min(max(int(SHARE * n_cells), 1), N_HELD_OUT)]
    mask = torch.zeros(n_cells, dtype=torch.bool)
    mask[chosen] = True
    n_trained = torch.bincount(cells.population[~mask], minlength=len(cells.populations))
    mask &= n_trained[cells.population] > 0
    if not mask.any():
        raise InputError("No population has a cell to train on and another to compare the network on; give more cells.")
    return mask


@dataclass(frozen=True, eq=False)
class MinibatchLoss:
    """Loss of a minibatch of cells."""

    data: PriorData
    trained: Tensor  # indices of the cells to draw from
    denoised: Callable[[nn.Module, BranchPopulations, Tensor, Tensor, Tensor], Tensor]
    populations: BranchPopulations
    settings: TrainSettings
    device: torch.device
    first_row: int = 0  # row in the prior of the first branch of the tree

    @cached_property
    def minibatches(self) -> Minibatches:
        """Cells to draw from, by population."""
        return Minibatches.from_populations(self.data.cells.population[self.trained])

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """Branches on the path of each population."""
        return table_of_paths(self.data.hierarchy, self.data.cells.populations)

    def of_cells(self, network: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Losses of the cells of a minibatch, and their populations."""
        data = self.data
        index = self.trained[self.minibatches.draw(self.settings.batch_size, generator)]
        x = data.whitening(data.cells.sample(index, generator))
        noised, sigma = self.add_noise(x, generator)
        population = data.cells.population[index]
        branch = self.first_row + branches_at(self.table, population, sigma)
        x, noised, sigma, branch = (values.to(self.device) for values in (x, noised, sigma, branch))
        return self.losses(self.denoised(network, self.populations, noised, sigma, branch), x, sigma), population

    def add_noise(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Add noise to cells, each at a random level; returns cells and levels."""
        return sample_noised(x, self.data.hierarchy.sigma_max, generator)

    def losses(self, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Loss of each denoised cell."""
        return denoising_losses(denoised, x, sigma)

    def __call__(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Mean loss."""
        return self.of_cells(network, generator)[0].mean()

    def by_population(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Mean loss of the cells of each population in the minibatch."""
        losses, population = self.of_cells(network, generator)
        names = self.data.cells.populations
        return {names[code]: float(losses.cpu()[population == code].mean()) for code in population.unique()}


def training_plan(settings: TrainSettings, device: torch.device, *, seed: int, **more: Any) -> TrainingPlan:
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


@dataclass(frozen=True, eq=False)
class NetworkPrior(GaussianMixturePrior):
    """A prior with a network on the branches where it is kept."""

    network: BranchNetwork
    kept: Tensor  # whether the network is used on each branch, by row

    minimised: ClassVar[type[MinibatchLoss]] = MinibatchLoss

    @staticmethod
    @abstractmethod
    def denoised_by(
        network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor
    ) -> Tensor:
        """Denoised x by a network on branches with these populations; the others as of :meth:`denoise`."""

    @classmethod
    def loss(
        cls,
        data: PriorData,
        trained: Tensor,
        populations: BranchPopulations,
        settings: TrainSettings,
        device: torch.device,
        *,
        first_row: int = 0,
    ) -> MinibatchLoss:
        """Loss that the network is trained by; the arguments as of :class:`MinibatchLoss`."""
        return cls.minimised(data, trained, cls.denoised_by, populations, settings, device, first_row)

    @property
    def learned(self) -> Tensor:
        """Whether the network is used on each branch, by row."""
        return self.kept.cpu()

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        moved = super().to(device)
        return replace(moved, network=copy.deepcopy(self.network).to(device), kept=self.kept.to(device))

    def log_prob(self, x: Tensor, population: str) -> Tensor:
        """Log density of each cell in a population without a network on its path, in nats."""
        if any(self.kept[segment.row] for segment in self.hierarchy.path(population)):
            self._cannot(f"give the density of {population!r}, on whose path it has a network")
        return super().log_prob(x, population)

    def condition(self, direction: Tensor, value: float) -> GaussianMixturePrior:
        """Prior of the cells whose product with a direction is ``value``, if the network is used nowhere."""
        if self.kept.any():
            self._cannot("be conditioned on a coordinate where it has a network")
        return GaussianMixturePrior(self.hierarchy, self.populations).condition(direction, value)

    def fit_added(self, data: PriorData, neighbour: str, settings: TrainSettings, *, seed: int) -> dict[str, Tensor]:
        """Fit the embeddings of added branches from the neighbour's; if that has no network, they are not trained."""
        row = self.hierarchy.rows[neighbour]
        start = self.network.branch.weight[row].detach().cpu().repeat(len(data.hierarchy.branches), 1)
        kept = self.kept[row].cpu().repeat(len(start))
        embeddings = self.trained_embeddings(data, start, settings, seed=seed) if kept.any() else start
        return {"embeddings": embeddings, "kept": kept}

    def trained_embeddings(self, data: PriorData, start: Tensor, settings: TrainSettings, *, seed: int) -> Tensor:
        """Train the embeddings of added branches from ``start`` (branches x width), and nothing else."""
        network = self.network.with_branches(start).cpu()
        network.branch.weight.requires_grad_(True)
        added = BranchPopulations.of(data.moments, data.hierarchy)
        populations = self.populations.to(torch.device("cpu")).joined(added)
        every = torch.arange(len(data.cells.population))
        loss = self.loss(data, every, populations, settings, torch.device("cpu"), first_row=self.n_rows)
        what = f"the branches of {data.hierarchy.root.name!r}"
        seed = derive(seed, "embedding")
        train(network, loss, TrainingPlan(settings.n_steps, settings.learning_rate, seed=seed, device="cpu", what=what))
        return network.branch.weight[self.n_rows :].detach().clone()

    def extended(
        self, hierarchy: Hierarchy, tree: Hierarchy, moments: PopulationMoments, state: dict[str, Tensor]
    ) -> Self:
        """Take up branches with the embeddings of :meth:`fit_added`."""
        prior = super().extended(hierarchy, tree, moments, state)
        kept = torch.cat([self.kept, state["kept"].to(self.kept)])
        return replace(prior, network=self.network.with_branches(state["embeddings"]), kept=kept)
