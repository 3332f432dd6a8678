"""Progress of long steps, and messages: a bar on a terminal and in a notebook, now and then a line in a log."""

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)


class DefaultHandler(logging.Handler):
    """Prints messages to stderr, unless the application has handlers of its own for all messages."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message."""
        if not logging.getLogger().handlers:
            print(self.format(record), file=sys.stderr)


def show_messages() -> None:
    """Print messages of level INFO, as scvi-tools does; a level or a handler that is set already stays."""
    logger = logging.getLogger("bdm")
    if not logger.handlers:
        logger.addHandler(DefaultHandler())
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)


Item = TypeVar("Item")

FIRST = 10.0  # seconds of work that the time left is first foretold from
LEAST = 20.0  # seconds left that are worth a line


def progress(
    items: Iterable[Item], *, doing: str, total: int, start: int = 0, unit: str = "it", shown: bool = True
) -> Iterator[Item]:
    """Yield items, and tell how far they have come, unless only warnings are logged.

    Parameters
    ----------
    doing
        What is done with them, in a word or two.
    total, start
        Number of all items, and of those that were done before.
    unit
        Name of an item.
    """
    if not (shown and logger.isEnabledFor(logging.INFO)):
        yield from items
    elif sys.stderr.isatty() or in_notebook():
        yield from tqdm(items, desc=doing, total=total, initial=start, unit=unit)
    else:
        yield from with_estimate(items, doing=doing, total=total, start=start, unit=unit)


def in_notebook() -> bool:
    """Whether a Jupyter kernel runs the process."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def with_estimate(items: Iterable[Item], *, doing: str, total: int, start: int, unit: str) -> Iterator[Item]:
    """Yield items, and log the time left: after ten seconds, and each time that as much again has passed.

    The first item is left out of the measure, as it often takes longer than others.
    """
    began, due = None, FIRST
    for done, item in enumerate(items, start=start):
        yield item
        now = time.monotonic()
        if began is None:
            began, first = now, done + 1
        elif now - began >= due and done + 1 < total:
            left = (now - began) / (done + 1 - first) * (total - done - 1)
            if left >= LEAST:
                logger.info("%s: %d of %d %ss done, about %s left", doing, done + 1, total, unit, duration(left))
            due = 2 * (now - began)


def duration(seconds: float) -> str:
    """Tell a time in the two largest units that it has."""
    seconds = round(seconds)
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
