"""Files and folders: atomic writes, hashes and JSON."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bdm.errors import InputError

SNAKEMAKE = ".snakemake_timestamp"  # Snakemake writes it into folders
UNFINISHED = ".unfinished"  # end of the names of scratch folders
SPARE = 2**18  # bytes, for what HDF5 writes when a file is closed
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors of writing only


@contextmanager
def atomic_write(path: Path, *, folder_of: str | None = None) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write a file or a folder to, which replaces ``path`` on success.

    After an error ``path`` is unchanged, and nothing is left beside it. Files that a killed process left behind are
    removed by the next process that writes ``path``. Within the temporary path of another ``atomic_write``, ``path``
    itself is returned.

    Parameters
    ----------
    folder_of
        For a folder: name of a file that such folders contain. Only a folder with this file, or an empty folder, is
        replaced.

    Raises
    ------
    InputError
        If ``path`` cannot be written, the disk is full, another process is writing it, or it is a folder that must not
        be replaced.
    """
    path = Path(path)
    if path.parent.suffix == UNFINISHED:
        yield path
        return
    try:
        if path.is_dir() and (folder_of is None or (any(path.iterdir()) and not (path / folder_of).is_file())):
            raise InputError(f"Cannot write {path}: it is a folder with other content; name another output.")
        if folder_of is not None and path.is_file():
            raise InputError(f"Cannot write the folder {path}: there is a file of that name; name another output.")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch, lock = _scratch_beside(path)
    except OSError as error:
        raise InputError(
            f"Cannot write {path}: {error.strerror}; choose an output folder that you may write to."
        ) from error
    try:
        written = scratch / path.name
        yield written
        _flush(written)
        if path.is_dir() and written.is_dir():
            os.replace(path, _replaced(written))
        os.replace(written, path)
    except Exception as error:
        if (reason := _unwritable(error)) is None:
            raise
        raise InputError(f"Cannot write {path}: {reason}; make room, or choose another output folder.") from error
    finally:
        _restore_replaced(scratch, path)
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _scratch_beside(path: Path) -> tuple[Path, int]:
    """Make a scratch folder that is locked while this process lives, and remove scratch folders of ended processes."""
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(parent, wait=True)  # or another process would remove the new folder before it is locked
        for other in path.parent.glob(f".{glob.escape(path.name)}.????????{UNFINISHED}"):
            _remove_abandoned(other, path)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent))
        lock = os.open(scratch, os.O_RDONLY)
        _lock(lock)
    finally:
        os.close(parent)
    return scratch, lock


def _remove_abandoned(scratch: Path, path: Path) -> None:
    """Remove the scratch folder of a process that has ended; restore what it had moved away and not replaced."""
    try:
        handle = os.open(scratch, os.O_RDONLY)
    except FileNotFoundError:  # it has just ended
        return
    try:
        is_abandoned = _lock(handle)
        if is_abandoned is False:
            raise InputError(
                f"Cannot write {path}: another process is writing it; wait until it has ended, or name another output."
            )
        if is_abandoned:
            written = scratch / path.name
            if _replaced(written).exists() and not path.exists():
                os.replace(written, path)
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(handle)


def _restore_replaced(scratch: Path, path: Path) -> None:
    """Move back what was to be replaced, if nothing has taken its place."""
    replaced = _replaced(scratch / path.name)
    if replaced.exists() and not path.exists():
        os.replace(replaced, path)


def _replaced(written: Path) -> Path:
    return written.with_name(f"{written.name}.replaced")


def _lock(handle: int, *, wait: bool = False) -> bool | None:
    """Lock a folder until it is closed; False if another process holds the lock, None on file systems without locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _flush(written: Path) -> None:
    """Write files through to the disk before they replace others: only then may the disk turn out to be full."""
    for file in [written] if written.is_file() else written.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _unwritable(error: BaseException | None) -> str | None:
    """Message of the system if an error is due to a disk that is full or not writable; None for other errors."""
    while error is not None:
        reported = re.search(r"errno = (\d+)", str(error))  # HDF5 writes the number into its messages
        number = int(reported[1]) if reported else getattr(error, "errno", None)
        if number in UNWRITABLE:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def require_space(path: Path | str, n_bytes: int) -> None:
    """Raise the error of a full disk before HDF5 writes ``n_bytes``, as its library can end the process otherwise."""
    if shutil.disk_usage(Path(path).parent).free < n_bytes + SPARE:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def sha256(path: Path) -> str:
    """Hash of a file, or of all files below a folder with their relative names, except the file that Snakemake adds."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file() and p.name != SNAKEMAKE):
        digest.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return digest.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON with non-ASCII names kept readable."""
    path = Path(path)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises
    ------
    InputError
        If there is no such file or it is not JSON.
    """
    with reading(path, "JSON"):
        return json.loads(Path(path).read_text(encoding="utf-8"))


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turn the errors of reading a file that is missing, or not of a ``kind`` such as *a table*, into InputErrors."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"No such file: {path}.") from error
    except (OSError, EOFError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as {kind} ({str(error).strip()}); is it the right file?") from error
