"""Training of the denoiser on cells at random noise levels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from torch import Tensor, nn

from bdm.checkpoint import Checkpoint
from bdm.diffusion.denoiser import BranchedDenoiser, DenoiserShape
from bdm.diffusion.populations import BranchPopulations
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import TypeMoments, Whitening
from bdm.seeds import Minibatches, derive
from bdm.settings import DenoiserSettings
from bdm.threads import using_threads
from bdm.training import Loop, fabric, train

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class FittedDenoiser:
    """A trained denoiser, on the device that it was trained on, and the history of its training."""

    network: BranchedDenoiser
    history: pd.DataFrame


@using_threads()
def fit_denoiser(
    cells: LatentCells,
    whitening: Whitening,
    moments: TypeMoments,
    hierarchy: Hierarchy,
    settings: DenoiserSettings,
    *,
    seed: int,
    device: "str | Fabric" = "auto",
    checkpoint: Checkpoint | None = None,
    denoiser: Callable[[DenoiserShape], BranchedDenoiser] = BranchedDenoiser,
) -> FittedDenoiser:
    """Train the denoiser of all branches on cells that are drawn from their posteriors.

    A cell of type c at noise level sigma trains the branch on the path of c that sigma is in.

    Parameters
    ----------
    device
        Name of a device, or a Fabric of several processes, each of which calls this and takes its share of every
        minibatch.
    checkpoint
        File from which an interrupted training continues.
    denoiser
        Class of the network, with the methods of :class:`bdm.diffusion.denoiser.BranchedDenoiser`.
    """
    workers = fabric(device)
    network = initial_denoiser(moments, hierarchy, settings, seed=seed, denoiser=denoiser)
    minibatches = Minibatches.of(cells.cell_type)
    upper, branch = branch_table(hierarchy, cells.cell_types)

    def losses(network: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        index = minibatches.draw(settings.batch_size, generator)
        x = whitening(cells.sample(index, generator))
        noised, sigma = sample_noised(x, settings, hierarchy.sigma_max, generator)
        cell_type = cells.cell_type[index]
        on = branch[cell_type].gather(1, torch.searchsorted(upper[cell_type], sigma[:, None])).squeeze(1)
        share = slice(workers.global_rank, None, workers.world_size)
        x, noised, sigma, on = (values[share].to(workers.device) for values in (x, noised, sigma, on))
        return denoising_losses(network(noised, sigma, on), x, sigma), cell_type[share]

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        value, _ = losses(network, generator)
        weight = workers.world_size * len(value) / settings.batch_size  # shares may differ by a cell
        return weight * value.mean()

    def by_type(network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        value, cell_type = losses(network, generator)
        return {cells.cell_types[code]: float(value.cpu()[cell_type == code].mean()) for code in cell_type.unique()}

    loop = Loop(
        settings.n_steps,
        settings.learning_rate,
        seed=derive(seed, "denoiser steps"),
        device=workers,
        what="the denoiser",
        averaging=settings.averaging,
    )
    history = train(network, loss, loop, by_type=by_type, checkpoint=checkpoint)
    return FittedDenoiser(network.eval(), history)


def initial_denoiser(
    moments: TypeMoments,
    hierarchy: Hierarchy,
    settings: DenoiserSettings,
    *,
    seed: int,
    denoiser: Callable[[DenoiserShape], BranchedDenoiser] = BranchedDenoiser,
) -> BranchedDenoiser:
    """Make a denoiser before training: random weights, and the populations of the branches."""
    shape = DenoiserShape(moments.mean.shape[1], len(hierarchy.branches), settings.width, settings.n_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "denoiser"))
        network = denoiser(shape)
    network.set_populations(BranchPopulations.of(moments, hierarchy))
    return network


def sample_noised(
    x: Tensor, settings: DenoiserSettings, highest: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Add noise to cells (cells x dimensions), each at a random level up to ``highest``; returns cells and levels."""
    log_sigma = torch.randn(len(x), generator=generator) * settings.log_sigma_scale
    sigma = (log_sigma + settings.log_sigma_mean).exp().clamp(max=highest)
    return x + sigma[:, None] * torch.randn(x.shape, generator=generator), sigma


def denoising_losses(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Mean squared error of each denoised cell, weighted by noise level."""
    return ((1 + 1 / sigma**2)[:, None] * (denoised - x) ** 2).mean(dim=1)


def branch_table(hierarchy: Hierarchy, cell_types: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    """Branches on the path of each type, from the leaf up.

    Returns
    -------
    The highest noise level of each branch (infinite for the last) and its index in the denoiser, both types x longest
    path; ``searchsorted`` in the first gives the column in the second.
    """
    paths = [hierarchy.path(cell_type)[::-1] for cell_type in cell_types]
    longest = max(len(path) for path in paths)
    upper = torch.full((len(paths), longest), torch.inf)
    branch = torch.zeros(len(paths), longest, dtype=torch.long)
    for row, path in enumerate(paths):
        for column, segment in enumerate(path):
            upper[row, column] = segment.high if column + 1 < len(path) else torch.inf
            branch[row, column] = segment.denoiser_branch
    return upper, branch
