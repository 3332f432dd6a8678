from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import torch
from torch import Tensor, nn

from bdm.arrays import to_tensor
from bdm.autoencoder.cells import (
    batch_codes,
    cell_blocks_of_type,
    evidence_lower_bounds,
    log_ratio,
    observed_and_expected,
)
from bdm.autoencoder.network import DISPERSION_PACE, CountAutoencoder
from bdm.seeds import derive
from bdm.training import Loop, train

N_ITERATIONS = 3  # of Newton's method in training; more do not make a better model


@dataclass(frozen=True)
class AdapterSettings:
    """How an autoencoder is adapted to one cell type.

    Attributes
    ----------
    loading_scale, expression_scale, dispersion_scale
        How far a loading, a gene's mean log expression and its log dispersion may be expected to move from those that
        they start from, as standard deviations.
    n_prior
        Counts, in means over genes, that the expression that it starts from weighs as much as.
    """

    loading_scale: float = 0.1
    expression_scale: float = 1.0
    dispersion_scale: float = 2.5
    n_prior: float = 5.0
    n_steps: int = 60
    batch_size: int = 64
    learning_rate: float = 2e-2


@torch.no_grad()
def of_type(network: CountAutoencoder, code: int | slice) -> CountAutoencoder:
    """Copy an autoencoder for one type, with the dispersion and mean latent of the type ``code``, or of several."""
    with torch.device("meta"):  # where a network has no values yet, and so draws none
        copied = CountAutoencoder(replace(network.shape, n_types=1))
    by_type = {"type_dispersion": network.type_dispersion, "prior_sum": network.prior_mean}
    rows = {name: values[code].reshape(-1, values.shape[1]).mean(dim=0)[None] for name, values in by_type.items()}
    state = network.state_dict() | rows | {"prior_weight": torch.ones(1)}
    copied.load_state_dict({name: value.clone() for name, value in state.items()}, assign=True)
    return copied


def adapted(
    network: CountAutoencoder,
    cells: ad.AnnData,
    batches: tuple[str, ...],
    settings: AdapterSettings,
    *,
    least_gain: float,
    seed: int,
) -> CountAutoencoder | None:
    """Adapt a first guess to the cells of its type; it stays in the latent space of all.

    Parameters
    ----------
    cells
        Prepared cells of the type, with ``obs['split']``.
    batches
        Names of the batches that the first guess knows.
    least_gain
        Mean gain in the log likelihood of held-out cells, in standard errors.

    Returns
    -------
    None if held-out cells gain less.
    """
    split = cells.obs["split"].to_numpy()
    training, held_out = (cells[split == name].copy() for name in ("train", "validation"))
    first, network = network, of_type(network, 0)
    set_expression(network, training, batches, n_prior=settings.n_prior)
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    network.batch_offset.requires_grad_(False)
    codes = batch_codes(training, batches)

    def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
        rows = torch.randint(training.n_obs, (settings.batch_size,), generator=generator)
        counts = to_tensor(training.X[rows.numpy()].toarray())
        noise = torch.randn(len(counts), network.shape.n_latent, generator=generator)
        value, _ = network(counts, torch.zeros_like(rows), codes[rows], noise, n_iterations=N_ITERATIONS)
        return value.mean() + distance(network, start, settings) / training.n_obs

    def validation(network: nn.Module) -> Tensor:
        return -torch.from_numpy(likelihood(network, held_out, batches, seed=seed)).mean()

    loop = Loop(
        settings.n_steps, settings.learning_rate, seed=derive(seed, "adapter"), n_warmup=20, validate_every=50,
        device="cpu", what=f"the decoder of type {cells.obs['cell_type'].iloc[0]!r}", averaging=0.95, shown=False,
    )  # fmt: skip
    train(network, loss, loop, validation=validation if held_out.n_obs else None)
    if held_out.n_obs:
        before, after = (likelihood(of, held_out, batches, seed=seed) for of in (first, network))
        if gain_in_errors(before, after) < least_gain:
            return None
    return network.eval().requires_grad_(False)


def likelihood(network: CountAutoencoder, cells: ad.AnnData, batches: tuple[str, ...], *, seed: int) -> np.ndarray:
    """Bound on the log likelihood of each cell of the type, by an autoencoder of that type alone."""
    types = torch.zeros(cells.n_obs, dtype=torch.long)
    return evidence_lower_bounds(network, cells, types, batch_codes(cells, batches), seed=seed)


def gain_in_errors(before: np.ndarray, after: np.ndarray) -> float:
    """Mean gain in cells' log likelihoods, in its standard errors."""
    gain = after - before
    return float(gain.mean() * np.sqrt(len(gain)) / max(gain.std(), 1e-9))


@torch.no_grad()
def set_expression(network: CountAutoencoder, cells: ad.AnnData, batches: tuple[str, ...], *, n_prior: float) -> None:
    """Set the decoder's offset so that the type's mean expression is that of the cells."""
    counts = observed_and_expected(network, cell_blocks_of_type(cells, batches))
    network.loadings.bias.add_(log_ratio(*counts, n_prior=n_prior))


def distance(network: CountAutoencoder, start: dict[str, Tensor], settings: AdapterSettings) -> Tensor:
    """Negative log prior of the adapted parameters: normal around those that they start from."""
    scales = {
        "loadings.weight": (network.loadings.weight, settings.loading_scale),
        "loadings.bias": (network.loadings.bias, settings.expression_scale),
        "paced_dispersion": (network.paced_dispersion, settings.dispersion_scale / DISPERSION_PACE),
        "type_dispersion": (network.type_dispersion, settings.dispersion_scale),
    }
    return sum(((value - start[name]) ** 2).sum() / scale**2 for name, (value, scale) in scales.items()) / 2
