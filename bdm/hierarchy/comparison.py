"""Comparison of the clades of two trees."""

from collections.abc import Set
from dataclasses import dataclass

import pandas as pd

from bdm.errors import InputError
from bdm.hierarchy.tree import Clade, Hierarchy


@dataclass(frozen=True)
class TreeComparison:
    """Clades of a tree and of a reference, but the root's; a clade is the set of cell types below an inner node."""

    tree: Set[frozenset[str]]
    reference: Set[frozenset[str]]

    @classmethod
    def from_trees(cls, tree: Clade | Hierarchy, reference: Clade | Hierarchy) -> "TreeComparison":
        """Compare two trees."""
        ours, theirs = cell_types_of(tree), cell_types_of(reference)
        if ours != theirs:
            raise InputError(
                f"Trees of different cell types cannot be compared; only one has {', '.join(sorted(ours ^ theirs))}."
            )
        return cls(clades_of_tree(tree), clades_of_tree(reference))

    @property
    def found(self) -> Set[frozenset[str]]:
        """Clades that both have."""
        return self.reference & self.tree

    @property
    def contradicting(self) -> Set[frozenset[str]]:
        """Clades of the tree that contradict a clade of the reference; other clades only add detail to it."""
        return {clade for clade in self.tree if any(overlap_in_part(clade, other) for other in self.reference)}

    @property
    def robinson_foulds(self) -> int:
        """Number of clades that only one has (Robinson and Foulds 1981, Math. Biosci. 53:131, for rooted trees)."""
        return len(self.tree ^ self.reference)

    @property
    def share_missing(self) -> float:
        """Share of the reference's clades that the tree lacks; NaN where it has none."""
        return len(self.reference - self.tree) / len(self.reference) if self.reference else float("nan")


def agreement(tree: Hierarchy, clustered: Hierarchy) -> str:
    """Describe in words how many nodes of a given tree are clades of the clustering of the same cells."""
    compared = TreeComparison.from_trees(tree, clustered)
    if not compared.tree:
        return "nothing to compare: your tree has one node"
    return (
        f"agrees in {len(compared.found)} of the {len(compared.tree)} nodes of your tree below the root, and "
        f"contradicts {len(compared.contradicting)}"
    )


def comparison_table(tree: Hierarchy, clustered: Hierarchy) -> pd.DataFrame:
    """List the clades of a given tree, then those of the clustering of the same cells alone, without the root's.

    ``contradicted`` is whether a clade of the other one overlaps it in part.
    """
    ours, theirs = (TreeComparison.from_trees(*pair) for pair in ((tree, clustered), (clustered, tree)))
    columns = ("node", "in_tree", "in_clustering", "support", "contradicted", "n_types", "n_cells", "cell_types")
    rows = []
    for hierarchy, contradicting in ((tree, ours.contradicting), (clustered, theirs.contradicting)):
        for branch in hierarchy.branches[1:]:
            types = hierarchy.types_below(branch.name)
            below, is_node = frozenset(types), hierarchy is tree
            if len(types) > 1 and (is_node or below not in ours.tree):
                name = branch.name if is_node else None
                where = (name, is_node, below in theirs.tree, branch.support, below in contradicting)
                rows.append((*where, len(types), branch.n_cells, "; ".join(types)))
    return pd.DataFrame(rows, columns=list(columns))


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
