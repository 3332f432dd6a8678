"""The public API as completion lists it; ``typed_script.py`` is a script of a user, whose types mypy checks."""

import subprocess
import sys

import pytest

import bdm


@pytest.mark.parametrize("module", [bdm, bdm.pl, bdm.tl], ids=["bdm", "bdm.pl", "bdm.tl"])
def test_the_public_names_are_listed_and_no_others(module):
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name).__doc__ for name in module.__all__)


def test_importing_bdm_imports_no_large_package():
    code = "import sys, bdm; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "scanpy", "anndata", "sklearn", "matplotlib", "pandas", "numpy"} & set(done.stdout.split())
