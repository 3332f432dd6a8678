"""The flow-matching prior: a velocity network on every branch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdm._core.parallel import using_threads
from bdm._core.seeds import torch_generator
from bdm._core.training import device_of, train
from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.network import PATIENCE, BranchNetwork, MinibatchLoss, NetworkPrior, held_out_mask, training_plan
from bdm.prior.populations import BranchPopulations
from bdm.settings import TrainSettings

N_DRAWS = 40  # held-out minibatches in a validation loss


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
    """Conditional flow matching on every branch of the hierarchy.

    Cells move on straight lines ``x_t = (1 - t) x + t noise``; the network predicts the mean velocity v, the mean of
    ``noise - x`` at x_t (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003). The denoised x is
    ``x_t - t v``. ``x_t / (1 - t)`` is x with noise of level ``sigma = t / (1 - t)``, so a branch is an interval of t.
    Inputs are standardised by branch; the output is added to ``-m``, the velocity of the branch's mean m.
    """

    loss_class = FlowLoss

    @classmethod
    @using_threads()
    def fit(cls, data: PriorData, settings: TrainSettings, *, seed: int, device: str = "auto") -> FittedPrior:
        """Train until the loss of held-out cells (``validation`` in the history) stops improving."""
        torch_device = device_of(device)
        held_out = held_out_mask(data.cells, data.validation, seed=seed)
        populations = BranchPopulations.from_moments(data.moments, data.hierarchy).to(torch_device)
        network = BranchNetwork.initial(data, settings, seed=seed)
        loss, held_out_loss = (
            FlowLoss(data, mask.nonzero().squeeze(1), cls.denoise_with, populations, settings, torch_device)
            for mask in (~held_out, held_out)
        )

        def validation(trained: nn.Module) -> Tensor:
            draws = (torch_generator(seed, "held-out flow", i) for i in range(N_DRAWS))
            return torch.stack([held_out_loss(trained, draw) for draw in draws]).mean()

        plan = training_plan(settings, torch_device, seed=seed, patience=PATIENCE)
        history = train(network, loss, plan, by_group=loss.by_population, validation=validation)
        every_branch = torch.ones(len(data.hierarchy.branches), dtype=torch.bool, device=torch_device)
        prior = cls(data.hierarchy, populations, network.eval().requires_grad_(False), every_branch)
        return FittedPrior(prior, {"training": history})

    @property
    def description(self) -> str:
        """Short description for reports."""
        return "a network on every branch, trained by flow matching"

    @staticmethod
    def denoise_with(
        network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor
    ) -> Tensor:
        """Denoise cells by the velocity of a network: ``x_t - t v``."""
        t = (sigma / (1 + sigma))[:, None]
        velocity = network(populations.standardise(x, sigma, branch), t, branch) - populations.mean[branch]
        denoised: Tensor = (1 - t) * x - t * velocity
        return denoised
