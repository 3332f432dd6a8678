"""Measure what a computation costs."""

from collections.abc import Callable
from dataclasses import dataclass
from time import process_time
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A result, and the seconds of processor time that it took."""

    result: T
    seconds: float


def timed(compute: Callable[..., T], *arguments: object, **options: object) -> Timed[T]:
    """Call a function, and measure the processor time, which does not depend on what else runs."""
    start = process_time()
    result = compute(*arguments, **options)
    return Timed(result, process_time() - start)
