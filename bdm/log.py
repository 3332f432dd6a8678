"""Messages of bdm in a notebook or a script that has not set up logging."""

import logging
import sys


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
