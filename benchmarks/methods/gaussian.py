"""Ablation: a normal distribution for each cell type, without diffusion."""

import ablation
import torch
from torch import Tensor

from bdm.prior.mixture import HierarchicalSampler, sample_noised


class NormalTypes(HierarchicalSampler):
    """Samples cells from a normal with the moments of their type."""

    def sample(self, cell_type: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells of one type, cells x dimensions."""
        return sample_noised(self.mixture(self.hierarchy.rows[cell_type], 0.0), 0.0, n_cells, generator)


if __name__ == "__main__":
    ablation.run(sampler=NormalTypes)
