"""Ablation: `bdm` with a normal distribution in latent space in place of each cell type's diffusion."""

from dataclasses import replace

import torch
from torch import Tensor

from bdm.cli import main
from bdm.diffusion.walk import TreeWalk


def independent(self: TreeWalk, cell_type: str, n_cells: int, generator: torch.Generator) -> Tensor:
    """Draw cells from the normal that has the moments of their type."""
    return self.start(replace(self.hierarchy.segment(cell_type), high=0.0, low=0.0), n_cells, generator)


if __name__ == "__main__":
    TreeWalk.independent = independent
    main()
