"""Means of populations: distances without sampling noise, and their clustering."""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from bdm.hierarchy.tree import Clade
from bdm.latent.moments import PopulationMoments


@dataclass(frozen=True)
class MeasuredMeans:
    """Means of populations that were measured with noise.

    Attributes
    ----------
    mean
        In whitened space, populations x dimensions.
    variance
        Sampling variance of each mean, summed over dimensions.
    """

    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, moments: PopulationMoments) -> "MeasuredMeans":
        """Take the means of the moments."""
        return cls(moments.mean.double().numpy(), moments.mean_variance.double().numpy())

    def subset(self, rows: list[int]) -> "MeasuredMeans":
        """Take the means of some of the populations."""
        return MeasuredMeans(self.mean[rows], self.variance[rows])


def cluster_means(means: MeasuredMeans, populations: tuple[str, ...]) -> Clade:
    """Tree of populations by average linkage of squared distances between their means.

    Noising x_t = a x_0 + s e leaves the mean squared distance between two classes larger than within them by exactly
    a**2 |mu_i - mu_j|**2, so this is the algorithm of Tseng et al. 2024 (arXiv 2212.10777) in expectation.
    """
    clades = [Clade(name) for name in populations]
    for first, second in merges(squared_distances(means)):
        clades.append(Clade(children=(clades[first], clades[second])))
    return clades[-1]


def clades_of(means: MeasuredMeans) -> set[frozenset[int]]:
    """Find the sets of populations, as indices, that are clades in the clustering of their means."""
    n_populations = len(means.mean)
    members = [frozenset([i]) for i in range(n_populations)]
    for first, second in merges(squared_distances(means)):
        members.append(members[first] | members[second])
    return set(members[n_populations:])


def squared_distances(means: MeasuredMeans) -> np.ndarray:
    """Squared distances between the means of populations, without the noise of the measured means.

    Measured means are farther from each other than the means of more cells would be: their squared distance is larger
    by the sum of their sampling variances on average. Differences below 0 are kept, as they average out in larger
    clades.

    Returns
    -------
    One value per pair of populations, in the order of :func:`scipy.spatial.distance.pdist`.
    """
    first, second = np.triu_indices(len(means.mean), k=1)
    measured: np.ndarray = pdist(means.mean, "sqeuclidean")
    return np.asarray(measured - means.variance[first] - means.variance[second])


def merges(squares: np.ndarray) -> list[tuple[int, int]]:
    """Pairs that average linkage merges, in order; merged ones are numbered after the given ones, as by SciPy.

    Parameters
    ----------
    squares
        Squared distances of pairs, in the order of :func:`scipy.spatial.distance.pdist`.
    """
    if not len(squares):
        return []
    return [(int(first), int(second)) for first, second, _, _ in linkage(squares, method="average")]
