"""Threads, one in each operation, so that no result depends on their number."""

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


@lru_cache(maxsize=1)
def _libraries(n_modules: int) -> ThreadpoolController:
    """Look for libraries with threads, which takes milliseconds, once for a number of modules, as these load them."""
    return ThreadpoolController()


@contextmanager
def _one_thread_in_each_operation() -> Iterator[None]:
    # Read before the first call of numba, which starts threads and sets torch and MKL to all cores
    torch_threads = torch.get_num_threads()
    numba = sys.modules.get("numba")
    numba_threads = numba.get_num_threads() if numba else 0
    try:
        if numba:
            numba.set_num_threads(1)
        with _libraries(len(sys.modules)).limit(limits=1):
            torch.set_num_threads(1)  # last, as nothing else sets the threads of MKL
            yield
    finally:
        if numba:
            numba.set_num_threads(numba_threads)
        torch.set_num_threads(torch_threads)
