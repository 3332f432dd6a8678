"""Distances between two samples, what chance gives to samples of one distribution, and standard errors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import pearson3

TINY = np.finfo(float).tiny


@dataclass(frozen=True)
class Chance:
    """What chance gives to a score without a difference: its standard deviation around 0, and its skewness."""

    deviation: float
    skewness: float = 0.0

    def largest(self, level: float) -> float:
        """Value that is exceeded with a probability of ``level``, by a Pearson distribution of type III."""
        return float(self.deviation * pearson3.isf(level, max(self.skewness, 0.0)))


@dataclass(frozen=True)
class PairDistances:
    """Euclidean distances between all pairs of samples of two sets, x and y."""

    matrix: np.ndarray  # samples of x, then those of y, by the same
    n: int  # number of samples of x

    @classmethod
    def between(cls, x: np.ndarray, y: np.ndarray) -> PairDistances:
        """Compute them from coordinates, samples x dimensions."""
        both = np.concatenate([x, y])
        return cls(cdist(both, both), len(x))

    @property
    def within_x(self) -> np.ndarray:
        """Distances between samples of x."""
        return self.matrix[: self.n, : self.n]

    @property
    def within_y(self) -> np.ndarray:
        """Distances between samples of y."""
        return self.matrix[self.n :, self.n :]

    @property
    def across(self) -> np.ndarray:
        """Distances of samples of x to samples of y."""
        return self.matrix[: self.n, self.n :]

    @cached_property
    def spread(self) -> float:
        """Mean distance between two samples of y, in units of the space."""
        return mean_of_pairs(self.within_y)

    @property
    def energy(self) -> float:
        """Energy distance, see :func:`energy_distance`."""
        return float(2 * self.across.mean() - mean_of_pairs(self.within_x) - self.spread)

    @cached_property
    def energy_chance(self) -> Chance:
        """Energy distance if samples are assigned to x and y at random, in closed form.

        The eigenvalues of the centred distances weight the chi-squared variables whose sum the energy distance of
        samples of one distribution is. Unbiased centring: Székely and Rizzo 2014, https://doi.org/10.1214/14-AOS1255.
        """
        n_x, n_y = self.across.shape
        n = n_x + n_y
        if n < 4:
            return Chance(np.nan, np.nan)
        sums = self.matrix.sum(axis=0) / (n - 2)
        centred = (self.matrix - sums - sums[:, None] + sums.sum() / (n - 1)).astype(np.float32)
        np.fill_diagonal(centred, 0)
        squares = max(float(np.vdot(centred, centred)), TINY)
        cubes = -float(np.vdot(centred @ centred, centred))  # minus, as a distance is the opposite of a product
        deviation = (1 / n_x + 1 / n_y) * np.sqrt(2 * squares / (n * (n - 3)))
        return Chance(float(deviation), float(np.sqrt(8) * cubes / squares**1.5))

    @property
    def energy_error(self) -> float:
        """Standard error of the energy distance, by the influence of each sample on it."""
        n_x, n_y = self.across.shape
        of_x = self.across.mean(axis=1) - self.within_x.sum(axis=1) / (n_x - 1)
        of_y = self.across.mean(axis=0) - self.within_y.sum(axis=1) / (n_y - 1)
        return float(2 * np.sqrt(of_x.var(ddof=1) / n_x + of_y.var(ddof=1) / n_y))

    @property
    def maximum_mean_discrepancy(self) -> float:
        """Squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance; unbiased.

        Gretton et al. 2012, Journal of Machine Learning Research 13:723-773.
        """
        squared = self.matrix**2
        width = max(np.median(squared[np.triu_indices(len(squared), k=1)]), TINY)
        kernel = np.exp(-squared / (2 * width))
        n = self.n
        return float(mean_of_pairs(kernel[:n, :n]) + mean_of_pairs(kernel[n:, n:]) - 2 * kernel[:n, n:].mean())


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Energy distance between two samples, ``2 E|x - y| - E|x - x'| - E|y - y'|``; NaN with fewer than two of either.

    Unbiased, so it may be slightly negative: Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018.
    """
    return PairDistances.between(x, y).energy


def mean_of_pairs(matrix: np.ndarray) -> float:
    """Mean of a square matrix without its diagonal: over pairs of different samples; NaN with fewer than two."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1))) if n > 1 else float("nan")
