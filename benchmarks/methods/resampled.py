"""Peer: copies of training cells of each type, drawn with replacement."""

from pathlib import Path

import numpy as np
import pandas as pd
import peer
from anndata import AnnData, read_h5ad
from scipy import sparse

from bdm._core.files import atomic_write

CELLS = "cells.h5ad"


def train(prepared: Path, model: Path, *, seed: int = 0) -> None:
    """Save training and validation cells."""
    with atomic_write(model, folder_of=CELLS) as folder:
        folder.mkdir()
        peer.training_cells(prepared).write_h5ad(folder / CELLS)


def counts_of_type(adata: AnnData, cell_type: str) -> sparse.csr_matrix:
    """Return the counts of the cells of a type."""
    return sparse.csr_matrix(adata[adata.obs["cell_type"] == cell_type].X)


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw training cells of each type."""
    adata = read_h5ad(model / CELLS)

    def draw_type(cell_type: str, n_cells: int, rng: np.random.Generator) -> sparse.csr_matrix:
        counts = counts_of_type(adata, cell_type)
        return counts[rng.integers(counts.shape[0], size=n_cells)]

    return peer.draw_in_blocks(numbers, draw_type, seed=seed)


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
