"""Peer: real modalities of a type, each of another training cell, as if they were independent given the type."""

from pathlib import Path

import numpy as np
import pandas as pd
import peer
from anndata import read_h5ad
from resampled import CELLS, cells_of, train
from scipy import sparse

from bdm.data.modalities import modalities_of


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw each modality of training cells of each type by itself."""
    adata = read_h5ad(model / CELLS)

    def of_type(cell_type: str, n_cells: int, rng: np.random.Generator) -> sparse.csr_matrix:
        counts = cells_of(adata, cell_type)
        n_known = counts.shape[0]
        orders = [rng.choice(n_known, n_cells, replace=n_cells > n_known) for _ in modalities_of(adata.var)]
        parts = [
            counts[rows, modality.features] for rows, modality in zip(orders, modalities_of(adata.var), strict=True)
        ]
        return sparse.hstack(parts, format="csr")

    return peer.drawn_in_blocks(numbers, of_type, seed=seed)


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
