from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bdm.errors import InputError
from bdm.hierarchy.build import MIN_LEVEL, branch_level
from bdm.hierarchy.tree import Branch, Hierarchy


@dataclass(frozen=True)
class AttachmentPoint:
    """Where a new cell type leaves the tree.

    Attributes
    ----------
    branch
        Name of the branch that it leaves.
    level
        Noise level at which it does.
    distance
        To the cell types below that branch, root of the mean square, in whitened space.
    """

    branch: str
    level: float
    distance: float


def attachment_point(hierarchy: Hierarchy, distance: dict[str, float]) -> AttachmentPoint:
    """Find where a new cell type belongs, by its mean.

    Down from the root, to the nearest child for as long as the type can be told from that only at less noise than the
    children from each other. It leaves the branch where it can be told from the types below by the hierarchy's
    threshold.

    Parameters
    ----------
    distance
        From the new type's mean to that of each known type, in whitened space.
    """

    def to(name: str) -> float:
        return float(np.sqrt(np.mean([distance[leaf] ** 2 for leaf in hierarchy.leaves(name)])))

    def level(name: str) -> float:
        return float(branch_level(to(name), threshold=hierarchy.threshold))

    name = hierarchy.root.name
    while children := hierarchy.children[name]:
        nearest = min(children, key=to)
        if level(nearest) >= hierarchy.by_name[name].level:
            break
        name = nearest
    segment = hierarchy.segment(name)
    return AttachmentPoint(name, min(max(level(name), segment.low, MIN_LEVEL), segment.high), to(name))


def with_new_type(
    hierarchy: Hierarchy,
    cell_type: str,
    place: AttachmentPoint,
    *,
    number: int,
    n_cells: int,
    support: float | None = None,
) -> Hierarchy:
    """Add a cell type to a hierarchy.

    The branch that it leaves is cut in two there; the upper part is a new node, served as the branch was before. So no
    cells of other types change.

    Parameters
    ----------
    number
        Of the denoiser's branch that serves the new type.

    Raises
    ------
    InputError
        If there is a branch of this name, or the branch is not on its way at that level.
    """
    if cell_type in hierarchy.by_name:
        raise InputError(f"The hierarchy has a branch {cell_type!r} already; give the new type another name.")
    old, segment = hierarchy.by_name[place.branch], hierarchy.segment(place.branch)
    if not segment.low <= place.level <= segment.high:
        raise InputError(f"Branch {place.branch!r} does not pass the noise level {place.level:.3g}.")
    added = next_extension(hierarchy)
    node = Branch(free_name(hierarchy), old.parent, place.level, old.n_cells + n_cells, support, segment.number, added)
    leaf = Branch(cell_type, node.name, 0.0, n_cells, None, number, added)
    above = {branch.name for branch in hierarchy.lineage(old.name)} - {old.name}
    below = set(descendants(hierarchy, old.name))
    known = with_branch_numbers(hierarchy).branches
    first = next(i for i, branch in enumerate(known) if branch.name == old.name)
    last = max(i for i, branch in enumerate(known) if branch.name in below)
    placed = [replace(branch, n_cells=branch.n_cells + n_cells * (branch.name in above)) for branch in known]
    placed[first] = replace(placed[first], parent=node.name)
    return replace(hierarchy, branches=(*placed[:first], node, *placed[first : last + 1], leaf, *placed[last + 1 :]))


def with_updated_type(hierarchy: Hierarchy, cell_type: str, *, number: int, n_cells: int) -> Hierarchy:
    """Let another branch of the denoiser serve a cell type, which stays in its place.

    Parameters
    ----------
    n_cells
        Cells by which the type has become more.
    """
    lineage = {branch.name for branch in hierarchy.lineage(cell_type)}
    updated = next_extension(hierarchy)
    branches = []
    for branch in with_branch_numbers(hierarchy).branches:
        if branch.name in lineage:
            branch = replace(branch, n_cells=branch.n_cells + n_cells)
        if branch.name == cell_type:
            branch = replace(branch, number=number, updated=updated)
        branches.append(branch)
    return replace(hierarchy, branches=tuple(branches))


def with_branch_numbers(hierarchy: Hierarchy) -> Hierarchy:
    """Write down the numbers of all branches, which their places tell until others come between."""
    numbers = hierarchy.numbers
    branches = tuple(replace(branch, number=numbers[branch.name]) for branch in hierarchy.branches)
    return replace(hierarchy, branches=branches)


def next_extension(hierarchy: Hierarchy) -> int:
    """Count extensions, the next one included."""
    return 1 + max(max(branch.added, branch.updated) for branch in hierarchy.branches)


def descendants(hierarchy: Hierarchy, name: str) -> Iterator[str]:
    """Yield a branch and all below it."""
    waiting = [name]
    while waiting:
        name = waiting.pop()
        yield name
        waiting.extend(hierarchy.children[name])


def free_name(hierarchy: Hierarchy) -> str:
    """Name of a new node that no branch has."""
    number = sum(bool(children) for children in hierarchy.children.values()) + 1
    while f"node {number}" in hierarchy.by_name:
        number += 1
    return f"node {number}"
