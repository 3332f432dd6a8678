"""Example data: 700 blood cells that scanpy ships."""

import numpy as np
import scanpy as sc
from anndata import AnnData
from scipy import sparse


def pbmc68k_counts() -> AnnData:
    """Return counts of 700 real blood cells of 10 types, for examples and tests.

    scanpy ships these cells normalised to 10,000 counts and log1p-transformed, together with the total counts
    of each cell, from which the raw counts are recovered exactly.

    Returns
    -------
    700 cells x 765 genes, integer counts in ``X`` (CSR, float32), cell types in ``obs['bulk_labels']``.

    References
    ----------
    Zheng et al. 2017, Nature Communications, https://doi.org/10.1038/ncomms14049
    """
    cells = sc.datasets.pbmc68k_reduced()
    counts = counts_before_rounding(cells).rint()
    return AnnData(counts.astype(np.float32), obs=cells.obs, var=cells.raw.var)


def counts_before_rounding(cells: AnnData) -> sparse.csr_matrix:
    """Undo log1p and the normalisation to 10,000 counts per cell, cells x genes."""
    totals = cells.obs["n_counts"].to_numpy(dtype=float)
    return sparse.csr_matrix(sparse.diags(totals / 1e4) @ cells.raw.X.astype(float).expm1())
