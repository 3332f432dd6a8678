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

SNAKEMAKE = ".snakemake_timestamp"  # which Snakemake writes into folders
UNFINISHED = ".unfinished"  # how the names of scratch folders end
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # errors that reading does not have


@contextmanager
def atomic_write(path: Path, *, folder_of: str | None = None) -> Iterator[Path]:
    """Give a path beside ``path`` to write a file or a folder to, which takes its place on success.

    After an error ``path`` is what it was before, and nothing is left beside it. What a killed process left there, the
    next that writes ``path`` clears away. Within the path of another ``atomic_write``, which nobody sees before it is
    whole, ``path`` itself is returned.

    Parameters
    ----------
    folder_of
        Where a folder is written: the file that tells one of its kind, as only such a folder or an empty one is
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
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _scratch_beside(path: Path) -> tuple[Path, int]:
    """Make a scratch folder that is locked while this process lives, and clear away those of ended processes."""
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        _lock(parent, wait=True)  # or others would take what is not locked yet for left
        for other in path.parent.glob(f".{glob.escape(path.name)}.????????{UNFINISHED}"):
            _clear(other, path)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=UNFINISHED, dir=path.parent))
        lock = os.open(scratch, os.O_RDONLY)
        _lock(lock)
    finally:
        os.close(parent)
    return scratch, lock


def _clear(scratch: Path, path: Path) -> None:
    """Remove the scratch folder of a process that has ended; its last step is made where it was the one missing."""
    try:
        handle = os.open(scratch, os.O_RDONLY)
    except FileNotFoundError:  # it has just ended
        return
    try:
        is_left = _lock(handle)
        if is_left is False:
            raise InputError(
                f"Cannot write {path}: another process is writing it; wait until it has ended, or name another output."
            )
        if is_left:
            written = scratch / path.name
            if _replaced(written).exists() and not path.exists():
                os.replace(written, path)
            shutil.rmtree(scratch, ignore_errors=True)
    finally:
        os.close(handle)


def _replaced(written: Path) -> Path:
    return written.with_name(f"{written.name}.replaced")


def _lock(handle: int, *, wait: bool = False) -> bool | None:
    """Lock a folder until it is closed; False if another process has, None on file systems that cannot."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _flush(written: Path) -> None:
    """Have files on the disk, which may turn out to be full only then, before they replace others."""
    for file in [written] if written.is_file() else written.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def _unwritable(error: BaseException | None) -> str | None:
    """Tell what the system said if an error comes of a disk that is full or cannot be written, else nothing."""
    while error is not None:
        told = re.search(r"errno = (\d+)", str(error))  # by HDF5, in its own errors
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number in UNWRITABLE:
            return os.strerror(number)
        error = error.__cause__ or error.__context__
    return None


def sha256(path: Path) -> str:
    """Hash of a file, or of all files below a folder with their relative names, without what Snakemake adds."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
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
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"No such file: {path}.") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON ({error}); make it anew.") from error
