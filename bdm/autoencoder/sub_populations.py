"""Sub-populations of cell types: Gaussian mixtures of latents, with as many components as held-out cells support."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor

from bdm.errors import InputError
from bdm.seeds import derive, numpy_generator
from bdm.settings import AutoencoderSettings
from bdm.text import abbreviated
from bdm.threads import threads

logger = logging.getLogger(__name__)

N_AXES = 8  # principal axes of a type's latents in which its sub-populations are sought
MOST_COMPONENTS = 20  # of a type
MOST_CELLS = 3000  # of a type that choose the number of components; all others only join one
N_FOLDS = 4  # of the cells, each held out once
N_DRAWS = 2  # samples of each cell's posterior
LEAST_GAIN = 1  # of held-out cells' log likelihood, in standard errors, by one component more
N_STARTS = 3  # of each mixture; of one, it may be so poor that one component more seems to gain
PATIENCE = 3  # numbers of components without a gain after which none is tried
SMALLEST_VARIANCE = 0.02  # added to the variances of components, as a share of the type's variance along an axis
FARTHEST = 3.0  # standard deviation of the mean of a sub-population around the mean of its type, in prior deviations


@dataclass(frozen=True, eq=False)
class SubPopulations:
    """Sub-populations of cell types that have several, as a classifier of a type's latents.

    Latents are those of the label: of cells that are encoded by the shared decoder with the prior of their cell type,
    see :meth:`bdm.autoencoder.storage.GeneAutoencoder.label_network`.
    The log density of sub-population k at latent z is ``log_density[k] - |axes[k] (z - mean[k])|**2 / 2`` up to a
    constant.

    Attributes
    ----------
    names
        Names of the sub-populations, those of a type together, the largest first: ``T cell/1``, ``T cell/2``.
    cell_type
        Cell type of each.
    axes
        Sub-populations x axes x latent dimensions.
    mean
        Sub-populations x latent dimensions.
    log_density
        Log share of the type's cells, plus the logarithm of the determinant of the axes.
    """

    names: tuple[str, ...]
    cell_type: tuple[str, ...]
    axes: Tensor
    mean: Tensor
    log_density: Tensor

    @classmethod
    def none(cls, n_latent: int) -> SubPopulations:
        """No type has several."""
        return cls((), (), torch.empty(0, min(N_AXES, n_latent), n_latent), torch.empty(0, n_latent), torch.empty(0))

    @classmethod
    def of_tensors(
        cls, names: tuple[str, ...], cell_type: tuple[str, ...], tensors: dict[str, Tensor], *, n_latent: int
    ) -> SubPopulations:
        """Make them again from their tensors.

        Raises
        ------
        ValueError
            If the tensors have other shapes than names and latent dimensions ask for, or a name is twice.
        """
        found = cls(names, cell_type, **tensors)
        for name, value in cls.none(n_latent).tensors().items():
            shape = tuple(found.tensors()[name].shape)
            if shape != (len(names), *value.shape[1:]):
                raise ValueError(f"{name} of sub-populations have the shape {shape}")
        if len(set(names)) < len(names) or len(cell_type) != len(names):
            raise ValueError("sub-populations without names or cell types of their own")
        return found

    def __len__(self) -> int:
        return len(self.names)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)[2:]}

    def rows_of(self, cell_type: str) -> list[int]:
        """Rows of the sub-populations of a cell type; none if it is one population."""
        return [row for row, name in enumerate(self.cell_type) if name == cell_type]

    def populations_of(self, cell_type: str) -> tuple[str, ...]:
        """Names of the populations of a cell type: its sub-populations, or the type itself."""
        return tuple(self.names[row] for row in self.rows_of(cell_type)) or (cell_type,)

    def joined(self, other: SubPopulations) -> SubPopulations:
        """Add the sub-populations of other cell types."""
        tensors = {name: torch.cat([value, getattr(other, name)]) for name, value in self.tensors().items()}
        return SubPopulations(self.names + other.names, self.cell_type + other.cell_type, **tensors)

    def divide(self, cell_type: str, mean: Tensor, scale: Tensor, prior_mean: Tensor) -> tuple[np.ndarray, Tensor]:
        """Assign the cells of a type to its sub-populations.

        Parameters
        ----------
        mean, scale
            Posteriors of the cells under the prior of their type, cells x latent dimensions.
        prior_mean
            Prior mean of the type, latent dimensions.

        Returns
        -------
        Name of the sub-population of each cell; and the prior mean of each sub-population, in the order of
        :meth:`populations_of`.
        """
        assigned, names = self.assign(cell_type, mean), self.populations_of(cell_type)
        groups = [assigned == number for number in range(len(names))]
        means = [prior_means(mean[group], scale[group], prior_mean) for group in groups]
        return np.array(names, dtype=object)[assigned], torch.stack(means)

    def assign(self, cell_type: str, latent: Tensor) -> Tensor:
        """Most probable sub-population of cells of a type, among :meth:`populations_of`.

        Parameters
        ----------
        latent
            Latents of the label, cells x latent dimensions.
        """
        rows = self.rows_of(cell_type)
        away = latent[:, None] - self.mean[rows]
        along = torch.einsum("kal,nkl->nka", self.axes[rows], away)
        return (self.log_density[rows] - (along**2).sum(dim=2) / 2).argmax(dim=1)


@dataclass(frozen=True)
class TypeLatents:
    """Posteriors of the latents of cells of one type, each cells x latent dimensions."""

    cell_type: str
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, cell_type: str, mean: Tensor, scale: Tensor, *, seed: int) -> TypeLatents:
        """Take the posteriors of the cells of a type, or a random sample if there are more than ``MOST_CELLS``."""
        rows = np.arange(len(mean))
        if len(rows) > MOST_CELLS:
            rows = np.sort(numpy_generator(seed, "sub-populations", cell_type).choice(rows, MOST_CELLS, replace=False))
        return cls(cell_type, mean[rows].double().numpy(), scale[rows].double().numpy())


@dataclass(frozen=True)
class Axes:
    """Leading principal axes of the latents of a cell type.

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
    def of(cls, cells: TypeLatents) -> Axes:
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


def find_sub_populations(
    mean: Tensor,
    scale: Tensor,
    cell_type: Tensor,
    cell_types: Sequence[str],
    settings: AutoencoderSettings,
    *,
    seed: int,
) -> SubPopulations:
    """Find the sub-populations of each cell type in the latents of its cells.

    A Gaussian mixture with full covariances is fitted to samples of the posteriors in the leading axes of the type,
    with as many components as make held-out cells more likely (cross-validation), or as many as the settings ask for.

    Parameters
    ----------
    mean, scale
        Mean and standard deviation of posteriors, cells x latent dimensions.
    cell_type
        Index of each cell's type among ``cell_types``.

    Raises
    ------
    InputError
        If the settings ask for more sub-populations than the cells of any type allow.
    """
    n_latent = mean.shape[1]
    if settings.sub_populations == "none":
        return SubPopulations.none(n_latent)
    check_enough_cells(torch.bincount(cell_type, minlength=len(cell_types)), cell_types, settings)

    def latents() -> Iterator[TypeLatents]:
        for code, name in enumerate(cell_types):
            rows = torch.nonzero(cell_type == code).squeeze(1)
            yield TypeLatents.of(name, mean[rows], scale[rows], seed=seed)

    def of_type(cells: TypeLatents) -> SubPopulations:
        return sub_populations_of(cells, prefixes[cells.cell_type], settings, seed=seed)

    prefixes = prefixes_of(cell_types)
    found = SubPopulations.none(n_latent)
    # In threads, scikit-learn may leave behind filters that it sets for the time of a check
    with warnings.catch_warnings(), threads() as run:
        for more in run(of_type, latents()):
            found = found.joined(more)
    return found


def check_enough_cells(n_cells: Tensor, cell_types: Sequence[str], settings: AutoencoderSettings) -> None:
    """Reject a number of sub-populations for which no type has cells, and warn of types that have too few."""
    if not isinstance(settings.sub_populations, int):
        return
    needed = settings.sub_populations * settings.min_cells_per_sub_population
    small = [name for name, n in zip(cell_types, n_cells.tolist(), strict=True) if n < needed]
    if len(small) == len(cell_types):
        raise InputError(
            f"No cell type has {needed} cells to fit, for {settings.sub_populations} sub-populations of "
            f"{settings.min_cells_per_sub_population} cells; lower `sub_populations` or `min_cells_per_sub_population`."
        )
    if small:
        names = abbreviated(list(map(repr, small)), n_shown=5)
        logger.warning(
            "Fewer than %d sub-populations, as there are fewer than %d cells: %s.",
            settings.sub_populations,
            needed,
            names,
        )


def sub_populations_of(cells: TypeLatents, prefix: str, settings: AutoencoderSettings, *, seed: int) -> SubPopulations:
    """Find the sub-populations of one cell type; none where it is one population.

    Parameters
    ----------
    prefix
        What their names are before the number.
    """
    n_latent, smallest = cells.mean.shape[1], settings.min_cells_per_sub_population
    most = min(MOST_COMPONENTS, len(cells.mean) // smallest)
    if isinstance(settings.sub_populations, int):
        most = min(settings.sub_populations, len(cells.mean) // smallest)
    if settings.sub_populations == "none" or most < 2 or not (cells.mean.std(axis=0) > 0).any():
        return SubPopulations.none(n_latent)
    axes, generator = Axes.of(cells), numpy_generator(seed, "posteriors", cells.cell_type)
    draws = [axes(cells.mean + cells.scale * generator.standard_normal(cells.mean.shape)) for _ in range(N_DRAWS)]
    random_state = derive(seed, "mixture", cells.cell_type) % 2**32
    n_components = most
    if settings.sub_populations == "auto":
        fold = generator.permutation(len(cells.mean)) % N_FOLDS
        n_components = supported_number(draws, fold, most=most, random_state=random_state)
    while n_components > 1:
        mixture = fit_mixture(draws, n_components, random_state=random_state)
        n_cells = np.bincount(mixture.predict(axes(cells.mean)), minlength=n_components)
        if n_cells.min() >= smallest:
            return classifier(cells.cell_type, mixture, axes, n_cells, prefix)
        n_components -= 1
    return SubPopulations.none(n_latent)


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
        if gain.mean() * np.sqrt(len(gain)) > LEAST_GAIN * gain.std():
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
        n_components, reg_covar=SMALLEST_VARIANCE, n_init=N_STARTS, max_iter=300, tol=1e-2, random_state=random_state
    )
    return mixture.fit(np.concatenate(draws))


def classifier(
    cell_type: str, mixture: GaussianMixture, axes: Axes, n_cells: np.ndarray, prefix: str
) -> SubPopulations:
    """Name the components of the mixture of a type, the largest first, and write them in latent dimensions."""
    order = np.argsort(-n_cells, kind="stable")
    directions = axes.directions / axes.scale
    roots = mixture.precisions_cholesky_[order].transpose(0, 2, 1)
    means = axes.centre + axes.scale * (mixture.means_[order] @ axes.directions)
    log_determinant = np.log(np.diagonal(roots, axis1=1, axis2=2)).sum(axis=1)
    tensors = (roots @ directions, means, np.log(mixture.weights_[order]) + log_determinant)
    names = tuple(f"{prefix}{number}" for number in range(1, len(order) + 1))
    return SubPopulations(names, (cell_type,) * len(order), *(torch.from_numpy(value).float() for value in tensors))


def prefixes_of(cell_types: Sequence[str], taken: Collection[str] = ()) -> dict[str, str]:
    """Choose what the names of the sub-populations of each cell type are before the number: ``T cell/``.

    It has as many slashes as no name needs to be twice, of sub-populations of all types, of cell types and of what is
    ``taken``: with the types ``T`` and ``T/1``, sub-populations of ``T`` are ``T//1``, ``T//2`` and so on.
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

    Posterior means are shrunk towards the prior mean, in each dimension by the share of the prior in the precision,
    which is the posterior variance where the prior has unit variance. The mean is shrunk back by that, and stays near
    the prior mean where cells say little.

    Parameters
    ----------
    mean, scale
        Posteriors of the cells, cells x latent dimensions.
    prior_mean
        Prior mean of the cell type, latent dimensions.
    """
    n_cells = len(mean)
    known = n_cells * (1 - (scale**2).mean(dim=0)).clamp(min=0)
    return prior_mean + n_cells * (mean.mean(dim=0) - prior_mean) / (known + FARTHEST**-2)
