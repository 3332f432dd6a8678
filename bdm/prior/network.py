"""The network that priors with one have, a trunk that all branches share, and what such priors have in common."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn

from bdm._core.seeds import derive
from bdm._core.training import TrainingPlan, fabric, train
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.moments import PopulationMoments
from bdm.prior.base import PriorData
from bdm.prior.losses import Denoise, MinibatchLoss
from bdm.prior.mixture import GaussianMixturePrior
from bdm.prior.populations import BranchPopulations
from bdm.settings import PriorSettings

if TYPE_CHECKING:
    from lightning.fabric import Fabric


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
    def initial(cls, data: PriorData, settings: PriorSettings, *, seed: int) -> BranchNetwork:
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


@dataclass(frozen=True, eq=False)
class NetworkPrior(GaussianMixturePrior):
    """A prior that denoises by a network on the branches where it is kept."""

    network: BranchNetwork
    kept: Tensor  # whether the network is used on each branch, by row

    @staticmethod
    @abstractmethod
    def denoiser(network: nn.Module, populations: BranchPopulations) -> Denoise:
        """Return a function that denoises by a network; its arguments as of :meth:`LatentPrior.denoise`."""

    @staticmethod
    @abstractmethod
    def add_noise(
        x: Tensor, settings: PriorSettings, highest: float, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Add noise to cells, each at a random level up to ``highest``; returns cells and levels."""

    @staticmethod
    @abstractmethod
    def losses(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Loss of each cell that the network has denoised."""

    @classmethod
    def loss(
        cls,
        data: PriorData,
        trained: Tensor,
        populations: BranchPopulations,
        settings: PriorSettings,
        workers: Fabric,
        *,
        first_row: int = 0,
    ) -> MinibatchLoss:
        """Loss that the network is trained by; the arguments as of :class:`MinibatchLoss`."""

        def add_noise(x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            return cls.add_noise(x, settings, data.hierarchy.sigma_max, generator)

        def losses(network: nn.Module, x: Tensor, noised: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
            return cls.losses(cls.denoiser(network, populations)(noised, sigma, branch), x, sigma)

        return MinibatchLoss(data, trained, add_noise, losses, settings.batch_size, workers, first_row)

    @property
    def learned(self) -> Tensor:
        """Whether the network is used on each branch, by row."""
        return self.kept.cpu()

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        moved = super().to(device)
        return replace(moved, network=copy.deepcopy(self.network).to(device), kept=self.kept.to(device))

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Mean of the cells without noise, given noised cells; see :meth:`LatentPrior.denoise`."""
        return self.denoiser(self.network, self.populations)(x, sigma, branch)

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

    def fit_added(self, data: PriorData, neighbour: str, settings: PriorSettings, *, seed: int) -> dict[str, Tensor]:
        """Fit the embeddings of added branches from the neighbour's; if that has no network, they are not trained."""
        row = self.hierarchy.rows[neighbour]
        start = self.network.branch.weight[row].detach().cpu().repeat(len(data.hierarchy.branches), 1)
        kept = self.kept[row].cpu().repeat(len(start))
        embeddings = self.trained_embeddings(data, start, settings, seed=seed) if kept.any() else start
        return {"embeddings": embeddings, "kept": kept}

    def trained_embeddings(self, data: PriorData, start: Tensor, settings: PriorSettings, *, seed: int) -> Tensor:
        """Train the embeddings of added branches from ``start`` (branches x width), and nothing else."""
        network = self.network.with_branches(start).cpu()
        network.branch.weight.requires_grad_(True)
        added = BranchPopulations.of(data.moments, data.hierarchy)
        populations = self.populations.to(torch.device("cpu")).joined(added)
        every = torch.arange(len(data.cells.population))
        loss = self.loss(data, every, populations, settings, fabric("cpu"), first_row=self.n_rows)
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
