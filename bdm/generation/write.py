from pathlib import Path
from typing import Any

import anndata as ad
from anndata.io import write_elem

from bdm.data.write import COMPRESSION, appended_rows, new_h5ad
from bdm.generation.generate import GeneratedCells

ROWS = 2**10  # in a piece of the file
# Harder than prepared counts are, as there may be many more of them; a hundredth of the time that they take to generate
COUNTS = COMPRESSION | {"compression_opts": 4}


def write_cells(path: Path, cells: GeneratedCells, uns: dict[str, Any]) -> None:
    """Generate cells into an ``.h5ad`` file, of which only ``obs`` is ever whole in memory."""
    n_cells, n_genes = len(cells.obs), len(cells.var)
    with (
        new_h5ad(path, ad.AnnData(obs=cells.obs, var=cells.var, uns=uns), compression="gzip") as file,
        appended_rows(file, "X", n_columns=n_genes, n_most=n_cells * n_genes, how=COUNTS) as append,
    ):
        latent = None  # left open, as X is in appended_rows
        for block in cells.blocks:
            append(block.counts)
            if latent is None:
                n_latent = block.latent.shape[1]
                pieces = {"chunks": (ROWS, n_latent), "maxshape": (None, n_latent), **COMPRESSION}
                write_elem(file["obsm"], "latent", block.latent, dataset_kwargs=pieces)
                latent = file["obsm/latent"]
            else:
                latent.resize(len(latent) + len(block.latent), axis=0)
                latent[-len(block.latent) :] = block.latent
