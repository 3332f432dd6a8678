"""Several processes train together what one would."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_checkpoint import run_here, tensors

from bdm._core.training import fabric
from bdm.api import BranchedDiffusion
from bdm.data.prepare import prepare
from bdm.errors import InputError
from bdm.settings import PrepareSettings

TRAIN = "train autoencoder hierarchy.json OUT --prior diffusion --n-steps STEPS --width 32 --device cpu --devices N"


def command(out: str, n_steps: int, n_devices: int) -> str:
    return TRAIN.replace("OUT", out).replace("STEPS", str(n_steps)).replace("N", str(n_devices))


def run(folder: Path, command: str) -> subprocess.Popen:
    """Start a command in a separate process."""
    program = [sys.executable, "-c", "from bdm.cli import main; main()", *command.split()]
    return subprocess.Popen(program, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def folder(example_cells, tmp_path_factory) -> Path:
    """Autoencoder, hierarchy, and models that one process and three trained."""
    folder = tmp_path_factory.mktemp("devices")
    settings = PrepareSettings(label_key="bulk_labels", n_genes=200, test=0.2)
    prepare(example_cells, settings).write_h5ad(folder / "prepared.h5ad")
    run_here(folder, "autoencoder prepared.h5ad autoencoder --n-steps 30 --n-latent 8")
    run_here(folder, "hierarchy autoencoder hierarchy.json --n-bootstrap 0")
    run_here(folder, command("one", 40, 1))
    process = run(folder, command("three", 40, 3))
    output = process.communicate()[1]
    assert process.returncode == 0, output
    return folder


def children(process: subprocess.Popen) -> list[int]:
    """List the processes that a process has started, and that run."""
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def all_end(pids: list[int], seconds: float = 20) -> bool:
    """Wait until no process runs any more, and return whether that happened."""
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.1)
    return not left


def once_training(folder: Path, out: str, n_steps: int) -> tuple[subprocess.Popen, list[int]]:
    """Start two processes, and give them once there is a checkpoint."""
    process = run(folder, command(out, n_steps, 2) + " --checkpoint-every 0.2")
    while process.poll() is None and not (folder / f".{out}.checkpoint").is_file():
        time.sleep(0.02)
    assert process.poll() is None, process.stderr.read()
    return process, children(process)


@pytest.mark.nightly
def test_processes_with_unequal_shares_train_what_one_does(folder):
    one, three = (load_file(folder / name / "model.safetensors") for name in ("one", "three"))
    assert one.keys() == three.keys()
    for name in one:
        torch.testing.assert_close(one[name], three[name], rtol=1e-4, atol=1e-5)
    assert any(not torch.equal(one[name], three[name]) for name in one)  # they were three
    histories = [(folder / name / "training.csv").read_text().splitlines() for name in ("one", "three")]
    assert len(histories[0]) == len(histories[1])


@pytest.mark.nightly
def test_processes_end_together_go_on_and_give_the_same_bits(folder):
    process, workers = once_training(folder, "stopped", 300)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=120)[1]
    assert process.returncode == 143, output
    assert "run the same command to resume" in output.splitlines()[-1]
    assert all_end(workers)
    assert not (folder / "stopped").exists()
    again = run(folder, command("stopped", 300, 2))
    output = again.communicate()[1]
    assert output.count("continues from step") == 1
    whole = run(folder, command("whole", 300, 2))
    assert (whole.wait(), again.returncode) == (0, 0)
    assert tensors(folder / "stopped") == tensors(folder / "whole")


@pytest.mark.nightly
def test_death_of_one_process_ends_all_and_leaves_the_checkpoint(folder):
    process, workers = once_training(folder, "killed", 100_000)
    subprocess.run(["kill", "-9", str(workers[-1])], check=True)
    output = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "bdm: Training ended early" in output
    assert all_end(workers)
    assert (folder / ".killed.checkpoint").is_file()
    assert not list(folder.glob(".killed.*.*"))


@pytest.mark.nightly
def test_bad_input_is_reported_once(folder):
    (folder / "other.json").write_text('["B", "T"]')
    process = run(folder, command("bad", 5, 2).replace("hierarchy.json", "other.json"))
    output = process.communicate()[1]
    assert process.returncode == 2
    assert output.splitlines()[-1].startswith("bdm: ")
    assert "hierarchy" in output.splitlines()[-1]
    assert output.count("bdm: ") == 1
    assert not (folder / "bad").exists()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_model_generates_on_the_device_that_it_was_fitted_on(example_cells, small_settings):
    model = BranchedDiffusion(
        example_cells, label_key="bulk_labels", prior="diffusion", settings=small_settings, device="cuda"
    ).fit()
    assert model.model.prior.device.type == "cuda"
    assert (model.generate(2).X.sum(axis=1) > 0).all()


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="not 2 devices of cuda"):
        fabric("cuda", 2)
