import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist

from bdm.hierarchy.topology import Clade


def cluster_means(means: np.ndarray, cell_types: tuple[str, ...]) -> Clade:
    """Tree of cell types by average linkage of squared distances between their means.

    Noising x_t = a x_0 + s e leaves the mean squared distance between two classes larger than within them by exactly
    a**2 |mu_i - mu_j|**2, so this is the algorithm of Tseng et al. 2024 (arXiv 2212.10777) in expectation.

    Parameters
    ----------
    means
        Means in whitened space, types x dimensions.
    """
    clades = [Clade(cell_type) for cell_type in cell_types]
    for first, second, _, _ in linkage(pdist(means, "sqeuclidean"), method="average"):
        clades.append(Clade(children=(clades[int(first)], clades[int(second)])))
    return clades[-1]


def clades_of(means: np.ndarray) -> set[frozenset[int]]:
    """Find the sets of types, as indices, that are clades in the clustering of ``means``."""
    n_types = len(means)
    members = [frozenset([i]) for i in range(n_types)]
    for first, second, _, _ in linkage(pdist(means, "sqeuclidean"), method="average"):
        members.append(members[int(first)] | members[int(second)])
    return set(members[n_types:])
