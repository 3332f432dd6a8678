"""Damages files, and reads them in separate processes; by thousands as ``python tests/damage.py FOLDER NUMBER``."""

import collections
import faulthandler
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SECONDS = 60  # that a case may take
MEMORY = 8 * 2**30


# ---- what is damaged


def flip(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Flip a bit."""
    content[rng.integers(len(content))] ^= 1 << rng.integers(8)


def flip_some(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Flip a bit in each of some places."""
    for _ in range(8):
        flip(content, other, rng)


def truncate(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Lose the end."""
    del content[rng.integers(len(content)) :]


def zero(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Lose what is in a sector of the disk."""
    start = rng.integers(max(len(content) // 512, 1)) * 512
    content[start : start + 512] = bytes(len(content[start : start + 512]))


def empty(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Lose all."""
    content.clear()


def swap(content: bytearray, other: bytes, rng: np.random.Generator) -> None:
    """Take the same file of another run."""
    content[:] = other


DAMAGES = (flip, flip, flip, flip, flip, flip_some, truncate, truncate, zero, zero, swap)


def damaged(kind: str, whole: Path, other: Path, work: Path, number: int) -> Path:
    """Copy a file or folder, and damage a file of it: the same way for the same number."""
    rng = np.random.default_rng([number, *kind.encode()])
    copy = work / whole.name
    shutil.rmtree(copy, ignore_errors=True)
    copy.unlink(missing_ok=True) if copy.is_file() else None
    (shutil.copytree if whole.is_dir() else shutil.copy)(whole, copy)
    files = sorted(file for file in copy.rglob("*") if file.is_file()) or [copy]
    file = files[rng.integers(len(files))]
    if whole.is_dir() and number % 12 == 11:
        file.unlink()
        return copy
    twin = other / file.relative_to(copy) if other.is_dir() else other
    content = bytearray(file.read_bytes())
    how = (*DAMAGES, empty)[number % 12]
    if how is swap and not whole.is_dir():  # another file is not a damaged one
        how = flip
    how(content, twin.read_bytes() if twin.is_file() else b"", rng) if content else None
    file.write_bytes(content)
    return copy


# ---- how it is read; each gives what can be compared


def read_cells_of(path: Path) -> Any:
    from bdm.data.prepare import prepared_cells
    from bdm.data.read import read_cells
    from bdm.errors import InputError, UnreadableError
    from bdm.settings import PrepareSettings

    cells = read_cells(path, on_disk=True)
    try:  # as the command does
        return content_of(prepared_cells(cells, PrepareSettings(genes="all", test=0.0)).in_memory())
    except UnreadableError:
        raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_prepared_of(path: Path) -> Any:
    from bdm.data.matrix import take_rows
    from bdm.data.prepare import read_prepared

    cells = read_prepared(path, on_disk=True)
    cells.X = take_rows(cells.X, slice(None))
    return content_of(cells)


def read_autoencoder(path: Path) -> Any:
    from bdm._core.store import ContentWriter
    from bdm.autoencoder.storage import load_autoencoder
    from bdm.latent.cells import read_latent

    autoencoder, latent = load_autoencoder(path), read_latent(path)
    encoder = ContentWriter()
    content = encoder.encode(autoencoder, "")
    return content, tensors_of({"": encoder.tensors}), latent.X.tobytes(), content_of(latent)


def read_model(path: Path) -> Any:
    from bdm._core.files import sha256
    from bdm.model.model import load_model, save_model

    model = load_model(path)
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), model)
        return sha256(Path(folder))


def read_hierarchy(path: Path) -> Any:
    from bdm.hierarchy.files import load_hierarchy

    return load_hierarchy(path)


def read_checkpoint(path: Path) -> Any:
    from bdm._core.checkpoint import Checkpoint
    from bdm.errors import InputError

    progress = Checkpoint(path, "identity").read()
    if progress is None:  # reported, and training starts again
        raise InputError(f"{path} is not used.")
    return progress.step, progress.best_loss, progress.history, tensors_of(progress.tensors)


def read_parts(path: Path) -> Any:
    from bdm.generation.merge import merged_cells

    cells = merged_cells(sorted(path.glob("*.h5ad")))[0].in_memory()
    return content_of(cells), cells.obsm["latent"].tobytes()


def content_of(cells: Any) -> Any:
    counts = cells.X
    parts = [counts] if isinstance(counts, np.ndarray) else [counts.data, counts.indices, counts.indptr]
    tables = [frame.astype(str).to_csv() for frame in (cells.obs, cells.var)]
    return [part.tobytes() for part in parts], tables


def tensors_of(tensors: dict[str, dict[str, Any]]) -> Any:
    return {f"{a}/{b}": value.numpy().tobytes() for a, part in tensors.items() for b, value in part.items()}


READERS: dict[str, Callable[[Path], Any]] = {
    "csr.h5ad": read_cells_of,
    "gzip.h5ad": read_cells_of,
    "csc.h5ad": read_cells_of,
    "dense.h5ad": read_cells_of,
    "cells.zarr": read_cells_of,
    "prepared.h5ad": read_prepared_of,
    "autoencoder": read_autoencoder,
    "model": read_model,
    "hierarchy.json": read_hierarchy,
    "checkpoint": read_checkpoint,
    "parts": read_parts,
}


# ---- cases


@dataclass(frozen=True)
class Case:
    """What came of one damaged file: ``rejected``, ``same``, ``other`` content, or a ``fault``."""

    number: int
    outcome: str
    message: str = ""


def attempt(kind: str, path: Path, expected: Any, number: int) -> Case:
    """Read a damaged file."""
    from bdm.errors import InputError

    try:
        return Case(number, "same" if READERS[kind](path) == expected else "other")
    except InputError as refusal:
        fine = any(name in str(refusal) for name in (path.name, "Part ")) and "\n" not in str(refusal)
        return Case(number, "rejected" if fine else "fault", str(refusal))
    except BaseException as error:
        return Case(number, "fault", f"{type(error).__name__}: {error}")


def run(kind: str, folder: Path, numbers: range) -> list[Case]:
    """Try cases in another process, again after each that ended it."""
    cases: list[Case] = []
    while len(cases) < len(numbers):
        left = numbers[len(cases) :]
        command = [sys.executable, "-X", "faulthandler", __file__, folder, kind, str(left.start), str(left.stop)]
        process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 10 * SECONDS)
        found = [Case(**json.loads(line[6:])) for line in process.stdout.splitlines() if line.startswith("CASE: ")]
        cases += found
        if process.returncode:
            cases.append(Case(left[len(found)], "fault", f"ended by {process.returncode}: {process.stderr[-600:]}"))
    return cases


def attempts(kind: str, folder: Path, numbers: range) -> Iterator[Case]:
    """Try cases in this process."""
    expected = READERS[kind](folder / "whole" / kind)
    with tempfile.TemporaryDirectory() as work:
        for number in numbers:
            path = damaged(kind, folder / "whole" / kind, folder / "other" / kind, Path(work), number)
            signal.alarm(SECONDS)
            yield attempt(kind, path, expected, number)
            signal.alarm(0)


def main(folder: Path, kind: str, numbers: range) -> None:
    """Try cases and report each."""
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    for case in attempts(kind, folder, numbers):
        print("CASE:", json.dumps(case.__dict__), flush=True)


def summary(cases: list[Case]) -> str:
    """Count the outcomes."""
    return ", ".join(f"{n} {outcome}" for outcome, n in collections.Counter(case.outcome for case in cases).items())


if __name__ == "__main__":
    faulthandler.enable()
    if len(sys.argv) == 5:
        main(Path(sys.argv[1]), sys.argv[2], range(int(sys.argv[3]), int(sys.argv[4])))
    else:
        for each in sys.argv[3:] or READERS:
            found = run(each, Path(sys.argv[1]), range(int(sys.argv[2])))
            print(each, summary(found), *(case for case in found if case.outcome == "fault"), sep="\n    ", flush=True)
