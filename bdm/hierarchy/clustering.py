"""Clustering of populations by their means, without sampling noise, and its support by resamples of cells."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform
from scipy.special import ndtri

from bdm.hierarchy.tree import Clade
from bdm.latent.moments import PopulationMoments

FEW_CELLS = 50  # of a type, below which its own place in the tree is examined, and its cells are warned of
ERROR_RATE = 0.05  # probability that any sub-population is reported as nearer to another type by chance


@dataclass(frozen=True)
class MeasuredMeans:
    """Means of populations that were measured with noise."""

    mean: np.ndarray  # in whitened space, populations x dimensions
    variance: np.ndarray  # sampling variance of each mean, summed over dimensions

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
    """Squared distances between the means of populations without the noise of both, in the order of SciPy's ``pdist``.

    Differences below 0 are kept, as they average out in larger clades.
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
    """Pairs that average linkage merges, in order; merged ones are numbered after the given ones, as by SciPy."""
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


# ---- support


@dataclass(frozen=True)
class TreeSupport:
    """What resamples of cells show of a tree."""

    support: Mapping[frozenset[int], float] | None  # see clade_support
    place: Mapping[str, float]  # of cell types of few cells, see place_support
    nearer_to: Mapping[str, str | None]  # see nearer_types


def resample_means(
    x: np.ndarray, population: np.ndarray, means: MeasuredMeans, *, n_bootstrap: int, generator: np.random.Generator
) -> list[MeasuredMeans]:
    """Means of resamples of cells (x, whitened) with replacement, within populations.

    Cells are as :func:`bdm.latent.moments.without_prior` gives them. The means have the noise of the measured means and
    of resampling. Both are subtracted, so that distances scatter around those that the tree is made of; else resamples
    would put rare populations apart.
    """
    drawn, noise = np.empty((n_bootstrap, *means.mean.shape)), means.variance.copy()
    for code in range(len(means.mean)):
        cells = x[population == code]
        even, centre = np.full(len(cells), 1 / len(cells)), cells.mean(axis=0)
        for number in range(n_bootstrap):  # one resample in memory at a time
            shift = generator.multinomial(len(cells), even) @ cells / len(cells) - centre
            drawn[number, code] = means.mean[code] + shift
        noise[code] += cells.var(axis=0).sum() / len(cells)
    return [MeasuredMeans(mean, noise) for mean in drawn]


def clade_support(resamples: Sequence[MeasuredMeans], labels: tuple[str, ...]) -> dict[frozenset[int], float] | None:
    """Share of resamples in which each set of populations is a clade, see :func:`clades_of_populations`.

    The bootstrap of Felsenstein 1985 (Evolution 39:783), with cells in the place of sites.
    """
    if not resamples:
        return None
    seen = Counter(clade for means in resamples for clade in clades_of_populations(means, labels))
    return {clade: n / len(resamples) for clade, n in seen.items()}


def clades_of_populations(means: MeasuredMeans, labels: tuple[str, ...]) -> set[frozenset[int]]:
    """Find the sets of populations, as indices, that are clades: of several cell types, and of one.

    Several types are a clade in the clustering of the types, as in the tree; populations of one type in the clustering
    of all populations, which shows whether the cells agree with the type.
    """
    singles = [frozenset([row]) for row in range(len(labels))]
    of_any = merged_sets(singles, merges(squared_distances(means)))
    of_one = {clade for clade in of_any if len({labels[row] for row in clade}) == 1}
    members = list(map(frozenset, rows_of_types(labels).values()))
    return of_one | merged_sets(members, merges_of_types(means, labels))


def merged_sets(members: list[frozenset[int]], pairs: list[tuple[int, int]]) -> set[frozenset[int]]:
    """Return the sets that result from merging given ones by pairs."""
    n_given = len(members)
    for first, second in pairs:
        members.append(members[first] | members[second])
    return set(members[n_given:])


def place_support(
    means: MeasuredMeans, resamples: Sequence[MeasuredMeans], labels: tuple[str, ...], few: Collection[str]
) -> dict[str, float]:
    """Share of resamples in which a cell type of few cells is off the centre, and leaves the tree where it does.

    Such a type may be anywhere in resamples, and takes the support of the clades that it leaves and enters with it; so
    its own place is examined: the clade of types with enough cells that it is next to. At the mean of all cells, where
    latents put what they have no axis for, a place says nothing, however often it is the same.
    """
    if not resamples:
        return {}
    place, drawn = places(means, labels, few), [places(resample, labels, few) for resample in resamples]
    off = [types_off_centre(resample, labels) for resample in resamples]
    return {
        name: float(np.mean([name in far and found[name] == next_to for far, found in zip(off, drawn, strict=True)]))
        for name, next_to in place.items()
    }


def types_off_centre(means: MeasuredMeans, labels: tuple[str, ...]) -> set[str]:
    """Cell types whose means are farther from the mean of all cells, on average, than by their noise."""
    squares = (means.mean**2).sum(axis=1) - means.variance
    return {name for name, rows in rows_of_types(labels).items() if squares[rows].mean() > 0}


def places(means: MeasuredMeans, labels: tuple[str, ...], few: Collection[str]) -> dict[str, frozenset[str]]:
    """Types with enough cells in the clade that each type of ``few`` is next to; none if no type has enough."""
    members = [frozenset([name]) for name in rows_of_types(labels)]
    found: dict[str, frozenset[str]] = {}
    for first, second in merges_of_types(means, labels):
        for own, other in ((members[first], members[second]), (members[second], members[first])):
            if own.issubset(few) and not other.issubset(few):
                found |= dict.fromkeys(own, other.difference(few))
        members.append(members[first] | members[second])
    return found


def nearer_types(
    means: MeasuredMeans,
    resamples: Sequence[MeasuredMeans],
    labels: tuple[str, ...],
    *,
    uncertain: Collection[str] = (),
) -> tuple[str | None, ...]:
    """Cell type whose populations are nearer to a sub-population, on average, than the others of its own type, or None.

    Differences of mean squared distances are compared with their standard deviation over resamples, by a normal test
    with Bonferroni's correction for the pairs of a sub-population and another type; ``uncertain`` types are left out.
    """
    rows = rows_of_types(labels)
    own, names = np.array([list(rows).index(label) for label in labels]), list(rows)
    others = [number for number, name in enumerate(names) if name not in uncertain]
    tested = [row for row, label in enumerate(labels) if len(rows[label]) > 1 and set(others) - {own[row]}]
    found: list[str | None] = [None] * len(labels)
    if not resamples or not tested:
        return tuple(found)
    quantile = -ndtri(ERROR_RATE / sum(len({*others} - {own[row]}) for row in tested))
    between, drawn = squares_to_types(means, labels), [squares_to_types(resample, labels) for resample in resamples]
    for row in tested:
        nearest = min((number for number in others if number != own[row]), key=lambda number: between[row, number])
        gain, *gains = (squares[row, own[row]] - squares[row, nearest] for squares in (between, *drawn))
        if gain > quantile * np.std(gains):
            found[row] = names[nearest]
    return tuple(found)


def squares_to_types(means: MeasuredMeans, labels: tuple[str, ...]) -> np.ndarray:
    """Mean squared distances from each population to the populations of each type, without itself; NaN without any."""
    rows = rows_of_types(labels)
    member = np.zeros((len(labels), len(rows)))
    for number, of_type in enumerate(rows.values()):
        member[of_type, number] = 1
    with np.errstate(invalid="ignore"):
        return np.asarray(squareform(squared_distances(means)) @ member / (member.sum(axis=0) - member))
