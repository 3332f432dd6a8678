"""Strategies to transmute cells, in a model's whitened latent space."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bdm.diffusion.transport import gaussian_transport
from bdm.model.model import BranchedModel
from bdm.settings import SamplerSettings
from bdm.transmutation.request import mean
from bdm.transmutation.transmute import Transmute


def strategies(
    model: BranchedModel, flat: BranchedModel, alike: list[tuple[str, str]]
) -> Iterator[tuple[str, BranchedModel, Transmute]]:
    """Yield each strategy's name, the model whose space it works in, and its function.

    Parameters
    ----------
    alike
        Pairs of types (before, after), this one included; the common shift is their mean.
    """
    yield "branched", model, by_walk(model)
    yield "branched-stochastic", model, by_walk(model, stochastic=True)
    yield "flat", flat, by_walk(flat)
    yield "flat-relabelled", flat, by_walk(flat, stochastic=True)
    yield "mean difference", model, by_mean_difference(model)
    yield "linear map", model, by_linear_map(model)
    yield "common shift", model, by_common_shift(model, alike)
    yield "sampled anew", model, drawn(model)


def by_walk(model: BranchedModel, *, stochastic: bool = False) -> Transmute:
    """Transmute through the common ancestor, as `bdm transmute` does.

    In a flat model that is the root: with ``stochastic``, cells are noised to its level and given another label.
    """
    sampler = model.sampler(SamplerSettings(stochastic=stochastic))
    return sampler.transmute


def by_mean_difference(model: BranchedModel) -> Transmute:
    """Add the difference of the means of the two populations."""
    return lambda x, population, to, generator: x + mean(model, to) - mean(model, population)


def by_linear_map(model: BranchedModel) -> Transmute:
    """Apply the linear map that takes the one population's mean and covariance to the other's at least cost."""

    def move(x: Tensor, population: str, to: str, generator: torch.Generator) -> Tensor:
        return gaussian_transport(model.moments.mixture((population,)), model.moments.mixture((to,)), 0)(x)

    return move


def by_common_shift(model: BranchedModel, alike: list[tuple[str, str]]) -> Transmute:
    """Add the mean over pairs of types of the differences of their means.

    That is scGen's idea (Lotfollahi et al. 2019, https://doi.org/10.1038/s41592-019-0494-8), in bdm's latent space.
    """
    shift = torch.stack([mean(model, new) - mean(model, old) for old, new in alike]).mean(dim=0)
    return lambda x, population, to, generator: x + shift


def drawn(model: BranchedModel) -> Transmute:
    """Sample new cells of the population, which keep nothing of the given ones."""
    sampler = model.sampler()
    return lambda x, population, to, generator: sampler.independent(to, len(x), generator)
