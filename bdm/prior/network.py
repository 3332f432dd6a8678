"""Priors with a network: architecture, training loss and added branches."""

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
from bdm.autoencoder.latent import LatentCells
from bdm.autoencoder.moments import PopulationMoments, population_weight
from bdm.hierarchy.tree import Hierarchy
from bdm.prior.base import PriorData, unsupported
from bdm.prior.mixture import GaussianMixturePrior
from bdm.prior.populations import BranchPopulations
from bdm.settings import TrainSettings

BATCH_SIZE = 256  # cells per minibatch


@dataclass(frozen=True)
class NetworkShape:
    """Sizes of a :class:`BranchNetwork`."""

    n_input: int  # dimensions of whitened space
    n_branches: int
    width: int = 128
    n_layers: int = 3


class ResidualBlock(nn.Module):
    """Residual MLP block, modulated by noise level and branch (adaptive layer norm)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        """Update h (cells x width) given the condition (cells or 1 x width)."""
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        inner = nn.functional.silu(self.norm(h) * (1 + scale) + shift)
        change: Tensor = self.out(nn.functional.silu(self.hidden(inner)))
        return h + change


class BranchNetwork(nn.Module):
    """Network F(x; c_noise, branch) with a trunk shared by all branches."""

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
        """Build an untrained network; torch's global random state is not touched."""
        n_branches = len(data.hierarchy.branches)
        shape = NetworkShape(data.moments.mean.shape[1], n_branches, settings.width, settings.n_layers)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, "denoiser"))
            return cls(shape)

    def forward(self, x: Tensor, c_noise: Tensor, branch: Tensor) -> Tensor:
        """Evaluate F on standardised x; c_noise (n x 1) and branch rows (n) broadcast."""
        angles = c_noise * self.frequencies
        condition = self.noise(torch.cat([angles.cos(), angles.sin()], dim=1)) + self.branch(branch)
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, condition)
        learned: Tensor = self.leave(h)
        return learned

    def with_branches(self, embeddings: Tensor) -> BranchNetwork:
        """Return a copy with more branches, given their embeddings (branches x width)."""
        known = self.branch.weight
        with torch.random.fork_rng(devices=[]):
            extended = BranchNetwork(replace(self.shape, n_branches=len(known) + len(embeddings)))
        rows = torch.cat([known.detach(), embeddings.to(known)])
        extended.load_state_dict({**self.state_dict(), "branch.weight": rows})
        return extended.eval().requires_grad_(False).to(known.device)


BLOCK = 4096  # cells denoised at a time
LOG_SIGMA_MEAN, LOG_SIGMA_SCALE = -0.5, 1.2  # log-normal noise levels in training (Karras et al. 2022)
PATIENCE = 5  # validations, 100 steps apart, without improvement before training stops
MAX_HELD_OUT = 10_000  # held-out cells
HELD_OUT_FRACTION = 0.1  # of cells, if there are no validation cells


Denoise = Callable[[Tensor, Tensor, Tensor], Tensor]  # signature of LatentPrior.denoise


def add_random_noise(x: Tensor, highest: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Add noise at random levels up to ``highest``; returns noised cells and levels."""
    log_sigma = torch.randn(len(x), generator=generator) * LOG_SIGMA_SCALE
    sigma = (log_sigma + LOG_SIGMA_MEAN).exp().clamp(max=highest)
    return x + sigma[:, None] * torch.randn(x.shape, generator=generator), sigma


def denoised_in_blocks(denoise: Denoise, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
    """Denoise cells, ``BLOCK`` at a time, each with its own noise level and branch."""
    blocks = zip(x.split(BLOCK), sigma.split(BLOCK), branch.split(BLOCK), strict=True)
    return torch.cat([denoise(*block) for block in blocks])


def denoising_losses(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Return the mean squared error of each denoised cell, weighted by noise level."""
    return ((1 + 1 / sigma**2)[:, None] * (denoised - x) ** 2).mean(dim=1)


def branches_at(table: tuple[Tensor, Tensor], population: Tensor, sigma: Tensor) -> Tensor:
    """Return each cell's branch (row) at its noise level, by a :func:`path_table`."""
    upper, branch = table
    return branch[population].gather(1, torch.searchsorted(upper[population], sigma[:, None])).squeeze(1)


def path_table(hierarchy: Hierarchy, populations: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Tabulate the upper noise level and row of each branch above a leaf.

    Both tables are populations x longest path, from the leaf up; the last level is infinite. ``searchsorted`` in the
    levels gives the column of the branch at a noise level.
    """
    paths = [hierarchy.path(population)[::-1] for population in populations]
    longest = max(len(path) for path in paths)
    upper = torch.full((len(paths), longest), torch.inf)
    branch = torch.zeros(len(paths), longest, dtype=torch.long)
    for i, path in enumerate(paths):
        for column, segment in enumerate(path):
            upper[i, column] = segment.high if column + 1 < len(path) else torch.inf
            branch[i, column] = segment.row
    return upper, branch


@dataclass(frozen=True)
class Minibatches:
    """Sample cells with replacement: a population by its weight, then one of its cells."""

    order: Tensor  # cell indices sorted by population
    n_cells: Tensor  # cells per population

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Sample ``size`` cell indices."""
        population = torch.multinomial(population_weight(self.n_cells), size, replacement=True, generator=generator)
        number = torch.rand(size, generator=generator, dtype=torch.float64) * self.n_cells[population]
        start = self.n_cells.cumsum(0) - self.n_cells
        return self.order[start[population] + number.long()]


def held_out_mask(cells: LatentCells, validation: Tensor | None, *, seed: int) -> Tensor:
    """Choose cells for validating a network: validation cells, or a tenth.

    Every population keeps at least one training cell.
    """
    n_cells = len(cells.population)
    order = torch.randperm(n_cells, generator=torch_generator(seed, "held-out cells"))
    if validation is not None and validation.any():
        chosen = order[validation[order]][:MAX_HELD_OUT]
    else:
        chosen = order[: min(max(int(HELD_OUT_FRACTION * n_cells), 1), MAX_HELD_OUT)]
    mask = torch.zeros(n_cells, dtype=torch.bool)
    mask[chosen] = True
    n_trained = torch.bincount(cells.population[~mask], minlength=len(cells.populations))
    mask &= n_trained[cells.population] > 0
    if not mask.any():
        raise InputError("No population has both a cell to train the network on and one to hold out; give more cells.")
    return mask


@dataclass(frozen=True, eq=False)
class MinibatchLoss:
    """Denoising loss of a random minibatch."""

    data: PriorData
    training_cells: Tensor  # indices
    denoise_with: Callable[[nn.Module, BranchPopulations, Tensor, Tensor, Tensor], Tensor]
    populations: BranchPopulations
    device: torch.device
    first_row: int = 0  # row of the first branch of ``data.hierarchy`` in the prior

    @cached_property
    def minibatches(self) -> Minibatches:
        """Training cells by population."""
        population = self.data.cells.population[self.training_cells]
        return Minibatches(torch.argsort(population, stable=True), torch.bincount(population))

    @cached_property
    def path_table(self) -> tuple[Tensor, Tensor]:
        """Branches on the path of each population."""
        return path_table(self.data.hierarchy, self.data.cells.populations)

    def sample_losses(self, network: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return the loss and the population of each cell of a minibatch."""
        index = self.training_cells[self.minibatches.draw(BATCH_SIZE, generator)]
        return self.losses_of_cells(network, index, generator), self.data.cells.population[index]

    def losses_of_cells(self, network: nn.Module, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return the loss of each cell (by index), with new noise."""
        data = self.data
        x = data.whitening(data.cells.sample(index, generator))
        noised, sigma = self.add_noise(x, generator)
        branch = self.first_row + branches_at(self.path_table, data.cells.population[index], sigma)
        x, noised, sigma, branch = (values.to(self.device) for values in (x, noised, sigma, branch))
        return self.losses(self.denoise_with(network, self.populations, noised, sigma, branch), x, sigma)

    def add_noise(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Add noise to cells at random levels; returns noised cells and levels."""
        return add_random_noise(x, self.data.hierarchy.sigma_max, generator)

    def losses(self, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the loss of each denoised cell."""
        return denoising_losses(denoised, x, sigma)

    def __call__(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Return the mean loss of a minibatch."""
        return self.sample_losses(network, generator)[0].mean()

    def by_population(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Return the mean loss of each population in a minibatch."""
        losses, population = self.sample_losses(network, generator)
        names = self.data.cells.populations
        return {names[code]: float(losses.cpu()[population == code].mean()) for code in population.unique()}


def training_plan(settings: TrainSettings, device: torch.device, *, seed: int, **more: Any) -> TrainingPlan:
    """Return the training plan of a network; ``more`` are fields of :class:`bdm._core.training.TrainingPlan`."""
    return TrainingPlan(
        settings.n_steps,
        settings.learning_rate,
        seed=derive(seed, "denoiser steps"),
        device=device,
        name="the network of the prior",
        averaging=0.998,  # matters after 4,491 steps
        **more,
    )


@dataclass(frozen=True, eq=False)
class NetworkPrior(GaussianMixturePrior):
    """Prior with a network on some branches."""

    network: BranchNetwork
    network_branches: Tensor  # mask of the branches that use the network, by row

    loss_class: ClassVar[type[MinibatchLoss]] = MinibatchLoss

    @staticmethod
    @abstractmethod
    def denoise_with(
        network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor
    ) -> Tensor:
        """Denoise cells by a network, see :meth:`denoise`."""

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoise cells by the network on branches that use it, otherwise in closed form."""
        with_network = self.network_branches[branch][:, None]
        if with_network.all():
            return self.denoise_with(self.network, self.populations, x, sigma, branch)
        closed_form = super().denoise(x, sigma, branch)
        if not with_network.any():
            return closed_form
        denoised = self.denoise_with(self.network, self.populations, x, sigma, branch)
        return torch.where(with_network, denoised, closed_form)

    @property
    def uses_network(self) -> Tensor:
        """Mask of the branches that use the network, by row."""
        return self.network_branches.cpu()

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on a device."""
        moved = super().to(device)
        network, network_branches = copy.deepcopy(self.network).to(device), self.network_branches.to(device)
        return replace(moved, network=network, network_branches=network_branches)

    def log_prob(self, x: Tensor, population: str) -> Tensor:
        """Return the log density of cells, if their path has no network."""
        if any(self.network_branches[segment.row] for segment in self.hierarchy.path(population)):
            raise unsupported(self.name, f"give the density of {population!r}, as its path has a network")
        return super().log_prob(x, population)

    def condition(self, direction: Tensor, value: float) -> GaussianMixturePrior:
        """Condition on ``x @ direction == value``, if no branch uses the network."""
        if self.network_branches.any():
            raise unsupported(self.name, "be conditioned on a coordinate, as it has a network")
        return GaussianMixturePrior(self.hierarchy, self.populations).condition(direction, value)

    def fit_added(self, data: PriorData, neighbour: str, settings: TrainSettings, *, seed: int) -> dict[str, Tensor]:
        """Fit the embeddings of added branches, starting from the neighbour's embedding."""
        row = self.hierarchy.rows[neighbour]
        start = self.network.branch.weight[row].detach().cpu().repeat(len(data.hierarchy.branches), 1)
        network_branches = self.network_branches[row].cpu().repeat(len(start))
        embeddings = self.train_embeddings(data, start, settings, seed=seed) if network_branches.any() else start
        return {"embeddings": embeddings, "network_branches": network_branches}

    def train_embeddings(self, data: PriorData, start: Tensor, settings: TrainSettings, *, seed: int) -> Tensor:
        """Train only the embeddings of added branches, from ``start`` (branches x width)."""
        network = self.network.with_branches(start).cpu()
        network.branch.weight.requires_grad_(True)
        added = BranchPopulations.from_moments(data.moments, data.hierarchy)
        populations = self.populations.to(torch.device("cpu")).joined(added)
        all_cells, cpu = torch.arange(len(data.cells.population)), torch.device("cpu")
        loss = self.loss_class(data, all_cells, self.denoise_with, populations, cpu, first_row=self.n_rows)
        plan = TrainingPlan(
            settings.n_steps,
            settings.learning_rate,
            seed=derive(seed, "embedding"),
            device="cpu",
            name=f"the branches of {data.hierarchy.root.name!r}",
        )
        train(network, loss, plan)
        return network.branch.weight[self.n_rows :].detach().clone()

    def extended(
        self, hierarchy: Hierarchy, tree: Hierarchy, moments: PopulationMoments, state: dict[str, Tensor]
    ) -> Self:
        """Add branches with the embeddings from :meth:`fit_added`."""
        prior = super().extended(hierarchy, tree, moments, state)
        network_branches = torch.cat([self.network_branches, state["network_branches"].to(self.network_branches)])
        network = self.network.with_branches(state["embeddings"])
        return replace(prior, network=network, network_branches=network_branches)
