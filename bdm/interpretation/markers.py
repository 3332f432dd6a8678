"""Marker genes of cell types, in cells and down the tree."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

import numpy as np
import pandas as pd

from bdm.evaluation.cells import Cells
from bdm.evaluation.genes import marker_genes
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.ancestral_states import AncestralStates

N_CANDIDATES = 50  # markers of a type among which those not taken by another type are sought
GeneSets = dict[str, tuple[str, ...]]  # genes by cell type


@dataclass(frozen=True)
class Dots:
    """Expression of genes in cell types or branches, in rows, by gene."""

    mean: pd.DataFrame  # of log1p(CP10k)
    fraction: pd.DataFrame  # share of cells with counts


@dataclass(frozen=True)
class Markers:
    """Marker genes in cell types and down the tree."""

    genes: GeneSets  # each gene marks one type
    real: Dots  # training cells by cell type; where there is one type, by population
    generated: Dots
    clades: Dots  # training cells below each branch
    ancestral_states: Dots


def markers_of(
    chosen: GeneSets,
    training: Cells,
    generated: Cells,
    genes: pd.Index,
    hierarchy: Hierarchy,
    states: AncestralStates,
) -> Markers:
    """Compute markers in real and generated cells, and by branch; a gene that marks two types counts for the first."""
    first = {gene: cell_type for cell_type, members in reversed(chosen.items()) for gene in reversed(members)}
    chosen = {
        cell_type: tuple(gene for gene in members if first[gene] == cell_type) for cell_type, members in chosen.items()
    }
    columns = genes.get_indexer([gene for members in chosen.values() for gene in members])
    by_type = members_of_types(hierarchy)
    by_branch = {branch.name: tuple(hierarchy.leaves(branch.name)) for branch in hierarchy.branches}
    return Markers(
        chosen,
        real=compute_dots(training, columns, genes, by_type),
        generated=compute_dots(generated, columns, genes, by_type),
        clades=compute_dots(training, columns, genes, by_branch),
        ancestral_states=Dots(np.log1p(states.expression.iloc[columns].T), states.detected.iloc[columns].T),
    )


def members_of_types(hierarchy: Hierarchy) -> dict[str, tuple[str, ...]]:
    """List what markers are sought of, with its populations: cell types; of one type alone, the populations."""
    cell_types = hierarchy.cell_types
    if len(cell_types) == 1:
        return {name: (name,) for name in hierarchy.populations}
    return {cell_type: hierarchy.populations_of(cell_type) for cell_type in cell_types}


def by_members(cells: Cells, members: dict[str, tuple[str, ...]]) -> Cells:
    """Give cells of populations the names that these are members of."""
    name_of = {member: name for name, found in members.items() for member in found}
    return replace(cells, cell_type=np.array([name_of[name] for name in cells.cell_type], dtype=str))


def distinct_markers(training: Cells, genes: pd.Index, cell_types: tuple[str, ...], *, n_genes: int) -> GeneSets:
    """Choose among 50 genes that mark each type the ones that stand out most from any other type, each gene once."""
    candidates = marker_genes(training, n_genes=N_CANDIDATES)
    every = np.arange(len(genes))
    mean = compute_dots(training, every, genes, {cell_type: (cell_type,) for cell_type in cell_types}).mean
    chosen: GeneSets = {}
    taken: set[str] = set()
    for cell_type in cell_types:
        ahead = mean.loc[cell_type] - mean.drop(index=cell_type).max()
        free = [gene for gene in genes[candidates.get(cell_type, [])] if gene not in taken]
        chosen[cell_type] = tuple(sorted(free, key=lambda gene: -ahead[gene])[:n_genes])
        taken.update(chosen[cell_type])
    return chosen


def in_turn(modalities: Iterable[GeneSets]) -> GeneSets:
    """Join the markers of several modalities: the best of each first."""
    parts = list(modalities)
    joined = {name: chain.from_iterable(zip_longest(*(of[name] for of in parts))) for name in parts[0]}
    return {name: tuple(gene for gene in genes if gene is not None) for name, genes in joined.items()}


def compute_dots(cells: Cells, columns: np.ndarray, genes: pd.Index, rows: dict[str, tuple[str, ...]]) -> Dots:
    """Mean and share of cells with counts of the genes in ``columns``, by row of populations."""
    expression = cells.expression[:, columns]
    mean, fraction = np.full((2, len(rows), len(columns)), np.nan)
    for number, populations in enumerate(rows.values()):
        of_row = expression[np.isin(cells.cell_type, populations)]
        if n_cells := of_row.shape[0]:
            mean[number] = of_row.mean(axis=0).A1
            fraction[number] = (of_row > 0).sum(axis=0).A1 / n_cells
    frame = {"index": list(rows), "columns": genes[columns]}
    return Dots(pd.DataFrame(mean, **frame), pd.DataFrame(fraction, **frame))
