"""Ancestral states: denoised cells at the nodes of the hierarchy, and the noise levels at which genes commit."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from torch import Tensor

from bdm.autoencoder.observation import ObservationModel
from bdm.data.modalities import modalities_of, per_10k
from bdm.generation.generate import expected_counts, observation_model
from bdm.interpretation.contrasts import Commitment, Contrast
from bdm.latent.moments import Normal, matrix_power
from bdm.model.model import BranchedModel, log_expression


@dataclass(frozen=True)
class AncestralStates:
    """What the model expects at the lower end of each branch, in the order of the hierarchy.

    An ancestral state lies between its cell types, and is not their average: a gene that few of them express is nearly
    as low in it as in the others.
    """

    x: np.ndarray  # mean of the denoised cells in whitened space, branches x dimensions
    expression: pd.DataFrame  # mean of their decoded expression in CP10k, genes x branches
    detected: pd.DataFrame  # share of such cells that would have counts of a gene, genes x branches


def ancestral_states(model: BranchedModel, *, n_cells: int = 500, seed: int = 0) -> AncestralStates:
    """Denoise cells at the lower end of each branch, as they are decoded down the tree, and decode them to genes."""
    sampler = model.sampler()
    means, expression, detected = [], [], []
    names = [branch.name for branch in model.hierarchy.branches]
    for branch, x in sampler.sample_shared(names, n_cells, seed).items():
        x = sampler.denoised(x, branch)
        populations = list(model.hierarchy.leaves(branch))
        counts = decode_to_counts(model, x, populations)
        means.append(x.mean(dim=0).numpy())
        expression.append((counts * per_10k(counts, modalities_of(model.autoencoder.genes))).mean(axis=0))
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
