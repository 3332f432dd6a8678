from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bdm.errors import InputError
from bdm.hierarchy.cluster import cluster_means
from bdm.hierarchy.levels import check_threshold
from bdm.hierarchy.measured import MeasuredClade, measure
from bdm.hierarchy.support import clade_support
from bdm.hierarchy.topology import Clade, match_leaves
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import type_moments
from bdm.latent.whitening import fit_whitening
from bdm.limits import check_at_least
from bdm.threads import using_threads

WIDEST = 6  # sigma_max in standard deviations of all cells, or twice the root's level if that is more


@dataclass(frozen=True)
class HierarchySettings:
    """Settings of the hierarchy that a user may choose.

    Attributes
    ----------
    threshold
        AUC of the best test between the children of a branch at the noise level where they part.
    flat
        Give every type a branch of its own up to the highest noise: a label-guided model without a tree.
    n_bootstrap
        Resamples of cells for the support of nodes; 0 for none.
    """

    threshold: float = 0.9
    flat: bool = False
    n_bootstrap: int = 100

    def __post_init__(self):
        check_threshold(self.threshold)
        check_at_least(self, n_bootstrap=0)


@using_threads()
def build_hierarchy(
    cells: LatentCells, settings: HierarchySettings, *, seed: int, tree: Clade | None = None
) -> Hierarchy:
    """Derive the hierarchy of cell types from their means, or give a user's tree its noise levels.

    Parameters
    ----------
    cells
        Cells to learn from.
    tree
        Shape to use in place of the clustering's; its leaves are the cell types.

    Raises
    ------
    InputError
        If the threshold is out of range, both ``tree`` and ``flat`` are given, or the tree's leaves are not the cell
        types.
    """
    if tree is not None:
        if settings.flat:
            raise InputError("A flat hierarchy has no tree; give either a tree or flat.")
        tree = match_leaves(tree, cells.cell_types)
    whitening = fit_whitening(cells)
    means = type_moments(cells, whitening).mean.double().numpy()
    x = whitening(cells.mean).double().numpy()
    index = {cell_type: i for i, cell_type in enumerate(cells.cell_types)}
    root = measure(tree or cluster_means(means, cells.cell_types), means, index, threshold=settings.threshold)

    spread = np.sqrt(x.var(axis=0).mean() + float(whitening.variance(cells.scale).diagonal().mean()))
    sigma_max = float(max(WIDEST * spread, 2 * root.level))
    made = {"seed": seed, "n_bootstrap": settings.n_bootstrap}
    if settings.flat:
        return Hierarchy(_flat(cells, sigma_max), sigma_max, settings.threshold, provenance=made)
    support = clade_support(x, cells.cell_type.numpy(), n_types=len(means), n_bootstrap=settings.n_bootstrap, seed=seed)
    branches = _branches(root, None, cells, support, inner_names(cells.cell_types))
    return Hierarchy(tuple(branches), sigma_max, settings.threshold, given=tree is not None, provenance=made)


def inner_names(cell_types: tuple[str, ...]) -> Iterator[str]:
    """Names for inner nodes, none of which is a cell type's."""
    number = 0
    while True:
        number += 1
        if (name := f"node {number}") not in cell_types:
            yield name


def _branches(
    clade: MeasuredClade,
    parent: str | None,
    cells: LatentCells,
    support: dict[frozenset[int], float] | None,
    names: Iterator[str],
) -> list[Branch]:
    """Branches of a clade, itself first, larger children before smaller ones."""
    n_cells = int(cells.n_cells[list(clade.members)].sum())
    if not clade.children:
        return [Branch(cells.cell_types[clade.members[0]], parent, 0.0, n_cells)]
    own = None if support is None else support.get(frozenset(clade.members), 0.0)
    branches = [Branch(next(names), parent, clade.level, n_cells, own)]
    for child in sorted(clade.children, key=lambda child: (-len(child.members), min(child.members))):
        branches += _branches(child, branches[0].name, cells, support, names)
    return branches


def _flat(cells: LatentCells, sigma_max: float) -> tuple[Branch, ...]:
    """Give every type a branch of its own up to ``sigma_max``, below a root that no cell is ever on."""
    root = Branch(next(inner_names(cells.cell_types)), None, sigma_max, int(cells.n_cells.sum()))
    leaves = zip(cells.cell_types, cells.n_cells.tolist(), strict=True)
    return (root, *(Branch(cell_type, root.name, 0.0, n_cells) for cell_type, n_cells in leaves))
