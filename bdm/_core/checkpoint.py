"""Checkpoints: training that was interrupted continues where it stopped."""

import glob
import json
import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bdm import __version__
from bdm._core.files import atomic_write
from bdm._core.store import ContentReader, ContentWriter

logger = logging.getLogger(__name__)

SECONDS = 30.0  # between two checkpoints


@dataclass
class TrainingState:
    """State of training: everything that the next step depends on."""

    step: int = 0  # steps taken
    # By part, then by name: ``network``, ``averaged``, ``optimizer`` and, once validated, ``best``
    tensors: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    best_loss: float = float("inf")  # lowest validation loss
    loss_sum: float = 0.0  # sum of losses since the last row of the history
    first_loss: float = float("nan")  # loss of the first step
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Checkpoint:
    """File that training writes its state to, and resumes from."""

    path: Path
    identity: str  # hash of what is trained, see :func:`identity`; files with another identity are ignored
    seconds: float = SECONDS  # time between two checkpoints

    def of_part(self, name: str, **facts: Any) -> "Checkpoint":
        """Checkpoint of a training that follows, in a file next to this one; ``facts`` identify it in addition."""
        path = self.path.with_name(f"{self.path.name}.{name}")
        return replace(self, path=path, identity=identity(of=self.identity, part=name, **facts))

    def write(self, state: TrainingState) -> None:
        """Write the state, atomically."""
        encoder = ContentWriter()
        metadata = {"identity": self.identity, "state": json.dumps(encoder.encode(state, "state"))}
        metadata["checksum"] = hash_of(metadata, encoder.tensors)
        with atomic_write(self.path) as path:
            path.write_bytes(save(encoder.tensors, metadata=metadata))

    def read(self) -> TrainingState | None:
        """Read the state; None if there is no file, or it belongs to another training, or is damaged."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("identity") != self.identity:
                    logger.warning("%s is of other data, settings or version; training starts again.", self.path)
                    return None
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, the file is no mapping
            if metadata.pop("checksum") != hash_of(metadata, tensors):
                raise ValueError("its checksum does not match its content")
            state: TrainingState = ContentReader(tensors).decode(json.loads(metadata["state"]), TrainingState)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s is damaged (%s); training starts again.", self.path, error)
            return None
        logger.info("Training continues from step %d, read from %s.", state.step, self.path)
        return state


def hash_of(metadata: dict[str, str], tensors: dict[str, Tensor]) -> str:
    """Hash of the content of a checkpoint."""
    digest = sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def identity(**facts: Any) -> str:
    """Hash of the facts that identify a training, such as settings, seed and hashes of the data, and of the version."""
    content = json.dumps({"version": __version__, **facts}, sort_keys=True, default=str)
    return sha256(content.encode()).hexdigest()


class StopRequest(threading.Event):
    """Event that is set when the process is asked to end, with the number of the signal."""

    number: int = signal.SIGTERM

    def receive(self, number: int, frame: object) -> None:
        """Keep the signal; one more Ctrl-C ends the process at once."""
        self.number = self.number if self.is_set() else number
        self.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def stop_requested() -> Iterator[StopRequest]:
    """Yield an event that is set when the process receives SIGTERM or Ctrl-C, in place of ending at once."""
    requested = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield requested
        return
    before = {number: signal.signal(number, requested.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield requested
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Timer:
    """Timer that is due each time that a number of seconds has passed."""

    def __init__(self, seconds: float):
        self.seconds, self.last = seconds, time.monotonic()

    def due(self) -> bool:
        """Whether the time has passed since it was last due."""
        now = time.monotonic()
        if now - self.last < self.seconds:
            return False
        self.last = now
        return True


@contextmanager
def checkpoint_beside(out: Path, *, seconds: float, part: str = "", **facts: Any) -> Iterator[Checkpoint]:
    """Yield a hidden checkpoint file next to an output; it is removed with its parts once that is written."""
    out = Path(out)
    name = ".".join(["", out.name, "checkpoint", *([part] if part else [])])
    checkpoint = Checkpoint(out.parent / name, identity(part=part, **facts), seconds)
    yield checkpoint
    for path in out.parent.glob(f"{glob.escape(name)}*"):
        path.unlink()
