"""Groups of cell types that may overlap, such as the terms of an ontology, and the tree that they become."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bdm.hierarchy.tree import Clade

Types = frozenset[str]


@dataclass(frozen=True)
class Taxonomy:
    """Named groups of cell types, of which two may overlap without one containing the other.

    Attributes
    ----------
    groups
        Cell types by name of the group; of groups with the same types, the first gives the name.
    source
        Where they are from, for the record of a hierarchy.
    """

    groups: Mapping[str, Types]
    source: dict[str, str] = field(default_factory=dict)

    def resolved(self, cell_types: Sequence[str], squares: np.ndarray, *, taken: Collection[str] = ()) -> Clade:
        """Resolve the groups into a tree of cell types, in which each type and group has one parent.

        Candidates for the parent of a group are the smallest groups that contain it. Of several, the nearest in the
        data is chosen: the one whose other types have the least squared distance on average. Groups that are left with
        one child are left out.

        Parameters
        ----------
        cell_types
            Leaves of the tree.
        squares
            Squared distance between every two cell types, types x types, in this order.
        taken
            Names that inner nodes must not have; the others are named after their groups.
        """
        index = {name: row for row, name in enumerate(cell_types)}
        root, names = frozenset(cell_types), dict[Types, str]()
        for name, group in self.groups.items():
            names.setdefault(group & root, name if name not in taken else f"{name} (term)")
        leaves = [frozenset([name]) for name in cell_types if len(root) > 1]
        nodes = [root, *sorted((group for group in names if 1 < len(group) < len(root)), key=sorted)]

        def square(node: Types, parent: Types) -> float:
            rows, others = ([index[name] for name in sorted(of)] for of in (node, parent - node))
            return float(squares[np.ix_(rows, others)].mean())

        children: dict[Types, list[Types]] = {node: [] for node in nodes}
        for node in [*nodes[1:], *leaves]:
            above = [other for other in nodes if node < other]
            candidates = [other for other in above if not any(smaller < other for smaller in above)]
            children[min(candidates, key=lambda parent: square(node, parent))].append(node)

        def clade(node: Types) -> Clade | None:
            if len(node) == 1:
                return Clade(min(node))
            below = [found for child in children[node] if (found := clade(child)) is not None]
            return below[0] if len(below) == 1 else Clade(names.get(node), tuple(below)) if below else None

        return clade(root) or Clade(min(root))
