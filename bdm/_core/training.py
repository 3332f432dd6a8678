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

from bdm._core.checkpoint import Checkpoint, StopRequest, Timer, TrainingState, stop_requested
from bdm._core.parallel import keep_freed_memory
from bdm._core.progress import progress
from bdm._core.seeds import torch_generator
from bdm.errors import InputError, Interrupted, TrainingError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

logger = logging.getLogger(__name__)

Loss = Callable[[nn.Module, torch.Generator], Tensor]
LossByGroup = Callable[[nn.Module, torch.Generator], dict[str, float]]
Validation = Callable[[nn.Module], Tensor | float]

MAX_LOSS_RATIO = 5  # of the loss to the loss before training; it stays below 1.1 where training converges


class DivergenceError(Exception):
    """Why training cannot continue; users get it as a TrainingError."""


@dataclass(frozen=True)
class TrainingPlan:
    """Plan of a training: Adam with warm-up and cosine decay on any device that Fabric knows."""

    n_steps: int
    learning_rate: float
    seed: int
    device: str | Fabric = "auto"  # its name, or what :func:`fabric` gave for it
    what: str = "the network"  # is trained, for messages
    averaging: float = 0.99  # decay of the exponential moving average of weights, which is what training gives
    n_warmup: int = 100
    # Steps between two validations of the averaged weights; those with the lowest loss are kept
    validate_every: int = 100
    # Number of validations in a row without a lower loss after which training ends; None for all steps
    patience: int | None = None
    untrained: float = math.inf  # validation loss without training, below which a loss counts as lower
    n_taken: int | None = None  # steps after which training ends, by the learning rates of ``n_steps``; None for all
    shown: bool = True  # whether progress is shown

    @property
    def last(self) -> int:
        """Number of the last step."""
        return self.n_steps if self.n_taken is None else self.n_taken


def fabric(device: str | Fabric, n_devices: int = 1) -> Fabric:
    """Fabric on one device or several of a kind, with a process each; mixed precision on GPUs."""
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
    plan: TrainingPlan,
    *,
    by_group: LossByGroup | None = None,
    validation: Validation | None = None,
    checkpoint: Checkpoint | None = None,
) -> pd.DataFrame:
    """Train ``network`` in place and return its history, a table of step, loss and validation loss.

    Step k draws from a generator of (seed, k) alone, so that training resumed from its checkpoint ends as if it had not
    been interrupted. Of several processes, each calls this, and ``loss`` gives each its share; gradients are averaged.
    """
    keep_freed_memory()
    training = _Training.start(network, loss, plan, (checkpoint and checkpoint.read()) or TrainingState())
    with stop_requested() if checkpoint else nullcontext(StopRequest()) as stop:
        try:
            _run(training, validation, checkpoint, stop)
        except (DivergenceError, torch.linalg.LinAlgError) as error:
            message = _describe_divergence(error, training, by_group)
            if checkpoint and training.good.step:
                step = training.good.step
                message += f"; the state after step {step}, the last good one, is kept in {checkpoint.path}"
                if training.device.is_global_zero:
                    checkpoint.write(training.good)
            raise TrainingError(f"{message}.") from error
    network.load_state_dict(training.state.tensors.get("best") or training.averaged.module.state_dict())
    return pd.DataFrame(training.state.history)


@dataclass
class _Training:
    """All that one training changes, and how it goes."""

    network: nn.Module
    loss: Loss
    plan: TrainingPlan
    device: Fabric
    module: nn.Module  # the network as it is run, on one device or several
    averaged: AveragedModel
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    # state, good: state of training, and the last state that was validated, in case the next steps diverge
    state: TrainingState
    good: TrainingState
    at: int  # index of the step that is taken

    @classmethod
    def start(cls, network: nn.Module, loss: Loss, plan: TrainingPlan, state: TrainingState) -> _Training:
        """Set training up at its first step, or at the step of a state."""
        device = fabric(plan.device)
        parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        adam = torch.optim.Adam([{"params": parameters, "initial_lr": plan.learning_rate}], lr=plan.learning_rate)
        module, optimizer = device.setup(network, adam)
        averaged = AveragedModel(network, multi_avg_fn=moving_average(plan.averaging))
        averaged.n_averaged.fill_(state.step + 1)  # the network as it is at first counts, too
        if state.step:
            restore(state, network, averaged.module, optimizer)
        schedule = LambdaLR(adam, warmup_and_cosine(plan), last_epoch=state.step - 1)
        return cls(
            network, loss, plan, device, module, averaged, optimizer, schedule, state, TrainingState(), state.step
        )

    def step(self, stop: StopRequest) -> bool:
        """Take one step, and return whether any process was asked to stop."""
        state, self.at = self.state, self.state.step
        value = self.loss(self.module, torch_generator(self.plan.seed, "step", self.at))
        mean, stopped = _agreed(self.device, value, stop)
        if not math.isfinite(mean):
            raise DivergenceError(f"the loss became {mean}")
        state.first_loss = mean if self.at == 0 else state.first_loss
        self.optimizer.zero_grad()
        self.device.backward(value)
        self.optimizer.step()
        self.schedule.step()
        self.averaged.update_parameters(self.network)
        state.step, state.loss_sum = state.step + 1, state.loss_sum + mean
        return stopped

    def capture(self) -> None:
        """Copy networks and optimizer into the state."""
        self.state.tensors |= {
            "network": self.network.state_dict(),
            "averaged": self.averaged.module.state_dict(),
            "optimizer": {
                f"{number}/{name}": value
                for number, state in self.optimizer.state_dict()["state"].items()
                for name, value in state.items()
            },
        }


def _run(training: _Training, validation: Validation | None, checkpoint: Checkpoint | None, stop: StopRequest) -> None:
    """Take all steps, with validations and checkpoints in between."""
    plan, state, writes = training.plan, training.state, training.device.is_global_zero
    timer = Timer(checkpoint.seconds if checkpoint else math.inf)
    shown: dict[str, Any] = {"doing": f"training {plan.what}", "unit": "step", "shown": plan.shown and writes}
    for _ in progress(range(state.step, plan.last), start=state.step, total=plan.last, **shown):
        if should_stop_early(state, plan):
            break
        stopped = training.step(stop)
        if state.step % plan.validate_every == 0 or state.step == plan.last:
            validate(state, training.averaged.module, plan, validation)
            logger.debug("%s", ", ".join(f"{name} {value:.6g}" for name, value in state.history[-1].items()))
            if checkpoint:
                training.capture()
                training.good = copy.deepcopy(state)
        ended = state.step == plan.last or should_stop_early(state, plan)
        if checkpoint and writes and (stopped or timer.due() or ended):
            training.capture()
            checkpoint.write(state)
        if stopped:
            raise _interrupted(state, plan, stop)
    none = torch.zeros((), device=training.device.device)
    if checkpoint and _agreed(training.device, none, stop)[1]:  # asked during the last validation, or the last write
        raise _interrupted(state, plan, stop)


def _interrupted(state: TrainingState, plan: TrainingPlan, stop: StopRequest) -> Interrupted:
    return Interrupted(f"Stopped after step {state.step} of {plan.last}; run the same command to resume.", stop.number)


def should_stop_early(state: TrainingState, plan: TrainingPlan) -> bool:
    """Whether the last validations, as many as the patience of the plan, found no lower loss."""
    if plan.patience is None:
        return False
    best, n_without_gain = plan.untrained, 0
    for row in state.history:
        n_without_gain = 0 if row["validation"] < best else n_without_gain + 1
        best = min(best, row["validation"])
    return n_without_gain >= plan.patience


def validate(state: TrainingState, averaged: nn.Module, plan: TrainingPlan, validation: Validation | None) -> None:
    """Add a row to the history, and keep the averaged weights if they are the best so far."""
    n_seen = (state.step - 1) % plan.validate_every + 1
    row = {"step": state.step, "loss": state.loss_sum / n_seen}
    state.loss_sum = 0.0
    if row["loss"] > MAX_LOSS_RATIO * state.first_loss > 0:
        raise DivergenceError(
            f"the loss, {state.first_loss:.4g} before training, was {row['loss']:.4g} over the last {n_seen} steps"
        )
    if validation is not None:
        with torch.no_grad():
            row["validation"] = float(validation(averaged))
        if not math.isfinite(row["validation"]):
            raise DivergenceError(f"the loss of validation cells became {row['validation']}")
        if row["validation"] < min(state.best_loss, plan.untrained):
            state.best_loss, state.tensors["best"] = row["validation"], copy.deepcopy(averaged.state_dict())
    state.history.append(row)


@torch.no_grad()
def _describe_divergence(error: Exception, training: _Training, by_group: LossByGroup | None) -> str:
    """Describe why training diverges, at which step, and in the cells of which type or population most."""
    plan = training.plan
    losses = by_group(training.network, torch_generator(plan.seed, "step", training.at)) if by_group else {}
    worst = max(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf, default=None)
    reason = error if isinstance(error, DivergenceError) else "a precision matrix is no longer positive definite"
    of_group = "" if worst is None else f", most of all for cells of {worst!r}"
    look_at = "" if worst is None else "look at these cells, or "
    return (
        f"Training of {plan.what} diverged at step {training.at + 1}: {reason}{of_group}; "
        f"{look_at}try another seed, or a learning rate below {plan.learning_rate:g}"
    )


def restore(state: TrainingState, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Restore the state of training."""
    network.load_state_dict(state.tensors["network"])
    averaged.load_state_dict(state.tensors["averaged"])
    of_optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in state.tensors["optimizer"].items():
        number, _, name = key.partition("/")
        of_optimizer.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": of_optimizer, "param_groups": optimizer.state_dict()["param_groups"]})


def warmup_and_cosine(plan: TrainingPlan) -> Callable[[int], float]:
    """Share of the learning rate by step: linear warm-up, then half a cosine down to nothing."""
    return lambda step: min(1.0, (step + 1) / plan.n_warmup) * (1 + math.cos(math.pi * step / plan.n_steps)) / 2


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
