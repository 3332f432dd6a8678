"""Surfaces over positions (low-rank Gaussian processes), and local variation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.linalg import solve_triangular

from bdm._core.seeds import numpy_generator
from bdm.data.space import nearest_neighbours

N_FUNCTIONS = 200  # of a basis, over all sections
JITTER = 1e-4  # added to the diagonal of the kernel matrix
N_BLOCKS = 5  # blocks of a section along each of the first two coordinates
STRENGTHS = (0.0, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4, 0.8)  # variance of a surface, relative to the variance of values
MULTIPLES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)  # strength of a cell type's surface, relative to the shared surface
MIN_NOISE = 0.2  # smallest part of the variance that a surface leaves
MIN_GAIN = 5.0  # held-out log density that a surface must gain, in nats; 0.3% of outputs without a field gain as much
MIN_EFFECTIVE_CELLS = 15  # that an output rests on: a rare gene in two neighbouring cells would gain as much by chance
N_NEIGHBOURS = 6
N_FEATURES = 1000  # random Fourier features of local variation
MAX_PAIRS = 50_000  # of neighbours, in memory together
MAX_LOCAL = 0.8  # largest part of the remaining variance that neighbouring cells share


@dataclass(frozen=True, eq=False)
class Places:
    """Positions of cells."""

    positions: np.ndarray  # cells x coordinates, in units of the kernel
    section: np.ndarray  # index of each cell's section

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, cells: np.ndarray) -> Places:
        return Places(self.positions[cells], self.section[cells])

    def apart(self) -> np.ndarray:
        """Return positions with a coordinate that separates sections, cells x (coordinates + 1)."""
        return np.column_stack([self.positions, 1e3 * self.section])

    def blocks(self, number: int = N_BLOCKS) -> np.ndarray:
        """Return the block of each cell; a section has ``number`` x ``number`` blocks, by quantiles."""
        block = np.zeros(len(self), dtype=int)
        for section in np.unique(self.section):
            cells = self.section == section
            ends = np.linspace(0, 1, number + 1)[1:-1]
            first, second = (np.searchsorted(np.quantile(x, ends), x) for x in self.positions[cells, :2].T)
            block[cells] = (section * number + first) * number + second
        return block

    def neighbours(self, number: int = N_NEIGHBOURS) -> tuple[np.ndarray, np.ndarray]:
        """Pair cells with their nearest neighbours, as :func:`bdm.data.space.nearest_neighbours`."""
        return nearest_neighbours(self.positions, self.section, number)

    @property
    def spacing(self) -> float:
        """Median distance to the nearest neighbours, without cells at the same position."""
        distance = self.distance(*self.neighbours())
        return float(np.median(distance[distance > 0])) if distance.any() else 1.0

    def distance(self, cells: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Return the distances between pairs of cells."""
        return np.asarray(np.linalg.norm(self.positions[cells] - self.positions[others], axis=1))


def matern(distance: np.ndarray, length: float) -> np.ndarray:
    """Matérn covariance with smoothness 3/2 and unit variance."""
    scaled = np.sqrt(3) * distance / length
    return np.asarray((1 + scaled) * np.exp(-scaled))


@dataclass(frozen=True, eq=False)
class Basis:
    """Low-rank basis of a Gaussian process over the positions of each section.

    With inducing points Z, the functions at s are ``L^-1 k(Z, s)``, where ``L L' = k(Z, Z)`` (Nyström). Surfaces with
    independent standard normal coefficients then have about the covariance k within a section, and 0 between sections.
    """

    centres: np.ndarray  # inducing points, functions x coordinates
    section: np.ndarray  # index of the section of each inducing point
    length: float  # length scale of the kernel
    factor: np.ndarray  # L, functions x functions

    @classmethod
    def from_places(cls, places: Places, length: float, *, seed: int) -> Basis:
        """Place inducing points by k-means in each section, in proportion to its cells."""
        from sklearn.cluster import MiniBatchKMeans  # slow import

        centres, section = [], []
        for number in np.unique(places.section):
            positions = places.positions[places.section == number]
            share = N_FUNCTIONS * len(positions) / len(places)
            n_centres = max(1, min(round(share), len(np.unique(positions, axis=0)) // 2))
            kmeans = MiniBatchKMeans(n_centres, n_init=1, batch_size=4096, random_state=seed).fit(positions)
            centres.append(kmeans.cluster_centers_)
            section.append(np.full(n_centres, number))
        points = Places(np.concatenate(centres), np.concatenate(section))
        kernel = cls.covariance(points, points, length) + JITTER * np.eye(len(points))
        return cls(points.positions, points.section, length, np.linalg.cholesky(kernel))

    @staticmethod
    def covariance(places: Places, others: Places, length: float) -> np.ndarray:
        """Return the covariance of a surface between positions, 0 between sections."""
        distance = np.linalg.norm(places.positions[:, None] - others.positions[None], axis=2)
        return np.where(places.section[:, None] == others.section, matern(distance, length), 0.0)

    def __call__(self, places: Places) -> np.ndarray:
        """Evaluate the functions, cells x functions."""
        points = Places(self.centres, self.section)
        functions = [
            solve_triangular(self.factor, self.covariance(points, places[cells], self.length), lower=True).T
            for cells in np.array_split(np.arange(len(places)), len(places) // 5000 + 1)
        ]
        return np.concatenate(functions)


# ---- strength of surfaces, by left-out blocks


@dataclass(frozen=True, eq=False)
class Statistics:
    """Sufficient statistics of weighted values for surfaces, in the eigenbasis of the functions."""

    eigenvalues: np.ndarray  # of the weighted products of functions
    projection: np.ndarray  # of functions and values, functions x outputs
    squares: np.ndarray  # weighted sums of squared values, outputs
    n_cells: int
    axes: np.ndarray  # eigenvectors in columns

    @classmethod
    def from_sums(cls, products: np.ndarray, projection: np.ndarray, squares: np.ndarray, n_cells: int) -> Statistics:
        """Rotate sums over cells to the eigenbasis."""
        eigenvalues, axes = np.linalg.eigh(products)
        return cls(eigenvalues.clip(min=0), axes.T @ projection, squares, n_cells, axes)

    def log_density(self, variance: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the log marginal density of each output, up to a constant.

        ``variance`` and ``noise`` are the variances of surface and noise, outputs.
        """
        ratio = 1 + np.outer(self.eigenvalues, variance / noise)
        fit = (variance / noise**2) * (self.projection**2 / ratio).sum(axis=0)
        log_determinant = self.n_cells * np.log(noise) + np.log(ratio).sum(axis=0)
        return np.asarray(-(log_determinant + self.squares / noise - fit) / 2)

    def coefficients(self, variance: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Return the posterior mean of the coefficients, functions x outputs."""
        return np.asarray(self.axes @ (self.projection * variance / (self.eigenvalues[:, None] * variance + noise)))


@dataclass(frozen=True, eq=False)
class BlockDesign:
    """Functions of the basis at cells, with weights and blocks."""

    functions: np.ndarray  # cells x functions
    weight: np.ndarray  # precision of each cell's values, with mean 1
    block: np.ndarray  # block of each cell

    def __getitem__(self, cells: np.ndarray) -> BlockDesign:
        return replace(self, functions=self.functions[cells], weight=self.weight[cells], block=self.block[cells])

    def statistics(self, values: np.ndarray) -> list[Statistics]:
        """Return statistics of values (cells x outputs): of all cells, then without each block."""
        parts = []
        for block in np.unique(self.block):
            cells = self.block == block
            squares = (self.weight[cells, None] * values[cells] ** 2).sum(axis=0)
            parts.append((*self[cells].products(values[cells]), squares, int(cells.sum())))
        total = tuple(sum(terms[1:], terms[0]) for terms in zip(*parts, strict=True))
        left = [tuple(whole - term for whole, term in zip(total, part, strict=True)) for part in parts]
        return [Statistics.from_sums(*sums) for sums in (total, *left) if sums[3]]

    def products(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the weighted products of functions with each other, and with values (cells x outputs)."""
        weighted = self.functions * self.weight[:, None]
        return weighted.T @ self.functions, weighted.T @ values

    def variance(self, values: np.ndarray) -> np.ndarray:
        """Return the weighted mean square of values, outputs."""
        return np.asarray((self.weight[:, None] * values**2).sum(axis=0) / self.weight.sum())

    def effective_cells(self, values: np.ndarray) -> np.ndarray:
        """Return the effective number of cells with a value other than 0 (Kish), outputs."""
        squares = self.weight[:, None] * values**2
        return np.asarray(squares.sum(axis=0) ** 2 / (squares**2).sum(axis=0).clip(min=1e-24))


def centred(values: np.ndarray, members: Sequence[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Subtract the weighted mean of each population from values (cells x outputs)."""
    centred_values = values.copy()
    for rows in filter(len, members):
        centred_values[rows] -= np.average(values[rows], axis=0, weights=weight[rows])
    return centred_values


def remaining_variance(total: np.ndarray, surface: np.ndarray) -> np.ndarray:
    """Return the variance that a surface leaves to noise, outputs."""
    return np.asarray(np.maximum(total - surface, MIN_NOISE * total))


def held_out_gain(statistics: Sequence[Statistics], variance: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Return the gain in log density of left-out blocks, in nats by output.

    All cells of a block are scored together, given the cells of all other blocks: ``p(all) / p(others)``. This rewards
    both the prediction of the block and the covariance within it.

    Parameters
    ----------
    statistics
        From :meth:`BlockDesign.statistics`.
    variance, total
        Variance of the surface, and of values, outputs.
    """
    whole, *left = statistics

    def density(surface: np.ndarray) -> np.ndarray:
        noise = remaining_variance(total, surface)
        all_cells = len(left) * whole.log_density(surface, noise)
        return np.asarray(all_cells - sum(part.log_density(surface, noise) for part in left))

    return np.asarray(density(variance) - density(np.zeros_like(variance)))


def fit_surfaces(
    design: BlockDesign, values: np.ndarray, minimum: float = MIN_GAIN
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit a surface of each output, with the strength that left-out blocks support.

    Parameters
    ----------
    design
        Functions of the basis at the cells.
    values
        Cells x outputs, with mean 0.
    minimum
        Held-out log density that a surface must gain, in nats.

    Returns
    -------
    Coefficients, functions x outputs; strength of each output; and its gain beyond the minimum in nats.
    """
    statistics, total = design.statistics(values), design.variance(values).clip(min=1e-12)
    gains = np.stack([held_out_gain(statistics, strength * total, total) for strength in STRENGTHS])
    gains[1:] -= np.where(design.effective_cells(values) < MIN_EFFECTIVE_CELLS, np.inf, minimum)
    strength = np.array(STRENGTHS)[gains.argmax(axis=0)]
    variance = strength * total
    coefficients = statistics[0].coefficients(variance, remaining_variance(total, variance))
    return coefficients, strength, gains.max(axis=0)


def fit_scaled_surfaces(design: BlockDesign, values: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Fit surfaces with a common multiple of given strengths.

    Left-out blocks choose the multiple. Returns the coefficients, functions x outputs; 0 if no multiple gains.
    """
    statistics, total = design.statistics(values), design.variance(values).clip(min=1e-12)
    strengths = [np.minimum(multiple * strength, max(STRENGTHS)) for multiple in MULTIPLES]
    gains = np.array([held_out_gain(statistics, each * total, total).sum() for each in strengths])
    gains[1:] -= MIN_GAIN
    variance = strengths[gains.argmax()] * total
    return statistics[0].coefficients(variance, remaining_variance(total, variance))


# ---- local variation: what neighbouring cells share beyond the surfaces


def covariance_beyond(
    values: np.ndarray, surface: np.ndarray, weight: np.ndarray, pairs_of_cells: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the covariance of pairs of cells in ``values`` minus the one in ``surface`` (both cells x outputs).

    Returns also its standard error without any covariance; both by output.
    """
    cells, neighbours = pairs_of_cells
    covariance, pair_weight = np.zeros(values.shape[1]), weight[cells] * weight[neighbours]
    for pairs in np.array_split(np.arange(len(cells)), len(cells) // MAX_PAIRS + 1):
        first, second = cells[pairs], neighbours[pairs]
        covariance += pair_weight[pairs] @ (values[first] * values[second] - surface[first] * surface[second])
    return covariance / pair_weight.sum(), (weight @ values**2 / weight.sum()) / np.sqrt(len(cells) / 2)


def local_variance(
    values: np.ndarray,
    surface: np.ndarray,
    weight: np.ndarray,
    places: Places,
    length: float,
    minimum: float,
) -> np.ndarray:
    """Estimate the variance that neighbouring cells share beyond a surface.

    It is :func:`covariance_beyond`, divided by the kernel at the distance of neighbours; 0 below ``minimum`` standard
    errors.
    """
    neighbours = places.neighbours()
    covariance, error = covariance_beyond(values, surface, weight, neighbours)
    total, explained = (weight @ x**2 / weight.sum() for x in (values, surface))
    kernel = matern(places.distance(*neighbours), length).mean()
    shared = np.where(covariance > minimum * error, covariance, 0) / kernel
    return np.asarray(np.minimum(shared, MAX_LOCAL * (total - explained)).clip(min=0))


@dataclass(frozen=True, eq=False)
class LocalFields:
    """Independent random fields of unit variance, by random Fourier features (Rahimi and Recht 2007)."""

    frequencies: np.ndarray  # features x (coordinates + 1), see :meth:`Places.apart`
    phases: np.ndarray  # features
    amplitudes: np.ndarray  # features x fields

    @classmethod
    def from_seed(cls, n_fields: int, n_coordinates: int, length: float, *, seed: int, name: str) -> LocalFields:
        """Draw fields with a Matérn covariance.

        Its spectrum is a t distribution with 3 degrees of freedom.
        """
        generator = numpy_generator(seed, "local", name)
        scale = np.sqrt(3 / generator.chisquare(3, (N_FEATURES, 1))) / length
        frequencies = generator.standard_normal((N_FEATURES, n_coordinates + 1)) * scale
        phases = generator.uniform(0, 2 * np.pi, N_FEATURES)
        return cls(frequencies, phases, generator.standard_normal((N_FEATURES, n_fields)) * np.sqrt(2 / N_FEATURES))

    def __call__(self, places: Places) -> np.ndarray:
        """Evaluate the fields, cells x fields."""
        return np.asarray(np.cos(places.apart() @ self.frequencies.T + self.phases) @ self.amplitudes)
