"""Trees of populations: clades, and the hierarchy of branches that a model samples along."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any

from bdm._core.errors import InputError


@dataclass(frozen=True)
class Clade:
    """Shape of a tree: a leaf with a name, or an inner node with children and, optionally, a name.

    The length of the branch above it counts in lineage trees only, see :class:`bdm.lineages.tree.LineageTree`.
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
    """Reject a tree with more nodes one below the other (some 300) than functions can call themselves."""
    try:
        yield
    except RecursionError as error:
        raise InputError(
            "The tree has too many nodes one below the other; join some of them, as a node may have any number of "
            "children."
        ) from error


def from_nested(nested: str | Sequence[Any]) -> Clade:
    """Read a tree from nested lists of cell types, such as ``[["B", "NK"], "Mono"]``."""
    if isinstance(nested, str):
        return Clade(nested)
    if not isinstance(nested, list | tuple):
        raise InputError(f"A tree consists of lists and names of cell types, but this one contains {nested!r}.")
    if len(nested) < 2:
        raise InputError(f"Every list in a tree contains two or more branches, but one is {nested!r}.")
    return Clade(children=tuple(from_nested(child) for child in nested))


@rejecting_deep_trees()
def match_leaves(tree: Clade, cell_types: Sequence[str]) -> Clade:
    """Match the leaves of a tree to the cell types, which must be the same.

    In Newick, the underscores of unquoted names stand for spaces; leaves are given underscores again where the cell
    type has them. A clade with the name of a cell type is this leaf if no cell type is below it, as are clades of
    sub-populations; other names of inner nodes are left out.
    """
    spaced = {cell_type.replace("_", " "): cell_type for cell_type in cell_types}
    tree = _of_cell_types(tree, spaced | {cell_type: cell_type for cell_type in cell_types})
    leaves = tree.leaves()
    problems = {
        "lacks": [t for t in cell_types if t not in leaves],
        "has unknown types": sorted(set(leaves) - set(cell_types)),
        "repeats": sorted({leaf for leaf in leaves if leaves.count(leaf) > 1}),
    }
    found = [f"{problem} {', '.join(map(repr, types))}" for problem, types in problems.items() if types]
    if found and len(cell_types) == 1:
        raise InputError(
            f"A tree needs two cell types or more, but all cells are of the type {cell_types[0]!r}; leave out `tree=`, "
            "as sub-populations have a tree of their own."
        )
    if found:
        raise InputError(f"The tree {' and '.join(found)}; its leaves must be the cell types of the data, each once.")
    return tree


def without_leaves(tree: Clade, names: Collection[str]) -> Clade | None:
    """Leave out leaves by name, and inner nodes that are left with one child; None if no leaf is left."""
    if not tree.children:
        return None if tree.name in names else tree
    children = tuple(left for child in tree.children if (left := without_leaves(child, names)) is not None)
    return replace(tree, children=children) if len(children) > 1 else next(iter(children), None)


def _of_cell_types(tree: Clade, known: dict[str, str]) -> Clade:
    """Tree whose leaves have the names of known cell types, where they are written in another form."""
    name = known.get(str(tree.name))
    if not tree.children or (name is not None and known.keys().isdisjoint(tree.leaves())):
        return Clade(name or tree.name)
    return Clade(children=tuple(_of_cell_types(child, known) for child in tree.children))


MIN_PLACE = 0.7  # support below which a place is uncertain (Hillis & Bull 1993, Systematic Biology 42:182)
PLACE_UNCERTAIN = "few cells: place uncertain"


@dataclass(frozen=True)
class Branch:
    """A branch of the hierarchy: a cell type, or the common ancestor of several."""

    name: str  # population, or inner node: of a cell type whose sub-populations are below it, the cell type
    parent: str | None  # None for the root
    level: float  # of the lower end, in whitened units, at which its children separate; 0 for a population
    n_cells: int  # below the branch that the hierarchy was built from
    support: float | None = None  # share of bootstrap resamples in which its populations form a clade
    cell_type: str | None = None  # of all populations below; None where there are several
    nearer_to: str | None = None  # cell type whose populations are nearer than the others of its own
    place: float | None = None  # support of the place of a cell type of few cells; None for others
    row: int | None = None  # in the prior; None where it is the position in ``Hierarchy.branches``
    added: int = 0  # number of the extension that added the branch; 0 if none did

    @property
    def place_uncertain(self) -> bool:
        """Whether it is a cell type of too few cells to have a certain place in the tree."""
        return self.place is not None and self.place < MIN_PLACE


@dataclass(frozen=True)
class Segment:
    """Part of a path from the root: a branch, with its row in the prior, from noise level ``high`` down to ``low``."""

    branch: str
    row: int
    high: float
    low: float


@dataclass(frozen=True)
class Hierarchy:
    """Tree of populations in which every branch is an interval of noise levels.

    A branch runs from its level up to the level of its parent; the root up to ``sigma_max`` (Tseng et al. 2024,
    arXiv 2212.10777, with levels in closed form).

    Attributes
    ----------
    branches
        Root first, every parent before its children, children in order.
    given
        Whether the shape of the tree was given by the user.
    provenance
        How it was made: seed, number of resamples, file of the user's tree; empty if there is no record.
    """

    branches: tuple[Branch, ...]
    sigma_max: float
    threshold: float
    given: bool = False
    provenance: dict[str, Any] = field(default_factory=dict, compare=False)

    @cached_property
    def by_name(self) -> dict[str, Branch]:
        """Branches by name."""
        return {branch.name: branch for branch in self.branches}

    @cached_property
    def children(self) -> dict[str, tuple[str, ...]]:
        """Names of each branch's children, in order; none for a population."""
        children: dict[str, tuple[str, ...]] = {branch.name: () for branch in self.branches}
        for branch in self.branches:
            if branch.parent is not None:
                children[branch.parent] += (branch.name,)
        return children

    @property
    def root(self) -> Branch:
        """Branch that all others descend from."""
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
        """List the populations of a cell type, in order: its sub-populations, or the type itself."""
        return self._populations_by_type[cell_type]

    def types_below(self, name: str) -> tuple[str, ...]:
        """List the cell types of the populations below a branch, in order."""
        return tuple(dict.fromkeys(self.by_name[leaf].cell_type or leaf for leaf in self.leaves(name)))

    @cached_property
    def _populations_by_type(self) -> dict[str, tuple[str, ...]]:
        by_type: dict[str, tuple[str, ...]] = {}
        for name in self.populations:
            cell_type = self.by_name[name].cell_type or name
            by_type[cell_type] = (*by_type.get(cell_type, ()), name)
        return by_type

    @property
    def flat(self) -> bool:
        """Whether all populations separate at the root, which has no length, as in models for comparison."""
        return bool(self.children[self.root.name]) and self.root.level == self.sigma_max

    def shape(self, name: str) -> Clade:
        """Shape below a branch, with the names of its branches."""
        return Clade(name, tuple(self.shape(child) for child in self.children[name]))

    def leaves(self, name: str) -> Iterator[str]:
        """Yield the populations below a branch, in order; the population itself for a leaf."""
        waiting = [name]
        while waiting:
            name = waiting.pop()
            waiting.extend(reversed(self.children[name]))
            if not self.children[name]:
                yield name

    def segment(self, name: str) -> Segment:
        """Interval of noise levels of a branch."""
        branch = self.by_name[name]
        high = self.sigma_max if branch.parent is None else self.by_name[branch.parent].level
        return Segment(name, self.rows[name], high, branch.level)

    def lineage(self, name: str) -> Iterator[Branch]:
        """Yield a branch and all above it, up to the root."""
        step: str | None = name
        while step is not None:
            yield self.by_name[step]
            step = self.by_name[step].parent

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of the parameters of each branch in the prior, by name."""
        given = {branch.name: branch.row for branch in self.branches}
        return {name: i if index is None else index for i, (name, index) in enumerate(given.items())}

    def path(self, name: str) -> tuple[Segment, ...]:
        """Path from the root to the lower end of a branch.

        Adjacent segments with the same row of the prior are one, and segments of length 0 are left out. So the
        path of a population does not change when others are added.
        """
        segments: list[Segment] = []
        for branch in self.lineage(name):
            segment = self.segment(branch.name)
            if segments and segments[-1].row == segment.row:
                segments[-1] = replace(segments[-1], high=segment.high)
            else:
                segments.append(segment)
        return tuple(segment for segment in reversed(segments) if segment.high > segment.low)

    def common_ancestor(self, one: str, other: str) -> Branch:
        """Find the lowest branch above two branches or cell types; the branch itself where they are the same."""
        names = {branch.name for branch in self.lineage(self.branch_of(one).name)}
        return next(branch for branch in self.lineage(self.branch_of(other).name) if branch.name in names)

    def branch_of(self, name: str) -> Branch:
        """Branch of a name; of a cell type, the lowest branch above all of its populations."""
        if name in self.by_name:
            return self.by_name[name]
        first, *others = self.populations_of(name)
        return reduce(lambda found, other: self.common_ancestor(found.name, other), others, self.by_name[first])

    def path_below(self, ancestor: Branch, population: str) -> tuple[Segment, ...]:
        """Part of the path of a population that is below the level of an ancestor."""
        clipped = (replace(segment, high=min(segment.high, ancestor.level)) for segment in self.path(population))
        return tuple(segment for segment in clipped if segment.high > segment.low)

    def fault(self) -> str | None:
        """Describe why the branches are no tree with paths from ``sigma_max`` down to 0; None if they are."""
        levels: dict[str | None, float] = {None: self.sigma_max}
        for i, branch in enumerate(self.branches):
            if branch.name in levels or branch.parent not in levels or (branch.parent is None) != (i == 0):
                return f"branch {branch.name!r} is not connected to the tree"
            if not 0 <= branch.level <= levels[branch.parent]:
                return f"branch {branch.name!r} has level {branch.level}, which is not from 0 to its parent's"
            levels[branch.name] = branch.level
        uneven = [name for name, children in self.children.items() if not children and levels[name] > 0]
        return f"branch {uneven[0]!r} ends above 0" if uneven else None if self.branches else "it has no branches"
