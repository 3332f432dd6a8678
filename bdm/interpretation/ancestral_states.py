"""Ancestral states (denoised cells at nodes), where genes commit, and marker genes, in cells and down the tree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

import numpy as np
import pandas as pd
from torch import Tensor

from bdm.autoencoder.observation import ObservationModel
from bdm.data.modalities import per_10k
from bdm.evaluation.cells import Cells
from bdm.evaluation.genes import marker_genes
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.contrasts import Commitment, Contrast
from bdm.latent.moments import Normal, matrix_power
from bdm.model.model import BranchedModel, expected_counts, log_expression, observation_model


@dataclass(frozen=True)
class AncestralStates:
    """What the model expects at the lower end of each branch, in the order of the hierarchy.

    It is no average of its cell types: a gene that few of them express is nearly as low in it as in the others.
    """

    x: np.ndarray  # mean of the denoised cells in whitened space, branches x dimensions
    expression: pd.DataFrame  # mean of their decoded expression in CP10k, genes x branches
    detected: pd.DataFrame  # share of such cells that would have counts of a gene, genes x branches

    def dots(self, genes: Sequence[str]) -> Dots:
        """Expression of some genes by branch."""
        return Dots(np.log1p(self.expression.loc[genes].T), self.detected.loc[genes].T)


def ancestral_states(model: BranchedModel, *, n_cells: int = 500, seed: int = 0) -> AncestralStates:
    """Denoise cells at the lower end of each branch, as they are decoded down the tree, and decode them to genes."""
    sampler = model.sampler()
    means, expression, detected = [], [], []
    names = [branch.name for branch in model.hierarchy.branches]
    for branch, x in sampler.sample_shared(names, n_cells, seed).items():
        x = sampler.denoise_at_node(x, branch)
        populations = list(model.hierarchy.leaves(branch))
        counts = decode_to_counts(model, x, populations)
        means.append(x.mean(dim=0).numpy())
        expression.append((counts * per_10k(counts, model.autoencoder.modalities)).mean(axis=0))
        detected.append(branch_observation_model(model, populations).detection(counts).mean(axis=0))
    frame = {"index": model.autoencoder.genes.index, "columns": names}
    return AncestralStates(
        np.stack(means), pd.DataFrame(np.stack(expression).T, **frame), pd.DataFrame(np.stack(detected).T, **frame)
    )


def decode_to_counts(model: BranchedModel, x: Tensor, populations: Sequence[str]) -> np.ndarray:
    """Decode cells to expected counts, cells x genes, spread over batches as the populations' training cells are."""
    per_batch = model.composition.loc[list(populations)].sum()
    quantile = (np.arange(len(x)) + 0.5) / len(x)
    batch = per_batch.index[np.searchsorted(per_batch.cumsum() / per_batch.sum(), quantile)]
    population = populations[0] if len(populations) == 1 else None
    names = batch.to_numpy() if model.autoencoder.batches else None
    return expected_counts(model, x, names, population).astype(np.float64)


def branch_observation_model(model: BranchedModel, populations: Collection[str]) -> ObservationModel:
    """Observation model of the counts of a branch: the average over its training cells."""
    n_cells = model.composition.loc[list(populations)].sum(axis=1).to_numpy(dtype=float)
    observations = [observation_model(model, population) for population in populations]
    return type(observations[0]).average(observations, weights=n_cells)


def commitment_of(model: BranchedModel, states: AncestralStates, contrast: Contrast) -> Commitment:
    """Compute the commitment of each gene to the sides of a contrast, with what type-specific decoders add."""
    share = states.expression[contrast.node].to_numpy() / 1e4
    sides = contrast.inside, contrast.outside
    shared = commitment(gene_directions(model, share), *map(model.moments.mixture, sides))
    inside, outside = (type_specific_shift(model, side) for side in sides)
    return replace(shared, shift=shared.shift + inside - outside)


def type_specific_shift(model: BranchedModel, populations: tuple[str, ...]) -> np.ndarray:
    """Mean change in log expression by type-specific decoders, by gene, over populations weighted as in training."""
    members = [model.populations.index(name) for name in populations]
    share = (model.moments.weight[members] / model.moments.weight[members].sum()).tolist()
    total = np.zeros(len(model.autoencoder.genes))
    for name, of_population in zip(populations, share, strict=True):
        if name in model.autoencoder.adapters:
            own, shared = (log_expression(model, name, type_specific=own) for own in (True, False))
            total += of_population * (own - shared)
    return total


def commitment(directions: np.ndarray, inside: Normal, outside: Normal) -> Commitment:
    """Measure commitment along directions in whitened space, genes x dimensions."""
    shift = directions @ (inside.mean - outside.mean).double().numpy()
    covariance = (inside.covariance + outside.covariance).double().numpy()
    variance = np.einsum("gi,ij,gj->g", directions, covariance, directions, optimize=True)
    return Commitment(shift, variance, np.linalg.norm(directions, axis=1))


def gene_directions(model: BranchedModel, share: np.ndarray) -> np.ndarray:
    """Gradient of each gene's log expression in whitened space, genes x dimensions, where genes have ``share``."""
    to_latent = matrix_power(model.whitening.covariance.double(), 0.5)[model.layout.latent]
    return model.autoencoder.network.decoder.directions(share, to_latent.numpy())


# ---- marker genes

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


def markers_of(chosen: GeneSets, training: Cells, generated: Cells, genes: pd.Index, hierarchy: Hierarchy) -> Markers:
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
    joined = {name: chain.from_iterable(zip_longest(*(part[name] for part in parts))) for name in parts[0]}
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
