"""Text for people: numbers of things, lists of names, and names with characters that do not print."""

from collections.abc import Iterable, Sequence


def counted(number: int, noun: str) -> str:
    """Write a number of things, such as ``1 cell type`` and ``2 cell types``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def abbreviated(names: Sequence[str], *, n_shown: int) -> str:
    """Write the first ``n_shown`` names, and the number of the others."""
    others = f" and {len(names) - n_shown} more" if len(names) > n_shown else ""
    return ", ".join(map(str, names[:n_shown])) + others


def listed(names: Sequence[str], *, n_shown: int = 10) -> str:
    """Write the number of names, and the first ``n_shown`` names, in one line."""
    return f"{len(names)} ({abbreviated(names, n_shown=n_shown)})" if len(names) else ""


def printable(text: str) -> str:
    r"""Write characters that do not print, such as line breaks, as escapes like ``\n``; names in data may have any."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def without_formulas(text: str) -> str:
    """Escape dollar signs, or matplotlib reads the text between two of them as a formula."""
    return text.replace("$", r"\$")


def type_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Bring one name of a cell type or several, which may be numbers in the data, to text."""
    return (str(names),) if isinstance(names, str) or not isinstance(names, Iterable) else tuple(map(str, names))
