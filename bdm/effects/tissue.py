"""Tissue of a model with positions: where cells are, how genes change there, and how neighbours are alike."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ndtr

from bdm.effects.surfaces import Places

BIN_WIDTH = 2.0  # of the density of positions, in median distances to the nearest neighbours
# Length scales of local variation and of the coupling of neighbours, in median distances to the nearest neighbours
LOCAL_LENGTH, COUPLING_LENGTH = 1.0, 2.0
QUANTILES = np.linspace(0, 1, 101)  # of distances to the nearest neighbour
N_STEPS, TOLERANCE = 30, 0.01  # of moves of sampled positions; relative
MAX_DISTANCE = 0.25  # of locations from the tissue, in units of the spread of a section


@dataclass(frozen=True, eq=False)
class Tissue:
    """Density and spacing of positions: numbers of cells in square or cubic bins, which also delimit the tissue."""

    width: float  # of a bin, in units of the kernel
    bins: np.ndarray  # occupied bins, bins x (section, coordinates)
    n_cells: np.ndarray  # cells of each bin
    # quantiles of distances to the nearest neighbour, sections x quantiles; unknown in models of bdm 0.1.0
    nearest: np.ndarray | None = None

    @classmethod
    def from_places(cls, places: Places) -> Tissue:
        """Count cells in bins, and measure their distances."""
        width = BIN_WIDTH * places.spacing
        bins, n_cells = np.unique(cls.bins_of(places, width), axis=0, return_counts=True)
        nearest = np.zeros((places.section.max() + 1, len(QUANTILES)))
        for section in np.unique(places.section):
            positions = places.positions[places.section == section]
            if len(positions) > 1:
                nearest[section] = np.quantile(nearest_distance(positions)[0], QUANTILES)
        return cls(width, bins, n_cells, nearest)

    @staticmethod
    def bins_of(places: Places, width: float) -> np.ndarray:
        """Return the bin of each cell, cells x (section, coordinates)."""
        return np.column_stack([places.section, np.floor(places.positions / width)]).astype(int)

    def contains(self, places: Places) -> np.ndarray:
        """Return a mask of positions near an occupied bin of their section."""
        centres = Places((self.bins[:, 1:] + 0.5) * self.width, self.bins[:, 0])
        nearest = cKDTree(centres.apart()).query(places.apart())[0]
        return np.asarray(nearest <= MAX_DISTANCE + self.width)

    def overlaps(self, sections: np.ndarray, low: np.ndarray, high: np.ndarray) -> bool:
        """Return whether occupied bins of sections overlap a box with given corners."""
        corner = self.bins[np.isin(self.bins[:, 0], sections), 1:] * self.width
        return bool(((corner <= high) & (corner + self.width >= low)).all(axis=1).any())

    def sample(self, n: int, generator: np.random.Generator, section: int | None = None) -> Places:
        """Sample positions in a section, by default in all.

        Bins are those of training cells in random order, repeated if these are fewer. Positions are uniform in the bin,
        and then moved by :meth:`spaced`.
        """
        return self.spaced(self.sample_uniform(n, generator, section))

    def sample_uniform(self, n: int, generator: np.random.Generator, section: int | None = None) -> Places:
        """Sample positions as :meth:`sample`, but independently within bins."""
        of_cells = np.repeat(np.arange(len(self.bins)), self.n_cells)
        if section is not None:
            of_cells = of_cells[self.bins[of_cells, 0] == section]
        rounds = [generator.permutation(of_cells) for _ in range(-(-n // len(of_cells)))]
        bins = self.bins[np.concatenate(rounds)[:n]]
        return Places((bins[:, 1:] + generator.random((n, bins.shape[1] - 1))) * self.width, bins[:, 0])

    def spaced(self, places: Places) -> Places:
        """Move positions apart, within the tissue, until they are as far from each other as training cells.

        The k-th smallest distance to a nearest neighbour becomes at least the same quantile of training cells, so that
        positions of a lattice become as regular, and independent ones stay. Distances are shorter if positions are more
        than the training cells.
        """
        if self.nearest is None:
            return places
        positions, n_coordinates = places.positions.copy(), places.positions.shape[1]
        for section in np.unique(places.section):
            cells, of_section = places.section == section, self.bins[:, 0] == section
            if (n := cells.sum()) == 1:
                continue
            scale = min(1.0, self.n_cells[of_section].sum() / n) ** (1 / n_coordinates)
            target = scale * np.interp((np.arange(n) + 0.5) / n, QUANTILES, self.nearest[section])
            centres = cKDTree((self.bins[of_section, 1:] + 0.5) * self.width)
            positions[cells] = moved_apart(positions[cells], target, centres, self.width)
        return Places(positions, places.section)


def nearest_distance(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distance to the nearest neighbour, and its index."""
    distance, neighbour = map(np.asarray, cKDTree(positions).query(positions, k=2))
    return distance[:, 1], neighbour[:, 1]


def moved_apart(positions: np.ndarray, target: np.ndarray, centres: cKDTree, width: float) -> np.ndarray:
    """Move positions from their nearest neighbours, but not out of bins, until sorted distances reach targets."""
    positions = positions.copy()
    for _ in range(N_STEPS):
        distance, neighbour = nearest_distance(positions)
        lack = target[np.argsort(np.argsort(distance))] - distance
        near = np.flatnonzero(lack > TOLERANCE * (distance + lack))
        away = (positions[near] - positions[neighbour[near]]) / distance[near, None].clip(1e-12)
        moved = positions[near] + away * lack[near, None] / 2  # the neighbour moves as well
        stays = np.asarray(centres.query(moved, p=np.inf)[0]) <= width / 2
        if not stays.any():
            break
        positions[near[stays]] = moved[stays]
    return positions


@dataclass(frozen=True, eq=False)
class GeneSurfaces:
    """Changes of the means of genes with the position, beyond those by latents.

    The mean of a gene changes by the factor ``1 + f(s) + f_c(s)``: f is a surface of all types, and f_c one of the cell
    type c. Few types and genes have an f_c.
    """

    shared: np.ndarray  # coefficients of f, genes x functions
    has_own: np.ndarray  # whether a gene has a surface f_c, genes x cell types
    own: np.ndarray  # coefficients of f_c where ``has_own``, row by row; pairs x functions
    variance: np.ndarray  # variance of the factor over cells, genes x (cell types, added types)

    def relative(self, functions: np.ndarray, cell_type: int) -> np.ndarray:
        """Evaluate ``f + f_c`` of a type at functions of the basis (cells x functions); returns cells x genes."""
        gene, of_type = np.nonzero(self.has_own)
        values, pairs = functions @ self.shared.T, of_type == cell_type
        values[:, gene[pairs]] += functions @ self.own[pairs].T
        return np.asarray(values)

    @property
    def number(self) -> int:
        """Number of genes that depend on the position."""
        return int((self.shared.any(axis=1) | self.has_own.any(axis=1)).sum())


def choose(log_odds: np.ndarray, independent: np.ndarray, shared: np.ndarray, coupling: float) -> np.ndarray:
    """Choose a column in each row with probabilities given by log odds, alike in neighbouring cells.

    The largest of log odds plus Gumbel noise has these probabilities. The noise is coupled between neighbours by a
    Gaussian copula: normal scores are ``independent``, with a part that they ``share``.
    """
    scores = independent.copy()
    scores[:, : shared.shape[1]] *= np.sqrt(1 - coupling)
    scores[:, : shared.shape[1]] += np.sqrt(coupling) * shared
    uniform = ndtr(scores).clip(1e-12, 1 - 1e-12)
    return np.asarray((log_odds - np.log(-np.log(uniform))).argmax(axis=1))
