"""Requests for cells: one table, with a row for each cell or group of cells and a column for each input."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from anndata import AnnData
from annotated_types import Ge

from bdm._core.errors import InputError, abbreviated
from bdm._core.files import reading
from bdm._core.schema import Setting
from bdm._core.seeds import numpy_generator
from bdm._core.validation import shown, unknown_type
from bdm.data.cell_sets import DEFAULT_KEYS
from bdm.data.columns import as_strings, name_in, text_column, with_written_names
from bdm.data.filters import rounded_shares
from bdm.data.space import COORDINATES, SECTION, position_key, positions_in, section_column
from bdm.effects.space import SpatialEffects
from bdm.effects.surfaces import Places
from bdm.generation.covariate_values import (
    NO_COVARIATES,
    CovariateValues,
    format_at,
    limit_range,
    require_covariates,
    spread_evenly,
)
from bdm.model.match import find_batch_column, labels_of, mask_known_types, named_batches
from bdm.model.model import BranchedModel
from bdm.settings import InputKeys

logger = logging.getLogger(__name__)

RESERVED = ("sub_population", "synthetic", "ancestor")  # columns of generated cells
MAX_OUTSIDE = 0.01  # share of positions outside the tissue that is only a warning, as measured cells may be
MAX_CELLS = 10**12  # per row; more do not fit on a disk
# Steps of sequences in [0, 1) that are evenly spread at any length (fractional parts of square roots)
POPULATION_STEP, BATCH_STEP = math.sqrt(5) / 2 - 0.5, math.sqrt(2) - 1
COVARIATE_STEPS = tuple(math.sqrt(prime) for prime in (3, 7, 11, 13, 17))


@dataclass(frozen=True)
class Request:
    """Cells to generate, as a table of numbers by population and inputs."""

    # Columns ``cell_type``, ``sub_population``, ``n_cells``, and requested inputs: ``batch`` and covariates (missing:
    # to be filled), coordinates and ``section``. Rows are grouped by population, unless each is a cell
    table: pd.DataFrame
    at: CovariateValues = field(default_factory=dict)  # requested covariates
    # Columns to copy to ``obs``, indexed by the names of cells; None unless the user gave a row for each cell
    cells: pd.DataFrame | None = None

    @property
    def n_by_type(self) -> dict[str, int]:
        """Number of cells by cell type."""
        return dict(self.table.groupby("cell_type", sort=False)["n_cells"].sum().to_dict())

    @property
    def n_by_population(self) -> dict[str, int]:
        """Number of cells by population."""
        return dict(self.table.groupby("sub_population", sort=False)["n_cells"].sum().to_dict())

    @property
    def order(self) -> np.ndarray | None:
        """Rank of each cell among cells sorted by population; None if they are sorted."""
        codes = pd.factorize(self.table["sub_population"])[0]
        if (np.diff(codes) >= 0).all():
            return None
        by_population = np.argsort(codes.repeat(self.table["n_cells"]), kind="stable")
        return np.asarray(np.argsort(by_population, kind="stable"))

    @property
    def record(self) -> dict[str, Any]:
        """Request as stored in the record of generated cells."""
        keys = [name for name in ("cell_type", "sub_population", "batch") if name in self.table]
        numbers = self.table.groupby(keys, sort=False, as_index=False, dropna=False)["n_cells"].sum()
        return {"request": numbers.fillna("").to_dict("list"), "at": format_at(self.at)}


def request_cells(
    model: BranchedModel,
    cells: Any = None,
    *,
    new_locations: int | None = None,
    at: CovariateValues = NO_COVARIATES,
    extrapolate: bool = False,
    keys: InputKeys = DEFAULT_KEYS,
    seed: int = 0,
) -> Request:
    """Complete a request with the population of each cell, and with positions and covariates if these are asked for.

    Parameters
    ----------
    model
        Fitted model.
    cells
        Number of cells of each type; numbers by type; cells to repeat, see :func:`cells_like`; or a table with a row
        for each group of cells, with its number ``n_cells``, or, without this column, for each cell. Columns are
        ``cell_type`` (a cell type or sub-population) and, where the model has them, ``batch``, covariates, coordinates
        (``x``, ``y`` and, in three dimensions, ``z``) and ``section``; types, batches and sections may be named as in
        the training data. Cells at positions need no ``cell_type``; the map of the model gives it. Where rows are
        cells, generated cells have their order, and the names of the index; further columns are copied.
    new_locations, at, extrapolate
        As in :meth:`bdm.BranchedDiffusion.generate`. More than 1% of positions far from all training cells (a quarter
        of the spread of a section, or more) need ``extrapolate``.
    seed
        Seed of types at positions.

    Returns
    -------
    Request. Missing inputs are filled when cells are generated: batches in their proportions in the population, and
    covariates as distributed in it.
    """
    if (cells is None) == (new_locations is None):
        raise InputError("Give the cells to generate, by either `cells=` or `new_locations=`.")
    if new_locations is not None:
        cells = sample_locations(model, new_locations, seed=seed)
    elif isinstance(cells, AnnData):
        cells = cells_like(cells, model, keys)
    table, copied = checked_table(model, cells)
    has_places = COORDINATES[0] in table
    is_cells = copied is not None or has_places
    if has_places:
        places = places_in(model, table, extrapolate=extrapolate)
        table[SECTION] = require_positions(model).section_names(places)
        table["sub_population"] = draw_populations(model, places, table.get("cell_type"), seed)
        table["cell_type"] = table["sub_population"].map(model.cell_type_of)
    if at and is_cells:
        table = at_each_cell(model, table, at, extrapolate=extrapolate)
    elif at:
        groups = [name for name in table if name not in (*at, "n_cells")]
        table = table.groupby(groups, sort=False, as_index=False, dropna=False)["n_cells"].sum()
        table = table.loc[table.index.repeat(table["n_cells"])].assign(n_cells=1)  # cells of a row share its index
        table = at_values(model, table, at, named=not isinstance(cells, Real), extrapolate=extrapolate)
    if not is_cells:
        table = divided(model, table)
    elif not has_places:
        table["sub_population"] = choose_populations(model, table)
    table["cell_type"] = table["sub_population"].map(model.cell_type_of)
    key = model.preparation["batch_key"]
    if has_places and key is not None and key == model.preparation["section_key"]:
        if "batch" in table and (table["batch"].notna() & (table["batch"] != table[SECTION])).any():
            raise InputError(
                "Sections are the batches of the model, but some cells have another batch; leave out batch."
            )
        table["batch"] = table[SECTION]
    return Request(table, at=at, cells=copied)


def divided(model: BranchedModel, table: pd.DataFrame) -> pd.DataFrame:
    """Divide groups of cells over populations, sorted in the order of the model."""
    covariates = [name for name in model.input_names if name in table]
    has_values = table[covariates].notna().any(axis=1)
    cells = table[has_values].sort_values(covariates, kind="stable") if covariates else table[has_values]
    cells = cells.loc[cells.index.repeat(cells["n_cells"])].assign(n_cells=1).reset_index(drop=True)
    cells["sub_population"] = choose_populations(model, cells)
    parts = [divide_in_proportion(model, table[~has_values]), cells]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    by = [name for name in ("sub_population", "batch") if name in table] + covariates
    table = table[table["n_cells"] > 0].groupby(by, sort=False, as_index=False, dropna=False)["n_cells"].sum()
    order = {"sub_population": model.populations, "batch": model.autoencoder.batches}
    keys = [name for name in order if name in table]
    ranks = {name: {value: rank for rank, value in enumerate(order[name])} for name in keys}
    table = table.sort_values(keys, key=lambda names: names.map(ranks[names.name]), kind="stable")
    return table.reset_index(drop=True)


# ---- tables of cells by type


def parse_cells(texts: Sequence[str]) -> int | dict[str, int]:
    """Parse the option ``--cells``: ``N`` cells of each type, or several ``TYPE=N``."""
    numbers: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or text.startswith("="):
            raise InputError(f"--cells {text} is not of the form N or TYPE=N, such as 100 or 'T cell=100'.")
        if name in numbers or "" in numbers or (numbers and not name):
            raise InputError("--cells takes one number for all types, or TYPE=N once for each of some types.")
        numbers[name] = int(number)
    return numbers.get("", numbers)


def read_request(path: Path) -> pd.DataFrame:
    """Read a table of cells to generate from a CSV file."""
    with reading(path, "a CSV table"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    first = str(table.columns[0]) if len(table.columns) else ""
    return table.set_index(first).rename_axis(None) if first.startswith("Unnamed:") else table  # as pandas writes it


def cells_like(adata: AnnData, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> pd.DataFrame:
    """Return a table of cells like those of a data set: of their types, at their inputs.

    With positions in the model, rows are cells; else groups. Cells of other types are not counted, with a warning, and
    batches that the model lacks are left to be filled.
    """
    labels = labels_of(adata.obs, model, keys)
    known, obs = mask_known_types(labels, model, done="Not counted:"), with_written_names(adata.obs)
    table = obs[[name for name in model.input_names if name in obs]].assign(cell_type=labels)
    column = find_batch_column(adata.obs, model, keys)
    if model.autoencoder.batches and column is not None:
        table["batch"] = named_batches(adata.obs, column)
    if model.space is None:
        return numbers_of(model, table[known])
    positions = positions_in(adata, position_key(adata, model.preparation["spatial_key"]))
    table[list(COORDINATES[: positions.shape[1]])] = positions
    if len(model.space.sections) > 1:
        key = model.preparation["section_key"]
        table[SECTION] = text_column(adata.obs, section_column(adata.obs, key) or key, argument="section_key")
    return with_known_batches(model, table[known].reset_index(drop=True))


def numbers_of(model: BranchedModel, cells: pd.DataFrame) -> pd.DataFrame:
    """Count cells (rows) by ``cell_type`` and inputs of the model."""
    columns = ["cell_type", *(name for name in ("batch", *model.input_names) if name in cells)]
    cells = with_known_batches(model, cells[columns])
    return cells.value_counts(columns, dropna=False, sort=False).rename("n_cells").reset_index()


def with_known_batches(model: BranchedModel, cells: pd.DataFrame) -> pd.DataFrame:
    """Remove batches that the model lacks, with a warning if it has others."""
    batches = model.autoencoder.batches
    if "batch" not in cells or not batches:
        return cells.drop(columns="batch", errors="ignore")
    is_known = cells["batch"].isin(batches)
    if not is_known.all():
        names = abbreviated(cells["batch"][~is_known].unique())
        logger.warning("Generated in batches of the model: cells of batches that it lacks (%s).", names)
    return cells.assign(batch=cells["batch"].where(is_known, None))


def checked_table(model: BranchedModel, cells: Any) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Convert a request to a checked table, with distinct rows if they are groups of cells.

    Returns also the columns to copy, if rows are cells.
    """
    if isinstance(cells, pd.DataFrame):
        table = with_input_names(model, cells)
    elif isinstance(cells, Mapping | pd.Series):
        table = pd.DataFrame(list(cells.items()), columns=["cell_type", "n_cells"])
    elif isinstance(cells, Real) and not isinstance(cells, bool):
        table = pd.DataFrame({"cell_type": model.cell_types, "n_cells": cells})
    else:
        raise InputError(
            f"Cells were requested by {type(cells).__name__}; give a number of cells of every type, numbers by type, "
            "or a table with the column cell_type, and n_cells unless each row is a cell."
        )
    if COORDINATES[0] in table and "cell_type" not in table:
        require_positions(model)
    copied = None if "n_cells" in table else copied_columns(model, table)
    if copied is not None:
        table = table.reset_index(drop=True).drop(columns=copied.columns).assign(n_cells=1)
    check_columns(model, table)
    if "cell_type" in table:
        table["cell_type"] = as_strings(table["cell_type"])
        if unknown := sorted(set(table["cell_type"]) - {*model.cell_types, *model.populations}):
            raise InputError(unknown_type(unknown[0], model.cell_types, of="The model has"))
    numbers = pd.to_numeric(table["n_cells"], errors="coerce").to_numpy(dtype=float)
    wrong = ~((numbers >= 0) & (numbers <= MAX_CELLS)) | (numbers != np.round(numbers))
    if wrong.any():
        row = table[wrong].iloc[0]
        raise InputError(
            f"{row['n_cells']} cells of type {row['cell_type']!r} were requested; give a whole number of 0 or more, up "
            f"to {MAX_CELLS:,}."
        )
    table["n_cells"] = numbers.astype(int)
    if "batch" in table:
        table["batch"] = as_strings(table["batch"]).where(table["batch"].notna() & (table["batch"] != ""), None)
        if unknown := sorted(set(table["batch"].dropna()) - set(model.autoencoder.batches)):
            known = ", ".join(model.autoencoder.batches) or "none (it was trained without a batch column)"
            raise InputError(f"The model has no batch {', '.join(map(repr, unknown))}; its batches: {known}.")
    table = table[table["n_cells"] > 0]
    if table.empty:
        raise InputError("The request has no cells; give at least one cell of one type.")
    if copied is not None:
        return table, copied
    if COORDINATES[0] in table:  # groups of cells at a position
        return table.loc[table.index.repeat(table["n_cells"])].assign(n_cells=1).reset_index(drop=True), None
    # cells of equal rows are divided over populations together
    keys = [name for name in table if name != "n_cells"]
    return table.groupby(keys, sort=False, as_index=False, dropna=False)["n_cells"].sum(), None


def with_input_names(model: BranchedModel, table: pd.DataFrame) -> pd.DataFrame:
    """Name the columns of types, batches and sections as inputs, if they have their names in the training data.

    A single column may have both batches and sections.
    """
    keys, inputs = {"cell_type": model.label_key, "batch": model.preparation["batch_key"]}, input_columns(model)
    if COORDINATES[0] in table:
        keys[SECTION] = model.preparation["section_key"]
    column = {name: name_in(table, key) for name, key in keys.items() if key and name in inputs and name not in table}
    column = {name: key for name, key in column.items() if key in table}
    table = table.assign(**{name: table[key] for name, key in column.items()})
    return table.drop(columns=sorted(set(column.values()) - set(inputs)))


def copied_columns(model: BranchedModel, table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns of cells that are no input, indexed by the names of cells."""
    names = [name for name in table if name not in input_columns(model)]
    if taken := [name for name in names if name in RESERVED]:
        raise InputError(f"The table of cells has the column {taken[0]!r}, which generated cells have; rename it.")
    if names:
        logger.warning("Copied, as the model has no such input: columns %s.", abbreviated(names))
    if not table.index.is_unique:
        raise InputError("Names of cells repeat in the index of the table; make them unique.")
    index = None if isinstance(table.index, pd.RangeIndex) else table.index.astype(str)
    return table[names].set_axis([f"synthetic-{n}" for n in range(1, len(table) + 1)] if index is None else index)


def input_columns(model: BranchedModel) -> tuple[str, ...]:
    """Return the columns that a table of cells may have."""
    positions = () if model.space is None else (*model.space.coordinates, SECTION)
    return ("cell_type", "n_cells", "batch", *model.input_names, *positions)


def check_columns(model: BranchedModel, table: pd.DataFrame) -> None:
    """Check the columns of a table, and convert numbers to floats in place."""
    columns, coordinates = input_columns(model), set(COORDINATES) & set(table)
    if coordinates and model.space is None:
        require_positions(model)
    if "cell_type" not in table and not coordinates:
        raise InputError("The table of cells lacks the column 'cell_type'; it needs cell_type, and may have n_cells.")
    if unknown := [str(name) for name in table if name not in columns]:
        raise InputError(
            f"The table of cells has the column {unknown[0]!r}, which is none of {', '.join(columns)}; rename it, or "
            "leave it out. Sub-populations are named in cell_type."
        )
    required = model.space.coordinates if coordinates and model.space is not None else []
    if missing := [name for name in required if name not in table]:
        raise InputError(f"The positions lack the column {missing[0]!r}; they need {', '.join(required)}.")
    for name in table.columns.intersection([*model.input_names, *required]):
        numbers = pd.to_numeric(table[name], errors="coerce").astype(float)
        is_missing = table[name].isna() | (table[name].astype(str) == "")
        wrong = ~np.isfinite(numbers) & (~is_missing | (name in required))
        if wrong.any():
            value = shown(table[name][wrong].iloc[0])
            raise InputError(f"The table of cells has {value} for {name!r}; give a finite number.")
        table[name] = numbers


# ---- covariates, populations and batches of the cells in a table


def at_values(
    model: BranchedModel, table: pd.DataFrame, at: CovariateValues, *, named: bool, extrapolate: bool
) -> pd.DataFrame:
    """Set covariates in a table with a row per cell; the cells of a group share its index.

    The cells of a group are spread evenly over each range; see
    :func:`bdm.generation.covariate_values.limit_range`.
    """
    effects = require_covariates(model, list(at))
    for name, value in at.items():
        cell_type = table["cell_type"].map(model.cell_type_of).fillna(table["cell_type"])
        ranges = limit_range(effects, list(cell_type.unique()), name, value, named=named, extrapolate=extrapolate)
        table, cell_type = table[cell_type.isin(ranges)], cell_type[cell_type.isin(ranges)]
        spread = [
            spread_evenly(*ranges[cells.iloc[0]], len(cells), name, effects)
            for _, cells in cell_type.groupby(level=0, sort=False)
        ]
        table = table.assign(**{name: np.concatenate(spread)})
    return table.reset_index(drop=True)


def at_each_cell(model: BranchedModel, table: pd.DataFrame, at: CovariateValues, *, extrapolate: bool) -> pd.DataFrame:
    """Set covariates where rows are cells; the cells of each type alternate in a range, in any order of rows."""
    effects, table = require_covariates(model, list(at)), table.copy()
    types = table["cell_type"].map(model.cell_type_of).fillna(table["cell_type"])
    for name, value in at.items():
        step = COVARIATE_STEPS[effects.names.index(name) % len(COVARIATE_STEPS)]
        for cell_type, (low, high) in limit_range(
            effects, list(types.unique()), name, value, extrapolate=extrapolate
        ).items():
            cells = (types == cell_type).to_numpy()
            table.loc[cells, name] = low + (high - low) * alternating(cells.sum(), step)
    return table


def divide_in_proportion(model: BranchedModel, table: pd.DataFrame) -> pd.DataFrame:
    """Divide the cells of each row over populations, as in training cells."""
    parts = []
    for row in table.to_dict("records"):
        numbers = divide_type(model, row["cell_type"], row["n_cells"], row.get("batch"))
        parts += [{**row, "sub_population": population, "n_cells": n} for population, n in numbers.items()]
    return pd.DataFrame(parts)


def divide_type(model: BranchedModel, cell_type: str, n_cells: int, batch: Any = None) -> pd.Series:
    """Divide cells of a type over its populations, as in training cells of a batch, or of all if it is missing."""
    if cell_type not in model.cell_types:
        return pd.Series({cell_type: n_cells})
    n_trained = model.n_training_cells(cell_type, batch if isinstance(batch, str) else None)
    return pd.Series(in_proportion(n_trained.to_numpy(), n_cells), n_trained.index)


def in_proportion(share: np.ndarray, n_cells: int) -> np.ndarray:
    """Divide cells in proportion to shares, by largest remainder."""
    return rounded_shares(n_cells * share / share.sum())


def choose_populations(model: BranchedModel, cells: pd.DataFrame) -> np.ndarray:
    """Choose the population of each cell (row) in the proportions at its covariates and in its batch."""
    population = cells["cell_type"].to_numpy(dtype=object, copy=True)
    keys = [key for key in ("cell_type", "batch") if key in cells]
    for (name, *batch), part in cells.reset_index(drop=True).groupby(keys, sort=False, dropna=False):
        rows = part.index.to_numpy()
        if name in model.cell_types:
            n_trained = model.n_training_cells(name, *(None if pd.isna(value) else value for value in batch))
            share = (n_trained / n_trained.sum()).to_numpy()[None].repeat(len(rows), axis=0)
            if model.covariates is not None:
                at = cells.iloc[rows].reindex(columns=list(model.covariates.names)).to_numpy(dtype=float)
                share = model.covariates.shares(name, n_trained.to_dict(), at)
            population[rows] = n_trained.index.to_numpy(dtype=object)[evenly_chosen(share, POPULATION_STEP)]
    return np.asarray(population)


def complete_inputs(model: BranchedModel, table: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """Return the inputs of requested cells by population: batch and inputs of effects in columns, a row per cell.

    Missing batches alternate in the proportions of the population; effects fill other missing inputs. Both depend on
    the seed, the population and the cell's number in it, but not on the other cells.
    """
    inputs, batches = {}, model.composition.columns.to_numpy(dtype=object)
    inputs_of_effects = {name for effect in model.effects.values() for name in effect.inputs}
    for population, rows in table.groupby("sub_population", sort=False):
        cells = rows.loc[rows.index.repeat(rows["n_cells"])].reset_index(drop=True)
        at = cells[[name for name in cells if name in inputs_of_effects]].copy()
        if model.autoencoder.batches:
            share = model.composition.loc[population].to_numpy(dtype=float)[None].repeat(len(cells), axis=0)
            # small populations start apart, so that their sums are about the expected ones
            start = model.populations.index(str(population)) * POPULATION_STEP
            chosen = pd.Series(batches[evenly_chosen(share, BATCH_STEP, start)], dtype=object)
            at["batch"] = cells["batch"].where(cells["batch"].notna(), chosen) if "batch" in cells else chosen
        for effect in model.effects.values():
            at = effect.complete(at, str(population), seed)
        inputs[str(population)] = at
    return inputs


def evenly_chosen(share: np.ndarray, step: float, start: float = 0.0) -> np.ndarray:
    """Choose a column for each row of shares, so that any run of rows has about the expected number of each."""
    cumulative = share.cumsum(axis=1)
    chosen = (cumulative <= alternating(len(share), step, start)[:, None] * cumulative[:, -1:]).sum(axis=1)
    return np.asarray(np.minimum(chosen, share.shape[1] - 1))


def alternating(n: int, step: float, start: float = 0.0) -> np.ndarray:
    """Return numbers in [0, 1), of which any run is evenly spread."""
    return np.asarray((0.5 + start + np.arange(n) * step) % 1)


# ---- positions


def require_positions(model: BranchedModel) -> SpatialEffects:
    """Return the spatial effects of a model."""
    if model.space is None:
        raise InputError("The model has no positions; fit it with `spatial_key=`, the key of obsm with the positions.")
    return model.space


def places_in(model: BranchedModel, table: pd.DataFrame, *, extrapolate: bool) -> Places:
    """Return the positions of cells; reject those outside the tissue, unless few or with ``extrapolate``."""
    space = require_positions(model)
    names, places = space.coordinates, space.places_at(table)
    outside = ~space.tissue.contains(places)
    if outside.any() and not extrapolate:
        first = ", ".join(f"{value:g}" for value in table[names][outside].iloc[0])
        problem = f"{outside.sum()} of {len(table)} positions are far from all training cells"
        if outside.mean() > MAX_OUTSIDE:
            raise InputError(f"{problem}, for example ({first}); leave them out, or allow them by `extrapolate=True`.")
        logger.warning("%s, for example (%s).", problem, first)
    return places


def draw_populations(model: BranchedModel, places: Places, cell_type: pd.Series | None, seed: int) -> np.ndarray:
    """Draw the population of each cell from the map, within its cell type if known."""
    space = require_positions(model)
    added = [name for name in model.populations if name not in space.populations]
    populations = np.array([*space.populations, *added], dtype=object)
    type_of = np.array([model.cell_type_of[name] for name in populations], dtype=object)
    log_share = np.append(space.log_share, np.log(model.composition.loc[added].sum(axis=1)))[None]
    if cell_type is None:
        possible = np.isin(populations, space.populations)[None]
    else:
        possible = (type_of == cell_type.to_numpy()[:, None]) | (populations == cell_type.to_numpy()[:, None])
    log_share = np.where(possible, log_share, -np.inf).repeat(len(places) if cell_type is None else 1, axis=0)
    return np.asarray(populations[space.choose_populations(places, log_share, seed)])


def sample_locations(model: BranchedModel, n: int, *, seed: int) -> pd.DataFrame:
    """Sample locations as dense as the training cells."""
    space = require_positions(model)
    n = Setting("new_locations", Annotated[int, Ge(1)]).checked(n)
    places = space.tissue.sample(n, numpy_generator(seed, "locations"))
    table = pd.DataFrame(places.positions * space.unit, columns=space.coordinates)
    return table.assign(**{SECTION: space.section_names(places)})
