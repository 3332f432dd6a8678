"""The part of a tree that fits into a figure: which nodes are opened, and which clades share a row."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from bdm.errors import InputError
from bdm.hierarchy.tree import Branch, Hierarchy

MAX_ROWS = 60


@dataclass(frozen=True)
class End:
    """Row of a drawn tree: a cell type, or a clade that is drawn as one.

    Attributes
    ----------
    branches
        The branch that ends here; several where siblings are too many for a row each.
    cell_types
        All that are below.
    """

    branches: tuple[Branch, ...]
    cell_types: tuple[str, ...]

    @property
    def collapsed(self) -> bool:
        """Whether it stands for several cell types."""
        return len(self.cell_types) > 1

    @property
    def level(self) -> float:
        """Noise level at which the first of its cell types separate."""
        return max(branch.level for branch in self.branches)

    @property
    def n_cells(self) -> int:
        """Cells below."""
        return sum(branch.n_cells for branch in self.branches)


@dataclass(frozen=True)
class View:
    """Part of a tree that is drawn: from a branch down to ends, each of which has a row.

    Attributes
    ----------
    opened
        Inner nodes whose children are drawn, parents first.
    ends
        From the first row to the last.
    """

    hierarchy: Hierarchy
    root: str
    opened: tuple[str, ...]
    ends: tuple[End, ...]

    @cached_property
    def rows(self) -> dict[str, float]:
        """Row of each branch that is drawn; of nodes, midway between their children's."""
        rows = {branch.name: float(row) for row, end in enumerate(self.ends) for branch in end.branches}
        for node in reversed(self.opened):
            children = [rows[child] for child in self.hierarchy.children[node]]
            rows[node] = (min(children) + max(children)) / 2
        return rows

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """Names of nodes that are opened, and of branches that have a row of their own, parents first."""
        ends = {end.branches[0].name for end in self.ends if len(end.branches) == 1}
        return tuple(branch.name for branch in self.hierarchy.branches if branch.name in ends.union(self.opened))


def view_of(hierarchy: Hierarchy, *, root: str | None = None, max_rows: int = MAX_ROWS, since: int = 0) -> View:
    """Choose what to draw of a tree in ``max_rows`` rows: the highest nodes are opened, and the others collapsed.

    Nodes above cell types that were added after extension ``since`` are opened first. Where a node has more children
    than there are rows, the small ones share one.

    Raises
    ------
    InputError
        If the tree has no branch ``root``, or there are fewer than two rows.
    """
    root = hierarchy.root.name if root is None else root
    if root not in hierarchy.by_name:
        raise InputError(f"The tree has no branch {root!r}; its nodes are node 1, node 2, and so on.")
    if max_rows < 2:
        raise InputError(f"max_rows is {max_rows}, but a tree needs two or more.")
    above_new = {
        above.name for branch in hierarchy.branches if branch.added > since for above in hierarchy.lineage(branch.name)
    }
    shown: dict[str, list[tuple[str, ...]]] = {}  # children of each opened node, siblings that share a row together
    waiting, room = [root], max_rows - 1
    while waiting and room:
        node = max(waiting, key=lambda name: (name in above_new, hierarchy.by_name[name].level))
        waiting.remove(node)
        children = hierarchy.children[node]
        if not children:
            continue
        shown[node] = _sharing(hierarchy, children, room + 1, first=above_new)
        room -= len(shown[node]) - 1
        waiting += [group[0] for group in shown[node] if len(group) == 1]
    opened = tuple(branch.name for branch in hierarchy.branches if branch.name in shown)
    return View(hierarchy, root, opened, tuple(_ends(hierarchy, (root,), shown)))


def _sharing(hierarchy: Hierarchy, children: Sequence[str], n_rows: int, *, first: set[str]) -> list[tuple[str, ...]]:
    """Divide children into ``n_rows`` groups at most, in their order; the last group holds the smallest children."""
    if len(children) <= n_rows:
        return [(child,) for child in children]
    by_size = sorted(children, key=lambda name: (name not in first, -hierarchy.by_name[name].n_cells))
    alone = set(by_size[: n_rows - 1])
    sharing = tuple(child for child in children if child not in alone)
    return [*((child,) for child in children if child in alone), sharing]


def _ends(hierarchy: Hierarchy, group: tuple[str, ...], shown: dict[str, list[tuple[str, ...]]]) -> list[End]:
    waiting, ends = [group], []
    while waiting:
        group = waiting.pop()
        if group[0] in shown:
            waiting.extend(reversed(shown[group[0]]))
        else:
            leaves = tuple(leaf for name in group for leaf in hierarchy.leaves(name))
            ends.append(End(tuple(hierarchy.by_name[name] for name in group), leaves))
    return ends
