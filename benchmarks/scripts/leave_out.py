"""Leave out the cells of a type."""

from pathlib import Path
from typing import Annotated

import anndata as ad
import typer

from bdm.files import atomic_write


def main(cells: Path, out: Path, *, cell_type: Annotated[str, typer.Option()]) -> None:
    """Write all other cells."""
    adata = ad.read_h5ad(cells)
    with atomic_write(out) as path:
        adata[adata.obs["cell_type"] != cell_type].write_h5ad(path)


if __name__ == "__main__":
    typer.run(main)
