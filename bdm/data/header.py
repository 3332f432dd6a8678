"""Columns of ``obs`` and ``var``, their values, and matrices of counts, found before cells are read.

The workflow includes this file, to check its configuration wherever Snakemake runs; hence packages are imported where
they are used. What cannot be known here is None, and is left to ``bdm prepare``, which explains what is wrong.
"""

import csv
from pathlib import Path
from typing import Any

UNREADABLE = (ImportError, OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, csv.Error)
MISSING_LABELS = ("", "nan")  # texts that stand for the absence of a label


def obs_columns(cells: str | Path, labels: str | Path | None = None) -> list[str] | None:
    """Name the columns of ``obs`` of an ``.h5ad`` file, with the columns that a table of labels adds.

    Returns
    -------
    None for files of other formats, and for files that cannot be read.
    """
    try:
        columns = h5ad_columns(Path(cells))
        added = [] if labels is None else table_columns(Path(labels))
    except UNREADABLE:
        return None
    return None if columns is None or added is None else list(dict.fromkeys([*columns, *added]))


def var_columns(cells: str | Path) -> list[str] | None:
    """Name the columns of ``var`` of an ``.h5ad`` file, and those of its ``raw``.

    Returns
    -------
    None for files of other formats, of AnnData before 0.7, and for files that cannot be read.
    """
    slots = slot_names(cells)
    if slots is None:
        return None
    try:
        tables = ["var", "raw/var"] if "raw" in slots else ["var"]
        columns = [h5ad_columns(Path(cells), table) for table in tables]
    except UNREADABLE:
        return None
    return None if None in columns else list(dict.fromkeys(name for of in columns for name in of or []))


def slot_names(cells: str | Path) -> list[str] | None:
    """Name where the counts of an ``.h5ad`` file may be: its layers, ``raw`` and ``X``.

    Returns
    -------
    None for files of other formats, of AnnData before 0.7, and for files that cannot be read.
    """
    if not is_h5ad(cells):
        return None
    try:
        import h5py

        with h5py.File(cells, locking=False) as file:
            if file["obs"].attrs["encoding-type"] != "dataframe":  # before AnnData 0.7, it has none
                return None
            slots = list(file.get("layers", ()))
            return slots + [name for name in ("raw", "X") if name in file and not is_null(file[name])]
    except UNREADABLE:
        return None


def is_h5ad(path: str | Path) -> bool:
    """Return whether there is a file with this ending."""
    return Path(path).suffix.lower() == ".h5ad" and Path(path).is_file()


def is_null(stored: Any) -> bool:
    """Return whether AnnData wrote that there is nothing."""
    return bool(stored.attrs.get("encoding-type") == "null")


def h5ad_columns(path: Path, table: str = "obs") -> list[str] | None:
    """Name the columns of a table as AnnData reads them: in a group, or, before AnnData 0.7, in one dataset."""
    if not is_h5ad(path):
        return None
    import h5py

    with h5py.File(path, locking=False) as file:
        stored = file[table]
        if isinstance(stored, h5py.Dataset):
            return None if stored.dtype.names is None else list(stored.dtype.names[1:])  # the first is the index
        names = stored.attrs["column-order"]
        if stored.attrs["encoding-type"] != "dataframe" or names.ndim != 1:
            return None
        return [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def table_columns(path: Path) -> list[str] | None:
    """Name the columns of a table of labels, without the names of cells, which have no name in tables of R."""
    if path.suffix.lower() not in (".csv", ".tsv", ".txt"):  # compressed
        return None
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = (row for row in csv.reader(file, delimiter=separator_of(path)) if any(map(str.strip, row)))
        header, first = next(rows, []), next(rows, [])
    columns = header if len(first) == len(header) + 1 else header[1:]
    is_clear = len(header) > 0 and len(first) - len(header) in (0, 1) and all(columns)
    return columns if is_clear and len(set(header)) == len(header) else None


def separator_of(path: Path) -> str:
    """Give the character that separates the columns of a table, by the ending of its name."""
    return "\t" if {".tsv", ".txt"} & {suffix.lower() for suffix in path.suffixes} else ","


def n_cells_by_value(cells: str | Path, column: str) -> dict[str, int] | None:
    """Count the cells of each value in a column of ``obs`` of an ``.h5ad`` file: of each cell type, or each donor.

    Returns
    -------
    Numbers by value, without missing values; None for columns of decimal numbers or of other
    kinds, and where they cannot be read.
    """
    try:
        import h5py
        import numpy as np

        with h5py.File(cells, locking=False) as file:
            stored = file["obs"][column]
            if isinstance(stored, h5py.Group):
                if stored.attrs["encoding-type"] != "categorical":
                    return None
                codes, n_cells = np.unique(stored["codes"][()], return_counts=True)
                values = stored["categories"][()][codes[codes >= 0]]
                n_cells = n_cells[codes >= 0]
            else:
                values, n_cells = np.unique(stored[()], return_counts=True)
            if values.dtype.kind == "f":
                return None
            names = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
            found = dict(zip(names, n_cells.tolist(), strict=True))
            return {name: number for name, number in found.items() if name not in MISSING_LABELS}
    except UNREADABLE:
        return None
