"""Peer: training cells thinned to the library sizes of other cells.

The library size comes from a random training cell of the type. Counts are drawn, without replacement, from a training
cell of the type with at least as many counts. Copies remain where both have the same library size.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import peer
from anndata import read_h5ad
from resampled import CELLS, counts_of_type, train
from scipy import sparse


def thinned(counts: sparse.csr_matrix, n_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Thin training cells of one type, cells x genes."""
    ordered = counts[np.argsort(counts.sum(axis=1).A1, kind="stable")]
    library = ordered.sum(axis=1).A1.astype(np.int64)
    smaller = rng.integers(len(library), size=n_cells)
    source = rng.integers(smaller, len(library))
    rows = [ordered[row].toarray().ravel().astype(np.int64) for row in source]
    return np.array(
        [rng.multivariate_hypergeometric(row, library[indices]) for row, indices in zip(rows, smaller, strict=True)]
    )


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw thinned training cells of each type."""
    adata = read_h5ad(model / CELLS)

    def draw_type(cell_type: str, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        return thinned(counts_of_type(adata, cell_type), n_cells, rng)

    return peer.draw_in_blocks(numbers, draw_type, seed=seed)


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
