"""Ablation: `bdm` with a normal distribution in latent space in place of each cell type's diffusion."""

import torch
from torch import Tensor

from bdm.cli import main
from bdm.diffusion.walk import TreeWalk
from bdm.hierarchy.tree import Segment


def independent(self: TreeWalk, cell_type: str, n_cells: int, generator: torch.Generator) -> Tensor:
    """Draw cells from the normal that has the moments of their type."""
    return self.start(Segment(cell_type, high=0.0, low=0.0), n_cells, generator)


if __name__ == "__main__":
    TreeWalk.independent = independent
    main()
