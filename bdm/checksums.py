"""Checksums: files that show whether they are still as they were written."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from bdm.errors import InputError
from bdm.files import read_json, write_json

BLOCK = 512  # bytes before an HDF5 file proper that HDF5 leaves to its users, the fewest there can be
MARK = b"bdm sha256 "


def checksum(content: dict[str, Any]) -> str:
    """Hash of JSON content, whatever the order and the spaces that it is written with."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_checksummed_json(path: Path, content: dict[str, Any]) -> str:
    """Write a JSON object with its checksum, which this gives; its keys must be text."""
    found = checksum(content)
    write_json(path, {**content, "checksum": found})
    return found


def read_checksummed_json(path: Path, kind: str, *, version: int) -> dict[str, Any]:
    """Read what :func:`write_checksummed_json` wrote, with its checksum.

    Parameters
    ----------
    kind
        What it holds, for messages.
    version
        What ``format`` must be.

    Raises
    ------
    InputError
        If it is missing, something else, of another format, or not as it was written.
    """
    content = read_json(path)
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path} holds no {kind} as bdm writes it; is it the right file?")
    if content["format"] != version:
        raise InputError(f"{path} has another format than this version of bdm reads ({version}); make it anew.")
    if content.get("checksum") != checksum({name: value for name, value in content.items() if name != "checksum"}):
        raise InputError(
            f"{path} is damaged, or was edited (its checksum is not that of its content); make it anew, as a part that "
            "is changed by hand may not fit the others."
        )
    return content


@contextmanager
def checksummed_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a new HDF5 file, whose hash is written into the block before it when all else is.

    Raises
    ------
    OSError
        If it cannot be written, as on a full disk.
    """
    with Disk(path) as disk:
        try:
            with ChecksummedFile(disk, "w", userblock_size=BLOCK) as file:
                yield file
        finally:
            disk.check()
    with Path(path).open("r+b") as file:
        file.write(MARK + _rest(path).encode())


class Disk(io.FileIO):
    """File for HDF5 to write to, which keeps to itself what fails: HDF5 ends the process where a write does.

    Attributes
    ----------
    error
        What failed first.
    """

    def __init__(self, path: Path):
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise what failed, if anything did."""
        if self.error is not None:
            raise self.error

    def readinto(self, buffer: memoryview) -> int:
        """Fill ``buffer``, with zeros where there is nothing."""
        n_read = super().readinto(buffer)
        memoryview(buffer)[n_read:] = bytes(len(buffer) - n_read)  # h5py 3.11 gives a view without slices
        return len(buffer)

    def write(self, content: memoryview) -> int:
        """Write all, unless that fails or has before."""
        left = memoryview(content)
        try:
            while left and self.error is None:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
        return len(content)

    def truncate(self, size: int | None = None) -> int:
        """Change the length."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


class ChecksummedFile(h5py.File):
    """HDF5 file on a :class:`Disk`."""

    def __init__(self, disk: Disk, *arguments: Any, **how: Any):
        self.disk = disk
        super().__init__(disk, *arguments, **how)


def check_hdf5(path: Path) -> bool:
    """Refuse an HDF5 file that :func:`checksummed_hdf5` wrote and that has changed since.

    Returns
    -------
    Whether it is as it was written; False of any other file.

    Raises
    ------
    InputError
        If it has changed.
    """
    with Path(path).open("rb") as file:
        told = file.read(BLOCK)
    if not told.startswith(MARK):
        return False
    if told != (MARK + _rest(path).encode()).ljust(BLOCK, b"\0"):
        raise InputError(f"{path} is damaged, or was changed (its checksum is not the one in it); make it anew.")
    return True


def _rest(path: Path) -> str:
    with Path(path).open("rb") as file:
        file.seek(BLOCK)
        return hashlib.file_digest(file, "sha256").hexdigest()
