"""Peer: training cells with modalities permuted within each type, hence independent."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from anndata import AnnData
from peer import training_cells
from resampled import train
from scipy import sparse

from bdm._core.files import atomic_write
from bdm._core.seeds import numpy_generator
from bdm.data.modalities import modalities_of

app = typer.Typer()
app.command("train")(train)


@app.command()
def generate(model: Path, out: Path, *, cells_like: Annotated[Path, typer.Option()], seed: int = 0) -> None:
    """Permute each modality within types, without duplicate cells."""
    adata = training_cells(cells_like)
    rows_of, parts = adata.obs.groupby("cell_type", observed=True).indices.values(), []
    for modality in modalities_of(adata.var):
        rng, order = numpy_generator(seed, "shuffled", modality.name), np.arange(adata.n_obs)
        for rows in rows_of:
            order[rows] = rng.permutation(rows)
        parts.append(adata.X[order, modality.features])
    obs = adata.obs[["cell_type"]].set_axis(pd.RangeIndex(adata.n_obs).map("synthetic-{}".format))
    with atomic_write(out) as path:
        var = pd.DataFrame(index=adata.var_names)
        AnnData(sparse.hstack(parts, format="csr"), obs, var).write_h5ad(path, compression="gzip")


if __name__ == "__main__":
    app()
