"""Type-specific decoders (adapters): fit, selection on validation cells, storage."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bdm._core.errors import TrainingError
from bdm._core.parallel import threads
from bdm._core.progress import progress
from bdm._core.seeds import to_tensor, torch_generator
from bdm._core.store import concat, take, updated
from bdm.autoencoder.inputs import (
    batch_codes,
    batch_names,
    evidence_lower_bounds,
    sample_rows_of_population,
)
from bdm.autoencoder.network import CountAutoencoder, Posterior, laplace_posterior
from bdm.autoencoder.softmax import AdapterSettings, PaddedCells, Parameters
from bdm.data.matrix import take_cells

logger = logging.getLogger(__name__)

CELLS_PER_POPULATION = {
    "train": 1000,
    "validation": 300,
}  # cells to read per population; more do not improve the decoder
READ_TOGETHER = 100_000  # cells to read in one pass through the file
FITTED_TOGETHER = 256  # maximum training cells, padding included, when several populations are fitted together
N_TRAINING_ITERATIONS = 3  # Newton iterations for posteriors in training; more do not improve the model

# The shared decoder already fits the populations it was trained on, so tight priors prevent overfitting
KNOWN_POPULATIONS = AdapterSettings(loading_scale=0.05, expression_scale=0.5, noise_scale=0.3)


@dataclass(frozen=True, eq=False)
class Adapters:
    """Type-specific decoders with the latent space and batches of the shared decoder."""

    names: tuple[str, ...]  # populations; also added cell types that have several populations
    parameters: Parameters  # first axis: names; see Decoder.stacked
    prior_mean: Tensor  # names x latent dimensions

    @classmethod
    def from_shared(cls, network: CountAutoencoder, names: Sequence[str], codes: Sequence[int]) -> Adapters:
        """Copy the shared decoder for each population, given their indices (``codes``) in the network."""
        rows = torch.tensor(list(codes), dtype=torch.long)
        return cls(tuple(names), network.decoder.stacked(rows), network.prior_mean[rows])

    @classmethod
    def none(cls, network: CountAutoencoder) -> Adapters:
        """Return no decoders."""
        return cls.from_shared(network, (), ())

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def subset(self, names: Sequence[str]) -> Adapters:
        """Select adapters by name, in the order of ``names``."""
        return take(self, [self.names.index(name) for name in names])

    def updated(self, *added: Adapters) -> Adapters:
        """Add adapters; they replace adapters with the same name."""
        return updated([self, *added], by="names")

    def network(self, name: str, shared: CountAutoencoder) -> CountAutoencoder:
        """Return the autoencoder of one population, which has index 0 in it."""
        row = self.names.index(name)
        decoder = shared.decoder.for_population({key: value[row] for key, value in self.parameters.items()})
        return CountAutoencoder.from_decoder(decoder, self.prior_mean[row, None])


def fit_adapters(network: CountAutoencoder, populations: tuple[str, ...], adata: ad.AnnData, *, seed: int) -> Adapters:
    """Fit type-specific decoders, and keep those that make validation cells more likely.

    The shared latent space is too small to describe a rare population. Populations keep the shared decoder if they have
    no validation cells or their fit diverges. ``populations`` are in the order of the network; ``adata`` has prepared
    cells with ``obs["sub_population"]``.
    """
    batches = batch_names(adata)
    rows = sample_rows_to_fit(adata.obs, populations, seed=seed)
    portions = list_portions(rows)

    def fit(portion: list[PopulationCells]) -> Adapters:
        return fit_portion(network, populations, portion, seed=seed)

    with threads() as run:
        fitted = run(fit, read_portions(adata, portions, rows, batches))
        monitored = progress(fitted, total=len(portions), doing="type-specific decoders", unit="portion")
        adapters = Adapters.none(network).updated(*monitored)
    return adapters.subset([name for name in populations if name in adapters])


def fit_portion(
    network: CountAutoencoder, populations: tuple[str, ...], portion: list[PopulationCells], *, seed: int
) -> Adapters:
    """Fit the decoders of a few populations together; one by one if that diverges."""
    names = [population.name for population in portion]
    start = Adapters.from_shared(network, names, [populations.index(name) for name in names])
    try:
        return fit_gaining(start, network, portion, KNOWN_POPULATIONS, min_gain=0, seed=seed)
    except TrainingError as error:
        if len(portion) > 1:
            parts = (fit_portion(network, populations, [population], seed=seed) for population in portion)
            return start.subset(()).updated(*parts)
        logger.warning("%s keeps the shared decoder: %s", names[0], error)
        return start.subset(())


@dataclass(frozen=True)
class PopulationCells:
    """Training and validation cells of one population."""

    name: str  # of the population
    counts: Tensor  # training cells x genes
    batch: Tensor  # index of each training cell's batch
    held_out: ad.AnnData  # validation cells; may be empty
    batches: tuple[str, ...]  # batches of the network

    @classmethod
    def from_cells(cls, name: str, cells: ad.AnnData, batches: tuple[str, ...]) -> PopulationCells:
        """Split prepared cells by ``obs["split"]``; ``batches`` are the batches of the network."""
        split = cells.obs["split"].to_numpy()
        training, held_out = (cells[split == part] for part in ("train", "validation"))
        return cls(name, to_tensor(training.X.toarray()), batch_codes(training, batches), held_out, batches)


def fit_gaining(
    start: Adapters,
    network: CountAutoencoder,
    cells: Sequence[PopulationCells],
    settings: AdapterSettings,
    *,
    min_gain: float,
    seed: int,
) -> Adapters:
    """Fit adapters of several populations together, from one per item of ``cells``, and keep those that gain.

    ``min_gain`` is the required gain in the mean evidence lower bound of validation cells, in standard errors.
    Populations without validation cells are kept. Raises a TrainingError if the fit diverges.
    """
    try:
        fitted = fit_together(start, network, cells, settings, seed=seed)
        gains = [standardised_gain(fitted, start, network, population, seed=seed) for population in cells]
    except torch.linalg.LinAlgError as error:
        names = ", ".join(repr(population.name) for population in cells)
        raise TrainingError(f"Training of the decoder of {names} diverged; inspect its cells.") from error
    return fitted.subset([name for name, gain in zip(fitted, gains, strict=True) if gain >= min_gain])


@torch.no_grad()
def fit_together(
    start: Adapters,
    network: CountAutoencoder,
    cells: Sequence[PopulationCells],
    settings: AdapterSettings,
    *,
    seed: int,
) -> Adapters:
    """Fit adapters by expectation maximisation, batched over populations.

    Each round encodes the cells with the current adapters. Loadings and offsets then take a few Newton steps, each with
    newly sampled latents, and the second half of the steps is averaged. The noise takes one step.
    """
    counts, batches = [population.counts for population in cells], [population.batch for population in cells]
    padded = network.decoder.padded_cells(counts, batches)
    generators = [torch_generator(seed, "adapters", population.name) for population in cells]
    parameters, prior_mean = start.parameters, start.prior_mean
    for _ in range(settings.n_rounds):
        posterior, steps = encode_padded(padded, parameters, prior_mean), []
        for _ in range(settings.n_steps):
            latent = sample_padded(padded, posterior, generators)
            improved = padded.improve_means(parameters, start.parameters, prior_mean, latent, settings)
            parameters = parameters | improved
            steps.append(improved)
        second_half = steps[len(steps) // 2 :]
        means: dict[str, Any] = {
            name: sum(step[name] for step in second_half) / len(second_half) for name in second_half[0]
        }
        parameters = parameters | means
        latent = sample_padded(padded, posterior, generators)
        parameters = parameters | padded.improve_noise(parameters, start.parameters, latent, settings)
    return replace(start, parameters=parameters)


def encode_padded(padded: PaddedCells, parameters: Parameters, prior_mean: Tensor) -> Posterior:
    """Compute the posteriors of padded cells, (populations x cells) in one axis."""
    evidence = padded.evidence(parameters)
    means = prior_mean.repeat_interleave(padded.present.shape[1], dim=0).chunk(len(evidence))
    parts = zip(evidence, means, strict=True)
    posteriors: list[Posterior] = [
        laplace_posterior([part], mean, n_iterations=N_TRAINING_ITERATIONS) for part, mean in parts
    ]
    return concat(posteriors)


def sample_padded(padded: PaddedCells, posterior: Posterior, generators: Sequence[torch.Generator]) -> Tensor:
    """Sample latents with one generator per population; populations x cells x latent dimensions."""
    n_cells, n_latent = padded.present.sum(dim=(1, 2)).long().tolist(), posterior.mean.shape[1]
    noise = [torch.randn(n, n_latent, generator=generator) for n, generator in zip(n_cells, generators, strict=True)]
    together = pad_sequence(noise, batch_first=True)
    return posterior.sample(together.flatten(0, 1)).view(together.shape)


def standardised_gain(
    fitted: Adapters, start: Adapters, network: CountAutoencoder, cells: PopulationCells, *, seed: int
) -> float:
    """Return the mean gain of validation cells in standard errors; infinite without cells."""
    if not cells.held_out.n_obs:
        return float("inf")
    networks = (adapters.network(cells.name, network) for adapters in (start, fitted))
    before, after = (bounds_of_population(network, cells.held_out, cells.batches, seed=seed) for network in networks)
    gain = after - before
    return float(gain.mean() * np.sqrt(len(gain)) / max(gain.std(), 1e-9))


def bounds_of_population(
    network: CountAutoencoder, cells: ad.AnnData, batches: tuple[str, ...], *, seed: int
) -> np.ndarray:
    """Return the evidence lower bound of each cell under the autoencoder of one population."""
    cell_type = torch.zeros(cells.n_obs, dtype=torch.long)
    return evidence_lower_bounds(network, cells, cell_type, batch_codes(cells, batches), seed=seed)


RowsBySplit = dict[str, np.ndarray]  # indices of cells by split (training, validation)


def sample_rows_to_fit(obs: pd.DataFrame, populations: tuple[str, ...], *, seed: int) -> dict[str, RowsBySplit]:
    """Sample the cells to read of each population that has validation cells."""
    rows = {
        population: {
            split: sample_rows_of_population(obs, population, split, n_cells, seed=seed)
            for split, n_cells in CELLS_PER_POPULATION.items()
        }
        for population in populations
    }
    return {population: by_split for population, by_split in rows.items() if len(by_split["validation"])}


def list_portions(rows: dict[str, RowsBySplit]) -> list[list[str]]:
    """Group populations of similar size, so that fitting them together needs little padding."""
    n_cells = {population: len(by_split["train"]) for population, by_split in rows.items()}
    portions: list[list[str]] = []
    for population in sorted(n_cells, key=lambda name: n_cells[name]):
        if portions and n_cells[population] * (len(portions[-1]) + 1) <= FITTED_TOGETHER:
            portions[-1].append(population)
        else:
            portions.append([population])
    return portions


def read_portions(
    adata: ad.AnnData, portions: list[list[str]], rows: dict[str, RowsBySplit], batches: tuple[str, ...]
) -> Iterator[list[PopulationCells]]:
    """Yield the cells of each portion; one pass through the file reads several portions."""
    cells_to_read = {name: np.concatenate([*by_split.values()]) for name, by_split in rows.items()}
    n_cells = np.array([sum(len(cells_to_read[name]) for name in portion) for portion in portions])
    reading = (n_cells.cumsum() - n_cells) // READ_TOGETHER  # number of the pass that reads each portion
    for number in np.unique(reading):
        members = [portions[index] for index in np.flatnonzero(reading == number)]
        names = [name for portion in members for name in portion]
        cells = take_cells(adata, np.concatenate([cells_to_read[name] for name in names]))
        ends = dict(zip(names, np.cumsum([len(cells_to_read[name]) for name in names]), strict=True))
        for portion in members:
            parts = {name: cells[ends[name] - len(cells_to_read[name]) : ends[name]] for name in portion}
            yield [PopulationCells.from_cells(name, part, batches) for name, part in parts.items()]
