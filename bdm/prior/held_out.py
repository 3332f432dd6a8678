"""Comparison of the network with the closed form on held-out cells, branch by branch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from scipy.stats import t
from torch import Tensor

from bdm._core.seeds import population_weight, torch_generator
from bdm.errors import InputError
from bdm.latent.cells import LatentCells
from bdm.prior.base import PriorData
from bdm.prior.mixture import BranchPopulations
from bdm.prior.network import (
    Denoise,
    branches_at,
    denoised_in_blocks,
    denoising_losses,
    sample_noised,
    table_of_paths,
)
from bdm.settings import PriorSettings

N_HELD_OUT = 10_000  # most cells that are compared
N_DRAWS, MAX_DRAWS, MIN_DRAWS = 16, 40_000, 4  # of noise: for each cell, for all cells, and at least for each
SHARE = 0.1  # of cells that are held out where there are no validation cells
LEVEL = 0.025  # probability with which the network is kept on any branch where it gains nothing
MIN_CELLS = 30  # of a branch; among fewer, the rare cells that a network harms may be missing
TENSORS = ("x", "noised", "sigma", "branch", "closed")


def held_out_mask(cells: LatentCells, validation: Tensor | None, *, seed: int) -> Tensor:
    """Choose the cells to compare the network on: validation cells or a tenth of all, at most ``N_HELD_OUT``.

    A population keeps a cell to train on.
    """
    n_cells = len(cells.population)
    order = torch.randperm(n_cells, generator=torch_generator(seed, "held-out cells"))
    if validation is not None and validation.any():
        chosen = order[validation[order]][:N_HELD_OUT]
    else:
        chosen = order[: min(max(int(SHARE * n_cells), 1), N_HELD_OUT)]
    mask = torch.zeros(n_cells, dtype=torch.bool)
    mask[chosen] = True
    n_trained = torch.bincount(cells.population[~mask], minlength=len(cells.populations))
    mask &= n_trained[cells.population] > 0
    if not mask.any():
        raise InputError("No population has a cell to train on and another to compare the network on; give more cells.")
    return mask


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
        settings: PriorSettings,
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
        noised, sigma = sample_noised(x, settings, hierarchy.sigma_max, generator)
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
        table["least_gain"] = np.where(enough, t.isf(level, np.maximum(n_cells - 1, 1)), np.nan)
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
