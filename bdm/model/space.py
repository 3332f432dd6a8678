"""Effects of positions on cells: surfaces of latents and genes, a map of populations, local variation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import anndata as ad
import numpy as np
import torch
from scipy.spatial import cKDTree
from scipy.special import ndtr, softmax
from torch import Tensor

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.seeds import numpy_generator, to_tensor
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.inputs import batch_codes
from bdm.autoencoder.latent import LatentCells, latent_cells
from bdm.autoencoder.moments import (
    PopulationMoments,
    Whitening,
    fit_whitening,
    matrix_power,
    population_moments,
    without_prior,
)
from bdm.autoencoder.observation import ObservationModel
from bdm.data.space import POSITIONS, has_positions, sections_of
from bdm.model.surfaces import (
    MIN_GAIN,
    Basis,
    BlockDesign,
    LocalFields,
    Places,
    fit_local_length,
    fit_scaled_surfaces,
    fit_surfaces,
    local_variance,
)

MAX_CELLS = 100_000  # to fit surfaces to
LENGTHS = (0.1, 0.2, 0.4, 0.8)  # candidate length scales, in units of the spread of a section
# Held-out log density that surfaces of latents must gain together, in nats. Their axes are chosen by the same cells: in
# 30 permutations of 700 cells, the largest gain by chance was 6.
MIN_TOTAL_GAIN = 10.0
MIN_CELLS_OF_TYPE = 30  # types with fewer cells share the common surface
N_FACTOR_NEIGHBOURS = 3
MIN_SPREAD = 0.05  # smallest part of the variance of latents that surfaces leave
MIN_MEAN = 1e-3  # of expected counts
MAX_RELATIVE = 10.0  # largest residual of a count, relative to its mean
GENE_OFFSETS = (-0.9, 5.0)  # limits of the relative change of a mean
N_GENES = 200  # genes to fit together
RIDGES = (3.0, 1.0, 0.3, 0.1)  # candidate ridge penalties of the map, largest first
# Blocks of a section to leave out for the map, along each coordinate. They are smaller than for surfaces, because a
# surface is scored with its covariance within a block, but a map cell by cell.
N_MAP_BLOCKS = 20
MAX_MAP_CELLS = 5000  # to choose the penalty
N_FOLDS = 5  # groups of left-out blocks
COUPLING_LENGTH = 2.0  # of neighbours of one population, in median distances to the nearest neighbours
COUPLINGS = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
N_CANDIDATES, MIN_CANDIDATES = 10, 2000  # positions to choose from, per cell and in all
BIN_WIDTH = 2.0  # of the density of positions, in median distances to the nearest neighbours
MAX_DISTANCE = 0.25  # of locations from the tissue, in units of the spread of a section


@dataclass(frozen=True, eq=False)
class Tissue:
    """Density of positions: numbers of cells in square or cubic bins, which also delimit the tissue."""

    width: float  # of a bin, in units of the kernel
    bins: np.ndarray  # occupied bins, bins x (section, coordinates)
    n_cells: np.ndarray  # cells of each bin

    @classmethod
    def from_places(cls, places: Places) -> Tissue:
        """Count cells in bins."""
        width = BIN_WIDTH * places.spacing
        bins, n_cells = np.unique(cls.bins_of(places, width), axis=0, return_counts=True)
        return cls(width, bins, n_cells)

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

        A bin is drawn in proportion to its cells, then a uniform position in the bin.
        """
        n_cells = np.where((section is None) | (self.bins[:, 0] == section), self.n_cells, 0)
        rows = generator.choice(len(self.bins), n, p=n_cells / n_cells.sum())
        bins = self.bins[rows]
        return Places((bins[:, 1:] + generator.random((n, bins.shape[1] - 1))) * self.width, bins[:, 0])


@dataclass(frozen=True, eq=False)
class SpatialEffects:
    """Effects of positions on cells.

    At position s, a whitened latent x of population p and cell type c becomes ``m_p + A_p (x - m_p) + f_c(s) - c_p +
    u(s)``. m_p is the mean of the population, f_c the surface of the type, c_p its mean over the cells of the
    population, and u local variation, which neighbouring cells share. A_p narrows the population, so that its
    covariance over all positions stays the same. The mean of gene g changes by the factor ``1 + f_g(s) + u_g(s)``.
    Surfaces are sums of basis functions. The log odds of populations are such sums as well.
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
    # surfaces of genes
    gene_coefficients: np.ndarray  # functions x genes
    gene_local: np.ndarray  # standard deviation of local variation, genes
    gene_variance: np.ndarray  # variance of the relative mean over cells, genes
    # map of populations
    log_odds: np.ndarray  # functions x populations
    log_share: np.ndarray  # populations
    coupling: float  # correlation between neighbouring cells of the scores that choose populations
    coupling_length: float  # length scale of this correlation
    local_length: float  # length scale of local variation
    tissue: Tissue

    @property
    def n_coordinates(self) -> int:
        """Number of coordinates of a position."""
        return int(self.basis.centres.shape[1])

    @property
    def summary(self) -> str:
        """Short summary for reports."""
        n_genes = int((np.abs(self.gene_coefficients).sum(axis=0) + self.gene_local > 0).sum())
        smooth = "no surface" if not self.coefficients.any() else f"surfaces of length {self.basis.length:g}"
        return f"{counted(len(self.sections), 'section')}, {smooth}, {counted(n_genes, 'gene')} with own surfaces"

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
        candidates = self.tissue.sample(max(N_CANDIDATES * len(population), MIN_CANDIDATES), generator, section)
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
        return candidates[chosen]

    def realised(self, seed: int) -> RealisedSpace:
        """Draw the local variation of a seed."""

        def fields(n: int, length: float, name: str) -> LocalFields:
            return LocalFields.from_seed(n, self.n_coordinates, length, seed=seed, name=name)

        latent = fields(len(self.local), self.local_length, "latent")
        genes = fields(int((self.gene_local > 0).sum()), self.local_length, "genes")
        return RealisedSpace(
            self, latent, genes, fields(len(self.populations), self.coupling_length, "populations"), seed
        )


@dataclass(frozen=True, eq=False)
class RealisedSpace:
    """Effects of positions with one draw of their local variation."""

    effects: SpatialEffects
    latent_fields: LocalFields
    gene_fields: LocalFields
    population_fields: LocalFields
    seed: int

    def move(self, x: Tensor, population: str, moments: PopulationMoments, places: Places) -> Tensor:
        """Move whitened cells of a population to their places; cells of added types stay the same."""
        effects = self.effects
        if population not in effects.populations:
            return x
        row, mean = effects.populations.index(population), moments.mean[moments.populations.index(population)]
        surface = effects.coefficients[effects.cell_types.index(effects.labels[row])]
        shift = effects.basis(places) @ surface - effects.centre[row] + self.latent_fields(places) @ effects.local
        return mean + (x - mean) @ to_tensor(effects.narrowing[row]).to(x) + to_tensor(shift).to(x)

    def gene_offset(self, places: Places) -> Tensor:
        """Return offsets of log expression, cells x genes."""
        effects = self.effects
        relative = effects.basis(places) @ effects.gene_coefficients
        is_local = effects.gene_local > 0
        relative[:, is_local] += self.gene_fields(places) * effects.gene_local[is_local]
        return to_tensor(np.log1p(relative.clip(*GENE_OFFSETS))).float()

    def observation(self, observation: ObservationModel) -> ObservationModel:
        """Remove the variance that :meth:`gene_offset` adds from an observation model."""
        return observation.within(to_tensor(np.log1p(self.effects.gene_variance)))

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


# ---- fit


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

    @property
    def population(self) -> np.ndarray:
        """Index of each cell's population."""
        return self.latents.population.numpy()

    @property
    def log_share(self) -> np.ndarray:
        """Log share of each population."""
        n_cells = np.bincount(self.population, minlength=len(self.latents.populations))
        return np.asarray(np.log(n_cells.clip(min=0.5) / len(self.population)))

    def members(self) -> list[np.ndarray]:
        """Return the cells of each population."""
        return [np.flatnonzero(self.population == code) for code in range(len(self.latents.populations))]


def fit_space(
    prepared: ad.AnnData, latent: ad.AnnData, autoencoder: GeneAutoencoder, *, seed: int
) -> SpatialEffects | None:
    """Fit effects of positions to training and validation cells; None without positions.

    Parameters
    ----------
    prepared
        Prepared cells with ``obsm["spatial"]``, and ``obs["section"]`` if there are several sections.
    latent
        Their latents, without effects of covariates.
    autoencoder
        Autoencoder of the latents.
    seed
        Seed of all random numbers.
    """
    if not has_positions(prepared):
        return None
    rows = np.flatnonzero((prepared.obs["split"] != "test").to_numpy())
    sections, codes = np.unique(sections_of(prepared.obs)[rows], return_inverse=True)
    positions = np.asarray(prepared.obsm[POSITIONS], dtype=float)[rows]
    centres = np.stack([positions[codes == code].mean(axis=0) for code in range(len(sections))])
    unit = float(np.sqrt(((positions - centres[codes]) ** 2).mean()))
    sample = np.arange(len(rows))
    if len(sample) > MAX_CELLS:
        sample = np.sort(numpy_generator(seed, "cells in space").choice(len(sample), MAX_CELLS, replace=False))
    latents = latent_cells(latent)
    whitening = fit_whitening(latents)
    moments, latents = population_moments(latents, whitening), latents.subset(torch.from_numpy(sample))
    information = (1 - latents.scale.double() ** 2).mean(dim=1).numpy()
    places, counts = Places(positions[sample] / unit, codes[sample]), prepared[rows[sample]]
    weight = information / information.mean()
    cells = SpatialCells(places, latents, counts, autoencoder, whitening, moments, places.blocks(), weight)

    values = centred(without_prior(latents, whitening).double().numpy(), cells.members(), weight)
    axes = autocorrelation_factors(values, cells)
    factors, to_latents = values @ axes, np.linalg.inv(axes)
    basis, shared, strength, log_odds = choose_basis(factors, cells, seed)
    design = BlockDesign(basis(places), weight, cells.block)
    coefficients = type_surfaces(design, factors, cells, shared, strength) @ to_latents
    cell_types = tuple(dict.fromkeys(latents.labels))
    surface, centre = centred_surfaces(design, coefficients, cell_types, cells)

    coupling_length = COUPLING_LENGTH * places.spacing
    length = fit_local_length(factors, surface @ axes, weight, places)
    variance = local_variance(factors, surface @ axes, weight, places, length)
    local = (np.sqrt(variance)[:, None] * to_latents)[variance > 0]
    narrowing = np.stack(
        [
            narrowed(covariance, surface[members], local)
            for covariance, members in zip(moments.covariance, cells.members(), strict=True)
        ]
    )
    gene_coefficients, gene_local = gene_surfaces(design, surface, local, cells, length)
    gene_variance = (design.functions @ gene_coefficients).var(axis=0) + gene_local**2
    return SpatialEffects(
        unit=unit,
        sections=tuple(map(str, sections)),
        basis=basis,
        cell_types=cell_types,
        coefficients=coefficients,
        populations=latents.populations,
        labels=latents.labels,
        centre=centre,
        narrowing=narrowing,
        local=local,
        gene_coefficients=gene_coefficients,
        gene_local=gene_local,
        gene_variance=gene_variance,
        log_odds=log_odds,
        log_share=cells.log_share,
        coupling=fit_coupling(design.functions @ log_odds + cells.log_share, cells, coupling_length, seed),
        coupling_length=coupling_length,
        local_length=length,
        tissue=Tissue.from_places(places),
    )


def centred(values: np.ndarray, members: Sequence[np.ndarray], weight: np.ndarray) -> np.ndarray:
    """Subtract the weighted mean of each population from values (cells x outputs)."""
    centred_values = values.copy()
    for rows in filter(len, members):
        centred_values[rows] -= np.average(values[rows], axis=0, weights=weight[rows])
    return centred_values


def autocorrelation_factors(values: np.ndarray, cells: SpatialCells) -> np.ndarray:
    """Return axes along which neighbouring cells covary independently, dimensions x factors.

    They diagonalise both the covariance of values (cells x dimensions), to 1, and the covariance between neighbours
    (maximum autocorrelation factors, Switzer and Green 1984).
    """
    weighted = values * cells.weight[:, None]
    whiten = matrix_power(torch.from_numpy(weighted.T @ values / cells.weight.sum()), -0.5).numpy()
    first, second = cells.places.neighbours(N_FACTOR_NEIGHBOURS)
    between = weighted[first].T @ weighted[second] / (cells.weight[first] @ cells.weight[second])
    axes = np.linalg.eigh(whiten @ (between + between.T) / 2 @ whiten)[1]
    return np.asarray(whiten @ axes[:, ::-1])


def choose_basis(
    values: np.ndarray, cells: SpatialCells, seed: int
) -> tuple[Basis, np.ndarray, np.ndarray, np.ndarray]:
    """Choose the length scale with which surfaces and map make left-out blocks most probable.

    Returns the basis; coefficients (functions x factors) and strengths of the surfaces that all types share; and log
    odds of populations (functions x populations).
    """
    best, most = None, -np.inf
    for length in LENGTHS:
        basis = Basis.from_places(cells.places, length, seed=seed)
        functions = basis(cells.places)
        coefficients, strength, gain = fit_surfaces(BlockDesign(functions, cells.weight, cells.block), values)
        if gain < MIN_TOTAL_GAIN:
            coefficients, strength, gain = np.zeros_like(coefficients), np.zeros_like(strength), 0.0
        ridge, map_gain = choose_ridge(functions, cells, seed)
        if gain + map_gain > most:
            best, most = (basis, functions, coefficients, strength, ridge), gain + map_gain
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
    labels, surfaces = np.array(cells.latents.labels), []
    rest = centred(values - design.functions @ shared, cells.members(), design.weight)
    for name in dict.fromkeys(cells.latents.labels):
        rows, own = np.flatnonzero(labels[cells.population] == name), np.zeros_like(shared)
        if len(rows) >= MIN_CELLS_OF_TYPE and len(set(labels)) > 1:
            part = BlockDesign(design.functions[rows], design.weight[rows], design.block[rows])
            own = fit_scaled_surfaces(part, rest[rows], strength)
        surfaces.append(shared + own)
    return np.stack(surfaces)


def centred_surfaces(
    design: BlockDesign, coefficients: np.ndarray, cell_types: tuple[str, ...], cells: SpatialCells
) -> tuple[np.ndarray, np.ndarray]:
    """Return the shift of each cell (cells x dimensions), with mean 0 by population, and the means before."""
    surface, centre = np.empty((len(cells.places), coefficients.shape[2])), []
    for label, members in zip(cells.latents.labels, cells.members(), strict=True):
        shift = design.functions[members] @ coefficients[cell_types.index(label)]
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


def gene_surfaces(
    design: BlockDesign, surface: np.ndarray, local: np.ndarray, cells: SpatialCells, length: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fit surfaces and local variation of genes that latents do not explain.

    ``surface`` is the shift of latents of each cell, ``local`` the shift by each local field.

    Returns coefficients (functions x genes) and standard deviations of local variation (genes).
    """
    expected, counts, n_genes = expected_at(surface, cells), cells.counts.X.tocsc(), cells.counts.n_vars
    size = np.asarray(counts.sum(axis=1)).ravel()
    design = BlockDesign(design.functions, size / size.mean(), design.block)
    coefficients, deviation = np.zeros((design.functions.shape[1], n_genes)), np.zeros(n_genes)
    axes = cells.whitening.colour(to_tensor(local).float())[:, cells.latents.layout.latent].double().numpy().T
    mean_expression = counts.sum(axis=0).A1 / counts.sum()
    from_latents = (cells.autoencoder.network.decoder.directions(mean_expression, axes) ** 2).sum(axis=1)
    for start in range(0, n_genes, N_GENES):
        genes = slice(start, min(start + N_GENES, n_genes))
        observed, mean = counts[:, genes].toarray().astype(float), expected[:, genes].astype(float)
        for members in cells.members():
            mean[members] *= (observed[members].sum(axis=0) + 1) / (mean[members].sum(axis=0) + 1)
        relative = (observed / mean.clip(min=MIN_MEAN) - 1).clip(max=MAX_RELATIVE)
        relative = centred(relative, cells.members(), design.weight)
        coefficients[:, genes], _, _ = fit_surfaces(design, relative)
        explained = design.functions @ coefficients[:, genes]
        variance = local_variance(relative, explained, design.weight, cells.places, length)
        deviation[genes] = np.sqrt((variance - from_latents[genes]).clip(min=0))
    return coefficients, deviation


# ---- map of populations


def fit_log_odds(
    functions: np.ndarray, population: np.ndarray, log_share: np.ndarray, ridge: float, start: np.ndarray
) -> np.ndarray:
    """Fit a multinomial logistic regression with a ridge penalty; returns functions x populations."""
    inputs, offset = torch.from_numpy(functions), torch.from_numpy(log_share)
    target, coefficients = torch.from_numpy(population).long(), torch.tensor(start, requires_grad=True)
    optimiser = torch.optim.LBFGS([coefficients], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        misfit = torch.nn.functional.cross_entropy(inputs @ coefficients + offset, target, reduction="sum")
        value: Tensor = misfit + ridge / 2 * (coefficients**2).sum()
        value.backward()
        return value

    optimiser.step(loss)
    return np.asarray(coefficients.detach())


def choose_ridge(functions: np.ndarray, cells: SpatialCells, seed: int) -> tuple[float | None, float]:
    """Choose the penalty with which the map makes populations of left-out blocks most probable.

    Returns the penalty, or None if no map is better than constant shares, and the gain in nats over all cells.
    """
    generator, log_share = numpy_generator(seed, "map"), cells.log_share
    sample = generator.permutation(len(functions))[:MAX_MAP_CELLS]
    functions, population, block = (
        functions[sample],
        cells.population[sample],
        cells.places[sample].blocks(N_MAP_BLOCKS),
    )
    blocks = np.unique(block)
    fold = (generator.permutation(len(blocks)) % N_FOLDS)[np.searchsorted(blocks, block)]
    gains = np.zeros(len(RIDGES))
    for number in range(min(N_FOLDS, len(blocks)) if len(blocks) > 1 else 0):
        held_out = fold == number
        log_odds = np.zeros((functions.shape[1], len(log_share)))
        for k, ridge in enumerate(RIDGES):
            log_odds = fit_log_odds(functions[~held_out], population[~held_out], log_share, ridge, log_odds)
            logits = functions[held_out] @ log_odds + log_share
            log_ratio = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) - log_share
            gains[k] += log_ratio[np.arange(len(logits)), population[held_out]].sum()
    best = int(gains.argmax())
    if gains[best] <= MIN_GAIN:
        return None, 0.0
    return RIDGES[best], float(gains[best]) * len(cells.population) / len(sample)


def fit_coupling(log_odds: np.ndarray, cells: SpatialCells, length: float, seed: int) -> float:
    """Fit the coupling of neighbours with which they are as often of one population as in the cells."""
    first, second = cells.places.neighbours()
    observed = (cells.population[first] == cells.population[second]).mean()
    n_coordinates = cells.places.positions.shape[1]
    independent = numpy_generator(seed, "coupling").standard_normal(log_odds.shape)
    fields = LocalFields.from_seed(log_odds.shape[1], n_coordinates, length, seed=seed, name="coupling")
    shared = fields(cells.places)

    def agreement(coupling: float) -> float:
        chosen = choose(log_odds, independent, shared, coupling)
        return float((chosen[first] == chosen[second]).mean())

    return min(COUPLINGS, key=lambda coupling: abs(agreement(coupling) - observed))
