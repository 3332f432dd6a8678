"""What an effect is, how all effects are fitted, and latents without the effects of their cells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import anndata as ad
import numpy as np
import pandas as pd
from torch import Tensor

from bdm._core.schema import Kinds, Registered
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.latent import RESIDUAL, RESIDUAL_SCALE
from bdm.autoencoder.moments import PopulationMoments, Whitening
from bdm.autoencoder.observation import ObservationModel
from bdm.data.filters import is_fitted
from bdm.settings import EFFECTS

MIN_UNEXPLAINED = 0.05  # fraction of the prior variance of y that effects always leave


@dataclass(frozen=True)
class CellsToFit:
    """Cells that effects are fitted to, and the effects that were fitted before."""

    prepared: ad.AnnData
    latent: ad.AnnData  # without these effects, see :func:`with_residuals`
    autoencoder: GeneAutoencoder
    seed: int
    effects: Mapping[str, Effect] = field(default_factory=dict)  # fitted before, by name, in the order of their fit
    # For cells of types that are added to a model: its effects, by name; None for cells of a model's fit
    extended: Mapping[str, Effect] | None = None

    @property
    def fitted_obs(self) -> pd.DataFrame:
        """``obs`` of the training and validation cells."""
        return self.latent.obs[is_fitted(self.latent.obs)]


@dataclass(frozen=True)
class LatentSpace:
    """Whitened space with the populations in it."""

    whitening: Whitening
    moments: PopulationMoments
    cell_type_of: Mapping[str, str]  # cell type of each population

    def mean(self, population: str) -> Tensor:
        """Return the mean of a population."""
        return self.moments.mean[self.moments.populations.index(population)]


@dataclass(frozen=True, eq=False)
class Effect(Registered, ABC):
    """Effect of some properties of cells (the inputs), such as the batch, covariates or the position.

    Subclasses are dataclasses, whose fields :func:`bdm._core.store.save` can save. They register under a name, ``class
    MyEffect(Effect, name="mine")``; installed packages register through the entry point group ``bdm.effects``. All
    registered effects are fitted with each model: shifts first, effects of random groups last.
    """

    kinds: ClassVar[Kinds] = EFFECTS
    is_random: ClassVar[bool] = False  # whether groups are a sample, such as donors; others are fitted before

    @classmethod
    def fit(cls, cells: CellsToFit) -> Self | None:
        """Fit the effect to training and validation cells; None without its inputs, or without an effect."""
        raise NotImplementedError

    @property
    @abstractmethod
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the effect reads."""

    @property
    @abstractmethod
    def summary(self) -> str:
        """Short summary for reports."""

    def complete(self, at: pd.DataFrame, population: str, seed: int) -> pd.DataFrame:
        """Fill missing inputs of a population's cells; a cell does not depend on the others, but on its number."""
        return at

    def move(self, x: Tensor, at: pd.DataFrame, population: str, space: LatentSpace) -> Tensor:
        """Move whitened cells of a population to their inputs, cells x dimensions."""
        return x

    def offset(self, at: pd.DataFrame, population: str) -> Tensor | None:
        """Return offsets of log expression beyond those by latents, cells x genes; None without any."""
        return None

    def observation(self, observation: ObservationModel, population: str) -> ObservationModel:
        """Remove the variance that :meth:`offset` adds from an observation model of a population."""
        return observation


@dataclass(frozen=True, eq=False)
class Shift(Effect):
    """Effect that shifts latents and library sizes.

    A cell of population p with inputs t has the mean ``m_p + f_p(t)`` of y = (latent, log library sizes). Here m_p is
    the mean of the population and f_p has mean 0 over its training cells. The prior of latents is fitted to residuals,
    y without ``f_p(t)``. Populations without an entry, such as those of most extensions, have no shift.
    """

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

    @abstractmethod
    def joined(self, added: Any) -> Self:
        """Add the cell types and populations of an extension."""

    def move(self, x: Tensor, at: pd.DataFrame, population: str, space: LatentSpace) -> Tensor:
        """Shift whitened cells of a population, cells x dimensions."""
        return x + space.whitening.linear(self.latent(at, population, space.cell_type_of[population]))


def shifts_in(effects: Mapping[str, Effect]) -> list[Shift]:
    """Return the effects that shift latents."""
    return [effect for effect in effects.values() if isinstance(effect, Shift)]


def fit_all_effects(cells: CellsToFit) -> CellsToFit:
    """Fit all effects, each given those before.

    Only shifts are fitted to types that are added to a model. Returns the effects, and the cells without them.
    """
    kinds = [EFFECTS.find(name) for name in EFFECTS.names]
    for kind in sorted(kinds, key=lambda kind: (kind.is_random, not issubclass(kind, Shift))):
        if (cells.extended is None or issubclass(kind, Shift)) and (effect := kind.fit(cells)) is not None:
            cells = replace(cells, effects={**cells.effects, kind.name: effect})
            if isinstance(effect, Shift):
                cells = replace(cells, latent=with_residuals(cells.latent, shifts_in(cells.effects)))
    return cells


def joined_effects(effects: Mapping[str, Effect], added: Mapping[str, Effect]) -> dict[str, Effect]:
    """Join the effects of a model and of an added type."""
    known = {name: effect for name, effect in effects.items() if isinstance(effect, Shift)}
    together = {name: known[name].joined(effect) if name in known else effect for name, effect in added.items()}
    return {**effects, **together}


def with_residuals(latent: ad.AnnData, effects: Sequence[Shift]) -> ad.AnnData:
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
    layers = {**latent.layers, RESIDUAL: mean, RESIDUAL_SCALE: scale}
    return ad.AnnData(latent.X, obs=latent.obs, var=latent.var, uns=latent.uns, layers=layers)
