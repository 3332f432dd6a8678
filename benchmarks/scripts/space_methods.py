"""Cells like target cells in position and type: by bdm, and by simpler methods."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData, concat
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from sklearn.kernel_approximation import Nystroem
from sklearn.linear_model import Ridge
from sklearn.model_selection import GroupKFold, cross_val_predict

from bdm._core.seeds import derive, numpy_generator
from bdm.data.space import POSITIONS, SECTION, sections_of
from bdm.effects.surfaces import Places
from bdm.generation.generate import generate_cells
from bdm.generation.request import cells_like, request_cells
from bdm.model.fit_model import fit
from bdm.model.model import BranchedModel
from bdm.settings import FitSettings, GenerationSettings

N_FUNCTIONS = 200  # of the approximate kernel
LENGTHS = (0.1, 0.2, 0.4, 0.8)  # candidate length scales, relative to the spread of positions
RIDGES = (1.0, 10.0, 100.0)  # candidate ratios of noise to surface variance
N_FOLDS = 5  # groups of left-out blocks
EPOCHS = 500  # of scDesigner, its default


@dataclass(frozen=True)
class PlacedCells:
    """Log expression of cells with positions and types."""

    expression: np.ndarray  # log1p of counts, normalised to a library size; cells x genes
    places: Places
    cell_type: np.ndarray

    @classmethod
    def from_cells(cls, adata: AnnData, *, library_size: float) -> Self:
        """Normalise the counts of cells."""
        counts = adata.X.toarray().astype(float)
        expression = np.log1p(counts / counts.sum(axis=1, keepdims=True).clip(min=1) * library_size)
        positions = adata.obsm.get(POSITIONS, np.zeros((adata.n_obs, 2)))  # none if generated without coordinates
        section = adata.obs[SECTION].astype(int) if SECTION in adata.obs else np.zeros(adata.n_obs, dtype=int)
        return cls(expression, Places(positions, np.asarray(section)), adata.obs["cell_type"].to_numpy(dtype=str))

    def __getitem__(self, cells: np.ndarray) -> Self:
        return type(self)(self.expression[cells], self.places[cells], self.cell_type[cells])


def with_common_units(prepared: AnnData) -> AnnData:
    """Convert sections to numbers, and positions to units of their standard deviation (``uns["unit"]``)."""
    cells, sections = prepared.copy(), sections_of(prepared.obs)
    positions = pd.DataFrame(prepared.obsm[POSITIONS])
    distances = positions - positions.groupby(sections).transform("mean")
    cells.uns["unit"] = float(np.sqrt((distances.to_numpy() ** 2).mean()))
    cells.obsm[POSITIONS] = prepared.obsm[POSITIONS] / cells.uns["unit"]
    codes = np.unique(sections, return_inverse=True)[1].astype(str)
    cells.obs = prepared.obs[["cell_type", "split"]].assign(**{SECTION: pd.Categorical(codes)})
    return cells


# ---- bdm


def fit_bdm(known: AnnData, *, seed: int, positions: bool = True) -> BranchedModel:
    """Fit with the default settings, with or without the positions."""
    cells = known.copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.remove_unused_categories()
    if not positions:
        del cells.obsm[POSITIONS]
    return fit(cells, FitSettings(), seed=seed)[0]


def generate_at(model: BranchedModel, target: AnnData, *, seed: int, types: bool = True) -> AnnData:
    """Generate a cell at each target position.

    It has the type of the target cell, or without ``types``, a type from the map.
    """
    locations = cells_like(target, model)
    locations = locations if types else locations.drop(columns="cell_type")
    request = request_cells(model, locations, extrapolate=True, seed=seed)
    cells = generate_cells(model, request, GenerationSettings(), seed=seed)
    key = model.preparation["section_key"]
    cells.obs[SECTION] = sections_of(target.obs)[0] if key is None else cells.obs[key]
    cells.obsm[POSITIONS] = cells.obsm[model.preparation["spatial_key"]]
    return cells


# ---- simpler methods


def types_alone(known: PlacedCells, target: PlacedCells, *, seed: int) -> PlacedCells:
    """Use random known cells of the same types."""
    return replace(target, expression=known.expression[sample_rows(known, target, seed=seed)])


def sample_rows(known: PlacedCells, target: PlacedCells, *, seed: int) -> np.ndarray:
    """Sample a known cell of each target cell's type, as evenly as possible."""
    rows, rng = np.empty(len(target.cell_type), dtype=int), numpy_generator(seed, "cells of types")
    for name in np.unique(target.cell_type):
        cells = np.flatnonzero(target.cell_type == name)
        rows[cells] = np.resize(rng.permutation(np.flatnonzero(known.cell_type == name)), len(cells))
    return rows


def copies(known: PlacedCells, target: PlacedCells, *, rank: int = 1) -> PlacedCells:
    """Use the nearest known cell of the type in the section, or the next one (``rank`` 2).

    If the section lacks the type, use the nearest cell of any type.
    """
    source = np.empty(len(target.cell_type), dtype=int)
    for section, name in set(zip(target.places.section, target.cell_type, strict=True)):
        cells = np.flatnonzero((target.places.section == section) & (target.cell_type == name))
        in_section = known.places.section == section
        candidates = np.flatnonzero(in_section & (known.cell_type == name))
        if len(candidates) < rank:
            candidates = np.flatnonzero(in_section)
        tree = cKDTree(known.places.positions[candidates])
        source[cells] = candidates[tree.query(target.places.positions[cells], k=[rank])[1].ravel()]
    return replace(target, expression=known.expression[source])


def type_means(known: PlacedCells, target: PlacedCells) -> np.ndarray:
    """Return the mean expression of the type of each target cell, cells x genes."""
    return pd.DataFrame(known.expression).groupby(known.cell_type).mean().loc[target.cell_type].to_numpy()


def surface(known: PlacedCells, target: PlacedCells) -> np.ndarray:
    """Predict a surface of each gene at the target cells, cells x genes.

    Types share the surface. It is the posterior mean of a Gaussian process, as ridge regression on a Nyström
    approximation of a Gaussian kernel. Length scale and penalty of each gene have the smallest error in left-out
    blocks. There is no surface if its error is larger than without.
    """
    places, values = known.places, known.expression - type_means(known, known)
    error, predicted = (values**2).sum(axis=0), np.zeros(target.expression.shape)
    for length in LENGTHS:
        kernel = Nystroem(gamma=0.5 / length**2, n_components=min(N_FUNCTIONS, len(values) // 2), random_state=0)
        functions = kernel.fit_transform(places.apart())
        for ridge in RIDGES:
            model, folds = Ridge(ridge, fit_intercept=False), GroupKFold(N_FOLDS)
            held_out = cross_val_predict(model, functions, values, groups=places.blocks(), cv=folds)
            new_error = ((values - held_out) ** 2).sum(axis=0)
            whole = model.fit(functions, values).predict(kernel.transform(target.places.apart()))
            predicted = np.where(new_error < error, whole, predicted)
            error = np.minimum(error, new_error)
    return predicted


def gaussian_process(known: PlacedCells, target: PlacedCells, *, seed: int) -> PlacedCells:
    """Add type mean, surface, and the residuals of a random cell of the type."""
    residuals = known.expression - type_means(known, known) - surface(known, known)
    sample = residuals[sample_rows(known, target, seed=seed)]
    return replace(target, expression=type_means(known, target) + surface(known, target) + sample)


def scdesigner(known: AnnData, target: AnnData, *, seed: int) -> AnnData:
    """Generate cells by the spatial model of scDesigner, with its defaults.

    Each section has its own fit. Mean and dispersion depend on the type and on a Gaussian-process basis. Each type has
    its own copula.
    """
    from scdesigner.simulators import SpatialNegBinCopula  # optional

    type_term, copula = ("cell_type", "~ cell_type") if known.obs["cell_type"].nunique() > 1 else (None, "~ 1")
    coordinates, parts = ["spatial1", "spatial2"], []
    for section in np.unique(sections_of(target.obs)):
        cells, targets = (adata[sections_of(adata.obs) == section] for adata in (known, target))
        table, target_table = (
            pd.DataFrame(adata.obsm[POSITIONS], adata.obs_names, coordinates).assign(
                cell_type=adata.obs["cell_type"].astype(str), section=section, is_target=adata is targets
            )
            for adata in (cells, targets)
        )
        requested = pd.concat([target_table, table.drop_duplicates("cell_type")], ignore_index=True)  # all types needed
        np.random.seed(derive(seed, section) % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        simulator = SpatialNegBinCopula(
            mean_extra_terms=type_term, disp_extra_terms=type_term, copula_formula=copula, estimator="ledoit_wolf"
        )
        simulator.fit(AnnData(cells.X, obs=table), max_epochs=EPOCHS, verbose=False)
        parts.append(simulator.sample(obs=requested.rename(index=str), batch_size=len(requested)))
    generated = concat(parts, index_unique="-")
    generated = generated[generated.obs["is_target"].to_numpy(dtype=bool)].copy()
    generated.X, generated.var_names = csr_matrix(generated.X), target.var_names
    generated.obsm[POSITIONS] = generated.obs[coordinates].to_numpy(dtype=float)
    return generated
