"""Reproducible numbers: generators for named parts of a computation, minibatches of cells, tensors of arrays."""

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


def population_weight(n_cells: Tensor) -> Tensor:
    """Relative shares of populations in training: roots of their numbers of cells, so that rare ones are learned."""
    return n_cells.double().sqrt()


@dataclass(frozen=True)
class Minibatches:
    """Sampling of cells with replacement: a population by its weight, then any of its cells."""

    order: Tensor  # indices of cells, sorted by population
    n_cells: Tensor  # number of cells of each population

    @classmethod
    def from_populations(cls, population: Tensor) -> "Minibatches":
        """Group cells by the index of their population."""
        return cls(torch.argsort(population, stable=True), torch.bincount(population))

    def draw(self, size: int, generator: torch.Generator) -> Tensor:
        """Draw the indices of ``size`` cells."""
        population = torch.multinomial(population_weight(self.n_cells), size, replacement=True, generator=generator)
        within = torch.rand(size, generator=generator, dtype=torch.float64) * self.n_cells[population]
        start = self.n_cells.cumsum(0) - self.n_cells
        return self.order[start[population] + within.long()]


def to_tensor(array: np.ndarray) -> Tensor:
    """Copy an array to a tensor in aligned memory; elsewhere the last digits of products depend on the address."""
    return torch.tensor(array)
