"""The flow prior: mixtures plus a network, if held-out cells gain by it."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from bdm._core.parallel import using_threads
from bdm._core.seeds import torch_generator
from bdm._core.training import device_of, train
from bdm.autoencoder.moments import population_moments
from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.network import (
    BLOCK,
    PATIENCE,
    BranchNetwork,
    MinibatchLoss,
    NetworkPrior,
    held_out_mask,
    training_plan,
)
from bdm.prior.populations import BranchPopulations
from bdm.settings import TrainSettings

N_DRAWS = 6000  # noise draws of held-out cells, about
MIN_GAIN = 1.0  # gain of held-out cells that keeps the network, in standard errors


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
        """Train the network, and keep it if held-out cells gain by it.

        Held-out cells are excluded from the network and the closed form while they are compared. Training stops when
        their loss stops improving. They decide once, for all branches: the network is kept if their mean gain over the
        closed form exceeds ``MIN_GAIN`` standard errors. The closed form is then refitted to all cells.

        The table ``training`` has the losses; the table ``decision`` has the number of held-out cells, their mean
        losses ``closed_form`` and ``network``, their ``gain`` in standard errors, and whether the network is ``kept``.
        """
        torch_device, hierarchy = device_of(device), data.hierarchy
        held_out = held_out_mask(data.cells, data.validation, seed=seed)
        training_cells, held_out_cells = (mask.nonzero().squeeze(1) for mask in (~held_out, held_out))
        training_moments = population_moments(data.cells.subset(training_cells), data.whitening)
        populations = BranchPopulations.from_moments(training_moments, hierarchy).to(torch_device)
        network = BranchNetwork.initial(data, settings, seed=seed).to(torch_device)
        loss = FlowLoss(data, training_cells, cls.denoise_with, populations, torch_device)
        draws = held_out_cells.repeat(max(1, N_DRAWS // len(held_out_cells)))

        @torch.no_grad()
        def held_out_losses(network: nn.Module) -> Tensor:
            generator = torch_generator(seed, "noise of held-out cells")
            losses = [loss.losses_of_cells(network, block, generator) for block in draws.split(BLOCK)]
            return torch.cat(losses).view(-1, len(held_out_cells)).mean(dim=0).double().cpu()

        def validation(trained: nn.Module) -> Tensor:
            return held_out_losses(trained).mean()

        closed_form = held_out_losses(network)  # which is zero before training
        plan = training_plan(settings, torch_device, seed=seed, patience=PATIENCE)
        history = train(network, loss, plan, by_group=loss.by_population, validation=validation)
        gain = closed_form - held_out_losses(network)
        in_errors = float(gain.mean() / (gain.std() / len(gain) ** 0.5)) if len(gain) > 1 else 0.0
        kept = in_errors > MIN_GAIN
        losses = float(closed_form.mean()), float((closed_form - gain).mean())
        decision = pd.DataFrame(
            [[len(gain), *losses, in_errors, kept]], columns=["n_cells", "closed_form", "network", "gain", "kept"]
        )
        prior = cls(
            hierarchy,
            BranchPopulations.from_moments(data.moments, hierarchy).to(torch_device),
            network.eval().requires_grad_(False),
            torch.full((len(hierarchy.branches),), kept, device=torch_device),
        )
        return FittedPrior(prior, {"training": history, "decision": decision})

    @property
    def description(self) -> str:
        """Short description for reports."""
        kept = bool(self.network_branches.any())
        where = "every branch, as held-out cells gain" if kept else "no branch, as held-out cells do not gain"
        return f"{super().description}, with a network on {where}"

    @staticmethod
    def denoise_with(
        network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor
    ) -> Tensor:
        """Denoise cells by the closed form plus the network."""
        t = (sigma / (1 + sigma))[:, None]
        correction: Tensor = t * network(populations.standardise(x, sigma, branch), t, branch)
        return populations.denoised(x, sigma, branch) - correction
