"""Donors of a designed experiment: learned from donors of the data, or with a given variation."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import numpy as np
from torch import Tensor

from bdm._core.seeds import numpy_generator
from bdm.autoencoder.observation import ObservationModel
from bdm.design.settings import LEARNED, NONE, Design
from bdm.donors.draw import NewDonors
from bdm.errors import InputError
from bdm.model.model import BranchedModel

SHARED = 0.5  # share of the variance between donors that all cell types have in common


class Donors(Protocol):
    """How the donors of an experiment differ, as :class:`bdm.donors.draw.NewDonors` does."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the donors."""

    def within(self, population: str, x: Tensor, donor: np.ndarray) -> Tensor:
        """Move cells of a population to their donors, in whitened space.

        Parameters
        ----------
        x
            Cells x dimensions.
        donor
            Index of each cell's donor.
        """

    def log_expression(self, population: str) -> np.ndarray:
        """Offsets of natural log expression that the whitened cells do not have, donors x genes."""

    def observation(self, population: str, model: ObservationModel) -> ObservationModel:
        """Observation model without the variance between donors that :meth:`log_expression` adds."""


@dataclass(frozen=True)
class IndependentDonors:
    """Donors whose log expression is normal, independent for each gene; cells do not differ otherwise.

    Half of the variance is shared by all cell types, and half is each type's own.

    Attributes
    ----------
    cell_type_of
        Cell type of each population; the populations of a type have the same offsets.
    variation
        Standard deviation of natural log expression between donors.
    """

    names: tuple[str, ...]
    cell_type_of: dict[str, str]
    n_genes: int
    variation: float
    seed: int

    def within(self, population: str, x: Tensor, donor: np.ndarray) -> Tensor:
        """Return the cells as they are."""
        return x

    def log_expression(self, population: str) -> np.ndarray:
        """Offsets of natural log expression, donors x genes."""
        cell_type = self.cell_type_of[population]
        shared, own = (self._drawn(*key) for key in (("all",), ("type", cell_type)))
        return self.variation * (sqrt(SHARED) * shared + sqrt(1 - SHARED) * own)

    def observation(self, population: str, model: ObservationModel) -> ObservationModel:
        """Return the observation model as it is: the variation is in addition to what the cells have."""
        return model

    def _drawn(self, *key: str) -> np.ndarray:
        generator = numpy_generator(self.seed, "donors", *key)
        return generator.standard_normal((len(self.names), self.n_genes))


def learned_donors(model: BranchedModel, n_donors: int, seed: int) -> NewDonors | None:
    """Draw donors that differ as those of the data do; None if the model has not learned how they differ."""
    return None if model.donors is None else model.donors.sample(n_donors, numpy_generator(seed, "donors"))


def donors_of(model: BranchedModel, design: Design, names: Sequence[str]) -> Donors | None:
    """Make the donors of a design; None where their expression does not differ."""
    variation = resolved(model, design.samples.variation, "samples.variation")
    if variation == LEARNED:
        return learned_donors(model, len(names), design.seed)
    if variation in (NONE, 0):
        return None
    n_genes = len(model.autoencoder.genes)
    return IndependentDonors(tuple(names), model.cell_type_of, n_genes, float(variation), design.seed)


def resolved(model: BranchedModel, value: str | float | None, key: str) -> str | float:
    """Resolve how much donors vary, if the design does not say: as learned, or not at all.

    Raises
    ------
    InputError
        If it is to be as learned, but the model has learned nothing of donors.
    """
    if value == LEARNED and model.donors is None:
        raise InputError(
            f"{key} is learned, but the model has learned no donors; fit it with `donor_key=`, or give a number."
        )
    return (NONE if model.donors is None else LEARNED) if value is None else value
