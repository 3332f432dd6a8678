"""Sub-populations of cell types: their names, how cells are assigned to them, and their prior means."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.data.filters import effective_donors, largest_shares
from bdm.errors import abbreviated

logger = logging.getLogger(__name__)

MAX_PRIOR_DEVIATION = 3.0  # of the mean of a sub-population from the mean of its type, in prior standard deviations


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
        Sub-populations x latent dimensions x latent dimensions: inverse roots of the covariances.
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
        return cls((), (), torch.empty(0, n_latent, n_latent), torch.empty(0, n_latent), torch.empty(0))

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
        densities = [
            self.log_density[row] - ((latent - self.mean[row]) @ self.axes[row].T).square().sum(dim=1) / 2
            for row in self.rows_of(cell_type)
        ]
        return torch.stack(densities).argmax(dim=0)


N_SHRINK = 50  # cells at which the covariance of a sub-population weighs as much as the pooled one
MIN_SHARE = 1e-3  # of the pooled variances, added to the variances of each sub-population


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

    They are recognised by normal distributions in the latent space, with covariances that are shrunk towards the
    pooled one (quadratic discriminant analysis). Parts to which fewer cells are assigned than a sub-population may have
    are left out, the smallest first; then those with cells of too few donors, the fewest first. The cells of a part
    that is left out join others.

    Parameters
    ----------
    mean
        Latents of the cells of the type, cells x latent dimensions.
    part
        Number of each cell's part.
    prefix
        What the names of sub-populations are before the number, see :func:`prefixes_of`.
    smallest
        Fewest cells of a sub-population.
    donor, min_donors
        Donor of each cell, if known, and fewest effective donors of a sub-population, see
        :func:`bdm.data.filters.effective_donors`.
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
    """Name the cell types with fewer sub-populations than were asked for.

    Parameters
    ----------
    each_needs
        What a sub-population needs, in words.
    """
    n_found = Counter(found.cell_type)
    fewer = [f"{name!r} ({max(n_found[name], 1)})" for name in cell_types if max(n_found[name], 1) < number]
    if fewer:
        logger.warning(
            "Fewer than %d sub-populations, as each needs %s: %s.", number, each_needs, abbreviated(fewer, n_shown=5)
        )


def hint_at_donors(obs: pd.DataFrame, found: SubPopulations) -> None:
    """Name the sub-populations with more than half of their cells of one donor.

    Parameters
    ----------
    obs
        Columns of the cells, with ``sub_population`` and ``donor``.
    """
    share = largest_shares(obs["sub_population"], obs["donor"])
    of_one = [f"{name} ({share[name]:.0%})" for name in found.names if share.get(name, 0) > 1 / 2]
    if of_one:
        logger.warning(
            "Sub-populations with more than half of their cells of one donor: %s; to form none, prepare the cells with "
            "`min_donors=5`.",
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
    return prior_mean + n_cells * (mean.mean(dim=0) - prior_mean) / (known + MAX_PRIOR_DEVIATION**-2)
