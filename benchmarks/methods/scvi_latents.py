"""Peer: priors of bdm in the latent space of scVI.

scVI (Lopez et al. 2018, Nature Methods 15:1053) has its default size, negative binomial counts and no cell types. It
trains for at most ``EPOCHS`` epochs, and stops early if the ELBO of validation cells does not increase for ``PATIENCE``
epochs. Compared with the defaults, the learning rate is higher, and the KL divergence reaches its full weight earlier,
after ``WARMUP`` epochs; the ELBO is the same, in a third of the epochs. As in bdm, the log library size is another
latent dimension, latents are sampled from their posteriors, and ``find_parts`` finds sub-populations.
"""

from dataclasses import dataclass
from pathlib import Path
from shutil import copytree

import numpy as np
import pandas as pd
import peer
import scvi
import torch
from anndata import AnnData
from flat import flat_hierarchy
from scipy import sparse
from scvi_prior import decode

from bdm._core import store
from bdm._core.files import atomic_write
from bdm._core.seeds import derive
from bdm.autoencoder.fit_autoencoder import Division
from bdm.autoencoder.latent import LatentCells, latent_cells, read_latent
from bdm.autoencoder.moments import Whitening, fit_whitening, population_moments
from bdm.autoencoder.sub_populations import find_parts
from bdm.hierarchy.files import load_hierarchy
from bdm.prior.base import LatentPrior, PriorData
from bdm.settings import PRIORS, AutoencoderSettings, TrainSettings

EPOCHS, PATIENCE, WARMUP, LEARNING_RATE = 100, 15, 30, 4e-3
NETWORK, MODEL = "scvi", "latents"  # folder of scVI, and name of the model file


@dataclass(frozen=True)
class LatentModel:
    """A prior of latents, with the training cells."""

    cells: LatentCells
    whitening: Whitening
    prior: LatentPrior


def autoencoder(prepared: Path, folder: Path, *, n_steps: int = -1, seed: int = 0) -> None:
    """Train scVI, and write the output of `bdm autoencoder`.

    ``n_steps`` is the maximum number of minibatches; -1 for no limit.
    """
    adata = peer.training_cells(prepared)
    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(adata)
    network = scvi.model.SCVI(adata, gene_likelihood="nb")
    held_out = (adata.obs["split"] == "validation").to_numpy()
    network.train(
        max_epochs=EPOCHS,
        max_steps=n_steps,
        early_stopping=True,
        early_stopping_patience=PATIENCE,
        plan_kwargs={"n_epochs_kl_warmup": WARMUP, "lr": LEARNING_RATE},
        datasplitter_kwargs={"external_indexing": [np.flatnonzero(~held_out), np.flatnonzero(held_out)]},
        enable_progress_bar=False,
    )
    mean, variance = network.get_latent_representation(return_dist=True)
    log_library = np.log(peer.library_sizes(adata).to_numpy(dtype=np.float32))[:, None]
    latent = AnnData(
        np.hstack([mean, log_library]),
        obs=adata.obs.assign(sub_population=sub_populations(adata.obs["cell_type"], mean, np.sqrt(variance), seed)),
        layers={"scale": np.hstack([np.sqrt(variance), np.zeros_like(log_library)])},
    )
    with atomic_write(folder, folder_of="latent.h5ad") as path:
        network.save(path / NETWORK, save_anndata=True)
        latent.write_h5ad(path / "latent.h5ad")
        pd.concat(network.history.values(), axis=1).to_csv(path / "training.csv")


def sub_populations(cell_type: pd.Series, mean: np.ndarray, scale: np.ndarray, seed: int) -> pd.Categorical:
    """Find the sub-population of each cell.

    Cells of undivided types have their cell type.
    """
    code, names = pd.factorize(cell_type.astype(str), sort=True)
    types = Division(tuple(names), torch.from_numpy(code))
    posteriors = torch.from_numpy(mean), torch.from_numpy(scale)
    refined = types.refined(find_parts(*posteriors, types.code, types.names, AutoencoderSettings(), seed=seed))
    return pd.Categorical.from_codes(refined.code.numpy(), categories=list(refined.names))


def train(
    autoencoder: Path,
    hierarchy: Path,
    model: Path,
    *,
    prior: str = TrainSettings.prior,
    by_type: bool = False,
    n_steps: int = TrainSettings.n_steps,
    seed: int = 0,
) -> None:
    """Fit a prior to the latents.

    With ``by_type``, populations are cell types, each with its own branch.
    """
    latent = read_latent(autoencoder)
    cells, tree = latent_cells(latent), load_hierarchy(hierarchy)
    if by_type:
        cells = merge_populations(cells)
        tree = flat_hierarchy(cells, seed=seed)
    whitening = fit_whitening(cells)
    validation = torch.tensor((latent.obs["split"] == "validation").to_numpy())
    data = PriorData(cells, whitening, population_moments(cells, whitening), tree, validation)
    settings = TrainSettings(prior=prior, n_steps=n_steps)
    fitted = PRIORS.find(prior).fit(data, settings, seed=seed, device="cpu")
    with atomic_write(model, folder_of=f"{MODEL}.json") as folder:
        store.save(folder, MODEL, LatentModel(cells, whitening, fitted.prior))
        copytree(autoencoder / NETWORK, folder / NETWORK)
        for name, table in fitted.history.items():
            table.to_csv(folder / f"{name}.csv", index=False)


def merge_populations(cells: LatentCells) -> LatentCells:
    """Merge the sub-populations of each cell type."""
    names = tuple(dict.fromkeys(cells.labels))
    type_of = torch.tensor([names.index(label) for label in cells.labels])
    return LatentCells(cells.mean, cells.scale, type_of[cells.population], names)


def draw(model: Path, numbers: pd.Series, seed: int) -> sparse.csr_matrix:
    """Draw cells of each type, with the training shares of its sub-populations."""
    network, fitted = scvi.model.SCVI.load(model / NETWORK), store.load(model, MODEL, LatentModel)
    scvi.settings.seed = derive(seed, "generate") % 2**32
    cells, layout = fitted.cells, fitted.cells.layout

    def draw_type(cell_type: str, n_cells: int, rng: np.random.Generator) -> np.ndarray:
        rows = [row for row, label in enumerate(cells.labels) if label == cell_type]
        n_training = cells.n_cells[rows].numpy()
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        numbers = zip(rows, rng.multinomial(n_cells, n_training / n_training.sum()), strict=True)
        x = torch.cat(
            [fitted.prior.sampler().sample(cells.populations[row], int(n), generator) for row, n in numbers if n]
        )
        y = fitted.whitening.inverse(x)
        sizes = cells.mean[:, layout.library_sizes]
        log_library = y[:, layout.library_sizes].clamp(sizes.amin(dim=0), sizes.amax(dim=0))
        return decode(network, y[:, layout.latent], log_library, batch=0)

    return peer.draw_in_blocks(numbers, draw_type, seed=seed)


if __name__ == "__main__":
    app = peer.commands(train=train, draw=draw)
    app.command("autoencoder")(autoencoder)
    app()
