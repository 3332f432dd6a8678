"""Whitened space: whitening, moments of populations, mixtures of normals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from bdm._core.store import updated
from bdm.autoencoder.latent import LatentCells
from bdm.autoencoder.sub_populations import N_SHRINK


@dataclass(frozen=True)
class Whitening:
    """Affine map x = (y - centre) W^-1/2 to whitened space.

    There, populations have unit covariance on average, and the Euclidean distance between their means is the
    Mahalanobis distance. A noise level has the same meaning in every direction, including library size.
    """

    centre: Tensor  # mean of y = (latent, log library sizes), dimensions
    covariance: Tensor  # W, pooled within populations, plus the mean posterior variance; dimensions x dimensions
    _whiten: Tensor = field(init=False, repr=False, compare=False)
    _colour: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_whiten", matrix_power(self.covariance, -0.5))
        object.__setattr__(self, "_colour", matrix_power(self.covariance, 0.5))

    def __call__(self, y: Tensor) -> Tensor:
        """Whiten y (cells x dimensions)."""
        return self.linear(y - self.centre)

    def linear(self, difference: Tensor) -> Tensor:
        """Whiten differences of y (cells x dimensions), without centring."""
        return difference @ self._whiten

    def colour(self, difference: Tensor) -> Tensor:
        """Transform differences of whitened x (cells x dimensions) to y, without centring."""
        return difference @ self._colour

    def direction(self, coordinate: int) -> Tensor:
        """Return the direction of coordinate k: ``y[:, k] = x @ direction + centre[k]``."""
        return self._colour[:, coordinate]

    def inverse(self, x: Tensor) -> Tensor:
        """Transform whitened x (cells x dimensions) to y."""
        return self.colour(x) + self.centre

    def variance(self, scale: Tensor) -> Tensor:
        """Return the mean whitened covariance of independent errors in y.

        ``scale`` are the standard deviations of the errors, cells x dimensions.
        """
        return self._whiten @ torch.diag((scale**2).mean(dim=0)) @ self._whiten


MIN_VARIANCE = 1e-4  # of log library sizes, if (almost) equal in all cells: Poisson noise of 10,000 counts


def fit_whitening(cells: LatentCells) -> Whitening:
    """Compute the whitening from posterior means and variances of cells."""
    within = cells.deviation
    pooled = within.T @ within / len(within)
    covariance = pooled + torch.diag((cells.scale**2).mean(dim=0))
    covariance.diagonal()[cells.layout.library_sizes].clamp_(min=MIN_VARIANCE)
    return Whitening(cells.mean.mean(dim=0), covariance)


@dataclass(frozen=True)
class Normal:
    """Normal distribution in whitened space."""

    mean: Tensor  # dimensions
    covariance: Tensor  # dimensions x dimensions


@dataclass(frozen=True)
class PopulationMoments:
    """Moments of each population in whitened space."""

    populations: tuple[str, ...]
    mean: Tensor  # populations x dimensions
    covariance: Tensor  # populations x dimensions x dimensions; with few cells, shrunk to the pooled one (identity)
    weight: Tensor  # relative share in training and in mixtures, populations
    mean_variance: Tensor  # sampling variance of means, populations; see sampling_variance

    def joined(self, added: PopulationMoments) -> PopulationMoments:
        """Add the moments of other populations; an existing name is replaced."""
        return updated([self, added], by="populations")

    def mixture_moments(self, populations: tuple[str, ...]) -> Normal:
        """Return the moments of a mixture of populations, weighted as in training."""
        members = [self.populations.index(name) for name in populations]
        weight = self.weight[members] / self.weight[members].sum()
        return Mixture(weight, self.mean[members], self.covariance[members]).moments


def population_weight(n_cells: Tensor) -> Tensor:
    """Weight populations by the square root of their cells, which favours rare ones."""
    return n_cells.double().sqrt()


def population_moments(cells: LatentCells, whitening: Whitening) -> PopulationMoments:
    """Compute the moments of each population, including posterior variances."""
    means, covariances = [], []
    for code in range(len(cells.populations)):
        members = cells.population == code
        x = whitening(cells.mean[members])
        means.append(x.mean(dim=0))
        covariance = torch.cov(x.T, correction=0) + whitening.variance(cells.scale[members])
        weight = float(len(x) / (len(x) + N_SHRINK))
        covariances.append(weight * covariance + (1 - weight) * torch.eye(x.shape[1]))
    return PopulationMoments(
        cells.populations,
        torch.stack(means),
        torch.stack(covariances),
        population_weight(cells.n_cells).float(),
        sampling_variance(cells, whitening),
    )


MIN_INFORMATION = 0.1  # minimum of 1 - posterior variance, the share of the counts in the posterior precision


def without_prior(cells: LatentCells, whitening: Whitening) -> Tensor:
    """Undo the shrinkage of posterior means towards their population mean.

    Returns whitened deviations of the estimates from counts alone, cells x dimensions.
    """
    return whitening.linear(cells.deviation / (1 - cells.scale**2).clamp(min=MIN_INFORMATION))


def sampling_variance(cells: LatentCells, whitening: Whitening) -> Tensor:
    """Estimate the sampling variance of population means in whitened space, summed over dimensions.

    The prior has unit variance. With posterior variance v, a posterior mean is v x prior mean + (1 - v) x estimate from
    counts alone. The prior mean is fitted to the same cells, so the population mean is the mean of these estimates.
    They deviate 1 / (1 - v) times as much as posterior means. The variance of n cells has n - 1 degrees of freedom,
    plus one from the variance pooled over populations, for populations of one cell.
    """
    n_populations, n_cells = len(cells.populations), cells.n_cells.double()
    squares = (without_prior(cells, whitening) ** 2).sum(dim=1).double()
    sums = torch.zeros(n_populations, dtype=torch.float64).index_add(0, cells.population, squares)
    pooled = sums.sum() / (n_cells.sum() - n_populations).clamp(min=1)
    return ((sums + pooled) / n_cells.clamp(min=1) ** 2).float()


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """Compute a real power of a symmetric positive definite matrix in double precision."""
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp(min=1e-10 * float(values[-1]))
    powered: Tensor = (vectors * values**power) @ vectors.T
    return powered.to(matrix.dtype)


# ---- mixtures


@dataclass(frozen=True, eq=False)
class Mixture:
    """Mixture of normals; in double precision when cells are sampled or mapped."""

    weight: Tensor  # shares of components; sum to 1
    mean: Tensor  # components x dimensions
    covariance: Tensor  # components x dimensions x dimensions

    @classmethod
    def from_normals(cls, normals: Sequence[Normal], weight: Tensor | None = None) -> Mixture:
        """Create a mixture of normals with relative weights, equal by default."""
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
        """Add isotropic noise of standard deviation ``sigma``."""
        noise = sigma**2 * torch.eye(self.mean.shape[1], dtype=torch.float64)
        return Mixture(self.weight, self.mean, self.covariance + noise)

    @cached_property
    def moments(self) -> Normal:
        """Normal with the mean and covariance of the mixture."""
        mean = self.weight @ self.mean
        between = self.mean - mean
        within = torch.einsum("k,kij->ij", self.weight, self.covariance)
        return Normal(mean, within + torch.einsum("k,ki,kj->ij", self.weight, between, between))

    @cached_property
    def principal_axes(self) -> tuple[Tensor, Tensor]:
        """Principal axes (columns) of each component, and the positive variances along them."""
        variance, axes = torch.linalg.eigh(self.covariance)
        return axes, torch.maximum(variance, 1e-10 * variance[:, -1:].clamp(min=1e-10))

    @cached_property
    def roots(self) -> Tensor:
        """Symmetric square root of each covariance, components x dimensions x dimensions."""
        axes, variance = self.principal_axes
        return (axes * variance.sqrt()[:, None]) @ axes.mT

    @cached_property
    def inverse_roots(self) -> Tensor:
        """Inverse square root of each covariance, components x dimensions x dimensions."""
        axes, variance = self.principal_axes
        return (axes * variance.rsqrt()[:, None]) @ axes.mT

    def sample(self, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells, cells x dimensions."""
        component = sample_components(self.weight.expand(n_cells, -1), generator)
        noise = torch.randn(n_cells, self.mean.shape[1], generator=generator, dtype=torch.float64)
        x = self.mean[component]
        for number in component.unique():
            members = component == number
            x[members] += noise[members] @ self.roots[number]
        return x

    def responsibilities(self, x: Tensor) -> Tensor:
        """Return the probability of each component given x (cells x dimensions), cells x components."""
        axes, variance = self.principal_axes
        along = project_to_axes(x.double(), self.mean, axes)
        return log_densities(along, variance, self.weight.log()).softmax(dim=0).T

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log density of each cell (cells x dimensions) in nats."""
        axes, variance = self.principal_axes
        along = project_to_axes(x.double(), self.mean, axes)
        constant = self.mean.shape[1] * math.log(2 * math.pi) / 2
        return log_densities(along, variance, self.weight.log()).logsumexp(dim=0) - constant

    def conditioned(self, direction: Tensor, value: float) -> Mixture:
        """Condition the mixture on ``x @ direction == value``."""
        direction = direction.double()
        along = self.covariance @ direction  # components x dimensions
        variance = along @ direction
        mean = self.mean + along * ((value - self.mean @ direction) / variance)[:, None]
        explained = torch.einsum("ki,kj->kij", along, along) / variance[:, None, None]
        weight = self.log_densities_along(direction, value).softmax(dim=0)
        return Mixture(weight, mean, self.covariance - explained)

    def log_densities_along(self, direction: Tensor, value: float) -> Tensor:
        """Return log(weight x density) of ``x @ direction`` at ``value``, by component."""
        direction = direction.double()
        variance = torch.einsum("i,kij,j->k", direction, self.covariance, direction)
        squares = (value - self.mean @ direction) ** 2 / variance
        return self.weight.log() - (2 * math.pi * variance).log() / 2 - squares / 2

    def denoised(self, x: Tensor, sigma: float) -> Tensor:
        """Return the expected clean cells given cells x (cells x dimensions) with noise ``sigma``."""
        axes, variance = self.principal_axes
        return denoised_by_mixture(x.double(), self.weight.log(), self.mean, axes, variance, sigma**2)


def project_to_axes(x: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Project x to the principal axes of each component, relative to its mean.

    x is cells x dimensions, ``axes`` are in columns; the result is components x cells x dimensions.
    """
    return (x - mean[:, None]) @ axes


def log_densities(along: Tensor, variance: Tensor, log_weight: Tensor) -> Tensor:
    """Compute log(weight x density) of normals up to a constant, components x cells.

    ``along`` are coordinates from :func:`project_to_axes`; ``variance`` is along the axes, components x dimensions.
    """
    squares = (along**2 / variance[:, None]).sum(dim=-1)
    return (log_weight - variance.log().sum(dim=-1) / 2)[:, None] - squares / 2


def denoised_by_mixture(
    x: Tensor, log_weight: Tensor, mean: Tensor, axes: Tensor, variance: Tensor, noise: Tensor | float
) -> Tensor:
    """Denoise cells by the Wiener filter of each component, weighted by responsibility.

    Computes ``sum_k r_k(x) (m_k + C_k (C_k + noise)**-1 (x - m_k))``, where r_k is the responsibility of
    ``N(m_k, C_k + noise)``. The covariance C_k has principal ``axes`` (in columns) with ``variance`` along them;
    ``noise`` is a variance.
    """
    along = project_to_axes(x, mean, axes)
    noised = variance + noise
    share = log_densities(along, noised, log_weight).softmax(dim=0)
    clean = (along * (variance / noised)[:, None]) @ axes.mT + mean[:, None]
    return torch.einsum("kn,knd->nd", share, clean)


def sample_components(probability: Tensor, generator: torch.Generator) -> Tensor:
    """Sample a column for each row of probabilities, from one uniform number per row."""
    position = torch.rand(len(probability), 1, generator=generator, dtype=torch.float64)
    cumulative = probability.double().cumsum(dim=1)
    columns = torch.searchsorted(cumulative, position * cumulative[:, -1:], right=True)
    # Rounding can lead past the last column with positive probability
    last = (cumulative < cumulative[:, -1:]).sum(dim=1, keepdim=True)
    return torch.minimum(columns, last).squeeze(1)
