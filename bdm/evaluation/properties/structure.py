"""How far cell types and batches are apart: silhouettes, variance between them, and mixing of batches."""

import numpy as np
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.cells import Cells
from bdm.evaluation.properties.group import Group, Side, ks

N_NEIGHBOURS = 70  # in which batches mix
MAX_MIXED = 500  # cells of either side whose neighbours are examined
MAX_SILHOUETTES = 2000  # cells of either side


def distances(group: Group) -> dict[str, float]:
    """Compare how far batches are apart; nothing where there are no two batches of enough cells on both sides."""
    if min(len(side.batches) for side in group.sides) < 2:
        return {}
    sides = [of_names(side, batch_of(side), side.batches) for side in group.sides]
    few = [of_names(side, batch_of(side), side.batches) for side in group.few(MAX_SILHOUETTES).sides]
    compared = {"variance_by_batch": ks(*(variance_between(side.cells, batch_of(side)) for side in sides))}
    if all(len(np.unique(batch_of(side))) > 1 for side in few):
        compared["silhouette_batch"] = ks(*(silhouette_samples(side.components, batch_of(side)) for side in few))
        compared["mixing"] = ks(*(mixing(side, most=MAX_MIXED) for side in few))
    return compared


def distances_by_label(group: Group) -> dict[str, dict[str, float]]:
    """Compare how far cell types are apart: of each type, and of all as ``""``; nothing where there is one type."""
    if len(group.labels) < 2:
        return {}
    sides = [of_names(side, side.cells.cell_type, group.labels) for side in group.sides]
    overall = {"variance_by_label": ks(*(variance_between(side.cells, side.cells.cell_type) for side in sides))}
    few = [of_names(side, side.cells.cell_type, group.labels) for side in group.few(MAX_SILHOUETTES).sides]
    if any(len(np.unique(side.cells.cell_type)) < 2 for side in few):
        return {"": overall}
    widths = [silhouette_samples(side.components, side.cells.cell_type) for side in few]
    by_label = {
        label: {"silhouette_label": ks(*(w[s.cells.cell_type == label] for w, s in zip(widths, few, strict=True)))}
        for label in group.labels
    }
    return {"": {**overall, "silhouette_label": ks(*widths)}, **by_label}


def batch_of(side: Side) -> np.ndarray:
    """Batches of the cells, which must be known."""
    if side.cells.batch is None:
        raise ValueError("the batches of these cells are not known")
    return side.cells.batch


def of_names(side: Side, column: np.ndarray, names: np.ndarray) -> Side:
    """Select the cells whose type, or batch, is one of some."""
    return side[np.flatnonzero(np.isin(column, names))]


def variance_between(cells: Cells, column: np.ndarray) -> np.ndarray:
    """Share of the variance of each gene that is between types, or batches; NaN for constant genes."""
    mean, variance = mean_variance_axis(cells.expression, axis=0)
    between = np.zeros(len(mean))
    for name in np.unique(column):
        of_name = column == name
        between += of_name.mean() * (mean_variance_axis(cells.expression[of_name], axis=0)[0] - mean) ** 2
    return np.asarray(np.divide(between, variance, out=np.full(len(mean), np.nan), where=variance > 1e-12))


def mixing(side: Side, *, most: int) -> np.ndarray:
    """Cell-specific mixing: how far the batches of a cell's neighbours differ in their distances to the cell.

    The statistic of Anderson and Darling for several samples, over its mean for equal distributions; infinite where all
    neighbours are of one batch. It increases as the p-value of the published score decreases.

    References
    ----------
    Lütge et al. 2021, https://doi.org/10.26508/lsa.202001004; Scholz and Stephens 1987,
    https://doi.org/10.1080/01621459.1987.10478517
    """
    n_neighbours = min(N_NEIGHBOURS, len(side) - 1)
    nearest = NearestNeighbors(n_neighbors=n_neighbours, algorithm="brute").fit(side.components)
    batches, batch = np.unique(batch_of(side), return_inverse=True)
    neighbours = nearest.kneighbors(return_distance=False)[:most]
    return anderson_darling(batch[neighbours], n_groups=len(batches))


def anderson_darling(groups: np.ndarray, *, n_groups: int) -> np.ndarray:
    """Compare groups by the ranks of their members.

    Parameters
    ----------
    groups
        Group of each member, samples x ranks.

    Returns
    -------
    For each sample, the statistic for several groups over its mean for equal distributions.
    """
    n_ranks = groups.shape[1]
    rank = np.arange(1, n_ranks)
    total, n_present = np.zeros(len(groups)), np.zeros(len(groups), dtype=int)
    for group in range(n_groups):
        is_member = groups == group
        n_members = is_member.sum(axis=1)
        below = np.cumsum(is_member, axis=1)[:, :-1]
        squares = (n_ranks * below - rank * n_members[:, None]) ** 2 / (rank * (n_ranks - rank))
        total += np.divide(squares.sum(axis=1), n_members, out=np.zeros(len(groups)), where=n_members > 0)
        n_present += n_members > 0
    statistic = total / n_ranks
    return np.asarray(np.divide(statistic, n_present - 1, out=np.full(len(groups), np.inf), where=n_present > 1))
