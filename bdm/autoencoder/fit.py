"""The fit of the autoencoder: its objective on minibatches of cells, and the fitted autoencoder."""

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.arrays import to_tensor
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.cells import (
    batch_codes,
    batch_names,
    cell_blocks,
    evidence_lower_bounds,
    mean_bound_by_type,
    sample_cells,
    sample_rows,
    type_codes,
    type_names,
)
from bdm.autoencoder.fit_adapters import N_ITERATIONS, fit_adapters, likelihood
from bdm.autoencoder.network import AutoencoderShape, CountAutoencoder
from bdm.autoencoder.sub_populations import SubPopulations, find_sub_populations
from bdm.checkpoint import Checkpoint
from bdm.seeds import derive
from bdm.settings import AutoencoderSettings
from bdm.threads import Map, threads, using_threads
from bdm.training import Loop, train

N_TRAINING, N_HELD_OUT = 100_000, 10_000  # cells that are read, where there are more
N_START = 10_000  # cells that the network starts from


@dataclass(frozen=True)
class FittedAutoencoder:
    """A trained autoencoder with the cell types and batches it knows and how training went.

    Attributes
    ----------
    likelihood
        Of validation cells by type, see :func:`bdm.autoencoder.cells.mean_by_type`; of training cells where there
        are none.
    sub_populations
        Sub-populations of the types that have several; in the network, they follow the types.
    adapters
        Type-specific decoders of the populations that have one.
    """

    network: CountAutoencoder
    cell_types: tuple[str, ...]
    batches: tuple[str, ...]
    history: pd.DataFrame
    likelihood: pd.DataFrame
    sub_populations: SubPopulations
    adapters: Adapters


@dataclass(frozen=True)
class Objective:
    """What the training of an autoencoder minimises, in minibatches of the sampled training cells.

    Networks are of :class:`CountAutoencoder`, which Fabric may have wrapped.

    Attributes
    ----------
    training, held_out
        Sampled training and validation cells.
    n_training
        Number of all training cells.
    """

    training: ad.AnnData
    held_out: ad.AnnData
    n_training: int
    cell_types: tuple[str, ...]
    batches: tuple[str, ...]
    settings: AutoencoderSettings
    seed: int

    @cached_property
    def types(self) -> Tensor:
        """Index of each training cell's type."""
        return type_codes(self.training, self.cell_types)

    @cached_property
    def codes(self) -> Tensor:
        """Index of each training cell's batch."""
        return batch_codes(self.training, self.batches)

    def minibatch(self, network: Any, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Sample counts, types and batches of training cells, and noise for their latents."""
        cells = torch.randint(self.training.n_obs, (self.settings.batch_size,), generator=generator)
        device = next(network.parameters()).device
        counts = to_tensor(self.training.X[cells.numpy()].toarray()).to(device)
        noise = torch.randn(len(cells), self.settings.n_latent, generator=generator).to(device)
        return counts, self.types[cells].to(device), self.codes[cells].to(device), noise

    def loss(self, network: Any, generator: torch.Generator, *, run: Map) -> Tensor:
        """Negative evidence lower bound by cell, with the penalties; updates the prior means."""
        cells = self.minibatch(network, generator)
        value, latent = network(*cells, n_iterations=N_ITERATIONS, run=run)
        network.update_prior_means(cells[1], latent)
        loss: Tensor = value.mean() + network.penalty(loading_scale=self.settings.loading_scale) / self.n_training
        return loss

    def by_type(self, network: Any, generator: torch.Generator) -> dict[str, float]:
        """Mean negative evidence lower bound of each cell type in a minibatch; nan where it cannot be computed."""
        cells = self.minibatch(network, generator)
        losses = {}
        for code in cells[1].unique():
            chosen = cells[1] == code
            try:
                value, _ = network(*(part[chosen] for part in cells), n_iterations=N_ITERATIONS)
            except torch.linalg.LinAlgError:
                value = torch.tensor(math.nan)
            losses[self.cell_types[code]] = float(value.mean())
        return losses

    def validation(self, network: Any) -> Tensor:
        """Mean negative evidence lower bound of the validation cells."""
        of_cells = type_codes(self.held_out, self.cell_types), batch_codes(self.held_out, self.batches)
        bounds = evidence_lower_bounds(network, self.held_out, *of_cells, seed=derive(self.seed, "validation"))
        return -torch.from_numpy(bounds).mean()


@using_threads()
def fit_autoencoder(
    adata: ad.AnnData,
    settings: AutoencoderSettings,
    *,
    seed: int,
    device: str = "auto",
    checkpoint: Checkpoint | None = None,
) -> FittedAutoencoder:
    """Train the autoencoder on the training cells, stopped where validation cells are most likely.

    Every step encodes cells by their posterior under the present parameters, and improves the parameters for them:
    expectation maximisation in minibatches. Then sub-populations of the types are found in the latents, and each
    population gets a type-specific decoder if its validation cells gain.

    No more than 100,000 training and 10,000 validation cells are read, drawn from larger data: by as many draws as
    training makes, a fit of this few parameters learns no less from them.

    Parameters
    ----------
    adata
        Prepared counts: ``X`` cells x genes in CSR, in memory or on disk, ``obs['split']``, ``obs['cell_type']``, and
        ``obs['batch']`` if batches enter.
    checkpoint
        Where interrupted training resumes.
    """
    cell_types, batches = type_names(adata), batch_names(adata)
    training = sample_cells(adata, "train", n_cells=N_TRAINING, seed=seed)
    held_out = sample_cells(adata, "validation", n_cells=N_HELD_OUT, seed=seed)
    n_training = int((adata.obs["split"] == "train").sum())
    objective = Objective(training, held_out, n_training, cell_types, batches, settings, seed)
    types, codes = objective.types, objective.codes
    start = sample_rows(training.obs["cell_type"], np.arange(training.n_obs), "start", n_cells=N_START, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder"))
        network = CountAutoencoder(AutoencoderShape(adata.n_vars, len(cell_types), settings.n_latent, len(batches)))
        network.initialise(to_tensor(training.X[start].toarray()), types[start])
    loop = Loop(
        settings.n_steps,
        settings.learning_rate,
        seed=derive(seed, "autoencoder steps"),
        device=device,
        what="the autoencoder",
        n_warmup=50,
    )
    validation = objective.validation if held_out.n_obs else None
    with threads() as run:
        loss = partial(objective.loss, run=run)
        history = train(network, loss, loop, by_group=objective.by_type, validation=validation, checkpoint=checkpoint)
    network = network.cpu().eval()
    network.rotate_to_principal_axes(_mean_precision(network, training[start], types[start], codes[start]))
    network, found, cells = with_sub_populations(network, objective)
    none = Adapters.of_shared(network, (), ())
    rows = (*cell_types, *found.names)
    adapters = none if settings.shared_decoder else fit_adapters(network, rows, cells, seed=seed)
    scored = cells[(cells.obs["split"] == "validation").to_numpy()] if held_out.n_obs else cells[start]
    table = _bounds_by_type(network, rows, adapters, scored, objective)
    return FittedAutoencoder(network, cell_types, batches, history, table, found, adapters)


def with_sub_populations(
    network: CountAutoencoder, objective: Objective
) -> tuple[CountAutoencoder, SubPopulations, ad.AnnData]:
    """Find the sub-populations of all types, and add them to the network.

    Returns
    -------
    The network, in which sub-populations follow the types; the sub-populations; and the sampled training and validation
    cells, with the population of each in ``obs["sub_population"]``.
    """
    cells = ad.concat([objective.training, objective.held_out]) if objective.held_out.n_obs else objective.training

    def with_names(population: np.ndarray) -> ad.AnnData:
        return ad.AnnData(cells.X, obs=cells.obs.assign(sub_population=population.astype(str)), var=cells.var)

    if objective.settings.sub_populations == "none":
        none = SubPopulations.none(objective.settings.n_latent)
        return network, none, with_names(cells.obs["cell_type"].to_numpy())
    cell_types, seed = objective.cell_types, objective.seed
    types = type_codes(cells, cell_types)
    posterior = encode_cells(network, cells, types, batch_codes(cells, objective.batches))
    found = find_sub_populations(*posterior, types, cell_types, objective.settings, seed=seed)
    population, means = cells.obs["cell_type"].astype(str).to_numpy(dtype=object), []
    for cell_type in dict.fromkeys(found.cell_type):
        of_type, prior_mean = population == cell_type, network.prior_mean[cell_types.index(cell_type)].detach()
        mean, scale = (value[of_type] for value in posterior)
        population[of_type], means_of_type = found.divide(cell_type, mean, scale, prior_mean)
        means.append(means_of_type)
    if not means:
        return network, found, with_names(population)
    codes = torch.tensor([cell_types.index(cell_type) for cell_type in found.cell_type], dtype=torch.long)
    return network.with_populations(codes, torch.cat(means)), found, with_names(population)


def encode_cells(network: CountAutoencoder, cells: ad.AnnData, types: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posteriors of cells in memory, each cells x latent dimensions."""

    @torch.no_grad()  # holds for the thread that enters it
    def encoded(block: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        posterior = network.encode(*block)
        return posterior.mean, posterior.scale

    with threads() as run:
        means, scales = zip(*run(encoded, cell_blocks(cells, types, codes)), strict=True)
    return torch.cat(means), torch.cat(scales)


def _bounds_by_type(
    network: CountAutoencoder, rows: tuple[str, ...], adapters: Adapters, cells: ad.AnnData, objective: Objective
) -> pd.DataFrame:
    """Mean evidence lower bound of cells by type, each with the decoder of its population."""
    cell_types, batches, seed = objective.cell_types, objective.batches, objective.seed
    population = cells.obs["sub_population"].astype(str)
    populations = to_tensor(pd.Index(rows).get_indexer(population).astype(np.int64))
    bound = evidence_lower_bounds(network, cells, populations, batch_codes(cells, batches), seed=seed)
    for name in adapters:
        of_population = np.flatnonzero(population == name)
        bound[of_population] = likelihood(adapters.network(name, network), cells[of_population], batches, seed=seed)
    return mean_bound_by_type(bound, cells, type_codes(cells, cell_types), cell_types)


def _mean_precision(network: CountAutoencoder, adata: ad.AnnData, types: Tensor, codes: Tensor) -> Tensor:
    @torch.no_grad()  # holds for the thread that enters it
    def summed(block: tuple[Tensor, ...]) -> Tensor:
        return network.encode(*block).precision.sum(dim=0)

    with threads() as run:
        mean: Tensor = sum(run(summed, cell_blocks(adata, types, codes))) / adata.n_obs
    return mean
