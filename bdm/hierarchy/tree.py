"""Trees: clades of names, and the hierarchy of branches with noise levels."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any

from bdm._core.errors import InputError


@dataclass(frozen=True)
class Clade:
    """Shape of a tree: a named leaf, or a node with children.

    ``length`` of the branch above is used by :class:`bdm.applications.relations.lineage_tree.LineageTree` only.
    """

    name: str | None = None
    children: tuple["Clade", ...] = field(default=())
    length: float | None = field(default=None, compare=False)

    def leaves(self) -> tuple[str, ...]:
        """Names of the leaves, in order."""
        if not self.children:
            return (str(self.name),)
        return tuple(leaf for child in self.children for leaf in child.leaves())


@contextmanager
def rejecting_deep_trees() -> Iterator[None]:
    """Convert a RecursionError into an InputError (trees deeper than about 300 nodes)."""
    try:
        yield
    except RecursionError as error:
        raise InputError(
            "The tree is too deep; join some of its nodes, as a node may have any number of children."
        ) from error


def from_nested(nested: str | Sequence[Any]) -> Clade:
    """Convert nested lists of cell types, such as ``[["B", "NK"], "Mono"]``, to a clade."""
    if isinstance(nested, str):
        return Clade(nested)
    if not isinstance(nested, list | tuple):
        raise InputError(f"A tree consists of lists and names of cell types; {nested!r} is neither.")
    if len(nested) < 2:
        raise InputError(f"Every list in a tree contains two or more branches; {nested!r} does not.")
    return Clade(children=tuple(from_nested(child) for child in nested))


@rejecting_deep_trees()
def match_leaves(tree: Clade, cell_types: Sequence[str]) -> Clade:
    """Match the leaves of a tree to the cell types.

    Both must be the same. Underscores that Newick reads as spaces are restored. A clade named after a cell type, with
    no cell type below it (such as a clade of sub-populations), becomes a leaf; other names of inner nodes are dropped.
    """
    spaced = {cell_type.replace("_", " "): cell_type for cell_type in cell_types}
    tree = _renamed(tree, spaced | {cell_type: cell_type for cell_type in cell_types})
    leaves = tree.leaves()
    problems = {
        "lacks": [t for t in cell_types if t not in leaves],
        "has unknown types": sorted(set(leaves) - set(cell_types)),
        "repeats": sorted({leaf for leaf in leaves if leaves.count(leaf) > 1}),
    }
    sentences = [f"{problem} {', '.join(map(repr, types))}" for problem, types in problems.items() if types]
    if sentences and len(cell_types) == 1:
        raise InputError(
            f"A tree needs two cell types or more, but {cell_types[0]!r} is the only one; leave out `tree=`. The tree "
            "of its sub-populations is computed."
        )
    if sentences:
        raise InputError(
            f"The tree {' and '.join(sentences)}; its leaves must be the cell types of the data, each once."
        )
    return tree


def _renamed(tree: Clade, known: dict[str, str]) -> Clade:
    """Rename leaves to known cell types, see :func:`match_leaves`."""
    name = known.get(str(tree.name))
    if not tree.children or (name is not None and known.keys().isdisjoint(tree.leaves())):
        return Clade(name or tree.name)
    return Clade(children=tuple(_renamed(child, known) for child in tree.children))


def without_leaves(tree: Clade, names: Collection[str]) -> Clade | None:
    """Remove leaves by name, and nodes with a single child; None if empty."""
    if not tree.children:
        return None if tree.name in names else tree
    children = tuple(pruned for child in tree.children if (pruned := without_leaves(child, names)) is not None)
    return replace(tree, children=children) if len(children) > 1 else next(iter(children), None)


MIN_PLACE = 0.7  # support below which a place is uncertain (Hillis & Bull 1993, Systematic Biology 42:182)
PLACE_UNCERTAIN = "few cells: place uncertain"


@dataclass(frozen=True)
class Branch:
    """Branch of the hierarchy: a population, a cell type, or an ancestor of several."""

    name: str  # population, cell type with sub-populations, or node
    parent: str | None  # None for the root
    level: float  # noise level of the lower end, where the children separate, in whitened units; 0 for a population
    n_cells: int  # cells below the branch when the hierarchy was built
    support: float | None = None  # fraction of bootstrap resamples with this clade
    cell_type: str | None = None  # cell type of the populations below; None if there are several
    nearer_to: str | None = None  # cell type that is nearer than the branch's own
    place: float | None = None  # support of the place of a rare cell type; None for others
    row: int | None = None  # row in the prior; None for the position in ``Hierarchy.branches``
    added: int = 0  # number of the extension that added the branch; 0 for branches of the fitted model

    @property
    def place_uncertain(self) -> bool:
        """Whether this is a rare cell type without a well-supported place in the tree."""
        return self.place is not None and self.place < MIN_PLACE


@dataclass(frozen=True)
class Segment:
    """Part of a path on one branch, from noise level ``high`` down to ``low``."""

    branch: str
    row: int
    high: float
    low: float


@dataclass(frozen=True)
class Hierarchy:
    """Tree of populations; every branch is an interval of noise levels.

    A branch runs from its level up to its parent's level; the root up to ``sigma_max`` (Tseng et al. 2024, arXiv
    2212.10777, with levels in closed form).

    Attributes
    ----------
    branches
        All branches: the root first, parents before their children.
    sigma_max
        Highest noise level, in whitened units.
    threshold
        AUC at which cell types separate, see :func:`bdm.hierarchy.build.branch_level`.
    from_user
        Whether the user provided the shape of the tree.
    provenance
        Seed, number of resamples and file of the user's tree; empty if unknown.
    """

    branches: tuple[Branch, ...]
    sigma_max: float
    threshold: float
    from_user: bool = False
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def by_name(self) -> dict[str, Branch]:
        """Branches by name."""
        return {branch.name: branch for branch in self.branches}

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """Names of each branch's children, in order."""
        children: dict[str, tuple[str, ...]] = {branch.name: () for branch in self.branches}
        for branch in self.branches:
            if branch.parent is not None:
                children[branch.parent] += (branch.name,)
        return children

    @property
    def root(self) -> Branch:
        """Root branch."""
        return self.branches[0]

    @cached_property
    def populations(self) -> tuple[str, ...]:
        """Names of the leaves, in order."""
        return tuple(self.leaves(self.root.name))

    @cached_property
    def cell_types(self) -> tuple[str, ...]:
        """Cell types of the leaves, in order."""
        return tuple(self._populations_by_type)

    def populations_of(self, cell_type: str) -> tuple[str, ...]:
        """Return the names of a cell type's populations, in the order of the tree."""
        return self._populations_by_type[cell_type]

    def types_below(self, name: str) -> tuple[str, ...]:
        """Return the names of the cell types below a branch, in the order of the tree."""
        return tuple(dict.fromkeys(self.by_name[leaf].cell_type or leaf for leaf in self.leaves(name)))

    @cached_property
    def _populations_by_type(self) -> dict[str, tuple[str, ...]]:
        by_type: dict[str, tuple[str, ...]] = {}
        for name in self.populations:
            cell_type = self.by_name[name].cell_type or name
            by_type[cell_type] = (*by_type.get(cell_type, ()), name)
        return by_type

    def shape(self, name: str) -> Clade:
        """Return the shape of the tree below a branch, with the names of branches."""
        return Clade(name, tuple(self.shape(child) for child in self.children[name]))

    def leaves(self, name: str) -> Iterator[str]:
        """Yield the names of the populations below a branch, in the order of the tree; a leaf yields itself."""
        waiting = [name]
        while waiting:
            name = waiting.pop()
            waiting.extend(reversed(self.children[name]))
            if not self.children[name]:
                yield name

    def segment(self, name: str) -> Segment:
        """Return the interval of a branch: from its parent's noise level, or ``sigma_max``, down to its own."""
        branch = self.by_name[name]
        high = self.sigma_max if branch.parent is None else self.by_name[branch.parent].level
        return Segment(name, self.rows[name], high, branch.level)

    def lineage(self, name: str) -> Iterator[Branch]:
        """Yield a branch and its ancestors, up to the root."""
        step: str | None = name
        while step is not None:
            yield self.by_name[step]
            step = self.by_name[step].parent

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of each branch in the parameters of the prior."""
        return {branch.name: i if branch.row is None else branch.row for i, branch in enumerate(self.branches)}

    def path(self, name: str) -> tuple[Segment, ...]:
        """Return the segments from the root down to the lower end of a branch.

        Adjacent segments with the same row are joined and segments of length 0 dropped, so adding cell types does not
        change the paths of others.
        """
        segments: list[Segment] = []
        for branch in self.lineage(name):
            segment = self.segment(branch.name)
            if segments and segments[-1].row == segment.row:
                segments[-1] = replace(segments[-1], high=segment.high)
            else:
                segments.append(segment)
        return tuple(segment for segment in reversed(segments) if segment.high > segment.low)

    def common_ancestor(self, first: str, second: str) -> Branch:
        """Find the lowest common ancestor of two branches or cell types; a branch is above itself."""
        names = {branch.name for branch in self.lineage(self.find_branch(first).name)}
        return next(branch for branch in self.lineage(self.find_branch(second).name) if branch.name in names)

    def find_branch(self, name: str) -> Branch:
        """Find a branch by name, or the lowest branch above all populations of a cell type."""
        if name in self.by_name:
            return self.by_name[name]
        first, *rest = self.populations_of(name)
        return reduce(lambda branch, leaf: self.common_ancestor(branch.name, leaf), rest, self.by_name[first])

    def path_below(self, ancestor: Branch, population: str) -> tuple[Segment, ...]:
        """Return the segments of a population's path from the level of ``ancestor`` down."""
        clipped = (replace(segment, high=min(segment.high, ancestor.level)) for segment in self.path(population))
        return tuple(segment for segment in clipped if segment.high > segment.low)

    def fault(self) -> str | None:
        """Describe the first error in the tree or its levels, if any."""
        if not self.branches:
            return "it has no branches"
        levels: dict[str | None, float] = {None: self.sigma_max}
        for i, branch in enumerate(self.branches):
            if branch.name in levels or branch.parent not in levels or (branch.parent is None) != (i == 0):
                return f"branch {branch.name!r} is not connected to the tree"
            if not 0 <= branch.level <= levels[branch.parent]:
                return f"branch {branch.name!r} has level {branch.level}, which is not between 0 and its parent's level"
            levels[branch.name] = branch.level
        uneven = [name for name, children in self.children.items() if not children and levels[name] > 0]
        return f"branch {uneven[0]!r} ends above 0" if uneven else None
