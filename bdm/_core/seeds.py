"""Reproducible numbers: seeds for named parts of a computation, and aligned tensors."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # importing torch takes two seconds; reading and preparing cells does not need it
    import torch


def derive(seed: int, *key: int | str) -> int:
    """Derive a seed below 2**63 for the part of a computation called ``key``.

    Parts have independent numbers, and may run in any order.
    """
    text = "\0".join([str(seed), *(f"{type(k).__name__}:{k}" for k in key)])
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


def torch_generator(seed: int, *key: int | str) -> torch.Generator:
    """Return a CPU generator for ``key``; all devices draw the same numbers."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *key))


def numpy_generator(seed: int, *key: int | str) -> np.random.Generator:
    """Return a NumPy generator for ``key``."""
    return np.random.default_rng(derive(seed, *key))


def to_tensor(array: np.ndarray) -> torch.Tensor:
    """Copy an array into aligned memory; sharing unaligned memory changes the last digits."""
    import torch

    return torch.tensor(array)
