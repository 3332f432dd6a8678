"""Comparison of the clades of two trees."""

from collections.abc import Set
from dataclasses import dataclass

from bdm.errors import InputError
from bdm.hierarchy.tree import Clade, Hierarchy


@dataclass(frozen=True)
class TreeComparison:
    """Clades of a tree and of a reference; a clade is the set of cell types below an inner node.

    The clade of the root, which all trees have, is left out.

    Attributes
    ----------
    tree, reference
        Clades of each.
    """

    tree: Set[frozenset[str]]
    reference: Set[frozenset[str]]

    @classmethod
    def of(cls, tree: Clade | Hierarchy, reference: Clade | Hierarchy) -> "TreeComparison":
        """Compare two trees.

        Raises
        ------
        InputError
            If their cell types are not the same.
        """
        ours, theirs = cell_types_of(tree), cell_types_of(reference)
        if ours != theirs:
            raise InputError(
                f"Trees of different cell types cannot be compared; only one has {', '.join(sorted(ours ^ theirs))}."
            )
        return cls(clades_of_tree(tree), clades_of_tree(reference))

    @property
    def found(self) -> Set[frozenset[str]]:
        """Clades of the reference that the tree has."""
        return self.reference & self.tree

    @property
    def missing(self) -> Set[frozenset[str]]:
        """Clades of the reference that the tree lacks."""
        return self.reference - self.tree

    @property
    def contradicting(self) -> Set[frozenset[str]]:
        """Clades of the tree that contradict a clade of the reference; other clades only add detail to it."""
        return {clade for clade in self.tree if any(overlap_in_part(clade, other) for other in self.reference)}

    @property
    def robinson_foulds(self) -> int:
        """Number of clades that only one of the two has.

        Robinson and Foulds 1981 (Math. Biosci. 53:131), for trees with a root.
        """
        return len(self.tree ^ self.reference)

    @property
    def share_missing(self) -> float:
        """Share of the reference's clades that the tree lacks; NaN where it has none."""
        return len(self.missing) / len(self.reference) if self.reference else float("nan")


def clades_of_tree(tree: Clade | Hierarchy) -> Set[frozenset[str]]:
    """Return the set of cell types below each inner node except the root and the nodes of single cell types."""
    if isinstance(tree, Hierarchy):
        below = (frozenset(tree.types_below(branch.name)) for branch in tree.branches[1:])
        return {cell_types for cell_types in below if len(cell_types) > 1}
    inner = [child for child in tree.children if child.children]
    return {frozenset(child.leaves()) for child in inner}.union(*map(clades_of_tree, inner))


def cell_types_of(tree: Clade | Hierarchy) -> frozenset[str]:
    """Cell types of a tree."""
    return frozenset(tree.cell_types if isinstance(tree, Hierarchy) else tree.leaves())


def overlap_in_part(one: Set[str], other: Set[str]) -> bool:
    """Whether two sets overlap but neither contains the other; no tree has both as clades."""
    return not (one <= other or other <= one or one.isdisjoint(other))
