"""The flow-matching prior: a network for the velocity of cells between data and noise, on all branches."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bdm._core.parallel import using_threads
from bdm._core.seeds import torch_generator
from bdm._core.training import device_of, train
from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.mixture import BranchPopulations
from bdm.prior.network import PATIENCE, BranchNetwork, MinibatchLoss, NetworkPrior, held_out_mask, training_plan
from bdm.settings import TrainSettings

N_DRAWS = 40  # of minibatches of held-out cells, whose mean loss decides when training ends


@dataclass(frozen=True, eq=False)
class FlowLoss(MinibatchLoss):
    """Mean squared error of the velocity of each cell, which is (x_t - denoised x) / t, at a uniform time."""

    def add_noise(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Add noise to cells, each at a uniform time up to that of the highest noise; returns cells and levels."""
        highest = self.data.hierarchy.sigma_max
        t = highest / (1 + highest) * torch.rand(len(x), generator=generator).clamp(min=1e-3)
        sigma = t / (1 - t)
        return x + sigma[:, None] * torch.randn(x.shape, generator=generator), sigma

    def losses(self, denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
        """Squared error of the velocity of each cell."""
        t = (sigma / (1 + sigma))[:, None]
        return (((denoised - x) / t) ** 2).mean(dim=1)


@dataclass(frozen=True, eq=False)
class FlowMatchingPrior(NetworkPrior, name="flow"):
    """Conditional flow matching on the branches of the hierarchy, by a network alone.

    Cells move on straight lines ``x_t = (1 - t) x + t noise``, and the network is trained to give the mean velocity v
    of ``noise - x`` at x_t on a branch (Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003).
    ``x_t / (1 - t)`` is the cell with noise of ``sigma = t / (1 - t)``, so that a branch is an interval of t as it is
    one of sigma, and ``x_t - t v`` is the denoised x. The input of the network is in units of its branch, and its
    output is the velocity away from that of the mean of the branch.
    """

    minimised = FlowLoss

    @classmethod
    @using_threads()
    def fit(cls, data: PriorData, settings: TrainSettings, *, seed: int, device: str = "auto") -> FittedPrior:
        """Train until held-out cells gain no more; their loss is ``validation`` in the table ``training``."""
        on = device_of(device)
        held_out = held_out_mask(data.cells, data.validation, seed=seed)
        populations = BranchPopulations.of(data.moments, data.hierarchy).to(on)
        network = BranchNetwork.initial(data, settings, seed=seed)
        loss, of_held_out = (
            cls.loss(data, chosen.nonzero().squeeze(1), populations, settings, on) for chosen in (~held_out, held_out)
        )

        def validation(trained: nn.Module) -> Tensor:
            draws = (torch_generator(seed, "held-out flow", i) for i in range(N_DRAWS))
            return torch.stack([of_held_out(trained, draw) for draw in draws]).mean()

        plan = training_plan(settings, on, seed=seed, patience=PATIENCE)
        history = train(network, loss, plan, by_group=loss.by_population, validation=validation)
        kept = torch.ones(len(data.hierarchy.branches), dtype=torch.bool, device=on)
        prior = cls(data.hierarchy, populations, network.eval().requires_grad_(False), kept)
        return FittedPrior(prior, {"training": history})

    @property
    def description(self) -> str:
        """What generates the latents, in a few words."""
        return "a network on all branches, trained by flow matching"

    @staticmethod
    def denoised_by(
        network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor
    ) -> Tensor:
        """Denoise cells by the velocity of a network."""
        t = (sigma / (1 + sigma))[:, None]
        with torch.autocast("cuda", enabled=False):
            standardised = populations.standardise(x, sigma, branch)
        velocity = network(standardised, t, branch) - populations.mean[branch]
        found: Tensor = (1 - t) * x - t * velocity
        return found

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoise cells by the velocity of the network."""
        return self.denoised_by(self.network, self.populations, x, sigma, branch)
