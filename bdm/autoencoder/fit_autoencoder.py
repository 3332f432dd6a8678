"""Training of the autoencoder: rounds of training and clustering, objective, sub-populations."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.parallel import Map, threads, using_threads
from bdm._core.seeds import derive, to_tensor
from bdm._core.store import concat
from bdm._core.training import TrainingPlan, train
from bdm.autoencoder.adapters import (
    CELLS_PER_POPULATION,
    N_TRAINING_ITERATIONS,
    Adapters,
    bounds_of_population,
    fit_adapters,
)
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.count_noise import fit_count_noise
from bdm.autoencoder.decoder import AutoencoderShape
from bdm.autoencoder.inputs import (
    batch_codes,
    batch_names,
    cell_blocks,
    codes_of,
    evidence_lower_bounds,
    mean_bound_by_type,
    population_codes,
    sample_cells,
    sample_rows,
    sample_rows_of_population,
    type_names,
)
from bdm.autoencoder.network import CountAutoencoder, Posterior
from bdm.autoencoder.other_genes import add_other_genes
from bdm.autoencoder.protein_levels import protein_columns, training_levels
from bdm.autoencoder.rare_types import fit_rare_types
from bdm.autoencoder.sub_populations import (
    SubPopulations,
    classify,
    find_one_donor,
    find_parts,
    prefixes_of,
    warn_of_fewer,
)
from bdm.data.matrix import take_rows
from bdm.data.modalities import size_names
from bdm.data.prepare import has_donors, recorded_min_donors
from bdm.settings import AutoencoderSettings

N_TRAINING, N_HELD_OUT = 100_000, 10_000  # sample of larger data; more cells do not improve so few parameters
N_START = 10_000  # cells to initialise the network from


@using_threads()
def fit_autoencoder(
    adata: ad.AnnData,
    settings: AutoencoderSettings,
    *,
    seed: int,
    device: str = "auto",
    provenance: dict[str, Any],
) -> tuple[GeneAutoencoder, pd.DataFrame]:
    """Train the autoencoder, with sub-populations and type-specific decoders.

    1. Train the network on cell types, by minibatch expectation maximisation: each step computes the posteriors of
       cells under the current parameters, then improves the parameters. The step with the best validation loss is kept.
    2. Cluster the cells of each type. If there are sub-populations, train the network again with a prior mean for
       each, since a single prior blurs the structure of a coarse type. With ``sub_populations="auto"``, cluster again.
    3. Fit type-specific decoders, and keep them where validation cells gain. Estimate each gene of rare types alone.
    4. Fit the noise of generated counts in each population.

    Returns the autoencoder of prepared cells, which stores ``provenance``, and its losses by ``round`` (1, or 2 for the
    second training) and ``step``.
    """
    objective = Objective.from_cells(adata, settings, seed=seed)
    cell_types, batches = objective.division.names, objective.batches
    network, history = train_network(objective, "the autoencoder", device=device)
    history.insert(0, "round", 1)
    finer = divide(network, objective)
    if len(finer.names) > len(cell_types):
        objective = replace(objective, division=finer)
        network, again = train_network(objective, "the autoencoder of populations", device=device)
        history = pd.concat([history, again.assign(round=2)], ignore_index=True)
        finer = divide(network, objective) if settings.sub_populations == "auto" else finer
    network, sub_populations, cells = add_sub_populations(network, objective, finer, cell_types)
    if isinstance(settings.sub_populations, int):
        warn_of_fewer(sub_populations, cell_types, settings.sub_populations, requirement=objective.requirement)
    one_donor = find_one_donor(cells.obs, sub_populations) if has_donors(adata) else ()
    network_types = (*cell_types, *sub_populations.names)
    if settings.shared_decoder:
        adapters = Adapters.none(network)
    else:
        adapters = fit_adapters(network, network_types, cells, seed=seed)
        adapters = fit_rare_types(network, network_types, cells, adapters, seed=seed)
    is_scored = (cells.obs["split"] == "validation").to_numpy()
    scored = cells[is_scored] if is_scored.any() else cells[sample_start(objective)]
    bounds = bounds_by_type(network, network_types, adapters, scored, objective, cell_types)
    levels = training_levels(cells, protein_columns(objective.training.var), seed=seed)
    cells = with_all_features(cells, adata, seed=seed)
    autoencoder = GeneAutoencoder(
        network, adata.var, cell_types, batches, provenance, bounds, network_types, sub_populations, adapters, levels
    )
    autoencoder = add_other_genes(autoencoder, cells, seed=seed)
    noise = fit_count_noise(cells, autoencoder, autoencoder.populations, seed=seed)
    return replace(autoencoder, noise=noise, one_donor=one_donor), history


@dataclass(frozen=True)
class Division:
    """Division of the sampled cells into cell types, or into finer populations."""

    names: tuple[str, ...]
    code: Tensor  # index of each cell's population; training cells come before held-out cells

    def refined(self, part: np.ndarray) -> "Division":
        """Divide populations further, given the number of each cell's part in its population."""
        names: list[str] = []
        code, prefixes = self.code.clone(), prefixes_of(self.names)
        for number, name in enumerate(self.names):
            parts = torch.from_numpy(part[(self.code == number).numpy()])
            n_parts = int(parts.max()) + 1 if len(parts) else 1
            code[self.code == number] = len(names) + parts
            names += [name] if n_parts == 1 else [f"{prefixes[name]}{n}" for n in range(1, n_parts + 1)]
        return Division(tuple(names), code)


@dataclass(frozen=True)
class Objective:
    """Training objective of the autoencoder on minibatches of sampled cells."""

    training: ad.AnnData  # sampled training cells
    held_out: ad.AnnData  # sampled validation cells
    n_training: int  # number of all training cells, sampled or not
    division: Division
    batches: tuple[str, ...]
    settings: AutoencoderSettings
    seed: int
    min_donors: int = 1  # minimum effective number of donors per sub-population

    @classmethod
    def from_cells(cls, adata: ad.AnnData, settings: AutoencoderSettings, *, seed: int) -> "Objective":
        """Sample training and validation cells, and divide them by cell type."""
        training = sample_cells(adata, "train", n_cells=N_TRAINING, seed=seed)
        held_out = sample_cells(adata, "validation", n_cells=N_HELD_OUT, seed=seed)
        n_training, cell_types = int((adata.obs["split"] == "train").sum()), type_names(adata)
        types = torch.cat([population_codes(cells, cell_types) for cells in (training, held_out)])
        division, batches, min_donors = Division(cell_types, types), batch_names(adata), recorded_min_donors(adata)
        return cls(training, held_out, n_training, division, batches, settings, seed, min_donors)

    @cached_property
    def cells(self) -> ad.AnnData:
        """Training cells followed by held-out cells."""
        return ad.concat([self.training, self.held_out]) if self.held_out.n_obs else self.training

    @property
    def requirement(self) -> str:
        """Requirement of a sub-population, for warnings."""
        donors = f" of {self.min_donors} effective donors" if self.min_donors > 1 else ""
        return f"{self.settings.min_cells_per_sub_population} cells{donors} to fit"

    @cached_property
    def batch_size(self) -> int:
        """Cells per minibatch; fewer with peaks, which is faster and fits equally well."""
        has_peaks = len(size_names(self.training.var)) > 1
        return max(self.settings.batch_size // 4, 1) if has_peaks else self.settings.batch_size

    @cached_property
    def batch(self) -> Tensor:
        """Index of each training cell's batch."""
        return batch_codes(self.training, self.batches)

    def minibatch(self, network: Any, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Sample counts, populations and batches of training cells, and standard normal noise for latents."""
        cells = torch.randint(self.training.n_obs, (self.batch_size,), generator=generator)
        device = next(network.parameters()).device
        counts = to_tensor(self.training.X[cells.numpy()].toarray()).to(device)
        noise = torch.randn(len(cells), self.settings.n_latent, generator=generator).to(device)
        return counts, self.division.code[cells].to(device), self.batch[cells].to(device), noise

    def loss(self, network: Any, generator: torch.Generator, *, run: Map) -> Tensor:
        """Return the penalised loss per cell, and update the prior means."""
        cells = self.minibatch(network, generator)
        negative_bound, latent = network(*cells, n_iterations=N_TRAINING_ITERATIONS, run=run)
        network.update_prior_means(cells[1], latent)
        penalty = network.decoder.penalty(loading_scale=self.settings.loading_scale)
        loss: Tensor = negative_bound.mean() + penalty / self.n_training
        return loss

    def losses_by_population(self, network: Any, generator: torch.Generator) -> dict[str, float]:
        """Return the mean loss of each population in a minibatch; NaN on failure."""
        cells = self.minibatch(network, generator)
        losses = {}
        for code in cells[1].unique():
            members = cells[1] == code
            try:
                negative_bound, _ = network(*(part[members] for part in cells), n_iterations=N_TRAINING_ITERATIONS)
            except torch.linalg.LinAlgError:
                negative_bound = torch.tensor(math.nan)
            losses[self.division.names[code]] = float(negative_bound.mean())
        return losses

    def validation(self, network: Any) -> Tensor:
        """Return the mean negative evidence lower bound of validation cells."""
        population, batch = self.division.code[self.training.n_obs :], batch_codes(self.held_out, self.batches)
        bounds = evidence_lower_bounds(network, self.held_out, population, batch, seed=derive(self.seed, "validation"))
        return -torch.from_numpy(bounds).mean()


def with_all_features(cells: ad.AnnData, adata: ad.AnnData, *, seed: int) -> ad.AnnData:
    """Read all features of the training cells that other genes and count noise are fitted to, from all cells."""
    if cells.n_vars == adata.n_vars:
        return cells
    names, most = cells.obs["sub_population"].unique(), CELLS_PER_POPULATION["train"]
    fitted = [sample_rows_of_population(cells.obs, name, "train", most, seed=seed) for name in names]
    cells = cells[np.sort(np.concatenate(fitted))]
    rows = adata.obs_names.get_indexer(cells.obs_names)
    return ad.AnnData(take_rows(adata.X, rows), cells.obs, adata.var)


def train_network(objective: Objective, name: str, *, device: str) -> tuple[CountAutoencoder, pd.DataFrame]:
    """Train the shared network, starting from principal components.

    Returns the network, rotated to principal axes, and its training history. ``name`` appears in messages.
    """
    training, settings, seed = objective.training, objective.settings, objective.seed
    start, population = sample_start(objective), objective.division.code[: training.n_obs]
    shape = AutoencoderShape.from_genes(
        training.var,
        n_types=len(objective.division.names),
        n_latent=settings.n_latent,
        n_batches=len(objective.batches),
        likelihood=settings.likelihood,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder"))
        network = CountAutoencoder(shape)
        network.initialise(to_tensor(training.X[start].toarray()), population[start])
    plan = TrainingPlan(
        settings.n_steps,
        settings.learning_rate,
        seed=derive(seed, "autoencoder steps"),
        device=device,
        name=name,
        n_warmup=50,
    )
    validation = objective.validation if objective.held_out.n_obs else None
    with threads() as run:
        loss, by_group = partial(objective.loss, run=run), objective.losses_by_population
        history = train(network, loss, plan, by_group=by_group, validation=validation)
    network = network.cpu().eval()
    cells = training[start], population[start], objective.batch[start]
    precisions = encode_blocks(network, *cells, lambda posterior: posterior.precision.sum(dim=0))
    network.rotate_to_principal_axes(sum(precisions) / len(start))
    return network, history


def sample_start(objective: Objective) -> np.ndarray:
    """Sample the training cells to initialise the network from."""
    training = objective.training
    return sample_rows(
        training.obs["cell_type"], np.arange(training.n_obs), "start", n_cells=N_START, seed=objective.seed
    )


def divide(network: CountAutoencoder, objective: Objective) -> Division:
    """Divide the current populations by clustering the latents of sampled cells."""
    cells, division, settings = objective.cells, objective.division, objective.settings
    if settings.sub_populations == "none":
        return division
    posterior = encode_cells(network, cells, division.code, batch_codes(cells, objective.batches))
    return division.refined(find_parts(*posterior, division.code, division.names, settings, seed=objective.seed))


def add_sub_populations(
    network: CountAutoencoder, objective: Objective, finer: Division, cell_types: tuple[str, ...]
) -> tuple[CountAutoencoder, SubPopulations, ad.AnnData]:
    """Make sub-populations of the parts of cell types, and add them to the network.

    The network was trained on the populations of ``objective.division``; ``finer`` divides the same cells, see
    :func:`divide`. Returns the network whose types are the cell types, then the sub-populations; the classifier of the
    sub-populations; and the sampled cells with ``obs["sub_population"]``.
    """
    cells, min_cells = objective.cells, objective.settings.min_cells_per_sub_population
    types, prefixes = population_codes(cells, cell_types), prefixes_of(cell_types)
    type_counts = count_members(types, objective.division, len(cell_types))
    type_network = network.mean_of_types(type_counts)
    sub_populations = SubPopulations.none(network.shape.n_latent)
    population, means = cells.obs["cell_type"].astype(str).to_numpy(dtype=object, copy=True), []
    divided = [code for code in range(len(cell_types)) if len(finer.code[types == code].unique()) > 1]
    for code in divided:
        members, name = (types == code).numpy(), cell_types[code]
        batch = batch_codes(cells, objective.batches)[members]
        mean, scale = encode_cells(type_network, cells[members], types[members], batch)
        classifier = classify(
            name,
            mean,
            finer.code[members].numpy(),
            prefix=prefixes[name],
            min_cells=min_cells,
            donor=cells.obs["donor"][members] if objective.min_donors > 1 else None,
            min_donors=objective.min_donors,
        )
        if len(classifier):
            population[members], prior_means = classifier.divide(name, mean, scale, type_network.prior_mean[code])
            sub_populations = concat([sub_populations, classifier])
            means.append(prior_means)
    cells = ad.AnnData(cells.X, cells.obs.assign(sub_population=population.astype(str)), cells.var)
    if not means:
        return type_network, sub_populations, cells
    network_types = (*cell_types, *sub_populations.names)
    assigned = codes_of(cells.obs["sub_population"], network_types)
    counts = count_members(assigned, objective.division, len(network_types))[len(cell_types) :]
    decoder = network.mean_of_types(torch.cat([type_counts, counts])).decoder
    prior_mean = torch.cat([type_network.prior_mean, *means])
    return CountAutoencoder.from_decoder(decoder, prior_mean), sub_populations, cells


def bounds_by_type(
    network: CountAutoencoder,
    network_types: tuple[str, ...],
    adapters: Adapters,
    cells: ad.AnnData,
    objective: Objective,
    cell_types: tuple[str, ...],
) -> pd.DataFrame:
    """Average the evidence lower bounds of cells by type, using type-specific decoders."""
    batches, seed = objective.batches, objective.seed
    population = cells.obs["sub_population"].astype(str)
    codes = codes_of(population, network_types)
    bounds = evidence_lower_bounds(network, cells, codes, batch_codes(cells, batches), seed=seed)
    for name in adapters:
        members = np.flatnonzero(population == name)
        bounds[members] = bounds_of_population(adapters.network(name, network), cells[members], batches, seed=seed)
    return mean_bound_by_type(bounds, cells, population_codes(cells, cell_types), cell_types)


def count_members(group: Tensor, division: Division, n_groups: int) -> Tensor:
    """Count the cells of each group in each population, groups x populations.

    ``group`` is the index of each cell's group.
    """
    n_populations = len(division.names)
    counts = (group * n_populations + division.code).bincount(minlength=n_groups * n_populations)
    return counts.reshape(n_groups, n_populations).float()


def encode_cells(
    network: CountAutoencoder, cells: ad.AnnData, cell_type: Tensor, batch: Tensor
) -> tuple[Tensor, Tensor]:
    """Return posterior means and standard deviations of cells, each cells x latent dimensions."""
    blocks = encode_blocks(network, cells, cell_type, batch, lambda posterior: (posterior.mean, posterior.scale))
    means, scales = zip(*blocks, strict=True)
    return torch.cat(means), torch.cat(scales)


def encode_blocks(
    network: CountAutoencoder,
    cells: ad.AnnData,
    cell_type: Tensor,
    batch: Tensor,
    summarise: Callable[[Posterior], Any],
) -> list[Any]:
    """Apply ``summarise`` to the posteriors of blocks of cells, in parallel."""

    @torch.no_grad()  # applies to the current thread only
    def encode(block: tuple[Tensor, ...]) -> Any:
        return summarise(network.encode(*block))

    with threads() as run:
        return list(run(encode, cell_blocks(cells, cell_type, batch)))
