"""Sub-populations of cell types: clustering by Gaussian mixtures, and classification."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.errors import InputError, abbreviated
from bdm._core.parallel import threads
from bdm._core.progress import progress
from bdm._core.seeds import derive, numpy_generator
from bdm.data.filters import effective_donors, largest_shares
from bdm.settings import AutoencoderSettings

if TYPE_CHECKING:
    from sklearn.mixture import GaussianMixture

logger = logging.getLogger(__name__)

# ---- clustering: Gaussian mixtures, with the number of components from cross-validation

N_AXES = 8  # leading principal axes of a group's latents
MAX_COMPONENTS = 20  # per group
MAX_CELLS = 3000  # cells per group to fit mixtures to; the others are only assigned
N_FOLDS = 4  # of the cross-validation
N_DRAWS = 2  # samples from each cell's posterior
MIN_GAIN = 1  # required gain in log likelihood for more components, in standard errors
N_STARTS = 3  # initialisations of a mixture; a single poor one would favour more components
PATIENCE = 3  # stop after this many numbers of components without a gain
MIN_VARIANCE = 0.02  # added to component variances, relative to the variance of standardised latents


def find_parts(
    mean: Tensor,
    scale: Tensor,
    group: Tensor,
    names: Sequence[str],
    settings: AutoencoderSettings,
    *,
    seed: int,
) -> np.ndarray:
    """Divide each group of cells into parts by a Gaussian mixture.

    Mixtures have full covariances and are fitted to samples from the posteriors (``mean`` and ``scale``, cells x latent
    dimensions), projected to the leading axes of the group. The number of components is set by the settings or chosen
    by cross-validation. ``group`` is the index of each cell's group in ``names``.

    Returns the number of each cell's part within its group; 0 for all cells of an undivided group.
    """
    part = np.zeros(len(mean), dtype=np.int64)
    if settings.sub_populations == 1:
        return part
    needed = settings.min_cells_per_sub_population
    if isinstance(settings.sub_populations, int) and int(group.bincount().max()) < settings.sub_populations * needed:
        raise InputError(
            f"No cell type has {settings.sub_populations * needed} cells to fit, for {settings.sub_populations} "
            f"sub-populations of {needed} cells; lower `sub_populations` or `min_cells_per_sub_population`."
        )

    def divide_group(code: int) -> tuple[Tensor, np.ndarray]:
        rows = torch.nonzero(group == code).squeeze(1)
        return rows, parts_of_group(names[code], mean[rows], scale[rows], settings, seed=seed)

    # scikit-learn sets warning filters temporarily, which is not thread-safe and may leave them behind
    with warnings.catch_warnings(), threads() as run:
        divided = run(divide_group, range(len(names)))
        for rows, parts in progress(divided, doing="finding sub-populations", total=len(names), unit="group"):
            part[rows.numpy()] = parts
    return part


def parts_of_group(name: str, mean: Tensor, scale: Tensor, settings: AutoencoderSettings, *, seed: int) -> np.ndarray:
    """Return the number of each cell's part by its posterior; 0 throughout an undivided group."""
    latents = sampled, sampled_scale = np.stack([mean, scale]).astype(float)
    if len(mean) > MAX_CELLS:
        chosen = numpy_generator(seed, "sub-populations", name).choice(len(mean), MAX_CELLS, replace=False)
        sampled, sampled_scale = (values[np.sort(chosen)] for values in latents)
    n_cells, min_cells = len(sampled), settings.min_cells_per_sub_population
    max_components = min(MAX_COMPONENTS, n_cells // min_cells)
    if isinstance(settings.sub_populations, int):
        max_components = min(settings.sub_populations, n_cells // min_cells)
    undivided = np.zeros(len(mean), dtype=np.int64)
    if settings.sub_populations == "none" or max_components < 2 or not (sampled.std(axis=0) > 0).any():
        return undivided
    project, generator = principal_axes(sampled, sampled_scale), numpy_generator(seed, "posteriors", name)
    draws = [project(sampled + sampled_scale * generator.standard_normal(sampled.shape)) for _ in range(N_DRAWS)]
    random_state = derive(seed, "mixture", name) % 2**32
    n_components = max_components
    if settings.sub_populations == "auto":
        fold = generator.permutation(n_cells) % N_FOLDS
        n_components = choose_n_components(draws, fold, max_components, random_state=random_state)
    while n_components > 1:
        mixture = fit_mixture(draws, n_components, random_state=random_state)
        if np.bincount(mixture.predict(project(sampled)), minlength=n_components).min() >= min_cells:
            return np.asarray(mixture.predict(project(latents[0])))
        n_components -= 1
    return undivided


def principal_axes(mean: np.ndarray, scale: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the projection of latents to the leading principal axes of standardised posterior means."""
    centre, spread = mean.mean(axis=0), np.sqrt(mean.var(axis=0) + (scale**2).mean(axis=0))
    standardised = (mean - centre) / spread
    n_cells, n_latent = standardised.shape  # with fewer cells than axes, the last axes are arbitrary
    axes = np.linalg.svd(standardised, full_matrices=n_cells < n_latent)[2][:N_AXES]
    return lambda latent: np.asarray(((latent - centre) / spread) @ axes.T)


def choose_n_components(draws: Sequence[np.ndarray], fold: np.ndarray, maximum: int, *, random_state: int) -> int:
    """Choose the number of components by cross-validated log likelihood.

    More components must gain more than ``MIN_GAIN`` standard errors. ``draws`` are samples, each cells x axes.
    """
    best, reference = 1, cross_validated_likelihood(draws, fold, 1, random_state=random_state)
    for n_components in range(2, maximum + 1):
        likelihood = cross_validated_likelihood(draws, fold, n_components, random_state=random_state)
        gain = likelihood - reference
        if gain.mean() * np.sqrt(len(gain)) > MIN_GAIN * gain.std():
            best, reference = n_components, likelihood
        elif n_components - best >= PATIENCE:
            break
    return best


def cross_validated_likelihood(
    draws: Sequence[np.ndarray], fold: np.ndarray, n_components: int, *, random_state: int
) -> np.ndarray:
    """Compute each cell's log likelihood under the mixture of the other folds."""
    likelihood = np.empty(len(fold))
    for number in np.unique(fold):
        held_out = fold == number
        mixture = fit_mixture([draw[~held_out] for draw in draws], n_components, random_state=random_state)
        likelihood[held_out] = np.mean([mixture.score_samples(draw[held_out]) for draw in draws], axis=0)
    return likelihood


def fit_mixture(draws: Sequence[np.ndarray], n_components: int, *, random_state: int) -> GaussianMixture:
    """Fit a Gaussian mixture with full covariances to samples, each cells x axes."""
    from sklearn.mixture import GaussianMixture  # slow to import, and only needed here

    mixture = GaussianMixture(
        n_components, reg_covar=MIN_VARIANCE, n_init=N_STARTS, max_iter=300, tol=1e-2, random_state=random_state
    )
    return mixture.fit(np.concatenate(draws))


# ---- classification

N_SHRINK = 50  # cells at which a sub-population's covariance and the pooled one have equal weight
MIN_SHARE = 1e-3  # of the pooled variances, added to all variances
MAX_PRIOR_DEVIATION = 3.0  # scale on which sub-population means deviate from the type's, in prior standard deviations


@dataclass(frozen=True, eq=False)
class SubPopulations:
    """Classifier of sub-populations, for each divided cell type (quadratic discriminant analysis).

    It applies to latents encoded by :meth:`bdm.autoencoder.autoencoder.GeneAutoencoder.label_network`. Up to a
    constant, the log density of sub-population k is ``log_density[k] - |axes[k] (z - mean[k])|**2 / 2``.
    """

    names: tuple[str, ...]  # grouped by type, largest first: T cell/1, T cell/2
    cell_type: tuple[str, ...]  # type of each sub-population
    axes: Tensor  # inverse Cholesky factors of covariances, sub-populations x latent dimensions x latent dimensions
    mean: Tensor  # sub-populations x latent dimensions
    log_density: Tensor  # log share of the type's cells plus log determinant of `axes`

    @classmethod
    def none(cls, n_latent: int) -> SubPopulations:
        """Return an empty classifier, for undivided types alone."""
        return cls((), (), torch.empty(0, n_latent, n_latent), torch.empty(0, n_latent), torch.empty(0))

    def __len__(self) -> int:
        return len(self.names)

    def rows_of(self, cell_type: str) -> list[int]:
        """Return the rows of a type's sub-populations; empty for an undivided type."""
        return [row for row, name in enumerate(self.cell_type) if name == cell_type]

    def populations_of(self, cell_type: str) -> tuple[str, ...]:
        """Return the populations of a cell type: its sub-populations, or the type itself."""
        return tuple(self.names[row] for row in self.rows_of(cell_type)) or (cell_type,)

    def divide(self, cell_type: str, mean: Tensor, scale: Tensor, prior_mean: Tensor) -> tuple[np.ndarray, Tensor]:
        """Assign cells of a type to its sub-populations, and estimate their prior means.

        ``mean`` and ``scale`` are posteriors under the prior of the type, cells x latent dimensions. Returns the name
        of each cell's sub-population, and prior means, sub-populations x latent dimensions.
        """
        assigned, names = self.assign(cell_type, mean), self.populations_of(cell_type)
        groups = [assigned == number for number in range(len(names))]
        means = [prior_means(mean[group], scale[group], prior_mean) for group in groups]
        return np.array(names, dtype=object)[assigned], torch.stack(means)

    def assign(self, cell_type: str, latent: Tensor) -> Tensor:
        """Return the index in :meth:`populations_of` of each cell's most probable sub-population."""
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
    min_cells: int,
    donor: pd.Series | None = None,
    min_donors: int = 1,
) -> SubPopulations:
    """Fit a classifier of the parts of a cell type, from :func:`find_parts`, to posterior means of its cells.

    The classifier is empty if fewer than two parts are large enough. Covariances are shrunk towards the pooled
    covariance. Parts to which fewer than ``min_cells`` cells are assigned, or with an effective number of donors below
    ``min_donors`` (if each cell's ``donor`` is given), are removed one at a time, and their cells are assigned to the
    remaining parts. ``prefix`` is the prefix of the names of sub-populations, from :func:`prefixes_of`.
    """
    parts, latent = np.unique(part).tolist(), mean.double()
    while len(parts) > 1:
        groups = [latent[part == number] for number in parts]
        n_cells = torch.tensor([len(group) for group in groups])
        order = torch.argsort(n_cells, descending=True, stable=True).tolist()
        groups, parts = [groups[row] for row in order], [parts[row] for row in order]
        names = tuple(f"{prefix}{number}" for number in range(1, len(parts) + 1))
        classifier = SubPopulations(names, (cell_type,) * len(parts), *fit_normal_densities(groups))
        assigned = classifier.assign(cell_type, mean)
        n_assigned = assigned.bincount(minlength=len(parts))
        if n_assigned.min() < min_cells:
            del parts[int(n_assigned.argmin())]
            continue
        if donor is None:
            return classifier
        n_donors = effective_donors(pd.Series(assigned.numpy()), donor)
        if n_donors.min() >= min_donors:
            return classifier
        del parts[int(n_donors.argmin())]
    return SubPopulations.none(mean.shape[1])


def warn_of_fewer(sub_populations: SubPopulations, cell_types: Sequence[str], number: int, *, requirement: str) -> None:
    """Warn of cell types with fewer sub-populations than requested."""
    n_by_type = Counter(sub_populations.cell_type)
    fewer = [f"{name!r} ({max(n_by_type[name], 1)})" for name in cell_types if max(n_by_type[name], 1) < number]
    if fewer:
        logger.warning(
            "Fewer than %d sub-populations, as each needs %s: %s.", number, requirement, abbreviated(fewer, n_shown=5)
        )


def find_one_donor(obs: pd.DataFrame, sub_populations: SubPopulations) -> tuple[str, ...]:
    """Return the sub-populations with more than half of their cells of one donor.

    Warns of them, and names a minimum of donors that all types reach.
    """
    share = largest_shares(obs["sub_population"], obs["donor"])
    names = tuple(name for name in sub_populations.names if share.get(name, 0) > 1 / 2)
    if names:
        minimum = min(5, int(effective_donors(obs["cell_type"], obs["donor"]).min()))
        is_remedy = effective_donors(obs["sub_population"], obs["donor"])[list(names)].max() < minimum
        logger.warning(
            "Sub-populations with more than half of their cells of one donor: %s%s. Generated cells of these types do "
            "not name their sub-populations.",
            abbreviated([f"{name} ({share[name]:.0%})" for name in names], n_shown=5),
            f"; to form none, prepare the cells with `settings.prepare.min_donors={minimum}`" if is_remedy else "",
        )
    return names


def fit_normal_densities(groups: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Compute ``axes``, ``mean`` and ``log_density`` of :class:`SubPopulations` from latents by group."""
    n_cells = torch.tensor([len(group) for group in groups], dtype=torch.float64)
    means = torch.stack([group.mean(dim=0) for group in groups])
    centred = [group - mean for group, mean in zip(groups, means, strict=True)]
    covariances = torch.stack([group.T @ group / len(group) for group in centred])
    share = n_cells / n_cells.sum()
    pooled = torch.einsum("k,kij->ij", share, covariances)
    pooled = pooled + torch.diag(MIN_SHARE * pooled.diagonal() + torch.finfo(torch.float32).tiny)
    weight = (n_cells / (n_cells + N_SHRINK))[:, None, None]
    axes = torch.linalg.inv(torch.linalg.cholesky(weight * covariances + (1 - weight) * pooled))
    log_density = share.log() + axes.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return axes.float(), means.float(), log_density.float()


def prefixes_of(cell_types: Sequence[str], reserved: Collection[str] = ()) -> dict[str, str]:
    """Choose a unique prefix for each type's sub-populations, such as ``T cell/``.

    Slashes are added to avoid conflicts with types and ``reserved`` names: with the types ``T`` and ``T/1``,
    sub-populations of ``T`` are ``T//1``, ``T//2`` and so on.
    """
    names = {*cell_types, *reserved}
    used, prefixes = {name.rstrip("0123456789") for name in names if name[-1:] in "0123456789"}, {}
    for cell_type in cell_types:
        prefix = f"{cell_type}/"
        while prefix in used:
            prefix += "/"
        used.add(prefix)
        prefixes[cell_type] = prefix
    return prefixes


def prior_means(mean: Tensor, scale: Tensor, prior_mean: Tensor) -> Tensor:
    """Estimate the mean latent of a population from posteriors of its cells.

    The prior of the type has unit variance, so posterior means are shrunk towards its mean by the posterior variance.
    The estimate corrects for this. It has a normal prior of standard deviation ``MAX_PRIOR_DEVIATION``, in case cells
    are uninformative.
    """
    n_cells = len(mean)
    information = n_cells * (1 - (scale**2).mean(dim=0)).clamp(min=0)
    return prior_mean + n_cells * (mean.mean(dim=0) - prior_mean) / (information + MAX_PRIOR_DEVIATION**-2)
