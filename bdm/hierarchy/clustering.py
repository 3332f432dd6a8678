"""Cluster populations by their means, and bootstrap the support of the tree."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import pdist, squareform
from scipy.special import ndtri

from bdm._core.store import take
from bdm.autoencoder.moments import PopulationMoments
from bdm.hierarchy.tree import Clade

ERROR_RATE = 0.05  # chance that any sub-population is falsely called nearer to another type


@dataclass(frozen=True)
class MeasuredMeans:
    """Means of populations with their sampling variance."""

    mean: np.ndarray  # populations x dimensions, in whitened space
    variance: np.ndarray  # of each mean, summed over dimensions

    @classmethod
    def from_moments(cls, moments: PopulationMoments) -> "MeasuredMeans":
        """Select the means from the moments."""
        return cls(moments.mean.double().numpy(), moments.mean_variance.double().numpy())


def squared_distances(means: MeasuredMeans) -> np.ndarray:
    """Return squared distances between means, corrected for sampling variance.

    Pairs are ordered as by SciPy's ``pdist``. Negative values are kept, as they average out in larger clades.
    """
    first, second = np.triu_indices(len(means.mean), k=1)
    measured: np.ndarray = pdist(means.mean, "sqeuclidean")
    return np.asarray(measured - means.variance[first] - means.variance[second])


def rows_by_type(labels: tuple[str, ...]) -> dict[str, list[int]]:
    """Return the rows of each cell type's populations, types in order of appearance."""
    rows: dict[str, list[int]] = {}
    for row, label in enumerate(labels):
        rows.setdefault(label, []).append(row)
    return rows


def average_linkage(squares: np.ndarray) -> list[tuple[int, int]]:
    """Return the pairs that average linkage merges, numbered as by SciPy."""
    if not len(squares):
        return []
    return [(int(first), int(second)) for first, second, _, _ in linkage(squares, method="average")]


def link_types(means: MeasuredMeans, labels: tuple[str, ...]) -> list[tuple[int, int]]:
    """Return the pairs of cell types that average linkage merges, see :func:`average_linkage`.

    Squared distances between cell types are averaged over their populations.
    """
    rows = rows_by_type(labels)
    shares = np.zeros((len(rows), len(labels)))
    for number, of_type in enumerate(rows.values()):
        shares[number, of_type] = 1 / len(of_type)
    distances: np.ndarray = shares @ squareform(squared_distances(means)) @ shares.T
    distances = (distances + distances.T) / 2  # sums in another order differ in the last digits
    np.fill_diagonal(distances, 0)
    return average_linkage(squareform(distances, checks=False))


def cluster_means(means: MeasuredMeans, populations: tuple[str, ...]) -> Clade:
    """Cluster populations by average linkage of squared distances between means.

    This is the algorithm of Tseng et al. 2024 (arXiv 2212.10777) in expectation: for noised cells x_t = a x_0 + s e,
    the mean squared distance between two classes exceeds the distance within them by a**2 |mu_i - mu_j|**2.
    """
    return merge_clades([Clade(name) for name in populations], average_linkage(squared_distances(means)))


def type_clades(means: MeasuredMeans, populations: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, Clade]:
    """Cluster the populations of each cell type into a clade named after it."""
    clades = {}
    for cell_type, rows in rows_by_type(labels).items():
        clade = cluster_means(take(means, rows), tuple(populations[row] for row in rows))
        clades[cell_type] = Clade(cell_type, clade.children) if clade.children else clade
    return clades


def merge_clades(clades: list[Clade], pairs: list[tuple[int, int]]) -> Clade:
    """Merge clades by pairs, see :func:`average_linkage`."""
    for first, second in pairs:
        clades.append(Clade(children=(clades[first], clades[second])))
    return clades[-1]


def with_type_clades(tree: Clade, clades: dict[str, Clade]) -> Clade:
    """Replace the leaves of a tree, cell types, by their clades."""
    if not tree.children:
        (name,) = tree.leaves()
        return clades[name]
    return Clade(tree.name, tuple(with_type_clades(child, clades) for child in tree.children))


# ---- support


@dataclass(frozen=True)
class TreeSupport:
    """Bootstrap support of a tree."""

    clades: Mapping[frozenset[int], float] | None  # see clade_support
    place: Mapping[str, float]  # of rare cell types, see place_support
    nearer_to: Mapping[str, str | None]  # see nearer_types


def resample_means(
    x: np.ndarray, population: np.ndarray, means: MeasuredMeans, *, n_bootstrap: int, generator: np.random.Generator
) -> list[MeasuredMeans]:
    """Bootstrap the means of populations, resampling the cells within each.

    Cells x are from :func:`bdm.autoencoder.moments.without_prior`. The variance of a resampled mean includes the
    variance of resampling; distances subtract it, as it would drive rare populations apart.
    """
    resampled, noise = np.empty((n_bootstrap, *means.mean.shape)), means.variance.copy()
    for code in range(len(means.mean)):
        cells = x[population == code]
        uniform, centre = np.full(len(cells), 1 / len(cells)), cells.mean(axis=0)
        for number in range(n_bootstrap):  # one resample in memory at a time
            shift = generator.multinomial(len(cells), uniform) @ cells / len(cells) - centre
            resampled[number, code] = means.mean[code] + shift
        noise[code] += cells.var(axis=0).sum() / len(cells)
    return [MeasuredMeans(mean, noise) for mean in resampled]


def clade_support(resamples: Sequence[MeasuredMeans], labels: tuple[str, ...]) -> dict[frozenset[int], float] | None:
    """Return the bootstrap support of each clade (a set of populations).

    The bootstrap of Felsenstein 1985 (Evolution 39:783), resampling cells instead of sites.
    """
    if not resamples:
        return None
    counts = Counter(clade for means in resamples for clade in population_clades(means, labels))
    return {clade: n / len(resamples) for clade, n in counts.items()}


def population_clades(means: MeasuredMeans, labels: tuple[str, ...]) -> set[frozenset[int]]:
    """Return the clades as sets of population indices.

    Clades of several cell types are from the clustering of types, as in the tree. Clades within a type are from the
    clustering of all populations, which shows whether the cells agree with the type.
    """
    singles = [frozenset([row]) for row in range(len(labels))]
    clades = merge_sets(singles, average_linkage(squared_distances(means)))
    within_type = {clade for clade in clades if len({labels[row] for row in clade}) == 1}
    types = list(map(frozenset, rows_by_type(labels).values()))
    return within_type | merge_sets(types, link_types(means, labels))


def merge_sets(members: list[frozenset[int]], pairs: list[tuple[int, int]]) -> set[frozenset[int]]:
    """Merge sets by pairs, and return the merged sets; see :func:`average_linkage`."""
    n_initial = len(members)
    for first, second in pairs:
        members.append(members[first] | members[second])
    return set(members[n_initial:])


def place_support(
    means: MeasuredMeans, resamples: Sequence[MeasuredMeans], labels: tuple[str, ...], rare: Collection[str]
) -> dict[str, float]:
    """Return the bootstrap support of the place of each rare cell type.

    The support of clades says little about rare types: they move between resamples, which lowers the support of every
    clade that they leave or enter. A place only counts if the type differs from the mean of all cells: types that the
    latent space cannot describe lie there.
    """
    if not resamples:
        return {}
    resampled = [(places(resample, labels, rare), distinct_types(resample, labels)) for resample in resamples]
    return {
        name: float(np.mean([name in distinct and at[name] == place for at, distinct in resampled]))
        for name, place in places(means, labels, rare).items()
    }


def distinct_types(means: MeasuredMeans, labels: tuple[str, ...]) -> set[str]:
    """Return the cell types that differ from the overall mean beyond noise."""
    squares = (means.mean**2).sum(axis=1) - means.variance
    return {name for name, rows in rows_by_type(labels).items() if squares[rows].mean() > 0}


def places(means: MeasuredMeans, labels: tuple[str, ...], rare: Collection[str]) -> dict[str, frozenset[str]]:
    """Return the place of each rare type: its sister clade without rare types."""
    members = [frozenset([name]) for name in rows_by_type(labels)]
    place: dict[str, frozenset[str]] = {}
    for first, second in link_types(means, labels):
        for clade, sister in ((members[first], members[second]), (members[second], members[first])):
            if clade.issubset(rare) and not sister.issubset(rare):
                place |= dict.fromkeys(clade, sister.difference(rare))
        members.append(members[first] | members[second])
    return place


def nearer_types(
    means: MeasuredMeans,
    resamples: Sequence[MeasuredMeans],
    labels: tuple[str, ...],
    *,
    uncertain: Collection[str] = (),
) -> tuple[str | None, ...]:
    """Return the cell type that is nearer to a population than its own.

    None for populations that are nearest to their own type. Mean squared distances are compared by a normal test with
    the standard deviation of resamples, Bonferroni-corrected for all pairs of sub-population and candidate type.
    ``uncertain`` types are no candidates.
    """
    rows = rows_by_type(labels)
    own, names = np.array([list(rows).index(label) for label in labels]), list(rows)
    candidates = [column for column, name in enumerate(names) if name not in uncertain]
    tested = [row for row, label in enumerate(labels) if len(rows[label]) > 1 and set(candidates) - {own[row]}]
    nearer: list[str | None] = [None] * len(labels)
    if not resamples or not tested:
        return tuple(nearer)
    quantile = -ndtri(ERROR_RATE / sum(len({*candidates} - {own[row]}) for row in tested))
    measured = distances_to_types(means, labels)
    resampled = [distances_to_types(resample, labels) for resample in resamples]
    for row in tested:
        nearest = min((column for column in candidates if column != own[row]), key=lambda column: measured[row, column])
        gain, *gains = (squares[row, own[row]] - squares[row, nearest] for squares in (measured, *resampled))
        if gain > quantile * np.std(gains):
            nearer[row] = names[nearest]
    return tuple(nearer)


def distances_to_types(means: MeasuredMeans, labels: tuple[str, ...]) -> np.ndarray:
    """Return mean squared distances of populations to types, excluding themselves, populations x types.

    NaN for the only population of a type to its own type.
    """
    rows = rows_by_type(labels)
    member = np.zeros((len(labels), len(rows)))
    for column, members in enumerate(rows.values()):
        member[members, column] = 1
    with np.errstate(invalid="ignore"):
        return np.asarray(squareform(squared_distances(means)) @ member / (member.sum(axis=0) - member))
