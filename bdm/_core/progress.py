"""Messages and progress: a bar on terminals and in notebooks, else log lines."""

import logging
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

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

# In a log file, tasks that take longer print a line as often, in seconds
LOGGED: dict[str, Any] = {"mininterval": 20, "delay": 20, "miniters": 1, "leave": False}
LINE = "{desc}: {n_fmt} of {total_fmt} {unit}s done, {remaining} left"


class LogLines:
    """A file that logs what is written to it."""

    def write(self, text: str) -> None:
        """Log text."""
        if line := text.strip():
            logger.info(line)

    def flush(self) -> None:
        """Do nothing, as the log is not buffered."""


def progress(items: Iterable[Item], *, doing: str, total: int, unit: str) -> Iterator[Item]:
    """Yield items and show progress, if INFO messages are logged.

    Messages contain the task (``doing``), and the number of items out of ``total`` (in ``unit``).
    """
    if not logger.isEnabledFor(logging.INFO):
        yield from items
        return
    from tqdm import tqdm  # takes a tenth of the time of `bdm --help`

    if sys.stderr.isatty() or in_notebook():
        yield from tqdm(items, desc=doing, total=total, unit=unit)
    else:
        yield from tqdm(items, doing, total, unit=unit, bar_format=LINE, file=LogLines(), **LOGGED)


def in_notebook() -> bool:
    """Return whether the process runs in a Jupyter kernel."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel")


def duration(seconds: float) -> str:
    """Format a time, such as ``3 min 20 s`` or ``2 h 5 min``."""
    seconds = round(seconds)
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
