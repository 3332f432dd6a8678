"""Kernels between cell types, by their tree and by distances of their profiles."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist, squareform

from bdm.hierarchy.tree import Clade, match_leaves

SCALES = (0.5, 1.0, 2.0)  # s in exp(-s d**p), where d is a distance divided by the median distance
POWERS = (1.0, 2.0)  # of the heights of nodes


@dataclass(frozen=True)
class RelatedTypes:
    """Tree and distances of cell types."""

    cell_types: tuple[str, ...]
    profile: np.ndarray  # natural log shares of counts in the control, types x genes
    distance: np.ndarray  # Euclidean distances of profiles, types x types
    height: np.ndarray  # of the last common ancestor of two types, types x types: 0 on the diagonal, 1 at the root

    @classmethod
    def from_profiles(cls, profile: np.ndarray, cell_types: tuple[str, ...]) -> Self:
        """Compute distances of profiles, and their average-linkage tree."""
        if len(cell_types) == 1:
            return cls(cell_types, profile, np.zeros((1, 1)), np.zeros((1, 1)))
        distances = pdist(profile)
        height = squareform(cophenet(linkage(distances, "average")))
        return cls(cell_types, profile, squareform(distances), height / max(height.max(), 1e-12))

    def kernels(self, *, along_tree: bool) -> list[np.ndarray]:
        """Return candidate kernels, types x types, with unit diagonal; none for one type.

        They are functions of the tree or of the distances.
        """
        if len(self.cell_types) == 1:
            return []
        if along_tree:
            return [1 - self.height**power for power in POWERS]
        relative = self.distance / max(float(np.median(self.distance[np.triu_indices(len(self.distance), 1)])), 1e-12)
        return [np.exp(-(relative**power) * scale) for power in (1, 2) for scale in SCALES]

    @cached_property
    def nodes(self) -> list[frozenset[str]]:
        """Cell types below each node of the tree, larger nodes first."""
        below = {frozenset(np.flatnonzero(row <= level)) for row in self.height for level in row}
        ordered = sorted(below, key=lambda rows: (-len(rows), min(rows)))
        return [frozenset(self.cell_types[row] for row in rows) for rows in ordered]

    def parent(self, node: frozenset[str]) -> frozenset[str] | None:
        """Return the parent of a node; None for the root."""
        return min((above for above in self.nodes if node < above), key=len, default=None)


def tree_heights(tree: Clade, cell_types: Sequence[str]) -> np.ndarray:
    """Return heights of last common ancestors, types x types.

    The height of a node is its largest number of levels down to a leaf, divided by the height of the root.
    """
    height = np.zeros((len(cell_types), len(cell_types)))

    def fill(node: Clade) -> int:
        if not node.children:
            return 0
        level = 1 + max([fill(child) for child in node.children])
        rows = [cell_types.index(name) for name in node.leaves()]
        between = np.ix_(rows, rows)
        height[between] = np.where(height[between] > 0, height[between], level)  # pairs below a child are filled
        return level

    fill(tree)
    np.fill_diagonal(height, 0)
    return np.asarray(height / max(height.max(), 1e-12))


def heights_in_own_tree(tree: Clade, cell_types: tuple[str, ...], required: np.ndarray) -> np.ndarray:
    """Return heights of last common ancestors in a user's tree, types x types.

    The tree must have the ``required`` types (a mask), and may have other types of the data; NaN for types that it
    lacks.
    """
    leaves = {leaf.replace("_", " ") for leaf in tree.leaves()}
    rows = [row for row, name in enumerate(cell_types) if required[row] or name.replace("_", " ") in leaves]
    names = [cell_types[row] for row in rows]
    height = np.full((len(cell_types), len(cell_types)), np.nan)
    height[np.ix_(rows, rows)] = tree_heights(match_leaves(tree, names), names)
    return height
