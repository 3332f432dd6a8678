from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bdm.errors import InputError
from bdm.hierarchy.topology import Clade
from bdm.simulation.tree import height


@dataclass(frozen=True)
class ProgrammeSettings:
    """How branches change genes.

    Attributes
    ----------
    n_genes
        Genes that change in a branch between nodes whose heights differ by one; a longer branch has as many times more.
    least_log2_fold_change
        Smallest change of a gene.
    mean_excess
        Mean of what changes have beyond the smallest; their sizes are quantiles of an exponential distribution.
    share_up
        Share of the genes that go up.
    """

    n_genes: int = 20
    least_log2_fold_change: float = 1.0
    mean_excess: float = 1.0
    share_up: float = 0.8

    def __post_init__(self):
        if self.n_genes < 1:
            raise InputError(f"A branch changes {self.n_genes} genes, but must change 1 or more.")
        for name in ("least_log2_fold_change", "mean_excess"):
            if not 0 <= getattr(self, name) < np.inf:
                raise InputError(f"{name} is {getattr(self, name)}, but must be 0 or more.")
        if not 0 <= self.share_up <= 1:
            raise InputError(f"share_up is {self.share_up}, but must be from 0 to 1.")


@dataclass(frozen=True)
class Programme:
    """What a branch changes, in all cell types below it.

    Attributes
    ----------
    cell_types
        Types below the branch.
    genes
        Indices of the genes that change; no other programme has them.
    log2_fold_change
        Of each of these genes, relative to genes that do not change.
    """

    cell_types: tuple[str, ...]
    genes: np.ndarray
    log2_fold_change: np.ndarray


def plant(
    tree: Clade, settings: ProgrammeSettings, *, n_genes: int, generator: np.random.Generator
) -> tuple[Programme, ...]:
    """Give every branch below the root a programme.

    The number of genes keeps time as a clock does: from the root to every type as many change. So the squared distance
    between types in log expression grows with the height of their last common ancestor, and the tree can be told from
    distances alone. Sizes of changes are quantiles, as chance in them could outweigh a difference in height.

    Raises
    ------
    InputError
        If the programmes need more than ``n_genes`` genes.
    """
    branches = list(_branches(tree))
    sizes = [settings.n_genes * length for _, length in branches]
    if sum(sizes) > n_genes:
        raise InputError(
            f"The branches change {sum(sizes)} genes, but there are {n_genes}; give more genes, or fewer a branch."
        )
    parts = np.split(generator.permutation(n_genes)[: sum(sizes)], np.cumsum(sizes)[:-1])
    return tuple(
        Programme(clade.leaves(), genes, _changes(len(genes), settings, generator))
        for (clade, _), genes in zip(branches, parts, strict=True)
    )


def _branches(tree: Clade) -> Iterator[tuple[Clade, int]]:
    """Clades below the root of a tree, each with the difference of its parent's height to its own."""
    for child in tree.children:
        yield child, height(tree) - height(child)
        yield from _branches(child)


def _changes(n_genes: int, settings: ProgrammeSettings, generator: np.random.Generator) -> np.ndarray:
    """Give a programme the sizes of all programmes of as many genes, in random order and direction."""
    quantile = generator.permutation((np.arange(n_genes) + 0.5) / n_genes)
    size = settings.least_log2_fold_change - settings.mean_excess * np.log1p(-quantile)
    return np.where(generator.random(n_genes) < settings.share_up, size, -size)
