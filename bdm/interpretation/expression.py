from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Expression:
    """Mean and variance of each gene's expression over cells with counts, in CP10k."""

    mean: np.ndarray
    variance: np.ndarray


@dataclass(frozen=True)
class TypeExpression:
    """Expression of each cell type, and the numbers of real cells that types weigh by in a mixture."""

    by_type: dict[str, Expression]
    n_cells: dict[str, int]

    def total(self, cell_types: tuple[str, ...]) -> int:
        """Cells of several types together."""
        return sum(self.n_cells[cell_type] for cell_type in cell_types)

    def mixture(self, cell_types: tuple[str, ...]) -> Expression:
        """Expression of a mixture of types in proportion to their cells."""
        weight, means, variances = self._parts(cell_types)
        mean = weight @ means
        return Expression(mean, weight @ (variances + (means - mean) ** 2))

    def squared_error(self, cell_types: tuple[str, ...]) -> np.ndarray:
        """Squared standard error of the mixture's mean as so many cells of each type tell it, by gene."""
        weight, _, variances = self._parts(cell_types)
        return weight @ variances / self.total(cell_types)

    def _parts(self, cell_types: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        weight = np.array([self.n_cells[cell_type] for cell_type in cell_types]) / self.total(cell_types)
        parts = [self.by_type[cell_type] for cell_type in cell_types]
        return weight, np.stack([part.mean for part in parts]), np.stack([part.variance for part in parts])
