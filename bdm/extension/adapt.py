from collections.abc import Iterator
from dataclasses import dataclass

import anndata as ad
import numpy as np
import torch
from torch import Tensor, nn

from bdm.autoencoder.bounds import bounds
from bdm.autoencoder.fit import N_ITERATIONS, batch_codes
from bdm.autoencoder.network import TYPE_DISPERSION_SCALE, AutoencoderShape, CountAutoencoder
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.seeds import derive
from bdm.tensors import tensor_of
from bdm.training import Loop, train

BLOCK = 512
Block = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class AdapterSettings:
    """How an autoencoder is adapted to one cell type.

    Attributes
    ----------
    loading_scale
        How far a loading may be expected to move from the one that it starts from.
    n_prior
        Counts, in means over cells, that the expression that it starts from weighs as much as.
    """

    loading_scale: float = 0.1
    n_prior: float = 5.0
    n_steps: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-2


def first_guess(cells: ad.AnnData, cell_type: str, autoencoder: GeneAutoencoder) -> CountAutoencoder:
    """Make an autoencoder of one cell type, which knows of it what the model does; of a new one, its mean latent."""
    if cell_type in autoencoder.cell_types:
        return of_type(autoencoder.network_of(cell_type), autoencoder.type_code(cell_type))
    network = of_type(autoencoder.network, slice(None))
    with torch.no_grad():
        for _ in range(5):  # the mean latent draws the posteriors, whose mean it is
            means = [network.encode(*block, n_iterations=6).mean for block in blocks(cells, autoencoder)]
            network.prior_sum.copy_(torch.cat(means).mean(dim=0, keepdim=True))
    return network


@torch.no_grad()
def of_type(network: CountAutoencoder, code: int | slice) -> CountAutoencoder:
    """Copy an autoencoder for one type, with the dispersion and mean latent of the type ``code``, or of several."""
    shape = network.shape
    copied = CountAutoencoder(AutoencoderShape(shape.n_genes, 1, shape.n_latent, shape.n_batches))
    by_type = {"type_dispersion": network.type_dispersion, "prior_sum": network.prior_mean}
    rows = {name: values[code].reshape(-1, values.shape[1]).mean(dim=0)[None] for name, values in by_type.items()}
    copied.load_state_dict(network.state_dict() | rows | {"prior_weight": torch.ones(1)})
    return copied


def adapted(
    network: CountAutoencoder,
    cells: ad.AnnData,
    autoencoder: GeneAutoencoder,
    settings: AdapterSettings,
    *,
    least_gain: float,
    seed: int,
) -> CountAutoencoder:
    """Adapt a first guess to the cells of its type; it stays in the latent space of all.

    Parameters
    ----------
    cells
        Prepared cells of the type, with ``obs['split']``.
    least_gain
        Mean gain in the log likelihood of held-out cells, in standard errors, for less than which the first guess is
        given back.
    """
    split = cells.obs["split"].to_numpy()
    training, held_out = cells[split == "train"], cells[split == "validation"]
    first, network = network, of_type(network, 0)
    set_expression(network, training, autoencoder, n_prior=settings.n_prior)
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    network.batch_offset.requires_grad_(False)
    codes = batch_codes(training, autoencoder.batches)

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(training.n_obs, (settings.batch_size,), generator=generator)
        counts = tensor_of(training.X[rows.numpy()].toarray())
        noise = torch.randn(len(counts), network.shape.n_latent, generator=generator)
        value, _ = network(counts, torch.zeros_like(rows), codes[rows], noise, n_iterations=N_ITERATIONS)
        return value.mean() + distance(network, start, loading_scale=settings.loading_scale) / training.n_obs

    def validation(network: nn.Module) -> Tensor:
        return -torch.from_numpy(likelihood(network, held_out, autoencoder, seed=seed)).mean()

    loop = Loop(
        settings.n_steps, settings.learning_rate, seed=derive(seed, "adapter"), n_warmup=20, validate_every=50,
        device="cpu", averaging=0.95,
    )  # fmt: skip
    train(network, loss, loop, validation=validation if held_out.n_obs else None)
    if held_out.n_obs:
        before, after = (likelihood(of, held_out, autoencoder, seed=seed) for of in (first, network))
        if gain_in_errors(before, after) < least_gain:
            network = of_type(first, 0)
    return network.eval().requires_grad_(False)


def likelihood(network: CountAutoencoder, cells: ad.AnnData, autoencoder: GeneAutoencoder, *, seed: int) -> np.ndarray:
    """Bound on the log likelihood of each cell of the type, by an autoencoder of that type alone."""
    types = torch.zeros(cells.n_obs, dtype=torch.long)
    return bounds(network, cells, types, batch_codes(cells, autoencoder.batches), seed=seed)


def gain_in_errors(before: np.ndarray, after: np.ndarray) -> float:
    """Mean gain in cells' log likelihoods, in its standard errors."""
    gain = after - before
    return float(gain.mean() * np.sqrt(len(gain)) / max(gain.std(), 1e-9))


@torch.no_grad()
def set_expression(
    network: CountAutoencoder, cells: ad.AnnData, autoencoder: GeneAutoencoder, *, n_prior: float
) -> None:
    """Set the decoder's offset so that the type's mean expression is that of the cells."""
    counts = seen_and_expected(network, blocks(cells, autoencoder))
    network.loadings.bias.add_(log_ratio(*counts, n_prior=n_prior))


@torch.no_grad()
def seen_and_expected(network: CountAutoencoder, blocks: Iterator[Block]) -> tuple[Tensor, Tensor]:
    """Count each gene in cells, and tell how much the autoencoder expects of it in them."""
    seen, expected = torch.zeros(network.shape.n_genes), torch.zeros(network.shape.n_genes)
    for counts, types, codes in blocks:
        latent = network.encode(counts, types, codes, n_iterations=6).mean
        expected += (network.decode(latent, codes).exp() * counts.sum(dim=1, keepdim=True)).sum(dim=0)
        seen += counts.sum(dim=0)
    return seen, expected


def log_ratio(seen: Tensor, expected: Tensor, *, n_prior: float) -> Tensor:
    """Log of how much more of each gene was seen than expected, drawn to 0 where few were.

    Parameters
    ----------
    seen, expected
        Counts of each gene.
    n_prior
        Counts, in means over genes, that weigh for the expectation.
    """
    known = n_prior * len(expected) * expected / expected.sum()
    return ((seen + known) / (expected + known)).log()


def distance(network: CountAutoencoder, start: dict[str, Tensor], *, loading_scale: float) -> Tensor:
    """Negative log prior of the adapted parameters: normal around those that they start from."""
    scales = {
        "loadings.weight": (network.loadings.weight, loading_scale),
        "loadings.bias": (network.loadings.bias, 1.0),
        "paced_dispersion": (network.paced_dispersion, TYPE_DISPERSION_SCALE),
        "type_dispersion": (network.type_dispersion, TYPE_DISPERSION_SCALE),
    }
    return sum(((value - start[name]) ** 2).sum() / scale**2 for name, (value, scale) in scales.items()) / 2


def blocks(cells: ad.AnnData, autoencoder: GeneAutoencoder, *, code: int = 0) -> Iterator[Block]:
    """Yield counts, type codes and batch codes of cells of one type, which has the index ``code`` in its network."""
    codes = batch_codes(cells, autoencoder.batches)
    for start in range(0, cells.n_obs, BLOCK):
        counts = tensor_of(cells.X[start : start + BLOCK].toarray())
        yield counts, torch.full((len(counts),), code), codes[start : start + BLOCK]
