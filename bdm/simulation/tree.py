from collections.abc import Sequence

import numpy as np

from bdm.hierarchy.topology import Clade


def random_tree(cell_types: Sequence[str], *, balanced: bool, generator: np.random.Generator) -> Clade:
    """Binary tree of cell types in random order.

    Parameters
    ----------
    balanced
        Halve the types at each node. Else every division of them into two numbers is equally likely, which is how
        lineages divide that all part at the same rate (Yule 1925, Phil. Trans. R. Soc. B 213:21).
    """
    return _divided(tuple(map(str, generator.permutation(cell_types))), balanced, generator)


def _divided(cell_types: tuple[str, ...], balanced: bool, generator: np.random.Generator) -> Clade:
    n_types = len(cell_types)
    if n_types == 1:
        return Clade(cell_types[0])
    n_first = n_types // 2 if balanced else int(generator.integers(1, n_types))
    parts = cell_types[:n_first], cell_types[n_first:]
    return Clade(children=tuple(_divided(part, balanced, generator) for part in parts))


def height(clade: Clade) -> int:
    """Nodes on the longest way from a clade down to a cell type; 0 for a cell type."""
    return 1 + max(map(height, clade.children)) if clade.children else 0
