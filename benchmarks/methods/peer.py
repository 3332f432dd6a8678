"""Commands `train` and `generate` of a peer, with the arguments of bdm."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from scipy import sparse

from bdm._core.files import atomic_write
from bdm._core.seeds import numpy_generator
from bdm.data.prepare import read_prepared

BLOCK = 512  # cells drawn at a time; bounds the memory

# Model folder, number of cells by type, and seed to counts: cells x genes, sorted by type
Draw = Callable[[Path, pd.Series, int], sparse.csr_matrix]


def commands(*, train: Callable[..., None], draw: Draw) -> typer.Typer:
    """Build the command line of a peer.

    Parameters
    ----------
    train
        Command that fits a model to prepared cells: ``prepared``, ``model``, the options of the peer, and ``seed``.
    draw
        Draws counts of the requested numbers of cells, type by type in the same order.
    """
    app = typer.Typer()
    app.command("train")(train)

    @app.command()
    def generate(model: Path, out: Path, *, cells_like: Annotated[Path, typer.Option()], seed: int = 0) -> None:
        """Generate as many cells of each type as another file has."""
        like = read_prepared(cells_like)
        numbers = like.obs["cell_type"].value_counts()
        obs = pd.DataFrame({"cell_type": np.repeat(numbers.index.astype(str), numbers)})
        obs.index = "synthetic-" + obs.index.astype(str)
        counts = sparse.csr_matrix(draw(model, numbers, seed), dtype=np.float32)
        with atomic_write(out) as path:
            AnnData(counts, obs=obs, var=pd.DataFrame(index=like.var_names)).write_h5ad(path, compression="gzip")

    return app


def training_cells(prepared: Path) -> AnnData:
    """Read training and validation cells."""
    adata = read_prepared(prepared)
    return adata[adata.obs["split"] != "test"].copy()


def library_sizes(adata: AnnData) -> pd.Series:
    """Return the total counts of each cell."""
    return pd.Series(np.asarray(adata.X.sum(axis=1)).ravel(), adata.obs_names)


def draw_in_blocks(
    numbers: pd.Series, draw: Callable[[str, int, np.random.Generator], np.ndarray | sparse.csr_matrix], *, seed: int
) -> sparse.csr_matrix:
    """Draw cells of each type in blocks.

    Parameters
    ----------
    draw
        From type, number of cells and generator to counts, cells x genes.
    """
    blocks = [
        sparse.csr_matrix(draw(str(name), min(BLOCK, n - start), numpy_generator(seed, "peer", str(name), start)))
        for name, n in numbers.items()
        for start in range(0, n, BLOCK)
    ]
    return sparse.vstack(blocks).tocsr()
