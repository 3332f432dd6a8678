"""Ways to move cells from one type to another, in a model's whitened latent space."""

from collections.abc import Iterator

import torch
from torch import Tensor

from bdm.diffusion.transport import gaussian_transport
from bdm.diffusion.walk import TreeWalk
from bdm.model.model import BranchedModel
from bdm.settings import SamplerSettings
from bdm.transmutation.request import mean
from bdm.transmutation.transmute import Transmute


def moves(
    model: BranchedModel, flat: BranchedModel, to: str, alike: list[tuple[str, str]]
) -> Iterator[tuple[str, BranchedModel, Transmute]]:
    """Name all ways to move cells to a type, each with the model whose space it is in.

    Parameters
    ----------
    alike
        Pairs of types (before, after) of which the move is one; a shift common to all is their mean.
    """
    yield "branched", model, walked(model, to)
    yield "branched-stochastic", model, walked(model, to, stochastic=True)
    yield "flat", flat, walked(flat, to)
    yield "flat-relabelled", flat, walked(flat, to, stochastic=True)
    yield "mean difference", model, shifted(model, to)
    yield "linear map", model, mapped(model, to)
    yield "common shift", model, shifted_alike(model, alike)
    yield "drawn anew", model, drawn(model, to)


def walked(model: BranchedModel, to: str, *, stochastic: bool = False) -> Transmute:
    """Go through the common ancestor, as `bdm transmute` does.

    In a flat model that is the root: with ``stochastic``, cells are noised to its level and given another label.
    """
    walk = TreeWalk(model.denoiser, model.hierarchy, SamplerSettings(stochastic=stochastic))
    return lambda x, cell_type, generator: walk.move(x, cell_type, to, generator)


def shifted(model: BranchedModel, to: str) -> Transmute:
    """Add the difference of the means of the two types."""
    return lambda x, cell_type, generator: x + mean(model, to) - mean(model, cell_type)


def mapped(model: BranchedModel, to: str) -> Transmute:
    """Apply the linear map that takes the one type's mean and covariance to the other's at least cost."""

    def move(x: Tensor, cell_type: str, generator: torch.Generator) -> Tensor:
        return gaussian_transport(model.moments.mixture((cell_type,)), model.moments.mixture((to,)), 0)(x)

    return move


def shifted_alike(model: BranchedModel, alike: list[tuple[str, str]]) -> Transmute:
    """Add the mean over pairs of types of the differences of their means.

    That is scGen's idea (Lotfollahi et al. 2019, https://doi.org/10.1038/s41592-019-0494-8), in bdm's latent space.
    """
    shift = torch.stack([mean(model, new) - mean(model, old) for old, new in alike]).mean(dim=0)
    return lambda x, cell_type, generator: x + shift


def drawn(model: BranchedModel, to: str) -> Transmute:
    """Draw cells of the type anew, of which nothing is kept."""
    walk = TreeWalk(model.denoiser, model.hierarchy, SamplerSettings())
    return lambda x, cell_type, generator: walk.independent(to, len(x), generator)
