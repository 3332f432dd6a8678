from collections.abc import Iterator

import anndata as ad
import torch
from torch import Tensor

from bdm.autoencoder.codes import batch_codes
from bdm.tensors import tensor_of

BLOCK = 512
Block = tuple[Tensor, Tensor, Tensor]


def blocks(cells: ad.AnnData, types: Tensor, codes: Tensor) -> Iterator[Block]:
    """Yield counts of cells, dense, with the index of each cell's type and batch, some cells at a time."""
    matrix = cells.X  # once, as a view would take its cells anew for each block
    for start in range(0, cells.n_obs, BLOCK):
        rows = slice(start, start + BLOCK)
        yield tensor_of(matrix[rows].toarray()), types[rows], codes[rows]


def blocks_of_type(cells: ad.AnnData, batches: tuple[str, ...], *, code: int = 0) -> Iterator[Block]:
    """Yield :func:`blocks` of cells of one type, which has the index ``code`` in its network."""
    return blocks(cells, torch.full((cells.n_obs,), code), batch_codes(cells, batches))
