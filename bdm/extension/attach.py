"""Where a new cell type leaves the hierarchy: its distances to known types, its attachment point, and its own tree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bdm._core.seeds import numpy_generator
from bdm.hierarchy.build import MIN_LEVEL, AttachmentPoint, attachment_point, branches_of, inner_names, measure_clade
from bdm.hierarchy.clustering import (
    FEW_CELLS,
    Evidence,
    MeasuredMeans,
    clade_support,
    clades_of_types,
    nearer_types,
    resample_means,
)
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import PopulationMoments, without_prior
from bdm.model.model import BranchedModel


@dataclass(frozen=True)
class Attached:
    """Where a cell type is in the hierarchy of a model, and its branches from there down."""

    attachment: AttachmentPoint
    support: float | None  # share of resamples of its cells that leave the same branch
    tree: Hierarchy  # a leaf, or the clade of its populations


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
) -> Attached:
    """Find where a new cell type leaves the hierarchy of a model, and the tree of its populations."""
    means = MeasuredMeans.from_moments(moments)
    (shape,) = clades_of_types(means, cells.populations, cells.labels).values()
    index = {name: row for row, name in enumerate(cells.populations)}
    root = measure_clade(shape, means, index, threshold=model.hierarchy.threshold)
    attachment = attachment_of(model, means, lowest := max(root.level, MIN_LEVEL))
    suggested, generator = without_prior(cells, model.whitening).double().numpy(), numpy_generator(seed, "place")
    resamples = resample_means(suggested, cells.population.numpy(), means, n_bootstrap=n_bootstrap, generator=generator)
    names = inner_names({*model.hierarchy.by_name, *cells.populations, *cells.labels})
    same = [attachment_of(model, resample, lowest).branch == attachment.branch for resample in resamples]
    support = float(np.mean(same)) if same else None
    place = {} if support is None or len(cells.mean) >= FEW_CELLS else {cells.labels[0]: support}
    nearer = nearer_to(model, means, resamples, cells, generator)
    evidence = Evidence(clade_support(resamples, cells.labels), place, nearer)
    level = attachment.level
    branches = branches_of(root, None, cells, evidence, names)
    below = tuple(replace(branch, level=min(branch.level, level)) for branch in branches)
    return Attached(attachment, support, Hierarchy(below, level, model.hierarchy.threshold))


def attachment_of(model: BranchedModel, means: MeasuredMeans, lowest: float) -> AttachmentPoint:
    """Return the attachment point of a type by the means of its populations, which separate at ``lowest``."""
    return attachment_point(model.hierarchy, squared_distances(model, means).to_dict(), lowest=lowest)


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
