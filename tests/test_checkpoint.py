"""Training that is interrupted, by whatever means, ends as if it had not been."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from warm import start

from bdm._core.checkpoint import Checkpoint, TrainingState, checkpoint_beside, identity
from bdm._core.files import sha256
from bdm._core.training import TrainingPlan, train
from bdm.autoencoder import fit
from bdm.autoencoder.sub_populations import find_parts
from bdm.cli import app
from bdm.commands.fit import deciding
from bdm.data.prepare import prepare
from bdm.errors import Interrupted
from bdm.settings import AutoencoderSettings, PrepareSettings, Settings

PLAN = TrainingPlan(n_steps=60, learning_rate=0.05, seed=3, device="cpu", n_warmup=5, validate_every=7)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def loss(network: nn.Module, generator: torch.Generator) -> Tensor:
    x = torch.randn(16, 4, generator=generator)
    return ((network(x)[:, 0] - x[:, 0] * x[:, 1]) ** 2).mean()


def validation(network: nn.Module) -> Tensor:
    return loss(network, torch.Generator().manual_seed(9)) + 0.01 * torch.randn((), generator=torch.Generator())


def stopping_at(n_steps: int, number: int = signal.SIGTERM):
    """Loss of training that is asked to end after so many steps."""
    taken = []

    def of(network: nn.Module, generator: torch.Generator) -> Tensor:
        taken.append(1)
        if len(taken) == n_steps:
            os.kill(os.getpid(), number)
        return loss(network, generator)

    return of


@pytest.fixture
def checkpoint(tmp_path) -> Checkpoint:
    return Checkpoint(tmp_path / "point", identity(seed=3), seconds=1e9)


PATIENT = replace(PLAN, patience=2, untrained=1.0)


@pytest.mark.parametrize("stops", [[1], [7], [14], [30], [34], [59], [3, 11, 20]])
@pytest.mark.parametrize(("chooses", "how"), [(None, PLAN), (validation, PLAN), (validation, PATIENT)])
def test_interrupted_training_ends_the_same_to_the_bit(checkpoint, stops, chooses, how):
    whole, parts = network(), network()
    expected = train(whole, loss, how, validation=chooses)
    stops = [n_steps for n_steps in stops if n_steps <= expected["step"].iloc[-1]]
    for n_steps in stops:
        parts = network()
        with pytest.raises(Interrupted, match="run the same command to resume"):
            train(parts, stopping_at(n_steps), how, validation=chooses, checkpoint=checkpoint)
    parts = network()
    found = train(parts, loss, how, validation=chooses, checkpoint=checkpoint)
    assert found.equals(expected)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, parts.state_dict()[name])


@pytest.mark.parametrize("how", [PLAN, PATIENT])
def test_training_that_is_asked_to_end_during_its_last_look_stops(checkpoint, how):
    expected = train(network(), loss, how, validation=validation)
    looks = []

    def stopping(network: nn.Module) -> Tensor:
        looks.append(1)
        if len(looks) == len(expected):
            os.kill(os.getpid(), signal.SIGTERM)
        return validation(network)

    with pytest.raises(Interrupted, match=f"after step {expected['step'].iloc[-1]} of"):
        train(network(), loss, how, validation=stopping, checkpoint=checkpoint)
    found = train(network(), loss, how, validation=validation, checkpoint=checkpoint)
    assert found.equals(expected)


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Python's handler of Ctrl-C, which is missing where tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_ctrl_c_stops_training_as_sigterm_does(checkpoint):
    with pytest.raises(Interrupted, match=r"after step 7 of .*; run the same command to resume") as stopped:
        train(network(), stopping_at(7, signal.SIGINT), PLAN, checkpoint=checkpoint)
    assert stopped.value.number == signal.SIGINT
    assert checkpoint.read().step == 7
    with pytest.raises(KeyboardInterrupt):  # where there is no checkpoint to go on from
        train(network(), stopping_at(7, signal.SIGINT), PLAN)


@pytest.mark.parametrize("how", [PLAN, PATIENT])
def test_finished_training_is_not_done_again(checkpoint, how):
    whole, again = network(), network()
    history = train(whole, loss, how, validation=validation, checkpoint=checkpoint)
    assert (history["step"].iloc[-1] < PLAN.n_steps) == (how.patience is not None)

    def never(network: nn.Module, generator: torch.Generator) -> Tensor:
        raise AssertionError

    train(again, never, how, validation=validation, checkpoint=checkpoint)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_other_training_starts_anew(checkpoint, caplog):
    with pytest.raises(Interrupted):
        train(network(), stopping_at(9), PLAN, checkpoint=checkpoint)
    assert replace(checkpoint, identity=identity(seed=4)).read() is None
    assert "starts again" in caplog.text
    assert checkpoint.read().step == 9


def test_second_round_with_other_populations_starts_anew(example_cells, checkpoint, monkeypatch):
    """Populations are found in the latents of the first round, which another device may compute otherwise."""
    prepared = prepare(
        example_cells, PrepareSettings(label_key="bulk_labels", n_genes=50, min_cells_per_type=80, test=0.2)
    )
    settings = AutoencoderSettings(n_steps=5, n_latent=4, sub_populations=2, min_cells_per_sub_population=10)

    def of_others(part: np.ndarray) -> np.ndarray:
        return np.roll(part, 1)

    def fit_with(parts, checkpoint=None) -> Tensor:
        monkeypatch.setattr(fit, "find_parts", lambda *latents, **how: parts(find_parts(*latents, **how)))
        how = {"seed": 0, "device": "cpu", "checkpoint": checkpoint, "provenance": {}}
        return fit.fit_autoencoder(prepared, settings, **how)[0].network.prior_mean

    whole, expected = fit_with(np.array, checkpoint), fit_with(of_others)
    assert not torch.equal(whole, expected)
    assert torch.equal(fit_with(np.array, checkpoint), whole)
    assert torch.equal(fit_with(of_others, checkpoint), expected)


@pytest.mark.parametrize("damage", [lambda content: content[:40], lambda content: b"", lambda content: b"x" * 99])
def test_damaged_checkpoint_is_reported_and_not_used(checkpoint, damage, caplog):
    checkpoint.write(TrainingState(step=5, tensors={"network": {"a": torch.ones(3)}}))
    checkpoint.path.write_bytes(damage(checkpoint.path.read_bytes()))
    assert checkpoint.read() is None
    assert "damaged" in caplog.text


def test_checkpoint_comes_back(checkpoint):
    tensors = {"network": {"a/b": torch.rand(2, 2)}, "best": {"c": torch.rand(1)}}
    values = {"step": 3, "best_loss": 0.1, "loss_sum": 1 / 3, "first_loss": 2.5, "history": [{"x": 0.1}]}
    progress = TrainingState(tensors=tensors, **values)
    checkpoint.write(progress)
    found = checkpoint.read()
    assert {name: getattr(found, name) for name in values} == values
    assert torch.equal(found.tensors["network"]["a/b"], progress.tensors["network"]["a/b"])
    assert [path.name for path in checkpoint.path.parent.iterdir()] == ["point"]


def test_checkpoint_next_to_an_output_is_removed_when_that_is_written(tmp_path):
    with checkpoint_beside(tmp_path / "model", seconds=1, seed=0) as checkpoint:
        checkpoint.write(TrainingState())
        checkpoint.of_part("populations").write(TrainingState(step=3))
        assert checkpoint.of_part("populations").read().step == 3
        assert checkpoint.path.parent == tmp_path
        assert len(list(tmp_path.iterdir())) == 2
    assert not list(tmp_path.iterdir())
    stopped = checkpoint_beside(tmp_path / "model", seconds=1, seed=0)
    stopped.__enter__().write(TrainingState())
    assert not stopped.__exit__(Interrupted, Interrupted("stopped"), None)
    assert [path.name for path in tmp_path.iterdir()] == [".model.checkpoint"]


def test_checkpoints_of_one_output_are_not_those_of_another(tmp_path):
    """bdm fit trains an autoencoder for ``model``, and bdm autoencoder may write ``model.autoencoder`` beside it."""
    outputs = ((tmp_path / "model", "autoencoder"), (tmp_path / "model.autoencoder", ""))
    of_fit, other = (checkpoint_beside(out, part=part, seconds=1).__enter__() for out, part in outputs)
    assert of_fit.path != other.path


@pytest.mark.parametrize("name", ["cells.csv", "labels.csv", "tree.nwk", "genes.txt", "kept.txt"])
def test_other_content_of_a_file_is_another_training(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    for file in ("cells.csv", "labels.csv", "tree.nwk", "genes.txt", "kept.txt"):
        Path(file).write_text("NKG7\n")
    settings = Settings(prepare=PrepareSettings(genes="genes.txt", keep_genes="kept.txt", test=0.2))
    files = Path("cells.csv"), Path("labels.csv"), Path("tree.nwk"), settings
    before = identity(**deciding(*files, seed=0))
    assert identity(**deciding(*files, seed=0)) == before
    Path(name).write_text("CD79\n")
    assert identity(**deciding(*files, seed=0)) != before


# ---- by command, with processes that are killed


@pytest.fixture(scope="module")
def folder(example_cells, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("killed")
    settings = PrepareSettings(label_key="bulk_labels", n_genes=200, test=0.2)
    prepare(example_cells, settings).write_h5ad(folder / "prepared.h5ad")
    run_here(folder, "autoencoder prepared.h5ad autoencoder --n-steps 30 --n-latent 8")
    run_here(folder, "hierarchy autoencoder hierarchy.json --n-bootstrap 0")
    run_here(folder, TRAIN.replace("hierarchy.json", "hierarchy.json model"))
    return folder


TRAIN = "train autoencoder hierarchy.json --prior diffusion --n-steps 700 --width 32 --checkpoint-every 0.2"


def run_here(folder: Path, command: str) -> None:
    """Run a command in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        app(command.split(), standalone_mode=False)


def killed(folder: Path, command: str, number: signal.Signals, checkpoint: Path) -> str:
    """Kill a command after its first checkpoint of this time; gives its messages."""
    before = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else 0
    process = start(command.split(), folder, log := folder / f"{number.name}.log")
    while process.is_alive() and (not checkpoint.is_file() or checkpoint.stat().st_mtime_ns == before):
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == (-number if number is signal.SIGKILL else 128 + number), log.read_text()
    return log.read_text()


def tensors(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.glob("*.safetensors")}


@pytest.mark.slow
def test_killed_command_resumes_and_ends_the_same(folder):
    checkpoint = folder / ".killed.checkpoint"
    command = TRAIN.replace("hierarchy.json", "hierarchy.json killed")
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGINT):
        output = killed(folder, command, number, checkpoint)
        assert not (folder / "killed").exists()
        assert checkpoint.is_file()
        assert number is signal.SIGKILL or "run the same command to resume" in output
    last = start(command.split(), folder, log := folder / "last.log")
    last.join()
    assert "continues from step" in log.read_text()
    assert last.exitcode == 0
    assert tensors(folder / "killed") == tensors(folder / "model")
    assert not checkpoint.exists()
