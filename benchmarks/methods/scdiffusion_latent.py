"""Peer: scDiffusion, a diffusion in the latents of an autoencoder, guided by a classifier of cell types.

Luo et al. 2024, Bioinformatics 40:btae518; https://github.com/EperLuo/scDiffusion at e20ee19, MIT. Runs its scripts one
after the other, with their defaults except for the number of steps. All three networks are trained from scratch, as
its pretrained encoder needs the genes of SCimilarity. These steps are a 75th to a 300th of what it advises (150,000,
600,000 and 200,000), so the learning rate of the diffusion is 5e-4 instead of 1e-4.

It generates normalised log values. They are decoded as in its notebooks: all cells at once, with batch normalisation in
training mode. Counts are Poisson with these proportions, and library sizes of training cells of the type.
"""

import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from functools import partial
from pathlib import Path
from shutil import copy

import anndata as ad
import cell_train
import classifier_sample
import classifier_train
import numpy as np
import pandas as pd
import peer
import torch
from anndata import AnnData
from guided_diffusion import cell_datasets_loader
from guided_diffusion.cell_model import Cell_classifier, Cell_Unet
from scipy import sparse
from torch.utils.data import DataLoader

from bdm._core.files import atomic_write
from bdm._core.seeds import derive, numpy_generator

sys.path.append(str(Path(cell_train.__file__).parent / "VAE"))
import VAE_train
from VAE_model import VAE

CELLS, AUTOENCODER, DIFFUSION, CLASSIFIER = "cells.h5ad", "autoencoder.pt", "diffusion.pt", "classifier.pt"

# The scripts run on a GPU only, and load cells by a process of their own
torch.cuda.is_available = lambda: False
torch.Tensor.cuda = lambda tensor: tensor
classifier_train.DDP = lambda model, **_: model
cell_datasets_loader.load_VAE = lambda path, n_genes, _: load_autoencoder(path, n_genes)
cell_datasets_loader.DataLoader = lambda cells, **options: DataLoader(cells, **options | {"num_workers": 0})
torch.autograd.set_detect_anomaly(False)  # importing VAE_train turns it on


def train(
    prepared: Path,
    model: Path,
    *,
    autoencoder_steps: int = 2000,
    steps: int = 2000,
    classifier_steps: int = 1000,
    seed: int = 0,
) -> None:
    """Train on training and validation cells."""
    adata = peer.training_cells(prepared)
    labelled = AnnData(adata.X, obs=pd.DataFrame({"celltype": adata.obs["cell_type"].astype(str)}), var=adata.var[[]])
    n_genes, n_types = is_kept(labelled).sum(), labelled.obs["celltype"].nunique()
    model = model.absolute()
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        labelled.write_h5ad(CELLS)
        autoencoder = f"model_seed=0_step={autoencoder_steps - 1}.pt"
        options = ["--num_genes", n_genes, "--max_steps", autoencoder_steps, "--save_dir", "."]
        call(train_autoencoder, "--data_dir", CELLS, *options, seed=seed)
        latents = ["--data_dir", CELLS, "--vae_path", autoencoder]
        options = ["--lr_anneal_steps", steps, "--lr", 5e-4, "--model_name", "diffusion", "--save_dir", "."]
        call(cell_train.main, *latents, *options, seed=seed)
        options = ["--iterations", classifier_steps, "--num_class", n_types, "--model_path", "classifier"]
        call(classifier_train.main, *latents, *options, seed=seed)
        with atomic_write(model, folder_of=CELLS) as out:
            out.mkdir()
            copy(CELLS, out / CELLS)
            copy(autoencoder, out / AUTOENCODER)
            copy(f"diffusion/model{steps:06d}.pt", out / DIFFUSION)
            copy(f"classifier/model{classifier_steps - 1:06d}.pt", out / CLASSIFIER)


def is_kept(adata: AnnData) -> np.ndarray:
    """Return the mask of genes that scDiffusion keeps: detected in three cells or more."""
    return np.asarray((adata.X > 0).sum(axis=0)).ravel() >= 3


def call(main: Callable[[], None], *arguments: object, seed: int) -> None:
    """Call the main function of a script with its command line, and another seed than its own."""
    for script in (cell_train, classifier_train, classifier_sample):
        script.setup_seed = lambda _: VAE_train.seed_everything(seed)
    sys.argv = ["", *map(str, arguments)]
    VAE_train.seed_everything(seed)
    main()


def train_autoencoder() -> None:
    """Train the autoencoder from scratch, which its command line cannot request."""
    VAE_train.train_vae(VAE_train.parse_arguments() | {"state_dict": None})


def load_autoencoder(path: Path, n_genes: int) -> VAE:
    """Read an autoencoder."""
    autoencoder = VAE(n_genes, device="cpu", loss_ae="mse", decoder_activation="ReLU")
    autoencoder.load_state_dict(torch.load(path))
    return autoencoder


def embed_step_once(network: type[torch.nn.Module]) -> None:
    """Embed the step of the first cell alone, which all cells that are sampled together share: this halves the time."""
    forward = network.forward
    network.forward = lambda self, x, t, *others: forward(self, x, t[:1], *others)


@torch.no_grad()
def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type."""
    embed_step_once(Cell_Unet)
    embed_step_once(Cell_classifier)
    adata, seed = ad.read_h5ad(model / CELLS), derive(seed, "generate") % 2**32
    types, kept = sorted(adata.obs["celltype"].unique()), is_kept(adata)
    code = torch.tensor(np.repeat([types.index(name) for name in numbers.index], numbers))
    latents = draw_latents(model, code, n_types=len(types), seed=seed)
    autoencoder = load_autoencoder(model / AUTOENCODER, kept.sum())
    normalised = np.expm1(autoencoder(torch.tensor(latents), return_decoded=True).numpy().astype(float))
    rng, library = numpy_generator(seed, "counts"), peer.library_sizes(adata)
    sizes = np.concatenate([rng.choice(library[adata.obs["celltype"] == name], n) for name, n in numbers.items()])
    counts = np.zeros((len(normalised), adata.n_vars), dtype=np.float32)
    counts[:, kept] = rng.poisson(normalised / normalised.sum(axis=1, keepdims=True) * sizes[:, None])
    return sparse.csr_matrix(counts)


def draw_latents(model: Path, code: torch.Tensor, *, n_types: int, seed: int) -> np.ndarray:
    """Draw latents of cells whose types have these codes, cells x dimensions."""
    drawn = []
    classifier_sample.save_data = lambda latents, *_: drawn.append(latents)
    networks = ["--model_path", model / DIFFUSION, "--classifier_path", model / CLASSIFIER, "--num_class", n_types]
    sample = partial(classifier_sample.main, cell_type=[code])  # which multiplies ones by the type
    call(sample, *networks, "--num_samples", len(code), "--batch_size", len(code), seed=seed)
    return drawn[0]


if __name__ == "__main__":
    peer.commands(train=train, draw=draw)()
