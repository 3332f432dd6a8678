"""What all commands have in common: options from settings, messages while they run, and a summary at their end."""

import functools
import inspect
import logging
import platform
import resource
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bdm import __version__
from bdm.commands.options import Quiet, Threads, Verbose, arguments_of, check_outputs, options_of
from bdm.errors import Interrupted, as_options

logger = logging.getLogger("bdm")


@dataclass(frozen=True)
class Summary:
    """What a command made."""

    wrote: tuple[Path | None, ...]  # files and folders; None are absent
    facts: dict[str, str] = field(default_factory=dict)  # what is in them, by a word
    then: tuple[Path | str, ...] = ()  # words of a command that is often next

    def rows(self, *, seconds: float) -> dict[str, str]:
        """Rows of the table, by their first word."""
        from bdm._core.progress import duration

        rows = {"wrote": ", ".join(str(path) for path in self.wrote if path is not None), **self.facts}
        rows["took"] = f"{duration(seconds)}, {peak_memory() / 1e9:.1f} GB of memory at most"
        if self.then:
            rows["next"] = shlex.join(map(str, self.then))
        return rows


def generating(model: Path) -> tuple[Path | str, ...]:
    """Words of the command that follows when there is a model."""
    return "bdm", "generate", model, "generated.h5ad", "--cells", "100"


def evaluating(cells: Path | None, *words: Path | str) -> tuple[Path | str, ...]:
    """Words of the command that compares new cells with test cells, if there are any in the file of other cells."""
    from bdm.data.header import n_cells_by_value

    splits = None if cells is None else n_cells_by_value(cells, "split")
    return words if splits and "test" in splits else ()


def command_with_summary(command: Callable[..., Summary | None], *, computes: bool = False) -> Callable[..., None]:
    """Give a command its options, and let it print its summary; if it ``computes`` for long, it has ``--threads``."""
    shared: dict[str, Any] = {"quiet": Quiet, "verbose": Verbose}
    if computes:
        shared = {"threads": Threads, **shared}
    kind, own = inspect.Parameter.KEYWORD_ONLY, inspect.signature(command)
    added = [inspect.Parameter(name, kind, default=None, annotation=annotation) for name, annotation in shared.items()]
    signature = own.replace(parameters=[*own.parameters.values(), *added])
    options = options_of(signature)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        start = time.monotonic()
        arguments = arguments_of(signature, options, given)
        check_outputs(signature, arguments)
        quiet, verbose, threads = (arguments.pop(name, None) for name in ("quiet", "verbose", "threads"))
        with ExitStack() as context:
            context.enter_context(show_messages(quiet=quiet, verbose=verbose))
            if computes:
                from bdm._core.parallel import using_threads

                context.enter_context(using_threads(threads))
            if verbose:
                logger.debug("%s", versions())
            for name, value in given.items():
                logger.debug("%s: %s", name, value)
            try:
                summary = command(**arguments)
            except KeyboardInterrupt as stop:
                raise Interrupted("Stopped, and wrote nothing; the same command starts again.") from stop
            if summary is not None:
                logger.info("%s", aligned(summary.rows(seconds=time.monotonic() - start)))

    vars(run)["__signature__"] = signature.replace(parameters=[option.parameter for option in options])
    run.__annotations__ = {option.parameter.name: option.parameter.annotation for option in options}
    return run


class OptionFormatter(logging.Formatter):
    """Formats messages for the command line, where settings are options."""

    def format(self, record: logging.LogRecord) -> str:
        """Rewrite the Python arguments of a message."""
        return as_options(super().format(record))


@contextmanager
def show_messages(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Print messages to stderr: warnings alone, or more; quiet and verbose together are as neither."""
    level = {(True, False): logging.WARNING, (False, True): logging.DEBUG}.get((quiet, verbose), logging.INFO)
    form = "%(asctime)s %(message)s" if level == logging.DEBUG else "%(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OptionFormatter(form))
    logging.basicConfig(handlers=[handler])
    # Pandas warns of what anndata does to the columns of its own views
    warnings.filterwarnings("ignore", message=r"\s*A value is trying to be set on a copy", module="anndata")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def versions() -> str:
    """Describe what runs, and on what."""
    from bdm._core.parallel import chosen_threads

    packages = " ".join(f"{name} {version(name)}" for name in ("anndata", "numpy", "scanpy", "torch"))
    machine = f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}"
    return f"bdm {__version__}, {packages}, {machine}, {chosen_threads()} threads"


def aligned(rows: dict[str, str]) -> str:
    """Lay out rows as a table for the eye."""
    width = max(map(len, rows))
    indent = "\n" + " " * (width + 2)
    return "\n".join(f"{name:<{width}}  {indent.join(value.splitlines())}" for name, value in rows.items())


def peak_memory() -> int:
    """Most memory that this process, or one that it started, has held, in bytes."""
    most = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most if sys.platform == "darwin" else most * 1024
