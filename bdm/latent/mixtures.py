"""Mixtures of normals in whitened space: moments, samples, responsibilities, and denoised cells."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bdm.latent.moments import Normal


@dataclass(frozen=True, eq=False)
class Mixture:
    """Mixture of normals, in double precision."""

    weight: Tensor  # shares that sum to 1
    mean: Tensor  # components x dimensions
    covariance: Tensor  # components x dimensions x dimensions

    @classmethod
    def of(cls, normals: Sequence[Normal], weight: Tensor | None = None) -> Mixture:
        """Mixture of normals with relative weights, which are equal if not given."""
        relative = torch.ones(len(normals)) if weight is None else weight
        return cls(
            relative.double() / relative.double().sum(),
            torch.stack([normal.mean for normal in normals]).double(),
            torch.stack([normal.covariance for normal in normals]).double(),
        )

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.weight)

    def noised(self, sigma: float) -> Mixture:
        """Add noise of standard deviation ``sigma``."""
        noise = sigma**2 * torch.eye(self.mean.shape[1], dtype=torch.float64)
        return Mixture(self.weight, self.mean, self.covariance + noise)

    @cached_property
    def moments(self) -> Normal:
        """Normal with the mean and the covariance of the mixture."""
        mean = self.weight @ self.mean
        between = self.mean - mean
        within = torch.einsum("k,kij->ij", self.weight, self.covariance)
        return Normal(mean, within + torch.einsum("k,ki,kj->ij", self.weight, between, between))

    @cached_property
    def principal_axes(self) -> tuple[Tensor, Tensor]:
        """Principal axes (in columns) of each component, and the variances along these, which are above 0."""
        variance, axes = torch.linalg.eigh(self.covariance)
        return axes, torch.maximum(variance, 1e-10 * variance[:, -1:].clamp(min=1e-10))

    @cached_property
    def roots(self) -> Tensor:
        """Symmetric root of each covariance, components x dimensions x dimensions."""
        axes, variance = self.principal_axes
        return (axes * variance.sqrt()[:, None]) @ axes.mT

    @cached_property
    def inverse_roots(self) -> Tensor:
        """Inverse of the symmetric root of each covariance, components x dimensions x dimensions."""
        axes, variance = self.principal_axes
        return (axes * variance.rsqrt()[:, None]) @ axes.mT

    def sample(self, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells, cells x dimensions."""
        component = choose(self.weight.expand(n_cells, -1), generator)
        noise = torch.randn(n_cells, self.mean.shape[1], generator=generator, dtype=torch.float64)
        x = self.mean[component]
        for number in component.unique():
            chosen = component == number
            x[chosen] += noise[chosen] @ self.roots[number]
        return x

    def responsibilities(self, x: Tensor) -> Tensor:
        """Probability of each component given x (cells x dimensions), cells x components."""
        axes, variance = self.principal_axes
        along = along_axes(x.double(), self.mean, axes)
        return log_densities(along, variance, self.weight.log()).softmax(dim=0).T

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of each cell (cells x dimensions), in nats."""
        axes, variance = self.principal_axes
        along = along_axes(x.double(), self.mean, axes)
        constant = self.mean.shape[1] * math.log(2 * math.pi) / 2
        return log_densities(along, variance, self.weight.log()).logsumexp(dim=0) - constant

    def conditioned(self, direction: Tensor, value: float) -> Mixture:
        """Conditional normals where the product with a direction is ``value``, weighted by their densities of it."""
        direction = direction.double()
        along = self.covariance @ direction  # components x dimensions
        variance = along @ direction
        mean = self.mean + along * ((value - self.mean @ direction) / variance)[:, None]
        explained = torch.einsum("ki,kj->kij", along, along) / variance[:, None, None]
        weight = self.log_densities_of(direction, value).softmax(dim=0)
        return Mixture(weight, mean, self.covariance - explained)

    def log_densities_of(self, direction: Tensor, value: float) -> Tensor:
        """Log of the weight of each component times its density where the product with a direction is ``value``."""
        direction = direction.double()
        variance = torch.einsum("i,kij,j->k", direction, self.covariance, direction)
        squares = (value - self.mean @ direction) ** 2 / variance
        return self.weight.log() - (2 * math.pi * variance).log() / 2 - squares / 2

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """Mean of the cells without noise, given cells x with noise of ``sigma``, cells x dimensions."""
        axes, variance = self.principal_axes
        return denoised_by_mixture(x.double(), self.weight.log(), self.mean, axes, variance, sigma**2)


def along_axes(x: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Coordinates of x (cells x dimensions) along the axes of each component, components x cells x dimensions."""
    return (x - mean[:, None]) @ axes


def log_densities(along: Tensor, variance: Tensor, log_weight: Tensor) -> Tensor:
    """Log densities of weighted normals up to a constant, components x cells.

    ``along`` are coordinates by :func:`along_axes`, ``variance`` is components x dimensions.
    """
    squares = (along**2 / variance[:, None]).sum(dim=-1)
    return (log_weight - variance.log().sum(dim=-1) / 2)[:, None] - squares / 2


def denoised_by_mixture(
    x: Tensor, log_weight: Tensor, mean: Tensor, axes: Tensor, variance: Tensor, noise: Tensor | float
) -> Tensor:
    """Denoised x (cells x dimensions): the Wiener filter of each normal, weighted by its responsibility.

    ``sum_k r_k(x) (m_k + C_k (C_k + noise)**-1 (x - m_k))``, with r_k the responsibilities of ``N(m_k, C_k + noise)``;
    C_k has principal axes (in columns) and variances along these, ``noise`` is a variance.
    """
    along = along_axes(x, mean, axes)
    noised = variance + noise
    share = log_densities(along, noised, log_weight).softmax(dim=0)
    clean = (along * (variance / noised)[:, None]) @ axes.mT + mean[:, None]
    return torch.einsum("kn,knd->nd", share, clean)


def choose(probability: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a column for each row of probabilities, by one uniform number a row."""
    position = torch.rand(len(probability), 1, generator=generator, dtype=torch.float64)
    cumulative = probability.double().cumsum(dim=1)
    columns = torch.searchsorted(cumulative, position * cumulative[:, -1:], right=True)
    # The last column with a positive probability, where rounding leads beyond it
    last = (cumulative < cumulative[:, -1:]).sum(dim=1, keepdim=True)
    return torch.minimum(columns, last).squeeze(1)
