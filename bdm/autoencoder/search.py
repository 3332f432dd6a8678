"""The search for parts of groups of cells: Gaussian mixtures of latents, as large as held-out cells support."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from bdm._core.parallel import threads
from bdm._core.seeds import derive, numpy_generator
from bdm.errors import InputError
from bdm.settings import AutoencoderSettings

N_AXES = 8  # principal axes of a group's latents in which its parts are sought
MAX_COMPONENTS = 20  # of a group
MAX_CELLS = 3000  # of a group that choose the number of components; all others only join one
N_FOLDS = 4  # of the cells, each held out once
N_DRAWS = 2  # samples of each cell's posterior
MIN_GAIN = 1  # of held-out cells' log likelihood, in standard errors, by one component more
N_STARTS = 3  # of each mixture; of one, it may be so poor that one component more seems to gain
PATIENCE = 3  # numbers of components without a gain after which none is tried
MIN_VARIANCE = 0.02  # added to the variances of components, as a share of the group's variance along an axis


@dataclass(frozen=True)
class GroupLatents:
    """Posteriors of the latents of cells of one group, each cells x latent dimensions."""

    name: str
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, name: str, mean: Tensor, scale: Tensor) -> GroupLatents:
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
    """Leading principal axes of the latents of a group.

    Attributes
    ----------
    centre, scale
        Mean and standard deviation of each latent dimension.
    directions
        Axes x latent dimensions, of standardised latents.
    """

    centre: np.ndarray
    scale: np.ndarray
    directions: np.ndarray

    @classmethod
    def of(cls, cells: GroupLatents) -> Axes:
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
    """Find the parts of each group of cells in their latents.

    A Gaussian mixture with full covariances is fitted to samples of the posteriors in the leading axes of the group,
    with as many components as make held-out cells more likely (cross-validation), or as many as the settings ask for.

    Parameters
    ----------
    mean, scale
        Mean and standard deviation of posteriors, cells x latent dimensions.
    group
        Index of each cell's group among ``names``.

    Returns
    -------
    Number of the part that each cell belongs to; 0 for all cells of a group that is one population.

    Raises
    ------
    InputError
        If the settings ask for more parts than the cells of any group allow.
    """
    part = np.zeros(len(mean), dtype=np.int64)
    if settings.sub_populations == 1:
        return part
    check_enough_cells(torch.bincount(group, minlength=len(names)), names, settings)

    def cells_of_groups() -> Iterator[tuple[Tensor, GroupLatents]]:
        for code, name in enumerate(names):
            rows = torch.nonzero(group == code).squeeze(1)
            yield rows, GroupLatents.of(name, mean[rows], scale[rows])

    def divided(of_group: tuple[Tensor, GroupLatents]) -> tuple[Tensor, np.ndarray]:
        rows, cells = of_group
        return rows, parts_of_group(cells, settings, seed=seed)

    # In threads, scikit-learn may leave behind filters that it sets for the time of a check
    with warnings.catch_warnings(), threads() as run:
        for rows, parts in run(divided, cells_of_groups()):
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
    axes, generator = Axes.of(sampled), numpy_generator(seed, "posteriors", cells.name)
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

    A number is better than another if the gain by cell is above its standard error.

    Parameters
    ----------
    draws
        Samples of the cells, each cells x axes.
    fold
        Number of the fold in which each cell is held out.
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
    mixture = GaussianMixture(
        n_components, reg_covar=MIN_VARIANCE, n_init=N_STARTS, max_iter=300, tol=1e-2, random_state=random_state
    )
    return mixture.fit(np.concatenate(draws))
