"""Properties of cells: each has one value a cell, or a pair of cells, among query cells and among test cells."""

import numpy as np
from scipy.spatial.distance import pdist
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors

from bdm.evaluation.cells import Cells
from bdm.evaluation.properties.group import Group, Side, ks
from bdm.evaluation.properties.values import cell_zero_fraction

MAX_CORRELATED = 200  # cells of either side whose correlations, of all genes, are taken by pairs
MAX_PAIRED = 500  # cells of either side whose distances are taken by pairs
MAX_NEIGHBOURS, MIN_NEIGHBOURS = 50, 5


def distances(group: Group) -> dict[str, float]:
    """Compare the distributions of each value over cells, or over pairs of cells."""
    query, test = group.sides
    correlated, paired = group.few(MAX_CORRELATED), group.few(MAX_PAIRED)
    return {
        "library_size": ks(query.cells.library_size, test.cells.library_size),
        "effective_library_size": ks(query.effective_library_size, test.effective_library_size),
        "cell_zero_fraction": ks(cell_zero_fraction(query.cells), cell_zero_fraction(test.cells)),
        "cell_correlation": ks(*(correlations(side.cells) for side in correlated.sides)),
        "pca_distance": ks(*(pdist(side.components) for side in paired.sides)),
        "knn_occurrence": ks(*map(occurrence, group.sides)),
        "local_density": ks(*map(local_density, group.sides)),
    }


def correlations(cells: Cells) -> np.ndarray:
    """Pearson correlation of each pair of cells over genes; NaN for cells without counts."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.corrcoef(cells.expression.toarray())[np.triu_indices(len(cells), k=1)])


def n_neighbours(n_cells: int) -> int:
    """Return a twentieth of the cells, within limits, and fewer than all."""
    return min(max(n_cells // 20, MIN_NEIGHBOURS), MAX_NEIGHBOURS, n_cells - 1)


def occurrence(side: Side) -> np.ndarray:
    """How often each cell is among the nearest neighbours of others, over the mean of all cells."""
    nearest = NearestNeighbors(n_neighbors=n_neighbours(len(side)), algorithm="brute").fit(side.components)
    neighbours = nearest.kneighbors(return_distance=False)
    return np.asarray(np.bincount(neighbours.ravel(), minlength=len(side)) / neighbours.shape[1])


def local_density(side: Side) -> np.ndarray:
    """Density at the neighbours of each cell over that at the cell: its local outlier factor.

    References
    ----------
    Breunig et al. 2000, https://doi.org/10.1145/335191.335388
    """
    factors = LocalOutlierFactor(n_neighbors=n_neighbours(len(side)), algorithm="brute").fit(side.components)
    return np.asarray(-factors.negative_outlier_factor_)
