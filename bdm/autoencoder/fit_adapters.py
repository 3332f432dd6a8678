"""The fit of type-specific decoders, of many populations at once, and which of them are kept."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from bdm._core.parallel import threads
from bdm._core.progress import progress
from bdm._core.seeds import to_tensor, torch_generator
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.cells import (
    batch_codes,
    batch_names,
    evidence_lower_bounds,
    sample_rows_of_population,
)
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.observation import NegativeBinomial
from bdm.autoencoder.posterior import Posterior, laplace_posterior
from bdm.data.matrix import take_cells
from bdm.errors import TrainingError

logger = logging.getLogger(__name__)

MAX_CELLS = {"train": 1000, "validation": 300}  # cells of a population that are read; more make no better decoder
READ_TOGETHER = 100_000  # cells that are read in one go through the file
FITTED_TOGETHER = 256  # training cells, of one population or several
N_ITERATIONS = 3  # of Newton's method, for posteriors in training; more do not improve the model
CURVATURE = 1.5  # times the curvature of a mean cell: cells differ, and steps that are too long diverge
MAX_STEP = 3  # of a gene's loadings, in standard deviations of their prior
MAX_LOG_STEP = 0.5  # of log expression and log dispersion


@dataclass(frozen=True)
class AdapterSettings:
    """How far type-specific decoders move from those that they start from, and in how many steps.

    Attributes
    ----------
    loading_scale, expression_scale, dispersion_scale
        Standard deviations of the normal prior of each change: in a loading, in a gene's log expression at the
        population's mean latent, and in its log dispersion.
    n_rounds
        Times that cells are encoded anew.
    n_steps
        Steps in each round.
    """

    loading_scale: float = 0.1
    expression_scale: float = 1.0
    dispersion_scale: float = 3.5
    n_rounds: int = 2
    n_steps: int = 5


# A population of known cells is expressed well already, and it takes little to overfit it
KNOWN_POPULATIONS = AdapterSettings(loading_scale=0.05, expression_scale=0.5, dispersion_scale=0.3)


def fit_adapters(network: CountAutoencoder, populations: tuple[str, ...], adata: ad.AnnData, *, seed: int) -> Adapters:
    """Fit a type-specific decoder to each population, and keep those by which validation cells are more likely.

    A few latent dimensions for all types cannot express all that sets apart a small one. Populations without
    validation cells keep the shared decoder, as their gain is unknown, and so do populations whose fit diverges.

    Parameters
    ----------
    network
        Trained on all types.
    populations
        Names of the network's types and sub-populations, in its order; decoders are fitted to those that have cells.
    adata
        Prepared counts, in memory or on disk, with ``obs["sub_population"]``.
    """
    batches = batch_names(adata)
    rows = rows_by_population(adata.obs, populations, seed=seed)
    portions = list_portions(rows)

    def kept(portion: list[PopulationCells]) -> Adapters:
        return fit_portion(network, populations, portion, seed=seed)

    with threads() as run:
        found = run(kept, read_portions(adata, portions, rows, batches))
        shown = progress(found, total=len(portions), doing="type-specific decoders", unit="portion")
        adapters = Adapters.of_shared(network, (), ()).joined(*shown)
    return adapters.subset([name for name in populations if name in adapters])


def fit_portion(
    network: CountAutoencoder, populations: tuple[str, ...], portion: list[PopulationCells], *, seed: int
) -> Adapters:
    """Fit type-specific decoders of a few of the network's ``populations``, and keep those that gain."""
    names = [cells.population for cells in portion]
    start = Adapters.of_shared(network, names, [populations.index(name) for name in names])
    try:
        return fit_gaining(start, network, portion, KNOWN_POPULATIONS, least_gain=0, seed=seed)
    except TrainingError as error:
        if len(portion) > 1:
            return start.subset(()).joined(*(fit_portion(network, populations, [one], seed=seed) for one in portion))
        logger.warning("%s keeps the shared decoder: %s", names[0], error)
        return start.subset(())


@dataclass(frozen=True)
class PopulationCells:
    """Cells of one population: training cells, and the held-out cells that decide whether its decoder is kept.

    Attributes
    ----------
    counts
        Of training cells, cells x genes.
    codes
        Index of the batch of each training cell in the network.
    held_out
        Validation cells; there may be none.
    """

    population: str
    counts: Tensor
    codes: Tensor
    held_out: ad.AnnData
    batches: tuple[str, ...]

    @classmethod
    def of(cls, population: str, cells: ad.AnnData, batches: tuple[str, ...]) -> PopulationCells:
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

    Parameters
    ----------
    start
        Adapters to start from, of the populations of ``cells``, in their order.
    network
        Network with the shared decoder, whose batch offsets are used.
    least_gain
        Mean gain in the log likelihood of held-out cells, in standard errors; populations without such cells are kept.

    Raises
    ------
    TrainingError
        If the fit diverges.
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

    In each round, cells are encoded by their posteriors under the present adapters. Decoders then take a few steps,
    each for a new draw of the latents; the mean of the last steps is kept. Dispersions take one step.
    """
    batch = Batch.of(network, [(one.counts, one.codes) for one in cells])
    generators = [torch_generator(seed, "adapters", one.population) for one in cells]
    adapters = start
    for _ in range(settings.n_rounds):
        posterior, visited = batch.posterior(adapters), []
        for _ in range(settings.n_steps):
            adapters = improve_decoder(adapters, start, batch, batch.sample(posterior, generators), settings)
            visited.append(adapters)
        last = visited[len(visited) // 2 :]
        means = {name: sum(getattr(at, name) for at in last) / len(last) for name in ("loadings", "offset")}
        adapters = replace(adapters, **means)
        adapters = improve_dispersion(adapters, start, batch, batch.sample(posterior, generators), settings)
    return adapters


@dataclass(frozen=True)
class Batch:
    """Training cells of several populations as one tensor, padded with cells without counts where one has fewer.

    Attributes
    ----------
    counts
        Populations x cells x genes.
    n_counts, present
        Library size of each cell, and 1 for cells or 0 for padding, populations x cells x 1.
    batch_offset
        Offset of each cell's batch, populations x cells x genes, or 1 x 1 x genes where all cells have the same.
    """

    counts: Tensor
    n_counts: Tensor
    present: Tensor
    batch_offset: Tensor

    @classmethod
    def of(cls, network: CountAutoencoder, cells: Sequence[tuple[Tensor, Tensor]]) -> Batch:
        """Pad the cells of each population, given as counts and codes of batches, to the number of the largest."""
        counts = pad_sequence([part for part, _ in cells], batch_first=True)
        codes = pad_sequence([part for _, part in cells], batch_first=True)
        present = pad_sequence([torch.ones(len(part), 1) for part, _ in cells], batch_first=True)
        offset = network.batch_offset.detach()
        return cls(counts, counts.sum(dim=2, keepdim=True), present, offset[codes] if len(offset) > 1 else offset[None])

    def posterior(self, adapters: Adapters) -> Posterior:
        """Compute the posterior of each cell, one population after the other; padding stays at the prior."""
        offset = (adapters.offset[:, None] + self.batch_offset).expand_as(self.counts)
        log_dispersion = adapters.observation.log_inverse_dispersion.expand_as(self.counts)
        prior_mean = adapters.prior_mean[:, None].expand(*self.counts.shape[:2], -1)
        parts = [adapters.loadings, self.counts, offset, log_dispersion, prior_mean]
        if adapters.same_loadings:  # as at the start, so that all cells are encoded together
            parts = [adapters.loadings[:1], *(part.flatten(0, 1)[None] for part in parts[1:])]
        return Posterior.joined(
            laplace_posterior(x, loadings, at, NegativeBinomial(log_r), mean, n_iterations=N_ITERATIONS)
            for loadings, x, at, log_r, mean in zip(*parts, strict=True)
        )

    def sample(self, posterior: Posterior, generators: Sequence[torch.Generator]) -> Tensor:
        """Sample latents, populations x cells x latent dimensions."""
        n_cells, n_latent = self.present.sum(dim=(1, 2)).long().tolist(), posterior.mean.shape[1]
        noise = [torch.randn(n, n_latent, generator=own) for n, own in zip(n_cells, generators, strict=True)]
        padded = pad_sequence(noise, batch_first=True)
        return posterior.sample(padded.flatten(0, 1)).view(padded.shape)

    def mean(self, adapters: Adapters, latent: Tensor) -> Tensor:
        """Compute the expected counts of cells from their latents."""
        logits = latent @ adapters.loadings.mT + adapters.offset[:, None] + self.batch_offset
        return self.n_counts * torch.softmax(logits, dim=2)


def improve_decoder(
    adapters: Adapters, start: Adapters, batch: Batch, latent: Tensor, settings: AdapterSettings
) -> Adapters:
    """Take one step of Newton's method towards the most probable loadings and offsets, with latents held.

    The information matrix of a gene's loadings is taken to be ``precision I + weight * Z' Z`` with the latents Z around
    their prior mean, as if all cells had the same weight. It is diagonal in the principal axes of Z, which all genes of
    a population share.

    Parameters
    ----------
    latent
        Populations x cells x latent dimensions.
    """
    centre = adapters.prior_mean[:, :, None]
    centred = (latent - adapters.prior_mean[:, None]) * batch.present
    mean = batch.mean(adapters, latent)
    residual, information = adapters.observation.derivatives(batch.counts, mean)
    # Through the softmax; cells of the padding have neither counts nor means
    residual = residual - mean * (residual.sum(dim=2, keepdim=True) / batch.n_counts.clamp(min=1))
    weight = CURVATURE * information.sum(dim=1)
    change = adapters.loadings - start.loadings
    # Loadings
    size, axes = torch.linalg.eigh(centred.mT @ centred / batch.present.sum(dim=1, keepdim=True))
    precision = settings.loading_scale**-2
    gradient = residual.mT @ centred - precision * change
    step = (gradient @ axes / (precision + weight[:, :, None] * size[:, None])) @ axes.mT
    step = step * (MAX_STEP * settings.loading_scale / step.norm(dim=2, keepdim=True)).clamp(max=1)
    # Log expression at the mean latent
    precision = settings.expression_scale**-2
    gradient = residual.sum(dim=1) - precision * (adapters.offset - start.offset + (change @ centre).squeeze(2))
    raised = (gradient / (precision + weight)).clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
    offset = adapters.offset + raised - (step @ centre).squeeze(2)
    return replace(adapters, loadings=adapters.loadings + step, offset=offset)


def improve_dispersion(
    adapters: Adapters, start: Adapters, batch: Batch, latent: Tensor, settings: AdapterSettings
) -> Adapters:
    """Take one step towards the most probable dispersions, with latents held.

    The information is taken to be the sum of squares of the cells' gradients (Berndt et al. 1974).

    Parameters
    ----------
    latent
        Populations x cells x latent dimensions.
    """
    of_cells = adapters.observation.dispersion_gradient(batch.counts, batch.mean(adapters, latent))
    precision = settings.dispersion_scale**-2
    change = adapters.log_inverse_dispersion - start.log_inverse_dispersion
    step = (of_cells.sum(dim=1) - precision * change) / (precision + (of_cells**2).sum(dim=1))
    step = step.clamp(-MAX_LOG_STEP, MAX_LOG_STEP)
    return replace(adapters, log_inverse_dispersion=adapters.log_inverse_dispersion + step)


def gain_of(
    fitted: Adapters, start: Adapters, network: CountAutoencoder, cells: PopulationCells, *, seed: int
) -> float:
    """Mean gain in the log likelihood of held-out cells, in its standard errors; infinite without cells."""
    if not cells.held_out.n_obs:
        return float("inf")
    networks = (adapters.network(cells.population, network) for adapters in (start, fitted))
    return gain_in_errors(*(likelihood(of, cells.held_out, cells.batches, seed=seed) for of in networks))


def gain_in_errors(before: np.ndarray, after: np.ndarray) -> float:
    """Mean gain in cells' log likelihoods, in its standard errors."""
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
            yield [PopulationCells.of(name, part, batches) for name, part in parts.items()]
