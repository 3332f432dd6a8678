"""Means of populations: distances without sampling noise, and their clustering."""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from bdm.hierarchy.tree import Clade
from bdm.latent.moments import TypeMoments


@dataclass(frozen=True)
class MeasuredMeans:
    """Means of cell types that were measured with noise.

    Attributes
    ----------
    mean
        In whitened space, types x dimensions.
    variance
        Sampling variance of each mean, summed over dimensions.
    """

    mean: np.ndarray
    variance: np.ndarray

    @classmethod
    def of(cls, moments: TypeMoments) -> "MeasuredMeans":
        """Take the means of the moments."""
        return cls(moments.mean.double().numpy(), moments.mean_variance.double().numpy())

    def subset(self, rows: list[int]) -> "MeasuredMeans":
        """Take the means of some of the types."""
        return MeasuredMeans(self.mean[rows], self.variance[rows])


def cluster_means(means: MeasuredMeans, cell_types: tuple[str, ...]) -> Clade:
    """Tree of cell types by average linkage of squared distances between their means.

    Noising x_t = a x_0 + s e leaves the mean squared distance between two classes larger than within them by exactly
    a**2 |mu_i - mu_j|**2, so this is the algorithm of Tseng et al. 2024 (arXiv 2212.10777) in expectation.
    """
    clades = [Clade(cell_type) for cell_type in cell_types]
    for first, second in merges(squared_distances(means)):
        clades.append(Clade(children=(clades[first], clades[second])))
    return clades[-1]


def clades_of(means: MeasuredMeans) -> set[frozenset[int]]:
    """Find the sets of types, as indices, that are clades in the clustering of their means."""
    n_types = len(means.mean)
    members = [frozenset([i]) for i in range(n_types)]
    for first, second in merges(squared_distances(means)):
        members.append(members[first] | members[second])
    return set(members[n_types:])


def squared_distances(means: MeasuredMeans) -> np.ndarray:
    """Squared distances between the means of populations, without the noise of the measured means.

    Measured means are farther from each other than the means of the populations: their squared distance is larger by
    the sum of their sampling variances on average. Differences below 0 are kept, as they average out in larger clades.

    Returns
    -------
    One value per pair of types, in the order of :func:`scipy.spatial.distance.pdist`.
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
