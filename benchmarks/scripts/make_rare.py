"""Leave only a few training cells of a frequent type; all its test cells stay."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from anndata import AnnData

from bdm.data.prepare import read_prepared
from bdm.files import atomic_write
from bdm.seeds import numpy_generator


def made_rare(adata: AnnData, cell_type: str, n_cells: int, *, seed: int) -> AnnData:
    """Keep ``n_cells`` of the cells of a type that are not test cells."""
    learned = ((adata.obs["cell_type"] == cell_type) & (adata.obs["split"] != "test")).to_numpy()
    left_out = numpy_generator(seed, "make rare", cell_type).permutation(np.flatnonzero(learned))[n_cells:]
    return adata[np.setdiff1d(np.arange(adata.n_obs), left_out)].copy()


def main(
    prepared: Path,
    out: Path,
    *,
    cell_type: Annotated[str, typer.Option()],
    n_cells: Annotated[int, typer.Option()],
    seed: int = 0,
) -> None:
    """Write prepared cells without the others."""
    with atomic_write(out) as path:
        made_rare(read_prepared(prepared), cell_type, n_cells, seed=seed).write_h5ad(path, compression="gzip")


if __name__ == "__main__":
    typer.run(main)
