"""Requests for cells at positions: of measured cells, from a table, or sampled."""

from __future__ import annotations

import logging
from typing import Annotated, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from annotated_types import Ge

from bdm._core.errors import InputError
from bdm._core.schema import Setting
from bdm._core.seeds import numpy_generator
from bdm._core.validation import shown, unknown_type
from bdm.data.cell_sets import DEFAULT_KEYS
from bdm.data.columns import as_strings, text_column, with_written_names
from bdm.data.space import COORDINATES, SECTION, position_key, positions_in, section_column
from bdm.effects.space import SpatialEffects
from bdm.effects.surfaces import Places
from bdm.generation.covariate_values import NO_COVARIATES, CovariateValues
from bdm.generation.request import Request, in_model_order, with_batches
from bdm.model.match import labels_of, mask_known_types
from bdm.model.model import BranchedModel
from bdm.settings import InputKeys

logger = logging.getLogger(__name__)

MAX_OUTSIDE = 0.01  # share of locations outside the tissue that is only a warning, as measured cells may be


def require_space(model: BranchedModel) -> SpatialEffects:
    """Return the spatial effects of a model."""
    if model.space is None:
        raise InputError("The model has no positions; fit it with `spatial_key=`, the key of obsm with the positions.")
    return model.space


def request_at(
    model: BranchedModel,
    locations: pd.DataFrame,
    *,
    at: CovariateValues = NO_COVARIATES,
    extrapolate: bool = False,
    seed: int = 0,
) -> Request:
    """Request a cell at each location.

    ``locations`` has a row per cell: coordinates ``x``, ``y`` and, in three dimensions, ``z``, in the units of the
    training cells; ``section``, if the model has several; and optionally ``cell_type`` and covariates. Without
    ``cell_type``, types are drawn from the map of the model, by ``seed``. Covariates ``at`` are rejected. Locations
    far from all training cells (a quarter of the spread of a section, or more) need ``extrapolate`` if more than 1%.
    """
    if at:
        raise InputError(
            "`at=` does not combine with positions; give covariates as columns of `locations=`, or cells without "
            "positions by `cells=`."
        )
    space = require_space(model)
    table, names = checked_locations(model, space, locations), list(COORDINATES[: space.n_coordinates])
    places = space.places(table[names].to_numpy(), table.get(SECTION))
    outside = ~space.tissue.contains(places)
    if outside.any() and not extrapolate:
        first = ", ".join(f"{value:g}" for value in table[names][outside].iloc[0])
        problem = f"{outside.sum()} of {len(table)} locations are far from all training cells"
        if outside.mean() > MAX_OUTSIDE:
            raise InputError(f"{problem}, for example ({first}); leave them out, or allow them by `extrapolate=True`.")
        logger.warning("%s, for example (%s).", problem, first)
    cells = table.drop(columns=[*names, SECTION], errors="ignore").assign(n_cells=1)
    cells["sub_population"] = draw_populations(model, places, cells.get("cell_type"), seed)
    cells["cell_type"] = cells["sub_population"].map(model.cell_type_of)
    if model.autoencoder.batches:
        if (key := model.preparation["batch_key"]) is not None and key == model.preparation["section_key"]:
            cells["batch"] = np.array(space.sections, dtype=object)[places.section]
        cells = with_batches(model, cells)
    cells = in_model_order(model, cells)
    return Request(cells.reset_index(drop=True), places=places[cells.index.to_numpy()])


def draw_populations(model: BranchedModel, places: Places, cell_type: pd.Series | None, seed: int) -> np.ndarray:
    """Draw the population of each cell from the map, within its cell type if known."""
    space = require_space(model)
    added = [name for name in model.populations if name not in space.populations]
    populations = np.array([*space.populations, *added], dtype=object)
    type_of = np.array([model.cell_type_of[name] for name in populations], dtype=object)
    log_share = np.append(space.log_share, np.log(model.composition.loc[added].sum(axis=1)))[None]
    if cell_type is None:
        possible = np.isin(populations, space.populations)[None]
    else:
        possible = (type_of == cell_type.to_numpy()[:, None]) | (populations == cell_type.to_numpy()[:, None])
    log_share = np.where(possible, log_share, -np.inf).repeat(len(places) if cell_type is None else 1, axis=0)
    return np.asarray(populations[space.realised(seed).choose_populations(places, log_share)])


def checked_locations(model: BranchedModel, space: SpatialEffects, locations: Any) -> pd.DataFrame:
    """Check a table of locations, and convert its coordinates to floats."""
    if not isinstance(locations, pd.DataFrame) or not len(locations):
        raise InputError("Locations are not a table of at least one row; give a table with the columns x and y.")
    names, table = COORDINATES[: space.n_coordinates], locations.reset_index(drop=True)
    if missing := [name for name in names if name not in table]:
        raise InputError(f"The locations lack the column {missing[0]!r}; they need {', '.join(names)}.")
    if unknown := [str(name) for name in table if name not in (*names, SECTION, "cell_type", *model.covariate_names)]:
        raise InputError(
            f"The locations have the column {unknown[0]!r}, which is none of {', '.join(names)}, {SECTION} and "
            "cell_type; rename it, or leave it out."
        )
    for name in (*names, *(name for name in model.covariate_names if name in table)):
        numbers = pd.to_numeric(table[name], errors="coerce").astype(float)
        wrong = ~np.isfinite(numbers)
        if wrong.any():
            value = shown(table[name][wrong].iloc[0])
            raise InputError(f"The locations have {value} for {name!r}; give a finite number.")
        table[name] = numbers
    if "cell_type" in table:
        table["cell_type"] = as_strings(table["cell_type"])
        if unknown := sorted(set(table["cell_type"]) - {*model.cell_types, *model.populations}):
            raise InputError(unknown_type(unknown[0], model.cell_types, of="The model has"))
    return table


def locations_like(adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> pd.DataFrame:
    """Return the locations, sections, types and covariates of cells, for :func:`request_at`.

    Cells of other types are left out, with a warning.
    """
    space, labels = require_space(model), labels_of(adata.obs, model, keys)
    known, obs = mask_known_types(labels, model), with_written_names(adata.obs)
    positions = positions_in(adata, position_key(adata, model.preparation["spatial_key"]))
    table = pd.DataFrame(positions, columns=list(COORDINATES[: positions.shape[1]])).assign(cell_type=labels.to_numpy())
    if len(space.sections) > 1:
        key = model.preparation["section_key"]
        column = section_column(adata.obs, key) or key
        table[SECTION] = text_column(adata.obs, column, argument="section_key").to_numpy()
    for name in filter(obs.__contains__, model.covariate_names):
        table[name] = obs[name].to_numpy()
    return table[known]


def sample_locations(model: BranchedModel, n: int, *, seed: int) -> pd.DataFrame:
    """Sample locations as dense as the training cells, for :func:`request_at`."""
    space = require_space(model)
    n = Setting("new_locations", Annotated[int, Ge(1)]).checked(n)
    places = space.tissue.sample(n, numpy_generator(seed, "locations"))
    table = pd.DataFrame(places.positions * space.unit, columns=list(COORDINATES[: space.n_coordinates]))
    return table.assign(**{SECTION: np.array(space.sections, dtype=object)[places.section]})
