"""Give the cells of one type another expression in each donor, as clones of a tumour have."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import typer
from scipy import sparse

from bdm.data.matrix import take_cells
from bdm.files import atomic_write

SHARE, FOLD = 0.1, 3  # of the genes are higher in a donor's cells, and as many lower, by this factor


def with_clones(adata: ad.AnnData, cell_type: str, *, donor_key: str, label_key: str, seed: int) -> ad.AnnData:
    """Change counts of a cell type: other genes in each donor, by sampling once more."""
    cells, rng = take_cells(adata, np.arange(adata.n_obs)), np.random.default_rng(seed)
    counts = sparse.lil_matrix(cells.X)
    donor, of_type = cells.obs[donor_key].astype(str), (cells.obs[label_key] == cell_type).to_numpy()
    n_genes = round(SHARE * cells.n_vars)
    for name in sorted(donor.unique()):
        rows = np.flatnonzero((donor == name) & of_type)
        higher, lower = np.split(rng.permutation(cells.n_vars)[: 2 * n_genes], 2)
        dense = cells.X[rows].toarray().astype(int)
        dense[:, higher] = rng.poisson(FOLD * dense[:, higher])
        dense[:, lower] = rng.binomial(dense[:, lower], 1 / FOLD)
        counts[rows] = dense
    return ad.AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=cells.obs, var=cells.var)


def main(
    cells: Path,
    out: Path,
    *,
    cell_type: Annotated[str, typer.Option()],
    donor_key: str = "donor",
    label_key: str = "cell_type",
    seed: int = 0,
) -> None:
    """Write the cells with clones."""
    changed = with_clones(ad.read_h5ad(cells), cell_type, donor_key=donor_key, label_key=label_key, seed=seed)
    with atomic_write(out) as path:
        changed.write_h5ad(path)


if __name__ == "__main__":
    typer.run(main)
