"""Where a new cell type leaves the hierarchy: its distances to known types, its attachment point, and its own tree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from bdm.hierarchy.build import MIN_LEVEL, branches_of, clade_support, inner_names, measure_clade, resampled_means
from bdm.hierarchy.grow import AttachmentPoint, attachment_point, next_node_name
from bdm.hierarchy.means import MeasuredMeans
from bdm.hierarchy.sub_populations import clades_of_types, nearer_types
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import TypeMoments
from bdm.model.model import BranchedModel
from bdm.seeds import numpy_generator


def squared_distances(model: BranchedModel, means: MeasuredMeans) -> pd.Series:
    """Squared distance of a type to each population of a model in whitened space, without the noise of both means.

    Parameters
    ----------
    means
        Of the populations of the type, whose squared distances are averaged.
    """
    known = MeasuredMeans.of(model.moments)
    measured = ((known.mean[:, None] - means.mean) ** 2).sum(axis=2)
    without_noise = measured - known.variance[:, None] - means.variance
    return pd.Series(without_noise.mean(axis=1), index=model.populations)


def distances(model: BranchedModel, means: MeasuredMeans) -> pd.Series:
    """Distance of a type to each type of a model, nearest first: root mean square over pairs of their populations.

    It is 0 where noise explains all of the distance.
    """
    squares = squared_distances(model, means)
    return squares.groupby(squares.index.map(model.cell_type_of)).mean().sort_values().clip(lower=0) ** 0.5


def attached_tree(
    model: BranchedModel, cells: LatentCells, moments: TypeMoments, *, n_bootstrap: int, seed: int
) -> tuple[AttachmentPoint, float, Hierarchy]:
    """Find where a new cell type leaves the hierarchy of a model, and the tree of its populations.

    Parameters
    ----------
    cells, moments
        Of the populations of the type.

    Returns
    -------
    The attachment point; the share of resamples of the cells that leave the same branch; and the branches of the type
    from there down, with the support of its inner nodes.
    """
    means = MeasuredMeans.of(moments)
    (shape,) = clades_of_types(means, cells.cell_types, cells.labels).values()
    index = {name: row for row, name in enumerate(cells.cell_types)}
    root = measure_clade(shape, means, index, threshold=model.hierarchy.threshold)
    lowest = max(root.level, MIN_LEVEL)
    attachment = attachment_of(model, means, lowest)
    x, code = model.whitening(cells.mean).double().numpy(), cells.cell_type.numpy()
    by_population = [x[code == number] for number in range(len(cells.cell_types))]
    generator = numpy_generator(seed, "place")
    resampled = np.stack([resampled_means(of, n_bootstrap, generator) for of in by_population], axis=1)
    noise = means.variance + np.array([of.var(axis=0).sum() / len(of) for of in by_population])
    places = [attachment_of(model, MeasuredMeans(of_sample, noise), lowest) for of_sample in resampled]
    support = float(np.mean([place.branch == attachment.branch for place in places]))
    clades = clade_support(x, code, means.variance, n_bootstrap=n_bootstrap, seed=seed)
    taken = {*model.hierarchy.by_name, *cells.cell_types, *cells.labels, next_node_name(model.hierarchy)}
    branches = branches_of(root, None, cells, clades, inner_names(taken))
    return attachment, support, fitted_below(attachment, branches, nearer_to(model, means, cells), model)


def attachment_of(model: BranchedModel, means: MeasuredMeans, lowest: float) -> AttachmentPoint:
    """Return the attachment point of a type by the means of its populations, which separate at ``lowest``."""
    return attachment_point(model.hierarchy, squared_distances(model, means).to_dict(), lowest=lowest)


def nearer_to(model: BranchedModel, means: MeasuredMeans, cells: LatentCells) -> dict[str, str | None]:
    """Known type that is nearer to each new population than the others of its own type, see :func:`nearer_types`."""
    if len(means.mean) == 1:
        return {}
    known = MeasuredMeans.of(model.moments)
    both = MeasuredMeans(np.concatenate([known.mean, means.mean]), np.concatenate([known.variance, means.variance]))
    labels = (*(model.cell_type_of[name] for name in model.populations), *cells.labels)
    return dict(zip(cells.cell_types, nearer_types(both, labels)[len(known.mean) :], strict=True))


def fitted_below(
    attachment: AttachmentPoint, branches: list[Branch], nearer: dict[str, str | None], model: BranchedModel
) -> Hierarchy:
    """Hierarchy of the branches of a type, from the attachment point down."""
    level = attachment.level
    fitted = [replace(branch, level=min(branch.level, level), nearer_to=nearer.get(branch.name)) for branch in branches]
    return Hierarchy(tuple(fitted), sigma_max=level, threshold=model.hierarchy.threshold)


def updated_leaf(model: BranchedModel, population: str, n_cells: int) -> Hierarchy:
    """Hierarchy of the branch of a known population, down from where it is in the hierarchy of the model."""
    branch, segment = model.hierarchy.by_name[population], model.hierarchy.segment(population)
    leaf = Branch(population, None, 0.0, n_cells, cell_type=branch.cell_type)
    return Hierarchy((leaf,), sigma_max=segment.high, threshold=model.hierarchy.threshold)
