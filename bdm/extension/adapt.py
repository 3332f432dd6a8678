from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bdm.autoencoder.fit import batch_codes
from bdm.autoencoder.network import TYPE_DISPERSION_SCALE, AutoencoderShape, CountAutoencoder
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.seeds import derive, torch_generator
from bdm.tensors import tensor_of
from bdm.training import Loop, train

N_ITERATIONS = 3  # of Newton's method in training, as in that of all types
BLOCK = 512


@dataclass(frozen=True)
class AdapterSettings:
    """How an autoencoder is adapted to one new type.

    Attributes
    ----------
    loading_scale
        How far a loading may be expected to move from the shared one.
    n_prior
        Counts, in means over cells, that the shared decoder's expression of the type weighs as much as.
    """

    loading_scale: float = 0.1
    n_prior: float = 5.0
    n_steps: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-2


@dataclass(frozen=True)
class Adapted:
    """An autoencoder of a new type's own, and what it is worth.

    Attributes
    ----------
    before, after
        Bound on the log likelihood of each held-out cell, by the shared autoencoder and by its own.
    """

    network: CountAutoencoder
    before: np.ndarray
    after: np.ndarray
    history: pd.DataFrame


def adapted(cells: ad.AnnData, autoencoder: GeneAutoencoder, settings: AdapterSettings, *, seed: int) -> Adapted:
    """Give a new cell type an autoencoder of its own, which starts from the shared one and stays in its latent space.

    Parameters
    ----------
    cells
        Prepared cells of the type, with ``obs['split']``.
    """
    split = cells.obs["split"].to_numpy()
    training, held_out = np.flatnonzero(split == "train"), np.flatnonzero(split == "validation")
    codes, shared = batch_codes(cells, autoencoder.batches), autoencoder.network
    network = first_guess(cells[training], codes[training], shared)
    judged = held_out if len(held_out) else training
    before = bounds(network, cells[judged], codes[judged], seed=seed)
    set_expression(network, cells[training], codes[training], n_prior=settings.n_prior)
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    network.batch_offset.requires_grad_(False)

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        rows = training[torch.randint(len(training), (settings.batch_size,), generator=generator).numpy()]
        value = bound(network, cells[rows], codes[rows], generator)
        return value.mean() + distance(network, start, loading_scale=settings.loading_scale) / len(training)

    def validation(network: nn.Module) -> Tensor:
        return torch.from_numpy(-bounds(network, cells[judged], codes[judged], seed=seed)).mean()

    loop = Loop(
        settings.n_steps, settings.learning_rate, seed=derive(seed, "adapter"), n_warmup=20, validate_every=50,
        device="cpu", averaging=0.95,
    )  # fmt: skip
    history = train(network, loss, loop, validation=validation if len(held_out) else None)
    after = bounds(network, cells[judged], codes[judged], seed=seed)
    return Adapted(network.eval().requires_grad_(False), before, after, history)


@torch.no_grad()
def first_guess(cells: ad.AnnData, codes: Tensor, shared: CountAutoencoder) -> CountAutoencoder:
    """Make an autoencoder of one type from the shared one, which knows of the type no more than its mean latent."""
    shape = shared.shape
    network = CountAutoencoder(AutoencoderShape(shape.n_genes, 1, shape.n_latent, shape.n_batches))
    network.loadings.load_state_dict(shared.loadings.state_dict())
    network.batch_offset.copy_(shared.batch_offset)
    network.paced_dispersion.copy_(shared.paced_dispersion)
    network.type_dispersion.copy_(shared.type_dispersion.mean(dim=0, keepdim=True))
    network.prior_sum.copy_(shared.prior_mean.mean(dim=0, keepdim=True))
    for _ in range(5):  # the mean latent draws the posteriors, whose mean it is
        means = [
            network.encode(counts, types, codes_, n_iterations=6).mean for counts, types, codes_ in blocks(cells, codes)
        ]
        network.prior_sum.copy_(torch.cat(means).mean(dim=0, keepdim=True))
    return network


@torch.no_grad()
def set_expression(network: CountAutoencoder, cells: ad.AnnData, codes: Tensor, *, n_prior: float) -> None:
    """Set the decoder's offset so that the type's mean expression is that of the cells."""
    expected = torch.zeros(network.shape.n_genes)
    seen = torch.zeros(network.shape.n_genes)
    for counts, types, codes_ in blocks(cells, codes):
        latent = network.encode(counts, types, codes_, n_iterations=6).mean
        expected += (network.decode(latent, codes_).exp() * counts.sum(dim=1, keepdim=True)).sum(dim=0)
        seen += counts.sum(dim=0)
    share = expected / expected.sum()
    known = n_prior * share * len(share)
    network.loadings.bias.add_(((seen + known) / (expected + known)).log())


def distance(network: CountAutoencoder, start: dict[str, Tensor], *, loading_scale: float) -> Tensor:
    """Negative log prior of the adapted parameters: normal around those that they start from."""
    scales = {
        "loadings.weight": (network.loadings.weight, loading_scale),
        "loadings.bias": (network.loadings.bias, 1.0),
        "paced_dispersion": (network.paced_dispersion, TYPE_DISPERSION_SCALE),
        "type_dispersion": (network.type_dispersion, TYPE_DISPERSION_SCALE),
    }
    return sum(((value - start[name]) ** 2).sum() / scale**2 for name, (value, scale) in scales.items()) / 2


def bound(network: CountAutoencoder, cells: ad.AnnData, codes: Tensor, generator: torch.Generator) -> Tensor:
    """Negative evidence lower bound of each cell."""
    counts = tensor_of(cells.X.toarray())
    noise = torch.randn(len(counts), network.shape.n_latent, generator=generator)
    types = torch.zeros(len(counts), dtype=torch.long)
    return network(counts, types, codes, noise, n_iterations=N_ITERATIONS)[0]


@torch.no_grad()
def bounds(network: CountAutoencoder, cells: ad.AnnData, codes: Tensor, *, seed: int) -> np.ndarray:
    """Evidence lower bound of each cell's log likelihood."""
    generator = torch_generator(seed, "bounds")
    starts = range(0, cells.n_obs, BLOCK)
    parts = [bound(network, cells[i : i + BLOCK], codes[i : i + BLOCK], generator) for i in starts]
    return -torch.cat(parts).numpy()


def blocks(cells: ad.AnnData, codes: Tensor):
    """Yield counts, type codes and batch codes, block by block."""
    for start in range(0, cells.n_obs, BLOCK):
        counts = tensor_of(cells.X[start : start + BLOCK].toarray())
        yield counts, torch.zeros(len(counts), dtype=torch.long), codes[start : start + BLOCK]
