"""Whitened space, and the normals in it: moments of each population, and mixtures of normals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from bdm._core.store import updated
from bdm.autoencoder.sub_populations import N_SHRINK
from bdm.latent.cells import LatentCells


@dataclass(frozen=True)
class Whitening:
    """Affine map x = (y - centre) W^-1/2 to the space where populations have unit covariance on average.

    In it, the Euclidean distance between means of populations is the Mahalanobis distance, a noise level has the same
    meaning in every direction, and library size is a coordinate like the others.
    """

    centre: Tensor  # mean of y = (latent, log library sizes)
    covariance: Tensor  # W: within populations, pooled over cells, plus the mean posterior variance
    _whiten: Tensor = field(init=False, repr=False, compare=False)
    _colour: Tensor = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_whiten", matrix_power(self.covariance, -0.5))
        object.__setattr__(self, "_colour", matrix_power(self.covariance, 0.5))

    def __call__(self, y: Tensor) -> Tensor:
        """Whiten y, cells x dimensions."""
        return self.linear(y - self.centre)

    def linear(self, difference: Tensor) -> Tensor:
        """Whiten differences between values of y, cells x dimensions."""
        return difference @ self._whiten

    def direction(self, coordinate: int) -> Tensor:
        """Direction in whitened space along which a coordinate of y grows: ``y[:, k] = x @ direction + centre[k]``."""
        return self._colour[:, coordinate]

    def inverse(self, x: Tensor) -> Tensor:
        """Transform whitened x back to y, cells x dimensions."""
        return x @ self._colour + self.centre

    def variance(self, scale: Tensor) -> Tensor:
        """Mean covariance in whitened space of independent errors in y with the given scales, cells x dimensions."""
        return self._whiten @ torch.diag((scale**2).mean(dim=0)) @ self._whiten


MIN_VARIANCE = 1e-4  # of log library sizes: counting noise of 10,000 counts, if they are the same in all cells


def fit_whitening(cells: LatentCells) -> Whitening:
    """Compute the whitening of cells from the moments of their posteriors."""
    within = cells.deviation
    pooled = within.T @ within / len(within)
    covariance = pooled + torch.diag((cells.scale**2).mean(dim=0))
    covariance.diagonal()[cells.layout.library_sizes].clamp_(min=MIN_VARIANCE)
    return Whitening(cells.mean.mean(dim=0), covariance)


@dataclass(frozen=True)
class Normal:
    """Mean (dimensions) and covariance (dimensions x dimensions) of a population in whitened space."""

    mean: Tensor
    covariance: Tensor


@dataclass(frozen=True)
class PopulationMoments:
    """Moments of each population in whitened space."""

    populations: tuple[str, ...]
    mean: Tensor  # populations x dimensions
    covariance: Tensor  # populations x dimensions x dimensions, shrunk to the identity (pooled) for few cells
    weight: Tensor  # share in training, and so in a mixture, up to a constant factor
    mean_variance: Tensor  # of means around those that more cells would have, see sampling_variance

    def joined(self, other: PopulationMoments) -> PopulationMoments:
        """Add the moments of other populations, which take the place of those with the same names."""
        return updated([self, other], by="populations")

    def mixture(self, populations: tuple[str, ...]) -> Normal:
        """Moments of a mixture of populations with their shares in training."""
        members = [self.populations.index(name) for name in populations]
        weight = self.weight[members] / self.weight[members].sum()
        return Mixture(weight, self.mean[members], self.covariance[members]).moments


def population_weight(n_cells: Tensor) -> Tensor:
    """Relative shares of populations in training: roots of their numbers of cells, so that rare ones are learned."""
    return n_cells.double().sqrt()


def population_moments(cells: LatentCells, whitening: Whitening) -> PopulationMoments:
    """Moments of the cells of each population, including the variance of their posteriors."""
    means, covariances = [], []
    for code in range(len(cells.populations)):
        chosen = cells.population == code
        x = whitening(cells.mean[chosen])
        means.append(x.mean(dim=0))
        covariance = torch.cov(x.T, correction=0) + whitening.variance(cells.scale[chosen])
        weight = float(len(x) / (len(x) + N_SHRINK))
        covariances.append(weight * covariance + (1 - weight) * torch.eye(x.shape[1]))
    return PopulationMoments(
        cells.populations,
        torch.stack(means),
        torch.stack(covariances),
        population_weight(cells.n_cells).float(),
        sampling_variance(cells, whitening),
    )


MIN_INFORMATION = 0.1  # of counts on a direction, as a share of counts and prior; below it, prior means hardly move


def without_prior(cells: LatentCells, whitening: Whitening) -> Tensor:
    """Deviation of what each cell's counts alone suggest from its population's mean, whitened, cells x dimensions."""
    return whitening.linear(cells.deviation / (1 - cells.scale**2).clamp(min=MIN_INFORMATION))


def sampling_variance(cells: LatentCells, whitening: Whitening) -> Tensor:
    """Estimate the sampling variance of each population's mean in whitened space, summed over dimensions.

    A posterior mean is the average of the prior mean, weighted by the posterior variance v (the prior has unit
    variance), and of what the cell's counts alone suggest. As the prior mean is fitted to the same cells, a
    population's mean is the mean of the latter, which deviate 1 / (1 - v) times as much as posterior means. The
    variance of n cells is estimated from n - 1 degrees of freedom and one of all populations, which is all that a
    population of one cell has.
    """
    n_populations, n_cells = len(cells.populations), cells.n_cells.double()
    squares = (without_prior(cells, whitening) ** 2).sum(dim=1).double()
    of_population = torch.zeros(n_populations, dtype=torch.float64).index_add(0, cells.population, squares)
    pooled = of_population.sum() / (n_cells.sum() - n_populations).clamp(min=1)
    return ((of_population + pooled) / n_cells.clamp(min=1) ** 2).float()


def matrix_power(matrix: Tensor, power: float) -> Tensor:
    """Real power of a symmetric positive definite matrix, computed in double precision."""
    values, vectors = torch.linalg.eigh(matrix.double())
    values = values.clamp(min=1e-10 * float(values[-1]))
    powered: Tensor = (vectors * values**power) @ vectors.T
    return powered.to(matrix.dtype)


# ---- mixtures


@dataclass(frozen=True, eq=False)
class Mixture:
    """Mixture of normals; in double precision wherever cells are sampled or mapped."""

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
