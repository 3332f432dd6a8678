from collections.abc import Sequence


def listed(names: Sequence[str], *, most: int = 10) -> str:
    """List names in one line, with their number, the first ``most`` of them by name."""
    others = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{len(names)} ({', '.join(map(str, names[:most]))}{others})" if len(names) else ""


def printable(text: str) -> str:
    r"""Write what does not print, such as line breaks, as escapes like ``\n``; names in data may have any."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def without_formulas(text: str) -> str:
    """Mark dollar signs, or matplotlib takes what is between two of them for a formula."""
    return text.replace("$", r"\$")
