"""Folders of a JSON file and safetensors files, whose checksums the JSON file records, and tables as tensors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from bdm.arrays import to_tensor
from bdm.checksums import read_checksummed_json, write_checksummed_json
from bdm.errors import InputError
from bdm.files import sha256

FORMAT = 13
TEXT = pd.Series([""]).dtype  # of columns with text: str since pandas 3, object before


@dataclass(frozen=True)
class Bundle:
    """Content of a folder of one JSON file and safetensors files.

    Attributes
    ----------
    content
        Content of the JSON file.
    tensors
        Tensors by file, then by name.
    """

    content: dict[str, Any]
    tensors: dict[str, dict[str, Tensor]]


@contextmanager
def reject_if_damaged(path: Path) -> Iterator[None]:
    """Turn errors that unexpected content of ``path`` causes into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(":")
        raise InputError(f"{path} is damaged ({type(error).__name__}: {reason}); make it again.") from error


def write_bundle(folder: Path, kind: str, bundle: Bundle) -> str:
    """Write ``kind.json`` and a safetensors file for each group of tensors, whose checksums the JSON records.

    Returns
    -------
    Checksum of the JSON content, and thereby of all files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    checksums = {}
    for name, tensors in bundle.tensors.items():
        file = folder / f"{name}.safetensors"
        # not by save_file, whose files only their owner may read
        file.write_bytes(save({key: value.detach().cpu().contiguous() for key, value in tensors.items()}))
        checksums[file.name] = sha256(file)
    return write_checksummed_json(folder / f"{kind}.json", {"format": FORMAT, "checksums": checksums, **bundle.content})


def read_bundle(folder: Path, kind: str) -> Bundle:
    """Read a folder that :func:`write_bundle` wrote.

    Raises
    ------
    InputError
        If the folder is of another kind or format version, or a file is missing or damaged.
    """
    folder = Path(folder)
    file = folder / f"{kind}.json"
    if not file.is_file():
        raise InputError(f"{folder} is not the folder of a bdm {kind}: it has no {file.name}.")
    content = read_checksummed_json(file, kind, version=FORMAT)
    tensors = {}
    with reject_if_damaged(file):
        checksums = dict(content["checksums"])
    for name, checksum in checksums.items():
        part = folder / name
        if not part.is_file() or sha256(part) != checksum:
            raise InputError(f"{part} is missing or damaged (its checksum does not match {file.name}).")
        try:
            # copies, as tensors are not aligned in the memory of the file
            tensors[part.stem] = {key: value.clone() for key, value in load_file(part).items()}
        except SafetensorError as error:
            raise InputError(f"{part} is not a safetensors file ({error}); make it again.") from error
    return Bundle(content, tensors)


def pack_tables(tables: dict[str, pd.DataFrame]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Pack tables of numbers and text as tensors, without their index.

    Returns
    -------
    The columns of each table, with the values of text columns, for JSON; and tensors named ``TABLE/COLUMN``, of numbers
    as they are and of text as codes.
    """
    columns: dict[str, Any] = {}
    tensors = {}
    for name, table in tables.items():
        columns[name] = {}
        for column in table:
            values, texts = table[column].to_numpy(), None
            if not pd.api.types.is_numeric_dtype(table[column]):
                codes, categories = pd.factorize(table[column])
                values, texts = codes.astype(np.int32), [str(text) for text in categories]
            columns[name][column] = texts
            tensors[f"{name}/{column}"] = to_tensor(np.ascontiguousarray(values))
    return columns, tensors


def unpack_tables(columns: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, pd.DataFrame]:
    """Return the tables that :func:`pack_tables` packed."""
    tables = {}
    for name, texts_by_column in columns.items():
        table = {column: tensors[f"{name}/{column}"].numpy() for column in texts_by_column}
        for column, texts in texts_by_column.items():
            if texts is not None:
                values = np.array([*texts, None], dtype=object)[table[column]]  # the code of missing text is -1
                table[column] = pd.Series(values, dtype=TEXT)
        tables[name] = pd.DataFrame(table)
    return tables
