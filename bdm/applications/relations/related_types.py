"""Kernels between cell types by distances of their profiles, and their tree."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Self

import numpy as np
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist, squareform

SCALES = (0.5, 1.0, 2.0)  # s in exp(-s d**p), where d is a distance divided by the median distance


@dataclass(frozen=True)
class RelatedTypes:
    """Distances of cell types."""

    cell_types: tuple[str, ...]
    profile: np.ndarray  # natural log shares of counts in the control, types x genes
    distance: np.ndarray  # Euclidean distances of profiles, types x types

    @classmethod
    def from_profiles(cls, profile: np.ndarray, cell_types: tuple[str, ...]) -> Self:
        """Compute distances of profiles."""
        return cls(cell_types, profile, squareform(pdist(profile)))

    def kernels(self, distance: np.ndarray) -> list[np.ndarray]:
        """Return candidate kernels of types by their ``distance``; none if only one type is known."""
        if len(self.cell_types) == 1:
            return []
        relative = distance / max(float(np.median(self.distance[np.triu_indices(len(self.distance), 1)])), 1e-12)
        return [np.exp(-(relative**power) * scale) for power in (1, 2) for scale in SCALES]

    def permute(self, order: np.ndarray) -> Self:
        """Permute the distances of types."""
        return replace(self, distance=self.distance[order][:, order])

    @cached_property
    def height(self) -> np.ndarray:
        """Height of the last common ancestor of two types by average linkage, types x types; 1 at the root."""
        if len(self.cell_types) == 1:
            return np.zeros((1, 1))
        height = squareform(cophenet(linkage(squareform(self.distance), "average")))
        return np.asarray(height / max(height.max(), 1e-12))

    @cached_property
    def nodes(self) -> list[frozenset[str]]:
        """Cell types below each node of the tree, larger nodes first."""
        below = {frozenset(np.flatnonzero(row <= level)) for row in self.height for level in row}
        ordered = sorted(below, key=lambda rows: (-len(rows), min(rows)))
        return [frozenset(self.cell_types[row] for row in rows) for rows in ordered]

    def parent(self, node: frozenset[str]) -> frozenset[str] | None:
        """Return the parent of a node; None for the root."""
        return min((above for above in self.nodes if node < above), key=len, default=None)
