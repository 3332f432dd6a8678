"""Peer: scDesigner, negative binomials and a Gaussian copula of all genes, both by cell type.

https://github.com/krisrs1128/scDesigner is the Python of scDesign3 (Song et al. 2024, Nature Biotechnology 42:247).
Mean and dispersion of each gene depend on the cell type, and each type has its own correlations, with the shrinkage of
Ledoit and Wolf that the package has for rare types. With ``--library``, means also depend on the log library size, as
in its example 04-library-size; library sizes are not generated, so those of the training cells are used, as in its
``sample()``. All else has its defaults: at most 500 epochs in batches of 1,024 cells, which stop when six of them have
not reduced the loss of a held-out tenth of the cells by 0.01%.
"""

from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import peer
import torch
from anndata import AnnData
from scdesigner.simulators import NegBinCopula
from scipy import sparse

from bdm._core.files import atomic_write
from bdm._core.seeds import derive

MODEL = "model.joblib"
EPOCHS = 500


def train(prepared: Path, model: Path, *, library: bool = False, epochs: int = EPOCHS, seed: int = 0) -> None:
    """Fit to all prepared cells but the test cells."""
    adata = peer.training_cells(prepared)
    by_type = "~ cell_type" if adata.obs["cell_type"].nunique() > 1 else "~ 1"
    obs = pd.DataFrame({"cell_type": adata.obs["cell_type"], "library": peer.library_sizes(adata)})
    simulator = NegBinCopula(
        mean_formula=f"{by_type} + log(library)" if library else by_type,
        dispersion_formula=by_type,
        copula_formula=by_type,
        estimator="ledoit_wolf",
    )
    seed_generators(seed)
    simulator.fit(AnnData(adata.X, obs=obs, var=adata.var[[]]), max_epochs=epochs, verbose=False)
    for part in (simulator.marginal, simulator.copula):
        part.adata = part.loader = None  # the copula keeps correlations, and the marginals coefficients
    simulator.marginal.train_loader = simulator.marginal.validation_loader = None
    simulator.marginal.predict.loss_fn = simulator.marginal.predict.optimizer = None  # cannot be written
    with atomic_write(model, folder_of=MODEL) as folder:
        folder.mkdir()
        joblib.dump(simulator, folder / MODEL)


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type.

    The package orders types by the numbers of cells that are asked for, so cells are drawn for all training cells, as
    often as needed, and the first of each type are taken.
    """
    simulator = joblib.load(model / MODEL)
    obs = simulator.template.obs
    times = int(np.ceil((numbers / obs["cell_type"].value_counts().reindex(numbers.index)).max()))
    repeated = pd.concat([obs] * times, ignore_index=True).set_axis(map(str, range(times * len(obs))))
    seed_generators(derive(seed, "generate") % 2**32)
    drawn = simulator.sample(repeated, batch_size=len(repeated))  # a batch factorises the correlations of all types
    rows = drawn.obs.groupby("cell_type", observed=True).indices
    return sparse.csr_matrix(drawn.X)[np.concatenate([rows[name][:n] for name, n in numbers.items()])]


def seed_generators(seed: int) -> None:
    """Seed the global generators, from which the package draws."""
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
