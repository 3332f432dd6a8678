"""Which of many cells are read."""

import anndata as ad
import numpy as np
import pandas as pd

from bdm.data.blocks import cells_of
from bdm.seeds import numpy_generator

N_OF_TYPE = 20  # cells of each type that are in every draw of all types, if there are so many


def drawn(adata: ad.AnnData, split: str, *, n_cells: int, seed: int) -> ad.AnnData:
    """Read the cells of a split, or some of them where there are more than ``n_cells``, in their order."""
    rows = np.flatnonzero(adata.obs["split"] == split)
    chosen = np.sort(some_cells(adata.obs["cell_type"], rows, split, n_cells=n_cells, seed=seed))
    return cells_of(adata, chosen)


def some_cells(cell_type: pd.Series, rows: np.ndarray, name: str, *, n_cells: int, seed: int) -> np.ndarray:
    """Draw ``n_cells`` of some rows, or all if there are fewer, and a few of each type beside.

    Parameters
    ----------
    name
        Of this draw among those of the seed.
    """
    shuffled = numpy_generator(seed, name).permutation(rows)
    place = cell_type.iloc[shuffled].groupby(cell_type.iloc[shuffled], observed=True).cumcount().to_numpy()
    return shuffled[(np.arange(len(shuffled)) < n_cells) | (place < N_OF_TYPE)]


def some_of_type(obs: pd.DataFrame, cell_type: str, split: str, n_cells: int, *, seed: int) -> np.ndarray:
    """Find the cells of a type and split, in their order; some of them, drawn at random, where there are many."""
    rows = np.flatnonzero((obs["cell_type"] == cell_type) & (obs["split"] == split))
    if len(rows) <= n_cells:
        return rows
    return np.sort(numpy_generator(seed, "own", split, cell_type).choice(rows, n_cells, replace=False))
