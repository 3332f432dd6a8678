import math
from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bdm.autoencoder.bounds import bounds, bounds_by_type
from bdm.autoencoder.network import AutoencoderShape, CountAutoencoder
from bdm.checkpoint import Checkpoint
from bdm.errors import InputError
from bdm.seeds import derive, numpy_generator
from bdm.tensors import tensor_of
from bdm.training import Loop, train

N_START = 10_000  # cells that the network starts from
N_START_OF_TYPE = 20  # cells of each type that are among them
N_ITERATIONS = 3  # of Newton's method in training; more do not make a better model


@dataclass(frozen=True)
class AutoencoderSettings:
    """Settings of the count autoencoder that a user may choose.

    Attributes
    ----------
    loading_scale
        Standard deviation of the loadings' normal prior: how far one standard deviation of a latent dimension may be
        expected to change a gene's log expression. Small values leave only what many genes and cells agree on.
    """

    n_latent: int = 30
    loading_scale: float = 0.1
    n_steps: int = 400
    batch_size: int = 256
    learning_rate: float = 1e-2

    def __post_init__(self):
        if not 0 < self.loading_scale < math.inf:
            raise InputError(f"loading_scale is {self.loading_scale}, but must be above 0.")


@dataclass(frozen=True)
class FittedAutoencoder:
    """A trained autoencoder with the cell types and batches it knows and how training went.

    Attributes
    ----------
    likelihood
        Of validation cells by type, see :func:`bdm.autoencoder.bounds.bounds_by_type`; of training cells where there
        are none.
    """

    network: CountAutoencoder
    cell_types: tuple[str, ...]
    batches: tuple[str, ...]
    history: pd.DataFrame
    likelihood: pd.DataFrame


def fit_autoencoder(
    adata: ad.AnnData,
    settings: AutoencoderSettings,
    *,
    seed: int,
    device: str = "auto",
    checkpoint: Checkpoint | None = None,
) -> FittedAutoencoder:
    """Train the autoencoder on the training cells, stopped where validation cells are most likely.

    Every step encodes cells by their posterior under the present parameters, and improves the parameters for them:
    expectation maximisation in minibatches.

    Parameters
    ----------
    adata
        Prepared counts: ``X`` cells x genes in CSR, ``obs['split']``, ``obs['cell_type']``, and ``obs['batch']`` if
        batches enter.
    checkpoint
        Where training goes on from, if it was interrupted.
    """
    cell_types, batches = type_names(adata), batch_names(adata)
    types, codes = type_codes(adata, cell_types), batch_codes(adata, batches)
    split = adata.obs["split"].to_numpy()
    training, held_out = np.flatnonzero(split == "train"), np.flatnonzero(split == "validation")
    shape = AutoencoderShape(adata.n_vars, len(cell_types), settings.n_latent, len(batches))
    sample = starting_cells(adata.obs["cell_type"], training, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder"))
        network = CountAutoencoder(shape)
        network.start_from(tensor_of(adata.X[sample].toarray()), types[sample])

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        drawn = torch.randint(len(training), (settings.batch_size,), generator=generator)
        cells, where = training[drawn.numpy()], next(network.parameters()).device
        counts = tensor_of(adata.X[cells].toarray()).to(where)
        noise = torch.randn(len(cells), shape.n_latent, generator=generator).to(where)
        value, latent = network(
            counts, types[cells].to(where), codes[cells].to(where), noise, n_iterations=N_ITERATIONS
        )
        network.follow(types[cells].to(latent.device), latent)
        return value.mean() + network.penalty(loading_scale=settings.loading_scale) / len(training)

    def validation(network: nn.Module) -> Tensor:
        found = bounds(network, adata[held_out], types[held_out], codes[held_out], seed=derive(seed, "validation"))
        return -torch.from_numpy(found).mean()

    loop = Loop(
        settings.n_steps, settings.learning_rate, seed=derive(seed, "autoencoder steps"), device=device, n_warmup=50
    )
    history = train(network, loss, loop, validation=validation if len(held_out) else None, checkpoint=checkpoint)
    network = network.cpu().eval()
    network.turn(_mean_precision(network, adata[sample], types[sample], codes[sample]))
    judged = held_out if len(held_out) else sample
    likelihood = bounds_by_type(network, adata[judged], types[judged], codes[judged], cell_types, seed=seed)
    return FittedAutoencoder(network, cell_types, batches, history, likelihood)


def starting_cells(cell_type: pd.Series, training: np.ndarray, *, seed: int) -> np.ndarray:
    """Draw the cells to start from: some of all, and some of each type."""
    shuffled = numpy_generator(seed, "start").permutation(training)
    place = cell_type.iloc[shuffled].groupby(cell_type.iloc[shuffled], observed=True).cumcount().to_numpy()
    return shuffled[(np.arange(len(shuffled)) < N_START) | (place < N_START_OF_TYPE)]


@torch.no_grad()
def _mean_precision(network: CountAutoencoder, adata: ad.AnnData, types: Tensor, codes: Tensor) -> Tensor:
    total = torch.zeros(network.shape.n_latent, network.shape.n_latent)
    for start in range(0, adata.n_obs, 512):
        rows = slice(start, start + 512)
        counts = tensor_of(adata.X[rows].toarray())
        total += network.encode(counts, types[rows], codes[rows]).precision.sum(dim=0)
    return total / adata.n_obs


def type_names(adata: ad.AnnData) -> tuple[str, ...]:
    """Names of the cell types of prepared cells."""
    return tuple(adata.obs["cell_type"].cat.categories)


def type_codes(adata: ad.AnnData, cell_types: tuple[str, ...]) -> Tensor:
    """Index of each cell's type among ``cell_types``."""
    return tensor_of(pd.Index(cell_types).get_indexer(adata.obs["cell_type"].astype(str)).astype(np.int64))


def batch_names(adata: ad.AnnData) -> tuple[str, ...]:
    """Names of the batches of prepared cells; none where no batch enters."""
    return tuple(adata.obs["batch"].cat.categories) if "batch" in adata.obs else ()


def batch_codes(adata: ad.AnnData, batches: tuple[str, ...]) -> Tensor:
    """Index of each cell's batch among ``batches``; 0 where no batch enters."""
    if not batches:
        return torch.zeros(adata.n_obs, dtype=torch.long)
    return tensor_of(pd.Index(batches).get_indexer(adata.obs["batch"].astype(str)).astype(np.int64))
