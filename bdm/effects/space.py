"""Effects of positions on cells: surfaces of latents and genes, a map of populations, local variation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd
import torch
from scipy.special import softmax
from torch import Tensor

from bdm._core.errors import InputError, abbreviated, counted
from bdm._core.seeds import numpy_generator, to_tensor
from bdm.autoencoder.latent import latent_cells
from bdm.autoencoder.moments import fit_whitening, population_moments, without_prior
from bdm.autoencoder.observation import ObservationModel
from bdm.data.filters import is_fitted
from bdm.data.space import COORDINATES, POSITIONS, SECTION, has_positions, sections_of
from bdm.effects.effect import CellsToFit, Effect, LatentSpace
from bdm.effects.fit_space import (
    N_FACTOR_NEIGHBOURS,
    SpatialCells,
    autocorrelation_factors,
    by_chance,
    centred_surfaces,
    choose_basis,
    fit_coupling,
    gene_surfaces,
    narrowed,
    type_surfaces,
)
from bdm.effects.surfaces import Basis, BlockDesign, LocalFields, Places, centred, local_variance
from bdm.effects.tissue import BIN_WIDTH, COUPLING_LENGTH, LOCAL_LENGTH, GeneSurfaces, Tissue, choose

RELATIVE_LIMITS = (-0.9, 5.0)  # of the change of a mean, relative to the mean
N_CANDIDATES, MIN_CANDIDATES = 10, 2000  # positions to choose from, per cell and in all
LOCAL_SEED = "local_seed"  # column: seed of the local variation of a cell's tissue
MAX_CELLS = 100_000  # to fit surfaces to


@dataclass(frozen=True, eq=False)
class SpatialEffects(Effect, name="positions"):
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

    @classmethod
    def fit(cls, cells: CellsToFit) -> SpatialEffects | None:
        """Fit effects of positions to training and validation cells; None without positions."""
        prepared, seed = cells.prepared, cells.seed
        if not has_positions(prepared):
            return None
        rows = np.flatnonzero(is_fitted(prepared.obs))
        sections, codes = np.unique(sections_of(prepared.obs)[rows], return_inverse=True)
        positions = np.asarray(prepared.obsm[POSITIONS], dtype=float)[rows]
        centres = np.stack([positions[codes == code].mean(axis=0) for code in range(len(sections))])
        unit = float(np.sqrt(((positions - centres[codes]) ** 2).mean()))
        sample = np.arange(len(rows))
        if len(sample) > MAX_CELLS:
            sample = np.sort(numpy_generator(seed, "cells in space").choice(len(sample), MAX_CELLS, replace=False))
        latents = latent_cells(cells.latent)
        whitening = fit_whitening(latents)
        moments, latents = population_moments(latents, whitening), latents.subset(torch.from_numpy(sample))
        information = (1 - latents.scale.double() ** 2).mean(dim=1).numpy()
        places, counts = Places(positions[sample] / unit, codes[sample]), prepared[rows[sample]]
        weight = information / information.mean()
        fitted = SpatialCells(places, latents, counts, cells.autoencoder, whitening, moments, places.blocks(), weight)

        values = centred(without_prior(latents, whitening).double().numpy(), fitted.members(), weight)
        axes = autocorrelation_factors(values, weight, places.neighbours(N_FACTOR_NEIGHBOURS))
        factors, to_latents = values @ axes, np.linalg.inv(axes)
        chance = by_chance(values, fitted, seed)
        basis, shared, strength, log_odds = choose_basis(factors, fitted, chance, seed)
        design = BlockDesign(basis(places), weight, fitted.block)
        coefficients = type_surfaces(design, factors, fitted, shared, strength) @ to_latents
        surface, centre = centred_surfaces(design, coefficients, fitted)

        length = LOCAL_LENGTH * places.spacing
        variance = local_variance(factors, surface @ axes, weight, places, length, chance.local_errors)
        local = (np.sqrt(variance)[:, None] * to_latents)[variance > 0]
        narrowing = np.stack(
            [
                narrowed(covariance, surface[members], local)
                for covariance, members in zip(moments.covariance, fitted.members(), strict=True)
            ]
        )
        return cls(
            unit=unit,
            sections=tuple(map(str, sections)),
            basis=basis,
            cell_types=fitted.cell_types,
            coefficients=coefficients,
            populations=latents.populations,
            labels=latents.labels,
            centre=centre,
            narrowing=narrowing,
            local=local,
            genes=gene_surfaces(design, surface, fitted),
            log_odds=log_odds,
            log_share=fitted.log_share,
            coupling=fit_coupling(design.functions @ log_odds + fitted.log_share, fitted, seed),
            tissue=Tissue.from_places(places),
        )

    @property
    def n_coordinates(self) -> int:
        """Number of coordinates of a position."""
        return int(self.basis.centres.shape[1])

    @property
    def coordinates(self) -> list[str]:
        """Columns with the coordinates of a position."""
        return list(COORDINATES[: self.n_coordinates])

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the columns that the effect reads."""
        return (*self.coordinates, SECTION, LOCAL_SEED)

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

    def section_names(self, places: Places) -> np.ndarray:
        """Return the name of each cell's section."""
        return np.asarray(np.array(self.sections, dtype=object)[places.section])

    def places_at(self, at: pd.DataFrame) -> Places:
        """Return the positions of cells from their columns."""
        return self.places(at[self.coordinates].to_numpy(dtype=float), at.get(SECTION))

    def complete(self, at: pd.DataFrame, population: str, seed: int) -> pd.DataFrame:
        """Add the section, if there is one, and the seed of local variation."""
        if not set(self.coordinates) <= set(at):
            return at
        return at.assign(**{SECTION: at.get(SECTION, self.sections[0]), LOCAL_SEED: at.get(LOCAL_SEED, seed)})

    def local_fields(self, n: int, length: float, name: str, seed: int) -> LocalFields:
        """Draw fields of local variation, whose length scale is in distances to the nearest neighbours."""
        return drawn_fields(n, self.n_coordinates, length * self.spacing, seed, name)

    def move(self, x: Tensor, at: pd.DataFrame, population: str, space: LatentSpace) -> Tensor:
        """Move whitened cells of a population to their positions; cells of added types stay the same."""
        if population not in self.populations:
            return x
        row, places, mean = self.populations.index(population), self.places_at(at), space.mean(population)
        shift = self.basis(places) @ self.coefficients[self.type_of(population)] - self.centre[row]
        for seed, rows in at.groupby(LOCAL_SEED).indices.items():
            fields = self.local_fields(len(self.local), LOCAL_LENGTH, "latent", int(seed))
            shift[rows] += fields(places[rows]) @ self.local
        return mean + (x - mean) @ to_tensor(self.narrowing[row]).to(x) + to_tensor(shift).to(x)

    def offset(self, at: pd.DataFrame, population: str) -> Tensor:
        """Return offsets of log expression of a population's cells, cells x genes."""
        relative = self.genes.relative(self.basis(self.places_at(at)), self.type_of(population))
        return to_tensor(np.log1p(relative.clip(*RELATIVE_LIMITS))).float()

    def observation(self, observation: ObservationModel, population: str) -> ObservationModel:
        """Remove the variance that :meth:`offset` adds from an observation model of a population."""
        return observation.within(to_tensor(np.log1p(self.genes.variance[:, self.type_of(population)])))

    def choose_populations(self, places: Places, log_share: np.ndarray, seed: int) -> np.ndarray:
        """Choose the population of each cell; returns indices.

        Parameters
        ----------
        places
            Positions of the cells.
        log_share
            Log share of each population at mean positions, or -inf where a cell cannot be of it; cells x populations.
            Populations without a map come last.
        seed
            Seed of the local variation.
        """
        log_odds = log_share.copy()
        log_odds[:, : len(self.populations)] += self.basis(places) @ self.log_odds
        # by population, so that added types do not change the others
        generators = [numpy_generator(seed, "scores", number) for number in range(log_share.shape[1])]
        independent = np.column_stack([generator.standard_normal(len(places)) for generator in generators])
        shared = self.local_fields(len(self.populations), COUPLING_LENGTH, "populations", seed)(places)
        return choose(log_odds, independent, shared, self.coupling)


@lru_cache(maxsize=64)
def drawn_fields(n: int, n_coordinates: int, length: float, seed: int, name: str) -> LocalFields:
    """Draw fields once for all blocks of cells."""
    return LocalFields.from_seed(n, n_coordinates, length, seed=seed, name=name)
