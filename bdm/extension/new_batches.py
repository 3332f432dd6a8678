import logging

import anndata as ad
import torch
from torch import Tensor

from bdm.autoencoder.blocks import blocks_of_type
from bdm.autoencoder.expected import log_ratio, seen_and_expected
from bdm.autoencoder.storage import GeneAutoencoder

logger = logging.getLogger(__name__)

N_PRIOR = 5.0  # counts, in means over genes, that what known batches have in common weighs as much as
N_ROUNDS = 5


def batch_offsets(cells: ad.AnnData, autoencoder: GeneAutoencoder, batches: tuple[str, ...]) -> dict[str, Tensor]:
    """Find the offsets of genes in new batches, by their cells of known types.

    A batch without such cells has the mean offset of known batches: what belongs to it and what to its new types cannot
    be told apart.

    Parameters
    ----------
    cells
        Prepared cells of known types.
    batches
        Names of the new batches.
    """
    offsets = {}
    for batch in batches:
        of_batch = cells[(cells.obs["batch"] == batch).to_numpy()]
        offset = autoencoder.network.batch_offset.detach().mean(dim=0)
        if not of_batch.n_obs:
            logger.warning(
                "Batch %r has no cells of types that the model knows, so its new types are learnt with all that sets "
                "the batch apart.",
                batch,
            )
        for _ in range(N_ROUNDS if of_batch.n_obs else 0):
            with_batch = autoencoder.with_batches({batch: offset})
            offset = offset + log_ratio(*of_all_types(of_batch, with_batch), n_prior=N_PRIOR)
        offsets[batch] = offset
    return offsets


def of_all_types(cells: ad.AnnData, autoencoder: GeneAutoencoder) -> tuple[Tensor, Tensor]:
    """Count each gene in cells, and tell how much is expected of it in them, each type by its own network."""
    seen, expected = torch.zeros(cells.n_vars), torch.zeros(cells.n_vars)
    cell_type = cells.obs["cell_type"].astype(str)
    for name, rows in cell_type.groupby(cell_type).indices.items():
        of_type = blocks_of_type(cells[rows], autoencoder.batches, code=autoencoder.type_code(name))
        counts = seen_and_expected(autoencoder.network_of(name), of_type)
        seen, expected = seen + counts[0], expected + counts[1]
    return seen, expected
