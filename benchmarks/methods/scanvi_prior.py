"""Peer: scANVI sampled from its prior for each cell type.

Xu et al. 2021, Molecular Systems Biology 17:e9620. The prior is hierarchical: a network maps the type and a standard
normal to a normal of latents. Two layers, 30 dimensions and negative binomial counts are the settings of the scvi-tools
tutorial "Atlas-level integration of lung data" for labelled cells. The tutorial trains scVI first, then scANVI for 20
epochs, which fits the classifier to the labels, but not the prior. Here scANVI is trained alone, for the package's
default number of epochs. Library sizes are drawn as for scVI.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import peer
import scvi
import torch
from scipy import sparse
from scvi_prior import decode, log_library, train_into

from bdm._core.seeds import derive

UNLABELLED = "no label"  # required by scANVI; all cells have labels


def train(prepared: Path, model: Path, *, epochs: int | None = None, seed: int = 0) -> None:
    """Train on training and validation cells."""
    adata = peer.training_cells(prepared)
    scvi.settings.seed = seed
    scvi.model.SCANVI.setup_anndata(adata, labels_key="cell_type", unlabeled_category=UNLABELLED)
    network = scvi.model.SCANVI(adata, n_layers=2, n_latent=30, gene_likelihood="nb")
    train_into(model, network, epochs=epochs)


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type."""
    network = scvi.model.SCANVI.load(model)
    scvi.settings.seed = derive(seed, "generate") % 2**32
    labels = list(network.adata_manager.get_state_registry("labels").categorical_mapping)

    def draw_type(cell_type: str, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        z = latents(network, labels.index(cell_type), n_cells)
        return decode(network, z, log_library(network, cell_type, n_cells, rng), batch=0)

    return peer.draw_in_blocks(numbers, draw_type, seed=seed)


@torch.no_grad()
def latents(network: scvi.model.SCANVI, label: int, n_cells: int) -> torch.Tensor:
    """Draw latents of a label from the prior, cells x dimensions."""
    within = torch.randn(n_cells, network.module.n_latent)
    mean, variance = network.module.decoder_z1_z2(within, torch.full((n_cells, 1), label))
    return mean + variance.sqrt() * torch.randn_like(mean)


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
