"""Small operations on arrays and tensors."""

import numpy as np
import torch
from torch import Tensor


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """Real power of a symmetric positive definite matrix, computed in double precision."""
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp(min=1e-10 * float(values[-1]))
    powered: Tensor = (vectors * values**power) @ vectors.T
    return powered.to(matrix.dtype)


def to_tensor(array: np.ndarray) -> Tensor:
    """Copy an array to a tensor in aligned memory; elsewhere the last digits of products depend on the address."""
    return torch.tensor(array)
