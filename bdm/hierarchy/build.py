"""Construction of the hierarchy from cells: its tree, noise levels and support; and its extension by a cell type."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, count
from typing import Any

import numpy as np
from scipy.special import ndtri

from bdm._core.errors import InputError
from bdm._core.parallel import using_threads
from bdm._core.seeds import numpy_generator
from bdm.hierarchy.clustering import (
    FEW_CELLS,
    MeasuredMeans,
    TreeSupport,
    clade_support,
    clades_of_types,
    merged,
    merges_of_types,
    nearer_types,
    place_support,
    resample_means,
    rows_of_types,
    with_sub_populations,
)
from bdm.hierarchy.files import Tree, as_clade
from bdm.hierarchy.tree import MIN_PLACE, Branch, Clade, Hierarchy, match_leaves, rejecting_deep_trees
from bdm.latent.cells import LatentCells
from bdm.latent.moments import fit_whitening, population_moments, without_prior
from bdm.settings import HierarchySettings

MIN_LEVEL = 0.3  # of a node: populations that overlap below the threshold still need branches


@dataclass(frozen=True)
class MeasuredClade:
    """Clade with the noise level at which its children separate, and moments of the means of its populations."""

    members: tuple[int, ...]  # indices of its populations
    children: tuple["MeasuredClade", ...]
    level: float
    mean: np.ndarray  # of the means m of its populations
    mean_square: float  # of |m|**2, without what the sampling variance of m adds
    name: str | None = None  # of the cell type whose sub-populations these are


MAX_SPREADS = 6  # sigma_max in standard deviations of all cells, or twice the root's level if that is more


@using_threads()
@rejecting_deep_trees()
def build_hierarchy(
    cells: LatentCells, settings: HierarchySettings, *, seed: int, tree: Tree | None = None
) -> Hierarchy:
    """Build the hierarchy of populations from their means, or compute the noise levels of a tree of cell types."""
    clade = given_tree(tree, settings)
    clade = None if clade is None else match_leaves(clade, tuple(dict.fromkeys(cells.labels)))
    whitening = fit_whitening(cells)
    means = MeasuredMeans.from_moments(population_moments(cells, whitening))
    x = whitening(cells.mean).double().numpy()
    index = {population: i for i, population in enumerate(cells.populations)}
    clades = clades_of_types(means, cells.populations, cells.labels)
    if clade is None:
        shape = merged(list(clades.values()), merges_of_types(means, cells.labels))
    else:
        shape = with_sub_populations(clade, clades)
    root = measure_clade(shape, means, index, threshold=settings.threshold)

    spread = np.sqrt(x.var(axis=0).mean() + float(whitening.variance(cells.scale).diagonal().mean()))
    sigma_max = float(max(MAX_SPREADS * spread, 2 * root.level))
    made: dict[str, Any] = {"seed": seed, "n_bootstrap": settings.n_bootstrap}
    if settings.flat:
        top = Branch(next(inner_names({*cells.populations, *cells.labels})), None, sigma_max, int(cells.n_cells.sum()))
        leaves = zip(cells.populations, cells.labels, cells.n_cells.tolist(), strict=True)
        flat = (top, *(Branch(name, top.name, 0.0, n_cells, cell_type=label) for name, label, n_cells in leaves))
        return Hierarchy(flat, sigma_max, settings.threshold, provenance=made)
    generator, suggested = numpy_generator(seed, "support"), without_prior(cells, whitening).double().numpy()
    resamples = resample_means(
        suggested, cells.population.numpy(), means, n_bootstrap=settings.n_bootstrap, generator=generator
    )
    names = inner_names({*cells.populations, *cells.labels})
    branches = branches_of(root, None, cells, tree_support(means, resamples, cells, given=tree is not None), names)
    return Hierarchy(tuple(branches), sigma_max, settings.threshold, given=tree is not None, provenance=made)


def given_tree(tree: Tree | None, settings: HierarchySettings) -> Clade | None:
    """Read a user's tree, in any form of :data:`Tree`."""
    if tree is not None and settings.flat:
        raise InputError("A flat hierarchy has no tree; give either `tree=` or `flat=True`.")
    return None if tree is None else as_clade(tree)


def tree_support(
    means: MeasuredMeans, resamples: Sequence[MeasuredMeans], cells: LatentCells, *, given: bool
) -> TreeSupport:
    """Collect what resamples show; a tree that is ``given`` has its places from the user."""
    n_cells = {label: int(cells.n_cells[rows].sum()) for label, rows in rows_of_types(cells.labels).items()}
    few = [] if given else [label for label, n in n_cells.items() if n < FEW_CELLS]
    place = place_support(means, resamples, cells.labels, few)
    uncertain = {name for name, support in place.items() if support < MIN_PLACE}
    nearer = nearer_types(means, resamples, cells.labels, uncertain=uncertain)
    return TreeSupport(clade_support(resamples, cells.labels), place, dict(zip(cells.populations, nearer, strict=True)))


def inner_names(taken: Collection[str]) -> Iterator[str]:
    """Give names for inner nodes, none of which is taken by a cell type or a population."""
    return (name for number in count(1) if (name := f"node {number}") not in taken)


def branches_of(
    clade: MeasuredClade, parent: str | None, cells: LatentCells, support: TreeSupport, names: Iterator[str]
) -> list[Branch]:
    """Branches of a clade, itself first, larger children before smaller ones; ``names`` are for inner nodes."""
    labels = {cells.labels[member] for member in clade.members}
    name = clade.name or (next(names) if clade.children else cells.populations[clade.members[0]])
    branch = Branch(
        name,
        parent,
        clade.level,
        int(cells.n_cells[list(clade.members)].sum()),
        support.support.get(frozenset(clade.members), 0.0) if clade.children and support.support is not None else None,
        cell_type=labels.pop() if len(labels) == 1 else None,
        nearer_to=support.nearer_to.get(name),
        place=support.place.get(name),
    )
    children = sorted(clade.children, key=lambda child: (-len(child.members), min(child.members)))
    return [branch, *(below for child in children for below in branches_of(child, name, cells, support, names))]


def branch_level(distance: np.ndarray | float, *, threshold: float = HierarchySettings.threshold) -> np.ndarray:
    """Noise level at which the best classifier distinguishes two cell types with AUC ``threshold``; 0 where none does.

    Solves ``threshold = Phi(distance / sqrt(2 (1 + sigma**2)))`` for ``sigma``, of a Mahalanobis distance between
    means.
    """
    HierarchySettings.check(threshold=threshold)
    variance = np.asarray(distance) ** 2 / (2 * ndtri(threshold) ** 2) - 1
    return np.sqrt(np.maximum(variance, 0))


def measure_clade(clade: Clade, means: MeasuredMeans, index: dict[str, int], *, threshold: float) -> MeasuredClade:
    """Level of every node of a tree, from its merge height; ``index`` gives rows of ``means``."""
    if not clade.children:
        (leaf,) = clade.leaves()
        row = index[leaf]
        mean = means.mean[row]
        return MeasuredClade((row,), (), 0.0, mean, float(mean @ mean - means.variance[row]))
    children = tuple(measure_clade(child, means, index, threshold=threshold) for child in clade.children)
    weight = np.array([len(child.members) for child in children], dtype=float)
    level = float(branch_level(np.sqrt(merge_height(children)), threshold=threshold))
    return MeasuredClade(
        tuple(member for child in children for member in child.members),
        children,
        max(level, MIN_LEVEL, *(child.level for child in children)),
        np.average([child.mean for child in children], axis=0, weights=weight),
        float(np.average([child.mean_square for child in children], weights=weight)),
        clade.name,
    )


def merge_height(children: tuple[MeasuredClade, ...]) -> float:
    """Mean squared distance of populations of different children, as in average linkage, without noise; at least 0."""
    pairs = list(combinations(children, 2))
    squares = [a.mean_square + b.mean_square - 2 * float(a.mean @ b.mean) for a, b in pairs]
    return max(float(np.average(squares, weights=[len(a.members) * len(b.members) for a, b in pairs])), 0.0)


# ---- extension


@dataclass(frozen=True)
class AttachmentPoint:
    """Branch and noise level at which a new cell type leaves the hierarchy."""

    branch: str  # that it leaves
    level: float
    distance: float  # root mean square, to the populations below that branch, in whitened space


def attachment_point(
    hierarchy: Hierarchy, squared_distance: dict[str, float], *, lowest: float = MIN_LEVEL
) -> AttachmentPoint:
    """Find where a new cell type leaves a hierarchy, by its squared distances to populations, which may be negative.

    Descends from the root to the nearest child for as long as the type separates from that child at a lower noise level
    than the children separate from each other; not below a cell type, which stays a clade. ``lowest`` is the level at
    which its own populations separate.
    """

    def square(name: str) -> float:
        return float(np.mean([squared_distance[leaf] for leaf in hierarchy.leaves(name)]))

    def distance_to(name: str) -> float:
        return float(np.sqrt(max(square(name), 0)))

    def level(name: str) -> float:
        return max(float(branch_level(distance_to(name), threshold=hierarchy.threshold)), lowest)

    name = hierarchy.root.name
    while (children := hierarchy.children[name]) and hierarchy.by_name[name].cell_type is None:
        nearest = min(children, key=square)
        is_part_of_type = hierarchy.by_name[nearest].cell_type not in (None, nearest)  # in a flat tree
        if is_part_of_type or level(nearest) >= hierarchy.by_name[name].level:
            break
        name = nearest
    segment = hierarchy.segment(name)
    return AttachmentPoint(name, min(max(level(name), segment.low), segment.high), distance_to(name))


def with_new_type(
    hierarchy: Hierarchy,
    tree: Hierarchy,
    attachment: AttachmentPoint,
    *,
    row: int,
    support: float | None = None,
) -> Hierarchy:
    """Add a cell type, a leaf or a clade of populations, whose branches have rows from ``row`` on in the prior.

    The branch that it leaves is cut in two. The upper part becomes a new node that keeps its row in the prior, so the
    cells of other types do not change.
    """
    if taken := next((branch.name for branch in tree.branches if branch.name in hierarchy.by_name), None):
        raise InputError(f"The hierarchy has a branch {taken!r} already; give the new type another name.")
    below_node, segment = hierarchy.by_name[attachment.branch], hierarchy.segment(attachment.branch)
    if not segment.low <= attachment.level <= segment.high:
        raise InputError(f"Branch {attachment.branch!r} does not pass the noise level {attachment.level:.3g}.")
    extension, n_cells = 1 + max(branch.added for branch in hierarchy.branches), tree.root.n_cells
    node = Branch(
        next(inner_names({*hierarchy.by_name, *tree.by_name})),
        below_node.parent,
        attachment.level,
        below_node.n_cells + n_cells,
        support,
        row=segment.row,
        added=extension,
    )
    numbered = with_rows(tree, first=row).branches
    added = [replace(branch, parent=branch.parent or node.name, added=extension) for branch in numbered]
    above = {branch.name for branch in hierarchy.lineage(below_node.name)} - {below_node.name}
    below = {branch.name for branch in hierarchy.branches if below_node in hierarchy.lineage(branch.name)}
    known = with_rows(hierarchy).branches
    first = next(i for i, branch in enumerate(known) if branch.name == below_node.name)
    last = max(i for i, branch in enumerate(known) if branch.name in below)
    branches = [replace(branch, n_cells=branch.n_cells + n_cells * (branch.name in above)) for branch in known]
    branches[first] = replace(branches[first], parent=node.name)
    return replace(
        hierarchy, branches=(*branches[:first], node, *branches[first : last + 1], *added, *branches[last + 1 :])
    )


def with_rows(hierarchy: Hierarchy, *, first: int = 0) -> Hierarchy:
    """Write its row, from ``first`` on, into every branch: it is its position only until others are inserted."""
    indices = hierarchy.rows
    branches = tuple(replace(branch, row=first + indices[branch.name]) for branch in hierarchy.branches)
    return replace(hierarchy, branches=branches)
