"""The diffusion prior: the mixtures, and a network for what they miss, on the branches where held-out cells gain."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn

from bdm._core.parallel import using_threads
from bdm._core.seeds import derive, to_tensor
from bdm._core.training import device_of, train
from bdm.latent.moments import population_moments
from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.held_out import HeldOut, held_out_mask
from bdm.prior.mixture import BranchPopulations
from bdm.prior.network import BranchNetwork, Denoise, NetworkPrior, training_plan
from bdm.settings import PriorSettings


@dataclass(frozen=True, eq=False)
class DiffusionPrior(NetworkPrior, name="diffusion"):
    """Denoiser D(x; sigma, branch) of all branches: exact for the mixtures, and a network for the remainder.

    ``D = closed form + c_out F((C + sigma**2)**-0.5 (x - m); c_noise, branch)`` with mean m and covariance C of all
    cells of the branch: the preconditioning of Karras et al. 2022 (arXiv 2206.00364) with C in place of the variance of
    all data, and ``c_out = sigma / sqrt(1 + sigma**2)``, as cells of one type have unit covariance in whitened space.
    On branches where the network F is not kept, D is the closed form alone.
    """

    @classmethod
    @using_threads()
    def fit(
        cls,
        data: PriorData,
        settings: PriorSettings,
        *,
        seed: int,
        device: str = "auto",
        everywhere: bool = False,
    ) -> FittedPrior:
        """Train the network on cells that are drawn from their posteriors, and keep it where it validates.

        Held-out cells, not seen by the network nor by the closed form, decide when training ends, and on which branches
        the network is kept: where their loss is lower with it (``everywhere``: on all, and trained for all steps). Then
        the closed form has the moments of all cells, and a network that is kept anywhere is trained once more on all
        cells, for the number of steps that was best for the held-out cells.

        The table ``training`` is of the first training, with the losses of held-out cells: ``validation`` with the
        network where it would be kept, and ``closed_form`` without; ``branches`` is as of
        :class:`bdm.prior.held_out.NetworkComparison`.
        """
        on, hierarchy = device_of(device), data.hierarchy
        chosen = held_out_mask(data.cells, data.validation, seed=seed)
        seen = (~chosen).nonzero().squeeze(1)
        of_seen = population_moments(data.cells.subset(seen), data.whitening)
        populations = BranchPopulations.of(of_seen, hierarchy)
        held_out, with_other_noise = (
            HeldOut.of(data, chosen, populations, settings, seed=derive(seed, part)).to(on)
            for part in ("training", "decision")
        )
        populations = populations.to(on)
        network = BranchNetwork.initial(data, settings, seed=seed)
        loss = cls.loss(data, seen, populations, settings, on)
        history = train(
            network,
            loss,
            training_plan(settings, on, seed=seed, patience=settings.patience, untrained=held_out.closed_form),
            by_group=loss.by_population,
            validation=lambda trained: held_out.compare(remainder_of(trained, populations)).loss,
        )
        # These cells have chosen the step, which favours the network; the noise that did would favour it more
        comparison = with_other_noise.compare(remainder_of(network, populations), n_looks=len(history))
        kept = to_tensor(comparison.by_branch["kept"].to_numpy()) | everywhere
        populations = BranchPopulations.of(data.moments, hierarchy).to(on)
        if kept.any():
            network = BranchNetwork.initial(data, settings, seed=seed)
            loss = cls.loss(data, torch.arange(len(data.cells.population)), populations, settings, on)
            steps = settings.n_steps if everywhere else best_step(history, held_out.closed_form)
            plan = training_plan(settings, on, seed=seed, n_taken=steps)
            train(network, loss, plan, by_group=loss.by_population)
        branches = comparison.by_branch
        branches.insert(0, "branch", [branch.name for branch in hierarchy.branches])
        tables = {"training": history.assign(closed_form=held_out.closed_form), "branches": branches}
        network = network.eval().requires_grad_(False)
        return FittedPrior(cls(hierarchy, populations, network, kept.to(on)), tables)

    @property
    def description(self) -> str:
        """What generates the latents, in a few words."""
        where = f"on {int(self.kept.sum())} of {len(self.kept)} branches, where held-out cells gain by it"
        return f"{super().description}, and a network {where if self.kept.any() else 'on no branch, as none gains'}"

    @staticmethod
    def denoised_by(
        network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor
    ) -> Tensor:
        """Add the remainder by a network to the closed form."""
        with torch.autocast("cuda", enabled=False):
            closed = populations.denoised(x, sigma, branch)
        return closed + remainder_of(network, populations)(x, sigma, branch)

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Mean of the cells without noise, given noised cells: by the network where it is kept."""
        denoised, kept = self.closed_form(x, sigma, branch), self.kept[branch][:, None]
        if not kept.any():
            return denoised
        return denoised + torch.where(kept, remainder_of(self.network, self.populations)(x, sigma, branch), 0)


def remainder_of(network: nn.Module, populations: BranchPopulations) -> Denoise:
    """Return a function that computes what a network adds to the closed form."""

    def remainder(x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        with torch.autocast("cuda", enabled=False):
            standardised = populations.standardise(x, sigma, branch)
        noise = sigma[:, None]
        added: Tensor = noise / (1 + noise**2).sqrt() * network(standardised, noise.log() / 4, branch)
        return added

    return remainder


def best_step(history: pd.DataFrame, untrained: float) -> int:
    """Step of the network that training gives: the one with the lowest validation loss, or the last if none gains."""
    best = history["validation"].idxmin()
    return int(history["step"][best if history["validation"][best] < untrained else history.index[-1]])
