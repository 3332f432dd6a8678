from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from anndata.io import write_elem

from bdm.data.write import appended_rows, new_h5ad
from bdm.generation.generate import GeneratedCells

ROWS = 2**10  # in a piece of the file


def write_cells(path: Path, cells: GeneratedCells, uns: dict[str, Any]) -> None:
    """Generate cells into an ``.h5ad`` file, of which only ``obs`` is ever whole in memory."""
    n_cells, n_genes = len(cells.obs), len(cells.var)
    with (
        new_h5ad(path, ad.AnnData(obs=cells.obs, var=cells.var, uns=uns)) as file,
        appended_rows(file, "X", n_columns=n_genes, n_most=n_cells * n_genes, dtype=np.int32) as append,
    ):
        for block in cells.blocks:
            append(block.counts)
            latent = file["obsm"].get("latent")
            if latent is None:
                # Not compressed, as it would hardly shrink
                pieces = {"chunks": (ROWS, block.latent.shape[1]), "maxshape": (None, block.latent.shape[1])}
                write_elem(file["obsm"], "latent", block.latent, dataset_kwargs=pieces)
            else:
                latent.resize(len(latent) + len(block.latent), axis=0)
                latent[-len(block.latent) :] = block.latent
