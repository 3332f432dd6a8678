"""Simulated cells with a known tree: the population that they are sampled from, and their counts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import pandas as pd
from anndata import AnnData
from annotated_types import Ge, Gt
from scipy import sparse

from bdm.hierarchy.tree import Clade
from bdm.schema import Setting, StageSettings
from bdm.seeds import numpy_generator
from bdm.simulation.programmes import Programme, ProgrammeSettings, module_loadings, plant, random_tree


@dataclass(frozen=True)
class Population:
    """Distribution of the counts of a cell, given its type and library size.

    Attributes
    ----------
    cell_types
        In the order of the rows of ``log_expression``.
    log_expression
        Natural logarithm of the share of each gene in a cell with factors of 0, types x genes.
    loadings
        Change of log expression with each of a cell's standard normal factors, factors x genes.
    inverse_dispersion
        r of each gene: counts of mean m have variance m + m**2 / r.
    """

    cell_types: tuple[str, ...]
    log_expression: np.ndarray
    loadings: np.ndarray
    inverse_dispersion: np.ndarray

    def sample(self, cell_type: np.ndarray, library_size: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Sample counts, cells x genes, from the index of each cell's type and its expected number of counts."""
        factors = generator.standard_normal((len(cell_type), len(self.loadings)))
        mean = library_size[:, None] * shares(self.log_expression[cell_type] + factors @ self.loadings)
        rate = mean * generator.gamma(self.inverse_dispersion, size=mean.shape) / self.inverse_dispersion
        return np.asarray(generator.poisson(rate))


BLOCK_SIZE = 1024


@dataclass(frozen=True, kw_only=True)
class SimulationSettings(StageSettings):
    """What to simulate. Spreads are standard deviations of natural logarithms.

    Attributes
    ----------
    balanced
        Whether every node halves its types; see :func:`bdm.simulation.programmes.random_tree`.
    fewest_cells, most_cells
        Of a type; log-uniform between the two, which both occur.
    library_size, library_spread
        Median number of counts of a cell, and its spread.
    expression_spread
        Of genes at the root.
    n_factors, factor_spread
        Number of factors that vary within types in addition to the modules, and the spread of a gene with each.
    inverse_dispersion, dispersion_spread
        Median over genes, and its spread.
    """

    n_types: Annotated[int, Ge(2)] = 16
    n_genes: Annotated[int, Ge(1)] = 2000
    balanced: bool = False
    fewest_cells: Annotated[int, Ge(1)] = 50
    most_cells: int = 500
    programmes: ProgrammeSettings = field(default_factory=ProgrammeSettings)
    library_size: Annotated[float, Gt(0)] = 3000
    library_spread: Annotated[float, Ge(0)] = 0.4
    expression_spread: Annotated[float, Ge(0)] = 1.0
    n_factors: Annotated[int, Ge(0)] = 3
    factor_spread: Annotated[float, Ge(0)] = 0.2
    inverse_dispersion: Annotated[float, Gt(0)] = 5.0
    dispersion_spread: Annotated[float, Ge(0)] = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        Setting("most_cells", int, None, (Ge(self.fewest_cells),)).check(self.most_cells)


@dataclass(frozen=True)
class Simulation:
    """Simulated cells, and the truth behind them.

    Attributes
    ----------
    adata
        Raw counts in ``X`` (CSR, float32), cells x genes; types in ``obs['cell_type']``.
    programmes
        Genes that change in each branch below the root, parents before their children.
    """

    adata: AnnData
    tree: Clade
    programmes: tuple[Programme, ...]
    population: Population


def simulate(settings: SimulationSettings, *, seed: int) -> Simulation:
    """Simulate cells of types in a tree, each branch of which changes other genes.

    Log expression at the root is normal over genes. The programme of each branch is added to it in all types below. A
    few factors vary within all types in the same way, library sizes are lognormal, and counts negative binomial.

    Not a model of real tissue: genes are independent except for programmes and factors, and no type is in transition.

    Raises
    ------
    InputError
        If the programmes need more genes than there are.
    """
    width = len(str(settings.n_types))
    cell_types = tuple(f"type {i + 1:0{width}}" for i in range(settings.n_types))
    tree = random_tree(cell_types, balanced=settings.balanced, generator=numpy_generator(seed, "tree"))
    programmes = plant(
        tree, settings.programmes, n_genes=settings.n_genes, generator=numpy_generator(seed, "programmes")
    )
    population = sample_population(cell_types, programmes, settings, seed=seed)
    cell_type = np.repeat(np.arange(settings.n_types), type_sizes(settings, seed=seed))
    counts = sparse.vstack(list(count_blocks(population, cell_type, settings, seed=seed)), format="csr")
    obs = pd.DataFrame(
        {"cell_type": pd.Categorical.from_codes(cell_type, cell_types)},
        index=[f"cell {i + 1}" for i in range(len(cell_type))],
    )
    var = pd.DataFrame(index=[f"gene {i + 1}" for i in range(settings.n_genes)])
    return Simulation(AnnData(counts, obs=obs, var=var), tree, programmes, population)


def expression_by_type(base: np.ndarray, programmes: tuple[Programme, ...], cell_types: tuple[str, ...]) -> np.ndarray:
    """Natural logarithm of the share of each gene, types x genes, from log expression at the root."""
    logits = np.tile(base, (len(cell_types), 1))
    for programme in programmes:
        below = np.isin(cell_types, programme.cell_types)
        logits[np.ix_(below, programme.genes)] += np.log(2) * programme.log2_fold_change
    return np.asarray(np.log(shares(logits)))


def shares(logits: np.ndarray) -> np.ndarray:
    """Softmax over genes, cells x genes."""
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponential / exponential.sum(axis=1, keepdims=True))


def sample_population(
    cell_types: tuple[str, ...], programmes: tuple[Programme, ...], settings: SimulationSettings, *, seed: int
) -> Population:
    """Sample expression at the root, factors and dispersions, and add the programmes."""
    generator, n_genes = numpy_generator(seed, "population"), settings.n_genes
    base = settings.expression_spread * generator.standard_normal(n_genes)
    factors = settings.factor_spread * generator.standard_normal((settings.n_factors, n_genes))
    modules = module_loadings(programmes, spread=settings.programmes.activity_spread, n_genes=n_genes)
    deviation = settings.dispersion_spread * generator.standard_normal(n_genes)
    return Population(
        cell_types,
        expression_by_type(base, programmes, cell_types),
        np.concatenate([factors, modules]),
        settings.inverse_dispersion * np.exp(deviation),
    )


def type_sizes(settings: SimulationSettings, *, seed: int) -> np.ndarray:
    """Numbers of cells of the types: evenly spaced on a logarithmic scale between the extremes, in random order."""
    sizes = np.geomspace(settings.fewest_cells, settings.most_cells, settings.n_types).round().astype(int)
    return numpy_generator(seed, "sizes").permutation(sizes)


def count_blocks(
    population: Population, cell_type: np.ndarray, settings: SimulationSettings, *, seed: int
) -> Iterator[sparse.csr_matrix]:
    """Sample the counts of cells, from the index of each cell's type, in blocks."""
    for block, start in enumerate(range(0, len(cell_type), BLOCK_SIZE)):
        generator = numpy_generator(seed, "cells", block)
        types = cell_type[start : start + BLOCK_SIZE]
        deviation = settings.library_spread * generator.standard_normal(len(types))
        counts = population.sample(types, settings.library_size * np.exp(deviation), generator)
        yield sparse.csr_matrix(counts, dtype=np.float32)
