import torch
from torch import Tensor


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """Real power of a symmetric positive definite matrix, computed in double precision."""
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp(min=1e-10 * float(values[-1]))
    return ((vectors * values**power) @ vectors.T).to(matrix.dtype)
