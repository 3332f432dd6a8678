import copy
import logging
import math
import threading
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pandas as pd
import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from torch import Tensor, nn

from bdm.checkpoint import Checkpoint, Progress, Timer, stop_asked
from bdm.errors import InputError, Interrupted, TrainingError
from bdm.progress import progress
from bdm.seeds import torch_generator
from bdm.threads import keep_freed_memory

for name in ("lightning.fabric", "lightning.pytorch"):  # by which it tells depends on what is imported
    logging.getLogger(name).setLevel(logging.WARNING)

logger = logging.getLogger(__name__)

Loss = Callable[[nn.Module, torch.Generator], Tensor]
LossByType = Callable[[nn.Module, torch.Generator], dict[str, float]]

MOST = 5  # times the loss before training that it may be; it stays below 1.1 times where all is well


class Astray(Exception):  # noqa: N818, told as a TrainingError
    """Why training cannot go on."""


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
    shown
        Whether it is told how far training is.
    """

    n_steps: int
    learning_rate: float
    seed: int
    device: str | Fabric = "auto"
    what: str = "the network"
    averaging: float = 0.99
    n_warmup: int = 100
    validate_every: int = 100
    shown: bool = True


def fabric(device: str | Fabric, n_devices: int = 1) -> Fabric:
    """Fabric on one device or several of a kind, with a process each; mixed precision on GPUs.

    Raises
    ------
    InputError
        If there is no such device, or there are too few.
    """
    if isinstance(device, Fabric):
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
    by_type: LossByType | None = None,
    validation: Callable[[nn.Module], Tensor] | None = None,
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
        Its parameters become their moving average: the last, or the one of the lowest validation loss.
    loss
        Gives the loss of one minibatch, drawn with the generator, to be minimised.
    by_type
        Gives the mean loss of each cell type in the same minibatch, to tell which of them goes wrong.
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
    device = fabric(loop.device)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=loop.learning_rate)
    module, optimizer = device.setup(network, optimizer)
    averaged = copy.deepcopy(network)
    now = (checkpoint and checkpoint.read()) or Progress()
    if now.step:
        restore(now, network, averaged, optimizer)
    timer = Timer(checkpoint.seconds if checkpoint else math.inf)
    shown = {"doing": f"training {loop.what}", "unit": "step", "shown": loop.shown and device.is_global_zero}
    steps = progress(range(now.step, loop.n_steps), start=now.step, total=loop.n_steps, **shown)
    good = Progress()
    with stop_asked() if checkpoint else nullcontext(threading.Event()) as stop:
        try:
            for step in steps:
                for group in optimizer.param_groups:
                    group["lr"] = loop.learning_rate * _schedule(step, loop)
                value = loss(module, torch_generator(loop.seed, "step", step))
                mean, stopped = _agreed(device, value, stop)
                if not math.isfinite(mean):
                    raise Astray(f"the loss became {mean}")
                now.first = mean if step == 0 else now.first
                optimizer.zero_grad()
                device.backward(value)
                optimizer.step()
                _move_towards(averaged, network, min(loop.averaging, (step + 1) / (step + 10)))
                now.step, now.seen = step + 1, now.seen + mean
                if now.step % loop.validate_every == 0 or now.step == loop.n_steps:
                    look(now, averaged, loop, validation)
                    logger.debug("%s", ", ".join(f"{name} {value:.6g}" for name, value in now.history[-1].items()))
                    if checkpoint:
                        keep(now, network, averaged, optimizer)
                        good = copy.deepcopy(now)
                if checkpoint and device.is_global_zero and (stopped or timer.due() or now.step == loop.n_steps):
                    keep(now, network, averaged, optimizer)
                    checkpoint.write(now)
                if stopped:
                    raise Interrupted(
                        f"Stopped after step {now.step} of {loop.n_steps}; the same command goes on from there."
                    )
        except (Astray, torch.linalg.LinAlgError) as error:
            message = _what_went_wrong(error, step, network, loop, by_type)
            if checkpoint and good.step:
                message += f"; the state after step {good.step}, the last good one, is kept in {checkpoint.path}"
                if device.is_global_zero:
                    checkpoint.write(good)
            raise TrainingError(f"{message}.") from error
    network.load_state_dict(now.tensors.get("best") or averaged.state_dict())
    return pd.DataFrame(now.history)


def look(now: Progress, averaged: nn.Module, loop: Loop, validation: Callable[[nn.Module], Tensor] | None) -> None:
    """Add a row to the history, and keep the averaged weights where they are the best so far.

    Raises
    ------
    Astray
        If training does harm.
    """
    n_seen = (now.step - 1) % loop.validate_every + 1
    row = {"step": now.step, "loss": now.seen / n_seen}
    now.seen = 0.0
    if row["loss"] > MOST * now.first > 0:
        raise Astray(f"the loss, {now.first:.4g} before training, was {row['loss']:.4g} over the last {n_seen} steps")
    if validation is not None:
        with torch.no_grad():
            row["validation"] = float(validation(averaged))
        if not math.isfinite(row["validation"]):
            raise Astray(f"the loss of validation cells became {row['validation']}")
        if row["validation"] < now.best:
            now.best, now.tensors["best"] = row["validation"], copy.deepcopy(averaged.state_dict())
    now.history.append(row)


@torch.no_grad()
def _what_went_wrong(error: Exception, step: int, network: nn.Module, loop: Loop, by_type: LossByType | None) -> str:
    """Tell what goes wrong, in which step, and in cells of which type most."""
    losses = by_type(network, torch_generator(loop.seed, "step", step)) if by_type else {}
    worst = max(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf, default=None)
    reason = error if isinstance(error, Astray) else "a precision is positive-definite no more"
    of_type = "" if worst is None else f", most of all for cells of type {worst!r}"
    look_at = "" if worst is None else "look at these cells, or "
    return (
        f"Training of {loop.what} went wrong at step {step + 1}: {reason}{of_type}; "
        f"{look_at}try another seed, or a learning rate below {loop.learning_rate:g}"
    )


def keep(now: Progress, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Take the state of training into its progress."""
    now.tensors |= {
        "network": network.state_dict(),
        "averaged": averaged.state_dict(),
        "optimizer": {
            f"{number}/{name}": value
            for number, state in optimizer.state_dict()["state"].items()
            for name, value in state.items()
        },
    }


def restore(now: Progress, network: nn.Module, averaged: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Bring training to the state that its progress tells."""
    network.load_state_dict(now.tensors["network"])
    averaged.load_state_dict(now.tensors["averaged"])
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in now.tensors["optimizer"].items():
        number, _, name = key.partition("/")
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _agreed(device: Fabric, value: Tensor, stop: threading.Event) -> tuple[float, bool]:
    """Mean loss of all processes, and whether any of them was asked to end, so that all take as many steps."""
    told = torch.stack([value.detach(), value.new_tensor(float(stop.is_set()))])
    mean, asked = device.all_reduce(told).tolist()
    return mean, asked > 0


def _schedule(step: int, loop: Loop) -> float:
    """Share of the learning rate at a step: linear warm-up, then half a cosine down to nothing."""
    return min(1.0, (step + 1) / loop.n_warmup) * (1 + math.cos(math.pi * step / loop.n_steps)) / 2


@torch.no_grad()
def _move_towards(averaged: nn.Module, network: nn.Module, decay: float) -> None:
    for mean, value in zip(averaged.parameters(), network.parameters(), strict=True):
        mean.lerp_(value, 1 - decay)
    for kept, value in zip(averaged.buffers(), network.buffers(), strict=True):
        kept.copy_(value)
