from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm.data.blocks import cells_of
from bdm.data.counts import as_counts, fault
from bdm.errors import InputError
from bdm.evaluation.cells import Cells, TypedCells

BLOCK = 20_000  # cells that are checked at a time, which takes several times their memory


@dataclass(frozen=True)
class StoredCells(TypedCells):
    """Cells in a file, the counts of which are read, and checked, when they are taken.

    Attributes
    ----------
    adata
        All cells of the file, with counts on disk.
    rows
        Places of the cells that are meant.
    genes
        Names of the genes, in the order wanted.
    """

    path: Path
    adata: AnnData
    rows: np.ndarray
    genes: pd.Index
    cell_type: np.ndarray

    @classmethod
    def of(cls, path: Path, adata: AnnData, rows: np.ndarray, genes: pd.Index) -> StoredCells:
        """Take types from ``obs['cell_type']``."""
        return cls(path, adata, rows, genes, adata.obs["cell_type"].iloc[rows].to_numpy(dtype=str))

    def __getitem__(self, index: np.ndarray) -> Cells:
        rows = self.rows[index]
        parts = [self.counts(rows[start : start + BLOCK]) for start in range(0, max(len(rows), 1), BLOCK)]
        return Cells(sparse.vstack(parts, format="csr"), self.cell_type[index])

    def counts(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Read counts of cells by their places in the file."""
        return checked(cells_of(self.adata, rows), self.path)[:, self.genes].X

    def in_memory(self) -> Cells:
        """Read all."""
        return self[np.arange(len(self))]


def checked(adata: AnnData, path: Path) -> AnnData:
    """Refuse what is no raw counts, and bring such to one form."""
    if problem := fault(adata):
        raise InputError(f"{path} has {problem}; raw counts are needed in X.")
    return as_counts(adata)
