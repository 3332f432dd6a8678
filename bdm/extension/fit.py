"""What an extension fits: the initial decoder of a type, embeddings of its branches, and offsets of new batches."""

import logging
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.seeds import derive
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.cells import N_ITERATIONS_OF_BOUND, cell_blocks_of_type, observed_and_expected
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.data.filters import split_by_type
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.latent.cells import populations_of_cells
from bdm.model.model import BranchedModel
from bdm.settings import SamplerSettings

logger = logging.getLogger(__name__)


@torch.no_grad()
def initial_adapter(cells: ad.AnnData, name: str, autoencoder: GeneAutoencoder) -> Adapters:
    """Return the decoder to start from: of a known type or population, else the shared one with the type's mean."""
    if name in autoencoder.adapters:
        return autoencoder.adapters.subset((name,))
    shared = autoencoder.network
    if name in autoencoder.rows:
        return Adapters.from_shared(shared, (name,), (autoencoder.type_code(name),))
    first = Adapters.from_mean_type(shared, name)
    for _ in range(5):  # the mean latent draws the posteriors, whose mean it is
        network = first.network(name, shared)
        of_cells = cell_blocks_of_type(cells, autoencoder.batches)
        means = [network.encode(*block, n_iterations=N_ITERATIONS_OF_BOUND).mean for block in of_cells]
        first = replace(first, prior_mean=torch.cat(means).mean(dim=0, keepdim=True))
    return first


def with_replayed_cells(
    cells: ad.AnnData, model: BranchedModel, population: str, n_most: int, *, seed: int
) -> ad.AnnData:
    """Add up to ``n_most`` generated cells of a known population to new ones, in place of its training cells.

    With these it does not drift to the new cells alone (generative replay, Shin et al. 2017, arXiv 1705.08690).
    """
    n_cells = min(int(model.composition.loc[population].sum()), n_most)
    request = request_cells(model, {population: n_cells})
    replayed = generate_cells(model, request, SamplerSettings(), seed=derive(seed, "replay"))
    replayed.X = replayed.X.astype(cells.X.dtype)
    replayed.obs["split"] = split_by_type(replayed.obs["sub_population"], validation=0.1, test=0.0, seed=seed)
    if model.autoencoder.batches:  # their column in the model's data may have another name
        replayed.obs["batch"] = request.table["batch"].repeat(request.table["n_cells"]).to_numpy()
    del replayed.obsm["latent"]
    both = ad.concat([cells, replayed], join="inner", index_unique="-")
    both.var = cells.var
    for column, name in (("cell_type", model.cell_type_of[population]), ("sub_population", population)):
        both.obs[column] = pd.Categorical([name] * both.n_obs)
    return both


N_ROUNDS = 5  # of the fit of a new batch


def batch_offsets(cells: ad.AnnData, autoencoder: GeneAutoencoder, batches: tuple[str, ...]) -> dict[str, Tensor]:
    """Estimate the offsets of genes in new batches, from their cells of known types.

    Genes with few counts, and batches without such cells, keep the mean offset of known batches.
    """
    offsets, decoder = {}, autoencoder.network.decoder
    for batch in batches:
        of_batch, offset = cells[(cells.obs["batch"] == batch).to_numpy()], decoder.mean_batch()
        if not of_batch.n_obs:
            logger.warning(
                "Batch %r has no cells of types that the model has, so the effect of the batch cannot be distinguished "
                "from its new types, and is fitted as a part of them.",
                batch,
            )
        for _ in range(N_ROUNDS if of_batch.n_obs else 0):  # expected counts depend on latents, and these on the offset
            with_batch = autoencoder.with_batches({batch: offset})
            offset = decoder.improve_batch(offset, *count_known_types(of_batch, with_batch))
        offsets[batch] = offset
    return offsets


def count_known_types(cells: ad.AnnData, autoencoder: GeneAutoencoder) -> tuple[Tensor, Tensor]:
    """Sum the counts of each gene over cells, and the counts that the network of each population expects."""
    observed, expected = torch.zeros(cells.n_vars), torch.zeros(cells.n_vars)
    population = populations_of_cells(cells, autoencoder)
    for name in np.unique(population):
        of_population = cells[population == name]
        blocks = cell_blocks_of_type(of_population, autoencoder.batches, code=autoencoder.type_code(name))
        counts = observed_and_expected(autoencoder.network_of(name), blocks)
        observed, expected = observed + counts[0], expected + counts[1]
    return observed, expected
