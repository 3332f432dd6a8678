"""Divide the donors of a data set at random into two halves: donors to fit to, and donors that are left out."""

from pathlib import Path

import anndata as ad
import numpy as np
import typer

from bdm.files import atomic_write


def main(cells: Path, training: Path, left_out: Path, *, seed: int = 0) -> None:
    """Write the cells of each half, without the column ``batch``, which names donors a second time."""
    adata = ad.read_h5ad(cells)
    adata.obs = adata.obs.drop(columns=["batch"], errors="ignore").astype({"donor": str, "cell_type": str})
    donors = np.random.default_rng(seed).permutation(np.unique(adata.obs["donor"]))
    is_training = adata.obs["donor"].isin(donors[: len(donors) // 2]).to_numpy()
    for out, chosen in ((training, is_training), (left_out, ~is_training)):
        with atomic_write(out) as path:
            adata[chosen].write_h5ad(path)


if __name__ == "__main__":
    typer.run(main)
