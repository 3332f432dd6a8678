from collections.abc import Iterator

import torch
from torch import Tensor

from bdm.autoencoder.blocks import Block
from bdm.autoencoder.bounds import N_ITERATIONS
from bdm.autoencoder.network import CountAutoencoder


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
