"""Results do not depend on the number of threads, and threads that wait leave the machine to others."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info

from bdm._core.errors import InputError
from bdm._core.files import sha256
from bdm._core.parallel import available_threads, chosen_threads, threads, using_threads
from bdm.api import BranchedDiffusion

COMMANDS = """
example cells.h5ad
fit cells.h5ad fitted --label-key bulk_labels --min-cells-per-type 50 --n-genes 50 --autoencoder-n-steps 10
generate fitted fitted.h5ad --cells 3
prepare cells.h5ad prepared.h5ad --label-key bulk_labels --min-cells-per-type 50 --n-genes 100 --test 0.2
autoencoder prepared.h5ad autoencoder --n-steps 20
hierarchy autoencoder tree.json --n-bootstrap 5
train autoencoder tree.json model --prior diffusion --n-steps 20
generate model generated.h5ad --cells 130
generate model shared.h5ad --cells 130 --shared-ancestors
transmute model prepared.h5ad moved.h5ad --to 'CD14+ Monocyte'
extend model cells.h5ad extended --cell-type 'CD8+/CD45RA+ Naive Cytotoxic'
evaluate prepared.h5ad generated.h5ad evaluation --n-repeats 1
evaluate-transmuted prepared.h5ad moved.h5ad transmutation
interpret model prepared.h5ad generated.h5ad interpretation
"""
RUN = """
import shlex, sys
from bdm.cli import app
for line in filter(None, sys.argv[1].splitlines()):
    words = shlex.split(line)
    more = [] if words[0] in ("example", "prepare") else ["--threads", sys.argv[2]]
    app([*words, *more, "--quiet"], standalone_mode=False)
"""


def python(code: str, *arguments: str, cwd: Path | None = None, **changed: str) -> str:
    """Run code where the number of threads is not given, but by ``changed``."""
    given = ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME")
    environment = {name: text for name, text in os.environ.items() if name not in given} | changed
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> dict[int, Path]:
    """Folders of what all commands write with 1 and 3 threads."""
    folders = {n_threads: tmp_path_factory.mktemp(f"{n_threads}-threads") for n_threads in (1, 3)}
    for n_threads, folder in folders.items():
        python(RUN, COMMANDS, str(n_threads), cwd=folder, OMP_NUM_THREADS=str(n_threads))
    return folders


@pytest.mark.slow
def test_no_file_of_any_command_depends_on_the_number_of_threads(made):
    one, more = (
        {path.relative_to(folder).as_posix(): sha256(path) for path in folder.rglob("*") if path.is_file()}
        for folder in (made[1], made[3])
    )
    assert len(more) > 20
    assert [name for name in more if one[name] != more[name]] == []


def test_threads_that_the_process_may_use():
    code = """
import os
from bdm._core.parallel import LIMITS, available_threads
def limited(**given):
    for name in LIMITS:
        os.environ.pop(name, None)
    os.environ.update(given)
    return available_threads()
print(limited(), limited(OMP_NUM_THREADS="64,2", SLURM_CPUS_PER_TASK=""), *(limited(**{name: "1"}) for name in LIMITS))
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
print(limited())
"""
    most, with_empty, *others = map(int, python(code).split())
    assert with_empty == most <= len(os.sched_getaffinity(0))
    assert others == [1, 1, 1, 1]


def test_number_of_threads_below_one():
    with pytest.raises(InputError, match="The number of threads is 0"), using_threads(0):
        pass
    with pytest.raises(InputError, match="The number of threads is -1"):
        BranchedDiffusion(None, n_threads=-1)


def test_operations_have_one_thread_and_get_theirs_back():
    import numba
    import sklearn.ensemble  # noqa: F401, whose library counts its threads by itself

    def numbers() -> list[int]:
        return [torch.get_num_threads(), numba.get_num_threads(), *(info["num_threads"] for info in threadpool_info())]

    before = numbers()
    with using_threads(3):
        assert set(numbers()) == {1}
        assert chosen_threads() == 3
        with using_threads():
            assert chosen_threads() == 3
        with using_threads(2):
            assert chosen_threads() == 2
    assert numbers() == before
    assert chosen_threads() == available_threads()


LIBRARIES = """
import re
import torch
from bdm._core.parallel import threads, using_threads

def found(_=0):
    q = torch.linalg.qr(torch.arange(12000.0).reshape(400, 30).sin())[0]
    return q.numpy().tobytes(), set(re.findall(r"max_threads\\(\\) : (\\d+)", torch.__config__.parallel_info()))

with using_threads(2):
    results = [found()]
    with threads() as run:
        results += run(found, range(2))
import hashlib
print([(hashlib.sha256(values).hexdigest(), numbers) for values, numbers in results])
"""


@pytest.mark.slow
@pytest.mark.parametrize("first", ["import torch", "import scanpy, sklearn.ensemble, numba"])
def test_no_library_takes_more_threads_whatever_the_environment(first):
    results = {python(f"{first}\n{LIBRARIES}", OMP_NUM_THREADS="3")}
    results.add(python(f"{first}\n{LIBRARIES}"))
    assert len(results) == 1
    assert results.pop().count("{'1'}") == 3


def test_threads_give_results_in_order_and_take_few_items_ahead():
    taken = []

    def items():
        for i in range(50):
            taken.append(i)
            yield i

    with using_threads(3), threads() as run:
        results = run(lambda i: (i**2, torch.get_num_threads()), items())
        assert next(results) == (0, 1)
        assert len(taken) <= 4
        assert list(results) == [(i**2, 1) for i in range(1, 50)]


def test_threads_run_side_by_side():
    with using_threads(3), threads() as run:
        start = time.monotonic()
        list(run(time.sleep, [0.5] * 3))
        assert time.monotonic() - start < 1.4


def test_thread_starts_no_more_threads():
    def inner(_: int) -> bool:
        with using_threads(5), threads() as run:
            return run is map

    with using_threads(2), threads() as run:
        assert all(run(inner, range(4)))


def test_threads_pass_errors_on():
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads() as run:
        list(run(lambda i: 1 / i, [1, 0, 1]))
    assert torch.get_num_threads() == before


def test_waiting_threads_sleep_unless_the_user_sets_another_policy():
    code = "import bdm.cli, os; print(os.environ.get('OMP_WAIT_POLICY'), os.environ.get('KMP_BLOCKTIME'))"
    assert python(code) == "PASSIVE 0"
    assert python(code, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE None"
    assert python(code, KMP_BLOCKTIME="200") == "None 200"
