from dataclasses import dataclass

import torch
from torch import Tensor

from bdm.latent.cells import LatentCells
from bdm.linalg import matrix_power


@dataclass(frozen=True)
class Whitening:
    """Affine map x = (y - centre) W^-1/2 to the space in which cell types have unit covariance on average.

    There the Euclidean distance between type means is Mahalanobis distance, the noise level of the diffusion has one
    meaning in every direction, and library size is a coordinate like the others.

    Attributes
    ----------
    centre
        Mean of y = (latent, log library size).
    covariance
        W: covariance within types, pooled over cells, plus the mean posterior variance.
    """

    centre: Tensor
    covariance: Tensor

    def __post_init__(self):
        object.__setattr__(self, "_whiten", matrix_power(self.covariance, -0.5))
        object.__setattr__(self, "_colour", matrix_power(self.covariance, 0.5))

    def __call__(self, y: Tensor) -> Tensor:
        """Whiten y, cells x dimensions."""
        return (y - self.centre) @ self._whiten

    def inverse(self, x: Tensor) -> Tensor:
        """Bring whitened x back, cells x dimensions."""
        return x @ self._colour + self.centre

    def variance(self, scale: Tensor) -> Tensor:
        """Mean covariance in whitened space of independent errors in y with the given scales, cells x dimensions."""
        return self._whiten @ torch.diag((scale**2).mean(dim=0)) @ self._whiten


def fit_whitening(cells: LatentCells) -> Whitening:
    """Whitening of the given cells, from the moments of their posteriors."""
    n_types, n_dims = len(cells.cell_types), cells.mean.shape[1]
    sums = torch.zeros(n_types, n_dims).index_add(0, cells.cell_type, cells.mean)
    means = sums / cells.n_cells.clamp(min=1)[:, None]
    within = cells.mean - means[cells.cell_type]
    pooled = within.T @ within / len(within)
    return Whitening(cells.mean.mean(dim=0), pooled + torch.diag((cells.scale**2).mean(dim=0)))
