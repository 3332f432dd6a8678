"""Thin counts, as if the cells had been sequenced less deeply."""

from pathlib import Path

import numpy as np
import typer
from anndata import AnnData
from scipy import sparse

from bdm.data.read import read_cells
from bdm.files import atomic_write
from bdm.seeds import numpy_generator


def thinned(adata: AnnData, fraction: float, *, seed: int) -> AnnData:
    """Keep each count with probability ``fraction``, and the cells and genes that have any left."""
    x = sparse.csr_matrix(adata.X, copy=True)
    x.data = numpy_generator(seed, "thin").binomial(x.data.astype(np.int64), fraction).astype(np.float32)
    x.eliminate_zeros()
    kept = AnnData(x, obs=adata.obs, var=adata.var)
    return kept[x.getnnz(axis=1) > 0, x.getnnz(axis=0) > 0].copy()


def main(cells: Path, out: Path, *, fraction: float = 0.1, seed: int = 0) -> None:
    """Write thinned cells."""
    with atomic_write(out) as path:
        thinned(read_cells(cells), fraction, seed=seed).write_h5ad(path, compression="gzip")


if __name__ == "__main__":
    typer.run(main)
