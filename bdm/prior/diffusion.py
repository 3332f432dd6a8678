"""The diffusion prior: mixtures, and a network for what they miss, on the branches where held-out cells gain."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.special import stdtrit
from torch import Tensor, nn

from bdm._core.parallel import using_threads
from bdm._core.seeds import derive, to_tensor, torch_generator
from bdm._core.training import device_of, train
from bdm.latent.moments import population_moments, population_weight
from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.mixture import BranchPopulations
from bdm.prior.network import (
    PATIENCE,
    BranchNetwork,
    Denoise,
    NetworkPrior,
    branches_at,
    denoised_in_blocks,
    denoising_losses,
    held_out_mask,
    sample_noised,
    table_of_paths,
    training_plan,
)
from bdm.settings import TrainSettings

N_DRAWS, MAX_DRAWS, MIN_DRAWS = 16, 40_000, 4  # of noise: for each cell, for all cells, and at least for each
LEVEL = 0.025  # probability with which the network is kept on any branch where it gains nothing
MIN_CELLS = 30  # of a branch; among fewer, the rare cells that a network harms may be missing
TENSORS = ("x", "noised", "sigma", "branch", "closed")


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
        settings: TrainSettings,
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
        :class:`bdm.prior.diffusion.NetworkComparison`.
        """
        on, hierarchy = device_of(device), data.hierarchy
        chosen = held_out_mask(data.cells, data.validation, seed=seed)
        seen = (~chosen).nonzero().squeeze(1)
        of_seen = population_moments(data.cells.subset(seen), data.whitening)
        populations = BranchPopulations.of(of_seen, hierarchy)
        held_out, with_other_noise = (
            HeldOut.of(data, chosen, populations, seed=derive(seed, part)).to(on) for part in ("training", "decision")
        )
        populations = populations.to(on)
        network = BranchNetwork.initial(data, settings, seed=seed)
        loss = cls.loss(data, seen, populations, settings, on)
        history = train(
            network,
            loss,
            training_plan(settings, on, seed=seed, patience=PATIENCE, untrained=held_out.closed_form),
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


# ---- comparison of the network with the closed form


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out cells, each with several fixed draws of noise, and what the closed form makes of them."""

    x: Tensor  # without noise, draws x dimensions
    noised: Tensor
    sigma: Tensor
    branch: Tensor  # that sigma is on
    closed: Tensor  # denoised by the closed form
    cell: np.ndarray  # number of the cell of each draw
    weight: np.ndarray  # of each draw, by which populations have the shares that they have in training
    n_branches: int

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        data: PriorData,
        chosen: Tensor,
        populations: BranchPopulations,
        *,
        seed: int,
    ) -> HeldOut:
        """Draw noise for the chosen cells (a mask), and denoise them by the closed form of the populations."""
        cells, hierarchy = data.cells, data.hierarchy
        generator = torch_generator(seed, "noise of held-out cells")
        index = chosen.nonzero().squeeze(1)
        n_draws = min(N_DRAWS, max(MIN_DRAWS, MAX_DRAWS // max(len(index), 1)))
        population = cells.population[index]
        n_chosen = torch.bincount(population, minlength=len(cells.populations))
        weight = population_weight(cells.n_cells) / n_chosen.clamp(min=1)
        index, cell = index.repeat(n_draws), torch.arange(len(index)).repeat(n_draws)
        x = data.whitening(cells.sample(index, generator))
        noised, sigma = sample_noised(x, hierarchy.sigma_max, generator)
        on = branches_at(table_of_paths(hierarchy, cells.populations), cells.population[index], sigma)
        closed = denoised_in_blocks(populations.denoised, noised, sigma, on)
        weight = weight[cells.population[index]]
        return cls(x, noised, sigma, on, closed, cell.numpy(), weight.numpy(), len(hierarchy.branches))

    def to(self, device: torch.device) -> HeldOut:
        """Move to a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSORS})

    @property
    def closed_form(self) -> float:
        """Mean loss by the closed form."""
        return float(np.average(_losses(self.closed, self.x, self.sigma), weights=self.weight))

    @torch.no_grad()
    def losses(self, remainder: Denoise) -> np.ndarray:
        """Loss of each draw with the network on all branches."""
        added = denoised_in_blocks(remainder, self.noised, self.sigma, self.branch)
        return _losses(self.closed + added, self.x, self.sigma)

    def compare(self, remainder: Denoise, *, n_looks: int = 1) -> NetworkComparison:
        """Compare the network, which these cells chose from ``n_looks`` states, with the closed form on each branch."""
        closed, network = _losses(self.closed, self.x, self.sigma), self.losses(remainder)
        branch = self.branch.cpu().numpy()
        of_branch = [np.flatnonzero(branch == number) for number in range(self.n_branches)]
        rows = [_paired(closed[on], network[on], self.cell[on], self.weight[on]) for on in of_branch]
        table = pd.DataFrame(rows)
        n_cells = table["n_cells"].to_numpy()
        enough = n_cells >= MIN_CELLS
        level = LEVEL / max(enough.sum() * n_looks, 1)
        table["least_gain"] = np.where(enough, -stdtrit(np.maximum(n_cells - 1, 1), level), np.nan)
        table["kept"] = table["gain"] > table["least_gain"]
        with_kept = np.where(table["kept"].to_numpy()[branch], network, closed)
        return NetworkComparison(table, float(np.average(with_kept, weights=self.weight)))


@dataclass(frozen=True)
class NetworkComparison:
    """Losses of held-out cells with and without the network.

    The network is kept on a branch where its gain is above ``least_gain``: 2 standard errors, and with more branches
    and looks so much more that chance keeps it somewhere in one of 40 fits (t test with Bonferroni's correction). With
    fewer than ``MIN_CELLS``, ``least_gain`` is NaN, and the network not kept.
    """

    # n_cells (held-out cells with noise of the branch's levels), the mean losses closed_form and network, their
    # difference in standard errors, paired by cell (gain), least_gain, and kept
    by_branch: pd.DataFrame
    loss: float  # mean of all, with the network where it is kept


def _losses(denoised: Tensor, x: Tensor, sigma: Tensor) -> np.ndarray:
    losses: np.ndarray = denoising_losses(denoised, x, sigma).double().cpu().numpy()
    return losses


def _paired(closed: np.ndarray, network: np.ndarray, cell: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """Row of a table of branches: the weighted mean losses, and their difference in standard errors over cells."""
    if not len(cell):
        return {"n_cells": 0, "closed_form": np.nan, "network": np.nan, "gain": np.nan}
    n_cells = len(np.unique(cell))
    means = [np.average(losses, weights=weight) for losses in (closed, network)]
    gain = means[0] - means[1]
    by_cell = np.bincount(cell, weights=weight * (closed - network - gain))
    error = np.sqrt((by_cell**2).sum()) / weight.sum()
    in_errors = np.nan if n_cells < 2 else gain / error if error > 0 else 0.0
    return {"n_cells": n_cells, "closed_form": means[0], "network": means[1], "gain": in_errors}
