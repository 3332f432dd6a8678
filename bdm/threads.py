from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

Map = Callable[[Callable, Iterable], Iterator]


@contextmanager
def threads() -> Iterator[Map]:
    """Give a ``map`` that runs in as many threads as torch has, each of which has torch for itself.

    Torch's own threads share one operation, which is slow for operations as small as here, slower still beside other
    programs, and lets the last digits depend on their number.

    Results come in the order of the items, and items are taken not much earlier than results are asked for.
    """
    n_threads = torch.get_num_threads()

    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:

            def in_order(function: Callable, items: Iterable) -> Iterator:
                running = deque()
                for item in items:
                    running.append(pool.submit(function, item))
                    if len(running) > n_threads:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()

            yield in_order
    finally:
        torch.set_num_threads(n_threads)
