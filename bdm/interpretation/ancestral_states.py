"""Ancestral states (denoised cells at nodes), commitment of genes, marker genes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest

import numpy as np
import pandas as pd
from torch import Tensor

from bdm.autoencoder.moments import Normal, matrix_power
from bdm.autoencoder.observation import ObservationModel
from bdm.data.cells import Cells
from bdm.data.gene_tests import marker_genes
from bdm.data.modalities import per_10k
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.contrasts import Commitment, Contrast
from bdm.model.model import BranchedModel, expected_counts, generated_noise, log_expression


@dataclass(frozen=True)
class AncestralStates:
    """Expected cells at the lower ends of branches, in hierarchy order.

    An ancestral state is not the average of its cell types: a gene that few of them express is nearly as low in it
    as in the types that do not express it.
    """

    x: np.ndarray  # mean of denoised cells in whitened space, branches x dimensions
    expression: pd.DataFrame  # mean of decoded expression in CP10k, genes x branches
    detected: pd.DataFrame  # expected share of cells with counts of each gene, genes x branches

    def dots(self, genes: Sequence[str]) -> Dots:
        """Return the expression of some genes by branch."""
        return Dots(np.log1p(self.expression.loc[genes].T), self.detected.loc[genes].T)


def ancestral_states(model: BranchedModel, *, n_cells: int = 500, seed: int = 0) -> AncestralStates:
    """Compute ancestral states: sample ``n_cells`` per branch down the tree, denoise at each node, and decode."""
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
    """Decode cells to expected counts (cells x genes), in the batches of training cells."""
    n_cells = model.composition.loc[list(populations)].sum()  # by batch
    quantile = (np.arange(len(x)) + 0.5) / len(x)
    batch = n_cells.index[np.searchsorted(n_cells.cumsum() / n_cells.sum(), quantile)].to_numpy()
    population = populations[0] if len(populations) == 1 else None
    at = pd.DataFrame({"batch": batch} if model.autoencoder.batches else {}, index=range(len(x)))
    return expected_counts(model, x, at, population).astype(np.float64)


def branch_observation_model(model: BranchedModel, populations: Collection[str]) -> ObservationModel:
    """Return the observation model of a branch, averaged over its training cells."""
    n_cells = model.composition.loc[list(populations)].sum(axis=1).to_numpy(dtype=float)
    observations = [generated_noise(model, population) for population in populations]
    return type(observations[0]).average(observations, weights=n_cells)


def compute_commitment(model: BranchedModel, states: AncestralStates, contrast: Contrast) -> Commitment:
    """Compute the commitment of each gene to the sides of a contrast.

    Type-specific decoders add to the shift of a gene.
    """
    sides = contrast.inside, contrast.outside
    directions = gene_directions(model, states.expression[contrast.node].to_numpy() / 1e4)
    commitment = commitment_along(directions, *map(model.moments.mixture_moments, sides))
    inside, outside = (type_specific_shift(model, side) for side in sides)
    return replace(commitment, shift=commitment.shift + inside - outside)


def type_specific_shift(model: BranchedModel, populations: tuple[str, ...]) -> np.ndarray:
    """Average the change in log expression by type-specific decoders, weighted as in training."""
    members = [model.populations.index(name) for name in populations]
    weights = (model.moments.weight[members] / model.moments.weight[members].sum()).tolist()
    total = np.zeros(len(model.autoencoder.genes))
    for name, weight in zip(populations, weights, strict=True):
        if name in model.autoencoder.adapters:
            shared, specific = log_expression(model, name)
            total += weight * (specific - shared)
    return total


def commitment_along(directions: np.ndarray, inside: Normal, outside: Normal) -> Commitment:
    """Compute commitment along directions in whitened space (genes x dimensions)."""
    shift = directions @ (inside.mean - outside.mean).double().numpy()
    covariance = (inside.covariance + outside.covariance).double().numpy()
    variance = np.einsum("gi,ij,gj->g", directions, covariance, directions, optimize=True)
    return Commitment(shift, variance, np.linalg.norm(directions, axis=1))


def gene_directions(model: BranchedModel, share: np.ndarray) -> np.ndarray:
    """Return gradients of log expression at ``share`` of counts, in whitened space (genes x dimensions)."""
    to_latent = matrix_power(model.whitening.covariance.double(), 0.5)[model.layout.latent]
    return model.autoencoder.network.decoder.directions(share, to_latent.numpy())


# ---- marker genes

N_CANDIDATES = 50  # markers of each type to choose distinct ones from
GeneSets = dict[str, tuple[str, ...]]  # genes by cell type


@dataclass(frozen=True)
class Dots:
    """Expression of genes (columns) in cell types or branches (rows), for dot plots."""

    mean: pd.DataFrame  # mean log1p(CP10k)
    fraction: pd.DataFrame  # share of cells with counts


@dataclass(frozen=True)
class Markers:
    """Expression of marker genes in cell types and branches."""

    genes: GeneSets  # each gene marks one type
    real: Dots  # training cells by cell type, or by population if there is one type
    generated: Dots  # generated cells, the same rows
    clades: Dots  # training cells below each branch


def compute_markers(
    chosen: GeneSets, training: Cells, generated: Cells, genes: pd.Index, hierarchy: Hierarchy
) -> Markers:
    """Compute the expression of markers in real and generated cells, and by branch.

    A gene chosen for two types marks the first.
    """
    marked_type = {gene: cell_type for cell_type, members in reversed(chosen.items()) for gene in members}
    markers = {
        cell_type: tuple(gene for gene in members if marked_type[gene] == cell_type)
        for cell_type, members in chosen.items()
    }
    columns = genes.get_indexer([gene for members in markers.values() for gene in members])
    by_type = populations_by_type(hierarchy)
    by_branch = {branch.name: tuple(hierarchy.leaves(branch.name)) for branch in hierarchy.branches}
    return Markers(
        markers,
        real=compute_dots(training, columns, genes, by_type),
        generated=compute_dots(generated, columns, genes, by_type),
        clades=compute_dots(training, columns, genes, by_branch),
    )


def populations_by_type(hierarchy: Hierarchy) -> dict[str, tuple[str, ...]]:
    """Return populations by cell type; for a single type, each population by itself."""
    cell_types = hierarchy.cell_types
    if len(cell_types) == 1:
        return {name: (name,) for name in hierarchy.populations}
    return {cell_type: hierarchy.populations_of(cell_type) for cell_type in cell_types}


def distinct_markers(training: Cells, genes: pd.Index, cell_types: tuple[str, ...], *, n_genes: int) -> GeneSets:
    """Choose the markers of each type that differ most from the next highest type.

    Each gene is used once; candidates are the ``N_CANDIDATES`` best markers of a type.
    """
    candidates = marker_genes(training, n_genes=N_CANDIDATES)
    columns = np.arange(len(genes))
    mean = compute_dots(training, columns, genes, {cell_type: (cell_type,) for cell_type in cell_types}).mean
    chosen: GeneSets = {}
    used: set[str] = set()
    for cell_type in cell_types:
        lead = mean.loc[cell_type] - mean.drop(index=cell_type).max()
        unused = [gene for gene in genes[candidates.get(cell_type, [])] if gene not in used]
        chosen[cell_type] = tuple(sorted(unused, key=lambda gene: -lead[gene])[:n_genes])
        used.update(chosen[cell_type])
    return chosen


def interleave(modalities: Iterable[GeneSets]) -> GeneSets:
    """Interleave the markers of several modalities, best first."""
    parts = list(modalities)
    joined = {name: chain.from_iterable(zip_longest(*(part[name] for part in parts))) for name in parts[0]}
    return {name: tuple(gene for gene in genes if gene is not None) for name, genes in joined.items()}


def compute_dots(cells: Cells, columns: np.ndarray, genes: pd.Index, groups: dict[str, tuple[str, ...]]) -> Dots:
    """Compute the dots of genes (``columns`` in ``genes``) in groups of populations."""
    expression = cells.expression[:, columns]
    mean, fraction = np.full((2, len(groups), len(columns)), np.nan)
    for i, populations in enumerate(groups.values()):
        members = expression[np.isin(cells.cell_type, populations)]
        if n_cells := members.shape[0]:
            mean[i] = members.mean(axis=0).A1
            fraction[i] = (members > 0).sum(axis=0).A1 / n_cells
    frame = {"index": list(groups), "columns": genes[columns]}
    return Dots(pd.DataFrame(mean, **frame), pd.DataFrame(fraction, **frame))
