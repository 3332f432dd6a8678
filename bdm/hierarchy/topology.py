from collections.abc import Sequence
from dataclasses import dataclass, field

from bdm.errors import InputError


@dataclass(frozen=True)
class Clade:
    """Shape of a tree alone: a leaf with a name, or an inner node with children (and maybe a name)."""

    name: str | None = None
    children: tuple["Clade", ...] = field(default=())

    def leaves(self) -> tuple[str, ...]:
        """Names of the leaves, in order."""
        if not self.children:
            return (self.name,)
        return tuple(leaf for child in self.children for leaf in child.leaves())


def from_nested(nested: str | Sequence) -> Clade:
    """Tree from nested lists of cell types, such as ``[["B", "NK"], "Mono"]``.

    Raises
    ------
    InputError
        If it holds anything but text and lists of two or more.
    """
    if isinstance(nested, str):
        return Clade(nested)
    if not isinstance(nested, list | tuple):
        raise InputError(f"A hierarchy is made of lists and names of cell types, but holds {nested!r}.")
    if len(nested) < 2:
        raise InputError(f"Every list in a hierarchy holds two or more branches, but one is {nested!r}.")
    return Clade(children=tuple(from_nested(child) for child in nested))


def match_leaves(tree: Clade, cell_types: Sequence[str]) -> Clade:
    """Give a tree whose leaves are exactly the cell types.

    Newick reads the underscores of unquoted names as spaces; leaves are named with underscores again where the cell
    type has them.

    Raises
    ------
    InputError
        Naming what is missing, unknown or there twice.
    """
    tree = _with_known_names(tree, {cell_type.replace("_", " "): cell_type for cell_type in cell_types}, cell_types)
    leaves = tree.leaves()
    problems = {
        "lacks": [t for t in cell_types if t not in leaves],
        "has unknown types": sorted(set(leaves) - set(cell_types)),
        "repeats": sorted({leaf for leaf in leaves if leaves.count(leaf) > 1}),
    }
    told = [f"{problem} {', '.join(map(repr, types))}" for problem, types in problems.items() if types]
    if told:
        raise InputError(f"The hierarchy {' and '.join(told)}; its leaves must be the data's cell types, each once.")
    return tree


def _with_known_names(tree: Clade, spaced: dict[str, str], cell_types: Sequence[str]) -> Clade:
    if not tree.children:
        return tree if tree.name in cell_types else Clade(spaced.get(tree.name, tree.name))
    return Clade(tree.name, tuple(_with_known_names(child, spaced, cell_types) for child in tree.children))
