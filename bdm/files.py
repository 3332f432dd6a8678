import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bdm.errors import InputError


@contextmanager
def written_whole(path: Path, *, folder_of: str | None = None) -> Iterator[Path]:
    """Give a path beside ``path`` to write a file or a folder to, which takes its place on success.

    After an error ``path`` is what it was before, and nothing is left beside it.

    Parameters
    ----------
    folder_of
        Where a folder is written: the file that tells one of its kind, as only such a folder or an empty one is
        replaced.

    Raises
    ------
    InputError
        If the folder of ``path`` cannot be written to, or ``path`` is a folder that must not be replaced.
    """
    path = Path(path)
    try:
        if path.is_dir() and (folder_of is None or (any(path.iterdir()) and not (path / folder_of).is_file())):
            raise InputError(f"Cannot write {path}: it is a folder with other content; name another output.")
        if folder_of is not None and path.is_file():
            raise InputError(f"Cannot write the folder {path}: there is a file of that name; name another output.")
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise InputError(
            f"Cannot write {path}: {error.strerror}; choose an output folder that you may write to."
        ) from error
    try:
        written = scratch / path.name
        yield written
        if path.is_dir() and written.is_dir():
            os.replace(path, scratch / f"{path.name}.replaced")
        os.replace(written, path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hash of a file, or of all files below a folder with their relative names."""
    path = Path(path)
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
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
