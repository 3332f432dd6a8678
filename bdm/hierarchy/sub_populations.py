"""Sub-populations in the tree: each cell type is a clade of its populations, which the cells may contradict."""

import numpy as np
from scipy.spatial.distance import squareform

from bdm.hierarchy.means import MeasuredMeans, clades_of, cluster_means, merges, squared_distances
from bdm.hierarchy.tree import Clade


def cluster_populations(means: MeasuredMeans, populations: tuple[str, ...], labels: tuple[str, ...]) -> Clade:
    """Cluster populations within each cell type, and the cell types, all by average linkage of squared distances.

    Parameters
    ----------
    means
        Means of the populations.
    populations, labels
        Name and cell type of each population.
    """
    below = clades_of_types(means, populations, labels)
    distances = squared_distances_of_types(means, labels)
    clades = list(below.values())
    for first, second in merges(squareform(distances, checks=False)):
        clades.append(Clade(children=(clades[first], clades[second])))
    return clades[-1]


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


def clades_of_populations(means: MeasuredMeans, labels: tuple[str, ...]) -> set[frozenset[int]]:
    """Find the sets of populations, as indices, that are clades: of several cell types, and of one.

    Several types are a clade in the clustering of the types, as in the tree. Populations of one type are a clade in the
    clustering of all populations, whatever their types, which shows whether the cells agree with the type.
    """
    of_one = {clade for clade in clades_of(means) if len({labels[row] for row in clade}) == 1}
    members = list(map(frozenset, rows_of_types(labels).values()))
    n_types = len(members)
    for first, second in merges(squareform(squared_distances_of_types(means, labels), checks=False)):
        members.append(members[first] | members[second])
    return of_one | set(members[n_types:])


def rows_of_types(labels: tuple[str, ...]) -> dict[str, list[int]]:
    """Rows of the populations of each cell type, types in their first order."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return rows


def clades_of_types(means: MeasuredMeans, populations: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Clade]:
    """Cluster the populations of each cell type: a clade with the name of the type, or its only population."""
    clades = {}
    for cell_type, rows in rows_of_types(labels).items():
        found = cluster_means(means.subset(rows), tuple(populations[row] for row in rows))
        clades[cell_type] = Clade(cell_type, found.children) if found.children else found
    return clades


def with_sub_populations(tree: Clade, clades: dict[str, Clade]) -> Clade:
    """Put the clades of cell types in place of the leaves of a tree of cell types."""
    if not tree.children:
        (name,) = tree.leaves()
        return clades[name]
    return Clade(tree.name, tuple(with_sub_populations(child, clades) for child in tree.children))


def nearer_types(means: MeasuredMeans, labels: tuple[str, ...]) -> tuple[str | None, ...]:
    """Cell type whose populations are nearer to a sub-population, on average, than the others of its own type.

    Returns
    -------
    One per population; None where its own type is nearest, or has no other populations.
    """
    between, of_type = squareform(squared_distances(means)), np.array(labels)
    found: list[str | None] = []
    for row, label in enumerate(labels):
        others = np.arange(len(labels)) != row
        mean_square = {
            name: float(between[row][others & (of_type == name)].mean())
            for name in dict.fromkeys(labels)
            if (others & (of_type == name)).any()
        }
        nearest = min(mean_square, key=lambda name: mean_square[name], default=None)
        found.append(nearest if label in mean_square and nearest != label else None)
    return tuple(found)
