"""The protocol of priors: what generation, transmutation, interpretation, audit and extension ask of any of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn, Self

import pandas as pd
import torch
from torch import Tensor

from bdm._core.errors import InputError
from bdm._core.kinds import PRIORS, Kinds
from bdm.hierarchy.tree import Hierarchy
from bdm.latent.cells import LatentCells
from bdm.latent.moments import PopulationMoments, Whitening
from bdm.settings import SamplerSettings, TrainSettings


@dataclass(frozen=True, eq=False)
class PriorData:
    """Cells that a prior, or branches that are added to it, are fitted to.

    Attributes
    ----------
    cells
        Posteriors of the cells; latents are drawn from these, and whitened.
    moments
        Of the populations, in whitened space.
    hierarchy
        Tree of the populations, or the part of it that is added.
    validation
        Whether each cell is a validation cell; None where there are none.
    """

    cells: LatentCells
    whitening: Whitening
    moments: PopulationMoments
    hierarchy: Hierarchy
    validation: Tensor | None = None


class Sampler(ABC):
    """Samples cells in whitened space; everything random comes from the generator or the seed."""

    name: ClassVar[str]

    @abstractmethod
    def sample(self, population: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample cells of a population, independent of each other, cells x dimensions."""

    def sample_shared(self, branches: Collection[str], n_cells: int, seed: int) -> dict[str, Tensor]:
        """Sample cells at the lower end of each branch; row i of all descends from one sample of the root."""
        self._cannot("sample cells with shared ancestors")

    def transmute(self, x: Tensor, population: str, to: str, generator: torch.Generator) -> Tensor:
        """Encode cells (cells x dimensions) up to the common ancestor of two populations, and decode them down."""
        self._cannot("transmute cells")

    def denoised(self, x: Tensor, branch: str) -> Tensor:
        """Mean of the cells without noise, given cells at the lower end of a branch, cells x dimensions."""
        self._cannot("denoise cells at a node")

    def _cannot(self, what: str) -> NoReturn:
        raise InputError(f"The prior {self.name!r} cannot {what}; fit the model with another, such as mixture.")


@dataclass(frozen=True, eq=False)
class LatentPrior(Sampler):
    """Distribution of latents on each branch of a hierarchy, in whitened space.

    A prior is a frozen dataclass of tensors, tables, networks and other such dataclasses, which is how it is saved and
    loaded (:mod:`bdm._core.store`). A subclass has the name by which settings and files know it, as in ``class
    MyPrior(LatentPrior, name="mine")``; an installed package makes it known by an entry point of the group
    ``bdm.priors``. It has to fit, to sample, and to take up branches. What else it can do, it overrides; the methods
    here say that it cannot.

    Attributes
    ----------
    hierarchy
        Tree of the populations. The row of a branch, by which a prior finds its parameters, is
        ``hierarchy.rows[name]``.
    """

    hierarchy: Hierarchy

    kinds: ClassVar[Kinds] = PRIORS

    def __init_subclass__(cls, *, name: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name
            PRIORS.registered[name] = cls

    @classmethod
    @abstractmethod
    def fit(
        cls,
        data: PriorData,
        settings: TrainSettings,
        *,
        seed: int,
        device: str = "auto",
    ) -> FittedPrior:
        """Fit the prior to cells, on a device of a name."""

    @abstractmethod
    def extended(
        self, hierarchy: Hierarchy, tree: Hierarchy, moments: PopulationMoments, state: dict[str, Tensor]
    ) -> Self:
        """Take up branches, without a change to any other.

        Parameters
        ----------
        hierarchy
            Tree with the added branches, whose rows come after all others.
        tree
            The added branches, in the order of their rows.
        moments
            Of the populations of these.
        state
            What :meth:`fit_added` returned.
        """

    def fit_added(self, data: PriorData, neighbour: str, settings: TrainSettings, *, seed: int) -> dict[str, Tensor]:
        """Fit what branches need beyond the moments of their populations, before :meth:`extended`: nothing.

        Parameters
        ----------
        neighbour
            Known branch that the added ones leave.
        """
        return {}

    def sampler(self, settings: SamplerSettings = SamplerSettings()) -> Sampler:
        """Sampler by these settings; the prior itself, where it has nothing to set."""
        return self

    def to(self, device: torch.device | str) -> Self:
        """Move to a device; a prior that computes on the CPU alone stays there."""
        return self

    @property
    def description(self) -> str:
        """What generates the latents, in a few words."""
        return f"the prior {self.name}"

    @property
    def n_rows(self) -> int:
        """Number of branches that the prior has parameters of."""
        return 1 + max(self.hierarchy.rows.values())

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Mean of the cells without noise, given noised cells.

        Parameters
        ----------
        x
            Cells x dimensions.
        sigma, branch
            Noise level, and row of the branch: one per cell, or one for all.
        """
        self._cannot("denoise cells")

    def log_prob(self, x: Tensor, population: str) -> Tensor:
        """Log density of each cell (cells x dimensions) in a population, in nats."""
        self._cannot("give the density of cells")

    def condition(self, direction: Tensor, value: float) -> LatentPrior:
        """Prior of the cells whose product with a direction (of dimensions) is ``value``."""
        self._cannot("be conditioned on a coordinate")


@dataclass(frozen=True, eq=False)
class FittedPrior:
    """A prior, and how it was fitted.

    Attributes
    ----------
    history
        Tables by name, such as the losses of ``training`` by step; none without training.
    """

    prior: LatentPrior
    history: dict[str, pd.DataFrame] = field(default_factory=dict)
