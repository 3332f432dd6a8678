"""Ablation: `bdm` without transport: cells pass from a branch to its child unchanged."""

from functools import partial

import ablation
import torch
from torch import Tensor

from bdm.diffusion.sampler import TreeWalk
from bdm.diffusion.transport import Map
from bdm.latent.mixtures import Mixture


def identity(source: Mixture, target: Mixture, sigma: float) -> Map:
    """Return the map that leaves cells where they are."""

    def unchanged(x: Tensor, generator: torch.Generator) -> Tensor:
        return x

    return unchanged


if __name__ == "__main__":
    ablation.run(sampler=partial(TreeWalk, transport=identity))
