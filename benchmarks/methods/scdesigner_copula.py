"""Peer: scDesigner, negative binomials and a Gaussian copula by cell type.

https://github.com/krisrs1128/scDesigner is scDesign3 in Python (Song et al. 2024, Nature Biotechnology 42:247).
Mean and dispersion of each gene depend on the cell type. Each type has its own correlations, with the package's
Ledoit-Wolf shrinkage for rare types. With ``--library``, means also depend on the log library size, as in its example
04-library-size; like its ``sample()``, this uses library sizes of training cells. All other settings are defaults: at
most 500 epochs in batches of 1,024 cells. Training stops if the loss of a held-out tenth of the cells improves by less
than 0.01% in six epochs.
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
    """Fit to training and validation cells."""
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
        part.adata = part.loader = None  # sampling needs only correlations and coefficients
    simulator.marginal.train_loader = simulator.marginal.validation_loader = None
    simulator.marginal.predict.loss_fn = simulator.marginal.predict.optimizer = None  # cannot be written
    with atomic_write(model, folder_of=MODEL) as folder:
        folder.mkdir()
        joblib.dump(simulator, folder / MODEL)


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type.

    The package orders types by the requested numbers of cells. So sample all training cells, repeated as needed, and
    keep the first cells of each type.
    """
    simulator = joblib.load(model / MODEL)
    obs = simulator.template.obs
    times = int(np.ceil((numbers / obs["cell_type"].value_counts().reindex(numbers.index)).max()))
    repeated = pd.concat([obs] * times, ignore_index=True).set_axis(map(str, range(times * len(obs))))
    seed_generators(derive(seed, "generate") % 2**32)
    cells = simulator.sample(repeated, batch_size=len(repeated))  # a batch factorises the correlations of all types
    rows = cells.obs.groupby("cell_type", observed=True).indices
    return sparse.csr_matrix(cells.X)[np.concatenate([rows[name][:n] for name, n in numbers.items()])]


def seed_generators(seed: int) -> None:
    """Seed the global generators that the package uses."""
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
