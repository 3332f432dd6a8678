"""Comparison of trees by their clades."""

from collections.abc import Set
from dataclasses import dataclass

from bdm import InputError
from bdm.hierarchy.tree import Clade, Hierarchy


@dataclass(frozen=True)
class TreeComparison:
    """Clades of a tree and a reference, without the root.

    A clade is the set of cell types below an inner node.
    """

    tree: Set[frozenset[str]]
    reference: Set[frozenset[str]]

    @classmethod
    def from_trees(cls, tree: Clade | Hierarchy, reference: Clade | Hierarchy) -> "TreeComparison":
        """Compare two trees."""
        trees = tree, reference
        ours, theirs = (frozenset(tree.cell_types if isinstance(tree, Hierarchy) else tree.leaves()) for tree in trees)
        if ours != theirs:
            raise InputError(f"The trees have different cell types; only one has {', '.join(sorted(ours ^ theirs))}.")
        return cls(clades_of_tree(tree), clades_of_tree(reference))

    @property
    def found(self) -> Set[frozenset[str]]:
        """Clades in both trees."""
        return self.reference & self.tree

    @property
    def contradicting(self) -> Set[frozenset[str]]:
        """Clades of the tree that contradict a clade of the reference."""
        return {
            clade
            for clade in self.tree
            if any(not (clade <= known or known <= clade or clade.isdisjoint(known)) for known in self.reference)
        }

    @property
    def robinson_foulds(self) -> int:
        """Number of clades in only one tree.

        Robinson and Foulds 1981, Math. Biosci. 53:131, for rooted trees.
        """
        return len(self.tree ^ self.reference)

    @property
    def share_missing(self) -> float:
        """Share of reference clades missing from the tree; NaN without any."""
        return len(self.reference - self.tree) / len(self.reference) if self.reference else float("nan")


def clades_of_tree(tree: Clade | Hierarchy) -> Set[frozenset[str]]:
    """Return cell types below each inner node.

    The root and nodes of single cell types are left out.
    """
    if isinstance(tree, Hierarchy):
        below = (frozenset(tree.types_below(branch.name)) for branch in tree.branches[1:])
        return {cell_types for cell_types in below if len(cell_types) > 1}
    inner = [child for child in tree.children if child.children]
    return {frozenset(child.leaves()) for child in inner}.union(*map(clades_of_tree, inner))
