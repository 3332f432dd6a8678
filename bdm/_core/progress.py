"""Messages and progress: a bar on terminals and in notebooks, else log lines."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)


class DefaultHandler(logging.Handler):
    """Print messages to stderr, unless the root logger has handlers."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr)


def show_messages() -> None:
    """Print INFO messages by default; keep a level or handler already set."""
    package = logging.getLogger("bdm")
    if not package.handlers:
        package.addHandler(DefaultHandler())
    if package.level == logging.NOTSET:
        package.setLevel(logging.INFO)


Item = TypeVar("Item")

MAX_SILENCE = 10.0  # seconds of work without a message, in one task or in several short ones
MIN_REMAINING = 20.0  # seconds; shorter remaining times are not printed


def progress(items: Iterable[Item], *, doing: str, total: int, unit: str) -> Iterator[Item]:
    """Yield items and show progress, if INFO messages are logged.

    Messages contain the task (``doing``), and the number of items out of ``total`` (in ``unit``).
    """
    if not logger.isEnabledFor(logging.INFO):
        yield from items
    elif sys.stderr.isatty() or in_notebook():
        yield from tqdm(items, desc=doing, total=total, unit=unit)
    else:
        yield from with_estimate(items, doing=doing, total=total, unit=unit)


def in_notebook() -> bool:
    """Return whether the process runs in a Jupyter kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


class Activity:
    """Times of the last message and the last item of any task, in seconds."""

    message = item = float("-inf")


def with_estimate(items: Iterable[Item], *, doing: str, total: int, unit: str) -> Iterator[Item]:
    """Yield items and log progress at growing intervals, with the remaining time if it is long."""
    start, interval = 0.0, MAX_SILENCE
    continues = time.monotonic() - Activity.item < MAX_SILENCE  # another task, whose silence counts
    for n_done, item in enumerate(items, start=1):
        yield item
        now = Activity.item = time.monotonic()
        if n_done == 1:
            start = now  # the first item is often slow, and not counted
            Activity.message = Activity.message if continues else now
        elif now - Activity.message >= interval and n_done < total:
            remaining = (now - start) / (n_done - 1) * (total - n_done)
            left = f", about {duration(remaining)} left" if remaining >= MIN_REMAINING else ""
            logger.info("%s: %d of %d %ss done%s", doing, n_done, total, unit, left)
            Activity.message, interval = now, max(now - start, MAX_SILENCE)


def duration(seconds: float) -> str:
    """Format a time, such as ``3 min 20 s`` or ``2 h 5 min``."""
    seconds = round(seconds)
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
