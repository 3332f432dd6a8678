"""How cell types are related: by their tree, and by the distance of their profiles, along which responses covary."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist, squareform

from bdm.hierarchy.tree import Clade
from bdm.settings import Relation

SCALES = (0.5, 1.0, 2.0)  # of distances, in units of their median
CLOCKS = (1.0, 2.0)  # powers of the heights of nodes


@dataclass(frozen=True)
class Relations:
    """How cell types are related.

    Attributes
    ----------
    profile
        Log shares of counts of the genes in the control, types x genes.
    distance
        Euclidean distance of their control profiles, types x types.
    height
        Height of the last common ancestor of two types in their tree, 0 for a type with itself and 1 at the root.
    """

    cell_types: tuple[str, ...]
    profile: np.ndarray
    distance: np.ndarray
    height: np.ndarray

    @classmethod
    def of(cls, profile: np.ndarray, cell_types: tuple[str, ...], tree: Clade | None = None) -> "Relations":
        """Relate types by their profiles, and by a tree; that of average linkage if none is given."""
        distances = pdist(profile)
        height = heights(tree, cell_types) if tree else squareform(cophenet(linkage(distances, "average")))
        return cls(cell_types, profile, squareform(distances), height / max(height.max(), 1e-12))

    def kernels(self, relation: Relation) -> list[np.ndarray]:
        """Kernels that compete, types x types, with ones on the diagonal."""
        along_tree = [1 - self.height**power for power in CLOCKS]
        relative = self.distance / max(float(np.median(self.distance[np.triu_indices(len(self.distance), 1)])), 1e-12)
        smooth = [np.exp(-(relative**power) * scale) for power in (1, 2) for scale in SCALES]
        return {"all": along_tree + smooth, "tree": along_tree, "distance": smooth, "none": []}[relation]

    @cached_property
    def nodes(self) -> list[frozenset[str]]:
        """Cell types below each node of the tree, the root first, and those with fewest types last."""
        below = {frozenset(np.flatnonzero(row <= level)) for row in self.height for level in row}
        ordered = sorted(below, key=lambda rows: (-len(rows), min(rows)))
        return [frozenset(self.cell_types[row] for row in rows) for rows in ordered]

    def parent(self, node: frozenset[str]) -> frozenset[str] | None:
        """Node above a node; None for the root."""
        above = [other for other in self.nodes if node < other]
        return min(above, key=lambda other: len(other)) if above else None


def heights(tree: Clade, cell_types: tuple[str, ...]) -> np.ndarray:
    """Height of the last common ancestor of types: the most nodes from it down to a type."""
    found = np.zeros((len(cell_types), len(cell_types)))

    def fill(node: Clade) -> tuple[int, list[int]]:
        if not node.children:
            return 0, [cell_types.index(str(node.name))]
        below = [fill(child) for child in node.children]
        height = 1 + max(depth for depth, _ in below)
        rows = [row for _, of_child in below for row in of_child]
        for _, of_child in below:
            for row in of_child:
                others = [other for other in rows if other not in of_child]
                found[row, others] = height
        return height, rows

    fill(tree)
    return found
