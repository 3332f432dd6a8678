"""Support of the tree by resamples of cells: of clades, of the places of types of few cells, and of odd neighbours."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial.distance import squareform
from scipy.stats import norm

from bdm.hierarchy.clustering import (
    MeasuredMeans,
    merges,
    merges_of_types,
    rows_of_types,
    squared_distances,
)

FEW_CELLS = 50  # of a type, below which its own place in the tree is examined
ERROR_RATE = 0.05  # probability that any sub-population is reported as nearer to another type by chance


@dataclass(frozen=True)
class Evidence:
    """What resamples of cells show of a tree.

    Attributes
    ----------
    support
        See :func:`clade_support`.
    place
        Support of the places of cell types of few cells, see :func:`place_support`.
    nearer_to
        Nearer cell type of each population, see :func:`nearer_types`.
    """

    support: Mapping[frozenset[int], float] | None
    place: Mapping[str, float]
    nearer_to: Mapping[str, str | None]

    def support_of(self, members: Collection[int]) -> float | None:
        """Support of a set of populations; None without resamples."""
        return None if self.support is None else self.support.get(frozenset(members), 0.0)


def resample_means(
    x: np.ndarray, population: np.ndarray, means: MeasuredMeans, *, n_bootstrap: int, generator: np.random.Generator
) -> list[MeasuredMeans]:
    """Means of resamples of cells with replacement, within populations.

    Means of resamples have the noise of the measured means, and the noise of resampling. Both are subtracted, so that
    the distances of resamples scatter around the distances that the tree is made of; else resamples would put rare
    populations apart.

    Parameters
    ----------
    x
        What the counts of each cell suggest, in whitened space, cells x dimensions, see
        :func:`bdm.latent.moments.without_prior`.
    population
        Index of each cell's population.
    means
        Of the populations.
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

    The bootstrap is of Felsenstein 1985 (Evolution 39:783), with cells in the place of sites.

    Returns
    -------
    Support by set of populations, as indices, of all clades that occur; None without resamples.
    """
    if not resamples:
        return None
    seen = Counter(clade for means in resamples for clade in clades_of_populations(means, labels))
    return {clade: n / len(resamples) for clade, n in seen.items()}


def clades_of_populations(means: MeasuredMeans, labels: tuple[str, ...]) -> set[frozenset[int]]:
    """Find the sets of populations, as indices, that are clades: of several cell types, and of one.

    Several types are a clade in the clustering of the types, as in the tree. Populations of one type are a clade in the
    clustering of all populations, whatever their types, which shows whether the cells agree with the type.
    """
    of_one = {clade for clade in clades_of(means) if len({labels[row] for row in clade}) == 1}
    members = list(map(frozenset, rows_of_types(labels).values()))
    return of_one | merged_sets(members, merges_of_types(means, labels))


def clades_of(means: MeasuredMeans) -> set[frozenset[int]]:
    """Find the sets of populations, as indices, that are clades in the clustering of their means."""
    return merged_sets([frozenset([i]) for i in range(len(means.mean))], merges(squared_distances(means)))


def merged_sets(members: list[frozenset[int]], pairs: list[tuple[int, int]]) -> set[frozenset[int]]:
    """Return the sets that result from merging given ones by pairs."""
    n_given = len(members)
    for first, second in pairs:
        members.append(members[first] | members[second])
    return set(members[n_given:])


def place_support(
    means: MeasuredMeans, resamples: Sequence[MeasuredMeans], labels: tuple[str, ...], few: Collection[str]
) -> dict[str, float]:
    """Share of resamples in which a cell type of few cells leaves the tree of the other types where it does.

    A type of few cells may be anywhere in resamples, and takes the support of the clades that it leaves and enters with
    it. So its own place is examined: the clade of types with enough cells that it is next to.

    Returns
    -------
    Support by type of ``few``; none without resamples, or where no type has enough cells.
    """
    if not resamples:
        return {}
    place, drawn = places(means, labels, few), [places(resample, labels, few) for resample in resamples]
    return {name: float(np.mean([of[name] == next_to for of in drawn])) for name, next_to in place.items()}


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
    """Cell type whose populations are nearer to a sub-population, on average, than the others of its own type.

    Differences of mean squared distances are compared with their standard deviation over resamples, by a normal test at
    :data:`ERROR_RATE` that is divided by the number of pairs of a sub-population and another type (Bonferroni).

    Parameters
    ----------
    uncertain
        Cell types whose own place is uncertain, which are left out.

    Returns
    -------
    One per population; None where no other type is nearer, or the evidence does not suffice, as without resamples.
    """
    rows = rows_of_types(labels)
    own, names = np.array([list(rows).index(label) for label in labels]), list(rows)
    others = [number for number, name in enumerate(names) if name not in uncertain]
    tested = [row for row, label in enumerate(labels) if len(rows[label]) > 1 and set(others) - {own[row]}]
    found: list[str | None] = [None] * len(labels)
    if not resamples or not tested:
        return tuple(found)
    quantile = norm.isf(ERROR_RATE / sum(len({*others} - {own[row]}) for row in tested))
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
