"""Maps between populations that are mixtures of normals: transport at a node, and the flow of one normal."""

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

from bdm.latent.moments import Mixture, Normal, choose, matrix_power

Map = Callable[[Tensor, torch.Generator], Tensor]  # of cells, cells x dimensions
N_UPDATES = 1000  # of an unbalanced coupling


@dataclass(frozen=True)
class AffineMap:
    """The map x -> target + (x - source) A, cells x dimensions, computed in double precision."""

    source: Tensor
    matrix: Tensor
    target: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Map cells, cells x dimensions."""
        return (self.target + (x.double() - self.source) @ self.matrix).to(x.dtype)


def gaussian_transport(source: Normal, target: Normal, sigma: float) -> AffineMap:
    """Optimal transport map between two noised normal populations, given without noise.

    With S = covariance + sigma**2 I, the map from source v to target u is ``m_u + A (x - m_v)``,
    ``A = S_v^-1/2 (S_v^1/2 S_u S_v^1/2)^1/2 S_v^-1/2`` (Dowson & Landau 1982, J Multivar Anal 12:450).
    """
    one, other = (Mixture.of([normal]).noised(sigma) for normal in (source, target))
    return _map_of_components(one, 0, other, 0)


def _map_of_components(source: Mixture, one: int, target: Mixture, other: int) -> AffineMap:
    """Optimal transport map from a component of a mixture to a component of another."""
    root, inverse_root = source.roots[one], source.inverse_roots[one]
    matrix = inverse_root @ matrix_power(root @ target.covariance[other] @ root, 0.5) @ inverse_root
    return AffineMap(source.mean[one], matrix, target.mean[other])


@dataclass(frozen=True, eq=False)
class MixtureMap:
    """Transport between two noised mixtures: a coupling of components, and a map for each pair.

    For each cell, a component i of the source is drawn from its responsibilities, a component j of the target from the
    coupling given i, and the cell is mapped by the optimal map from normal i to normal j. It brings samples of the
    source exactly to the distribution of the target (Delon & Desolneux 2020, SIAM J Imaging Sci 13:936). Between one
    component each, it is :func:`gaussian_transport`.
    """

    source: Mixture
    target: Mixture

    @cached_property
    def plan(self) -> Tensor:
        """Share of each component of the target, given a component of the source; components x components."""
        return coupling(self.source, self.target)

    @cached_property
    def between(self) -> Callable[[int, int], Callable[[Tensor], Tensor]]:
        """Function that returns the map from a component of the source to one of the target; computes each once."""

        @cache
        def between(one: int, other: int) -> Callable[[Tensor], Tensor]:
            from_ = self.source.mean[one], self.source.covariance[one]
            to = self.target.mean[other], self.target.covariance[other]
            if all(map(torch.equal, from_, to)):
                return lambda x: x
            return _map_of_components(self.source, one, self.target, other)

        return between

    def __call__(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Map cells, cells x dimensions."""
        one = choose(self.source.responsibilities(x), generator)
        other = choose(self.plan[one], generator)
        mapped = torch.empty_like(x)
        pair = one * self.target.n_components + other
        for number in pair.unique().tolist():
            chosen = pair == number
            mapped[chosen] = self.between(*divmod(number, self.target.n_components))(x[chosen])
        return mapped


def coupling(source: Mixture, target: Mixture) -> Tensor:
    """Optimal coupling of the components of two mixtures, as the share of each target given each source.

    The cost of a pair of normals is the root of ``|m_i - m_j|**2 + |S_i^1/2 - S_j^1/2|**2``, which is their Wasserstein
    distance where the covariances commute, as they nearly do with noise, and else an upper bound. As it is a distance,
    not a squared one as in Delon & Desolneux 2020, cells of a component that both mixtures have stay there.
    """
    one, other = (torch.cat([mixture.mean, mixture.roots.flatten(1)], dim=1).numpy() for mixture in (source, target))
    return torch.from_numpy(optimal_coupling(source.weight.numpy(), target.weight.numpy(), cdist(one, other)))


def unbalanced_coupling(source: Mixture, target: Mixture, strength: float = 0.05) -> Tensor:
    """Coupling of the components of two mixtures whose shares may grow and shrink: logs of masses, source x target.

    The cost of a pair is the square of that of :func:`coupling`, relative to its mean. Added to it is ``strength``
    times the Kullback-Leibler divergence of the sums of masses from the weights; the minimum is found by majorisation
    (Chapel et al. 2021, NeurIPS).
    """
    one, other = (torch.cat([mixture.mean, mixture.roots.flatten(1)], dim=1) for mixture in (source, target))
    cost, mass = torch.cdist(one, other) ** 2, torch.outer(source.weight, target.weight)
    cost, mass = cost / (2 * strength * (mass * cost).sum().clamp(min=1e-30)), mass.log()
    for _ in range(N_UPDATES):
        grown = (source.weight.log() - mass.logsumexp(dim=1))[:, None] + target.weight.log() - mass.logsumexp(dim=0)
        mass = mass - cost + grown / 2
    return mass


def normal_flow(population: Normal, high: float, low: float) -> AffineMap:
    """Solution of the diffusion of a normal population from noise level ``high`` to ``low``, in closed form.

    In units of the spread of the noised population along its principal axes, the probability-flow ODE leaves cells
    where they are. ``low`` may be above ``high``.
    """
    variance, axes = torch.linalg.eigh(population.covariance.double())
    variance = variance.clamp(min=1e-10 * float(variance[-1]) + 1e-30)
    mean = population.mean.double()
    return AffineMap(mean, (axes * ((variance + low**2) / (variance + high**2)).sqrt()) @ axes.T, mean)


def gaussian_trend(population: Normal, sigma: float) -> AffineMap:
    """Compute the derivative of the denoised x by log sigma along the path of x, for a normal population."""
    covariance = population.covariance.double()
    noised = torch.linalg.inv(covariance + sigma**2 * torch.eye(len(covariance), dtype=torch.float64))
    matrix = -(sigma**2) * covariance @ noised @ noised
    mean = population.mean.double()
    return AffineMap(mean, matrix, torch.zeros_like(mean))


def optimal_coupling(source: np.ndarray, target: np.ndarray, cost: np.ndarray) -> np.ndarray:
    """Optimal transport of weights by ``cost`` (sources x targets), as the share of each target given each source."""
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
