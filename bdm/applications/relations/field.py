"""What responses and lineages have in common: measurements, predictions of the rest, their errors, and warnings."""

import logging
from abc import abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.files import write_table
from bdm._core.store import Result
from bdm.data.genes import GeneNames, symbol_column


@dataclass(frozen=True, repr=False, kw_only=True)
class Field(Result):
    """Values of genes at measured places, with Gaussian processes for the other places, and the errors of these.

    Attributes
    ----------
    genes
        ``var`` of the genes that are detected in enough cells.
    dispersion
        Squared coefficient of variation of counts in excess of Poisson noise, by gene in the last axis.
    provenance
        Version, packages, seed and settings.
    errors
        Table of errors of predictions at places that are left out.
    """

    genes: pd.DataFrame
    dispersion: np.ndarray
    provenance: dict[str, Any]
    errors: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        return "\n".join([*self.sentences(), *(f"Warning: {warning}" for warning in self.warnings())])

    @property
    def names(self) -> GeneNames:
        """Gene names, with symbols if known."""
        return GeneNames(self.genes, symbol_column(self.genes))

    @abstractmethod
    def sentences(self) -> list[str]:
        """Describe the errors of predictions."""

    @abstractmethod
    def warnings(self) -> list[str]:
        """Return reasons not to rely on predictions."""

    def _write_tables(self, folder: Path) -> None:
        write_table(self.errors, folder / "errors.csv", digits=4)


def log_warnings(logger: logging.Logger, warnings: list[str]) -> None:
    """Log warnings, so that Python and commands show the same ones."""
    for warning in warnings:
        logger.warning("%s", warning)
