"""Small operations on arrays and tensors."""

from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
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


def optimal_coupling(source: np.ndarray, target: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Discrete optimal transport between two distributions, as the share of each target given each source.

    Parameters
    ----------
    source, target
        Positive weights, up to a constant factor each.
    cost
        Of a unit that is moved, sources x targets.

    Returns
    -------
    Sources x targets; the rows sum to 1.
    """
    source, target = source / source.sum(), target / target.sum()
    n_sources, n_targets = cost.shape
    if n_sources == 1 or n_targets == 1:
        return np.tile(target, (n_sources, 1))
    given: Any = sparse.vstack(
        [
            sparse.kron(sparse.eye(n_sources), np.ones((1, n_targets))),
            sparse.kron(np.ones((1, n_sources)), sparse.eye(n_targets)),
        ]
    )
    found: Any = linprog(cost.ravel(), A_eq=given.tocsc(), b_eq=np.concatenate([source, target]), method="highs")
    moved = np.clip(found.x.reshape(cost.shape), 0, None)
    total = moved.sum(axis=1, keepdims=True)
    # A share below the tolerance of the solver may be 0
    return np.where(total > 0, moved / np.where(total > 0, total, 1), target)
