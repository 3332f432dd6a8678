"""Type-specific decoders: what populations have in place of the shared decoder, their fit, and which are kept."""

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
from bdm.autoencoder.cells import (
    batch_codes,
    batch_names,
    evidence_lower_bounds,
    sample_rows_of_population,
)
from bdm.autoencoder.network import CountAutoencoder, Posterior, laplace_posterior
from bdm.autoencoder.softmax import AdapterSettings, PaddedCells, Parameters
from bdm.data.matrix import take_cells

logger = logging.getLogger(__name__)

MAX_CELLS = {"train": 1000, "validation": 300}  # cells of a population that are read; more make no better decoder
READ_TOGETHER = 100_000  # cells that are read in one go through the file
FITTED_TOGETHER = 256  # training cells, of one population or several
N_ITERATIONS = 3  # of Newton's method, for posteriors in training; more do not improve the model

# A population of known cells is expressed well already, and it takes little to overfit it
KNOWN_POPULATIONS = AdapterSettings(loading_scale=0.05, expression_scale=0.5, noise_scale=0.3)


@dataclass(frozen=True, eq=False)
class Adapters:
    """Type-specific decoders, all in the latent space of the shared one, whose batches they share."""

    names: tuple[str, ...]  # of populations, and of cell types that are divided into several
    parameters: Parameters  # names x ..., see Decoder.stacked
    prior_mean: Tensor  # names x latent dimensions

    @classmethod
    def from_shared(cls, network: CountAutoencoder, names: Sequence[str], codes: Sequence[int]) -> Adapters:
        """Copy the shared decoder for populations, by their indices in the network."""
        rows = torch.tensor(list(codes), dtype=torch.long)
        return cls(tuple(names), network.decoder.stacked(rows), network.prior_mean[rows])

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def subset(self, names: Sequence[str]) -> Adapters:
        """Take the adapters of some populations, in their order."""
        return take(self, [self.names.index(name) for name in names])

    def updated(self, *others: Adapters) -> Adapters:
        """Add other adapters, which take the place of those of the same names."""
        return updated([self, *others], by="names")

    def network(self, name: str, shared: CountAutoencoder) -> CountAutoencoder:
        """Autoencoder of one population, in which it has the index 0."""
        row = self.names.index(name)
        decoder = shared.decoder.of_population({key: value[row] for key, value in self.parameters.items()})
        return CountAutoencoder.from_decoder(decoder, self.prior_mean[row, None])


def fit_adapters(network: CountAutoencoder, populations: tuple[str, ...], adata: ad.AnnData, *, seed: int) -> Adapters:
    """Fit a type-specific decoder to each population, and keep those by which validation cells are more likely.

    A few latent dimensions for all types cannot express all that sets apart a small one. Populations without validation
    cells keep the shared decoder, as do those whose fit diverges. ``populations`` are in the network's order, ``adata``
    has ``obs["sub_population"]``.
    """
    batches = batch_names(adata)
    rows = rows_by_population(adata.obs, populations, seed=seed)
    portions = list_portions(rows)

    def kept(portion: list[PopulationCells]) -> Adapters:
        return fit_portion(network, populations, portion, seed=seed)

    with threads() as run:
        found = run(kept, read_portions(adata, portions, rows, batches))
        shown = progress(found, total=len(portions), doing="type-specific decoders", unit="portion")
        adapters = Adapters.from_shared(network, (), ()).updated(*shown)
    return adapters.subset([name for name in populations if name in adapters])


def fit_portion(
    network: CountAutoencoder, populations: tuple[str, ...], portion: list[PopulationCells], *, seed: int
) -> Adapters:
    """Fit type-specific decoders of a few of the network's ``populations``, and keep those that gain."""
    names = [cells.population for cells in portion]
    start = Adapters.from_shared(network, names, [populations.index(name) for name in names])
    try:
        return fit_gaining(start, network, portion, KNOWN_POPULATIONS, least_gain=0, seed=seed)
    except TrainingError as error:
        if len(portion) > 1:
            return start.subset(()).updated(*(fit_portion(network, populations, [one], seed=seed) for one in portion))
        logger.warning("%s keeps the shared decoder: %s", names[0], error)
        return start.subset(())


@dataclass(frozen=True)
class PopulationCells:
    """Training cells of one population, and the held-out cells that decide whether its decoder is kept."""

    population: str
    counts: Tensor  # of training cells, cells x genes
    codes: Tensor  # of the batches of training cells
    held_out: ad.AnnData  # validation cells, if there are any
    batches: tuple[str, ...]  # of the network

    @classmethod
    def from_cells(cls, population: str, cells: ad.AnnData, batches: tuple[str, ...]) -> PopulationCells:
        """Take them from prepared cells with ``obs['split']``; ``batches`` are the batches of the network."""
        split = cells.obs["split"].to_numpy()
        training, held_out = (cells[split == name] for name in ("train", "validation"))
        return cls(population, to_tensor(training.X.toarray()), batch_codes(training, batches), held_out, batches)


def fit_gaining(
    start: Adapters,
    network: CountAutoencoder,
    cells: Sequence[PopulationCells],
    settings: AdapterSettings,
    *,
    least_gain: float,
    seed: int,
) -> Adapters:
    """Fit adapters of several populations together, and keep those by which held-out cells are more likely.

    ``least_gain`` is the mean gain in log likelihood, in standard errors; populations without such cells are kept.
    Raises TrainingError if the fit diverges.
    """
    try:
        fitted = fit_together(start, network, cells, settings, seed=seed)
        gains = [gain_of(fitted, start, network, one, seed=seed) for one in cells]
    except torch.linalg.LinAlgError as error:
        names = ", ".join(repr(one.population) for one in cells)
        raise TrainingError(f"Training of the decoder of {names} diverged; look at its cells.") from error
    return fitted.subset([name for name, gain in zip(fitted, gains, strict=True) if gain >= least_gain])


@torch.no_grad()
def fit_together(
    start: Adapters,
    network: CountAutoencoder,
    cells: Sequence[PopulationCells],
    settings: AdapterSettings,
    *,
    seed: int,
) -> Adapters:
    """Fit the adapters of several populations by expectation maximisation, in one batch over populations.

    In each round, cells are encoded under the present adapters; decoders then take a few steps, each for a new draw of
    the latents, and the mean of the last steps is kept. Dispersions take one step.
    """
    padded = network.decoder.padded_cells([one.counts for one in cells], [one.codes for one in cells])
    generators = [torch_generator(seed, "adapters", one.population) for one in cells]
    parameters, prior_mean = start.parameters, start.prior_mean
    for _ in range(settings.n_rounds):
        posterior, visited = encode_padded(padded, parameters, prior_mean), []
        for _ in range(settings.n_steps):
            latent = sample_padded(padded, posterior, generators)
            changed = padded.improve_means(parameters, start.parameters, prior_mean, latent, settings)
            parameters = parameters | changed
            visited.append(changed)
        last = visited[len(visited) // 2 :]
        means: dict[str, Any] = {name: sum(at[name] for at in last) / len(last) for name in last[0]}
        parameters = parameters | means
        latent = sample_padded(padded, posterior, generators)
        parameters = parameters | padded.improve_noise(parameters, start.parameters, latent, settings)
    return replace(start, parameters=parameters)


def encode_padded(padded: PaddedCells, parameters: Parameters, prior_mean: Tensor) -> Posterior:
    """Compute the posterior of each cell, one population after the other; what padding gets is not used."""
    evidence = padded.evidence(parameters)
    means = prior_mean.repeat_interleave(padded.present.shape[1], dim=0).chunk(len(evidence))
    parts = zip(evidence, means, strict=True)
    found: list[Posterior] = [laplace_posterior([part], mean, n_iterations=N_ITERATIONS) for part, mean in parts]
    return concat(found)


def sample_padded(padded: PaddedCells, posterior: Posterior, generators: Sequence[torch.Generator]) -> Tensor:
    """Sample latents, populations x cells x latent dimensions."""
    n_cells, n_latent = padded.present.sum(dim=(1, 2)).long().tolist(), posterior.mean.shape[1]
    noise = [torch.randn(n, n_latent, generator=own) for n, own in zip(n_cells, generators, strict=True)]
    together = pad_sequence(noise, batch_first=True)
    return posterior.sample(together.flatten(0, 1)).view(together.shape)


def gain_of(
    fitted: Adapters, start: Adapters, network: CountAutoencoder, cells: PopulationCells, *, seed: int
) -> float:
    """Mean gain in the log likelihood of held-out cells, in its standard errors; infinite without cells."""
    if not cells.held_out.n_obs:
        return float("inf")
    networks = (adapters.network(cells.population, network) for adapters in (start, fitted))
    before, after = (likelihood(network, cells.held_out, cells.batches, seed=seed) for network in networks)
    gain = after - before
    return float(gain.mean() * np.sqrt(len(gain)) / max(gain.std(), 1e-9))


def likelihood(network: CountAutoencoder, cells: ad.AnnData, batches: tuple[str, ...], *, seed: int) -> np.ndarray:
    """Bound on the log likelihood of each cell of a population, by an autoencoder of that alone."""
    codes = torch.zeros(cells.n_obs, dtype=torch.long)
    return evidence_lower_bounds(network, cells, codes, batch_codes(cells, batches), seed=seed)


def rows_by_population(
    obs: pd.DataFrame, populations: tuple[str, ...], *, seed: int
) -> dict[str, dict[str, np.ndarray]]:
    """Find the cells that are read, by population and split, of all populations that have validation cells."""
    rows = {
        population: {
            split: sample_rows_of_population(obs, population, split, most, seed=seed)
            for split, most in MAX_CELLS.items()
        }
        for population in populations
    }
    return {population: of_splits for population, of_splits in rows.items() if len(of_splits["validation"])}


def list_portions(rows: dict[str, dict[str, np.ndarray]]) -> list[list[str]]:
    """Portions of populations that are fitted together: of like numbers of cells, so that few are added as padding."""
    n_cells = {population: len(of_splits["train"]) for population, of_splits in rows.items()}
    portions: list[list[str]] = []
    for population in sorted(n_cells, key=lambda name: n_cells[name]):
        if portions and n_cells[population] * (len(portions[-1]) + 1) <= FITTED_TOGETHER:
            portions[-1].append(population)
        else:
            portions.append([population])
    return portions


def read_portions(
    adata: ad.AnnData, portions: list[list[str]], rows: dict[str, dict[str, np.ndarray]], batches: tuple[str, ...]
) -> Iterator[list[PopulationCells]]:
    """Yield the cells of portions of populations, of which several are read together."""
    rows_of = {name: np.concatenate([*of_splits.values()]) for name, of_splits in rows.items()}
    n_cells = np.array([sum(len(rows_of[name]) for name in portion) for portion in portions])
    group = (n_cells.cumsum() - n_cells) // READ_TOGETHER
    for together in np.unique(group):
        members = [portions[number] for number in np.flatnonzero(group == together)]
        names = [name for portion in members for name in portion]
        cells = take_cells(adata, np.concatenate([rows_of[name] for name in names]))
        ends = dict(zip(names, np.cumsum([len(rows_of[name]) for name in names]), strict=True))
        for portion in members:
            parts = {name: cells[ends[name] - len(rows_of[name]) : ends[name]] for name in portion}
            yield [PopulationCells.from_cells(name, part, batches) for name, part in parts.items()]
