"""Populations of a new cell type, their type-specific decoders, and the new cells of each known population."""

import logging
from collections.abc import Collection
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.parallel import threads
from bdm.autoencoder.adapters import KNOWN_POPULATIONS, MAX_CELLS, Adapters, PopulationCells, fit_gaining
from bdm.autoencoder.cells import sample_rows_of_population
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.autoencoder.sub_populations import GroupLatents, SubPopulations, classify, parts_of_group, prefixes_of
from bdm.errors import TrainingError
from bdm.latent.cells import encode, populations_of_cells
from bdm.settings import AutoencoderSettings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class NewType:
    """Decoders and sub-populations of a new cell type."""

    adapters: Adapters  # of its populations; of a type with several, also its own, to find these
    sub_populations: SubPopulations  # none if the type is one population


def find_populations(
    cells: ad.AnnData,
    decoder: Adapters,
    autoencoder: GeneAutoencoder,
    settings: AutoencoderSettings,
    *,
    taken: Collection[str],
    seed: int,
) -> NewType:
    """Find the sub-populations of a new cell type, and fit a type-specific decoder to each.

    These start from the ``decoder`` of the type, and are kept where validation cells of the population gain.
    """
    [cell_type] = decoder
    cells = cells[(cells.obs["split"] != "test").to_numpy()].copy()
    latent = encode(cells, autoencoder.with_type(cell_type, decoder))
    n_latent = autoencoder.network.shape.n_latent
    mean, scale = (torch.from_numpy(np.asarray(of)[:, :n_latent]) for of in (latent.X, latent.layers["scale"]))
    part = parts_of_group(GroupLatents.from_posteriors(cell_type, mean, scale), settings, seed=seed)
    prefix, smallest = prefixes_of([cell_type], taken)[cell_type], settings.min_cells_per_sub_population
    found = classify(cell_type, mean, part, prefix=prefix, smallest=smallest)
    if not len(found):
        return NewType(decoder, found)
    cells.obs["sub_population"], means = found.divide(cell_type, mean, scale, decoder.prior_mean[0])
    first = with_prior_means(decoder, found.names, means)
    if settings.shared_decoder:
        return NewType(decoder.updated(first), found)
    return NewType(decoder.updated(first, *fit_populations(cells, first, autoencoder, seed=seed)), found)


def with_prior_means(decoder: Adapters, names: tuple[str, ...], prior_mean: Tensor) -> Adapters:
    """Copy the decoder of a type for its populations, with the mean latent of each (populations x dimensions)."""
    parameters = {name: value.expand(len(names), *value.shape[1:]) for name, value in decoder.parameters.items()}
    return Adapters(names, parameters, prior_mean)


def fit_populations(cells: ad.AnnData, first: Adapters, autoencoder: GeneAutoencoder, *, seed: int) -> list[Adapters]:
    """Fit the decoder of each population; nothing of those that do not gain, or have no validation cells."""

    def fitted(name: str) -> Adapters:
        rows = [sample_rows_of_population(cells.obs, name, split, most, seed=seed) for split, most in MAX_CELLS.items()]
        start = first.subset((name,))
        if not all(map(len, rows)):
            return start.subset(())
        of_population = PopulationCells.from_cells(name, cells[np.concatenate(rows)], autoencoder.batches)
        try:
            return fit_gaining(start, autoencoder.network, [of_population], KNOWN_POPULATIONS, least_gain=0, seed=seed)
        except TrainingError as error:
            logger.warning("%s keeps the decoder of its cell type: %s", name, error)
            return start.subset(())

    with threads() as run:
        return list(run(fitted, list(first)))


def cells_by_population(cells: ad.AnnData, autoencoder: GeneAutoencoder) -> dict[str, ad.AnnData]:
    """Divide prepared cells of a known type by population, and leave out populations without cells to fit."""
    population = populations_of_cells(cells, autoencoder)
    cells = cells.copy()
    cells.obs["sub_population"] = pd.Categorical(population)
    fitted = (cells.obs["split"] != "test").to_numpy()
    (cell_type,) = cells.obs["cell_type"].unique()
    parts = {name: population == name for name in autoencoder.populations_of(cell_type)}
    return {name: cells[part].copy() for name, part in parts.items() if (part & fitted).any()}
