"""Generate cells by scDesigner with the donor as a covariate of the means.

It draws no new donors, so these are the training donors.
Means depend on cell type, donor and log library size, dispersions and correlations on the cell type. Library sizes are
those of the training cells, which its ``sample()`` copies with the other columns.
"""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
import typer
from scipy import sparse

from bdm.files import atomic_write

EPOCHS = 500


def main(training: Path, out: Path, *, seed: int = 0) -> None:
    """Fit to the training cells, and write as many generated ones."""
    from scdesigner.simulators import NegBinCopula  # a package of the peers' environment alone

    adata = ad.read_h5ad(training)
    size = np.asarray(adata.X.sum(axis=1)).ravel()
    obs = pd.DataFrame({"cell_type": adata.obs["cell_type"], "donor": adata.obs["donor"], "library": size})
    obs = obs[size > 0].astype({"cell_type": "category", "donor": "category"})
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)
    simulator = NegBinCopula(
        mean_formula="~ cell_type + donor + log(library)",
        dispersion_formula="~ cell_type",
        copula_formula="~ cell_type",
        estimator="ledoit_wolf",
    )
    cells = ad.AnnData(sparse.csr_matrix(adata.X[size > 0]), obs=obs, var=adata.var[[]])
    simulator.fit(cells, max_epochs=EPOCHS, verbose=False)
    drawn = simulator.sample(obs, batch_size=len(obs))
    columns = drawn.obs[["cell_type", "donor"]].astype(str)
    with atomic_write(out) as path:
        ad.AnnData(sparse.csr_matrix(drawn.X, dtype=np.float32), obs=columns, var=adata.var[[]]).write_h5ad(path)


if __name__ == "__main__":
    typer.run(main)
