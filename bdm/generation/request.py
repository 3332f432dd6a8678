import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from bdm.data.columns import as_text
from bdm.errors import InputError
from bdm.model.match import SAME, label_column
from bdm.model.model import BranchedModel
from bdm.settings import InputKeys

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Request:
    """How many cells of which type in which batch to generate.

    Attributes
    ----------
    table
        Columns ``cell_type``, ``batch`` (``""`` where no batch enters) and ``n_cells``; a type's rows together.
    """

    table: pd.DataFrame

    @property
    def n_cells(self) -> dict[str, int]:
        """Number of cells by type."""
        return self.table.groupby("cell_type", sort=False)["n_cells"].sum().to_dict()

    def batches(self, cell_type: str, start: int, n_cells: int) -> np.ndarray:
        """Names of the batches of ``n_cells`` cells of a type, after its first ``start``; the last batch has no end."""
        rows = self.table[self.table["cell_type"] == cell_type]
        row = np.searchsorted(rows["n_cells"].cumsum(), np.arange(start, start + n_cells), side="right")
        return rows["batch"].to_numpy()[np.minimum(row, len(rows) - 1)]


def request_cells(model: BranchedModel, cells: int | Mapping[str, int] | pd.DataFrame) -> Request:
    """Complete a request, spreading each type over batches as the training cells were where no batch is asked for.

    Parameters
    ----------
    cells
        Number of cells of every type; numbers by type; or a table with columns ``cell_type``, ``n_cells`` and maybe
        ``batch``. Its order makes no difference.

    Raises
    ------
    InputError
        If a type or batch is unknown to the model, or a number is negative or not whole.
    """
    if isinstance(cells, pd.DataFrame):
        table = cells.copy()
    elif isinstance(cells, Mapping):
        table = pd.DataFrame({"cell_type": list(cells), "n_cells": list(cells.values())})
    else:
        table = pd.DataFrame({"cell_type": model.cell_types, "n_cells": cells})
    _check(model, table)
    table["n_cells"] = pd.to_numeric(table["n_cells"]).astype(int)
    table = table[table["n_cells"] > 0]
    if table.empty:
        raise InputError("The request asks for no cells at all.")
    if "batch" not in table:
        rows = [_spread(model, row.cell_type, row.n_cells) for row in table.itertuples()]
        table = pd.concat(rows, ignore_index=True)
    table = table[table["n_cells"] > 0].groupby(["cell_type", "batch"], sort=False, as_index=False)["n_cells"].sum()
    order = {"cell_type": list(model.cell_types), "batch": list(model.autoencoder.batches or [""])}
    return Request(
        table.sort_values(list(order), key=lambda names: names.map(order[names.name].index), ignore_index=True)
    )


def read_request(path: Path) -> pd.DataFrame:
    """Read a table of cells to generate from a CSV file.

    Raises
    ------
    InputError
        If there is no such file, or it is no table.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as error:
        raise InputError(f"No such file: {path}.") from error
    except (ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as a CSV table ({error}).") from error


def numbers_like(obs: pd.DataFrame, model: BranchedModel, keys: InputKeys = SAME) -> dict[str, int]:
    """Numbers of cells of a model's types in a data set's ``obs``.

    Cells of other types, as of those that were too few to learn from, are not counted, with a warning.

    Raises
    ------
    InputError
        If it has no column of cell types, or no cells of the model's types.
    """
    key = label_column(obs, model, keys)
    labels = as_text(obs[key]).astype(object).replace(["nan"], None).fillna("")
    known = labels.isin(model.cell_types)
    others = ", ".join(repr(name) if name else "no type" for name in labels[~known].unique()[:5])
    if not known.any():
        raise InputError(f"obs[{key!r}] names no type that the model knows, but {others or 'none'}.")
    if not known.all():
        logger.warning("Not counted: %d cells of types that the model lacks: %s.", (~known).sum(), others)
    return labels[known].value_counts().to_dict()


def _check(model: BranchedModel, table: pd.DataFrame) -> None:
    lacking = [column for column in ("cell_type", "n_cells") if column not in table]
    if lacking:
        raise InputError(
            f"The table of cells lacks the column {lacking[0]!r}; it needs cell_type and n_cells, and may have batch."
        )
    table["cell_type"] = table["cell_type"].astype(str)
    unknown = sorted(set(table["cell_type"]) - set(model.cell_types))
    if unknown:
        raise InputError(
            f"The model knows no type {', '.join(map(repr, unknown))}; its types are {', '.join(model.cell_types)}."
        )
    numbers = pd.to_numeric(table["n_cells"], errors="coerce").to_numpy(dtype=float)
    wrong = ~np.isfinite(numbers) | (numbers < 0) | (numbers != np.round(numbers))
    if wrong.any():
        row = table[wrong].iloc[0]
        raise InputError(
            f"{row['n_cells']} cells of type {row['cell_type']!r} were asked for; give a whole number of 0 or more."
        )
    if "batch" in table:
        table["batch"] = table["batch"].astype(str)
        unknown = sorted(set(table["batch"]) - set(model.autoencoder.batches))
        if unknown:
            known = ", ".join(model.autoencoder.batches) or "none (it was trained without a batch column)"
            raise InputError(f"The model knows no batch {', '.join(map(repr, unknown))}; its batches: {known}.")


def _spread(model: BranchedModel, cell_type: str, n_cells: int) -> pd.DataFrame:
    """Spread cells over batches in the type's own proportions, by largest remainder."""
    share = model.composition.loc[cell_type]
    exact = n_cells * share.to_numpy() / share.sum()
    numbers = np.floor(exact).astype(int)
    numbers[np.argsort(numbers - exact, kind="stable")[: n_cells - numbers.sum()]] += 1
    return pd.DataFrame({"cell_type": cell_type, "batch": share.index, "n_cells": numbers})
