from collections.abc import Iterator

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.autoencoder.blocks import blocks
from bdm.autoencoder.network import CountAutoencoder
from bdm.seeds import torch_generator
from bdm.threads import threads

N_ITERATIONS = 6  # of Newton's method, twice those of training


def bounds(network: CountAutoencoder, cells: ad.AnnData, types: Tensor, codes: Tensor, *, seed: int) -> np.ndarray:
    """Evidence lower bound of each cell's log likelihood, in nats.

    Parameters
    ----------
    cells
        Prepared counts.
    types, codes
        Index of each cell's type and batch in the network.
    """
    generator, where = torch_generator(seed, "bounds"), next(network.parameters()).device

    def with_noise() -> Iterator[tuple[Tensor, ...]]:
        for block in blocks(cells, types, codes):
            yield *block, torch.randn(len(block[0]), network.shape.n_latent, generator=generator)

    @torch.no_grad()  # holds for the thread that it is said in
    def bound(block: tuple[Tensor, ...]) -> Tensor:
        return -network(*(part.to(where) for part in block), n_iterations=N_ITERATIONS)[0].cpu()

    with threads() as run:
        return torch.cat(list(run(bound, with_noise()))).numpy()


def mean_by_type(bounds: np.ndarray, cells: ad.AnnData, types: Tensor, cell_types: tuple[str, ...]) -> pd.DataFrame:
    """Tell how well each type is expressed.

    Parameters
    ----------
    bounds
        Of each cell.
    types
        Index of each cell's type among ``cell_types``.

    Returns
    -------
    Table of types: ``log_likelihood``, the mean of ``bounds``, and ``n_counts``, the mean counts of a cell; NaN for
    types without cells.
    """
    table = pd.DataFrame({"log_likelihood": bounds, "n_counts": np.asarray(cells.X.sum(axis=1)).ravel()})
    return table.groupby(types.numpy()).mean().reindex(range(len(cell_types))).set_axis(list(cell_types))
