"""Files and folders: atomic writes, JSON, checksums and provenance records."""

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bdm import __version__
from bdm._core.errors import InputError

if TYPE_CHECKING:
    import h5py
    import pandas as pd

UNFINISHED = ".unfinished"  # suffix of scratch folders
FORMULA = re.compile(r"(?![+-]?[\d.]+$)[=+\-@\t\r]")  # text that a spreadsheet takes for a formula
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors of writing only


@contextmanager
def atomic_write(path: Path, *, folder_of: str | None = None) -> Iterator[Path]:
    """Yield a scratch path that replaces ``path`` on success only.

    Folders are replaced only with ``folder_of``, if they are empty or contain this file. If the process is killed, the
    next write to ``path`` removes the scratch folder.
    """
    path = Path(path)
    if path.parent.suffix == UNFINISHED:  # part of a folder that is itself written atomically
        yield path
        return
    try:
        if path.is_dir() and (folder_of is None or (any(path.iterdir()) and not (path / folder_of).is_file())):
            raise InputError(f"Cannot write {path}: it is a folder with other content; name another output.")
        if folder_of is not None and path.is_file():
            raise InputError(f"Cannot write the folder {path}: there is a file of that name; name another output.")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch, lock = _scratch_of(path)
    except OSError as error:
        raise InputError(
            f"Cannot write {path}: {error.strerror}; choose an output folder that you may write to."
        ) from error
    try:
        written = scratch / path.name
        yield written
        _flush(written)
        if path.is_dir() and written.is_dir():
            os.replace(path, scratch / f"{path.name}.replaced")
        os.replace(written, path)
    except Exception as error:
        if (reason := _unwritable(error)) is None:
            raise
        raise InputError(f"Cannot write {path}: {reason}; make room, or choose another output folder.") from error
    finally:
        _remove(scratch, path)
        os.close(lock)


def reject_existing(path: Path) -> None:
    """Reject an output that exists, unless it is an empty folder."""
    with suppress(OSError):  # atomic_write explains why the output cannot be written
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise InputError(f"{path} exists; name another output, or replace it by `overwrite=True`.")


def _scratch_of(path: Path) -> tuple[Path, int]:
    """Create a scratch folder and its lock; remove the folders of ended processes."""
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(parent, wait=True)  # otherwise another process could remove the new folder before it is locked
        for abandoned in path.parent.glob(f".{glob.escape(path.name)}.????????{UNFINISHED}"):
            _remove_abandoned(abandoned, path)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent))
        lock = os.open(scratch, os.O_RDONLY)
        _lock(lock)
    finally:
        os.close(parent)
    return scratch, lock


def _remove_abandoned(scratch: Path, path: Path) -> None:
    """Remove an ended process's scratch folder."""
    try:
        handle = os.open(scratch, os.O_RDONLY)
    except FileNotFoundError:  # removed by its process just now
        return
    try:
        has_lock = _lock(handle)
        if has_lock is False:
            raise InputError(
                f"Cannot write {path}: another process is writing it; wait until it has ended, or name another output."
            )
        if has_lock:  # its process has ended
            _remove(scratch, path)
    finally:
        os.close(handle)


def _remove(scratch: Path, path: Path) -> None:
    """Remove a scratch folder; move the previous output back unless it was replaced."""
    replaced = scratch / f"{path.name}.replaced"
    if replaced.exists() and not path.exists():
        os.replace(replaced, path)
    shutil.rmtree(scratch, ignore_errors=True)


def _lock(handle: int, *, wait: bool = False) -> bool | None:
    """Lock a folder; False if another process holds it, None if unsupported."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _flush(written: Path) -> None:
    """Flush files to disk, so that a full disk fails before replacement."""
    for file in [written] if written.is_file() else written.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _unwritable(error: BaseException | None) -> str | None:
    """Return the system's message for a full or read-only disk, else None."""
    while error is not None:
        reported = re.search(r"errno = (\d+)", str(error))  # as in messages of HDF5
        number = int(reported[1]) if reported else getattr(error, "errno", None)
        if number in UNWRITABLE:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


SPARE = 2**18  # bytes that HDF5 may write when it closes a file


def require_space(path: Path | str, n_bytes: int) -> None:
    """Raise OSError if the disk lacks room, before HDF5 could abort the process."""
    if shutil.disk_usage(Path(path).parent).free < n_bytes + SPARE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


# ---- checksums, JSON and HDF5

SNAKEMAKE = ".snakemake_timestamp"  # Snakemake adds it to folders; not hashed
USER_BLOCK = 512  # bytes before the HDF5 data, the smallest size that HDF5 allows
MARK = b"bdm sha256 "


def sha256(path: Path) -> str:
    """Hash a file, or all files of a folder with their names."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != SNAKEMAKE):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def write_table(table: "pd.DataFrame", path: Path, *, index: str | bool = False, digits: int = 6) -> None:
    """Write a table as CSV, with an apostrophe before names that a spreadsheet would take for formulas.

    ``index`` is whether to write the index, or its name; ``digits`` are the significant digits of numbers.
    """

    def quoted(value: object) -> object:
        return f"'{value}" if isinstance(value, str) and FORMULA.match(value) else value

    text = table.select_dtypes(exclude="number").astype(object).map(quoted)
    named = table.assign(**text).rename(index=quoted, columns=quoted)
    label = index if isinstance(index, str) else None
    named.to_csv(path, index=bool(index), index_label=label, float_format=f"%.{digits}g")


def write_json(path: Path, content: Any) -> None:
    """Write indented JSON, with non-ASCII characters unescaped."""
    path = Path(path)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    with reading(path, "JSON"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn errors of reading a missing or malformed file into InputErrors."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"No such file: {path}.") from error
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as {kind} ({str(error).strip()}); is it the right file?") from error


def checksum(content: dict[str, Any]) -> str:
    """Hash JSON content, ignoring key order and white space."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def write_checksummed_json(path: Path, content: dict[str, Any]) -> str:
    """Write a JSON object with its checksum, and return the checksum."""
    digest = checksum(content)
    write_json(path, {**content, "checksum": digest})
    return digest


def read_checksummed_json(path: Path, kind: str, *, formats: range) -> dict[str, Any]:
    """Read and verify a checksummed JSON file, including its key ``checksum``."""
    content: dict[str, Any] = read_json(path)
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{path} holds no {kind} that bdm wrote; is it the right file?")
    if content["format"] not in formats:
        raise InputError(
            f"{path} has format {content['format']}, but this version of bdm reads {', '.join(map(str, formats))}; use "
            "the version that wrote it, or make it again."
        )
    if content.get("checksum") != checksum({name: value for name, value in content.items() if name != "checksum"}):
        raise InputError(
            f"{path} is damaged, or was edited (its checksum does not match its content); make it again, as content "
            "that is changed by hand may not fit the other files."
        )
    return content


@contextmanager
def checksummed_hdf5(path: Path) -> Iterator["h5py.File"]:
    """Create an HDF5 file, with its hash in the user block."""
    import h5py

    with h5py.File(path, "w", userblock_size=USER_BLOCK) as file:
        yield file
    with Path(path).open("r+b") as file:
        file.write(MARK + _digest_of_data(path).encode())


def check_hdf5(path: Path) -> None:
    """Reject an HDF5 file that changed after :func:`checksummed_hdf5` wrote it."""
    with Path(path).open("rb") as file:
        block = file.read(USER_BLOCK)
    if block.startswith(MARK) and block != (MARK + _digest_of_data(path).encode()).ljust(USER_BLOCK, b"\0"):
        raise InputError(f"{path} is damaged, or was changed (its checksum does not match its content); make it again.")


def _digest_of_data(path: Path) -> str:
    with Path(path).open("rb") as file:
        file.seek(USER_BLOCK)
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---- provenance

PACKAGES = ("anndata", "numpy", "scanpy", "torch")  # versions to record


@cache
def package_versions() -> dict[str, str]:
    """Return the versions of key packages; do not modify the cached result."""
    return {name: version(name) for name in PACKAGES}


def provenance(*, seed: int, **facts: Any) -> dict[str, Any]:
    """Record how a result was made: versions, seed and ``facts``."""
    return {"version": __version__, "packages": dict(package_versions()), "seed": int(seed), **facts}


def storable(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record for ``uns``, with nested content as JSON text.

    Nested keys may be invalid names in HDF5.
    """
    return {
        key: value if isinstance(value, str | int | float | bool) else json.dumps(value, ensure_ascii=False)
        for key, value in record.items()
        if value is not None
    }
