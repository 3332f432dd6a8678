"""The fit of the autoencoder: its objective on minibatches of cells, and its training in rounds."""

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
from bdm.autoencoder.adapters import N_ITERATIONS, Adapters, fit_adapters, likelihood
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.cells import (
    batch_codes,
    batch_names,
    cell_blocks,
    codes_of,
    evidence_lower_bounds,
    mean_bound_by_type,
    sample_cells,
    sample_rows,
    type_codes,
    type_names,
)
from bdm.autoencoder.decoder import AutoencoderShape
from bdm.autoencoder.levels import protein_columns, training_levels
from bdm.autoencoder.network import CountAutoencoder, Posterior
from bdm.autoencoder.sub_populations import (
    SubPopulations,
    classify,
    find_parts,
    hint_at_donors,
    prefixes_of,
    warn_of_fewer,
)
from bdm.data.modalities import block_sizes, modalities_of, size_names
from bdm.data.prepare import fewest_donors, has_donors
from bdm.settings import AutoencoderSettings

N_TRAINING, N_HELD_OUT = 100_000, 10_000  # cells read of larger data: so few parameters learn no less from them
N_START = 10_000  # cells that the network starts from


@dataclass(frozen=True)
class Division:
    """Populations that the sampled cells are divided into."""

    names: tuple[str, ...]
    code: Tensor  # population of each cell, training cells before held-out cells

    def into(self, part: np.ndarray) -> "Division":
        """Divide populations further, by the number of the part that each cell belongs to."""
        names: list[str] = []
        code, prefixes = self.code.clone(), prefixes_of(self.names)
        for number, name in enumerate(self.names):
            of_cells = torch.from_numpy(part[(self.code == number).numpy()])
            n_parts = int(of_cells.max()) + 1 if len(of_cells) else 1
            code[self.code == number] = len(names) + of_cells
            names += [name] if n_parts == 1 else [f"{prefixes[name]}{n}" for n in range(1, n_parts + 1)]
        return Division(tuple(names), code)


@dataclass(frozen=True)
class Objective:
    """What the training of an autoencoder minimises, in minibatches of the sampled training cells."""

    training: ad.AnnData  # a sample, as held_out
    held_out: ad.AnnData
    n_training: int  # of all training cells
    division: Division  # of the sampled cells, into cell types or finer populations
    batches: tuple[str, ...]
    settings: AutoencoderSettings
    seed: int
    min_donors: int = 1  # fewest effective donors of a sub-population

    @classmethod
    def from_cells(cls, adata: ad.AnnData, settings: AutoencoderSettings, *, seed: int) -> "Objective":
        """Sample training and validation cells of prepared cells, and divide them by cell type."""
        training = sample_cells(adata, "train", n_cells=N_TRAINING, seed=seed)
        held_out = sample_cells(adata, "validation", n_cells=N_HELD_OUT, seed=seed)
        n_training, cell_types = int((adata.obs["split"] == "train").sum()), type_names(adata)
        types = torch.cat([type_codes(cells, cell_types) for cells in (training, held_out)])
        division, batches, min_donors = Division(cell_types, types), batch_names(adata), fewest_donors(adata)
        return cls(training, held_out, n_training, division, batches, settings, seed, min_donors)

    @cached_property
    def cells(self) -> ad.AnnData:
        """Training cells and held-out cells."""
        return ad.concat([self.training, self.held_out]) if self.held_out.n_obs else self.training

    @property
    def need(self) -> str:
        """What a sub-population needs, in words."""
        donors = f" of {self.min_donors} effective donors" if self.min_donors > 1 else ""
        return f"{self.settings.min_cells_per_sub_population} cells{donors} to fit"

    @cached_property
    def batch_size(self) -> int:
        """Cells of a minibatch: a quarter with peaks, whose steps take longest, as held-out cells are as likely."""
        has_peaks = len(size_names(self.training.var)) > 1
        return max(self.settings.batch_size // 4, 1) if has_peaks else self.settings.batch_size

    @cached_property
    def codes(self) -> Tensor:
        """Index of each training cell's batch."""
        return batch_codes(self.training, self.batches)

    def minibatch(self, network: Any, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Sample counts, types and batches of training cells, and noise for their latents."""
        cells = torch.randint(self.training.n_obs, (self.batch_size,), generator=generator)
        device = next(network.parameters()).device
        counts = to_tensor(self.training.X[cells.numpy()].toarray()).to(device)
        noise = torch.randn(len(cells), self.settings.n_latent, generator=generator).to(device)
        return counts, self.division.code[cells].to(device), self.codes[cells].to(device), noise

    def loss(self, network: Any, generator: torch.Generator, *, run: Map) -> Tensor:
        """Negative evidence lower bound by cell, with the penalties; updates the prior means."""
        cells = self.minibatch(network, generator)
        value, latent = network(*cells, n_iterations=N_ITERATIONS, run=run)
        network.update_prior_means(cells[1], latent)
        loss: Tensor = (
            value.mean() + network.decoder.penalty(loading_scale=self.settings.loading_scale) / self.n_training
        )
        return loss

    def by_population(self, network: Any, generator: torch.Generator) -> dict[str, float]:
        """Mean negative evidence lower bound of each population in a minibatch; nan where it cannot be computed."""
        cells = self.minibatch(network, generator)
        losses = {}
        for code in cells[1].unique():
            chosen = cells[1] == code
            try:
                value, _ = network(*(part[chosen] for part in cells), n_iterations=N_ITERATIONS)
            except torch.linalg.LinAlgError:
                value = torch.tensor(math.nan)
            losses[self.division.names[code]] = float(value.mean())
        return losses

    def validation(self, network: Any) -> Tensor:
        """Mean negative evidence lower bound of the validation cells."""
        of_cells = self.division.code[self.training.n_obs :], batch_codes(self.held_out, self.batches)
        bounds = evidence_lower_bounds(network, self.held_out, *of_cells, seed=derive(self.seed, "validation"))
        return -torch.from_numpy(bounds).mean()


@using_threads()
def fit_autoencoder(
    adata: ad.AnnData,
    settings: AutoencoderSettings,
    *,
    seed: int,
    device: str = "auto",
    provenance: dict[str, Any],
) -> tuple[GeneAutoencoder, pd.DataFrame]:
    """Train the autoencoder on the training cells, stopped where validation cells are most likely.

    Every step encodes cells by their posterior under the present parameters, and improves the parameters for them:
    expectation maximisation in minibatches. Where sub-populations are found in the latents, the network is trained
    again on these in place of types, as one prior for all cells of a coarse type blurs what is in it; then they are
    sought again. At last, each population gets a type-specific decoder if its validation cells gain. Returns also the
    losses by ``round`` (2 with sub-populations) and ``step``.
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
    network, found, cells = with_sub_populations(network, objective, finer, cell_types)
    if isinstance(settings.sub_populations, int):
        warn_of_fewer(found, cell_types, settings.sub_populations, each_needs=objective.need)
    if has_donors(adata):
        hint_at_donors(cells.obs, found)
    none = Adapters.from_shared(network, (), ())
    rows = (*cell_types, *found.names)
    adapters = none if settings.shared_decoder else fit_adapters(network, rows, cells, seed=seed)
    is_scored = (cells.obs["split"] == "validation").to_numpy()
    scored = cells[is_scored] if is_scored.any() else cells[start_of(objective)]
    table = _bounds_by_type(network, rows, adapters, scored, objective, cell_types)
    levels = training_levels(cells, protein_columns(adata.var), seed=seed)
    autoencoder = GeneAutoencoder(
        network, adata.var, cell_types, batches, provenance, table, rows, found, adapters, levels
    )
    return autoencoder, history


def start_of(objective: Objective) -> np.ndarray:
    """Choose the training cells that the network starts from."""
    training = objective.training
    return sample_rows(
        training.obs["cell_type"], np.arange(training.n_obs), "start", n_cells=N_START, seed=objective.seed
    )


def train_network(objective: Objective, what: str, *, device: str) -> tuple[CountAutoencoder, pd.DataFrame]:
    """Train the network of cells that are divided into populations, from principal components on.

    The network is returned in its principal axes, with the history of its training.
    """
    training, settings, seed = objective.training, objective.settings, objective.seed
    start, codes = start_of(objective), objective.division.code[: training.n_obs]
    shape = AutoencoderShape(
        n_genes=training.n_vars,
        n_types=len(objective.division.names),
        n_latent=settings.n_latent,
        n_batches=len(objective.batches),
        likelihood=settings.likelihood,
        blocks=block_sizes(training.var),
        normalised=tuple(modality.normalised for modality in modalities_of(training.var)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder"))
        network = CountAutoencoder(shape)
        network.initialise(to_tensor(training.X[start].toarray()), codes[start])
    plan = TrainingPlan(
        settings.n_steps,
        settings.learning_rate,
        seed=derive(seed, "autoencoder steps"),
        device=device,
        what=what,
        n_warmup=50,
    )
    validation = objective.validation if objective.held_out.n_obs else None
    with threads() as run:
        loss, by_group = partial(objective.loss, run=run), objective.by_population
        history = train(network, loss, plan, by_group=by_group, validation=validation)
    network = network.cpu().eval()
    of_cells = training[start], codes[start], objective.codes[start]
    precision = encode_blocks(network, *of_cells, lambda posterior: posterior.precision.sum(dim=0))
    network.rotate_to_principal_axes(sum(precision) / len(start))
    return network, history


def divide(network: CountAutoencoder, objective: Objective) -> Division:
    """Find the parts of each population in the latents of the sampled cells."""
    cells, division, settings = objective.cells, objective.division, objective.settings
    if settings.sub_populations == "none":
        return division
    posterior = encode_cells(network, cells, division.code, batch_codes(cells, objective.batches))
    return division.into(find_parts(*posterior, division.code, division.names, settings, seed=objective.seed))


def with_sub_populations(
    network: CountAutoencoder, objective: Objective, finer: Division, cell_types: tuple[str, ...]
) -> tuple[CountAutoencoder, SubPopulations, ad.AnnData]:
    """Make the parts of each cell type its sub-populations, and types of the network.

    Returns the network of all cell types, which sub-populations follow; the sub-populations; and the sampled cells with
    ``obs["sub_population"]``.
    """
    cells, fewest = objective.cells, objective.settings.min_cells_per_sub_population
    types, prefixes = type_codes(cells, cell_types), prefixes_of(cell_types)
    of_types = count_members(types, objective.division, len(cell_types))
    labels = network.mean_of_types(of_types)
    found = SubPopulations.none(network.shape.n_latent)
    population, means = cells.obs["cell_type"].astype(str).to_numpy(dtype=object, copy=True), []
    divided = [code for code in range(len(cell_types)) if len(finer.code[types == code].unique()) > 1]
    for code in divided:
        of_type, name = (types == code).numpy(), cell_types[code]
        batches = batch_codes(cells, objective.batches)[of_type]
        mean, scale = encode_cells(labels, cells[of_type], types[of_type], batches)
        more = classify(
            name,
            mean,
            finer.code[of_type].numpy(),
            prefix=prefixes[name],
            smallest=fewest,
            donor=cells.obs["donor"][of_type] if objective.min_donors > 1 else None,
            min_donors=objective.min_donors,
        )
        if len(more):
            population[of_type], means_of_type = more.divide(name, mean, scale, labels.prior_mean[code])
            found = concat([found, more])
            means.append(means_of_type)
    cells = ad.AnnData(cells.X, cells.obs.assign(sub_population=population.astype(str)), cells.var)
    if not means:
        return labels, found, cells
    rows = (*cell_types, *found.names)
    codes = codes_of(cells.obs["sub_population"], rows)
    of_parts = count_members(codes, objective.division, len(rows))[len(cell_types) :]
    decoder = network.mean_of_types(torch.cat([of_types, of_parts])).decoder
    return CountAutoencoder.from_decoder(decoder, torch.cat([labels.prior_mean, *means])), found, cells


def count_members(group: Tensor, division: Division, n_groups: int) -> Tensor:
    """Count the cells of each group, given by its index, in each population; groups x populations."""
    n_populations = len(division.names)
    counts = (group * n_populations + division.code).bincount(minlength=n_groups * n_populations)
    return counts.reshape(n_groups, n_populations).float()


def encode_cells(network: CountAutoencoder, cells: ad.AnnData, types: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the posteriors of cells in memory, each cells x latent dimensions."""
    found = encode_blocks(network, cells, types, codes, lambda posterior: (posterior.mean, posterior.scale))
    means, scales = zip(*found, strict=True)
    return torch.cat(means), torch.cat(scales)


def encode_blocks(
    network: CountAutoencoder, cells: ad.AnnData, types: Tensor, codes: Tensor, take: Callable[[Posterior], Any]
) -> list[Any]:
    """Encode cells in blocks, in parallel, and take what is needed of the posteriors of each block."""

    @torch.no_grad()  # holds for the thread that enters it
    def encoded(block: tuple[Tensor, ...]) -> Any:
        return take(network.encode(*block))

    with threads() as run:
        return list(run(encoded, cell_blocks(cells, types, codes)))


def _bounds_by_type(
    network: CountAutoencoder,
    rows: tuple[str, ...],
    adapters: Adapters,
    cells: ad.AnnData,
    objective: Objective,
    cell_types: tuple[str, ...],
) -> pd.DataFrame:
    """Mean evidence lower bound of cells by type, each with the decoder of its population."""
    batches, seed = objective.batches, objective.seed
    population = cells.obs["sub_population"].astype(str)
    bound = evidence_lower_bounds(network, cells, codes_of(population, rows), batch_codes(cells, batches), seed=seed)
    for name in adapters:
        of_population = np.flatnonzero(population == name)
        bound[of_population] = likelihood(adapters.network(name, network), cells[of_population], batches, seed=seed)
    return mean_bound_by_type(bound, cells, type_codes(cells, cell_types), cell_types)
