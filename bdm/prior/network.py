"""The network of the diffusion prior: architecture, training loss and held-out cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from bdm._core.errors import InputError
from bdm._core.seeds import derive, torch_generator
from bdm.autoencoder.latent import LatentCells
from bdm.autoencoder.moments import population_weight
from bdm.hierarchy.tree import Hierarchy
from bdm.prior.base import PriorData
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
MAX_HELD_OUT = 10_000  # held-out cells
HELD_OUT_FRACTION = 0.1  # of cells, if there are no validation cells


def denoise(network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
    """Denoise cells by the closed form of the mixtures, corrected by the network."""
    t = (sigma / (1 + sigma))[:, None]
    correction: Tensor = t * network(populations.standardise(x, sigma, branch), t, branch)
    return populations.denoised(x, sigma, branch) - correction


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
class VelocityLoss:
    """Mean squared error of velocities, ``(x_t - denoised x) / t``, at uniform times of a random minibatch."""

    data: PriorData
    training_cells: Tensor  # indices
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
        data, highest = self.data, self.data.hierarchy.sigma_max
        x = data.whitening(data.cells.sample(index, generator))
        t = highest / (1 + highest) * torch.rand(len(x), generator=generator).clamp(min=1e-3)
        sigma = t / (1 - t)
        noised = x + sigma[:, None] * torch.randn(x.shape, generator=generator)
        branch = self.first_row + branches_at(self.path_table, data.cells.population[index], sigma)
        x, noised, sigma, branch = (values.to(self.device) for values in (x, noised, sigma, branch))
        t = (sigma / (1 + sigma))[:, None]
        return (((denoise(network, self.populations, noised, sigma, branch) - x) / t) ** 2).mean(dim=1)

    def __call__(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Return the mean loss of a minibatch."""
        return self.sample_losses(network, generator)[0].mean()

    def by_population(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Return the mean loss of each population in a minibatch."""
        losses, population = self.sample_losses(network, generator)
        names = self.data.cells.populations
        return {names[code]: float(losses.cpu()[population == code].mean()) for code in population.unique()}
