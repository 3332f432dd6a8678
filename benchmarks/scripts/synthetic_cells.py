"""Synthetic cell types along a known tree, with known genes for each branch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.seeds import numpy_generator
from bdm.hierarchy.tree import Clade

BLOCK_SIZE = 1024  # cells

# Spreads are standard deviations of natural logarithms
EXPRESSION_SPREAD = 1.0  # of genes at the root
LIBRARY_SPREAD = 0.4
N_FACTORS = 3  # within types, in addition to modules
FACTOR_SPREAD = 0.2
INVERSE_DISPERSION = 5.0  # median of genes
DISPERSION_SPREAD = 0.5
ACTIVITY_SPREAD = 0.4  # of a module within a type; the branch itself adds 1
SHARE_UP = 0.8
MEAN_EXCESS = 1.0  # of log2 fold changes over the minimum; exponential


@dataclass(frozen=True, kw_only=True)
class SyntheticSettings:
    """Settings of synthetic cells.

    Attributes
    ----------
    balanced
        Whether every node halves its types; see :func:`random_tree`.
    min_cells, max_cells
        Extremes of the cells per type; sizes between them are evenly spaced on a log scale.
    library_size
        Median number of counts of a cell.
    module_size
        Genes per module. The number of modules of a branch is the difference in height of its ends.
    min_log2_fold_change
        Minimum change of the genes in modules.
    """

    n_types: int = 16
    n_genes: int = 2000
    balanced: bool = False
    min_cells: int = 50
    max_cells: int = 500
    library_size: float = 3000
    module_size: int = 20
    min_log2_fold_change: float = 1.0


@dataclass(frozen=True)
class Programme:
    """Genes that a branch changes in all cell types below it.

    Attributes
    ----------
    cell_types
        Types below the branch.
    genes
        Indices of changed genes, module by module; each gene is in at most one programme.
    log2_fold_change
        Change of each gene, relative to unchanged genes.
    n_modules
        Number of modules, all with the same number of genes.
    """

    cell_types: tuple[str, ...]
    genes: np.ndarray
    log2_fold_change: np.ndarray
    n_modules: int


@dataclass(frozen=True)
class Population:
    """Distribution of counts given type and library size.

    Attributes
    ----------
    cell_types
        Names of the rows of ``log_expression``.
    log_expression
        Log share of each gene at factors of 0, types x genes.
    loadings
        Change of log expression per standard normal factor, factors x genes.
    inverse_dispersion
        r of each gene: counts of mean m have variance m + m**2 / r.
    """

    cell_types: tuple[str, ...]
    log_expression: np.ndarray
    loadings: np.ndarray
    inverse_dispersion: np.ndarray

    def sample(self, cell_type: np.ndarray, library_size: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sample counts, cells x genes, for type indices and expected library sizes."""
        factors = generator.standard_normal((len(cell_type), len(self.loadings)))
        mean = library_size[:, None] * shares(self.log_expression[cell_type] + factors @ self.loadings)
        rate = mean * generator.gamma(self.inverse_dispersion, size=mean.shape) / self.inverse_dispersion
        return generator.poisson(rate)


@dataclass(frozen=True)
class SyntheticCells:
    """Synthetic cells and their truth.

    Attributes
    ----------
    adata
        Raw counts in ``X`` (CSR, float32), cells x genes; types in ``obs['cell_type']``.
    programmes
        Changes of each branch below the root, parents before children.
    """

    adata: AnnData
    tree: Clade
    programmes: tuple[Programme, ...]
    population: Population


def synthesise(settings: SyntheticSettings, *, seed: int) -> SyntheticCells:
    """Simulate cell types along a tree with different genes for each branch.

    Log expression at the root is normal over genes. Each branch adds its programme in all types below. All types share
    a few factors of variation. Library sizes are lognormal, and counts negative binomial.

    Not a model of real tissue: genes are independent except for programmes and factors, and types do not overlap in
    transitions.
    """
    width = len(str(settings.n_types))
    cell_types = tuple(f"type {i + 1:0{width}}" for i in range(settings.n_types))
    tree, programmes, population = sample_truth(cell_types, settings, seed=seed)
    cell_type = np.repeat(np.arange(settings.n_types), type_sizes(settings, seed=seed))
    counts = sparse.vstack(list(count_blocks(population, cell_type, settings, seed=seed)), format="csr")
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(cell_type, cell_types)},
        index=[f"cell {i + 1}" for i in range(len(cell_type))],
    )
    var = pd.DataFrame(index=[f"gene {i + 1}" for i in range(settings.n_genes)])
    return SyntheticCells(AnnData(counts, obs=obs, var=var), tree, programmes, population)


def sample_truth(
    cell_types: tuple[str, ...], settings: SyntheticSettings, *, seed: int
) -> tuple[Clade, tuple[Programme, ...], Population]:
    """Sample a tree, its programmes, and the distribution of counts."""
    tree = random_tree(cell_types, balanced=settings.balanced, generator=numpy_generator(seed, "tree"))
    programmes = plant(tree, settings, generator=numpy_generator(seed, "programmes"))
    return tree, programmes, _population(cell_types, programmes, n_genes=settings.n_genes, seed=seed)


def count_blocks(
    population: Population, cell_type: np.ndarray, settings: SyntheticSettings, *, seed: int
) -> Iterator[sparse.csr_matrix]:
    """Sample counts for type indices in blocks of cells."""
    for block, start in enumerate(range(0, len(cell_type), BLOCK_SIZE)):
        generator = numpy_generator(seed, "cells", block)
        types = cell_type[start : start + BLOCK_SIZE]
        deviation = LIBRARY_SPREAD * generator.standard_normal(len(types))
        counts = population.sample(types, settings.library_size * np.exp(deviation), generator)
        yield sparse.csr_matrix(counts, dtype=np.float32)


def random_tree(cell_types: Sequence[str], *, balanced: bool, generator: np.random.Generator) -> Clade:
    """Sample a binary tree of cell types.

    Parameters
    ----------
    balanced
        Halve the types at each node. By default, all sizes of the first part are equally likely, as for lineages that
        branch at the same rate (Yule 1925, Phil. Trans. R. Soc. B 213:21).
    """
    return _divided(tuple(map(str, generator.permutation(cell_types))), balanced, generator)


def height(clade: Clade) -> int:
    """Count the inner nodes on the longest path down to a cell type."""
    return 1 + max(map(height, clade.children)) if clade.children else 0


def plant(tree: Clade, settings: SyntheticSettings, *, generator: np.random.Generator) -> tuple[Programme, ...]:
    """Sample a programme for every branch below the root.

    The number of modules from the root to each type is the same, as for a molecular clock. So squared distances between
    types grow with the height of their last common ancestor, and determine the tree. All modules have the same sizes of
    changes, because random sizes could outweigh a difference in height.
    """
    shuffled = iter(generator.permutation(settings.n_genes))
    programmes = []
    for clade, length in _branches(tree):
        genes = np.fromiter(shuffled, dtype=int, count=length * settings.module_size)
        changes = np.concatenate([_changes(settings, generator) for _ in range(length)])
        programmes.append(Programme(clade.leaves(), genes, changes, length))
    return tuple(programmes)


def type_sizes(settings: SyntheticSettings, *, seed: int) -> np.ndarray:
    """Sample numbers of cells by type: evenly spaced on a log scale, shuffled."""
    sizes = np.geomspace(settings.min_cells, settings.max_cells, settings.n_types).round().astype(int)
    return numpy_generator(seed, "sizes").permutation(sizes)


def shares(logits: np.ndarray) -> np.ndarray:
    """Compute the softmax over genes, cells x genes."""
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def _divided(cell_types: tuple[str, ...], balanced: bool, generator: np.random.Generator) -> Clade:
    n_types = len(cell_types)
    if n_types == 1:
        return Clade(cell_types[0])
    n_first = n_types // 2 if balanced else int(generator.integers(1, n_types))
    parts = cell_types[:n_first], cell_types[n_first:]
    return Clade(children=tuple(_divided(part, balanced, generator) for part in parts))


def _branches(tree: Clade) -> Iterator[tuple[Clade, int]]:
    """Yield clades below the root, with the height difference to their parent."""
    for child in tree.children:
        yield child, height(tree) - height(child)
        yield from _branches(child)


def _changes(settings: SyntheticSettings, generator: np.random.Generator) -> np.ndarray:
    """Sample changes of a module: fixed sizes in random order and direction."""
    quantile = generator.permutation((np.arange(settings.module_size) + 0.5) / settings.module_size)
    size = settings.min_log2_fold_change - MEAN_EXCESS * np.log1p(-quantile)
    return np.where(generator.random(settings.module_size) < SHARE_UP, size, -size)


def _population(
    cell_types: tuple[str, ...], programmes: tuple[Programme, ...], *, n_genes: int, seed: int
) -> Population:
    """Sample root expression, factors and dispersions, and add the programmes."""
    generator = numpy_generator(seed, "population")
    base = EXPRESSION_SPREAD * generator.standard_normal(n_genes)
    factors = FACTOR_SPREAD * generator.standard_normal((N_FACTORS, n_genes))
    deviation = DISPERSION_SPREAD * generator.standard_normal(n_genes)
    logits = np.tile(base, (len(cell_types), 1))
    modules = []
    for programme in programmes:
        below = np.isin(cell_types, programme.cell_types)
        logits[np.ix_(below, programme.genes)] += np.log(2) * programme.log2_fold_change
        for module in np.split(np.arange(len(programme.genes)), programme.n_modules):
            modules.append(np.zeros(n_genes))
            modules[-1][programme.genes[module]] = ACTIVITY_SPREAD * np.log(2) * programme.log2_fold_change[module]
    return Population(
        cell_types,
        np.log(shares(logits)),
        np.concatenate([factors, np.stack(modules)]),
        INVERSE_DISPERSION * np.exp(deviation),
    )
