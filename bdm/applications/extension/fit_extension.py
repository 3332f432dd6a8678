"""Fit the parts of an extension: decoders, sub-populations, place in the tree, batches."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.errors import TrainingError
from bdm._core.parallel import threads
from bdm._core.seeds import numpy_generator
from bdm._core.store import concat
from bdm.autoencoder.adapters import CELLS_PER_POPULATION, KNOWN_POPULATIONS, Adapters, PopulationCells, fit_gaining
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.inputs import (
    N_BOUND_ITERATIONS,
    cell_blocks_of_type,
    observed_and_expected,
    sample_rows_of_population,
)
from bdm.autoencoder.latent import LatentCells, encode, populations_of_cells
from bdm.autoencoder.moments import PopulationMoments, without_prior
from bdm.autoencoder.sub_populations import SubPopulations, classify, parts_of_group, prefixes_of, warn_of_fewer
from bdm.data.filters import is_fitted
from bdm.hierarchy.build import (
    FEW_CELLS,
    MIN_LEVEL,
    AttachmentPoint,
    attachment_point,
    build_branches,
    measure_clade,
    node_names,
)
from bdm.hierarchy.clustering import (
    MeasuredMeans,
    TreeSupport,
    clade_support,
    nearer_types,
    resample_means,
    type_clades,
)
from bdm.hierarchy.tree import Hierarchy
from bdm.model.model import BranchedModel
from bdm.settings import AutoencoderSettings

logger = logging.getLogger(__name__)

N_ROUNDS = 5  # updates of a type's mean, or a batch's offset, and the posteriors that depend on it


@torch.no_grad()
def initial_adapter(cells: ad.AnnData, name: str, autoencoder: GeneAutoencoder) -> Adapters:
    """Return the initial decoder: shared loadings, the type's mean, and average noise."""
    shared = autoencoder.network
    adapter = Adapters((name,), shared.decoder.stacked_mean_type(), shared.prior_mean.mean(dim=0, keepdim=True))
    for _ in range(N_ROUNDS):  # the prior mean is the mean of posteriors, which depend on it
        network = adapter.network(name, shared)
        blocks = cell_blocks_of_type(cells, autoencoder.batches)
        means = [network.encode(*block, n_iterations=N_BOUND_ITERATIONS).mean for block in blocks]
        adapter = replace(adapter, prior_mean=torch.cat(means).mean(dim=0, keepdim=True))
    return adapter


def find_populations(
    cells: ad.AnnData,
    decoder: Adapters,
    autoencoder: GeneAutoencoder,
    settings: AutoencoderSettings,
    *,
    reserved: Collection[str],
    seed: int,
) -> tuple[Adapters, SubPopulations]:
    """Divide a new cell type into sub-populations, and fit a decoder to each.

    Their decoders start from the type's ``decoder``, which is kept for assigning cells to sub-populations, and replace
    it where validation cells gain. The result has no sub-populations if the type is not divided.
    """
    [cell_type] = decoder
    cells = cells[is_fitted(cells.obs)].copy()
    latent = encode(cells, autoencoder.with_type(cell_type, decoder))
    n_latent = autoencoder.network.shape.n_latent
    mean, scale = (torch.from_numpy(np.asarray(values)[:, :n_latent]) for values in (latent.X, latent.layers["scale"]))
    part = parts_of_group(cell_type, mean, scale, settings, seed=seed)
    prefix, min_cells = prefixes_of([cell_type], reserved)[cell_type], settings.min_cells_per_sub_population
    divided = classify(cell_type, mean, part, prefix=prefix, min_cells=min_cells)
    if isinstance(settings.sub_populations, int):
        warn_of_fewer(divided, [cell_type], settings.sub_populations, requirement=f"{min_cells} cells to fit")
    names = divided.names
    if not len(divided):
        return decoder, divided
    cells.obs["sub_population"], means = divided.divide(cell_type, mean, scale, decoder.prior_mean[0])
    parameters = {name: value.expand(len(names), *value.shape[1:]) for name, value in decoder.parameters.items()}
    initial = Adapters(names, parameters, means)
    if settings.shared_decoder:
        return decoder.updated(initial), divided
    return decoder.updated(initial, *fit_populations(cells, initial, autoencoder, seed=seed)), divided


def fit_populations(cells: ad.AnnData, initial: Adapters, autoencoder: GeneAutoencoder, *, seed: int) -> list[Adapters]:
    """Fit the decoder of each population; empty adapters where validation cells do not gain."""

    def fitted(name: str) -> Adapters:
        rows = [
            sample_rows_of_population(cells.obs, name, split, most, seed=seed)
            for split, most in CELLS_PER_POPULATION.items()
        ]
        start = initial.subset((name,))
        if not all(map(len, rows)):
            return start.subset(())
        population = PopulationCells.from_cells(name, cells[np.concatenate(rows)], autoencoder.batches)
        try:
            return fit_gaining(start, autoencoder.network, [population], KNOWN_POPULATIONS, min_gain=0, seed=seed)
        except TrainingError as error:
            logger.warning("%s keeps the decoder of its cell type: %s", name, error)
            return start.subset(())

    with threads() as run:
        return list(run(fitted, list(initial)))


# ---- batches


def batch_offsets(cells: ad.AnnData, autoencoder: GeneAutoencoder, batches: tuple[str, ...]) -> dict[str, Tensor]:
    """Estimate gene offsets of new batches from their cells of known types.

    Genes with few counts, and batches without such cells, keep the mean offset of known batches.
    """
    offsets, decoder = {}, autoencoder.network.decoder
    for batch in batches:
        batch_cells, offset = cells[(cells.obs["batch"] == batch).to_numpy()], decoder.mean_batch()
        if not batch_cells.n_obs:
            logger.warning(
                "Batch %r has no cells of known types, so its effect is confounded with its new types and "
                "becomes part of them.",
                batch,
            )
        for _ in range(N_ROUNDS if batch_cells.n_obs else 0):  # latents depend on the offset, too
            with_batch = autoencoder.with_batches({batch: offset})
            offset = decoder.improve_batch(offset, *count_known_types(batch_cells, with_batch))
        offsets[batch] = offset
    return offsets


def count_known_types(cells: ad.AnnData, autoencoder: GeneAutoencoder) -> tuple[Tensor, Tensor]:
    """Sum observed and expected counts of each gene over cells."""
    observed, expected = torch.zeros(cells.n_vars), torch.zeros(cells.n_vars)
    population = populations_of_cells(cells, autoencoder)
    for name in np.unique(population):
        blocks = cell_blocks_of_type(
            cells[population == name], autoencoder.batches, code=autoencoder.population_code(name)
        )
        counts = observed_and_expected(autoencoder.network_of(name), blocks)
        observed, expected = observed + counts[0], expected + counts[1]
    return observed, expected


# ---- place in the hierarchy


def squared_distances_to_model(model: BranchedModel, means: MeasuredMeans) -> pd.Series:
    """Return squared distances of a new type to known populations, corrected for noise."""
    known = MeasuredMeans.from_moments(model.moments)
    measured = ((known.mean[:, None] - means.mean) ** 2).sum(axis=2)
    corrected = measured - known.variance[:, None] - means.variance
    return pd.Series(corrected.mean(axis=1), index=model.populations)


def distances_to_model(model: BranchedModel, means: MeasuredMeans) -> pd.Series:
    """Return root mean square distances of a new type to known types, nearest first."""
    squares = squared_distances_to_model(model, means)
    return squares.groupby(squares.index.map(model.cell_type_of)).mean().sort_values().clip(lower=0) ** 0.5


def attach_type(
    model: BranchedModel, cells: LatentCells, moments: PopulationMoments, *, n_bootstrap: int, seed: int
) -> tuple[AttachmentPoint, float | None, Hierarchy]:
    """Attach a new cell type to the hierarchy of a model.

    Returns the attachment point; its support (the fraction of resamples of the cells that attach to the same branch,
    None without resamples); and the branches of the new type.
    """
    means = MeasuredMeans.from_moments(moments)
    (clade,) = type_clades(means, cells.populations, cells.labels).values()
    index = {name: row for row, name in enumerate(cells.populations)}
    root = measure_clade(clade, means, index, threshold=model.hierarchy.threshold)
    lowest = max(root.level, MIN_LEVEL)

    def attach(means: MeasuredMeans) -> AttachmentPoint:
        return attachment_point(model.hierarchy, squared_distances_to_model(model, means).to_dict(), lowest=lowest)

    attachment = attach(means)
    x, generator = without_prior(cells, model.whitening).double().numpy(), numpy_generator(seed, "place")
    resamples = resample_means(x, cells.population.numpy(), means, n_bootstrap=n_bootstrap, generator=generator)
    names = node_names({*model.hierarchy.by_name, *cells.populations, *cells.labels})
    agrees = [attach(resample).branch == attachment.branch for resample in resamples]
    support = float(np.mean(agrees)) if agrees else None
    place_support = {} if support is None or len(cells.mean) >= FEW_CELLS else {cells.labels[0]: support}
    nearer = find_nearer_types(model, means, resamples, cells, generator)
    tree_support = TreeSupport(clade_support(resamples, cells.labels), place_support, nearer)
    level = attachment.level
    branches = build_branches(root, None, cells, tree_support, names)
    clipped = tuple(replace(branch, level=min(branch.level, level)) for branch in branches)
    return attachment, support, Hierarchy(clipped, level, model.hierarchy.threshold)


def find_nearer_types(
    model: BranchedModel,
    means: MeasuredMeans,
    resamples: Sequence[MeasuredMeans],
    cells: LatentCells,
    generator: np.random.Generator,
) -> dict[str, str | None]:
    """Find known types that are nearer to new populations than their own.

    See :func:`nearer_types`. Cells of known types are not available for resampling, so their means are sampled by their
    sampling variance.
    """
    known, cell_type_of = MeasuredMeans.from_moments(model.moments), model.cell_type_of
    scale = np.sqrt(known.variance / known.mean.shape[1])[:, None]
    joined = [
        concat(
            [MeasuredMeans(known.mean + scale * generator.normal(size=known.mean.shape), 2 * known.variance), resample]
        )
        for resample in resamples
    ]
    labels = (*(cell_type_of[name] for name in model.populations), *cells.labels)
    uncertain = {branch.name for branch in model.hierarchy.branches if branch.place_uncertain}
    nearer = nearer_types(concat([known, means]), joined, labels, uncertain=uncertain)
    return dict(zip(cells.populations, nearer[len(known.mean) :], strict=True))
