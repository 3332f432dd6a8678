"""Request of cells to generate: numbers of cells by type and batch."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.files import reading
from bdm.errors import InputError, counted
from bdm.model.match import SAME, label_column, labels_of
from bdm.model.model import BranchedModel
from bdm.settings import InputKeys
from bdm.validation import unknown_type

logger = logging.getLogger(__name__)

COLUMNS = ("cell_type", "n_cells", "batch")  # of a table of cells
MAX_CELLS = 10**12  # of a row: no more fit on a disk


@dataclass(frozen=True)
class Request:
    """How many cells of which type and batch to generate."""

    # Columns ``cell_type``, ``sub_population``, ``n_cells`` and, where the model has batches, ``batch``; the rows of a
    # population together
    table: pd.DataFrame

    @property
    def n_cells(self) -> dict[str, int]:
        """Number of cells by cell type."""
        return self._sums("cell_type")

    @property
    def n_by_population(self) -> dict[str, int]:
        """Number of cells by population."""
        return self._sums("sub_population")

    def _sums(self, column: str) -> dict[str, int]:
        return dict(self.table.groupby(column, sort=False)["n_cells"].sum().to_dict())

    def batches(self, population: str, start: int, n_cells: int) -> np.ndarray | None:
        """Batch of ``n_cells`` cells after the first ``start``; None where the model has no batches."""
        if "batch" not in self.table:
            return None
        rows = self.table[self.table["sub_population"] == population]
        row = np.searchsorted(rows["n_cells"].cumsum(), np.arange(start, start + n_cells), side="right")
        return np.asarray(rows["batch"].to_numpy()[np.minimum(row, len(rows) - 1)])


def request_cells(model: BranchedModel, cells: int | Mapping[str, int] | pd.Series | pd.DataFrame) -> Request:
    """Complete a request by the populations and batches that it does not name, in the shares of the training cells."""
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
    order = {"sub_population": list(model.populations)}
    rows = [spread_over_populations(model, row) for row in table.to_dict("records")]
    table = pd.concat(rows, ignore_index=True)
    if batches := model.autoencoder.batches:
        order["batch"] = list(batches)
        if "batch" not in table:
            share = model.composition.loc[table["sub_population"]].to_numpy()
            numbers = [in_proportion(of, n_cells) for of, n_cells in zip(share, table["n_cells"], strict=True)]
            table = table.loc[table.index.repeat(len(batches))].assign(
                batch=list(model.composition) * len(table), n_cells=np.concatenate(numbers)
            )
    table = table[table["n_cells"] > 0].groupby(list(order), sort=False, as_index=False)["n_cells"].sum()
    table = table.sort_values(list(order), key=lambda names: names.map(order[names.name].index), ignore_index=True)
    table.insert(0, "cell_type", table["sub_population"].map(model.cell_type_of))
    return Request(table)


def read_request(path: Path) -> pd.DataFrame:
    """Read a table of cells to generate from a CSV file."""
    with reading(path, "a CSV table"):
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return table.loc[:, ~table.columns.str.startswith("Unnamed:")]  # without the index, which pandas writes


def numbers_like(obs: pd.DataFrame, model: BranchedModel, keys: InputKeys = SAME) -> dict[str, int]:
    """Count the cells of the model's types in the ``obs`` of a data set; others are not counted, with a warning."""
    labels = labels_of(obs, model, keys).fillna("")
    known = labels.isin(model.cell_types)
    others = ", ".join(repr(name) if name else "no type" for name in labels[~known].unique()[:5])
    if not known.any():
        key = label_column(obs, model, keys)
        raise InputError(f"obs[{key!r}] has no cells of the model's types, but of {others or 'none'}.")
    if not known.all():
        logger.warning("Not counted: %s of types that the model lacks: %s.", counted((~known).sum(), "cell"), others)
    return dict(labels[known].value_counts().to_dict())


def _check(model: BranchedModel, table: pd.DataFrame) -> None:
    missing = [column for column in ("cell_type", "n_cells") if column not in table]
    if missing:
        raise InputError(
            f"The table of cells lacks the column {missing[0]!r}; it needs cell_type and n_cells, and may have batch."
        )
    if others := [str(column) for column in table if column not in COLUMNS]:
        raise InputError(
            f"The table of cells has the column {others[0]!r}, which is none of {', '.join(COLUMNS)}; rename it, or "
            "leave it out. Sub-populations are named in cell_type."
        )
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
    """Spread the cells of a row over the populations of its type, as the training cells of its batch, if it has one."""
    if (name := row["cell_type"]) not in model.cell_types:
        return pd.DataFrame([{**row, "sub_population": name}])
    share = model.composition.loc[list(model.autoencoder.populations_of(name))]
    in_batch = share[row["batch"]] if row.get("batch") is not None and share[row["batch"]].any() else share.sum(axis=1)
    numbers = in_proportion(in_batch.to_numpy(), row["n_cells"])
    return pd.DataFrame({**row, "sub_population": share.index, "n_cells": numbers})


def in_proportion(share: np.ndarray, n_cells: int) -> np.ndarray:
    """Divide cells into whole numbers in proportion to shares, by largest remainder."""
    exact = n_cells * share / share.sum()
    numbers = np.floor(exact).astype(int)
    numbers[np.argsort(numbers - exact, kind="stable")[: n_cells - numbers.sum()]] += 1
    return np.asarray(numbers)
