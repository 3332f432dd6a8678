"""Columns of ``obs`` and their values, read without the cells.

The workflow includes this file to check its configuration wherever Snakemake runs, so packages are imported where they
are used. Functions return None for unreadable files; ``bdm prepare`` reports the error later.
"""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

UNREADABLE = (ImportError, OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, csv.Error)
MISSING_LABELS = ("", "nan")  # text that means no label

Read = TypeVar("Read")


def obs_columns(cells: str | Path, labels: str | Path | None = None) -> list[str] | None:
    """List the columns of an ``.h5ad`` file's ``obs`` and a label table."""
    columns = from_hdf5(cells, lambda file: list(map(as_str, file["obs"].attrs["column-order"])))
    try:
        added = [] if labels is None else table_columns(Path(labels))
    except UNREADABLE:
        return None
    return None if columns is None or added is None else list(dict.fromkeys([*columns, *added]))


def n_cells_by_value(cells: str | Path, column: str) -> dict[str, int] | None:
    """Count the cells with each value of an ``.h5ad`` file's ``obs`` column.

    Also returns None for floats and for unsupported encodings.
    """

    def count_values(file: Any) -> dict[str, int] | None:
        import numpy as np

        stored = file["obs"][column]
        if not hasattr(stored, "keys"):
            values, n_cells = np.unique(stored[()], return_counts=True)
        elif stored.attrs["encoding-type"] == "categorical":
            codes, n_cells = np.unique(stored["codes"][()], return_counts=True)
            values, n_cells = stored["categories"][()][codes[codes >= 0]], n_cells[codes >= 0]
        else:
            return None
        if values.dtype.kind == "f":
            return None
        n_by_value = dict(zip(map(as_str, values), n_cells.tolist(), strict=True))
        return {name: number for name, number in n_by_value.items() if name not in MISSING_LABELS}

    return from_hdf5(cells, count_values)


def from_hdf5(path: str | Path, read: Callable[[Any], Read | None]) -> Read | None:
    """Apply ``read`` to an open ``.h5ad`` file; None if this fails."""
    if Path(path).suffix.lower() != ".h5ad" or not Path(path).is_file():
        return None
    try:
        import h5py

        try:
            opened = h5py.File(path, locking=False)
        except OSError:  # for example if this process has it open with locks
            opened = h5py.File(path)
        with opened as file:
            return read(file)
    except UNREADABLE:
        return None


def as_str(name: Any) -> str:
    """Decode text that HDF5 may store as bytes."""
    return name.decode() if isinstance(name, bytes) else str(name)


def table_columns(path: Path) -> list[str] | None:
    """List the columns of a label table, without the column of cell names.

    In tables written by R, the column of cell names has no header. Returns None for other or ambiguous tables.
    """
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):  # for example compressed
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file, delimiter=separator_of(path)) if any(map(str.strip, row)))
        header, first = next(rows, []), next(rows, [])
    columns = header if len(first) == len(header) + 1 else header[1:]
    is_clear = len(header) > 0 and len(first) - len(header) in (0, 1) and all(columns)
    return columns if is_clear and len(set(header)) == len(header) else None


def row_names(path: Path) -> list[str] | None:
    """List the names in the first column of a ``.csv`` table with a header."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if any(map(str.strip, row))]
    except UNREADABLE:
        return None
    return [row[0] for row in rows[1:]] or None


def separator_of(path: Path) -> str:
    """Return the column separator of a table by its file name."""
    return "\t" if {".tsv", ".txt"} & {suffix.lower() for suffix in path.suffixes} else ","
