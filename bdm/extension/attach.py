"""Where a new cell type leaves the hierarchy: its distances to known types, its attachment point, and its own tree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from bdm.hierarchy.build import MIN_LEVEL, branches_of, clade_support, inner_names, measure_clade, resampled_means
from bdm.hierarchy.grow import AttachmentPoint, attachment_point, next_node_name
from bdm.hierarchy.means import MeasuredMeans
from bdm.hierarchy.sub_populations import clades_of_types, nearer_types
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import PopulationMoments
from bdm.model.model import BranchedModel
from bdm.seeds import numpy_generator


@dataclass(frozen=True)
class Attached:
    """Where a cell type or population is in the hierarchy of a model, and its branches from there down.

    Attributes
    ----------
    attachment
        Where a new cell type leaves the hierarchy; None for an updated population, which stays where it is.
    support
        Share of resamples of its cells that leave the same branch; None without resamples.
    tree
        A leaf, or the clade of its populations, with the support of its inner nodes.
    """

    attachment: AttachmentPoint | None
    support: float | None
    tree: Hierarchy

    @property
    def neighbour(self) -> str:
        """Known branch that it leaves or replaces."""
        return self.tree.root.name if self.attachment is None else self.attachment.branch


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


def attached(
    model: BranchedModel, cells: LatentCells, moments: PopulationMoments, *, n_bootstrap: int, seed: int
) -> Attached:
    """Find where a new cell type leaves the hierarchy of a model, and the tree of its populations.

    Parameters
    ----------
    cells, moments
        Of the populations of the type.
    """
    means = MeasuredMeans.of(moments)
    (shape,) = clades_of_types(means, cells.populations, cells.labels).values()
    index = {name: row for row, name in enumerate(cells.populations)}
    root = measure_clade(shape, means, index, threshold=model.hierarchy.threshold)
    attachment = attachment_of(model, means, lowest := max(root.level, MIN_LEVEL))
    x, code = model.whitening(cells.mean).double().numpy(), cells.population.numpy()
    clades = clade_support(x, code, means.variance, cells.labels, n_bootstrap=n_bootstrap, seed=seed)
    names = {*cells.populations, *cells.labels}
    taken = {*model.hierarchy.by_name, *names, next_node_name(model.hierarchy, taken=names)}
    branches = branches_of(root, None, cells, clades, inner_names(taken))
    tree = fitted_below(attachment, branches, nearer_to(model, means, cells), model)
    if not n_bootstrap:
        return Attached(attachment, None, tree)
    by_population = [x[code == number] for number in range(len(cells.populations))]
    resamples = resampled(by_population, means.variance, n_bootstrap, numpy_generator(seed, "place"))
    same = [attachment_of(model, resample, lowest).branch == attachment.branch for resample in resamples]
    return Attached(attachment, float(np.mean(same)), tree)


def resampled(
    cells: list[np.ndarray], variance: np.ndarray, n_bootstrap: int, generator: np.random.Generator
) -> Iterator[MeasuredMeans]:
    """Means of resamples of the cells of each population (cells x dimensions), with the noise of both samplings."""
    means = np.stack([resampled_means(of_population, n_bootstrap, generator) for of_population in cells], axis=1)
    noise = variance + np.array([of_population.var(axis=0).sum() / len(of_population) for of_population in cells])
    return (MeasuredMeans(of_resample, noise) for of_resample in means)


def attachment_of(model: BranchedModel, means: MeasuredMeans, lowest: float) -> AttachmentPoint:
    """Return the attachment point of a type by the means of its populations, which separate at ``lowest``."""
    return attachment_point(model.hierarchy, squared_distances(model, means).to_dict(), lowest=lowest)


def nearer_to(model: BranchedModel, means: MeasuredMeans, cells: LatentCells) -> dict[str, str | None]:
    """Known type that is nearer to each new population than the others of its own type, see :func:`nearer_types`."""
    if len(means.mean) == 1:
        return {}
    known = MeasuredMeans.of(model.moments)
    both = MeasuredMeans(np.concatenate([known.mean, means.mean]), np.concatenate([known.variance, means.variance]))
    cell_type_of = model.cell_type_of
    labels = (*(cell_type_of[name] for name in model.populations), *cells.labels)
    return dict(zip(cells.populations, nearer_types(both, labels)[len(known.mean) :], strict=True))


def fitted_below(
    attachment: AttachmentPoint, branches: list[Branch], nearer: dict[str, str | None], model: BranchedModel
) -> Hierarchy:
    """Hierarchy of the branches of a type, from the attachment point down."""
    level = attachment.level
    fitted = [replace(branch, level=min(branch.level, level), nearer_to=nearer.get(branch.name)) for branch in branches]
    return Hierarchy(tuple(fitted), sigma_max=level, threshold=model.hierarchy.threshold)


def attached_already(model: BranchedModel, population: str, *, n_cells: int) -> Attached:
    """Find where a known population is in the hierarchy of a model, with the number of its cells that are new."""
    branch, segment = model.hierarchy.by_name[population], model.hierarchy.segment(population)
    leaf = Branch(population, None, 0.0, n_cells, cell_type=branch.cell_type)
    return Attached(None, None, Hierarchy((leaf,), sigma_max=segment.high, threshold=model.hierarchy.threshold))
