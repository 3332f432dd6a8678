"""Files of generated cells, written a block at a time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
from anndata.io import write_elem

from bdm._core.files import require_space
from bdm.data.forms import MUDATA_FILE, write_h5mu
from bdm.data.matrix import COMPRESSION, ENTRIES, appended_rows, new_h5ad
from bdm.generation.generate import EXPECTED, GeneratedCells

ROWS = 2**10  # in a piece of the file
# Compressed more than prepared counts, as there may be many more cells; takes a hundredth of the time to generate them
COUNTS = COMPRESSION | {"compression_opts": 4}


def write_cells(path: Path, cells: GeneratedCells, uns: dict[str, Any]) -> None:
    """Generate cells into an ``.h5ad`` file block by block, with only ``obs`` in memory, or a MuData file, whole."""
    if path.suffix == MUDATA_FILE:
        whole = cells.in_memory()
        whole.uns.update(uns)
        write_h5mu(path, whole)
        return
    populations: list[np.ndarray | None] = []
    n_cells, n_genes = len(cells.obs), len(cells.var)
    empty = ad.AnnData(obs=cells.obs, var=cells.var, varm=dict(cells.varm), uns={**cells.uns, **uns})
    with (
        new_h5ad(path, empty, compression="gzip") as file,
        appended_rows(file, "X", n_columns=n_genes, max_entries=n_cells * n_genes, compression=COUNTS) as append,
    ):
        latent, expected = DenseRows(file, "obsm", "latent"), DenseRows(file, "layers", EXPECTED)
        for block in cells.blocks:
            append(block.counts)
            populations.append(block.population)
            latent.append(block.latent)
            if block.expected is not None:
                expected.append(block.expected)
        if (obs := cells.whole_obs(populations)) is not cells.obs:
            write_elem(file, "obs", obs, dataset_kwargs={"compression": "gzip"})


@dataclass
class DenseRows:
    """A dense array in an ``.h5ad`` file that grows by rows, and is left open, as X is in appended_rows."""

    file: h5py.File
    group: str
    name: str
    stored: h5py.Dataset | None = None

    def append(self, rows: np.ndarray) -> None:
        """Append rows, the first of which make the array."""
        require_space(Path(self.file.filename), rows.nbytes)
        if self.stored is None:
            n_columns = rows.shape[1]
            pieces = {"chunks": (min(ROWS, ENTRIES // n_columns + 1), n_columns), "maxshape": (None, n_columns)}
            write_elem(self.file[self.group], self.name, rows, dataset_kwargs={**pieces, **COMPRESSION})
            self.stored = self.file[self.group][self.name]
        else:
            self.stored.resize(len(self.stored) + len(rows), axis=0)
            self.stored[-len(rows) :] = rows
