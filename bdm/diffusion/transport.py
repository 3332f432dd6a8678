"""Transport of cells from one branch's population to another's."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bdm.arrays import matrix_power
from bdm.latent.moments import Normal


@dataclass(frozen=True)
class AffineMap:
    """The map x -> target + (x - source) A, cells x dimensions."""

    source: Tensor
    matrix: Tensor
    target: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Map cells, cells x dimensions."""
        return self.target + (x - self.source) @ self.matrix


def gaussian_transport(parent: Normal, child: Normal, sigma: float) -> AffineMap:
    """Optimal transport from the parent's noised population to the child's, both taken as normal.

    At its branch point a parent's samples follow the parent's mixture. With S = covariance + sigma**2 I, the map
    ``m_u + A (x - m_v)``, ``A = S_v^-1/2 (S_v^1/2 S_u S_v^1/2)^1/2 S_v^-1/2``, brings them to the child's distribution
    (Dowson & Landau 1982, J Multivar Anal 12:450).

    Parameters
    ----------
    parent, child
        Moments of the two branches' cells without noise.
    sigma
        Noise level at which the child leaves its parent.
    """
    noise = sigma**2 * torch.eye(len(parent.mean), dtype=torch.float64)
    from_, to = parent.covariance.double() + noise, child.covariance.double() + noise
    root, inverse_root = matrix_power(from_, 0.5), matrix_power(from_, -0.5)
    matrix = inverse_root @ matrix_power(root @ to @ root, 0.5) @ inverse_root
    return AffineMap(parent.mean, matrix.to(parent.mean.dtype), child.mean)
