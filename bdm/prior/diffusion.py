"""The diffusion prior: Gaussian mixtures plus a network where it improves held-out cells."""

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
from bdm.autoencoder.moments import population_moments, population_weight
from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.network import (
    PATIENCE,
    BranchNetwork,
    Denoise,
    NetworkPrior,
    add_random_noise,
    branches_at,
    denoised_in_blocks,
    denoising_losses,
    held_out_mask,
    path_table,
    training_plan,
)
from bdm.prior.populations import BranchPopulations
from bdm.settings import TrainSettings

N_DRAWS, MIN_DRAWS, MAX_DRAWS = 16, 4, 40_000  # noise draws per cell, their minimum, and about all draws
SIGNIFICANCE_LEVEL = 0.025  # probability of keeping a useless network on any branch
MIN_CELLS = 30  # on a branch; fewer may miss rare cells that the network makes worse
TENSOR_FIELDS = ("x", "noised", "sigma", "branch", "denoised")


@dataclass(frozen=True, eq=False)
class DiffusionPrior(NetworkPrior, name="diffusion"):
    """Denoiser D(x; sigma, branch): closed form of the mixtures plus a network F.

    ``D = closed form + c_out F((C + sigma**2)**-0.5 (x - m); c_noise, branch)`` with mean m and covariance C of the
    branch. This is the preconditioning of Karras et al. 2022 (arXiv 2206.00364) with C instead of the data variance.
    ``c_out = sigma / sqrt(1 + sigma**2)``, as each cell type has about unit covariance in whitened space. Branches
    that do not keep the network use the closed form alone.
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
        """Train the network, and keep it on branches where it validates.

        Each step samples cells from their posteriors. Held-out cells, excluded from network and closed form, decide
        when training stops and which branches keep the network: those where it lowers the loss (``everywhere``: all
        branches, after all steps). The closed form is then refitted to all cells; if any branch keeps the network, it
        is retrained on all cells for the best number of steps.

        The table ``training`` has the losses of the first training. Losses of held-out cells are in the columns
        ``validation`` (network on the branches that would keep it) and ``closed_form``. The table ``branches`` is
        described in :class:`NetworkComparison`.
        """
        torch_device, hierarchy = device_of(device), data.hierarchy
        held_out_cells = held_out_mask(data.cells, data.validation, seed=seed)
        training_cells = (~held_out_cells).nonzero().squeeze(1)
        training_moments = population_moments(data.cells.subset(training_cells), data.whitening)
        populations = BranchPopulations.from_moments(training_moments, hierarchy)
        held_out, with_new_noise = (
            HeldOut.from_cells(data, held_out_cells, populations, seed=derive(seed, part)).to(torch_device)
            for part in ("training", "decision")
        )
        populations = populations.to(torch_device)
        network = BranchNetwork.initial(data, settings, seed=seed)
        loss = cls.loss_class(data, training_cells, cls.denoise_with, populations, torch_device)
        untrained_loss = held_out.closed_form_loss
        history = train(
            network,
            loss,
            training_plan(settings, torch_device, seed=seed, patience=PATIENCE, untrained_loss=untrained_loss),
            by_group=loss.by_population,
            validation=lambda trained: held_out.compare(make_correction(trained, populations)).loss,
        )
        # these cells also chose the step, which favours the network; new noise reduces the bias
        comparison = with_new_noise.compare(make_correction(network, populations), n_looks=len(history))
        network_branches = to_tensor(comparison.by_branch["kept"].to_numpy()) | everywhere
        populations = BranchPopulations.from_moments(data.moments, hierarchy).to(torch_device)
        if network_branches.any():
            network = BranchNetwork.initial(data, settings, seed=seed)
            all_cells = torch.arange(len(data.cells.population))
            loss = cls.loss_class(data, all_cells, cls.denoise_with, populations, torch_device)
            n_steps = settings.n_steps if everywhere else best_step(history, untrained_loss)
            plan = training_plan(settings, torch_device, seed=seed, stop_after=n_steps)
            train(network, loss, plan, by_group=loss.by_population)
        branches = comparison.by_branch
        branches.insert(0, "branch", [branch.name for branch in hierarchy.branches])
        tables = {"training": history.assign(closed_form=untrained_loss), "branches": branches}
        network = network.eval().requires_grad_(False)
        return FittedPrior(cls(hierarchy, populations, network, network_branches.to(torch_device)), tables)

    @property
    def description(self) -> str:
        """Short description for reports."""
        n_with_network, n_branches = int(self.network_branches.sum()), len(self.network_branches)
        where = f"on {n_with_network} of {n_branches} branches, where it improves held-out cells"
        return f"{super().description}, with a network {where if n_with_network else 'on no branch, as it helps none'}"

    @staticmethod
    def denoise_with(
        network: nn.Module, populations: BranchPopulations, x: Tensor, sigma: Tensor, branch: Tensor
    ) -> Tensor:
        """Denoise cells by the closed form plus the network."""
        return populations.denoised(x, sigma, branch) + make_correction(network, populations)(x, sigma, branch)


def make_correction(network: nn.Module, populations: BranchPopulations) -> Denoise:
    """Return a function that computes the network's correction to the closed form."""

    def correction(x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        standardised, noise = populations.standardise(x, sigma, branch), sigma[:, None]
        output: Tensor = noise / (1 + noise**2).sqrt() * network(standardised, noise.log() / 4, branch)
        return output

    return correction


def best_step(history: pd.DataFrame, untrained: float) -> int:
    """Return the step with the lowest validation loss; the last if none beats ``untrained``."""
    best = history["validation"].idxmin()
    return int(history["step"][best if history["validation"][best] < untrained else history.index[-1]])


# ---- comparison of the network with the closed form


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Held-out cells with several fixed noise draws each, denoised by the closed form."""

    x: Tensor  # clean cells, draws x dimensions
    noised: Tensor
    sigma: Tensor
    branch: Tensor  # row of the branch at sigma
    denoised: Tensor  # by the closed form
    cell: np.ndarray  # index of the cell of each draw
    weight: np.ndarray  # gives populations the same shares as in training
    n_branches: int

    @classmethod
    @torch.no_grad()
    def from_cells(cls, data: PriorData, mask: Tensor, populations: BranchPopulations, *, seed: int) -> HeldOut:
        """Add noise to the cells of a mask, and denoise them in closed form."""
        cells, hierarchy = data.cells, data.hierarchy
        generator = torch_generator(seed, "noise of held-out cells")
        index = mask.nonzero().squeeze(1)
        n_draws = min(N_DRAWS, max(MIN_DRAWS, MAX_DRAWS // max(len(index), 1)))
        population = cells.population[index]
        n_held_out = torch.bincount(population, minlength=len(cells.populations))
        weight = population_weight(cells.n_cells) / n_held_out.clamp(min=1)
        index, cell = index.repeat(n_draws), torch.arange(len(index)).repeat(n_draws)
        x = data.whitening(cells.sample(index, generator))
        noised, sigma = add_random_noise(x, hierarchy.sigma_max, generator)
        branch = branches_at(path_table(hierarchy, cells.populations), cells.population[index], sigma)
        denoised = denoised_in_blocks(populations.denoised, noised, sigma, branch)
        weight = weight[cells.population[index]]
        return cls(x, noised, sigma, branch, denoised, cell.numpy(), weight.numpy(), len(hierarchy.branches))

    def to(self, device: torch.device) -> HeldOut:
        """Return a copy on a device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in TENSOR_FIELDS})

    @property
    def closed_form_loss(self) -> float:
        """Mean loss of the closed form."""
        return float(np.average(_losses(self.denoised, self.x, self.sigma), weights=self.weight))

    @torch.no_grad()
    def compare(self, correction: Denoise, *, n_looks: int = 1) -> NetworkComparison:
        """Compare the network with the closed form on each branch.

        ``n_looks`` is the number of validations among which these cells chose the network.
        """
        added = denoised_in_blocks(correction, self.noised, self.sigma, self.branch)
        closed_form, network = (_losses(x, self.x, self.sigma) for x in (self.denoised, self.denoised + added))
        branch = self.branch.cpu().numpy()
        draws = [np.flatnonzero(branch == row) for row in range(self.n_branches)]
        table = pd.DataFrame([_paired(closed_form[i], network[i], self.cell[i], self.weight[i]) for i in draws])
        n_cells = table["n_cells"].to_numpy()
        enough = n_cells >= MIN_CELLS
        level = SIGNIFICANCE_LEVEL / max(enough.sum() * n_looks, 1)
        table["least_gain"] = np.where(enough, -stdtrit(np.maximum(n_cells - 1, 1), level), np.nan)
        table["kept"] = table["gain"] > table["least_gain"]
        with_kept = np.where(table["kept"].to_numpy()[branch], network, closed_form)
        return NetworkComparison(table, float(np.average(with_kept, weights=self.weight)))


@dataclass(frozen=True)
class NetworkComparison:
    """Losses of held-out cells with and without the network.

    A branch keeps the network if its gain exceeds ``least_gain``, the critical value of a t test at
    ``SIGNIFICANCE_LEVEL`` with Bonferroni correction for branches and looks. With fewer than ``MIN_CELLS`` cells,
    ``least_gain`` is NaN and the network is dropped.
    """

    # n_cells (held-out cells with a draw on the branch), mean losses closed_form and network, gain (their difference,
    # paired by cell, in standard errors), least_gain, kept
    by_branch: pd.DataFrame
    loss: float  # overall mean, with the network on the branches that keep it


def _losses(denoised: Tensor, x: Tensor, sigma: Tensor) -> np.ndarray:
    losses: np.ndarray = denoising_losses(denoised, x, sigma).double().cpu().numpy()
    return losses


def _paired(closed_form: np.ndarray, network: np.ndarray, cell: np.ndarray, weight: np.ndarray) -> dict[str, float]:
    """Compare the losses of draws, paired by cell; a row of :class:`NetworkComparison`."""
    if not len(cell):
        return {"n_cells": 0, "closed_form": np.nan, "network": np.nan, "gain": np.nan}
    n_cells = len(np.unique(cell))
    means = [np.average(losses, weights=weight) for losses in (closed_form, network)]
    difference = means[0] - means[1]
    by_cell = np.bincount(cell, weights=weight * (closed_form - network - difference))
    error = np.sqrt((by_cell**2).sum()) / weight.sum()
    gain = np.nan if n_cells < 2 else difference / error if error > 0 else 0.0
    return {"n_cells": n_cells, "closed_form": means[0], "network": means[1], "gain": gain}
