"""Effects of positions on cells: surfaces of latents and genes, a map of populations, local variation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree
from scipy.special import ndtr, softmax
from torch import Tensor

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.seeds import numpy_generator, to_tensor
from bdm.autoencoder.moments import PopulationMoments
from bdm.autoencoder.observation import ObservationModel
from bdm.effects.surfaces import Basis, LocalFields, Places

RELATIVE_LIMITS = (-0.9, 5.0)  # of the change of a mean, relative to the mean
N_CANDIDATES, MIN_CANDIDATES = 10, 2000  # positions to choose from, per cell and in all
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


@dataclass(frozen=True, eq=False)
class SpatialEffects:
    """Effects of positions on cells.

    At position s, a whitened latent x of population p and cell type c becomes ``m_p + A_p (x - m_p) + f_c(s) - c_p +
    u(s)``. m_p is the mean of the population, f_c the surface of the type, c_p its mean over the cells of the
    population, and u local variation, which neighbouring cells share. A_p narrows the population, so that its
    covariance over all positions stays the same. Surfaces are sums of basis functions. The log odds of populations are
    such sums as well.
    """

    # units of the coordinates per unit of the kernel: root mean square of centred coordinates in a section
    unit: float
    sections: tuple[str, ...]
    basis: Basis
    # surfaces of latents, whitened
    cell_types: tuple[str, ...]
    coefficients: np.ndarray  # cell types x functions x dimensions
    populations: tuple[str, ...]
    labels: tuple[str, ...]  # cell type of each population
    centre: np.ndarray  # populations x dimensions
    narrowing: np.ndarray  # transposed A, populations x dimensions x dimensions
    local: np.ndarray  # latent shift by each local field, fields x dimensions
    genes: GeneSurfaces
    # map of populations
    log_odds: np.ndarray  # functions x populations
    log_share: np.ndarray  # populations
    coupling: float  # correlation between neighbouring cells of the scores that choose populations
    tissue: Tissue

    @property
    def n_coordinates(self) -> int:
        """Number of coordinates of a position."""
        return int(self.basis.centres.shape[1])

    @property
    def spacing(self) -> float:
        """Median distance of training cells to their nearest neighbours."""
        return self.tissue.width / BIN_WIDTH

    @property
    def summary(self) -> str:
        """Short summary for reports."""
        smooth = "no surface" if not self.coefficients.any() else f"surfaces of length {self.basis.length:g}"
        sections, genes = counted(len(self.sections), "section"), counted(self.genes.number, "gene")
        return f"{sections}, {smooth}, {genes} with own surfaces"

    def type_of(self, population: str) -> int:
        """Return the index of a population's cell type, or the number of types for an added population."""
        if population not in self.populations:
            return len(self.cell_types)
        return self.cell_types.index(self.labels[self.populations.index(population)])

    def places(self, positions: np.ndarray, sections: Sequence[str] | None) -> Places:
        """Convert coordinates (cells x coordinates) and the section of each cell; reject unknown sections."""
        if positions.shape[1] != self.n_coordinates:
            raise InputError(
                f"The positions have {positions.shape[1]} coordinates, but the model was fitted to "
                f"{self.n_coordinates}; give as many."
            )
        if sections is None and len(self.sections) > 1:
            raise InputError(
                f"The model has the sections {abbreviated(self.sections)}, but the positions have no section; give the "
                "section of each cell."
            )
        names = self.sections[:1] * len(positions) if sections is None else tuple(map(str, sections))
        code = {name: number for number, name in enumerate(self.sections)}
        if unknown := sorted(set(names) - set(code)):
            raise InputError(
                f"The model has no section {unknown[0]!r}; its sections are {abbreviated(self.sections)}. Fit it to "
                "cells of this section to generate more of them."
            )
        return Places(positions / self.unit, np.array([code[name] for name in names], dtype=int))

    def sample_places(self, population: np.ndarray, section: int, generator: np.random.Generator) -> Places:
        """Sample positions of cells in a section, given their populations.

        Positions as dense as the training cells are resampled in proportion to the share of the population there.
        """
        candidates = self.tissue.sample_uniform(max(N_CANDIDATES * len(population), MIN_CANDIDATES), generator, section)
        parts = np.array_split(np.arange(len(candidates)), len(candidates) // 5000 + 1)
        log_odds = np.concatenate([self.basis(candidates[part]) @ self.log_odds for part in parts])
        share = softmax(log_odds + self.log_share, axis=1)
        chosen, is_left = np.empty(len(population), dtype=int), np.ones(len(candidates))
        for name in dict.fromkeys(population):
            cells = np.flatnonzero(population == name)
            weight = is_left.copy()
            if name in self.populations:
                weight *= share[:, self.populations.index(name)] + 1e-9
            chosen[cells] = generator.choice(len(candidates), len(cells), replace=False, p=weight / weight.sum())
            is_left[chosen[cells]] = 0
        return self.tissue.spaced(candidates[chosen])

    def gene_offset(self, places: Places, population: str) -> Tensor:
        """Return offsets of log expression of a population's cells, cells x genes."""
        relative = self.genes.relative(self.basis(places), self.type_of(population))
        return to_tensor(np.log1p(relative.clip(*RELATIVE_LIMITS))).float()

    def observation(self, observation: ObservationModel, population: str) -> ObservationModel:
        """Remove the variance that :meth:`gene_offset` adds from an observation model of a population."""
        return observation.within(to_tensor(np.log1p(self.genes.variance[:, self.type_of(population)])))

    def realised(self, seed: int) -> RealisedSpace:
        """Draw the local variation of a seed."""

        def fields(n: int, length: float, name: str) -> LocalFields:
            return LocalFields.from_seed(n, self.n_coordinates, length * self.spacing, seed=seed, name=name)

        latent = fields(len(self.local), LOCAL_LENGTH, "latent")
        return RealisedSpace(self, latent, fields(len(self.populations), COUPLING_LENGTH, "populations"), seed)


@dataclass(frozen=True, eq=False)
class RealisedSpace:
    """Effects of positions with one draw of their local variation."""

    effects: SpatialEffects
    latent_fields: LocalFields
    population_fields: LocalFields
    seed: int

    def move(self, x: Tensor, population: str, moments: PopulationMoments, places: Places) -> Tensor:
        """Move whitened cells of a population to their places; cells of added types stay the same."""
        effects = self.effects
        if population not in effects.populations:
            return x
        row, mean = effects.populations.index(population), moments.mean[moments.populations.index(population)]
        surface = effects.coefficients[effects.type_of(population)]
        shift = effects.basis(places) @ surface - effects.centre[row] + self.latent_fields(places) @ effects.local
        return mean + (x - mean) @ to_tensor(effects.narrowing[row]).to(x) + to_tensor(shift).to(x)

    def choose_populations(self, places: Places, log_share: np.ndarray) -> np.ndarray:
        """Choose the population of each cell; returns indices.

        Parameters
        ----------
        places
            Positions of the cells.
        log_share
            Log share of each population at mean positions, or -inf where a cell cannot be of it; cells x populations.
            Populations without a map come last.
        """
        effects = self.effects
        log_odds = log_share.copy()
        log_odds[:, : len(effects.populations)] += effects.basis(places) @ effects.log_odds
        # by population, so that added types do not change the others
        generators = [numpy_generator(self.seed, "scores", number) for number in range(log_share.shape[1])]
        independent = np.column_stack([generator.standard_normal(len(places)) for generator in generators])
        return choose(log_odds, independent, self.population_fields(places), effects.coupling)


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
