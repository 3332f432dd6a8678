"""Where a new cell type is attached to a hierarchy; and hierarchies with a new type, or with an updated population."""

from dataclasses import dataclass, replace

import numpy as np

from bdm.errors import InputError
from bdm.hierarchy.build import MIN_LEVEL, branch_level, inner_names
from bdm.hierarchy.tree import Branch, Hierarchy


@dataclass(frozen=True)
class AttachmentPoint:
    """Branch and noise level at which a new cell type leaves the hierarchy.

    Attributes
    ----------
    branch
        Name of the branch that it leaves.
    level
        Noise level at which it does.
    distance
        Root mean square of its distances to the populations below that branch, in whitened space; 0 where noise
        explains all of the distance.
    """

    branch: str
    level: float
    distance: float


def attachment_point(
    hierarchy: Hierarchy, squared_distance: dict[str, float], *, lowest: float = MIN_LEVEL
) -> AttachmentPoint:
    """Find the attachment point of a new cell type by its squared distances to the populations of a hierarchy.

    Descends from the root to the nearest child for as long as the type separates from that child at a lower noise level
    than the children separate from each other. The type leaves the branch at the level at which it separates from the
    populations below by the threshold of the hierarchy. It leaves no branch below a cell type, which stays a clade.

    Parameters
    ----------
    squared_distance
        Squared distance of the new type to each population, by name, in whitened space, without the noise of both
        means; it may be negative. Of a type of several populations, the average of the squared distances of these.
    lowest
        Lowest level at which the type may leave: the level at which its own populations separate.
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
    """Add a cell type to a hierarchy.

    The branch that it leaves is cut in two at the attachment point. The upper part becomes a new node that keeps the
    row in the prior, so the cells of other types do not change.

    Parameters
    ----------
    tree
        Branches of the type: a leaf, or a clade of its populations.
    row
        Row of the first of the added branches in the prior, in the order of ``tree``.

    Raises
    ------
    InputError
        If there is a branch of the same name, or the level of the attachment point is not on its branch.
    """
    if taken := next((branch.name for branch in tree.branches if branch.name in hierarchy.by_name), None):
        raise InputError(f"The hierarchy has a branch {taken!r} already; give the new type another name.")
    below_node, segment = hierarchy.by_name[attachment.branch], hierarchy.segment(attachment.branch)
    if not segment.low <= attachment.level <= segment.high:
        raise InputError(f"Branch {attachment.branch!r} does not pass the noise level {attachment.level:.3g}.")
    extension, n_cells = next_extension(hierarchy), tree.root.n_cells
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


def with_updated_population(hierarchy: Hierarchy, population: str, *, row: int, n_cells: int) -> Hierarchy:
    """Generate a population by another row of the prior, without a change to its position in the tree.

    Parameters
    ----------
    n_cells
        Number of its new cells.
    """
    lineage = {branch.name for branch in hierarchy.lineage(population)}
    updated = next_extension(hierarchy)
    branches = []
    for branch in with_rows(hierarchy).branches:
        if branch.name in lineage:
            branch = replace(branch, n_cells=branch.n_cells + n_cells)
        if branch.name == population:
            branch = replace(branch, row=row, updated=updated)
        branches.append(branch)
    return replace(hierarchy, branches=tuple(branches))


def with_rows(hierarchy: Hierarchy, *, first: int = 0) -> Hierarchy:
    """Write its row into every branch, which is its position only until others are inserted.

    Parameters
    ----------
    first
        Number of rows that the prior has before these.
    """
    indices = hierarchy.rows
    branches = tuple(replace(branch, row=first + indices[branch.name]) for branch in hierarchy.branches)
    return replace(hierarchy, branches=branches)


def next_extension(hierarchy: Hierarchy) -> int:
    """Count the extensions, the next one included."""
    return 1 + max(max(branch.added, branch.updated) for branch in hierarchy.branches)
