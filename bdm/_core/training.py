"""Training loop: Adam with averaged weights, on the CPU or a GPU."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from bdm._core.errors import InputError, TrainingError
from bdm._core.parallel import keep_freed_memory
from bdm._core.progress import progress
from bdm._core.seeds import torch_generator

logger = logging.getLogger(__name__)

Loss = Callable[[nn.Module, torch.Generator], Tensor]
LossByGroup = Callable[[nn.Module, torch.Generator], dict[str, float]]
Validation = Callable[[nn.Module], Tensor | float]


@dataclass(frozen=True)
class TrainingPlan:
    """Options for training by Adam with warm-up and cosine decay."""

    n_steps: int
    learning_rate: float
    seed: int
    device: str | torch.device = "auto"
    name: str = "the network"  # in messages
    averaging: float = 0.99  # decay of the moving average of weights, which training returns
    n_warmup: int = 100
    validate_every: int = 100  # steps between validations of the averaged weights; the best are kept
    patience: int | None = None  # validations without a lower loss before training stops; None: do not stop early


def train(
    network: nn.Module,
    loss: Loss,
    plan: TrainingPlan,
    *,
    by_group: LossByGroup | None = None,
    validation: Validation | None = None,
) -> pd.DataFrame:
    """Train ``network`` in place, and return its history (step, loss, validation loss).

    ``validation`` selects the best weights, and ``by_group`` names the cells that diverged. The random numbers of step
    k depend on (seed, k) only. CUDA devices use mixed precision (bfloat16).
    """
    keep_freed_memory()
    device = device_of(plan.device)
    network.to(device)
    averaged = AveragedModel(network, multi_avg_fn=moving_average(plan.averaging))
    averaged.n_averaged.fill_(1)  # include the initial weights
    adam = torch.optim.Adam([tensor for tensor in network.parameters() if tensor.requires_grad], lr=plan.learning_rate)
    schedule, losses, index = LambdaLR(adam, warmup_and_cosine(plan)), Losses(), 0
    try:
        for index in progress(range(plan.n_steps), total=plan.n_steps, doing=f"training {plan.name}", unit="step"):
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=device.type == "cuda"):
                value = loss(network, torch_generator(plan.seed, "step", index))
            mean = value.item()
            if not math.isfinite(mean):
                raise DivergenceError(f"the loss became {mean}")
            losses.first = mean if index == 0 else losses.first
            losses.total += mean
            adam.zero_grad()
            value.backward()
            adam.step()
            schedule.step()
            averaged.update_parameters(network)
            step = index + 1
            if step % plan.validate_every == 0 or step == plan.n_steps:
                record_losses(losses, averaged.module, plan, validation, step=step)
                logger.debug("%s", ", ".join(f"{name} {value:.6g}" for name, value in losses.history[-1].items()))
                if plan.patience is not None and losses.n_without_gain >= plan.patience:
                    break
    except (DivergenceError, torch.linalg.LinAlgError) as error:
        raise TrainingError(describe_divergence(error, network, plan, by_group, index=index)) from error
    network.load_state_dict(losses.best_weights or averaged.module.state_dict())
    return pd.DataFrame(losses.history)


@dataclass
class Losses:
    """Losses of a training, and the best averaged weights so far."""

    first: float = math.nan  # loss of the first step
    total: float = 0.0  # sum of losses since the last row of the history
    best: float = math.inf  # lowest validation loss
    best_weights: dict[str, Tensor] | None = None
    n_without_gain: int = 0  # validations since the best
    history: list[dict[str, float]] = field(default_factory=list)


MAX_LOSS_RATIO = 5  # to the loss before training; below 1.1 in training that converges


def record_losses(
    losses: Losses, averaged: nn.Module, plan: TrainingPlan, validation: Validation | None, *, step: int
) -> None:
    """Add a row to the history, and keep the best averaged weights.

    Raises a DivergenceError if the loss has risen far, or is not finite.
    """
    n_steps = (step - 1) % plan.validate_every + 1
    row = {"step": step, "loss": losses.total / n_steps}
    losses.total = 0.0
    if row["loss"] > MAX_LOSS_RATIO * losses.first > 0:
        raise DivergenceError(
            f"the loss, {losses.first:.4g} before training, was {row['loss']:.4g} over the last {n_steps} steps"
        )
    if validation is not None:
        with torch.no_grad():
            row["validation"] = float(validation(averaged))
        if not math.isfinite(row["validation"]):
            raise DivergenceError(f"the loss of validation cells became {row['validation']}")
        losses.n_without_gain += 1
        if row["validation"] < losses.best:
            losses.best, losses.best_weights = row["validation"], copy.deepcopy(averaged.state_dict())
            losses.n_without_gain = 0
    losses.history.append(row)


class DivergenceError(Exception):
    """Reason for diverged training; users see it as a TrainingError."""


@torch.no_grad()
def describe_divergence(
    error: Exception, network: nn.Module, plan: TrainingPlan, by_group: LossByGroup | None, *, index: int
) -> str:
    """Message for diverged training: reason, step and worst cell type or population."""
    losses = by_group(network, torch_generator(plan.seed, "step", index)) if by_group else {}
    worst = max(losses, key=lambda name: losses[name] if math.isfinite(losses[name]) else math.inf, default=None)
    reason = error if isinstance(error, DivergenceError) else "a precision matrix is no longer positive definite"
    of_group = "" if worst is None else f", most of all for cells of {worst!r}"
    look_at = "" if worst is None else "look at these cells, or "
    return (
        f"Training of {plan.name} diverged at step {index + 1}: {reason}{of_group}; "
        f"{look_at}try another seed, or a learning rate below {plan.learning_rate:g}."
    )


def warmup_and_cosine(plan: TrainingPlan) -> Callable[[int], float]:
    """Return the factor of the learning rate: linear warm-up, cosine decay to 0."""
    return lambda step: min(1.0, (step + 1) / plan.n_warmup) * (1 + math.cos(math.pi * step / plan.n_steps)) / 2


def moving_average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    """Exponential moving average for :class:`AveragedModel`, with shorter memory in the first steps."""

    def update(averaged: Sequence[Tensor], values: Sequence[Tensor], n_averaged: Tensor | int) -> None:
        n_before = int(n_averaged)
        for mean, value in zip(averaged, values, strict=True):
            mean.lerp_(value, 1 - min(decay, n_before / (n_before + 9)))

    return update


def device_of(name: str | torch.device) -> torch.device:
    """Return a device; ``auto`` is CUDA if available, else the CPU."""
    if isinstance(name, torch.device):
        return name
    kind = "cuda" if name == "gpu" else name
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind == "auto":
        kind = "cuda" if present["cuda"] else "cpu"
    if kind not in present:
        raise InputError(f"Unknown device {name!r}; use auto, cpu, cuda or mps.")
    if not present[kind]:
        raise InputError(f"Device {name!r} is not available here; use auto or cpu.")
    return torch.device(kind)
