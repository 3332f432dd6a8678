"""Full disks, disks that cannot be written, several runs at once, and killed runs: nothing is lost."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bdm._core.errors import InputError
from bdm._core.files import atomic_write, sha256
from bdm.data.matrix import write_h5ad
from bdm.model.model import save_model


def assert_reported(done: tuple[int, str], *parts: str) -> None:
    """Check that a command ended with one sentence."""
    code, messages = done
    assert code == 2, messages
    assert "Traceback" not in messages
    assert "Exception" not in messages
    last = messages.strip().splitlines()[-1]
    assert last.startswith("bdm: Cannot write"), last
    for part in parts:
        assert part in last


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """Folder on a disk of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("Disks cannot be mounted here.")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="module")
def folder(example_cells, small_model, tmp_path_factory) -> Path:
    """Cells and a model."""
    folder = tmp_path_factory.mktemp("whole")
    write_h5ad(folder / "cells.h5ad", example_cells.copy())
    save_model(folder / "model", small_model.model)
    return folder


COMMANDS = {
    "example": ("example", "{out}.h5ad"),
    "prepare": ("prepare", "{folder}/cells.h5ad", "{out}.h5ad", "--label-key", "bulk_labels", "--test", "0.2"),
    "fit": ("fit", "{folder}/cells.h5ad", "{out}", "--label-key", "bulk_labels", "--autoencoder-n-steps", "2",
            "--train-n-steps", "2"),
    "generate": ("generate", "{folder}/model", "{out}.h5ad", "--cells", "40"),
}  # fmt: skip


def command(name: str, folder: Path, out: Path) -> list[str]:
    return [part.format(folder=folder, out=out) for part in COMMANDS[name]]


@pytest.mark.parametrize(
    "name", ["generate", *(pytest.param(name, marks=pytest.mark.nightly) for name in COMMANDS if name != "generate")]
)
def test_full_disk(folder, small_disk, name, bdm):
    *_, out = [part.format(out=small_disk / "out") for part in COMMANDS[name] if "{out}" in part]
    if name == "fit":
        shutil.copytree(folder / "model", small_disk / "out", ignore=lambda *_: ["model.safetensors"])
    else:
        Path(out).write_bytes(b"earlier")
    before = sha256(small_disk)
    (small_disk / "filler").write_bytes(b"x" * (4096 * (shutil.disk_usage(small_disk).free // 4096 - 4)))
    done = bdm(*command(name, folder, small_disk / "out"), "--force")
    assert_reported(done, str(small_disk), "No space left")
    (small_disk / "filler").unlink()
    assert sha256(small_disk) == before
    assert not list(small_disk.glob(".*"))


def test_disk_that_cannot_be_written(folder, small_disk, bdm):
    (small_disk / "out.h5ad").write_bytes(b"earlier")
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    assert_reported(bdm(*command("generate", folder, small_disk / "out"), "--force"), "Read-only file system")
    assert (small_disk / "out.h5ad").read_bytes() == b"earlier"


def test_second_run_of_the_same_output_is_rejected_and_another_is_not(tmp_path, bdm):
    with atomic_write(tmp_path / "out.h5ad") as path:
        path.write_text("first")
        assert_reported(bdm("example", tmp_path / "out.h5ad"), "another process is writing it")
        assert bdm("example", tmp_path / "other.h5ad")[0] == 0
    assert (tmp_path / "out.h5ad").read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.h5ad", "out.h5ad"]


WRITER = """
import sys, time
from bdm._core.errors import InputError
from bdm._core.files import atomic_write
try:
    with atomic_write(sys.argv[1], folder_of="kind") as folder:
        folder.mkdir()
        for number in range(20):
            (folder / str(number)).write_text(sys.argv[2])
        (folder / "kind").write_text(sys.argv[2])
        time.sleep(0.05)
except InputError as error:
    sys.exit(str(error))
"""


def test_many_runs_at_once_leave_all_of_one(tmp_path):
    program = [sys.executable, "-c", WRITER, tmp_path / "out"]
    for _ in range(2):
        runs = [subprocess.Popen([*program, str(i)], stderr=subprocess.PIPE, text=True) for i in range(4)]
        messages = [process.communicate()[1] for process in runs]
        rejected = [text for process, text in zip(runs, messages, strict=True) if process.returncode]
        assert all("another process" in text for text in rejected)
        assert len({file.read_text() for file in (tmp_path / "out").iterdir()}) == 1
        assert len(list((tmp_path / "out").iterdir())) == 21
        assert [path.name for path in tmp_path.iterdir()] == ["out"]


def killed(out: Path, number: str, when: str) -> None:
    """Kill a writer at a place."""
    process = subprocess.run([sys.executable, "-c", WRITER.replace("time.sleep(0.05)", when), out, number])
    assert process.returncode == -signal.SIGKILL


KILL = "import os; os.kill(os.getpid(), 9)"


def test_what_killed_runs_left_is_removed(tmp_path):
    (tmp_path / ".out.ours").mkdir()
    for _ in range(2):
        killed(tmp_path / "out", "1", KILL)
    assert len(list(tmp_path.glob(".out.*.unfinished"))) == 1
    assert not (tmp_path / "out").exists()
    with atomic_write(tmp_path / "out") as path:
        path.write_text("whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.ours", "out"]


def test_run_that_is_killed_in_its_last_step_has_lost_nothing(tmp_path):
    subprocess.run([sys.executable, "-c", WRITER, tmp_path / "out", "old"], check=True)
    two_steps = """
        import os
        replace = os.replace
        def replace_and_kill(a, b):
            replace(a, b)
            os.kill(os.getpid(), 9)
        os.replace = replace_and_kill
    """
    killed(tmp_path / "out", "new", two_steps)
    assert not (tmp_path / "out").exists()

    def fails() -> None:
        with atomic_write(tmp_path / "out", folder_of="kind"):
            raise InputError("before anything is written")

    with pytest.raises(InputError):
        fails()
    assert {file.read_text() for file in (tmp_path / "out").iterdir()} == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
