"""Join the cell type with another column to one label."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import typer

from bdm.files import atomic_write


def main(cells: Path, out: Path, *, column: Annotated[str, typer.Option()]) -> None:
    """Write the cells with `cell_type` as TYPE|VALUE."""
    adata = ad.read_h5ad(cells)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str) + "|" + adata.obs[column].astype(str)
    with atomic_write(out) as path:
        adata.write_h5ad(path)


if __name__ == "__main__":
    typer.run(main)
