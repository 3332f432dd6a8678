"""The diffusion prior: mixtures, corrected by a network if held-out cells gain by it."""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import pandas as pd
import torch
from torch import Tensor, nn

from bdm._core.parallel import using_threads
from bdm._core.seeds import derive, torch_generator
from bdm._core.training import TrainingPlan, device_of, train
from bdm.autoencoder.moments import PopulationMoments, population_moments
from bdm.hierarchy.tree import Hierarchy
from bdm.prior.base import FittedPrior, PriorData, unsupported
from bdm.prior.mixture import GaussianMixturePrior
from bdm.prior.network import BLOCK, BranchNetwork, VelocityLoss, denoise, held_out_mask
from bdm.prior.populations import BranchPopulations
from bdm.settings import TrainSettings

logger = logging.getLogger(__name__)

N_DRAWS = 6000  # noise draws of held-out cells, about
MIN_GAIN = 2.0  # gain of held-out cells that keeps the network, in standard errors
PATIENCE = 5  # validations, 100 steps apart, without improvement before training stops


@dataclass(frozen=True, eq=False)
class DiffusionPrior(GaussianMixturePrior, name="diffusion"):
    """Branched diffusion whose network corrects the closed form of the mixtures.

    Cells move on straight lines ``x_t = (1 - t) x + t noise`` (flow matching: Lipman et al. 2023, arXiv 2210.02747; Liu
    et al. 2023, arXiv 2209.03003). Their velocity is the mean of ``noise - x`` at x_t: the velocity of the mixture plus
    a network F, which is zero before training. The denoised x is ``closed form - t F``. ``x_t / (1 - t)`` is x with
    noise of level ``sigma = t / (1 - t)``, so a branch is an interval of t.
    """

    network: BranchNetwork

    has_network: ClassVar[bool] = True

    @classmethod
    @using_threads()
    def fit(cls, data: PriorData, settings: TrainSettings, *, seed: int, device: str = "auto") -> FittedPrior:
        """Train the network, and keep it if held-out cells gain by it; else return the mixture.

        Held-out cells are excluded from the network and the closed form while they are compared. Training stops when
        their loss stops improving. The network is kept if their mean gain over the closed form exceeds ``MIN_GAIN``
        standard errors. The closed form is then refitted to all cells.

        The table ``training`` has the losses; the table ``decision`` has the number of held-out cells, their mean
        losses ``closed_form`` and ``network``, their ``gain`` in standard errors, and whether the network is ``kept``.
        """
        torch_device, hierarchy = device_of(device), data.hierarchy
        held_out = held_out_mask(data.cells, data.validation, seed=seed)
        training_cells, held_out_cells = (mask.nonzero().squeeze(1) for mask in (~held_out, held_out))
        training_moments = population_moments(data.cells.subset(training_cells), data.whitening)
        populations = BranchPopulations.from_moments(training_moments, hierarchy).to(torch_device)
        network = BranchNetwork.initial(data, settings, seed=seed).to(torch_device)
        loss = VelocityLoss(data, training_cells, populations, torch_device)
        draws = held_out_cells.repeat(max(1, N_DRAWS // len(held_out_cells)))

        @torch.no_grad()
        def held_out_losses(network: nn.Module) -> Tensor:
            generator = torch_generator(seed, "noise of held-out cells")
            losses = [loss.losses_of_cells(network, block, generator) for block in draws.split(BLOCK)]
            return torch.cat(losses).view(-1, len(held_out_cells)).mean(dim=0).double().cpu()

        def validation(trained: nn.Module) -> Tensor:
            return held_out_losses(trained).mean()

        closed_form = held_out_losses(network)  # which is zero before training
        plan = TrainingPlan(
            settings.n_steps,
            settings.learning_rate,
            seed=derive(seed, "denoiser steps"),
            device=torch_device,
            name="the network of the prior",
            averaging=0.998,  # matters after 4,491 steps
            patience=PATIENCE,
        )
        history = train(network, loss, plan, by_group=loss.by_population, validation=validation)
        gain = closed_form - held_out_losses(network)
        in_errors = float(gain.mean() / (gain.std() / len(gain) ** 0.5)) if len(gain) > 1 else 0.0
        kept = in_errors > MIN_GAIN
        losses = float(closed_form.mean()), float((closed_form - gain).mean())
        decision = pd.DataFrame(
            [[len(gain), *losses, in_errors, kept]], columns=["n_cells", "closed_form", "network", "gain", "kept"]
        )
        mixture = GaussianMixturePrior.from_moments(data.moments, hierarchy).to(torch_device)
        if not kept:
            logger.info("The prior is the mixture, as held-out cells do not gain by the network.")
        network = network.eval().requires_grad_(False)
        prior = cls(hierarchy, mixture.populations, network) if kept else mixture
        return FittedPrior(prior, {"training": history, "decision": decision})

    @property
    def description(self) -> str:
        """Short description for reports."""
        return f"{super().description}, corrected by a network, as held-out cells gain"

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Denoise cells by the closed form and the network."""
        return denoise(self.network, self.populations, x, sigma, branch)

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on a device."""
        return replace(super().to(device), network=copy.deepcopy(self.network).to(device))

    def log_prob(self, x: Tensor, population: str) -> Tensor:
        """Raise an InputError, as cells of a network have no density in closed form."""
        raise unsupported(self.name, "give the density of cells, as it has a network")

    def condition(self, direction: Tensor, value: float) -> GaussianMixturePrior:
        """Raise an InputError, as a network cannot be conditioned."""
        raise unsupported(self.name, "be conditioned on a coordinate, as it has a network")

    def fit_added(self, data: PriorData, neighbour: str, settings: TrainSettings, *, seed: int) -> dict[str, Tensor]:
        """Train only the embeddings of added branches, starting from the neighbour's embedding."""
        row, cpu = self.hierarchy.rows[neighbour], torch.device("cpu")
        start = self.network.branch.weight[row].detach().cpu().repeat(len(data.hierarchy.branches), 1)
        network = self.network.with_branches(start).cpu()
        network.branch.weight.requires_grad_(True)
        added = BranchPopulations.from_moments(data.moments, data.hierarchy)
        populations, all_cells = self.populations.to(cpu).joined(added), torch.arange(len(data.cells.population))
        plan = TrainingPlan(
            settings.n_steps,
            settings.learning_rate,
            seed=derive(seed, "embedding"),
            device="cpu",
            name=f"the branches of {data.hierarchy.root.name!r}",
        )
        train(network, VelocityLoss(data, all_cells, populations, cpu, first_row=self.n_rows), plan)
        return {"embeddings": network.branch.weight[self.n_rows :].detach().clone()}

    def extended(
        self, hierarchy: Hierarchy, tree: Hierarchy, moments: PopulationMoments, state: dict[str, Tensor]
    ) -> Self:
        """Add branches with the embeddings from :meth:`fit_added`."""
        prior = super().extended(hierarchy, tree, moments, state)
        return replace(prior, network=self.network.with_branches(state["embeddings"]))
