"""Ablation: `bdm` whose cells go on from a branch to its child as they are, without hand-over."""

from collections.abc import Callable

from torch import Tensor

from bdm.cli import main
from bdm.diffusion.walk import TreeWalk


def transport(self: TreeWalk, parent: int, child: int, sigma: float) -> Callable[[Tensor], Tensor]:
    """Leave cells where they are."""
    return lambda x: x


if __name__ == "__main__":
    TreeWalk.transport = transport
    main()
