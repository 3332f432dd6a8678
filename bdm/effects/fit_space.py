"""Parts of the fit of effects of positions: surfaces of latents and genes, a map of populations, local variation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from bdm._core.seeds import numpy_generator, to_tensor
from bdm._core.store import concat
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.inputs import batch_codes
from bdm.autoencoder.latent import LatentCells
from bdm.autoencoder.moments import (
    PopulationMoments,
    Whitening,
    matrix_power,
)
from bdm.effects.odds import choose_ridge, fit_log_odds
from bdm.effects.surfaces import (
    MIN_GAIN,
    Basis,
    BlockDesign,
    LocalFields,
    Places,
    centred,
    covariance_beyond,
    fit_scaled_surfaces,
    fit_surfaces,
)
from bdm.effects.tissue import COUPLING_LENGTH, GeneSurfaces, choose

LENGTHS = (0.1, 0.2, 0.4, 0.8)  # candidate length scales, in units of the spread of a section
N_PERMUTATIONS = 59  # of positions; with fewer, more than one fit in twenty had a surface of latents by chance
MAX_PERMUTED = 10_000  # cells to permute
MIN_CELLS_OF_TYPE = 30  # types with fewer cells share the common surface
N_FACTOR_NEIGHBOURS = 3
MIN_SPREAD = 0.05  # smallest part of the variance of latents that surfaces leave
MIN_MEAN = 1e-3  # of expected counts
MAX_RELATIVE = 10.0  # largest residual of a count, relative to its mean
N_GENES = 200  # genes to fit together
# Blocks of a section to leave out for the map, along each coordinate. They are smaller than for surfaces, because a
# surface is scored with its covariance within a block, but a map cell by cell.
N_MAP_BLOCKS = 20
MAX_MAP_CELLS = 5000  # to choose the penalty
N_FOLDS = 5  # groups of left-out blocks
COUPLINGS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class SpatialCells:
    """Fitted cells with positions, and what is known of them without these."""

    places: Places
    latents: LatentCells
    counts: ad.AnnData
    autoencoder: GeneAutoencoder
    whitening: Whitening
    moments: PopulationMoments
    block: np.ndarray  # left-out block of each cell
    weight: np.ndarray  # information on the latent of each cell, with mean 1

    def __getitem__(self, rows: np.ndarray) -> SpatialCells:
        return replace(
            self,
            places=self.places[rows],
            latents=self.latents.subset(torch.from_numpy(rows)),
            counts=self.counts[rows],
            block=self.block[rows],
            weight=self.weight[rows],
        )

    @property
    def population(self) -> np.ndarray:
        """Index of each cell's population."""
        return self.latents.population.numpy()

    @property
    def log_share(self) -> np.ndarray:
        """Log share of each population."""
        n_cells = np.bincount(self.population, minlength=len(self.latents.populations))
        return np.asarray(np.log(n_cells.clip(min=0.5) / len(self.population)))

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Cell types in the order of their first population."""
        return tuple(dict.fromkeys(self.latents.labels))

    def of_types(self) -> list[np.ndarray]:
        """Return the cells of each type with enough cells for a surface of its own, none for other types."""
        labels = np.array(self.latents.labels)[self.population]
        cells = [np.flatnonzero(labels == name) for name in self.cell_types]
        minimum = MIN_CELLS_OF_TYPE if len(cells) > 1 else np.inf
        return [each if len(each) >= minimum else each[:0] for each in cells]

    def members(self) -> list[np.ndarray]:
        """Return the cells of each population."""
        return self.latents.members()


def autocorrelation_factors(
    values: np.ndarray, weight: np.ndarray, neighbours: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Return axes along which neighbouring cells covary independently, dimensions x factors.

    They diagonalise both the covariance of values (cells x dimensions), to 1, and the covariance between neighbours
    (maximum autocorrelation factors, Switzer and Green 1984).
    """
    weighted = values * weight[:, None]
    whiten = matrix_power(torch.from_numpy(weighted.T @ values / weight.sum()), -0.5).numpy()
    first, second = neighbours
    between = weighted[first].T @ weighted[second] / (weight[first] @ weight[second])
    axes = np.linalg.eigh(whiten @ (between + between.T) / 2 @ whiten)[1]
    return np.asarray(whiten @ axes[:, ::-1])


@dataclass(frozen=True)
class Chance:
    """Largest effects of permuted positions on factors."""

    gain: float  # of a surface, in nats
    local_errors: float  # covariance of neighbours, in standard errors


def by_chance(values: np.ndarray, cells: SpatialCells, seed: int) -> Chance:
    """Measure the largest effects of permuted positions, whose axes are also chosen by the cells that score them.

    ``values`` (cells x dimensions) are permuted within populations, in units of their standard errors.
    """
    generator = numpy_generator(seed, "permuted positions")
    rows = np.sort(generator.permutation(len(values))[:MAX_PERMUTED])
    cells, root = cells[rows], np.sqrt(cells.weight[rows, None])
    standardised, factors, errors = values[rows] * root, [], []
    populations = cells.members()
    near, neighbours = cells.places.neighbours(N_FACTOR_NEIGHBOURS), cells.places.neighbours()
    for _ in range(N_PERMUTATIONS):
        order = np.arange(len(rows))
        for members in populations:
            order[members] = generator.permutation(members)
        permuted = standardised[order] / root
        factors.append(permuted @ autocorrelation_factors(permuted, cells.weight, near))
        covariance, error = covariance_beyond(factors[-1], np.zeros_like(permuted), cells.weight, neighbours)
        errors.append((covariance / error).max())
    gains = [
        fit_surfaces(BlockDesign(basis(cells.places), cells.weight, cells.block), np.hstack(factors), 0.0)[2].max()
        for basis in (Basis.from_places(cells.places, length, seed=seed) for length in LENGTHS)
    ]
    return Chance(max(gains), max(errors))


def choose_basis(
    values: np.ndarray, cells: SpatialCells, chance: Chance, seed: int
) -> tuple[Basis, np.ndarray, np.ndarray, np.ndarray]:
    """Choose the length scale with which surfaces and map make left-out blocks most probable.

    Returns the basis; coefficients (functions x factors) and strengths of the surfaces that all types share; and log
    odds of populations (functions x populations).
    """
    best, most = None, -np.inf
    for length in LENGTHS:
        basis = Basis.from_places(cells.places, length, seed=seed)
        functions = basis(cells.places)
        design = BlockDesign(functions, cells.weight, cells.block)
        coefficients, strength, gains = fit_surfaces(design, values, max(chance.gain, MIN_GAIN))
        ridge, map_gain = fit_map(functions, cells, seed)
        if gains.sum() + map_gain > most:
            best, most = (basis, functions, coefficients, strength, ridge), gains.sum() + map_gain
    assert best is not None
    basis, functions, coefficients, strength, ridge = best
    log_odds = np.zeros((functions.shape[1], len(cells.log_share)))
    if ridge is not None:
        log_odds = fit_log_odds(functions, cells.population, cells.log_share, ridge, log_odds)
    return basis, coefficients, strength, log_odds


def type_surfaces(
    design: BlockDesign, values: np.ndarray, cells: SpatialCells, shared: np.ndarray, strength: np.ndarray
) -> np.ndarray:
    """Add to the shared surface what left-out blocks support for each type; cell types x functions x factors."""
    surfaces = []
    rest = centred(values - design.functions @ shared, cells.members(), design.weight)
    for rows in cells.of_types():
        own = fit_scaled_surfaces(design[rows], rest[rows], strength) if len(rows) else 0
        surfaces.append(shared + own)
    return np.stack(surfaces)


def centred_surfaces(
    design: BlockDesign, coefficients: np.ndarray, cells: SpatialCells
) -> tuple[np.ndarray, np.ndarray]:
    """Return the shift of each cell (cells x dimensions), with mean 0 by population, and the means before."""
    surface, centre = np.empty((len(cells.places), coefficients.shape[2])), []
    for label, members in zip(cells.latents.labels, cells.members(), strict=True):
        shift = design.functions[members] @ coefficients[cells.cell_types.index(label)]
        centre.append(shift.mean(axis=0) if len(members) else np.zeros(shift.shape[1]))
        surface[members] = shift - centre[-1]
    return surface, np.stack(centre)


def narrowed(covariance: Tensor, surface: np.ndarray, local: np.ndarray) -> np.ndarray:
    """Return the transposed linear map A that leaves room for the variance between positions.

    With covariance C, and S of ``surface`` and local variation, ``A C A' + S = C``, as far as the smallest remaining
    part of the variance is ``MIN_SPREAD``.
    """
    added = surface.T @ surface / max(len(surface), 1) + local.T @ local
    root, inverse = (matrix_power(covariance.double(), power).numpy() for power in (0.5, -0.5))
    remaining, axes = np.linalg.eigh(np.eye(len(root)) - inverse @ added @ inverse)
    return np.asarray(inverse @ (axes * np.sqrt(remaining.clip(min=MIN_SPREAD))) @ axes.T @ root)


@torch.no_grad()
def expected_at(surface: np.ndarray, cells: SpatialCells) -> np.ndarray:
    """Return counts at the mean latent of each cell's population, shifted by ``surface``; cells x genes."""
    batch = batch_codes(cells.counts, cells.autoencoder.batches)
    expected, layout = np.empty(cells.counts.shape, dtype=np.float32), cells.latents.layout
    for name, mean, members in zip(cells.moments.populations, cells.moments.mean, cells.members(), strict=True):
        latent = cells.whitening.inverse(mean + to_tensor(surface[members]).float())[:, layout.latent]
        log_size = cells.latents.mean[members][:, layout.library_sizes]
        decoder = cells.autoencoder.network_of(name).decoder
        expected[members] = decoder.decode(latent, batch[members], log_size=log_size).exp().numpy()
    return expected


def gene_surfaces(design: BlockDesign, surface: np.ndarray, cells: SpatialCells) -> GeneSurfaces:
    """Fit surfaces of genes that latents, shifted by ``surface`` in each cell, do not explain."""
    expected, counts, n_genes = expected_at(surface, cells), cells.counts.X.tocsc(), cells.counts.n_vars
    size = counts.sum(axis=1).A1.clip(min=1)
    parts = []
    for start in range(0, n_genes, N_GENES):
        genes = slice(start, min(start + N_GENES, n_genes))
        observed, mean = counts[:, genes].toarray().astype(float), expected[:, genes].astype(float)
        for members in cells.members():
            mean[members] *= (observed[members].sum(axis=0) + 1) / (mean[members].sum(axis=0) + 1)
        relative = (observed / mean.clip(min=MIN_MEAN) - 1).clip(max=MAX_RELATIVE)
        weight = inverse_variance(centred(relative, cells.members(), size), size)
        relative = centred(relative, cells.members(), weight)
        parts.append(surfaces_of_genes(BlockDesign(design.functions, weight, design.block), relative, cells))
    return concat(parts)


def inverse_variance(relative: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the inverse of the residuals' variance in each cell, with mean 1.

    The variance is ``a / size + b``, for noise of counts and variation between cells; both are fitted to the mean over
    genes of squared residuals (cells x genes), in units of the gene's mean square.

    ``size`` is the library size of each cell.
    """
    square = (relative**2 / (relative**2).mean(axis=0).clip(min=1e-12)).mean(axis=1)
    terms = np.column_stack([size.mean() / size, np.ones(len(size))])
    precision = 1 / terms.sum(axis=1)
    (a, b), _ = nnls(terms * precision[:, None], square * precision)
    weight = 1 / (terms @ [a, b]).clip(min=1e-12)
    return np.asarray(weight / weight.mean())


def surfaces_of_genes(design: BlockDesign, relative: np.ndarray, cells: SpatialCells) -> GeneSurfaces:
    """Fit the surfaces of some genes to residuals of counts, relative to their means, cells x genes."""
    shared, _, _ = fit_surfaces(design, relative)
    surface, of_types = design.functions @ shared, cells.of_types()
    rest = centred(relative - surface, cells.members(), design.weight)
    own = np.zeros((relative.shape[1], len(of_types), len(shared)))
    variance = surface.var(axis=0)[:, None].repeat(len(of_types) + 1, axis=1)
    for code, rows in enumerate(of_types):
        if len(rows):
            coefficients, _, _ = fit_surfaces(design[rows], rest[rows])
            own[:, code] = coefficients.T
            surface[rows] += design.functions[rows] @ coefficients
            changed = coefficients.any(axis=0)
            variance[changed, code] = surface[np.ix_(rows, changed)].var(axis=0)
    has_own = np.asarray(own.any(axis=2))
    return GeneSurfaces(shared.T, has_own, own[has_own], variance)


# ---- map of populations


def fit_map(functions: np.ndarray, cells: SpatialCells, seed: int) -> tuple[float | None, float]:
    """Choose the penalty of the map by left-out blocks; returns it, or None, and the gain in nats over all cells."""
    generator = numpy_generator(seed, "map")
    sample = generator.permutation(len(functions))[:MAX_MAP_CELLS]
    block = cells.places[sample].blocks(N_MAP_BLOCKS)
    blocks = np.unique(block)
    fold = (generator.permutation(len(blocks)) % N_FOLDS)[np.searchsorted(blocks, block)]
    ridge, gain = choose_ridge(functions[sample], cells.population[sample], cells.log_share, fold)
    return ridge, gain * len(cells.population) / len(sample)


def fit_coupling(log_odds: np.ndarray, cells: SpatialCells, seed: int) -> float:
    """Fit the coupling of neighbours with which they are as often of one population as in the cells."""
    first, second = cells.places.neighbours()
    observed = (cells.population[first] == cells.population[second]).mean()
    n_coordinates, length = cells.places.positions.shape[1], COUPLING_LENGTH * cells.places.spacing
    independent = numpy_generator(seed, "coupling").standard_normal(log_odds.shape)
    fields = LocalFields.from_seed(log_odds.shape[1], n_coordinates, length, seed=seed, name="coupling")
    shared = fields(cells.places)

    def agreement(coupling: float) -> float:
        chosen = choose(log_odds, independent, shared, coupling)
        return float((chosen[first] == chosen[second]).mean())

    return min(COUPLINGS, key=lambda coupling: abs(agreement(coupling) - observed))
