"""What an effect is, and latents without the effects of their cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import anndata as ad
import numpy as np
import pandas as pd
from torch import Tensor

from bdm.autoencoder.latent import RESIDUAL, RESIDUAL_SCALE

MIN_UNEXPLAINED = 0.05  # fraction of the prior variance of y that effects always leave


class Effect(ABC):
    """Shift of cells by some of their properties, such as the batch or covariates.

    A cell of population p with inputs t has the mean ``m_p + f_p(t)`` of y = (latent, log library sizes). Here m_p is
    the mean of the population and f_p has mean 0 over its training cells. The prior of latents is fitted to residuals,
    y without ``f_p(t)``. Populations without an entry, such as those of most extensions, have no shift.
    """

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the effect reads."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Short summary for reports."""

    @abstractmethod
    def has(self, population: str) -> bool:
        """Return whether a population depends on the inputs."""

    @abstractmethod
    def moments(self, population: str) -> tuple[Tensor, Tensor]:
        """Return the population's mean of y, and the fraction of the prior variance of y that inputs leave."""

    @abstractmethod
    def latent(self, at: pd.DataFrame, population: str, cell_type: str) -> Tensor:
        """Return the shift of y, cells x dimensions.

        Parameters
        ----------
        at
            Inputs of each cell, as columns.
        population, cell_type
            Population of all cells, and its cell type.
        """


def present(*effects: Effect | None) -> tuple[Effect, ...]:
    """Return the effects that a model has, of those that it may have, in the order of their fit."""
    return tuple(effect for effect in effects if effect is not None)


def with_residuals(latent: ad.AnnData, effects: Sequence[Effect]) -> ad.AnnData:
    """Add posteriors without the effects of the inputs in ``obs``, as layers for ``latent_cells``.

    With the prior N(m, 1), a posterior has variance v and mean ``m + (1 - v) (u - m)``, where u is the estimate from
    counts alone. Effects change the prior to N(m + f, r): f is the shift, r the unexplained variance. The posterior
    then has variance ``q v`` with ``q = 1 / (1 + v (1 / r - 1))``. Without f, its mean is
    ``m + q (1 - v) (u - m - f)``. Cells with missing inputs stay the same.
    """
    if not effects:
        return latent
    inputs = latent.obs[[name for effect in effects for name in effect.inputs]]
    mean, scale = np.array(latent.X, dtype=np.float32), np.array(latent.layers["scale"], dtype=np.float32)
    known = np.flatnonzero(inputs.notna().all(axis=1))
    groups = latent.obs.iloc[known].groupby(["cell_type", "sub_population"], observed=True).indices
    for (cell_type, population), members in groups.items():
        rows, own = known[members], [effect for effect in effects if effect.has(population)]
        if not own:
            continue
        centre, unexplained = (value.numpy() for value in own[0].moments(population))
        for effect in own[1:]:
            unexplained = np.maximum(unexplained + effect.moments(population)[1].numpy() - 1, MIN_UNEXPLAINED)
        q = 1 / (1 + scale[rows] ** 2 * (1 / unexplained - 1))
        shift = sum(effect.latent(inputs.iloc[rows], population, cell_type) for effect in own).numpy()  # type: ignore[union-attr]
        mean[rows] = centre + q * (mean[rows] - centre - (1 - scale[rows] ** 2) * shift)
        scale[rows] *= np.sqrt(q)
    latent.layers.update({RESIDUAL: mean, RESIDUAL_SCALE: scale})
    return latent
