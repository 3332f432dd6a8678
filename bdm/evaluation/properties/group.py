"""Groups of cells that are compared, and the distances between values of query cells and of test cells."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.spatial.distance import cdist

from bdm.evaluation.cells import Cells, Matched, sample_by_type, smaller_numbers
from bdm.evaluation.genes import kolmogorov_smirnov
from bdm.evaluation.metrics import joint_components
from bdm.evaluation.properties.values import GeneValues, effective_library_size

MIN_CELLS_OF_GROUP = 10  # cells; with fewer, distances are mostly noise
MAX_POINTS = 500  # of either side whose distances are taken in two dimensions
MIN_VALUES = 5


@dataclass(frozen=True)
class Side:
    """Query cells or test cells, with coordinates and library sizes that were computed among all compared cells.

    Attributes
    ----------
    components
        Joint principal components of both sides, cells x components.
    effective_library_size
        Library size times the factor by which the counts of most genes are scaled.
    """

    cells: Cells
    components: np.ndarray
    effective_library_size: np.ndarray

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: np.ndarray) -> Side:
        return Side(self.cells[index], self.components[index], self.effective_library_size[index])

    @cached_property
    def gene_values(self) -> GeneValues:
        """Values of each gene over these cells."""
        return GeneValues.of(self.cells)

    @cached_property
    def labels(self) -> np.ndarray:
        """Cell types of at least `MIN_CELLS_OF_GROUP` cells."""
        return np.array(self.cells.types(fewest=MIN_CELLS_OF_GROUP))

    @cached_property
    def batches(self) -> np.ndarray:
        """Batches of at least `MIN_CELLS_OF_GROUP` cells; none where the batches of cells are not known."""
        if self.cells.batch is None:
            return np.array([])
        names, n_cells = np.unique(self.cells.batch, return_counts=True)
        return np.asarray(names[n_cells >= MIN_CELLS_OF_GROUP])


@dataclass(frozen=True)
class Group:
    """Query cells and as many test cells of each type.

    Attributes
    ----------
    genes
        Column indices of the variable genes, whose correlations are compared.
    """

    query: Side
    test: Side
    genes: np.ndarray
    seed: int

    @classmethod
    def of(cls, matched: Matched, genes: np.ndarray, *, seed: int) -> Group:
        """Compute joint principal components and effective library sizes of matched cells."""
        components = joint_components(matched.query.expression, matched.test.expression, seed=seed)
        reference = np.asarray(matched.test.counts.sum(axis=0)).ravel()
        query, test = (
            Side(cells, coordinates, effective_library_size(cells, reference))
            for cells, coordinates in zip((matched.query, matched.test), components, strict=True)
        )
        return cls(query, test, genes, seed)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Query cells and test cells."""
        return self.query, self.test

    @property
    def n_cells(self) -> int:
        """Number of cells of the smaller side."""
        return min(len(self.query), len(self.test))

    @property
    def labels(self) -> np.ndarray:
        """Cell types of enough query cells and test cells."""
        return np.intersect1d(self.query.labels, self.test.labels)

    @property
    def batches(self) -> np.ndarray:
        """Batches of enough query cells and test cells."""
        return np.intersect1d(self.query.batches, self.test.batches)

    def of_label(self, label: str) -> Group:
        """Select the cells of one type."""
        query, test = (side[np.flatnonzero(side.cells.cell_type == label)] for side in self.sides)
        return replace(self, query=query, test=test)

    def of_batch(self, batch: str) -> Group:
        """Select the cells of one batch, as many of each type on both sides."""
        query, test = (side[np.flatnonzero(side.cells.batch == batch)] for side in self.sides)
        numbers = smaller_numbers(query.cells.n_by_type, test.cells.n_by_type)
        query, test = (side[sample_by_type(side.cells, numbers, seed=self.seed)] for side in (query, test))
        return replace(self, query=query, test=test)

    def few(self, most: int) -> Group:
        """Draw ``most`` cells or fewer of either side, at random."""
        query, test = (
            side[np.sort(np.random.default_rng(self.seed).permutation(len(side))[:most])] for side in self.sides
        )
        return replace(self, query=query, test=test)


def ks(query: np.ndarray, test: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of the finite values, in [0, 1]; NaN with fewer than five of either."""
    query, test = query[~np.isnan(query)], test[~np.isnan(test)]
    return kolmogorov_smirnov(query, test) if min(len(query), len(test)) >= MIN_VALUES else float("nan")


def energy_coefficient(query: np.ndarray, test: np.ndarray, *, seed: int) -> float:
    """Root of the energy distance over its largest value, in [0, 1], of points in units of the test cells' spread.

    ``sqrt((2 E|x - y| - E|x - x'| - E|y - y'|) / (2 E|x - y|))``, which is 0 for equal distributions, and grows with a
    shift about as the Kolmogorov-Smirnov distance does. Like this distance, it is above 0 for samples of one
    distribution, so it is compared with the floor.

    Parameters
    ----------
    query, test
        Points x dimensions; of either, `MAX_POINTS` at most are drawn, the same rows of both where they are equally
        many.

    References
    ----------
    Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018
    """
    query, test = (points[np.isfinite(points).all(axis=1)] for points in (query, test))
    if min(len(query), len(test)) < MIN_VALUES:
        return float("nan")
    scale = np.maximum(test.std(axis=0), np.finfo(float).tiny)
    x, y = (np.random.default_rng(seed).permutation(points)[:MAX_POINTS] / scale for points in (query, test))
    between = 2 * cdist(x, y).mean()
    if not between:
        return 0.0
    return float(np.sqrt(max(between - cdist(x, x).mean() - cdist(y, y).mean(), 0) / between))
