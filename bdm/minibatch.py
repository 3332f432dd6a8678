from dataclasses import dataclass

import torch
from torch import Tensor


def type_weight(n_cells: Tensor) -> Tensor:
    """Share of each type in training, up to a factor: the root of its cells, so that rare types are learnt too."""
    return n_cells.double().sqrt()


@dataclass(frozen=True)
class Minibatches:
    """Draws cells with replacement: a type by its weight, then any of its cells.

    Attributes
    ----------
    order
        Cells sorted by type.
    n_cells
        Cells of each type.
    """

    order: Tensor
    n_cells: Tensor

    @classmethod
    def of(cls, cell_type: Tensor) -> "Minibatches":
        """Make them from each cell's type, as an index."""
        return cls(torch.argsort(cell_type, stable=True), torch.bincount(cell_type))

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw the indices of ``size`` cells."""
        cell_type = torch.multinomial(type_weight(self.n_cells), size, replacement=True, generator=generator)
        within = torch.rand(size, generator=generator, dtype=torch.float64) * self.n_cells[cell_type]
        start = self.n_cells.cumsum(0) - self.n_cells
        return self.order[start[cell_type] + within.long()]
