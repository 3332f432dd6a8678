"""Training in several processes, one for each device."""

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

RAISED_TOGETHER = (InputError, Interrupted, TrainingError)


def run_on(device: str, n_devices: int, function: Callable[..., None], *arguments: Any) -> None:
    """Run ``function(workers, *arguments)``, in one process for each device.

    Parameters
    ----------
    function
        Function of a module, as other processes import it. Errors of ``RAISED_TOGETHER`` are raised in all processes.
    arguments
        Arguments that are cheap to copy to each process.
    """
    workers = fabric(device, n_devices)
    if n_devices == 1:
        function(workers, *arguments)
        return
    try:
        with _end_together():
            level = logging.getLogger("bdm").getEffectiveLevel()
            # Not as arguments of launch(), which searches them for networks and rejects frozen dataclasses
            error = workers.launch(partial(_attempt, function=function, arguments=arguments, level=level))
    except ProcessException as ended:
        raise TrainingError(f"Training ended early, as one of its processes ended: {ended}") from ended
    if error is not None:
        raise error


def _attempt(
    workers: "Fabric", function: Callable[..., None], arguments: tuple[Any, ...], level: int
) -> Exception | None:
    """Run a function in one of the processes and return its error, which would be lost otherwise."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("bdm").setLevel(level if workers.is_global_zero else logging.ERROR)
    # The replacement is missing in older supported versions of torch
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    try:
        function(workers, *arguments)
    except RAISED_TOGETHER as error:
        return error
    return None


@contextmanager
def _end_together() -> Iterator[None]:
    """Pass on to the other processes that they are to end, and wait for them."""

    def pass_on(number: int, frame: object) -> None:
        for process in multiprocessing.active_children():
            process.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
