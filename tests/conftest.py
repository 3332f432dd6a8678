import gc
import os
import shlex
import sys
from dataclasses import replace
from functools import cache
from importlib.metadata import version

# The models of the tests are too small to share among threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("NUMBA_NUM_THREADS", os.environ["OMP_NUM_THREADS"])

# Arrays of a table cannot be written to, as always since pandas 3; pandas 2.2 cannot convert empty categories then.
if not version("pandas").startswith("2.2."):
    os.environ.setdefault("PANDAS_COPY_ON_WRITE", "1")

import numpy as np
import pytest
import typer
from anndata import AnnData
from zoo import kept_model

from bdm.data.read import pbmc68k_counts

gc.set_threshold(100_000, 5, 5)  # or collections of garbage take a tenth of the time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests in a browser to the night; begin with files that have slow tests, so that processes end together."""
    for item in items:
        if "browser" in getattr(item, "fixturenames", ()):
            item.add_marker("nightly")
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Leave what is imported out of all garbage collections."""
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def quick():
    """Evaluate by few trees, whose fit takes most of the time of an evaluation; assemble the command line once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bdm.evaluation.metrics.N_TREES", 10)
        patch.setattr("typer.main.get_command", cache(typer.main.get_command))
        yield


@pytest.fixture(autouse=True)
def _figures_are_closed():
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.fixture(scope="session")
def example_cells() -> AnnData:
    """700 real blood cells of 10 types; copy before changing them."""
    return pbmc68k_counts()


def quick_settings():
    """Settings of a model that trains in seconds, and learns little."""
    from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, Settings, TrainSettings

    return Settings(
        prepare=PrepareSettings(n_genes=200, keep_genes="none", test=0.0),
        autoencoder=AutoencoderSettings(n_latent=6, n_steps=100),
        hierarchy=HierarchySettings(n_bootstrap=20),
        train=TrainSettings(width=32, n_layers=2, n_steps=100),
    )


def fit_small():
    from bdm.api import BranchedDiffusion

    return BranchedDiffusion(pbmc68k_counts(), label_key="bulk_labels", settings=quick_settings()).fit()


def fit_with_batches():
    from bdm.api import BranchedDiffusion

    cells = pbmc68k_counts()
    in_two = (np.arange(cells.n_obs) % 3 == 0) & (cells.obs["bulk_labels"] != "CD19+ B")
    cells.obs["donor"] = np.where(in_two, "two", "one")
    keys = {"label_key": "bulk_labels", "batch_key": "donor"}
    return BranchedDiffusion(cells, **keys, settings=quick_settings()).fit()


@pytest.fixture(scope="session")
def small_settings():
    """Settings of ``small_model``."""
    return quick_settings()


@pytest.fixture(scope="session")
def tiny_settings(small_settings):
    """Settings of a model for tests that need one of their own, which trains in a second or two, and learns nothing."""
    return replace(
        small_settings,
        autoencoder=replace(small_settings.autoencoder, n_steps=5, sub_populations="none"),
        hierarchy=replace(small_settings.hierarchy, n_bootstrap=3),
        train=replace(small_settings.train, n_steps=5),
    )


@pytest.fixture(scope="session")
def small_model():
    """Model of the example cells, without batches; do not fit it again."""
    return kept_model(fit_small)


@pytest.fixture(scope="session")
def batch_model():
    """Model of the example cells in two batches: a third of the cells is in ``two``, but no B cell is."""
    return kept_model(fit_with_batches)


@pytest.fixture
def bdm(monkeypatch, capsys):
    """Run a command; gives its exit code and what it wrote to stderr."""

    from bdm.cli import main

    def run(*arguments) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["bdm", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, capsys.readouterr().err

    return run


@pytest.fixture
def bdm_and_next(bdm, caplog, monkeypatch, tmp_path):
    """Run a command, and the one that it prints as the next; gives the words of the latter."""

    def run(*arguments) -> list[str]:
        monkeypatch.chdir(tmp_path)
        caplog.clear()
        assert bdm(*arguments) == (0, "")
        [line] = [line for line in caplog.messages[-1].splitlines() if line.startswith("next ")]
        _, program, *words = shlex.split(line)
        assert program == "bdm"
        assert bdm(*words) == (0, "")
        return words

    return run
