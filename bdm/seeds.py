from hashlib import sha256

import numpy as np
import torch


def derive(seed: int, *key: int | str) -> int:
    """Seed in [0, 2**63) for the part of a computation named by ``key``, so that parts can run in any order."""
    text = "\0".join([str(seed), *(f"{type(k).__name__}:{k}" for k in key)])
    return int.from_bytes(sha256(text.encode()).digest()[:8]) >> 1


def torch_generator(seed: int, *key: int | str) -> torch.Generator:
    """Torch generator, on the CPU so that every device sees the same draws."""
    return torch.Generator().manual_seed(derive(seed, *key))


def numpy_generator(seed: int, *key: int | str) -> np.random.Generator:
    """NumPy generator of the part named by ``key``."""
    return np.random.default_rng(derive(seed, *key))
