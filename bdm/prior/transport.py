"""Maps of cells (cells x dimensions) between normals and their mixtures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import linprog
from scipy.spatial.distance import cdist
from torch import Tensor

from bdm.autoencoder.moments import Mixture, Normal, matrix_power, sample_components


@dataclass(frozen=True)
class AffineMap:
    """Affine map ``target + (x - source) A``, computed in double precision."""

    source: Tensor
    matrix: Tensor
    target: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Map cells, cells x dimensions."""
        return (self.target + (x.double() - self.source) @ self.matrix).to(x.dtype)


def gaussian_transport(source: Normal, target: Normal, sigma: float) -> AffineMap:
    """Return the optimal transport map between two clean normals after adding noise.

    The map from normal i to normal j is ``m_j + A (x - m_i)``. With ``S = covariance + sigma**2 I``,
    ``A = S_i^-1/2 (S_i^1/2 S_j S_i^1/2)^1/2 S_i^-1/2`` (Dowson & Landau 1982, J Multivar Anal 12:450).
    """
    noised_source, noised_target = (Mixture.from_normals([normal]).noised(sigma) for normal in (source, target))
    return _component_map(noised_source, 0, noised_target, 0)


def _component_map(source: Mixture, i: int, target: Mixture, j: int) -> AffineMap:
    """Return the optimal transport map from source component i to target component j."""
    root, inverse_root = source.roots[i], source.inverse_roots[i]
    matrix = inverse_root @ matrix_power(root @ target.covariance[j] @ root, 0.5) @ inverse_root
    return AffineMap(source.mean[i], matrix, target.mean[j])


@dataclass(frozen=True, eq=False)
class MixtureMap:
    """Transport between two noised mixtures by a coupling of their components.

    Each cell draws a source component i from its responsibilities, then a target component j from the coupling given i.
    It moves by the optimal map from normal i to normal j. Mapped samples of the source follow the target
    distribution exactly (Delon & Desolneux 2020, SIAM J Imaging Sci 13:936).
    """

    source: Mixture
    target: Mixture

    @cached_property
    def plan(self) -> Tensor:
        """Probability of each target component given a source component, source x target."""
        return coupling(self.source, self.target)

    @cached_property
    def component_map(self) -> Callable[[int, int], Callable[[Tensor], Tensor]]:
        """Cached function: map from source component i to target component j."""

        @cache
        def component_map(i: int, j: int) -> Callable[[Tensor], Tensor]:
            from_ = self.source.mean[i], self.source.covariance[i]
            to = self.target.mean[j], self.target.covariance[j]
            if all(map(torch.equal, from_, to)):
                return lambda x: x
            return _component_map(self.source, i, self.target, j)

        return component_map

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Map cells, cells x dimensions."""
        i = sample_components(self.source.responsibilities(x), generator)
        j = sample_components(self.plan[i], generator)
        mapped = torch.empty_like(x)
        pairs = i * self.target.n_components + j
        for pair in pairs.unique().tolist():
            cells = pairs == pair
            mapped[cells] = self.component_map(*divmod(pair, self.target.n_components))(x[cells])
        return mapped


def coupling(source: Mixture, target: Mixture) -> Tensor:
    """Return the optimal coupling of two mixtures: probability of target given source components.

    The cost of a pair of normals is ``sqrt(|m_i - m_j|**2 + |S_i^1/2 - S_j^1/2|**2)``: their Wasserstein distance if
    the covariances commute (nearly true with noise), otherwise an upper bound. Unlike the squared distance of Delon &
    Desolneux 2020, a distance leaves components in place that both mixtures share.
    """
    cost = cdist(_component_points(source).numpy(), _component_points(target).numpy())
    return torch.from_numpy(optimal_coupling(source.weight.numpy(), target.weight.numpy(), cost))


def optimal_coupling(source: np.ndarray, target: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Solve optimal transport; returns the probability of targets given sources, as ``cost``."""
    source, target = source / source.sum(), target / target.sum()
    n_sources, n_targets = cost.shape
    if n_sources == 1 or n_targets == 1:
        return np.tile(target, (n_sources, 1))
    marginals: Any = sparse.vstack(
        [
            sparse.kron(sparse.eye(n_sources), np.ones((1, n_targets))),
            sparse.kron(np.ones((1, n_sources)), sparse.eye(n_targets)),
        ]
    )
    weights = np.concatenate([source, target])
    solution: Any = linprog(cost.ravel(), A_eq=marginals.tocsc(), b_eq=weights, method="highs")
    mass = np.clip(solution.x.reshape(cost.shape), 0, None)
    total = mass.sum(axis=1, keepdims=True)
    # sources below the tolerance of the solver may have no mass
    return np.where(total > 0, mass / np.where(total > 0, total, 1), target)


def _component_points(mixture: Mixture) -> Tensor:
    """Return a vector for each component; their distances are the costs of :func:`coupling`."""
    return torch.cat([mixture.mean, mixture.roots.flatten(1)], dim=1)


def normal_flow(normal: Normal, high: float, low: float) -> AffineMap:
    """Solve the probability-flow ODE of a normal from noise level ``high`` to ``low``.

    The ODE keeps the position of a cell along each principal axis, in standard deviations of the noised normal.
    ``low`` may exceed ``high``.
    """
    variance, axes = torch.linalg.eigh(normal.covariance.double())
    variance = variance.clamp(min=1e-10 * float(variance[-1]) + 1e-30)
    mean = normal.mean.double()
    return AffineMap(mean, (axes * ((variance + low**2) / (variance + high**2)).sqrt()) @ axes.T, mean)


def gaussian_trend(normal: Normal, sigma: float) -> AffineMap:
    """Return the derivative of the denoised x by log sigma for a normal."""
    covariance = normal.covariance.double()
    noised = torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64))
    matrix = -(sigma**2) * covariance @ noised @ noised
    mean = normal.mean.double()
    return AffineMap(mean, matrix, torch.zeros_like(mean))
