"""Planted changes: genes, log2 fold changes, populations and responding cells."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bdm._core.errors import InputError, abbreviated, error_prefix
from bdm._core.seeds import numpy_generator
from bdm.applications.design.design import Change, Design, FoldChange, GeneChoice
from bdm.applications.design.samples import N_SHOWN, resolve_populations
from bdm.data.space import COORDINATES
from bdm.generation.request import Request, require_positions
from bdm.model.model import BranchedModel


@dataclass(frozen=True)
class PlantedChange:
    """A change of a design, with the genes and populations of a model."""

    change: Change
    populations: tuple[str, ...]  # populations whose cells change
    genes: np.ndarray  # indices of genes
    log2_fold_change: np.ndarray  # of each gene, in a responding cell
    # Whether cells of the experiment are in the region, and their fraction by population; None without a region
    inside: np.ndarray | None = None
    fraction: pd.Series | None = None

    def share_of(self, population: str) -> float:
        """Return the expected share of a population's cells that change."""
        return self.change.share * (1.0 if self.fraction is None else float(self.fraction.get(population, 0.0)))


def plan_changes(
    model: BranchedModel, design: Design, expression: Callable[[str], np.ndarray]
) -> tuple[PlantedChange, ...]:
    """Choose the genes, fold changes and populations of all changes of a design."""
    named_genes = []
    for change in design.changes:
        with error_prefix(f"changes.{change.name}.genes"):
            named_genes.append(find_genes(model, change.genes.names))
    changes, used = [], {gene for genes in named_genes for gene in genes}
    for change, genes in zip(design.changes, named_genes, strict=True):
        with error_prefix(f"changes.{change.name}"):
            populations = resolve_populations(model, change.in_)
            generator = numpy_generator(design.seed, "genes", change.name)
            if not change.genes.names:
                total = sum(expression(population) for population in populations)
                genes = sample_genes(model, change.genes, np.asarray(total), used, generator)
                used |= set(genes)
            values = sample_fold_changes(
                change.log2_fold_change, len(genes), numpy_generator(design.seed, "fold", change.name)
            )
        changes.append(PlantedChange(change, populations, np.array(genes, dtype=int), values))
    return tuple(changes)


def with_region(planted: PlantedChange, model: BranchedModel, request: Request, samples: pd.DataFrame) -> PlantedChange:
    """Mark the cells inside the region of a change; reject regions without tissue."""
    region = planted.change.region
    if not region or COORDINATES[0] not in request.table:
        return planted
    space = require_positions(model)
    names, places = space.coordinates, space.places_at(request.table)
    if unknown := [axis for axis in region if axis not in names]:
        raise InputError(f"region: the model has no coordinate {unknown[0]}; it has {' and '.join(names)}.")
    low, high = np.array([region.get(axis, (-np.inf, np.inf)) for axis in names]).T / space.unit
    condition = samples.loc[request.table["sample"], "condition"].to_numpy()
    is_changed = np.isin(condition, planted.change.condition or condition)
    if not space.tissue.overlaps(places.section[is_changed], low, high):
        raise InputError(f"region: the samples have no tissue at {planted.change.region_text}; choose another region.")
    inside = ((places.positions >= low) & (places.positions <= high)).all(axis=1)
    fraction = pd.Series(inside[is_changed]).groupby(request.table["sub_population"].to_numpy()[is_changed]).mean()
    return replace(planted, inside=inside, fraction=fraction)


def find_genes(model: BranchedModel, names: Sequence[str]) -> list[int]:
    """Return the indices of genes by name or symbol."""
    matches = model.gene_names.find(names)
    unknown = [name for name in names if not matches[name]]
    if unknown:
        raise InputError(
            f"the model has no gene {abbreviated(unknown, n_shown=N_SHOWN)}; it has "
            f"{len(model.gene_names.index):,} genes, such as {model.gene_names.example()}."
        )
    genes = dict.fromkeys(gene for name in names for gene in matches[name])
    return [int(i) for i in model.gene_names.index.get_indexer(list(genes))]


def sample_genes(
    model: BranchedModel, choice: GeneChoice, expression: np.ndarray, used: set[int], generator: np.random.Generator
) -> list[int]:
    """Sample unused genes within a range of expression."""
    modalities = {modality.name: modality.features for modality in model.autoencoder.modalities}
    name = choice.modality or next(iter(modalities))
    if name not in modalities:
        raise InputError(f"the model has no modality {name!r}; it has {', '.join(modalities)}.")
    features, within = modalities[name], np.zeros(len(expression), dtype=bool)
    low, high = np.quantile(expression[features], choice.expression or (0, 1))
    within[features] = (expression[features] >= low) & (expression[features] <= high)
    within[list(used)] = False
    candidates = np.flatnonzero(within)
    if (n_genes := choice.n or 0) > len(candidates):
        raise InputError(
            f"{n_genes:,} genes are to be sampled, but the model has {len(candidates):,} with this expression that no "
            "other change uses; reduce `n`, or widen the range of `expression`."
        )
    return sorted(generator.choice(candidates, n_genes, replace=False).tolist())


def sample_fold_changes(fold_change: FoldChange, n_genes: int, generator: np.random.Generator) -> np.ndarray:
    """Return the log2 fold change of each gene: given values, or samples."""
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


def planted_genes(changes: Sequence[PlantedChange], population: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the changed genes of a population, and log2 fold changes (changes x genes)."""
    present = [(i, planted) for i, planted in enumerate(changes) if population in planted.populations]
    genes = np.unique(np.concatenate([np.arange(0), *(planted.genes for _, planted in present)]))
    log2_fold_change = np.zeros((len(changes), len(genes)))
    for i, planted in present:
        log2_fold_change[i, np.searchsorted(genes, planted.genes)] = planted.log2_fold_change
    return genes, log2_fold_change


def mean_factors(
    changes: Sequence[PlantedChange], populations: Sequence[str], condition: str, n_genes: int
) -> dict[str, np.ndarray]:
    """Return the mean fold change of every gene, by population, in a condition."""
    factors = {population: np.ones(n_genes) for population in populations}
    for planted in changes:
        for population in set(planted.populations) & factors.keys():
            share = planted.share_of(population) if planted.change.condition in (None, condition) else 0.0
            factors[population][planted.genes] *= 1 - share + share * 2.0**planted.log2_fold_change
    return factors


def mark_responding_cells(
    changes: Sequence[PlantedChange],
    population: str,
    condition: np.ndarray,
    uniform: np.ndarray,
    rows: np.ndarray | slice,
) -> np.ndarray:
    """Mark the cells that respond to each change (1 or 0), given uniform random numbers.

    ``rows`` are the cells whose places decide whether they are in a region.
    """
    responses = np.zeros(uniform.shape, dtype=np.float32)
    for i, planted in enumerate(changes):
        if population in planted.populations:
            changed = (planted.change.condition is None) | (condition == planted.change.condition)
            inside = True if planted.inside is None else planted.inside[rows]
            responses[:, i] = changed & inside & (uniform[:, i] < planted.change.share)
    return responses
