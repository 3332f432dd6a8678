"""Reproducible numbers: generators for named parts of a computation, tensors of arrays."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # torch takes two seconds to import, which cells that are only read and prepared do without
    import torch


def derive(seed: int, *key: int | str) -> int:
    """Seed in [0, 2**63) for the part of a computation named by ``key``, so that parts can run in any order."""
    text = "\0".join([str(seed), *(f"{type(k).__name__}:{k}" for k in key)])
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


def torch_generator(seed: int, *key: int | str) -> torch.Generator:
    """Torch generator of the part named by ``key``, on the CPU so that all devices draw the same numbers."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *key))


def numpy_generator(seed: int, *key: int | str) -> np.random.Generator:
    """NumPy generator of the part named by ``key``."""
    return np.random.default_rng(derive(seed, *key))


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an array to a tensor in aligned memory; elsewhere the last digits of products depend on the address."""
    import torch

    return torch.tensor(array)
