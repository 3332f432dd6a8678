"""Ablation: `bdm` with a normal distribution in latent space in place of each cell type's diffusion."""

import ablation
import torch
from torch import Tensor

from bdm.prior.sampler import HierarchicalSampler, sample_noised


class NormalTypes(HierarchicalSampler):
    """Samples cells at noise level 0 from the start of their type alone: the normal with its moments."""

    def sample(self, cell_type: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells of one type, cells x dimensions."""
        population = self.population(self.hierarchy.rows[cell_type], 0.0)
        return sample_noised(population, 0.0, n_cells, generator)


if __name__ == "__main__":
    ablation.run(sampler=NormalTypes)
