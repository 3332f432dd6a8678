from itertools import chain
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

from bdm.generation.generate import Block, GeneratedCells

COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
ENTRIES, ROWS = 2**16, 2**10  # in a piece of the file


def write_cells(path: Path, cells: GeneratedCells, uns: dict[str, Any]) -> None:
    """Generate cells into an ``.h5ad`` file, of which only ``obs`` is ever whole in memory."""
    ad.AnnData(obs=cells.obs, var=cells.var, uns=uns).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        first = next(cells.blocks)
        _begin(file, first, len(cells.obs))
        counts, latent = sparse_dataset(file["X"]), file["obsm"]["latent"]
        # Left open, as a dataset's last piece is compressed, and read again, each time the dataset is closed
        opened = list(file["X"].values())
        for block in chain([first], cells.blocks):
            counts.append(block.counts)
            latent.resize(len(latent) + len(block.latent), axis=0)
            latent[-len(block.latent) :] = block.latent
        del opened


def _begin(file: h5py.File, block: Block, n_cells: int) -> None:
    """Add counts and latents of no cells yet, with indices that can tell ``n_cells`` cells without zeros apart."""
    n_genes, n_latent = block.counts.shape[1], block.latent.shape[1]
    counts = sp.csr_matrix((0, n_genes), dtype=block.counts.dtype)
    index = sp.get_index_dtype(maxval=n_cells * n_genes)
    counts.indices, counts.indptr = counts.indices.astype(index), counts.indptr.astype(index)
    write_elem(file, "X", counts, dataset_kwargs={"chunks": (ENTRIES,), **COMPRESSION})
    # Latents are not compressed, as they would hardly shrink
    pieces = {"chunks": (ROWS, n_latent), "maxshape": (None, n_latent)}
    write_elem(file["obsm"], "latent", block.latent[:0], dataset_kwargs=pieces)
