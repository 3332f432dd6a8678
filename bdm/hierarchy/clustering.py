"""Clustering of populations and cell types by the means of populations, at distances without sampling noise."""

from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform

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
    def from_moments(cls, moments: PopulationMoments) -> "MeasuredMeans":
        """Take the means of the moments."""
        return cls(moments.mean.double().numpy(), moments.mean_variance.double().numpy())

    def subset(self, rows: list[int]) -> "MeasuredMeans":
        """Take the means of some of the populations."""
        return MeasuredMeans(self.mean[rows], self.variance[rows])

    def concat(self, other: "MeasuredMeans") -> "MeasuredMeans":
        """Append the means of other populations."""
        return MeasuredMeans(np.concatenate([self.mean, other.mean]), np.concatenate([self.variance, other.variance]))


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


def squared_distances_of_types(means: MeasuredMeans, labels: tuple[str, ...]) -> np.ndarray:
    """Squared distances between cell types, averaged over their populations: types x types, in their first order."""
    rows = rows_of_types(labels)
    shares = np.zeros((len(rows), len(labels)))
    for number, of_type in enumerate(rows.values()):
        shares[number, of_type] = 1 / len(of_type)
    distances: np.ndarray = shares @ squareform(squared_distances(means)) @ shares.T
    distances = (distances + distances.T) / 2  # sums in another order differ in the last digits
    np.fill_diagonal(distances, 0)
    return distances


def rows_of_types(labels: tuple[str, ...]) -> dict[str, list[int]]:
    """Rows of the populations of each cell type, types in their first order."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return rows


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


def merges_of_types(means: MeasuredMeans, labels: tuple[str, ...]) -> list[tuple[int, int]]:
    """Pairs of cell types, or of clades of them, that average linkage merges, see :func:`merges`."""
    return merges(squareform(squared_distances_of_types(means, labels), checks=False))


def cluster_means(means: MeasuredMeans, populations: tuple[str, ...]) -> Clade:
    """Tree of populations by average linkage of squared distances between their means.

    Noising x_t = a x_0 + s e leaves the mean squared distance between two classes larger than within them by exactly
    a**2 |mu_i - mu_j|**2, so this is the algorithm of Tseng et al. 2024 (arXiv 2212.10777) in expectation.
    """
    return merged([Clade(name) for name in populations], merges(squared_distances(means)))


def cluster_populations(means: MeasuredMeans, populations: tuple[str, ...], labels: tuple[str, ...]) -> Clade:
    """Cluster populations within each cell type, and the cell types, all by average linkage of squared distances.

    Parameters
    ----------
    means
        Means of the populations.
    populations, labels
        Name and cell type of each population.
    """
    return merged(list(clades_of_types(means, populations, labels).values()), merges_of_types(means, labels))


def clades_of_types(means: MeasuredMeans, populations: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Clade]:
    """Cluster the populations of each cell type: a clade with the name of the type, or its only population."""
    clades = {}
    for cell_type, rows in rows_of_types(labels).items():
        found = cluster_means(means.subset(rows), tuple(populations[row] for row in rows))
        clades[cell_type] = Clade(cell_type, found.children) if found.children else found
    return clades


def merged(clades: list[Clade], pairs: list[tuple[int, int]]) -> Clade:
    """Merge clades by pairs, see :func:`merges`."""
    for first, second in pairs:
        clades.append(Clade(children=(clades[first], clades[second])))
    return clades[-1]


def with_sub_populations(tree: Clade, clades: dict[str, Clade]) -> Clade:
    """Put the clades of cell types in place of the leaves of a tree of cell types."""
    if not tree.children:
        (name,) = tree.leaves()
        return clades[name]
    return Clade(tree.name, tuple(with_sub_populations(child, clades) for child in tree.children))
