from collections.abc import Collection
from dataclasses import dataclass, replace

from bdm.hierarchy.tree import Hierarchy


@dataclass(frozen=True)
class Contrast:
    """A child of an inner node against all else below that node.

    Attributes
    ----------
    node, child
        Names of branches.
    level
        Noise level at which the node's children part.
    inside, outside
        Cell types below the child, and below the node's other children.
    """

    node: str
    level: float
    child: str
    inside: tuple[str, ...]
    outside: tuple[str, ...]

    def among(self, cell_types: Collection[str]) -> "Contrast":
        """Give the same contrast without the types that are not among ``cell_types``."""
        inside, outside = (tuple(t for t in side if t in cell_types) for side in (self.inside, self.outside))
        return replace(self, inside=inside, outside=outside)


def contrasts_of(hierarchy: Hierarchy) -> tuple[Contrast, ...]:
    """List the contrasts of all inner nodes, those of a node together; the two of a node of two children mirror."""
    contrasts = []
    for branch in hierarchy.branches:
        below = {child: tuple(hierarchy.leaves(child)) for child in hierarchy.children[branch.name]}
        for child, inside in below.items():
            outside = tuple(leaf for other, leaves in below.items() if other != child for leaf in leaves)
            contrasts.append(Contrast(branch.name, branch.level, child, inside, outside))
    return tuple(contrasts)
