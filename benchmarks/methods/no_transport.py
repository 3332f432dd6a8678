"""Ablation: `bdm` without transport: cells pass from a branch to its child unchanged."""

from collections.abc import Callable
from functools import partial

import ablation
from torch import Tensor

from bdm.diffusion.sampler import TreeWalk
from bdm.latent.moments import Normal


def identity(source: Normal, target: Normal, sigma: float) -> Callable[[Tensor], Tensor]:
    """Return the map that leaves cells where they are."""
    return lambda x: x


if __name__ == "__main__":
    ablation.run(sampler=partial(TreeWalk, transport=identity))
