"""Base classes of priors and their samplers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import ClassVar, Self

import pandas as pd
import torch
from torch import Tensor

from bdm._core.errors import InputError
from bdm._core.schema import Kinds, Registered
from bdm.autoencoder.latent import LatentCells
from bdm.autoencoder.moments import PopulationMoments, Whitening
from bdm.hierarchy.tree import Hierarchy
from bdm.settings import PRIORS, TrainSettings


@dataclass(frozen=True, eq=False)
class PriorData:
    """Data for fitting a prior, or for adding branches to it.

    Attributes
    ----------
    cells
        Posteriors of the cells. Latents are sampled from them, then whitened.
    whitening
        Map from latents to whitened space.
    moments
        Mean and covariance of each population in whitened space.
    hierarchy
        Tree of the populations, or the subtree to add.
    validation
        Mask of the validation cells; None if there are none.
    """

    cells: LatentCells
    whitening: Whitening
    moments: PopulationMoments
    hierarchy: Hierarchy
    validation: Tensor | None = None


class Sampler(ABC):
    """Sample cells in whitened space, reproducibly from a generator or seed.

    Cells are tensors, cells x dimensions; branches and populations (the leaves of the hierarchy) are given by name.
    :meth:`sample` is required; the other methods raise an InputError by default.
    """

    name: ClassVar[str]  # of the prior, for errors

    @abstractmethod
    def sample(self, population: str, n_cells: int, generator: torch.Generator) -> Tensor:
        """Sample ``n_cells`` independent cells of a population."""

    def sample_shared(self, branches: Collection[str], n_cells: int, seed: int) -> dict[str, Tensor]:
        """Sample cells with shared ancestors at the lower end of each branch.

        Row i of every branch descends from sample i of the root. The ``n_cells`` cells of a branch do not depend on
        which other branches are sampled.
        """
        raise unsupported(self.name, "sample cells with shared ancestors")

    def transmute(self, x: Tensor, population: str, to: str, generator: torch.Generator) -> Tensor:
        """Convert cells of one population to another through their common ancestor, in the same order."""
        raise unsupported(self.name, "transmute cells")

    def denoise_at_node(self, x: Tensor, branch: str) -> Tensor:
        """Denoise cells at the lower end of a branch.

        ``x`` are cells at the noise level of the lower end; the expected clean cells are returned.
        """
        raise unsupported(self.name, "denoise cells at a node")


def unsupported(prior: str, action: str) -> InputError:
    """Return the error for something that a prior (by name) cannot do."""
    return InputError(f"The prior {prior!r} cannot {action}; fit the model with another, such as mixture.")


@dataclass(frozen=True, eq=False)
class LatentPrior(Registered, ABC):
    """Distribution of latents on each branch of a hierarchy, in whitened space.

    A prior is a frozen dataclass of tensors, tables, networks and nested dataclasses, so that :mod:`bdm._core.store`
    can save and load it. Subclasses register under the name used in settings and files, ``class MyPrior(LatentPrior,
    name="mine")``; installed packages register through the entry point group ``bdm.priors``. :meth:`fit`,
    :meth:`sampler` and :meth:`extended` are required; ``denoise``, ``log_prob`` and ``condition`` raise an InputError
    by default. Cells are tensors, cells x dimensions.

    Attributes
    ----------
    hierarchy
        Tree of the populations. The parameters of a branch are in row ``hierarchy.rows[name]``.
    """

    hierarchy: Hierarchy

    kinds: ClassVar[Kinds] = PRIORS

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
        """Fit the prior to cells.

        Parameters
        ----------
        data
            Cells, their moments and hierarchy.
        settings
            Settings of the network and its training, for priors with a network.
        seed
            Seed of all random numbers.
        device
            Device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

        Returns
        -------
        Fitted prior and its training history.
        """

    @abstractmethod
    def extended(
        self, hierarchy: Hierarchy, tree: Hierarchy, moments: PopulationMoments, state: dict[str, Tensor]
    ) -> Self:
        """Return a copy with more branches; the existing branches stay the same.

        Parameters
        ----------
        hierarchy
            Complete hierarchy; the rows of the added branches come last.
        tree
            Added branches alone, in the order of their rows.
        moments
            Moments of the added populations.
        state
            Result of :meth:`fit_added`.

        Returns
        -------
        Prior with the branches of ``hierarchy``.
        """

    def fit_added(self, data: PriorData, neighbour: str, settings: TrainSettings, *, seed: int) -> dict[str, Tensor]:
        """Fit parameters of added branches, for :meth:`extended`; by default, there are none.

        Parameters
        ----------
        data
            Cells, moments and hierarchy of the added populations.
        neighbour
            Existing branch that the added branches leave.
        settings
            Settings of the training.
        seed
            Seed of all random numbers.

        Returns
        -------
        Tensors by name, which are saved with the extension.
        """
        return {}

    @abstractmethod
    def sampler(self) -> Sampler:
        """Return a sampler of whitened cells."""

    def to(self, device: torch.device | str) -> Self:
        """Return a copy on a device of torch, such as ``cuda``; by default, the prior stays on the CPU."""
        return self

    @property
    def description(self) -> str:
        """Short description for reports."""
        return f"the prior {self.name}"

    @property
    def n_rows(self) -> int:
        """Number of branches with parameters."""
        return 1 + max(self.hierarchy.rows.values())

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        """Return the expected clean cells given noised cells.

        ``sigma`` (noise level in whitened units) and ``branch`` (row of the branch) are of each cell, or of all
        (length 1).
        """
        raise unsupported(self.name, "denoise cells")

    def log_prob(self, x: Tensor, population: str) -> Tensor:
        """Return the log density of each cell in a population (leaf of the hierarchy), in nats."""
        raise unsupported(self.name, "give the density of cells")

    def condition(self, direction: Tensor, value: float) -> LatentPrior:
        """Return the prior of cells with ``x @ direction == value``."""
        raise unsupported(self.name, "be conditioned on a coordinate")


@dataclass(frozen=True, eq=False)
class FittedPrior:
    """Fitted prior and its training history.

    Attributes
    ----------
    prior
        Fitted prior.
    history
        Tables by name, such as ``training`` with the loss by step; empty for priors without training.
    """

    prior: LatentPrior
    history: dict[str, pd.DataFrame] = field(default_factory=dict)
