"""What an extension fits: a type's decoders and sub-populations, its place in the hierarchy, and offsets of batches."""

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
from bdm.autoencoder.adapters import KNOWN_POPULATIONS, MAX_CELLS, Adapters, PopulationCells, fit_gaining
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.cells import (
    N_ITERATIONS_OF_BOUND,
    cell_blocks_of_type,
    observed_and_expected,
    sample_rows_of_population,
)
from bdm.autoencoder.sub_populations import GroupLatents, SubPopulations, classify, parts_of_group, prefixes_of
from bdm.hierarchy.build import MIN_LEVEL, AttachmentPoint, attachment_point, build_branches, measure_clade, node_names
from bdm.hierarchy.clustering import (
    FEW_CELLS,
    MeasuredMeans,
    TreeSupport,
    clade_support,
    nearer_types,
    resample_means,
    type_clades,
)
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import LatentCells, encode, populations_of_cells
from bdm.latent.moments import PopulationMoments, without_prior
from bdm.model.model import BranchedModel
from bdm.settings import AutoencoderSettings

logger = logging.getLogger(__name__)


@torch.no_grad()
def initial_adapter(cells: ad.AnnData, name: str, autoencoder: GeneAutoencoder) -> Adapters:
    """Return the decoder to start from: the shared one with the type's mean, and the mean noise of known types."""
    shared = autoencoder.network
    first = Adapters((name,), shared.decoder.stacked_mean_type(), shared.prior_mean.mean(dim=0, keepdim=True))
    for _ in range(5):  # the mean latent draws the posteriors, whose mean it is
        network = first.network(name, shared)
        of_cells = cell_blocks_of_type(cells, autoencoder.batches)
        means = [network.encode(*block, n_iterations=N_ITERATIONS_OF_BOUND).mean for block in of_cells]
        first = replace(first, prior_mean=torch.cat(means).mean(dim=0, keepdim=True))
    return first


def find_populations(
    cells: ad.AnnData,
    decoder: Adapters,
    autoencoder: GeneAutoencoder,
    settings: AutoencoderSettings,
    *,
    taken: Collection[str],
    seed: int,
) -> tuple[Adapters, SubPopulations]:
    """Find the sub-populations of a new cell type, none if it is one population, and fit a decoder to each.

    These start from the ``decoder`` of the type, which stays to find them, and are kept where validation cells gain.
    """
    [cell_type] = decoder
    cells = cells[(cells.obs["split"] != "test").to_numpy()].copy()
    latent = encode(cells, autoencoder.with_type(cell_type, decoder))
    n_latent = autoencoder.network.shape.n_latent
    mean, scale = (torch.from_numpy(np.asarray(values)[:, :n_latent]) for values in (latent.X, latent.layers["scale"]))
    part = parts_of_group(GroupLatents.from_posteriors(cell_type, mean, scale), settings, seed=seed)
    prefix, smallest = prefixes_of([cell_type], taken)[cell_type], settings.min_cells_per_sub_population
    found = classify(cell_type, mean, part, prefix=prefix, smallest=smallest)
    if not len(found):
        return decoder, found
    cells.obs["sub_population"], means = found.divide(cell_type, mean, scale, decoder.prior_mean[0])
    parameters = {name: value.expand(len(found.names), *value.shape[1:]) for name, value in decoder.parameters.items()}
    first = Adapters(found.names, parameters, means)
    if settings.shared_decoder:
        return decoder.updated(first), found
    return decoder.updated(first, *fit_populations(cells, first, autoencoder, seed=seed)), found


def fit_populations(cells: ad.AnnData, first: Adapters, autoencoder: GeneAutoencoder, *, seed: int) -> list[Adapters]:
    """Fit the decoder of each population; nothing of those that do not gain, or have no validation cells."""

    def fitted(name: str) -> Adapters:
        rows = [sample_rows_of_population(cells.obs, name, split, most, seed=seed) for split, most in MAX_CELLS.items()]
        start = first.subset((name,))
        if not all(map(len, rows)):
            return start.subset(())
        of_population = PopulationCells.from_cells(name, cells[np.concatenate(rows)], autoencoder.batches)
        try:
            return fit_gaining(start, autoencoder.network, [of_population], KNOWN_POPULATIONS, least_gain=0, seed=seed)
        except TrainingError as error:
            logger.warning("%s keeps the decoder of its cell type: %s", name, error)
            return start.subset(())

    with threads() as run:
        return list(run(fitted, list(first)))


# ---- batches

N_ROUNDS = 5  # of the fit of a new batch


def batch_offsets(cells: ad.AnnData, autoencoder: GeneAutoencoder, batches: tuple[str, ...]) -> dict[str, Tensor]:
    """Estimate the offsets of genes in new batches, from their cells of known types.

    Genes with few counts, and batches without such cells, keep the mean offset of known batches.
    """
    offsets, decoder = {}, autoencoder.network.decoder
    for batch in batches:
        of_batch, offset = cells[(cells.obs["batch"] == batch).to_numpy()], decoder.mean_batch()
        if not of_batch.n_obs:
            logger.warning(
                "Batch %r has no cells of types that the model has, so the effect of the batch cannot be distinguished "
                "from its new types, and is fitted as a part of them.",
                batch,
            )
        for _ in range(N_ROUNDS if of_batch.n_obs else 0):  # expected counts depend on latents, and these on the offset
            with_batch = autoencoder.with_batches({batch: offset})
            offset = decoder.improve_batch(offset, *count_known_types(of_batch, with_batch))
        offsets[batch] = offset
    return offsets


def count_known_types(cells: ad.AnnData, autoencoder: GeneAutoencoder) -> tuple[Tensor, Tensor]:
    """Sum the counts of each gene over cells, and the counts that the network of each population expects."""
    observed, expected = torch.zeros(cells.n_vars), torch.zeros(cells.n_vars)
    population = populations_of_cells(cells, autoencoder)
    for name in np.unique(population):
        of_population = cells[population == name]
        blocks = cell_blocks_of_type(of_population, autoencoder.batches, code=autoencoder.type_code(name))
        counts = observed_and_expected(autoencoder.network_of(name), blocks)
        observed, expected = observed + counts[0], expected + counts[1]
    return observed, expected


def squared_distances(model: BranchedModel, means: MeasuredMeans) -> pd.Series:
    """Squared distance of a type to each population of a model, mean over its populations, without noise."""
    known = MeasuredMeans.from_moments(model.moments)
    measured = ((known.mean[:, None] - means.mean) ** 2).sum(axis=2)
    without_noise = measured - known.variance[:, None] - means.variance
    return pd.Series(without_noise.mean(axis=1), index=model.populations)


def distances(model: BranchedModel, means: MeasuredMeans) -> pd.Series:
    """Distance of a type to each type of a model, nearest first: root mean square over pairs of populations."""
    squares = squared_distances(model, means)
    return squares.groupby(squares.index.map(model.cell_type_of)).mean().sort_values().clip(lower=0) ** 0.5


def attached(
    model: BranchedModel, cells: LatentCells, moments: PopulationMoments, *, n_bootstrap: int, seed: int
) -> tuple[AttachmentPoint, float | None, Hierarchy]:
    """Find where a new cell type leaves the hierarchy of a model, and its branches from there down.

    Between the two, the support of the place is returned: the share of resamples of its cells that leave the same
    branch; None without resamples.
    """
    means = MeasuredMeans.from_moments(moments)
    (shape,) = type_clades(means, cells.populations, cells.labels).values()
    index = {name: row for row, name in enumerate(cells.populations)}
    root = measure_clade(shape, means, index, threshold=model.hierarchy.threshold)
    lowest = max(root.level, MIN_LEVEL)

    def attachment_of(means: MeasuredMeans) -> AttachmentPoint:
        return attachment_point(model.hierarchy, squared_distances(model, means).to_dict(), lowest=lowest)

    attachment = attachment_of(means)
    suggested, generator = without_prior(cells, model.whitening).double().numpy(), numpy_generator(seed, "place")
    resamples = resample_means(suggested, cells.population.numpy(), means, n_bootstrap=n_bootstrap, generator=generator)
    names = node_names({*model.hierarchy.by_name, *cells.populations, *cells.labels})
    same = [attachment_of(resample).branch == attachment.branch for resample in resamples]
    support = float(np.mean(same)) if same else None
    place = {} if support is None or len(cells.mean) >= FEW_CELLS else {cells.labels[0]: support}
    nearer = nearer_to(model, means, resamples, cells, generator)
    of_tree = TreeSupport(clade_support(resamples, cells.labels), place, nearer)
    level = attachment.level
    branches = build_branches(root, None, cells, of_tree, names)
    below = tuple(replace(branch, level=min(branch.level, level)) for branch in branches)
    return attachment, support, Hierarchy(below, level, model.hierarchy.threshold)


def nearer_to(
    model: BranchedModel,
    means: MeasuredMeans,
    resamples: Sequence[MeasuredMeans],
    cells: LatentCells,
    generator: np.random.Generator,
) -> dict[str, str | None]:
    """Known type that is nearer to each new population than the others of its own type, see :func:`nearer_types`.

    The cells of known types are not there to be resampled, so their means are sampled by their sampling variance.
    """
    known, cell_type_of = MeasuredMeans.from_moments(model.moments), model.cell_type_of
    scale = np.sqrt(known.variance / known.mean.shape[1])[:, None]
    both = [
        MeasuredMeans(known.mean + scale * generator.normal(size=known.mean.shape), 2 * known.variance).concat(resample)
        for resample in resamples
    ]
    labels = (*(cell_type_of[name] for name in model.populations), *cells.labels)
    uncertain = {branch.name for branch in model.hierarchy.branches if branch.place_uncertain}
    found = nearer_types(known.concat(means), both, labels, uncertain=uncertain)
    return dict(zip(cells.populations, found[len(known.mean) :], strict=True))
