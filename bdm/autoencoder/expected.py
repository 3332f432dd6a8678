from collections.abc import Iterator

import anndata as ad
import torch
from torch import Tensor

from bdm.autoencoder.codes import batch_codes
from bdm.autoencoder.network import CountAutoencoder
from bdm.tensors import tensor_of

BLOCK = 512
N_ITERATIONS = 6  # of Newton's method
Block = tuple[Tensor, Tensor, Tensor]


def blocks(cells: ad.AnnData, batches: tuple[str, ...], *, code: int = 0) -> Iterator[Block]:
    """Yield counts, type codes and batch codes of cells of one type, which has the index ``code`` in its network."""
    codes = batch_codes(cells, batches)
    for start in range(0, cells.n_obs, BLOCK):
        counts = tensor_of(cells.X[start : start + BLOCK].toarray())
        yield counts, torch.full((len(counts),), code), codes[start : start + BLOCK]


@torch.no_grad()
def seen_and_expected(network: CountAutoencoder, blocks: Iterator[Block]) -> tuple[Tensor, Tensor]:
    """Count each gene in cells, and tell how much the autoencoder expects of it in them."""
    seen, expected = torch.zeros(network.shape.n_genes), torch.zeros(network.shape.n_genes)
    for counts, types, codes in blocks:
        latent = network.encode(counts, types, codes, n_iterations=N_ITERATIONS).mean
        expected += (network.decode(latent, codes).exp() * counts.sum(dim=1, keepdim=True)).sum(dim=0)
        seen += counts.sum(dim=0)
    return seen, expected


def log_ratio(seen: Tensor, expected: Tensor, *, n_prior: float) -> Tensor:
    """Log of how much more of each gene was seen than expected, drawn to 0 where few were.

    Parameters
    ----------
    seen, expected
        Counts of each gene.
    n_prior
        Counts, in means over genes, that weigh for the expectation.
    """
    known = n_prior * len(expected) * expected / expected.sum()
    return ((seen + known) / (expected + known)).log()
