"""Several processes that compute together."""

import logging
import multiprocessing
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.multiprocessing.spawn import ProcessException

from bdm.errors import InputError, Interrupted, TrainingError
from bdm.training import fabric

if TYPE_CHECKING:
    from lightning.fabric import Fabric

TOLD = (InputError, Interrupted, TrainingError)


def run_on(device: str, n_devices: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run ``function(workers, *arguments)``, where there are several devices in a process for each.

    Parameters
    ----------
    function
        Of a module, as other processes import it. What it raises of ``TOLD``, it raises in all of them.
    arguments
        Few and small, as they are copied to each process.
    """
    workers = fabric(device, n_devices)
    if n_devices == 1:
        function(workers, *arguments)
        return
    try:
        with _end_together():
            level = logging.getLogger("bdm").getEffectiveLevel()
            # Not as arguments of launch(), which looks for networks in them and refuses frozen dataclasses
            error = workers.launch(partial(_attempt, function=function, arguments=arguments, level=level))
    except ProcessException as ended:
        raise TrainingError(f"Training ended early, as one of its processes did: {ended}") from ended
    if error is not None:
        raise error


def _attempt(workers: "Fabric", function: Callable[..., None], arguments: tuple, level: int) -> Exception | None:
    """Run a function in one of the processes, and give what it raises, which else would be lost on the way."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("bdm").setLevel(level if workers.is_global_zero else logging.ERROR)
    # What is to replace it is not in all versions of torch that there may be
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    try:
        function(workers, *arguments)
    except TOLD as error:
        return error
    return None


@contextmanager
def _end_together() -> Iterator[None]:
    """Pass on to the other processes that this one is asked to end (SIGTERM)."""

    def pass_on(number: int, frame: object) -> None:
        for process in multiprocessing.active_children():
            process.terminate()

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
