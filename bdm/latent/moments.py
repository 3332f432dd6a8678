"""Moments of latents: whitening, and a normal for each population."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from bdm._core.seeds import population_weight
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
    n_populations, n_dims = len(cells.populations), cells.mean.shape[1]
    sums = torch.zeros(n_populations, n_dims).index_add(0, cells.population, cells.mean)
    means = sums / cells.n_cells.clamp(min=1)[:, None]
    within = cells.mean - means[cells.population]
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
        mean = weight @ self.mean[members]
        between = self.mean[members] - mean
        within = torch.einsum("p,pij->ij", weight, self.covariance[members])
        return Normal(mean, within + torch.einsum("p,pi,pj->ij", weight, between, between))


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
    sums = torch.zeros(len(cells.populations), cells.mean.shape[1]).index_add(0, cells.population, cells.mean)
    means = sums / cells.n_cells.clamp(min=1)[:, None]
    deviation = (cells.mean - means[cells.population]) / (1 - cells.scale**2).clamp(min=MIN_INFORMATION)
    return whitening.linear(deviation)


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
