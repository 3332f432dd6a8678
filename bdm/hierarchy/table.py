import pandas as pd

from bdm.hierarchy.tree import Hierarchy


def branch_table(hierarchy: Hierarchy) -> pd.DataFrame:
    """List all branches, parents before their children.

    Returns
    -------
    Table of ``branch``, ``parent`` (none for the root), ``level`` (where the branch ends), ``n_types`` and ``n_cells``
    below it, ``support`` (of nodes), ``added`` (number of the extension that brought it, 0 if none), and
    ``cell_types`` below it, in the tree's order.
    """
    rows = []
    for branch in hierarchy.branches:
        below = tuple(hierarchy.leaves(branch.name))
        rows.append(
            {
                "branch": branch.name,
                "parent": branch.parent,
                "level": branch.level,
                "n_types": len(below),
                "n_cells": branch.n_cells,
                "support": branch.support,
                "added": branch.added,
                "cell_types": "; ".join(below),
            }
        )
    return pd.DataFrame(rows)
