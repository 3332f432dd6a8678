"""Build the hierarchy from cells, and add cell types to it."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, count
from typing import Any

import numpy as np
from scipy.special import ndtri

from bdm._core.errors import InputError
from bdm._core.parallel import using_threads
from bdm._core.seeds import numpy_generator
from bdm.autoencoder.latent import LatentCells
from bdm.autoencoder.moments import fit_whitening, population_moments, without_prior
from bdm.hierarchy.clustering import (
    MeasuredMeans,
    TreeSupport,
    clade_support,
    link_types,
    merge_clades,
    nearer_types,
    place_support,
    resample_means,
    rows_by_type,
    type_clades,
    with_type_clades,
)
from bdm.hierarchy.files import Tree, as_clade
from bdm.hierarchy.tree import MIN_PLACE, Branch, Clade, Hierarchy, match_leaves, rejecting_deep_trees
from bdm.settings import HierarchySettings

FEW_CELLS = 50  # the place of cell types with fewer cells is tested, and fits and generation warn of them
MIN_LEVEL = 0.3  # lowest level of a node; populations that overlap still need branches
MAX_SDS = 6  # sigma_max in standard deviations of all cells; at least twice the root's level


@dataclass(frozen=True)
class MeasuredClade:
    """Clade with its noise level and the moments of its population means."""

    members: tuple[int, ...]  # indices of populations
    children: tuple["MeasuredClade", ...]
    level: float  # noise level at which the children separate
    mean: np.ndarray  # average of the population means m
    mean_square: float  # average of |m|**2, corrected for sampling variance
    name: str | None = None  # cell type, if the members are its sub-populations


@using_threads()
@rejecting_deep_trees()
def build_hierarchy(
    cells: LatentCells, settings: HierarchySettings, *, seed: int, tree: Tree | None = None
) -> Hierarchy:
    """Build the hierarchy of populations by clustering, or from a given tree of the cell types.

    Noise levels (in whitened units), their support, and the trees of sub-populations are computed in both cases.
    """
    clade = None if tree is None else as_clade(tree)
    whitening = fit_whitening(cells)
    means = MeasuredMeans.from_moments(population_moments(cells, whitening))
    x = whitening(cells.mean).double().numpy()
    index = {population: i for i, population in enumerate(cells.populations)}
    clades = type_clades(means, cells.populations, cells.labels)
    if clade is None:
        shape = merge_clades(list(clades.values()), link_types(means, cells.labels))
    else:
        shape = with_type_clades(match_leaves(clade, tuple(clades)), clades)
    root = measure_clade(shape, means, index, threshold=settings.threshold)

    sd = np.sqrt(x.var(axis=0).mean() + float(whitening.variance(cells.scale).diagonal().mean()))
    sigma_max = float(max(MAX_SDS * sd, 2 * root.level))
    provenance: dict[str, Any] = {"seed": seed, "n_bootstrap": settings.n_bootstrap}
    resamples = resample_means(
        without_prior(cells, whitening).double().numpy(),
        cells.population.numpy(),
        means,
        n_bootstrap=settings.n_bootstrap,
        generator=numpy_generator(seed, "support"),
    )
    names = node_names({*cells.populations, *cells.labels})
    support = measure_support(means, resamples, cells, from_user=tree is not None)
    branches = build_branches(root, None, cells, support, names)
    return Hierarchy(tuple(branches), sigma_max, settings.threshold, from_user=tree is not None, provenance=provenance)


def measure_support(
    means: MeasuredMeans, resamples: Sequence[MeasuredMeans], cells: LatentCells, *, from_user: bool
) -> TreeSupport:
    """Measure the support of a tree; places in a tree ``from_user`` are certain."""
    n_cells = {label: int(cells.n_cells[rows].sum()) for label, rows in rows_by_type(cells.labels).items()}
    rare = [] if from_user else [label for label, n in n_cells.items() if n < FEW_CELLS]
    place = place_support(means, resamples, cells.labels, rare)
    uncertain = {name for name, support in place.items() if support < MIN_PLACE}
    nearer = nearer_types(means, resamples, cells.labels, uncertain=uncertain)
    return TreeSupport(clade_support(resamples, cells.labels), place, dict(zip(cells.populations, nearer, strict=True)))


def node_names(reserved: Collection[str]) -> Iterator[str]:
    """Yield names for inner nodes, such as ``node 1``, except reserved ones."""
    return (name for number in count(1) if (name := f"node {number}") not in reserved)


def build_branches(
    clade: MeasuredClade, parent: str | None, cells: LatentCells, support: TreeSupport, names: Iterator[str]
) -> list[Branch]:
    """Return the branches of a clade in preorder, larger children first."""
    labels = {cells.labels[member] for member in clade.members}
    name = clade.name or (next(names) if clade.children else cells.populations[clade.members[0]])
    branch = Branch(
        name,
        parent,
        clade.level,
        int(cells.n_cells[list(clade.members)].sum()),
        support.clades.get(frozenset(clade.members), 0.0) if clade.children and support.clades is not None else None,
        cell_type=labels.pop() if len(labels) == 1 else None,
        nearer_to=support.nearer_to.get(name),
        place=support.place.get(name),
    )
    children = sorted(clade.children, key=lambda child: (-len(child.members), min(child.members)))
    return [branch, *(below for child in children for below in build_branches(child, name, cells, support, names))]


def branch_level(distance: np.ndarray | float, *, threshold: float = HierarchySettings.threshold) -> np.ndarray:
    """Return the noise level at which two cell types separate.

    Solves ``threshold = Phi(distance / sqrt(2 (1 + sigma**2)))``, the AUC of the best classifier, for ``sigma``.

    Parameters
    ----------
    distance
        Mahalanobis distance between means, any shape.
    threshold
        AUC in (0.5, 1).

    Returns
    -------
    Noise level in whitened units, the shape of ``distance``; 0 for types that overlap more than the threshold.

    Raises
    ------
    InputError
        If ``threshold`` is outside (0.5, 1).
    """
    HierarchySettings(threshold=threshold)
    variance = np.asarray(distance) ** 2 / (2 * ndtri(threshold) ** 2) - 1
    return np.sqrt(np.maximum(variance, 0))


def measure_clade(clade: Clade, means: MeasuredMeans, index: dict[str, int], *, threshold: float) -> MeasuredClade:
    """Compute the noise levels of a tree; ``index`` maps leaves to rows."""
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
    """Return the mean squared distance between populations of different children, corrected for noise."""
    pairs = list(combinations(children, 2))
    squares = [a.mean_square + b.mean_square - 2 * float(a.mean @ b.mean) for a, b in pairs]
    return max(float(np.average(squares, weights=[len(a.members) * len(b.members) for a, b in pairs])), 0.0)


# ---- extension


@dataclass(frozen=True)
class AttachmentPoint:
    """Branch and noise level at which a new cell type leaves the hierarchy."""

    branch: str  # name of the branch
    level: float
    distance: float  # root mean square distance to the populations below the branch, in whitened space


def attachment_point(
    hierarchy: Hierarchy, squared_distance: dict[str, float], *, lowest: float = MIN_LEVEL
) -> AttachmentPoint:
    """Find where a new cell type leaves a hierarchy.

    Descends from the root to the nearest child while the new type separates from that child at a lower noise level than
    the children from each other. Cell types stay clades, so the search ends at them. Squared distances to populations
    are corrected for sampling variance, and may be negative. No level is below ``lowest``, the root of the new type.
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
        if level(nearest) >= hierarchy.by_name[name].level:
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
    """Add a cell type by splitting the branch that it leaves.

    The upper part becomes a new node, with ``support``, that keeps the branch's row in the prior, so the cells of other
    types stay the same. ``tree`` has the branches of the new type; ``row`` is the row of its first branch in the prior.
    """
    if duplicate := next((branch.name for branch in tree.branches if branch.name in hierarchy.by_name), None):
        raise InputError(f"The hierarchy has a branch {duplicate!r} already; give the new type another name.")
    split, segment = hierarchy.by_name[attachment.branch], hierarchy.segment(attachment.branch)
    if not segment.low <= attachment.level <= segment.high:
        raise InputError(
            f"The noise level {attachment.level:.3g} is outside branch {attachment.branch!r}, "
            f"which runs from {segment.low:.3g} to {segment.high:.3g}."
        )
    number, n_cells = 1 + max(branch.added for branch in hierarchy.branches), tree.root.n_cells
    node = Branch(
        next(node_names({*hierarchy.by_name, *tree.by_name})),
        split.parent,
        attachment.level,
        split.n_cells + n_cells,
        support,
        row=segment.row,
        added=number,
    )
    tree = with_rows(tree, first=row)
    added = [replace(branch, parent=branch.parent or node.name, added=number) for branch in tree.branches]
    above = {branch.name for branch in hierarchy.lineage(split.name)} - {split.name}
    below = {branch.name for branch in hierarchy.branches if split in hierarchy.lineage(branch.name)}
    existing = with_rows(hierarchy).branches
    first = next(i for i, branch in enumerate(existing) if branch.name == split.name)
    last = max(i for i, branch in enumerate(existing) if branch.name in below)
    branches = [replace(branch, n_cells=branch.n_cells + n_cells * (branch.name in above)) for branch in existing]
    branches[first] = replace(branches[first], parent=node.name)
    return replace(
        hierarchy, branches=(*branches[:first], node, *branches[first : last + 1], *added, *branches[last + 1 :])
    )


def with_rows(hierarchy: Hierarchy, *, first: int = 0) -> Hierarchy:
    """Store the row of every branch explicitly, from ``first`` on, before inserting others."""
    indices = hierarchy.rows
    branches = tuple(replace(branch, row=first + indices[branch.name]) for branch in hierarchy.branches)
    return replace(hierarchy, branches=branches)
