"""Planted changes: their genes, log2 fold changes and populations, and which cells respond."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, abbreviated, at
from bdm._core.seeds import numpy_generator
from bdm.design.samples import N_SHOWN, populations_named
from bdm.design.settings import Change, Design, FoldChange, GeneChoice
from bdm.model.model import BranchedModel


@dataclass(frozen=True)
class Plant:
    """A change for the genes and populations of a model."""

    change: Change
    populations: tuple[str, ...]  # populations whose cells change
    genes: np.ndarray  # indices of the genes
    log2_fold_change: np.ndarray  # of each of these genes, in a cell that responds


def plants_of(model: BranchedModel, design: Design, expression: Callable[[str], np.ndarray]) -> tuple[Plant, ...]:
    """Find the genes and populations of the changes of a design, and draw what is sampled."""
    named = []
    for change in design.changes:
        with at(f"changes.{change.name}.genes"):
            named.append(genes_named(model, change.genes.names))
    plants, taken = [], {gene for genes in named for gene in genes}
    for change, genes in zip(design.changes, named, strict=True):
        with at(f"changes.{change.name}"):
            populations = populations_named(model, change.in_)
            generator = numpy_generator(design.seed, "genes", change.name)
            if not change.genes.names:
                total = sum(expression(population) for population in populations)
                genes = sampled_genes(model, change.genes, np.asarray(total), taken, generator)
                taken |= set(genes)
            values = drawn(change.log2_fold_change, len(genes), numpy_generator(design.seed, "fold", change.name))
        plants.append(Plant(change, populations, np.array(genes, dtype=int), values))
    return tuple(plants)


def genes_named(model: BranchedModel, names: Sequence[str]) -> list[int]:
    """Find the indices of genes by their names or symbols."""
    found = model.gene_names.find(names)
    unknown = [name for name in names if not found[name]]
    if unknown:
        raise InputError(
            f"the model has no gene {abbreviated(unknown, n_shown=N_SHOWN)}; it has "
            f"{len(model.gene_names.index):,} genes, such as {model.gene_names.example()}."
        )
    genes = dict.fromkeys(gene for name in names for gene in found[name])
    return [int(i) for i in model.gene_names.index.get_indexer(list(genes))]


def sampled_genes(
    model: BranchedModel, choice: GeneChoice, expression: np.ndarray, taken: set[int], generator: np.random.Generator
) -> list[int]:
    """Sample genes of a range of expression, but none that are taken."""
    modalities = {modality.name: modality.features for modality in model.autoencoder.modalities}
    name = choice.modality or next(iter(modalities))
    if name not in modalities:
        raise InputError(f"the model has no modality {name!r}; it has {', '.join(modalities)}.")
    features, within = modalities[name], np.zeros(len(expression), dtype=bool)
    low, high = np.quantile(expression[features], choice.expression or (0, 1))
    within[features] = (expression[features] >= low) & (expression[features] <= high)
    within[list(taken)] = False
    candidates = np.flatnonzero(within)
    if (n_genes := choice.n or 0) > len(candidates):
        raise InputError(
            f"{n_genes:,} genes are to be sampled, but the model has {len(candidates):,} of this kind that no other "
            "change has; ask for fewer, or for a wider range."
        )
    return sorted(generator.choice(candidates, n_genes, replace=False).tolist())


def drawn(fold_change: FoldChange, n_genes: int, generator: np.random.Generator) -> np.ndarray:
    """Give the log2 fold change of each gene."""
    if fold_change.distribution is None:
        values = np.array(fold_change.values, dtype=float)
        if len(values) not in (1, n_genes):
            raise InputError(
                f"log2_fold_change has {len(values)} numbers for {n_genes} genes; give one, or one for each."
            )
        values = np.broadcast_to(values, n_genes)
    else:
        values = generator.normal(fold_change.mean, fold_change.sd, n_genes)
    return np.where(generator.random(n_genes) < fold_change.up, values, -values)


def planted_genes(plants: Sequence[Plant], population: str) -> tuple[np.ndarray, np.ndarray]:
    """Find the genes that change in a population, and the log2 fold changes of each change (changes x genes)."""
    here = [(i, plant) for i, plant in enumerate(plants) if population in plant.populations]
    genes = np.unique(np.concatenate([np.arange(0), *(plant.genes for _, plant in here)]))
    log2_fold_change = np.zeros((len(plants), len(genes)))
    for i, plant in here:
        log2_fold_change[i, np.searchsorted(genes, plant.genes)] = plant.log2_fold_change
    return genes, log2_fold_change


def mean_factors(
    plants: Sequence[Plant], populations: Sequence[str], condition: str, n_genes: int
) -> dict[str, np.ndarray]:
    """Factors of the expected counts of all genes over the cells of each population in a condition."""
    factors = {population: np.ones(n_genes) for population in populations}
    for plant in plants:
        share = plant.change.share if plant.change.condition in (None, condition) else 0.0
        for population in set(plant.populations) & factors.keys():
            factors[population][plant.genes] *= 1 - share + share * 2.0**plant.log2_fold_change
    return factors


def strengths(plants: Sequence[Plant], population: str, condition: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Whether cells of a population respond to each change (1 or 0), by random numbers, both cells x changes."""
    found = np.zeros(uniform.shape, dtype=np.float32)
    for i, plant in enumerate(plants):
        if population in plant.populations:
            changed = (plant.change.condition is None) | (condition == plant.change.condition)
            found[:, i] = changed & (uniform[:, i] < plant.change.share)
    return found


def rows_by_population(population: pd.Series) -> dict[str, slice]:
    """Rows of each population among cells that are ordered by population."""
    codes = population.astype("category").cat.codes.to_numpy()
    starts = np.flatnonzero(np.diff(codes, prepend=-1))
    stops = np.append(starts[1:], len(codes))
    return {str(population.iloc[start]): slice(start, stop) for start, stop in zip(starts, stops, strict=True)}
