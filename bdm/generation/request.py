"""Requests for cells: tables of numbers by type, batch and covariates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.errors import InputError
from bdm._core.files import reading
from bdm._core.validation import unknown_type
from bdm.data.cell_sets import DEFAULT_KEYS
from bdm.data.columns import as_strings, with_written_names
from bdm.data.filters import rounded_shares
from bdm.effects.surfaces import Places
from bdm.generation.covariate_values import (
    NO_COVARIATES,
    CovariateValues,
    format_at,
    limit_range,
    require_covariates,
    spread_evenly,
)
from bdm.model.match import labels_of, mask_known_types
from bdm.model.model import BranchedModel
from bdm.settings import InputKeys

COLUMNS = ("cell_type", "n_cells", "batch")  # columns of a table of cells
MAX_CELLS = 10**12  # per row; more do not fit on a disk
# Steps of sequences in [0, 1) that are evenly spread at any length (fractional parts of square roots)
POPULATION_STEP, BATCH_STEP = math.sqrt(5) / 2 - 0.5, math.sqrt(2) - 1


@dataclass(frozen=True)
class Request:
    """Cells to generate, as a table of numbers by population, batch and covariates."""

    # Columns ``cell_type``, ``sub_population``, ``n_cells``, ``batch`` if the model has batches, and requested
    # covariates (NaN: to be sampled); rows are grouped by population
    table: pd.DataFrame
    at: CovariateValues = field(default_factory=dict)  # requested covariates
    places: Places | None = None  # of each row, which is then one cell

    @property
    def n_by_type(self) -> dict[str, int]:
        """Number of cells by cell type."""
        return dict(self.table.groupby("cell_type", sort=False)["n_cells"].sum().to_dict())

    @property
    def n_by_population(self) -> dict[str, int]:
        """Number of cells by population."""
        return dict(self.table.groupby("sub_population", sort=False)["n_cells"].sum().to_dict())

    @property
    def record(self) -> dict[str, Any]:
        """Request as stored in the record of generated cells."""
        keys = [name for name in ("cell_type", "sub_population", "batch") if name in self.table]
        numbers = self.table.groupby(keys, sort=False, as_index=False)["n_cells"].sum().to_dict("list")
        return {"request": numbers, "at": format_at(self.at)}

    def places_of(self, population: str) -> Places | None:
        """Return the places of the cells of a population; None without positions."""
        if self.places is None:
            return None
        return self.places[np.flatnonzero(self.table["sub_population"] == population)]


def request_cells(
    model: BranchedModel,
    cells: int | Mapping[str, int] | pd.Series | pd.DataFrame,
    *,
    at: CovariateValues = NO_COVARIATES,
    extrapolate: bool = False,
) -> Request:
    """Complete a request with populations and batches, as in training cells.

    ``cells``, ``at`` and ``extrapolate`` are as in :meth:`bdm.BranchedDiffusion.generate`. The request has a row for
    each population, batch and value of covariates, in the order of the model; populations have their shares at them.
    """
    table = checked_table(model, cells)
    if at:
        table = with_covariates(model, table, at, named=not isinstance(cells, Real), extrapolate=extrapolate)
    covariates = [name for name in model.covariate_names if name in table]
    has_values = table[covariates].notna().any(axis=1)
    parts = [divide_in_proportion(model, table[~has_values]), divide_at_values(model, table[has_values], covariates)]
    table = pd.concat([part for part in parts if len(part)], ignore_index=True)
    by = [name for name in ("sub_population", "batch") if name in table] + covariates
    table = table[table["n_cells"] > 0].groupby(by, sort=False, as_index=False, dropna=False)["n_cells"].sum()
    table = in_model_order(model, table).reset_index(drop=True)
    table.insert(0, "cell_type", table["sub_population"].map(model.cell_type_of))
    return Request(table, at=at)


def in_model_order(model: BranchedModel, table: pd.DataFrame) -> pd.DataFrame:
    """Sort a table of cells by population and batch, in the order of the model."""
    order = {"sub_population": model.populations, "batch": model.autoencoder.batches}
    keys = [name for name in order if name in table]
    return table.sort_values(keys, key=lambda names: names.map(order[names.name].index), kind="stable")


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
    return table.loc[:, ~table.columns.str.startswith("Unnamed:")]  # without the index that pandas writes


def numbers_like(obs: pd.DataFrame, model: BranchedModel, keys: InputKeys = DEFAULT_KEYS) -> pd.DataFrame:
    """Count the cells of a data set by the model's types and covariates.

    Cells of other types are not counted, with a warning.
    """
    labels = labels_of(obs, model, keys)
    known = mask_known_types(labels, model, done="Not counted:")
    obs = with_written_names(obs)
    columns = [name for name in model.covariate_names if name in obs]
    cells = obs.loc[known, columns].assign(cell_type=labels[known].to_numpy())
    return cells.value_counts(["cell_type", *columns], dropna=False).rename("n_cells").reset_index()


def checked_table(model: BranchedModel, cells: Any) -> pd.DataFrame:
    """Convert a request to a checked table with distinct rows."""
    if isinstance(cells, pd.DataFrame):
        table = cells.copy()
    elif isinstance(cells, Mapping | pd.Series):
        table = pd.DataFrame(list(cells.items()), columns=["cell_type", "n_cells"])
    elif isinstance(cells, Real) and not isinstance(cells, bool):
        table = pd.DataFrame({"cell_type": model.cell_types, "n_cells": cells})
    else:
        raise InputError(
            f"Cells were requested by {type(cells).__name__}; give a number of cells of every type, numbers by type, "
            "or a table with the columns cell_type and n_cells."
        )
    check_columns(model, table)
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
        table["batch"] = as_strings(table["batch"])
        if unknown := sorted(set(table["batch"]) - set(model.autoencoder.batches)):
            known = ", ".join(model.autoencoder.batches) or "none (it was trained without a batch column)"
            raise InputError(f"The model has no batch {', '.join(map(repr, unknown))}; its batches: {known}.")
    table = table[table["n_cells"] > 0]
    if table.empty:
        raise InputError("The request has no cells; give at least one cell of one type.")
    # cells of equal rows are divided over populations together
    keys = [name for name in table if name != "n_cells"]
    return table.groupby(keys, sort=False, as_index=False, dropna=False)["n_cells"].sum()


def check_columns(model: BranchedModel, table: pd.DataFrame) -> None:
    """Check the columns of a table, and convert covariates to floats in place."""
    columns = (*COLUMNS, *model.covariate_names)
    if missing := [name for name in ("cell_type", "n_cells") if name not in table]:
        raise InputError(
            f"The table of cells lacks the column {missing[0]!r}; it needs cell_type and n_cells, and may have batch."
        )
    if unknown := [str(name) for name in table if name not in columns]:
        raise InputError(
            f"The table of cells has the column {unknown[0]!r}, which is none of {', '.join(columns)}; rename it, or "
            "leave it out. Sub-populations are named in cell_type."
        )
    for name in table.columns.intersection(model.covariate_names):
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = table[name][numbers.isna() & table[name].notna() & (table[name].astype(str) != "")]
        if len(wrong):
            raise InputError(f"The table of cells has {wrong.iloc[0]!r} for the covariate {name!r}; give a number.")
        table[name] = numbers.astype(float)


# ---- covariates, populations and batches of the cells in a table


def with_covariates(
    model: BranchedModel, table: pd.DataFrame, at: CovariateValues, *, named: bool, extrapolate: bool
) -> pd.DataFrame:
    """Add covariates to a table of cells, and return a row per cell.

    The cells of a row are spread evenly over each range; see :func:`bdm.generation.covariate_values.limit_range`.
    """
    effects = require_covariates(model, list(at))
    keys = [name for name in table if name not in (*at, "n_cells")]
    table = table.groupby(keys, sort=False, as_index=False, dropna=False)["n_cells"].sum()
    table = table.loc[table.index.repeat(table["n_cells"])].assign(n_cells=1)  # cells of a row share its index
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


def divide_in_proportion(model: BranchedModel, table: pd.DataFrame) -> pd.DataFrame:
    """Divide the cells of each row over populations and batches, as in training cells."""
    rows: list[dict[str, Any]] = []
    for row in table.to_dict("records"):
        for population, n_cells in divide_type(model, row["cell_type"], row["n_cells"], row.get("batch")).items():
            part = {**row, "sub_population": population}
            if "batch" in row or not model.autoencoder.batches:
                rows.append({**part, "n_cells": n_cells})
            else:
                numbers = in_proportion(model.composition.loc[population].to_numpy(), n_cells)
                by_batch = zip(model.composition, numbers, strict=True)
                rows.extend({**part, "batch": batch, "n_cells": number} for batch, number in by_batch)
    return pd.DataFrame(rows)


def divide_type(model: BranchedModel, cell_type: str, n_cells: int, batch: str | None = None) -> pd.Series:
    """Divide cells of a type over its populations, as in training cells."""
    if cell_type not in model.cell_types:
        return pd.Series({cell_type: n_cells})
    n_trained = model.n_training_cells(cell_type, batch)
    return pd.Series(in_proportion(n_trained.to_numpy(), n_cells), n_trained.index)


def in_proportion(share: np.ndarray, n_cells: int) -> np.ndarray:
    """Divide cells in proportion to shares, by largest remainder."""
    return rounded_shares(n_cells * share / share.sum())


def divide_at_values(model: BranchedModel, table: pd.DataFrame, covariates: Sequence[str]) -> pd.DataFrame:
    """Assign cells with covariates to populations and batches, a row per cell.

    Populations have their shares at these values; batches have their shares in training cells.
    """
    if table.empty or model.covariates is None:
        return pd.DataFrame()
    cells = table.sort_values(list(covariates), kind="stable")
    cells = cells.loc[cells.index.repeat(cells["n_cells"])].assign(n_cells=1).reset_index(drop=True)
    at = cells.reindex(columns=list(model.covariates.names)).to_numpy(dtype=float)
    population = cells["cell_type"].to_numpy(dtype=object, copy=True)
    for (name, *batch), part in cells.groupby([key for key in ("cell_type", "batch") if key in cells], sort=False):
        if name in model.cell_types:
            n_trained = model.n_training_cells(name, *batch)
            share = model.covariates.shares(name, n_trained.to_dict(), at[part.index])
            population[part.index] = n_trained.index.to_numpy(dtype=object)[evenly_chosen(share, POPULATION_STEP)]
    cells["sub_population"] = population
    return with_batches(model, cells)


def with_batches(model: BranchedModel, cells: pd.DataFrame) -> pd.DataFrame:
    """Add batches to cells with ``sub_population`` (one per row), unless they have some or need none."""
    if not model.autoencoder.batches or "batch" in cells:
        return cells
    chosen = np.empty(len(cells), dtype=object)
    for name, part in cells.groupby("sub_population", sort=False):
        share = model.composition.loc[name].to_numpy(dtype=float)[None].repeat(len(part), axis=0)
        chosen[part.index] = model.composition.columns.to_numpy(dtype=object)[evenly_chosen(share, BATCH_STEP)]
    return cells.assign(batch=chosen)


def evenly_chosen(share: np.ndarray, step: float) -> np.ndarray:
    """Choose a column for each row of shares.

    Columns alternate, so that any run of rows has about the expected number of each.
    """
    position = (0.5 + np.arange(len(share)) * step) % 1
    cumulative = share.cumsum(axis=1)
    chosen = (cumulative <= position[:, None] * cumulative[:, -1:]).sum(axis=1)
    return np.asarray(np.minimum(chosen, share.shape[1] - 1))
