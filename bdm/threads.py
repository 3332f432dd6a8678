"""Threads: every operation has one, and several run side by side, so that no result depends on their number."""

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from joblib import cpu_count
from threadpoolctl import threadpool_limits

from bdm.errors import InputError

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let glibc keep the memory that one step frees for the next one, in place of giving it back to the system.

    Steps allocate and free the same megabytes over and over; having them mapped anew each time can cost several times
    the arithmetic, most of all in virtual machines. Does nothing outside Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    allocator = getattr(ctypes.CDLL(None), "mallopt", None)
    if allocator is not None:
        allocator(M_TRIM_THRESHOLD, 2**30)
        allocator(M_MMAP_THRESHOLD, 2**25)


Map = Callable[[Callable, Iterable], Iterator]

LIMITS = ("OMP_NUM_THREADS", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE")
IN_WORKER = 0
_n_threads: ContextVar[int | None] = ContextVar("n_threads", default=None)


def available_threads() -> int:
    """Count the threads that this process may use.

    They are the processors that its affinity and the quota of its cgroup allow, and no more than Slurm gives its job,
    the user's ``OMP_NUM_THREADS``, and what torch is set to.
    """
    first = [os.environ.get(name, "").split(",")[0].strip() for name in LIMITS]
    return min(cpu_count(), torch.get_num_threads(), *(int(text) for text in first if text.isdecimal() and int(text)))


def chosen_threads() -> int:
    """Tell how many operations run side by side: as many as :func:`using_threads` was given, or may use."""
    return _n_threads.get() or available_threads()


@contextmanager
def using_threads(n_threads: int | None = None) -> Iterator[None]:
    """Compute with one thread in each operation of torch, NumPy, SciPy, scikit-learn and numba.

    More threads would share one operation, which is slow for operations as small as here, slower still beside other
    programs, and lets the last digits depend on their number. Serves as a decorator, too.

    Parameters
    ----------
    n_threads
        Number of operations that :func:`threads` runs side by side. If not given, as in the context around this one, or
        else :func:`available_threads`.

    Raises
    ------
    InputError
        If ``n_threads`` is below 1.
    """
    if n_threads is not None and n_threads < 1:
        raise InputError(f"The number of threads is {n_threads}; give `n_threads=` 1 or more.")
    if _n_threads.get() == IN_WORKER:
        yield
        return
    token = _n_threads.set(n_threads or chosen_threads())
    try:
        # Anew in each context, as libraries may have been loaded since the one around it
        with _one_thread_in_each_operation():
            yield
    finally:
        _n_threads.reset(token)


@contextmanager
def threads() -> Iterator[Map]:
    """Give a ``map`` that runs in as many threads as :func:`using_threads` allows, each with operations of its own.

    Results come in the order of the items, and items are taken not much earlier than results are asked for. Inside such
    a thread, it is the usual ``map``.
    """
    if _n_threads.get() == IN_WORKER:
        yield map
        return
    with using_threads():
        n_threads = _n_threads.get()
        with ThreadPoolExecutor(n_threads, initializer=_start_worker) as pool:

            def in_order(function: Callable, items: Iterable) -> Iterator:
                running = deque()
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
    # Read before numba is asked: at first it starts threads, and sets the number of torch and of MKL to all cores
    of_torch = torch.get_num_threads()
    numba = sys.modules.get("numba")
    of_numba = numba.get_num_threads() if numba else 0
    try:
        if numba:
            numba.set_num_threads(1)
        with threadpool_limits(limits=1):
            torch.set_num_threads(1)  # last, as it alone sets MKL's
            yield
    finally:
        if numba:
            numba.set_num_threads(of_numba)
        torch.set_num_threads(of_torch)
