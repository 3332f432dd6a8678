"""A random tree of cell types, and programmes of genes that change along its branches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Le

from bdm.errors import InputError
from bdm.hierarchy.tree import Clade
from bdm.schema import StageSettings


def random_tree(cell_types: Sequence[str], *, balanced: bool, generator: np.random.Generator) -> Clade:
    """Binary tree of cell types in random order.

    Parameters
    ----------
    balanced
        Halve the types at each node. Else every division of them into two numbers is equally likely, which is how
        lineages divide that all branch at the same rate (Yule 1925, Phil. Trans. R. Soc. B 213:21).
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
    """Count the nodes on the longest path from a clade down to a cell type; 0 for a cell type."""
    return 1 + max(map(height, clade.children)) if clade.children else 0


@dataclass(frozen=True, kw_only=True)
class ProgrammeSettings(StageSettings):
    """How branches change genes, in modules.

    Attributes
    ----------
    n_genes
        Genes of a module. A branch between nodes whose heights differ by one has one module; a longer branch, as many
        more.
    least_log2_fold_change
        Smallest change of a gene.
    mean_excess
        Mean of what changes have beyond the smallest; their sizes are quantiles of an exponential distribution.
    share_up
        Share of the genes that go up.
    activity_spread
        Standard deviation of a module's activity in cells of the same type, whatever type; 1 is what the branch adds.
    """

    n_genes: Annotated[int, Ge(1)] = 20
    least_log2_fold_change: Annotated[float, Ge(0)] = 1.0
    mean_excess: Annotated[float, Ge(0)] = 1.0
    share_up: Annotated[float, Ge(0), Le(1)] = 0.8
    activity_spread: Annotated[float, Ge(0)] = 0.4


@dataclass(frozen=True)
class Programme:
    """What a branch changes, in all cell types below it.

    Attributes
    ----------
    cell_types
        Types below the branch.
    genes
        Indices of the genes that change, module by module; no other programme has them.
    log2_fold_change
        Change of each of these genes, relative to genes that do not change.
    n_modules
        Number of modules, all with the same number of genes.
    """

    cell_types: tuple[str, ...]
    genes: np.ndarray
    log2_fold_change: np.ndarray
    n_modules: int


def plant(
    tree: Clade, settings: ProgrammeSettings, *, n_genes: int, generator: np.random.Generator
) -> tuple[Programme, ...]:
    """Plant a programme in every branch below the root.

    The number of modules keeps time as a clock does: from the root to every type it is the same. So the squared
    distance between types grows with the height of their last common ancestor, and the tree follows from distances
    alone. All modules have the same sizes of changes, as chance in them could outweigh a difference in height.

    Raises
    ------
    InputError
        If the programmes need more than ``n_genes`` genes.
    """
    branches = list(_branches(tree))
    n_planted = settings.n_genes * sum(length for _, length in branches)
    if n_planted > n_genes:
        raise InputError(
            f"The branches change {n_planted} genes, but there are {n_genes}; give more genes, or fewer per module."
        )
    shuffled = iter(generator.permutation(n_genes))
    programmes = []
    for clade, length in branches:
        genes = np.fromiter(shuffled, dtype=int, count=length * settings.n_genes)
        changes = np.concatenate([_changes(settings, generator) for _ in range(length)])
        programmes.append(Programme(clade.leaves(), genes, changes, length))
    return tuple(programmes)


def module_loadings(programmes: tuple[Programme, ...], *, spread: float, n_genes: int) -> np.ndarray:
    """Change of natural log expression with one standard deviation of each module's activity, modules x genes."""
    loadings = []
    for programme in programmes:
        for module in np.split(np.arange(len(programme.genes)), programme.n_modules):
            loadings.append(np.zeros(n_genes))
            loadings[-1][programme.genes[module]] = spread * np.log(2) * programme.log2_fold_change[module]
    return np.stack(loadings)


def _branches(tree: Clade) -> Iterator[tuple[Clade, int]]:
    """Clades below the root of a tree, each with the difference between the heights of its parent and itself."""
    for child in tree.children:
        yield child, height(tree) - height(child)
        yield from _branches(child)


def _changes(settings: ProgrammeSettings, generator: np.random.Generator) -> np.ndarray:
    """Shuffle the changes of the genes of a module: the same sizes in all modules, in random order and direction."""
    quantile = generator.permutation((np.arange(settings.n_genes) + 0.5) / settings.n_genes)
    size = settings.least_log2_fold_change - settings.mean_excess * np.log1p(-quantile)
    return np.asarray(np.where(generator.random(settings.n_genes) < settings.share_up, size, -size))
