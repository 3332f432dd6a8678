"""Peer: scVI with default settings, sampled from its prior for each cell type.

Lopez et al. 2018, Nature Methods 15:1053. Its prior is one normal for all types, so the cell type is the decoder's
batch. The encoder does not see the type: latents describe variation within types, and the same prior fits all types.
scVI does not generate library sizes; they are drawn from training cells of the type, the best it could achieve.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import peer
import scvi
import torch
from scipy import sparse

from bdm._core.files import atomic_write
from bdm._core.seeds import derive


def train(prepared: Path, model: Path, *, epochs: int | None = None, seed: int = 0) -> None:
    """Train on training and validation cells."""
    adata = peer.training_cells(prepared)
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata, batch_key="cell_type")
    train_into(model, scvi.model.SCVI(adata), epochs=epochs)


def train_into(model: Path, network: scvi.model.SCVI | scvi.model.SCANVI, *, epochs: int | None) -> None:
    """Train a network and write it to the model folder."""
    network.train(max_epochs=epochs, enable_progress_bar=False)
    with atomic_write(model, folder_of="model.pt") as folder:
        network.save(folder, save_anndata=True)


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type."""
    network = scvi.model.SCVI.load(model)
    scvi.settings.seed = derive(seed, "generate") % 2**32
    codes = list(network.adata_manager.get_state_registry("batch").categorical_mapping)

    def draw_type(cell_type: str, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        z = torch.randn(n_cells, network.module.n_latent)
        return decode(network, z, log_library(network, cell_type, n_cells, rng), batch=codes.index(cell_type))

    return peer.draw_in_blocks(numbers, draw_type, seed=seed)


def log_library(
    network: scvi.model.SCVI | scvi.model.SCANVI, cell_type: str, n_cells: int, rng: np.random.Generator
) -> torch.Tensor:
    """Draw log library sizes from training cells of a type, cells x 1."""
    training = network.adata[network.adata.obs["cell_type"] == cell_type]
    library = rng.choice(peer.library_sizes(training).to_numpy(), size=(n_cells, 1))
    return torch.tensor(library, dtype=torch.float32).log()


@torch.no_grad()
def decode(
    network: scvi.model.SCVI | scvi.model.SCANVI, z: torch.Tensor, log_library: torch.Tensor, *, batch: int
) -> np.ndarray:
    """Draw counts (cells x genes) from latents and log library sizes."""
    batches = torch.full((len(z), 1), batch)
    generated = network.module.generative(z=z, library=log_library, batch_index=batches)
    return generated["px"].sample().numpy()


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
