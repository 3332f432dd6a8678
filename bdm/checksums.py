"""Files with checksums, JSON and HDF5, so that files that were changed or damaged later are rejected."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from bdm.errors import InputError
from bdm.files import read_json, write_json

BLOCK = 512  # bytes of the user block before the HDF5 data, the smallest size that HDF5 allows
MARK = b"bdm sha256 "


def checksum(content: dict[str, Any]) -> str:
    """Hash of JSON content, independent of the order of keys and of white space."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_checksummed_json(path: Path, content: dict[str, Any]) -> str:
    """Write a JSON object, whose keys must be text, with its checksum; return the checksum."""
    digest = checksum(content)
    write_json(path, {**content, "checksum": digest})
    return digest


def read_checksummed_json(path: Path, kind: str, *, version: int) -> dict[str, Any]:
    """Read a file that :func:`write_checksummed_json` wrote, checksum included.

    Parameters
    ----------
    kind
        Name of the content, for messages.
    version
        Required value of ``format``.

    Raises
    ------
    InputError
        If the file is missing, of another kind or format version, or was changed since it was written.
    """
    content: dict[str, Any] = read_json(path)
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path} holds no {kind} that bdm wrote; is it the right file?")
    if content["format"] != version:
        raise InputError(f"{path} has another format than this version of bdm reads ({version}); make it again.")
    if content.get("checksum") != checksum({name: value for name, value in content.items() if name != "checksum"}):
        raise InputError(
            f"{path} is damaged, or was edited (its checksum does not match its content); make it again, as content "
            "that is changed by hand may not fit the other files."
        )
    return content


@contextmanager
def checksummed_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file; its hash is written into its user block when the file is complete."""
    with h5py.File(path, "w", userblock_size=BLOCK) as file:
        yield file
    with Path(path).open("r+b") as file:
        file.write(MARK + _digest_of_data(path).encode())


def check_hdf5(path: Path) -> None:
    """Reject an HDF5 file that :func:`checksummed_hdf5` wrote and that was changed later.

    Raises
    ------
    InputError
        If the file was changed.
    """
    with Path(path).open("rb") as file:
        block = file.read(BLOCK)
    if block.startswith(MARK) and block != (MARK + _digest_of_data(path).encode()).ljust(BLOCK, b"\0"):
        raise InputError(f"{path} is damaged, or was changed (its checksum does not match its content); make it again.")


def _digest_of_data(path: Path) -> str:
    with Path(path).open("rb") as file:
        file.seek(BLOCK)
        return hashlib.file_digest(file, "sha256").hexdigest()
