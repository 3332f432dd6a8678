"""Fitted models and results of commands that tests share: made once, kept on disk until the source changes."""

import fcntl
import hashlib
import inspect
import pickle
import platform
import shutil
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / ".pytest_cache/zoo"
PACKAGES = ("anndata", "numpy", "pandas", "scanpy", "scikit-learn", "torch")
ABOVE_MODELS = {  # rooms that no fit uses, by the layers in pyproject.toml
    "applications", "commands", "interpretation", "pl.py", "plotting", "report"
}  # fmt: skip
MODEL = "model.pickle"
Made = TypeVar("Made")


@cache
def source(*, of_models: bool) -> str:
    """Hash of bdm, its workflow and the versions of its packages; of models: of the rooms alone that a fit uses."""
    found = hashlib.sha256(" ".join([platform.python_version(), *map(version, PACKAGES)]).encode())
    for folder in ("bdm",) if of_models else ("bdm", "config", "profiles", "workflow"):
        for path in sorted((ROOT / folder).rglob("*.*")):
            place = path.relative_to(ROOT)
            if path.suffix != ".pyc" and not (of_models and place.parts[1] in ABOVE_MODELS):
                found.update(str(place).encode() + path.read_bytes())
    return found.hexdigest()


def kept(fill: Callable[[Path], object]) -> Path:
    """Folder that a function fills, with anything of bdm; tests read it, and copy what they change."""
    return _kept(fill, fill, source(of_models=False))


def kept_model(fit: Callable[[], Made]) -> Made:
    """Model that a function fits; each process has its own copy."""
    path = _kept(lambda folder: (folder / MODEL).write_bytes(pickle.dumps(fit())), fit, source(of_models=True))
    return pickle.loads((path / MODEL).read_bytes())


def _kept(fill: Callable[[Path], object], recipe: Callable[..., object], of_source: str) -> Path:
    """Have the first process that needs a folder fill it, and again once its recipe or the source has changed."""
    text = of_source + inspect.getsource(recipe) + Path(__file__).with_name("conftest.py").read_text()
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    home = FOLDER / f"{recipe.__module__}.{recipe.__name__}"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / key).is_dir():
            for old in filter(Path.is_dir, home.iterdir()):
                shutil.rmtree(old)
            (home / "new").mkdir()
            fill(home / "new")
            (home / "new").rename(home / key)
    return home / key
