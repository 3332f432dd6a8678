"""Parallel single-threaded operations; results do not depend on the number of threads."""

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, TypeVar

import torch
from joblib import cpu_count
from threadpoolctl import ThreadpoolController

from bdm._core.errors import InputError

Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]

Item = TypeVar("Item")
Result = TypeVar("Result")

LIMITS = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")  # environment variables
IN_WORKER = 0  # value of `_n_threads` in worker threads, which start no others
_n_threads: ContextVar[int | None] = ContextVar("n_threads", default=None)


def available_threads() -> int:
    """Count threads allowed by affinity, cgroup, Slurm, ``OMP_NUM_THREADS`` and torch."""
    limits = [os.environ.get(name, "").split(",")[0].strip() for name in LIMITS]
    numbers = [int(text) for text in limits if text.isdecimal() and int(text)]
    return min(int(cpu_count()), torch.get_num_threads(), *numbers)


def chosen_threads() -> int:
    """Return the number set by :func:`using_threads`, or else :func:`available_threads`."""
    return _n_threads.get() or available_threads()


@contextmanager
def using_threads(n_threads: int | None = None) -> Iterator[None]:
    """Run up to ``n_threads`` operations in parallel, with one thread each."""
    if n_threads is not None and n_threads < 1:
        raise InputError(f"The number of threads is {n_threads}; give `n_threads=` 1 or more.")
    if _n_threads.get() == IN_WORKER:
        yield
        return
    token = _n_threads.set(n_threads or chosen_threads())
    try:
        # Nested contexts too, as libraries may have been loaded meanwhile
        with _one_thread_in_each_operation():
            yield
    finally:
        _n_threads.reset(token)


@contextmanager
def threads() -> Iterator[Map]:
    """Yield a parallel, ordered ``map``; in a worker thread, the built-in ``map``."""
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


@lru_cache(maxsize=1)
def _libraries(n_modules: int) -> ThreadpoolController:
    """Find threaded libraries (slow); cached until more modules are imported."""
    return ThreadpoolController()


@contextmanager
def _one_thread_in_each_operation() -> Iterator[None]:
    # Read first: the first call of numba sets torch and MKL to all cores
    torch_threads = torch.get_num_threads()
    numba = sys.modules.get("numba")
    numba_threads = numba.get_num_threads() if numba else 0
    try:
        if numba:
            numba.set_num_threads(1)
        with _libraries(len(sys.modules)).limit(limits=1):
            torch.set_num_threads(1)  # last, as only this sets the threads of MKL
            yield
    finally:
        if numba:
            numba.set_num_threads(numba_threads)
        torch.set_num_threads(torch_threads)


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Make glibc keep freed memory; remapping it can dominate a training step."""
    if not sys.platform.startswith("linux"):
        return
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)
    if allocator is not None:
        allocator(M_TRIM_THRESHOLD, 2**30)
        allocator(M_MMAP_THRESHOLD, 2**25)
