"""Requests of cells to generate: numbers by type and batch, and covariates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm._core.errors import InputError, abbreviated
from bdm._core.files import reading
from bdm._core.validation import unknown_type
from bdm.autoencoder.moments import Mixture, Normal
from bdm.data.columns import with_written_names
from bdm.data.filters import rounded_shares
from bdm.generation.at import (
    NOWHERE,
    At,
    at_in_words,
    check_values,
    covariate_names,
    placed_cells,
    weight_of_populations,
    with_values,
)
from bdm.model.match import SAME, labels_of, of_known_types
from bdm.model.model import BranchedModel
from bdm.prior.transport import MixtureMap, unbalanced_coupling
from bdm.settings import InputKeys

COLUMNS = ("cell_type", "n_cells", "batch")  # columns of a table of cells
MAX_CELLS = 10**12  # per row; more do not fit on a disk


@dataclass(frozen=True)
class Request:
    """Numbers of cells to generate by type and batch."""

    # Columns ``cell_type``, ``sub_population``, ``n_cells``, ``batch`` if the model has batches, and given covariates
    # (NaN: to be sampled); rows are grouped by population
    table: pd.DataFrame
    # Between snapshots, by population: fraction of the way to the other snapshot, and transport to it
    ways: Mapping[str, tuple[float, MixtureMap]] = field(default_factory=dict)
    at: At = field(default_factory=dict)  # requested covariates
    snapshot: float | None = None

    def moved(self, x: Tensor, population: str, generator: torch.Generator) -> Tensor:
        """Move whitened cells (cells x dimensions) between snapshots, if requested."""
        if population not in self.ways:
            return x
        part, way = self.ways[population]
        return x + part * (way(x, generator) - x)

    @property
    def n_cells(self) -> dict[str, int]:
        """Number of cells by cell type."""
        return self._sums("cell_type")

    @property
    def n_by_population(self) -> dict[str, int]:
        """Number of cells by population."""
        return self._sums("sub_population")

    @property
    def record(self) -> dict[str, Any]:
        """Request as stored in the record of generated cells."""
        keys = [name for name in ("cell_type", "sub_population", "batch") if name in self.table]
        numbers = self.table.groupby(keys, sort=False, as_index=False)["n_cells"].sum().to_dict("list")
        return {"request": numbers, "at": at_in_words(self.at), "snapshot": self.snapshot}

    def _sums(self, column: str) -> dict[str, int]:
        return dict(self.table.groupby(column, sort=False)["n_cells"].sum().to_dict())

    def batches(self, population: str, start: int, n_cells: int) -> np.ndarray | None:
        """Return the batches of ``n_cells`` cells from ``start``; None without batches."""
        if "batch" not in self.table:
            return None
        rows = self.table[self.table["sub_population"] == population]
        row = np.searchsorted(rows["n_cells"].cumsum(), np.arange(start, start + n_cells), side="right")
        return np.asarray(rows["batch"].to_numpy()[np.minimum(row, len(rows) - 1)])


def request_cells(
    model: BranchedModel,
    cells: int | Mapping[str, int] | pd.Series | pd.DataFrame,
    *,
    at: At = NOWHERE,
    extrapolate: bool = False,
    snapshot: float | None = None,
) -> Request:
    """Complete a request with populations and batches, as in training cells.

    With ``at``, cells have these covariates, and populations have their shares at them, see
    :func:`bdm.generation.at.with_values`. With ``snapshot``, ``cells`` is the total number at this time, see
    :func:`request_between`.
    """
    if snapshot is not None:
        if isinstance(cells, bool) or not isinstance(cells, int | np.integer):
            raise InputError("Cells of a snapshot were not requested by a number; give a number of cells.")
        if at:
            raise InputError("Cells of a snapshot cannot have values of covariates; give either `at=` or `snapshot=`.")
        return request_between(model, int(cells), snapshot)
    if isinstance(cells, pd.DataFrame):
        table = cells.copy()
    elif isinstance(cells, Mapping | pd.Series):
        table = pd.DataFrame(list(cells.items()), columns=["cell_type", "n_cells"])
    elif isinstance(cells, bool) or not isinstance(cells, Real):
        raise InputError(
            f"Cells were requested by {type(cells).__name__}; give a number of cells of every type, numbers by type, "
            "or a table with the columns cell_type and n_cells."
        )
    else:
        table = pd.DataFrame({"cell_type": model.cell_types, "n_cells": cells})
    _check(model, table)
    table["n_cells"] = pd.to_numeric(table["n_cells"]).astype(int)
    table = table[table["n_cells"] > 0]
    if table.empty:
        raise InputError("The request has no cells; give at least one cell of one type.")
    if at:
        table = with_values(model, table, at, named=not isinstance(cells, Real), extrapolate=extrapolate)
    order = {"sub_population": list(model.populations)}
    covariates = [name for name in covariate_names(model) if name in table]
    given = table[covariates].notna().any(axis=1)
    rows = [spread_over_populations(model, row) for row in table[~given].to_dict("records")]
    placed = [placed_cells(model, table[given], covariates)] if given.any() else []
    if batches := model.autoencoder.batches:
        order["batch"] = list(batches)
        if "batch" not in table:
            rows = [spread_over_batches(model, row) for row in rows]
    table = pd.concat([*rows, *placed], ignore_index=True)
    by = [*order, *covariates]
    table = table[table["n_cells"] > 0].groupby(by, sort=False, as_index=False, dropna=False)["n_cells"].sum()
    table = table.sort_values(
        list(order), key=lambda names: names.map(order[names.name].index), ignore_index=True, kind="stable"
    )
    table.insert(0, "cell_type", table["sub_population"].map(model.cell_type_of))
    return Request(table, at=at)


def request_between(model: BranchedModel, n_cells: int, time: float) -> Request:
    """Request cells at a time between snapshots (cell types named by time).

    Cells are sampled from the snapshots before and after, more from the nearer one. They are moved to ``time`` by
    displacement interpolation: transport between the populations of both snapshots, which may grow and shrink.
    """
    before, after, weight = snapshots_around(model, time)
    numbers = in_proportion(np.array([1 - weight, weight]), n_cells)
    request = request_cells(model, dict(zip((before, after), numbers, strict=True)))
    (early, source), (late, target) = (mixture_of(model, name) for name in (before, after))
    mass, ways = unbalanced_coupling(source, target), {}
    for names, start, end, moved, part in (
        (early, source, target, mass, weight),
        (late, target, source, mass.T, 1 - weight),
    ):
        for k, name in enumerate(names):
            alone = Mixture(torch.ones(1, dtype=torch.float64), start.mean[[k]], start.covariance[[k]])
            ways[name] = part, MixtureMap(alone, replace(end, weight=moved[k].softmax(dim=0)))
    return replace(request, ways=ways, snapshot=time)


def snapshots_around(model: BranchedModel, time: float) -> tuple[str, str, float]:
    """Find the snapshots around a time, and the weight of the later one."""
    try:
        times = sorted((float(name), name) for name in model.cell_types)
    except ValueError:
        raise InputError(
            f"The cell types {abbreviated(model.cell_types, n_shown=5)} are not all numbers, so `snapshot=` has no "
            "meaning; fit a model with the column of the times of the snapshots, as numbers, as `label_key=`."
        ) from None
    if alike := next((f"{one!r} and {other!r}" for (a, one), (b, other) in pairwise(times) if a == b), None):
        raise InputError(
            f"The cell types {alike} are of the same time; fit a model to cells that have one name for it."
        )
    first, last = times[0][0], times[-1][0]
    if len(times) == 1 or not first <= time <= last:
        raise InputError(
            f"snapshot is {time:g}, but the snapshots are from {first:g} to {last:g}; choose a time between."
        )
    number = min(sum(known <= time for known, _ in times), len(times) - 1)
    (start, before), (end, after) = times[number - 1], times[number]
    return before, after, (time - start) / (end - start)


def mixture_of(model: BranchedModel, cell_type: str) -> tuple[list[str], Mixture]:
    """Return the populations of a cell type, and their mixture in whitened space."""
    number, moments = weight_of_populations(model, cell_type), model.moments
    rows = [moments.populations.index(name) for name in number.index]
    normals = [Normal(moments.mean[row], moments.covariance[row]) for row in rows]
    return list(number.index), Mixture.of(normals, torch.tensor(number.to_numpy(dtype=float)))


def parse_cells(texts: Sequence[str]) -> int | dict[str, int]:
    """Parse the option ``--cells``: ``N`` cells of each type, or several ``TYPE=N``."""
    found: dict[str, int] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        if not number.isdecimal() or text.startswith("="):
            raise InputError(f"--cells {text} is not of the form N or TYPE=N, such as 100 or 'T cell=100'.")
        if name in found or "" in found or (found and not name):
            raise InputError("--cells takes one number for all types, or TYPE=N once for each of some types.")
        found[name] = int(number)
    return found.get("", found)


def read_request(path: Path) -> pd.DataFrame:
    """Read a table of cells to generate from a CSV file."""
    with reading(path, "a CSV table"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.loc[:, ~table.columns.str.startswith("Unnamed:")]  # without the index that pandas writes


def numbers_like(obs: pd.DataFrame, model: BranchedModel, keys: InputKeys = SAME) -> pd.DataFrame:
    """Count the cells of a data set by the model's types and covariates.

    Cells of other types are not counted, with a warning.
    """
    labels = labels_of(obs, model, keys)
    known = of_known_types(labels, model, done="Not counted:")
    obs = with_written_names(obs)
    columns = [name for name in covariate_names(model) if name in obs]
    cells = obs.loc[known, columns].assign(cell_type=labels[known].to_numpy())
    return cells.value_counts(["cell_type", *columns], dropna=False).rename("n_cells").reset_index()


def _check(model: BranchedModel, table: pd.DataFrame) -> None:
    missing = [column for column in ("cell_type", "n_cells") if column not in table]
    if missing:
        raise InputError(
            f"The table of cells lacks the column {missing[0]!r}; it needs cell_type and n_cells, and may have batch."
        )
    columns = (*COLUMNS, *covariate_names(model))
    if others := [str(column) for column in table if column not in columns]:
        raise InputError(
            f"The table of cells has the column {others[0]!r}, which is none of {', '.join(columns)}; rename it, or "
            "leave it out. Sub-populations are named in cell_type."
        )
    check_values(model, table)
    table["cell_type"] = table["cell_type"].astype(str)
    unknown = sorted(set(table["cell_type"]) - {*model.cell_types, *model.populations})
    if unknown:
        raise InputError(unknown_type(unknown[0], model.cell_types, of="The model has"))
    numbers = pd.to_numeric(table["n_cells"], errors="coerce").to_numpy(dtype=float)
    wrong = ~((numbers >= 0) & (numbers <= MAX_CELLS)) | (numbers != np.round(numbers))
    if wrong.any():
        row = table[wrong].iloc[0]
        raise InputError(
            f"{row['n_cells']} cells of type {row['cell_type']!r} were requested; give a whole number of 0 or more, up "
            f"to {MAX_CELLS:,}."
        )
    if "batch" in table:
        table["batch"] = table["batch"].astype(str)
        unknown = sorted(set(table["batch"]) - set(model.autoencoder.batches))
        if unknown:
            known = ", ".join(model.autoencoder.batches) or "none (it was trained without a batch column)"
            raise InputError(f"The model has no batch {', '.join(map(repr, unknown))}; its batches: {known}.")


def spread_over_populations(model: BranchedModel, row: Mapping[str, Any]) -> pd.DataFrame:
    """Divide a row's cells over populations, see :func:`weight_of_populations`."""
    if (name := row["cell_type"]) not in model.cell_types:
        return pd.DataFrame([{**row, "sub_population": name}])
    weight = weight_of_populations(model, name, row.get("batch"))
    numbers = in_proportion(weight.to_numpy(), row["n_cells"])
    return pd.DataFrame({**row, "sub_population": weight.index, "n_cells": numbers})


def spread_over_batches(model: BranchedModel, rows: pd.DataFrame) -> pd.DataFrame:
    """Divide the cells of each row over batches, as in training cells."""
    share = model.composition.loc[rows["sub_population"]].to_numpy()
    numbers = [in_proportion(shares, n_cells) for shares, n_cells in zip(share, rows["n_cells"], strict=True)]
    repeated = rows.loc[rows.index.repeat(len(model.composition.columns))]
    return repeated.assign(batch=list(model.composition) * len(rows), n_cells=np.concatenate(numbers))


def in_proportion(share: np.ndarray, n_cells: int) -> np.ndarray:
    """Divide cells in proportion to shares, by largest remainder."""
    return rounded_shares(n_cells * share / share.sum())
