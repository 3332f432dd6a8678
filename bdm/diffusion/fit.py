"""Training of the denoiser on cells at random noise levels."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn

from bdm._core.checkpoint import Checkpoint
from bdm._core.parallel import using_threads
from bdm._core.seeds import Minibatches, derive, to_tensor
from bdm._core.training import TrainingPlan, fabric, train
from bdm.diffusion.denoiser import BranchedDenoiser, DenoiserShape
from bdm.diffusion.held_out import HeldOut, held_out_mask
from bdm.diffusion.noise import branch_table, branches_at, denoising_losses, sample_noised
from bdm.diffusion.populations import BranchPopulations
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import PopulationMoments, Whitening, population_moments
from bdm.settings import DenoiserSettings

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class FittedDenoiser:
    """A trained denoiser, on the device that it was trained on, and how it was trained.

    Attributes
    ----------
    history
        Table of ``step``, ``loss``, and the mean loss of held-out cells: ``validation`` with the network on the
        branches where it would be kept, and ``closed_form`` without; of the training that decides where.
    branches
        Table of branches by ``branch``, with the columns of :class:`bdm.diffusion.held_out.Comparison`.
    """

    network: BranchedDenoiser
    history: pd.DataFrame
    branches: pd.DataFrame


@using_threads()
def fit_denoiser(
    cells: LatentCells,
    whitening: Whitening,
    moments: PopulationMoments,
    hierarchy: Hierarchy,
    settings: DenoiserSettings,
    *,
    seed: int,
    validation: Tensor | None = None,
    device: "str | Fabric" = "auto",
    checkpoint: Checkpoint | None = None,
    everywhere: bool = False,
) -> FittedDenoiser:
    """Train the denoiser of all branches on cells that are drawn from their posteriors, and keep what validates.

    A cell of population c at noise level sigma trains the branch on the path of c that sigma is in. Held-out cells, not
    seen by the network nor by the closed form, decide when training ends, and on which branches the network is kept:
    where their loss is lower with it. Then the closed form has the moments of all cells, and a network that is kept
    anywhere is trained once more on all cells, for the number of steps that was best for the held-out cells.

    Parameters
    ----------
    moments
        Of all cells.
    validation
        Whether each cell is a validation cell; a tenth of the cells is held out where none is.
    device
        Name of a device, or a Fabric of several processes, which all call this and take shares of every minibatch.
    checkpoint
        File from which an interrupted training continues.
    everywhere
        Keep the network on all branches, trained for all steps, whether held-out cells gain by it or not.
    """
    workers = fabric(device)
    chosen = held_out_mask(cells, validation, seed=seed)
    seen = (~chosen).nonzero().squeeze(1)
    of_seen = population_moments(cells.subset(seen), whitening)
    network = initial_denoiser(of_seen, hierarchy, settings, seed=seed)
    held_out, with_other_noise = (
        HeldOut.of(cells, chosen, whitening, hierarchy, network, settings, seed=derive(seed, part)).to(workers.device)
        for part in ("training", "decision")
    )
    loss = MinibatchLoss(cells, seen, whitening, hierarchy, settings, workers)
    plan = training_plan(settings, workers, seed=seed, patience=settings.patience, untrained=held_out.closed_form)
    history = train(network, loss, plan, by_group=loss.by_population, validation=held_out.loss, checkpoint=checkpoint)
    # These cells have chosen the step, which favours the network; the noise that did would favour it more
    comparison = with_other_noise.compare(network, n_looks=len(history))
    kept = to_tensor(comparison.by_branch["kept"].to_numpy()) | everywhere
    if kept.any():
        network = initial_denoiser(moments, hierarchy, settings, seed=seed)
        steps = settings.n_steps if everywhere else best_step(history, held_out.closed_form)
        train_again(network, loss.of_all_cells(), steps, seed=seed, checkpoint=checkpoint)
    network.set_populations(BranchPopulations.of(moments, hierarchy))
    network.learned.copy_(kept)
    branches = comparison.by_branch
    branches.insert(0, "branch", [branch.name for branch in hierarchy.branches])
    return FittedDenoiser(network.eval(), history.assign(closed_form=held_out.closed_form), branches)


def training_plan(settings: DenoiserSettings, workers: "Fabric", *, seed: int, **more: Any) -> TrainingPlan:
    """Plan of the denoiser's training; ``more`` are fields of :class:`bdm._core.training.TrainingPlan`."""
    return TrainingPlan(
        settings.n_steps,
        settings.learning_rate,
        seed=derive(seed, "denoiser steps"),
        device=workers,
        what="the denoiser",
        averaging=settings.averaging,
        **more,
    )


def train_again(
    network: BranchedDenoiser, loss: "MinibatchLoss", n_steps: int, *, seed: int, checkpoint: Checkpoint | None = None
) -> None:
    """Train a denoiser in place for so many steps, with the learning rates of the training that has chosen them."""
    plan = training_plan(loss.settings, loss.workers, seed=seed, n_taken=n_steps)
    part = checkpoint.of_part("all-cells") if checkpoint else None
    train(network, loss, plan, by_group=loss.by_population, checkpoint=part)


def best_step(history: pd.DataFrame, untrained: float) -> int:
    """Step of the network that training gives: the one with the lowest validation loss, or the last if none gains."""
    best = history["validation"].idxmin()
    return int(history["step"][best if history["validation"][best] < untrained else history.index[-1]])


@dataclass(frozen=True, eq=False)
class MinibatchLoss:
    """Loss of a minibatch of cells; each of several processes takes its share of the minibatch.

    Attributes
    ----------
    trained
        Indices of the cells to draw from.
    """

    cells: LatentCells
    trained: Tensor
    whitening: Whitening
    hierarchy: Hierarchy
    settings: DenoiserSettings
    workers: "Fabric"

    def of_all_cells(self) -> "MinibatchLoss":
        """Loss with all cells to draw from."""
        return replace(self, trained=torch.arange(len(self.cells.population)))

    @cached_property
    def minibatches(self) -> Minibatches:
        """Cells to draw from, by population."""
        return Minibatches.of(self.cells.population[self.trained])

    @cached_property
    def table(self) -> tuple[Tensor, Tensor]:
        """Branches on the path of each population."""
        return branch_table(self.hierarchy, self.cells.populations)

    def of_cells(self, network: nn.Module, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Losses of the cells of a minibatch, and their populations."""
        index = self.trained[self.minibatches.draw(self.settings.batch_size, generator)]
        x = self.whitening(self.cells.sample(index, generator))
        noised, sigma = sample_noised(x, self.settings, self.hierarchy.sigma_max, generator)
        population = self.cells.population[index]
        on = branches_at(self.table, population, sigma)
        share = slice(self.workers.global_rank, None, self.workers.world_size)
        x, noised, sigma, on = (values[share].to(self.workers.device) for values in (x, noised, sigma, on))
        return denoising_losses(network(noised, sigma, on), x, sigma), population[share]

    def __call__(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Mean loss."""
        losses, _ = self.of_cells(network, generator)
        weight = self.workers.world_size * len(losses) / self.settings.batch_size  # shares may differ by a cell
        return weight * losses.mean()

    def by_population(self, network: nn.Module, generator: torch.Generator) -> dict[str, float]:
        """Mean loss of the cells of each population in the minibatch."""
        losses, population = self.of_cells(network, generator)
        names = self.cells.populations
        return {names[code]: float(losses.cpu()[population == code].mean()) for code in population.unique()}


def initial_denoiser(
    moments: PopulationMoments, hierarchy: Hierarchy, settings: DenoiserSettings, *, seed: int
) -> BranchedDenoiser:
    """Make a denoiser before training: random weights, and the populations of the branches."""
    shape = DenoiserShape(moments.mean.shape[1], len(hierarchy.branches), settings.width, settings.n_layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "denoiser"))
        network = BranchedDenoiser(shape)
    network.set_populations(BranchPopulations.of(moments, hierarchy))
    return network
