"""Sub-populations of cell types: the search for parts of groups of cells, and the classifier that these become."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.errors import InputError, abbreviated
from bdm._core.parallel import threads
from bdm._core.seeds import derive, numpy_generator
from bdm.data.filters import effective_donors, largest_shares
from bdm.settings import AutoencoderSettings

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

logger = logging.getLogger(__name__)

# Of the search: Gaussian mixtures of latents, as large as held-out cells support
N_AXES = 8  # principal axes of a group's latents in which its parts are sought
MAX_COMPONENTS = 20  # of a group
MAX_CELLS = 3000  # of a group that choose the number of components; all others only join one
N_FOLDS = 4  # of the cells, each held out once
N_DRAWS = 2  # samples of each cell's posterior
MIN_GAIN = 1  # of held-out cells' log likelihood, in standard errors, by one component more
N_STARTS = 3  # of each mixture; of one, it may be so poor that one component more seems to gain
PATIENCE = 3  # numbers of components without a gain after which none is tried
MIN_VARIANCE = 0.02  # added to the variances of components, as a share of the group's variance along an axis
# Of the classifier
N_SHRINK = 50  # cells at which the covariance of a sub-population weighs as much as the pooled one
MIN_SHARE = 1e-3  # of the pooled variances, added to the variances of each sub-population
MAX_PRIOR_DEVIATION = 3.0  # of the mean of a sub-population from the mean of its type, in prior standard deviations


@dataclass(frozen=True)
class GroupLatents:
    """Posteriors of the latents of cells of one group, each cells x latent dimensions."""

    name: str
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def from_posteriors(cls, name: str, mean: Tensor, scale: Tensor) -> GroupLatents:
        """Take the posteriors of the cells of a group."""
        return cls(name, mean.double().numpy(), scale.double().numpy())

    def sampled(self, *, seed: int) -> GroupLatents:
        """Sample ``MAX_CELLS`` of the cells at random; all if there are no more."""
        if len(self.mean) <= MAX_CELLS:
            return self
        generator = numpy_generator(seed, "sub-populations", self.name)
        rows = np.sort(generator.choice(len(self.mean), MAX_CELLS, replace=False))
        return GroupLatents(self.name, self.mean[rows], self.scale[rows])


@dataclass(frozen=True)
class Axes:
    """Leading principal axes of the latents of a group."""

    centre: np.ndarray  # mean of each latent dimension
    scale: np.ndarray  # standard deviation of each
    directions: np.ndarray  # axes x latent dimensions, of standardised latents

    @classmethod
    def from_latents(cls, cells: GroupLatents) -> Axes:
        """Find the axes in which the posterior means of cells vary most, in units of their spread."""
        centre = cells.mean.mean(axis=0)
        scale = np.sqrt(cells.mean.var(axis=0) + (cells.scale**2).mean(axis=0))
        standardised = (cells.mean - centre) / scale
        n_cells, n_latent = standardised.shape  # fewer cells than axes leave the last axes arbitrary
        directions = np.linalg.svd(standardised, full_matrices=n_cells < n_latent)[2][:N_AXES]
        return cls(centre, scale, directions)

    def __call__(self, latent: np.ndarray) -> np.ndarray:
        """Coordinates of latents, cells x axes."""
        return np.asarray(((latent - self.centre) / self.scale) @ self.directions.T)


def find_parts(
    mean: Tensor,
    scale: Tensor,
    group: Tensor,
    names: Sequence[str],
    settings: AutoencoderSettings,
    *,
    seed: int,
) -> np.ndarray:
    """Find the number of each cell's part of its group; 0 throughout a group that is one population.

    A Gaussian mixture with full covariances is fitted to samples of the posteriors in the leading axes of the group,
    with as many components as make held-out cells more likely (cross-validation), or as many as the settings ask for.
    ``mean`` and ``scale`` of posteriors are cells x latent dimensions; ``group`` is an index among ``names``.
    """
    part = np.zeros(len(mean), dtype=np.int64)
    if settings.sub_populations == 1:
        return part
    check_enough_cells(torch.bincount(group, minlength=len(names)), names, settings)

    def divided(code: int) -> tuple[Tensor, np.ndarray]:
        rows = torch.nonzero(group == code).squeeze(1)
        cells = GroupLatents.from_posteriors(names[code], mean[rows], scale[rows])
        return rows, parts_of_group(cells, settings, seed=seed)

    # In threads, scikit-learn may leave behind filters that it sets for the time of a check
    with warnings.catch_warnings(), threads() as run:
        for rows, parts in run(divided, range(len(names))):
            part[rows.numpy()] = parts
    return part


def check_enough_cells(n_cells: Tensor, names: Sequence[str], settings: AutoencoderSettings) -> None:
    """Reject a number of sub-populations for which no type has cells."""
    if not isinstance(settings.sub_populations, int):
        return
    needed = settings.sub_populations * settings.min_cells_per_sub_population
    if int(n_cells.max()) < needed:
        raise InputError(
            f"No cell type has {needed} cells to fit, for {settings.sub_populations} sub-populations of "
            f"{settings.min_cells_per_sub_population} cells; lower `sub_populations` or `min_cells_per_sub_population`."
        )


def parts_of_group(cells: GroupLatents, settings: AutoencoderSettings, *, seed: int) -> np.ndarray:
    """Find the number of the part that each cell of a group belongs to; 0 for all of one population."""
    sampled = cells.sampled(seed=seed)
    n_cells, smallest = len(sampled.mean), settings.min_cells_per_sub_population
    most = min(MAX_COMPONENTS, n_cells // smallest)
    if isinstance(settings.sub_populations, int):
        most = min(settings.sub_populations, n_cells // smallest)
    one_population = np.zeros(len(cells.mean), dtype=np.int64)
    if settings.sub_populations == "none" or most < 2 or not (sampled.mean.std(axis=0) > 0).any():
        return one_population
    axes, generator = Axes.from_latents(sampled), numpy_generator(seed, "posteriors", cells.name)
    draws = [axes(sampled.mean + sampled.scale * generator.standard_normal(sampled.mean.shape)) for _ in range(N_DRAWS)]
    random_state = derive(seed, "mixture", cells.name) % 2**32
    n_components = most
    if settings.sub_populations == "auto":
        fold = generator.permutation(n_cells) % N_FOLDS
        n_components = supported_number(draws, fold, most=most, random_state=random_state)
    while n_components > 1:
        mixture = fit_mixture(draws, n_components, random_state=random_state)
        if np.bincount(mixture.predict(axes(sampled.mean)), minlength=n_components).min() >= smallest:
            return np.asarray(mixture.predict(axes(cells.mean)))
        n_components -= 1
    return one_population


def supported_number(draws: Sequence[np.ndarray], fold: np.ndarray, *, most: int, random_state: int) -> int:
    """Find the number of components with which held-out cells are most likely, by cross-validation.

    A number is better than another if the gain by cell is above its standard error. Draws are cells x axes each.
    """
    best, reference = 1, held_out_likelihood(draws, fold, 1, random_state=random_state)
    for n_components in range(2, most + 1):
        likelihood = held_out_likelihood(draws, fold, n_components, random_state=random_state)
        gain = likelihood - reference
        if gain.mean() * np.sqrt(len(gain)) > MIN_GAIN * gain.std():
            best, reference = n_components, likelihood
        elif n_components - best >= PATIENCE:
            break
    return best


def held_out_likelihood(
    draws: Sequence[np.ndarray], fold: np.ndarray, n_components: int, *, random_state: int
) -> np.ndarray:
    """Log likelihood of each cell, averaged over its samples, by a mixture that was fitted without its fold."""
    likelihood = np.empty(len(fold))
    for number in np.unique(fold):
        held_out = fold == number
        mixture = fit_mixture([draw[~held_out] for draw in draws], n_components, random_state=random_state)
        likelihood[held_out] = np.mean([mixture.score_samples(draw[held_out]) for draw in draws], axis=0)
    return likelihood


def fit_mixture(draws: Sequence[np.ndarray], n_components: int, *, random_state: int) -> GaussianMixture:
    """Fit a Gaussian mixture with full covariances to samples of cells."""
    from sklearn.mixture import GaussianMixture  # here, as only fits need what takes a second to import

    mixture = GaussianMixture(
        n_components, reg_covar=MIN_VARIANCE, n_init=N_STARTS, max_iter=300, tol=1e-2, random_state=random_state
    )
    return mixture.fit(np.concatenate(draws))


@dataclass(frozen=True, eq=False)
class SubPopulations:
    """Sub-populations of cell types that have several, as a classifier of a type's latents.

    Latents are those of the label, see :meth:`bdm.autoencoder.autoencoder.GeneAutoencoder.label_network`. The log
    density of sub-population k at z is ``log_density[k] - |axes[k] (z - mean[k])|**2 / 2`` up to a constant.
    """

    names: tuple[str, ...]  # those of a type together, the largest first: T cell/1, T cell/2
    cell_type: tuple[str, ...]  # of each
    axes: Tensor  # inverse roots of the covariances, sub-populations x latent dimensions x latent dimensions
    mean: Tensor  # sub-populations x latent dimensions
    log_density: Tensor  # log share of the type's cells, plus the log determinant of the axes

    @classmethod
    def none(cls, n_latent: int) -> SubPopulations:
        """No type has several."""
        return cls((), (), torch.empty(0, n_latent, n_latent), torch.empty(0, n_latent), torch.empty(0))

    def __len__(self) -> int:
        return len(self.names)

    def rows_of(self, cell_type: str) -> list[int]:
        """Rows of the sub-populations of a cell type; none if it is one population."""
        return [row for row, name in enumerate(self.cell_type) if name == cell_type]

    def populations_of(self, cell_type: str) -> tuple[str, ...]:
        """Names of the populations of a cell type: its sub-populations, or the type itself."""
        return tuple(self.names[row] for row in self.rows_of(cell_type)) or (cell_type,)

    def divide(self, cell_type: str, mean: Tensor, scale: Tensor, prior_mean: Tensor) -> tuple[np.ndarray, Tensor]:
        """Name the sub-population of each cell of a type, and compute the prior means of :meth:`populations_of`.

        ``mean`` and ``scale`` are posteriors under the prior of the type, cells x latent dimensions.
        """
        assigned, names = self.assign(cell_type, mean), self.populations_of(cell_type)
        groups = [assigned == number for number in range(len(names))]
        means = [prior_means(mean[group], scale[group], prior_mean) for group in groups]
        return np.array(names, dtype=object)[assigned], torch.stack(means)

    def assign(self, cell_type: str, latent: Tensor) -> Tensor:
        """Most probable sub-population of cells of a type (latents of the label), in :meth:`populations_of`."""
        densities = [
            self.log_density[row] - ((latent - self.mean[row]) @ self.axes[row].T).square().sum(dim=1) / 2
            for row in self.rows_of(cell_type)
        ]
        return torch.stack(densities).argmax(dim=0)


def classify(
    cell_type: str,
    mean: Tensor,
    part: np.ndarray,
    *,
    prefix: str,
    smallest: int,
    donor: pd.Series | None = None,
    min_donors: int = 1,
) -> SubPopulations:
    """Make parts of a cell type its sub-populations; none if fewer than two parts are large enough.

    They are recognised by normal distributions in the latent space, with covariances that are shrunk towards the pooled
    one (quadratic discriminant analysis). Parts to which fewer than ``smallest`` cells are assigned are left out, the
    smallest first; then those of fewer than ``min_donors`` effective donors, the fewest first. Cells of these join
    others.
    """
    parts, latent = np.unique(part).tolist(), mean.double()
    while len(parts) > 1:
        groups = [latent[part == number] for number in parts]
        n_cells = torch.tensor([len(group) for group in groups])
        order = torch.argsort(n_cells, descending=True, stable=True).tolist()
        groups, parts = [groups[row] for row in order], [parts[row] for row in order]
        names = tuple(f"{prefix}{number}" for number in range(1, len(parts) + 1))
        found = SubPopulations(names, (cell_type,) * len(parts), *normal_densities(groups))
        assigned = found.assign(cell_type, mean)
        n_assigned = assigned.bincount(minlength=len(parts))
        if n_assigned.min() < smallest:
            del parts[int(n_assigned.argmin())]
            continue
        if donor is None:
            return found
        n_donors = effective_donors(pd.Series(assigned.numpy()), donor)
        if n_donors.min() >= min_donors:
            return found
        del parts[int(n_donors.argmin())]
    return SubPopulations.none(mean.shape[1])


def warn_of_fewer(found: SubPopulations, cell_types: Sequence[str], number: int, *, each_needs: str) -> None:
    """Name the cell types with fewer sub-populations than were asked for."""
    n_found = Counter(found.cell_type)
    fewer = [f"{name!r} ({max(n_found[name], 1)})" for name in cell_types if max(n_found[name], 1) < number]
    if fewer:
        logger.warning(
            "Fewer than %d sub-populations, as each needs %s: %s.", number, each_needs, abbreviated(fewer, n_shown=5)
        )


def hint_at_donors(obs: pd.DataFrame, found: SubPopulations) -> None:
    """Name the sub-populations with more than half of their cells of one donor."""
    share = largest_shares(obs["sub_population"], obs["donor"])
    of_one = [f"{name} ({share[name]:.0%})" for name in found.names if share.get(name, 0) > 1 / 2]
    if of_one:
        logger.warning(
            "Sub-populations with more than half of their cells of one donor: %s; to form none, prepare the cells with "
            "`settings.prepare.min_donors=5`.",
            abbreviated(of_one, n_shown=5),
        )


def normal_densities(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Axes, means and constants of the log densities of groups of latents, as :class:`SubPopulations` has them."""
    n_cells = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    means = torch.stack([group.mean(dim=0) for group in groups])
    away = [group - mean for group, mean in zip(groups, means, strict=True)]
    own = torch.stack([of_group.T @ of_group / len(of_group) for of_group in away])
    share = n_cells / n_cells.sum()
    pooled = torch.einsum("k,kij->ij", share, own)
    pooled = pooled + torch.diag(MIN_SHARE * pooled.diagonal() + torch.finfo(torch.float32).tiny)
    weight = (n_cells / (n_cells + N_SHRINK))[:, None, None]
    axes = torch.linalg.inv(torch.linalg.cholesky(weight * own + (1 - weight) * pooled))
    log_density = share.log() + axes.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return axes.float(), means.float(), log_density.float()


def prefixes_of(cell_types: Sequence[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Choose what the names of the sub-populations of each cell type are before the number: ``T cell/``.

    Slashes are added while other names (of types, or ``taken``) are of that form: with the types ``T`` and ``T/1``,
    sub-populations of ``T`` are ``T//1``, ``T//2`` and so on.
    """
    names = {*cell_types, *taken}
    used, prefixes = {name.rstrip("0123456789") for name in names if name[-1:] in "0123456789"}, {}
    for cell_type in cell_types:
        prefix = f"{cell_type}/"
        while prefix in used:
            prefix += "/"
        used.add(prefix)
        prefixes[cell_type] = prefix
    return prefixes


def prior_means(mean: Tensor, scale: Tensor, prior_mean: Tensor) -> Tensor:
    """Mean of the latents of a population, from posteriors of its cells under the prior of their cell type.

    In each dimension, posterior means are shrunk towards the prior mean by the posterior variance (as the prior has
    unit variance). The mean is shrunk back by that, and stays near the prior mean where cells say little.
    """
    n_cells = len(mean)
    known = n_cells * (1 - (scale**2).mean(dim=0)).clamp(min=0)
    return prior_mean + n_cells * (mean.mean(dim=0) - prior_mean) / (known + MAX_PRIOR_DEVIATION**-2)
