from collections.abc import Callable, Sequence
from typing import TypeVar

from bdm.text import printable, without_formulas

Item = TypeVar("Item")


def clade_label(cell_types: tuple[str, ...], *, width: int = 26) -> str:
    """Name a set of cell types within ``width`` letters: as many as fit, and the number of others."""
    cell_types = tuple(map(printable, cell_types))
    if len(cell_types) == 1:
        return shortened(cell_types[0], width=width)
    label = ", ".join(cell_types)
    named = len(cell_types)
    while len(label) > width and named > 1:
        named -= 1
        label = f"{', '.join(cell_types[:named])} +{len(cell_types) - named}"
    if len(label) <= width:
        return without_formulas(label)
    others = f" +{len(cell_types) - 1}"
    return shortened(cell_types[0], width=width - len(others)) + others


def shortened(name: str, *, width: int) -> str:
    """Cut a long name in its middle, as names of related types often differ at their ends."""
    name, n_first = printable(name), width // 3
    return without_formulas(name if len(name) <= width else f"{name[:n_first]}…{name[n_first + 1 - width :]}")


def gene_label(gene: str) -> str:
    """Name a gene where there is room for few letters."""
    return shortened(gene, width=24)


def highest(items: Sequence[Item], n_items: int, *, level: Callable[[Item], float]) -> list[Item]:
    """Take the ``n_items`` of highest level, in their order."""
    chosen = sorted(range(len(items)), key=lambda i: -level(items[i]))[:n_items]
    return [items[i] for i in sorted(chosen)]
