"""What all commands tell: as little or as much as is asked for, and at their end what they made."""

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
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

from bdm import __version__
from bdm.commands.options import Threads
from bdm.errors import as_options

logger = logging.getLogger("bdm")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Tell only warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Tell versions, threads, and the time of each message.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the input and tell what would be done; write nothing.")]


@dataclass(frozen=True)
class Summary:
    """What a command made.

    Attributes
    ----------
    wrote
        Files and folders; None are absent.
    facts
        What is in them, by a word.
    then
        Words of a command that is often next.
    """

    wrote: tuple[Path | None, ...]
    facts: dict[str, str] = field(default_factory=dict)
    then: tuple[Path | str, ...] = ()

    def rows(self, *, seconds: float) -> dict[str, str]:
        """Rows of the table, by their first word."""
        from bdm.progress import duration

        rows = {"wrote": ", ".join(str(path) for path in self.wrote if path is not None), **self.facts}
        rows["took"] = f"{duration(seconds)}, {peak_memory() / 1e9:.1f} GB of memory at most"
        if self.then:
            rows["next"] = shlex.join(map(str, self.then))
        return rows


def generating(model: Path) -> tuple[Path | str, ...]:
    """Words of the command that follows when there is a model."""
    return "bdm", "generate", model, "generated.h5ad", "--cells", "100"


def told(command: Callable[..., Summary | None], *, computes: bool = False) -> Callable[..., None]:
    """Give a command the options ``--quiet`` and ``--verbose``, and let it tell its summary at the end.

    Parameters
    ----------
    computes
        Whether it computes for long; it then has the option ``--threads``, too.
    """

    @functools.wraps(command)
    def run(*, quiet: bool = False, verbose: bool = False, threads: int | None = None, **options: Any) -> None:
        start = time.monotonic()
        with listened(quiet=quiet, verbose=verbose), computing(threads) if computes else nullcontext():
            if verbose:
                logger.debug("%s", versions())
            for name, value in options.items():
                logger.debug("%s: %s", name, value)
            summary = command(**options)
            if summary is not None:
                logger.info("%s", aligned(summary.rows(seconds=time.monotonic() - start)))

    signature = inspect.signature(command)
    more = {"quiet": Quiet, "verbose": Verbose}
    defaults = {"quiet": False, "verbose": False}
    if computes:
        more, defaults = {"threads": Threads, **more}, {"threads": None, **defaults}
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=kind)
        for name, kind in more.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])
    run.__annotations__ = {**command.__annotations__, **more}
    return run


class OptionFormatter(logging.Formatter):
    """Formats messages for the command line, where settings are options."""

    def format(self, record: logging.LogRecord) -> str:
        """Rewrite the Python arguments of a message as options."""
        return as_options(super().format(record))


@contextmanager
def computing(threads: int | None) -> Iterator[None]:
    """Compute with a number of threads, or all that there may be."""
    from bdm.threads import using_threads

    with using_threads(threads):
        yield


@contextmanager
def listened(*, quiet: bool, verbose: bool) -> Iterator[None]:
    """Choose what is logged to stderr; both asked for is as neither."""
    level = {(True, False): logging.WARNING, (False, True): logging.DEBUG}.get((quiet, verbose), logging.INFO)
    form = "%(asctime)s %(message)s" if level == logging.DEBUG else "%(message)s"
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OptionFormatter(form))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    # Pandas warns of what anndata does to the columns of its own views
    warnings.filterwarnings("ignore", message=r"\s*A value is trying to be set on a copy", module="anndata")
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


def versions() -> str:
    """Tell what runs, and on what."""
    from bdm.threads import chosen_threads

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
    most = max(resource.getrusage(of).ru_maxrss for of in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return most if sys.platform == "darwin" else most * 1024
