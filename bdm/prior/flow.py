"""The flow prior: Gaussian mixtures plus a network on every branch, trained by flow matching."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdm._core.parallel import using_threads
from bdm._core.training import device_of, train
from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.network import BranchNetwork, MinibatchLoss, NetworkPrior, training_plan
from bdm.prior.populations import BranchPopulations
from bdm.settings import TrainSettings


@dataclass(frozen=True, eq=False)
class FlowLoss(MinibatchLoss):
    """Mean squared error of velocities, ``(x_t - denoised x) / t``, at uniform times."""

    def add_noise(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Add noise at uniform times; returns noised cells and noise levels."""
        highest = self.data.hierarchy.sigma_max
        t = highest / (1 + highest) * torch.rand(len(x), generator=generator).clamp(min=1e-3)
        sigma = t / (1 - t)
        return x + sigma[:, None] * torch.randn(x.shape, generator=generator), sigma

    def losses(self, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Return the squared error of each cell's velocity."""
        t = (sigma / (1 + sigma))[:, None]
        return (((denoised - x) / t) ** 2).mean(dim=1)


@dataclass(frozen=True, eq=False)
class FlowMatchingPrior(NetworkPrior, name="flow"):
    """Flow matching on every branch, starting from the closed form of the mixtures.

    Cells move on straight lines ``x_t = (1 - t) x + t noise`` (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023,
    arXiv 2209.03003). Their velocity is the mean of ``noise - x`` at x_t: the velocity of the mixture plus a network F,
    which is zero before training. The denoised x is ``closed form - t F``. ``x_t / (1 - t)`` is x with noise of level
    ``sigma = t / (1 - t)``, so a branch is an interval of t.
    """

    loss_class = FlowLoss

    @classmethod
    @using_threads()
    def fit(cls, data: PriorData, settings: TrainSettings, *, seed: int, device: str = "auto") -> FittedPrior:
        """Train on all cells for all steps."""
        torch_device = device_of(device)
        populations = BranchPopulations.from_moments(data.moments, data.hierarchy).to(torch_device)
        network = BranchNetwork.initial(data, settings, seed=seed)
        all_cells = torch.arange(len(data.cells.population))
        loss = FlowLoss(data, all_cells, cls.denoise_with, populations, settings, torch_device)
        plan = training_plan(settings, torch_device, seed=seed)
        history = train(network, loss, plan, by_group=loss.by_population)
        every_branch = torch.ones(len(data.hierarchy.branches), dtype=torch.bool, device=torch_device)
        prior = cls(data.hierarchy, populations, network.eval().requires_grad_(False), every_branch)
        return FittedPrior(prior, {"training": history})

    @property
    def description(self) -> str:
        """Short description for reports."""
        return f"{super().description}, with a network on every branch, trained by flow matching"

    @staticmethod
    def denoise_with(
        network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor
    ) -> Tensor:
        """Denoise cells by the closed form plus the network."""
        t = (sigma / (1 + sigma))[:, None]
        correction: Tensor = t * network(populations.standardise(x, sigma, branch), t, branch)
        return populations.denoised(x, sigma, branch) - correction
