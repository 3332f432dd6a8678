from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def clade_label(cell_types: tuple[str, ...], *, width: int = 26) -> str:
    """Name a set of cell types within ``width`` letters: as many as fit, and the number of others."""
    if len(cell_types) == 1:
        return shortened(cell_types[0], width=width)
    label = ", ".join(cell_types)
    named = len(cell_types)
    while len(label) > width and named > 1:
        named -= 1
        label = f"{', '.join(cell_types[:named])} +{len(cell_types) - named}"
    if len(label) <= width:
        return label
    others = f" +{len(cell_types) - 1}"
    return shortened(cell_types[0], width=width - len(others)) + others


def shortened(name: str, *, width: int) -> str:
    """Cut a long name in its middle, as names of related types often differ at their ends."""
    n_first = width // 3
    return name if len(name) <= width else f"{name[:n_first]}…{name[n_first + 1 - width :]}"


def highest(items: Sequence[Item], n_items: int, *, level: Callable[[Item], float]) -> list[Item]:
    """Take the ``n_items`` of highest level, in their order."""
    chosen = sorted(range(len(items)), key=lambda i: -level(items[i]))[:n_items]
    return [items[i] for i in sorted(chosen)]
