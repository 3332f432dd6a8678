"""Ablation: `bdm` with a normal distribution in latent space in place of each cell type's diffusion."""

from dataclasses import replace

import ablation
import torch
from torch import Tensor

from bdm.diffusion.walk import TreeWalk


class NormalTypes(TreeWalk):
    """Draws cells from the normal that has the moments of their type."""

    def independent(self, cell_type: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells of one type, cells x dimensions."""
        return self.start(replace(self.hierarchy.segment(cell_type), high=0.0, low=0.0), n_cells, generator)


if __name__ == "__main__":
    ablation.run(walk=NormalTypes)
