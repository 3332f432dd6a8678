from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bdm.autoencoder.network import AutoencoderShape, CountAutoencoder
from bdm.seeds import derive, numpy_generator, torch_generator
from bdm.tensors import tensor_of
from bdm.training import Loop, train

N_START = 10_000  # cells that the network's scales are set by


@dataclass(frozen=True)
class AutoencoderSettings:
    """Settings of the count autoencoder that a user may choose.

    Attributes
    ----------
    dropout
        Share of genes that the encoder does not see of a cell in a training step.
    """

    n_latent: int = 20
    n_hidden: int = 128
    kl_weight: float = 0.1
    dropout: float = 0.5
    n_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 3e-3


@dataclass(frozen=True)
class FittedAutoencoder:
    """A trained autoencoder with the genes and batches it knows and how training went."""

    network: CountAutoencoder
    batches: tuple[str, ...]
    history: pd.DataFrame


def fit_autoencoder(
    adata: ad.AnnData, settings: AutoencoderSettings, *, seed: int, device: str = "auto"
) -> FittedAutoencoder:
    """Train the autoencoder on the training cells, stopped where validation cells are most likely.

    Parameters
    ----------
    adata
        Prepared counts: ``X`` cells x genes in CSR, ``obs['split']``, and ``obs['batch']`` if batches enter.
    """
    batches = batch_names(adata)
    codes = batch_codes(adata, batches)
    split = adata.obs["split"].to_numpy()
    training, held_out = np.flatnonzero(split == "train"), np.flatnonzero(split == "validation")
    shape = AutoencoderShape(adata.n_vars, settings.n_latent, settings.n_hidden, len(batches))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "autoencoder"))
        network = CountAutoencoder(shape)
    sample = numpy_generator(seed, "start").permutation(training)[:N_START]
    network.start_from(tensor_of(adata.X[sample].toarray()))

    def bound(network: nn.Module, cells: np.ndarray, generator: torch.Generator, dropout: float) -> Tensor:
        where = next(network.parameters()).device
        counts = tensor_of(adata.X[cells].toarray()).to(where)
        noise = torch.randn(len(cells), shape.n_latent, generator=generator).to(where)
        kept = None
        if dropout:
            kept = (torch.rand(counts.shape, generator=generator) >= dropout).to(where) / (1 - dropout)
        return network(counts, codes[cells].to(where), noise, settings.kl_weight, kept).mean()

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        drawn = torch.randint(len(training), (settings.batch_size,), generator=generator)
        return bound(network, training[drawn.numpy()], generator, settings.dropout)

    def validation(network: nn.Module) -> Tensor:
        generator = torch_generator(seed, "validation")
        parts = np.array_split(held_out, -(-len(held_out) // 512))
        return sum(bound(network, part, generator, 0.0) * len(part) for part in parts) / len(held_out)

    loop = Loop(settings.n_steps, settings.learning_rate, seed=derive(seed, "autoencoder steps"), device=device)
    history = train(network, loss, loop, validation=validation if len(held_out) else None)
    return FittedAutoencoder(network.cpu().eval(), batches, history)


def batch_names(adata: ad.AnnData) -> tuple[str, ...]:
    """Names of the batches of prepared cells; none where no batch enters."""
    return tuple(adata.obs["batch"].cat.categories) if "batch" in adata.obs else ()


def batch_codes(adata: ad.AnnData, batches: tuple[str, ...]) -> Tensor:
    """Index of each cell's batch among ``batches``; 0 where no batch enters."""
    if not batches:
        return torch.zeros(adata.n_obs, dtype=torch.long)
    return tensor_of(pd.Index(batches).get_indexer(adata.obs["batch"].astype(str)).astype(np.int64))
