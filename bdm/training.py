"""The training loop of all networks: Adam with averaged weights, on one device or several, from a checkpoint on."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from bdm.checkpoint import Checkpoint, Progress, StopRequest, Timer, stop_requested
from bdm.errors import InputError, Interrupted, TrainingError
from bdm.progress import progress
from bdm.seeds import torch_generator
from bdm.threads import keep_freed_memory

if TYPE_CHECKING:
    from lightning.fabric import Fabric

logger = logging.getLogger(__name__)

Loss = Callable[[nn.Module, torch.Generator], Tensor]
LossByGroup = Callable[[nn.Module, torch.Generator], dict[str, float]]
Validation = Callable[[nn.Module], Tensor | float]

MOST = 5  # times the loss before training that it may be; it stays below 1.1 times where all is well


class DivergenceError(Exception):
    """Why training cannot go on; users get it as a TrainingError."""


@dataclass(frozen=True)
class Loop:
    """How a network is trained: Adam with warm-up and cosine decay on any device that Fabric knows.

    Attributes
    ----------
    device
        Its name, or what :func:`fabric` gave for it.
    what
        Is trained, for messages.
    averaging
        Decay of the exponential moving average of weights, which is what training gives.
    validate_every
        Steps between two looks at the validation loss of the average; the one with the lowest is kept.
    patience
        Looks at the validation loss in a row without a lower one after which training ends; None for all steps.
    untrained
        Validation loss without training, which a lower one has to be below.
    n_taken
        Steps after which training ends, by the learning rates of ``n_steps``; None for all.
    shown
        Whether progress is shown.
    """

    n_steps: int
    learning_rate: float
    seed: int
    device: str | Fabric = "auto"
    what: str = "the network"
    averaging: float = 0.99
    n_warmup: int = 100
    validate_every: int = 100
    patience: int | None = None
    untrained: float = math.inf
    n_taken: int | None = None
    shown: bool = True

    @property
    def last(self) -> int:
        """Number of the last step."""
        return self.n_steps if self.n_taken is None else self.n_taken


def fabric(device: str | Fabric, n_devices: int = 1) -> Fabric:
    """Fabric on one device or several of a kind, with a process each; mixed precision on GPUs.

    Raises
    ------
    InputError
        If there is no such device, or there are too few.
    """
    if not isinstance(device, str):
        return device
    accelerator = "cuda" if device == "gpu" else device
    present = {
        "cpu": math.inf,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if accelerator == "auto":
        accelerator = "cuda" if present["cuda"] else "cpu"
    if accelerator not in present:
        raise InputError(f"Unknown device {device!r}; use auto, cpu, cuda or mps.")
    if not present[accelerator]:
        raise InputError(f"Device {device!r} is not available here; use auto or cpu.")
    if n_devices > present[accelerator]:
        raise InputError(f"There are not {n_devices} devices of {accelerator} here, but {present[accelerator]}.")
    # Imported here, as it takes 3 s that a command without training need not wait
    from lightning.fabric import Fabric
    from lightning.fabric.plugins.environments import LightningEnvironment
    from lightning.fabric.strategies import DDPStrategy

    for name in ("lightning.fabric", "lightning.pytorch"):  # either writes messages, by what else is imported
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=FutureWarning)
        return Fabric(
            accelerator=accelerator,
            devices=n_devices,
            # No network that is trained on several devices changes its buffers in training
            strategy="auto" if n_devices == 1 else DDPStrategy(start_method="spawn", broadcast_buffers=False),
            precision="bf16-mixed" if accelerator == "cuda" else "32-true",
            plugins=[LightningEnvironment()],  # no process but ours, also where there is Slurm
        )


def train(
    network: nn.Module,
    loss: Loss,
    loop: Loop,
    *,
    by_group: LossByGroup | None = None,
    validation: Validation | None = None,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train ``network`` in place and return its history, a table of step, loss and validation loss.

    Step k draws its minibatch and its noise from a generator of (seed, k) alone, so that training which was interrupted
    and goes on from its checkpoint ends as if it had not been.

    Where several processes train together, each calls this, and ends with the same network. Gradients are averaged over
    them; ``loss`` gives each its share.

    Parameters
    ----------
    network
        Its parameters become their moving average: the last, or the one of the lowest validation loss. It stays on the
        device that it was trained on.
    loss
        Gives the loss of one minibatch, drawn with the generator, to be minimised.
    by_group
        Gives the mean loss of each cell type in the same minibatch, for the message where training diverges.
    validation
        Gives the loss on held-out cells; without it all steps are run for and none is chosen.
    checkpoint
        Where progress is written to, now and then and when the process is asked to end, and gone on from.

    Raises
    ------
    TrainingError
        If the loss is not finite, or far above what it was before training; the checkpoint then keeps the last state
        that was good.
    Interrupted
        If the process is asked to end; not without a checkpoint.
    """
    keep_freed_memory()
    training = _Training.start(network, loss, loop, (checkpoint and checkpoint.read()) or Progress())
    with stop_requested() if checkpoint else nullcontext(StopRequest()) as stop:
        try:
            _run(training, validation, checkpoint, stop)
        except (DivergenceError, torch.linalg.LinAlgError) as error:
            message = _what_went_wrong(error, training, by_group)
            if checkpoint and training.good.step:
                step = training.good.step
                message += f"; the state after step {step}, the last good one, is kept in {checkpoint.path}"
                if training.device.is_global_zero:
                    checkpoint.write(training.good)
            raise TrainingError(f"{message}.") from error
    network.load_state_dict(training.now.tensors.get("best") or training.averaged.module.state_dict())
    return pd.DataFrame(training.now.history)


@dataclass
class _Training:
    """All that one training changes, and how it goes.

    Attributes
    ----------
    module
        The network as it is run, on one device or several.
    now, good
        Progress, and the last that was looked at, for where the next steps diverge.
    at
        Index of the step that is taken.
    """

    network: nn.Module
    loss: Loss
    loop: Loop
    device: Fabric
    module: nn.Module
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    now: Progress
    good: Progress
    at: int

    @classmethod
    def start(cls, network: nn.Module, loss: Loss, loop: Loop, now: Progress) -> _Training:
        """Set training up at its first step, or bring it to the state that its progress holds."""
        device = fabric(loop.device)
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        adam = torch.optim.Adam([{"params": parameters, "initial_lr": loop.learning_rate}], lr=loop.learning_rate)
        module, optimizer = device.setup(network, adam)
        averaged = AveragedModel(network, multi_avg_fn=moving_average(loop.averaging))
        averaged.n_averaged.fill_(now.step + 1)  # the network as it is at first counts, too
        if now.step:
            restore(now, network, averaged.module, optimizer)
        schedule = LambdaLR(adam, warmup_and_cosine(loop), last_epoch=now.step - 1)
        return cls(network, loss, loop, device, module, averaged, optimizer, schedule, now, Progress(), now.step)

    def step(self, stop: StopRequest) -> bool:
        """Take one step, and return whether any process was asked to stop.

        Raises
        ------
        DivergenceError
            If the loss is not finite.
        """
        now, self.at = self.now, self.now.step
        value = self.loss(self.module, torch_generator(self.loop.seed, "step", self.at))
        mean, stopped = _agreed(self.device, value, stop)
        if not math.isfinite(mean):
            raise DivergenceError(f"the loss became {mean}")
        now.first = mean if self.at == 0 else now.first
        self.optimizer.zero_grad()
        self.device.backward(value)
        self.optimizer.step()
        self.schedule.step()
        self.averaged.update_parameters(self.network)
        now.step, now.seen = now.step + 1, now.seen + mean
        return stopped

    def keep(self) -> None:
        """Take the state into the progress."""
        self.now.tensors |= {
            "network": self.network.state_dict(),
            "averaged": self.averaged.module.state_dict(),
            "optimizer": {
                f"{number}/{name}": value
                for number, state in self.optimizer.state_dict()["state"].items()
                for name, value in state.items()
            },
        }


def _run(training: _Training, validation: Validation | None, checkpoint: Checkpoint | None, stop: StopRequest) -> None:
    """Take all steps, look at them now and then, and write checkpoints."""
    loop, now, writes = training.loop, training.now, training.device.is_global_zero
    timer = Timer(checkpoint.seconds if checkpoint else math.inf)
    shown: dict[str, Any] = {"doing": f"training {loop.what}", "unit": "step", "shown": loop.shown and writes}
    for _ in progress(range(now.step, loop.last), start=now.step, total=loop.last, **shown):
        if gains_nothing(now, loop):
            break
        stopped = training.step(stop)
        if now.step % loop.validate_every == 0 or now.step == loop.last:
            look(now, training.averaged.module, loop, validation)
            logger.debug("%s", ", ".join(f"{name} {value:.6g}" for name, value in now.history[-1].items()))
            if checkpoint:
                training.keep()
                training.good = copy.deepcopy(now)
        ended = now.step == loop.last or gains_nothing(now, loop)
        if checkpoint and writes and (stopped or timer.due() or ended):
            training.keep()
            checkpoint.write(now)
        if stopped:
            raise _interrupted(now, loop, stop)
    none = torch.zeros((), device=training.device.device)
    if checkpoint and _agreed(training.device, none, stop)[1]:  # asked during the last look, or the last write
        raise _interrupted(now, loop, stop)


def _interrupted(now: Progress, loop: Loop, stop: StopRequest) -> Interrupted:
    return Interrupted(
        f"Stopped after step {now.step} of {loop.last}; the same command goes on from there.", stop.number
    )


def gains_nothing(now: Progress, loop: Loop) -> bool:
    """Whether the last looks were in vain, as many as the patience of the loop."""
    if loop.patience is None:
        return False
    best, n_in_vain = loop.untrained, 0
    for row in now.history:
        n_in_vain = 0 if row["validation"] < best else n_in_vain + 1
        best = min(best, row["validation"])
    return n_in_vain >= loop.patience


def look(now: Progress, averaged: nn.Module, loop: Loop, validation: Validation | None) -> None:
    """Add a row to the history, and keep the averaged weights where they are the best so far.

    Raises
    ------
    DivergenceError
        If training does harm.
    """
    n_seen = (now.step - 1) % loop.validate_every + 1
    row = {"step": now.step, "loss": now.seen / n_seen}
    now.seen = 0.0
    if row["loss"] > MOST * now.first > 0:
        raise DivergenceError(
            f"the loss, {now.first:.4g} before training, was {row['loss']:.4g} over the last {n_seen} steps"
        )
    if validation is not None:
        with torch.no_grad():
            row["validation"] = float(validation(averaged))
        if not math.isfinite(row["validation"]):
            raise DivergenceError(f"the loss of validation cells became {row['validation']}")
        if row["validation"] < min(now.best, loop.untrained):
            now.best, now.tensors["best"] = row["validation"], copy.deepcopy(averaged.state_dict())
    now.history.append(row)


@torch.no_grad()
def _what_went_wrong(error: Exception, training: _Training, by_group: LossByGroup | None) -> str:
    """Describe what goes wrong, in which step, and in cells of which type or population most."""
    loop = training.loop
    losses = by_group(training.network, torch_generator(loop.seed, "step", training.at)) if by_group else {}
    worst = max(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf, default=None)
    reason = error if isinstance(error, DivergenceError) else "a precision is positive-definite no more"
    of_group = "" if worst is None else f", most of all for cells of {worst!r}"
    look_at = "" if worst is None else "look at these cells, or "
    return (
        f"Training of {loop.what} went wrong at step {training.at + 1}: {reason}{of_group}; "
        f"{look_at}try another seed, or a learning rate below {loop.learning_rate:g}"
    )


def restore(now: Progress, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Bring training to the state that its progress holds."""
    network.load_state_dict(now.tensors["network"])
    averaged.load_state_dict(now.tensors["averaged"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in now.tensors["optimizer"].items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def warmup_and_cosine(loop: Loop) -> Callable[[int], float]:
    """Share of the learning rate by step: linear warm-up, then half a cosine down to nothing."""
    return lambda step: min(1.0, (step + 1) / loop.n_warmup) * (1 + math.cos(math.pi * step / loop.n_steps)) / 2


def moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Exponential moving average of weights for :class:`AveragedModel`, of shorter memory in the first steps."""

    def update(averaged: Sequence[Tensor], values: Sequence[Tensor], n_averaged: Tensor | int) -> None:
        n_before = int(n_averaged)
        for mean, value in zip(averaged, values, strict=True):
            mean.lerp_(value, 1 - min(decay, n_before / (n_before + 9)))

    return update


def _agreed(device: Fabric, value: Tensor, stop: StopRequest) -> tuple[float, bool]:
    """Mean loss of all processes, and whether any of them was asked to end, so that all take as many steps."""
    own = torch.stack([value.detach(), value.new_tensor(float(stop.is_set()))])
    mean_of_all: Any = device.all_reduce(own)
    mean, asked = mean_of_all.tolist()
    return mean, asked > 0
