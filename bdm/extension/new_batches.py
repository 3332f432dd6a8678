import logging

import anndata as ad
import torch
from torch import Tensor

from bdm.autoencoder.storage import GeneAutoencoder
from bdm.extension.adapt import log_ratio
from bdm.tensors import tensor_of

logger = logging.getLogger(__name__)

N_PRIOR = 5.0  # counts, in means over genes, that what known batches have in common weighs as much as
N_ROUNDS = 5
BLOCK = 512


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
            offset = offset + log_ratio(*seen_and_expected(of_batch, with_batch), n_prior=N_PRIOR)
        offsets[batch] = offset
    return offsets


@torch.no_grad()
def seen_and_expected(cells: ad.AnnData, autoencoder: GeneAutoencoder) -> tuple[Tensor, Tensor]:
    """Count each gene in cells of the last batch, and tell how much the autoencoder expects of it in them."""
    seen, expected = torch.zeros(cells.n_vars), torch.zeros(cells.n_vars)
    cell_type = cells.obs["cell_type"].astype(str)
    for name, rows in cell_type.groupby(cell_type).indices.items():
        network, code = autoencoder.network_of(name), autoencoder.type_code(name)
        for start in range(0, len(rows), BLOCK):
            counts = tensor_of(cells.X[rows[start : start + BLOCK]].toarray())
            types = torch.full((len(counts),), code)
            codes = torch.full((len(counts),), len(autoencoder.batches) - 1)
            latent = network.encode(counts, types, codes, n_iterations=6).mean
            expected += (network.decode(latent, codes).exp() * counts.sum(dim=1, keepdim=True)).sum(dim=0)
            seen += counts.sum(dim=0)
    return seen, expected
