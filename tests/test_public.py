"""The public API as users meet it: completion lists it alone, and type checkers know it."""

import subprocess
import sys

import pytest

import bdm

SNIPPET = """
import bdm

settings = bdm.Settings(prepare=bdm.PrepareSettings(test=0.2), hierarchy=bdm.HierarchySettings(threshold=0.8))
model = bdm.BranchedDiffusion("cells.h5ad", "cell_type", tree=bdm.read_tree("tree.nwk"), settings=settings).fit()
model.transmute(model.generate(10), "NK", ["B"])
evaluation: bdm.Evaluation = model.evaluate()
bdm.pl.scores(evaluation, show=False)
bdm.pl.likelihood(bdm.ExtensionReport.load("report"))
try:
    bdm.BranchedDiffusion.load("model").generate({"B": 10})
except bdm.InputError as error:
    print(error)
"""


@pytest.mark.parametrize("module", [bdm, bdm.pl], ids=["bdm", "bdm.pl"])
def test_the_public_names_are_listed_and_no_others(module):
    assert dir(module) == sorted(module.__all__)
    assert all(getattr(module, name).__doc__ for name in module.__all__)


@pytest.mark.slow  # mypy reads all of bdm
def test_a_script_of_a_user_has_types(tmp_path):
    wrong = ["model.generate(stochastic='yes')", "bdm.pl.scoers", "bdm.Settigns"]
    (tmp_path / "script.py").write_text(SNIPPET + "\n".join(["reveal_type(model.cell_types)", *wrong]))
    command = [sys.executable, "-m", "mypy", "--strict", "script.py", "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    revealed, *errors, summary = done.stdout.splitlines()
    assert 'Revealed type is "tuple[str, ...]"' in revealed
    kinds = ["arg-type", "attr-defined", "attr-defined"]
    assert [line.rpartition("[")[2].rstrip("]") for line in errors] == kinds, done.stdout
    assert "Found 3 errors" in summary


def test_importing_bdm_imports_no_large_package():
    code = "import sys, bdm; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "scanpy", "anndata", "sklearn", "matplotlib", "pandas", "numpy"} & set(done.stdout.split())
