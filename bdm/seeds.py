"""Seeds and random draws: generators for named parts of a computation, and minibatches of cells."""

from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor


def derive(seed: int, *key: int | str) -> int:
    """Seed in [0, 2**63) for the part of a computation named by ``key``, so that parts can run in any order."""
    text = "\0".join([str(seed), *(f"{type(k).__name__}:{k}" for k in key)])
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


def torch_generator(seed: int, *key: int | str) -> torch.Generator:
    """Torch generator of the part named by ``key``, on the CPU so that all devices draw the same numbers."""
    return torch.Generator().manual_seed(derive(seed, *key))


def numpy_generator(seed: int, *key: int | str) -> np.random.Generator:
    """NumPy generator of the part named by ``key``."""
    return np.random.default_rng(derive(seed, *key))


def type_weight(n_cells: Tensor) -> Tensor:
    """Relative share of each type in training: the root of its number of cells, so that rare types are learned too."""
    return n_cells.double().sqrt()


@dataclass(frozen=True)
class Minibatches:
    """Sampling of cells with replacement: a type by its weight, then any of its cells.

    Attributes
    ----------
    order
        Indices of cells, sorted by type.
    n_cells
        Number of cells of each type.
    """

    order: Tensor
    n_cells: Tensor

    @classmethod
    def of(cls, cell_type: Tensor) -> "Minibatches":
        """Group cells by the index of their type."""
        return cls(torch.argsort(cell_type, stable=True), torch.bincount(cell_type))

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw the indices of ``size`` cells."""
        cell_type = torch.multinomial(type_weight(self.n_cells), size, replacement=True, generator=generator)
        within = torch.rand(size, generator=generator, dtype=torch.float64) * self.n_cells[cell_type]
        start = self.n_cells.cumsum(0) - self.n_cells
        return self.order[start[cell_type] + within.long()]
