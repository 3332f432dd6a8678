"""Files with checksums, JSON and HDF5, so that files that were changed or damaged later are rejected."""

import hashlib
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py

from bdm.errors import InputError
from bdm.files import read_json, write_json

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

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
    """Open a new HDF5 file; its hash is written into its user block when the file is complete.

    Raises
    ------
    OSError
        If the file cannot be written, as on a full disk.
    """
    with Disk(path) as disk:
        try:
            with ChecksummedFile(disk, "w", userblock_size=BLOCK) as file:
                yield file
        finally:
            disk.check()
    with Path(path).open("r+b") as file:
        file.write(MARK + _digest_of_data(path).encode())


class Disk(io.FileIO):
    """File for HDF5 to write to, which stores errors in place of raising them, as these would end the process.

    Attributes
    ----------
    error
        The first error.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None

    def check(self) -> None:
        """Raise the first error, if there was one."""
        if self.error is not None:
            raise self.error

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill ``buffer``, with zeros beyond the end of the file."""
        view = memoryview(buffer)  # h5py 3.11 passes an array without slices
        n_read = super().readinto(view) or 0
        view[n_read:] = bytes(len(view) - n_read)
        return len(view)

    def write(self, content: "ReadableBuffer") -> int:
        """Write all of ``content``, unless there was an error."""
        view = memoryview(content)
        remaining = view
        try:
            while remaining and self.error is None:
                remaining = remaining[super().write(remaining) :]
        except OSError as error:
            self.error = error
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Change the length of the file."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0


class ChecksummedFile(h5py.File):  # type: ignore[misc]
    """HDF5 file on a :class:`Disk`."""

    def __init__(self, disk: Disk, *arguments: Any, **options: Any) -> None:
        self.disk = disk
        super().__init__(disk, *arguments, **options)


def check_hdf5(path: Path) -> bool:
    """Reject an HDF5 file that :func:`checksummed_hdf5` wrote and that was changed later.

    Returns
    -------
    True if the file is unchanged, False if it has no checksum.

    Raises
    ------
    InputError
        If the file was changed.
    """
    with Path(path).open("rb") as file:
        block = file.read(BLOCK)
    if not block.startswith(MARK):
        return False
    if block != (MARK + _digest_of_data(path).encode()).ljust(BLOCK, b"\0"):
        raise InputError(f"{path} is damaged, or was changed (its checksum does not match its content); make it again.")
    return True


def _digest_of_data(path: Path) -> str:
    with Path(path).open("rb") as file:
        file.seek(BLOCK)
        return hashlib.file_digest(file, "sha256").hexdigest()
