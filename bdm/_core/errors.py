"""Errors with one-line messages for users, and helpers to word them."""

import ast
import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

ARGUMENT = re.compile(r"`(?:[a-z_]+\.)*([a-z_]+)=([^`]*)`")
IN_WORKFLOW = "BDM_IN_WORKFLOW"  # environment variable that workflow/rules/common.smk sets
OPTIONS_FOR_NONE = {"label_key": "no-labels"}  # switch of the command line for ``label_key=None``
# Options that differ from the argument's name
OPTION_NAMES = {"adata_test": "test-cells", "confirmed": "yes", "overwrite": "force"}


class InputError(ValueError):
    """Invalid input; the message says where, why, and how to correct it.

    The command line prints it without a traceback and exits with code 2. Messages name settings as Python arguments
    in backticks (``label_key=``). Commands rewrite them as options (``--label-key``), or as keys of the configuration
    in jobs of the workflow (``in_interface``). Public functions prepend the path of the setting
    (``settings.prepare.counts=``), see :func:`bdm._core.schema.checking`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def missing_package(feature: str, package: str, *, extra: str) -> InputError:
    """Return the error for a missing package of one of bdm's extras."""
    return InputError(
        f"{feature} needs the package {package}, of the extra `{extra}` of bdm; install it: pip install {package}"
    )


class UnreadableError(InputError):
    """A file that cannot be read; the message contains its name."""


@contextmanager
def error_prefix(place: object) -> Iterator[None]:
    """Prefix InputErrors with ``place``; an UnreadableError already names its file."""
    try:
        yield
    except UnreadableError:
        raise
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


class TrainingError(RuntimeError):
    """Failed training; the command line prints the message and exits with code 1."""


class Interrupted(Exception):  # noqa: N818, no error
    """Interrupted command (Ctrl-C); the command line exits with code 130."""


def in_interface(message: str) -> str:
    """Rewrite the Python arguments in a message of a command as options, or as keys in jobs of the workflow."""
    return as_keys(message) if os.environ.get(IN_WORKFLOW) else as_options(message)


def as_options(message: str) -> str:
    """Rewrite the Python arguments in an error message as command-line options.

    ``label_key=`` becomes ``--label-key``, ``counts='umi'`` becomes ``--counts umi``, ``missing_as_zero=True`` becomes
    ``--missing-as-zero``, and ``label_key=None`` becomes ``--no-labels``.
    """

    def option(match: re.Match[str]) -> str:
        if match[2] == "None" and match[1] in OPTIONS_FOR_NONE:
            return f"`--{OPTIONS_FOR_NONE[match[1]]}`"
        # Python's keywords have an underscore as arguments: from_= is --from
        name, value = OPTION_NAMES.get(match[1], match[1].strip("_").replace("_", "-")), match[2]
        if not value or value == "True":
            return f"`--{name}`"
        try:
            return f"`--{name} {shlex.quote(str(ast.literal_eval(value)))}`"
        except (SyntaxError, ValueError):  # part of a name that contains backticks
            return match[0]

    return ARGUMENT.sub(option, message)


def as_keys(message: str) -> str:
    """Rewrite the Python arguments in a message as configuration keys (``clip_outliers: true``)."""

    def key(match: re.Match[str]) -> str:
        with suppress(SyntaxError, ValueError, TypeError):  # part of a name that contains backticks
            name = match[1].strip("_")
            return f"`{name}: {json.dumps(ast.literal_eval(match[2]))}`" if match[2] else f"`{name}`"
        return match[0]

    return ARGUMENT.sub(key, message)


def counted(number: int, noun: str) -> str:
    """Format a count, such as ``1 cell type`` or ``2 cell types``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def abbreviated(names: Sequence[str], *, n_shown: int = 3) -> str:
    """Join the first ``n_shown`` names, and count the rest."""
    others = f" and {len(names) - n_shown} more" if len(names) > n_shown else ""
    return ", ".join(map(str, names[:n_shown])) + others


def listed(names: Sequence[str], *, n_shown: int = 10) -> str:
    """Count names, and join the first ``n_shown``; empty without names."""
    return f"{len(names)} ({abbreviated(names, n_shown=n_shown)})" if len(names) else ""


def printable(text: str) -> str:
    r"""Escape unprintable characters in names from data, such as ``\n``."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def markdown(text: object) -> str:
    """Escape Markdown syntax in names from data."""
    return re.sub(r"([\\|<>\[\]*`]|^[=+\-@])", r"\\\1", printable(str(text)))
