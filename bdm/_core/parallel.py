"""Threads, one in each operation, so that no result depends on their number; and processes, one for each device."""

import ctypes
import logging
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from joblib import cpu_count
from threadpoolctl import threadpool_limits
from torch.multiprocessing.spawn import ProcessException

from bdm.errors import InputError, Interrupted, TrainingError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

RAISED_TOGETHER = (InputError, Interrupted, TrainingError)  # in all processes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Make glibc keep freed memory: to map it anew in each training step can take longer than the arithmetic."""
    if not sys.platform.startswith("linux"):
        return
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)
    if allocator is not None:
        allocator(M_TRIM_THRESHOLD, 2**30)
        allocator(M_MMAP_THRESHOLD, 2**25)


Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

Item = TypeVar("Item")
Result = TypeVar("Result")

LIMITS = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
IN_WORKER = 0
_n_threads: ContextVar[int | None] = ContextVar("n_threads", default=None)


def available_threads() -> int:
    """Threads that affinity and cgroup of the process, Slurm, ``OMP_NUM_THREADS`` and torch allow."""
    limits = [os.environ.get(name, "").split(",")[0].strip() for name in LIMITS]
    given = [int(text) for text in limits if text.isdecimal() and int(text)]
    return min(int(cpu_count()), torch.get_num_threads(), *given)


def chosen_threads() -> int:
    """Return the number of operations in parallel: as :func:`using_threads` sets it, or :func:`available_threads`."""
    return _n_threads.get() or available_threads()


@contextmanager
def using_threads(n_threads: int | None = None) -> Iterator[None]:
    """Compute with one thread in each operation, as digits depend on their number, and several operations at once."""
    if n_threads is not None and n_threads < 1:
        raise InputError(f"The number of threads is {n_threads}; give `n_threads=` 1 or more.")
    if _n_threads.get() == IN_WORKER:
        yield
        return
    token = _n_threads.set(n_threads or chosen_threads())
    try:
        # Again in each context, as libraries may have been loaded since the enclosing one
        with _one_thread_in_each_operation():
            yield
    finally:
        _n_threads.reset(token)


@contextmanager
def threads() -> Iterator[Map]:
    """Yield a ``map`` in as many threads as :func:`using_threads` sets; in such a thread, the usual ``map``."""
    if _n_threads.get() == IN_WORKER:
        yield map
        return
    with using_threads():
        n_threads = chosen_threads()
        with ThreadPoolExecutor(n_threads, initializer=_start_worker) as pool:

            def in_order(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
                running: deque[Future[Result]] = deque()
                for item in items:
                    running.append(pool.submit(function, item))
                    if len(running) > n_threads:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()

            yield in_order


def _start_worker() -> None:
    _n_threads.set(IN_WORKER)
    torch.set_num_threads(1)


@contextmanager
def _one_thread_in_each_operation() -> Iterator[None]:
    # Read before the first call of numba, which starts threads and sets torch and MKL to all cores
    torch_threads = torch.get_num_threads()
    numba = sys.modules.get("numba")
    numba_threads = numba.get_num_threads() if numba else 0
    try:
        if numba:
            numba.set_num_threads(1)
        with threadpool_limits(limits=1):
            torch.set_num_threads(1)  # last, as nothing else sets the threads of MKL
            yield
    finally:
        if numba:
            numba.set_num_threads(numba_threads)
        torch.set_num_threads(torch_threads)


def run_on(workers: "Fabric", function: Callable[..., Result], *arguments: Any) -> Result:
    """Run ``function(workers, *arguments)``, in one process for each device, and return the result of the first."""
    if workers.world_size == 1:
        return function(workers, *arguments)
    try:
        with _end_together():
            level = logging.getLogger("bdm").getEffectiveLevel()
            # Not as arguments of launch(), which searches them for networks and rejects frozen dataclasses
            result, error = workers.launch(partial(_attempt, function=function, arguments=arguments, level=level))
    except ProcessException as ended:
        raise TrainingError(f"Training ended early, as one of its processes ended: {ended}") from ended
    if error is not None:
        raise error
    return cast(Result, result)


def _attempt(
    workers: "Fabric", function: Callable[..., Result], arguments: tuple[Any, ...], level: int
) -> tuple[Result | None, Exception | None]:
    """Run a function in one of the processes and return its result, and its error, which would be lost otherwise."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    logging.getLogger("bdm").setLevel(level if workers.is_global_zero else logging.ERROR)
    # The replacement is missing in older supported versions of torch
    warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
    try:
        return function(workers, *arguments), None
    except RAISED_TOGETHER as error:
        return None, error


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
