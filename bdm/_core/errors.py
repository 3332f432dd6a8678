"""Errors that users see as one sentence, and the words that messages are made of."""

import ast
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

ARGUMENT = re.compile(r"`(?:[a-z_]+\.)*([a-z_]+)=([^`]*)`")
OPTIONS_FOR_NONE = {"label_key": "no-labels"}  # that set an argument to None, where None is not the default
OPTION_NAMES = {"adata_test": "test-cells", "overwrite": "force"}  # of arguments whose option has another name


class InputError(ValueError):
    """Invalid input, described in one sentence: what is wrong, where, and what to do.

    The command line prints it without a traceback and exits with code 2. Messages name settings as Python arguments
    (``label_key=``) in backticks. The command line prints them as its options (``--label-key``), and public functions
    with the settings that have them (``settings.prepare.counts=``), see :func:`bdm._core.schema.checking`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


def missing_package(what: str, package: str, *, extra: str) -> InputError:
    """Error of a step that needs a package of one of bdm's extras, which is not installed."""
    return InputError(
        f"{what} needs the package {package}, of the extra `{extra}` of bdm; install it: pip install {package}"
    )


class UnreadableError(InputError):
    """A file that cannot be read; the message contains its name."""


@contextmanager
def at(place: object) -> Iterator[None]:
    """Name the place of invalid input in its message, but of a file that cannot be read, whose message has its name."""
    try:
        yield
    except UnreadableError:
        raise
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


class TrainingError(RuntimeError):
    """Training that failed, described in one sentence; the command line prints it and exits with code 1."""


class Interrupted(Exception):  # noqa: N818, no error
    """A command that was asked to end, as by Ctrl-C; the command line prints the sentence and exits with code 130."""


def as_options(message: str) -> str:
    """Rewrite the Python arguments in an error message as command-line options.

    Returns: the message with `` `--label-key` ``, `` `--counts umi` ``, `` `--missing-as-zero` `` and `` `--no-labels`
    `` in their place.
    """

    def option(match: re.Match[str]) -> str:
        if match[2] == "None" and match[1] in OPTIONS_FOR_NONE:
            return f"`--{OPTIONS_FOR_NONE[match[1]]}`"
        name, value = OPTION_NAMES.get(match[1], match[1].strip("_").replace("_", "-")), match[2]
        if not value or value == "True":
            return f"`--{name}`"
        try:
            return f"`--{name} {shlex.quote(str(ast.literal_eval(value)))}`"
        except (SyntaxError, ValueError):  # part of a name that contains backticks
            return match[0]

    return ARGUMENT.sub(option, message)


def as_keys(message: str) -> str:
    """Rewrite the Python arguments in a message as keys of the configuration, such as `` `clip_outliers: true` ``."""

    def key(match: re.Match[str]) -> str:
        with suppress(SyntaxError, ValueError, TypeError):  # part of a name that contains backticks
            return f"`{match[1]}: {json.dumps(ast.literal_eval(match[2]))}`" if match[2] else f"`{match[1]}`"
        return match[0]

    return ARGUMENT.sub(key, message)


def counted(number: int, noun: str) -> str:
    """Write a number of things, such as ``1 cell type`` and ``2 cell types``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def abbreviated(names: Sequence[str], *, n_shown: int = 3) -> str:
    """Write the first ``n_shown`` names, and the number of the others."""
    others = f" and {len(names) - n_shown} more" if len(names) > n_shown else ""
    return ", ".join(map(str, names[:n_shown])) + others


def listed(names: Sequence[str], *, n_shown: int = 10) -> str:
    """Write the number of names, and the first ``n_shown`` names, in one line."""
    return f"{len(names)} ({abbreviated(names, n_shown=n_shown)})" if len(names) else ""


def printable(text: str) -> str:
    r"""Write characters that do not print, such as line breaks, as escapes like ``\n``; names in data may have any."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def markdown(text: object) -> str:
    """Escape what Markdown would read as markup; names in data may have any characters."""
    return re.sub(r"([\\|<>\[\]*`])", r"\\\1", printable(str(text)))
