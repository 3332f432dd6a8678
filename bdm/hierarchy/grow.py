from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from bdm.errors import InputError
from bdm.hierarchy.levels import MIN_LEVEL, branch_level
from bdm.hierarchy.tree import Branch, Hierarchy


@dataclass(frozen=True)
class Place:
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


def find_place(hierarchy: Hierarchy, distance: dict[str, float]) -> Place:
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
    return Place(name, min(max(level(name), segment.low, MIN_LEVEL), segment.high), to(name))


def grown(
    hierarchy: Hierarchy, cell_type: str, place: Place, *, n_cells: int, support: float | None = None
) -> Hierarchy:
    """Add a cell type to a hierarchy.

    The branch that it leaves is cut in two there; the upper part is a new node, run by the branch as before. So no
    cells of other types change.

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
    number = 1 + max(branch.added for branch in hierarchy.branches)
    node = Branch(
        name=free_name(hierarchy),
        parent=old.parent,
        level=place.level,
        n_cells=old.n_cells + n_cells,
        support=support,
        added=number,
        runs_as=old.runner,
    )
    leaf = Branch(cell_type, node.name, 0.0, n_cells, added=number)
    above = {branch.name for branch in hierarchy.lineage(old.name)}
    below = set(descendants(hierarchy, old.name))
    branches: list[Branch] = []
    for i, branch in enumerate(hierarchy.branches):
        if branch.name == old.name:
            branches += [node, replace(branch, parent=node.name)]
        else:
            branches.append(replace(branch, n_cells=branch.n_cells + n_cells) if branch.name in above else branch)
        following = hierarchy.branches[i + 1].name if i + 1 < len(hierarchy.branches) else None
        if branch.name in below and following not in below:
            branches.append(leaf)
    return replace(hierarchy, branches=tuple(branches))


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
