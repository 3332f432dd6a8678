"""Labels of the branches of a drawn tree, where they cover neither each other nor, where there is room, its lines."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from bdm.plotting.style import HALO, Style
from bdm.plotting.tree import View, inches, node_labels, without_overlaps

LETTER, HEIGHT = 0.06, 0.12  # inches of a letter, and of a line of text, at most
BESIDE, ABOVE, BELOW = 5, 4, -9  # points from a label's point to its side, and to its baseline
POINT = 1 / 72  # inches
DOT = 0.04  # inches of the radius of a node


@dataclass(frozen=True)
class Box:
    """Part of a drawn tree, in inches from its left end and from its first row."""

    left: float
    right: float
    top: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """Whether two boxes have a point in common."""
        across = self.left <= other.right and other.left <= self.right
        return across and self.top <= other.bottom and other.top <= self.bottom


@dataclass(frozen=True)
class Place:
    """Where a label may be: before or after the point of a branch at a noise level, and above or below the branch."""

    level: float
    row: float
    before: bool
    above: bool


@dataclass(frozen=True)
class Canvas:
    """A tree that is drawn in ``width`` inches, with rows of ``height`` inches."""

    view: View
    width: float
    height: float

    def x(self, level: float) -> float:
        """Inches from the left end."""
        return inches(self.view, level, self.width)

    def box(self, text: str, place: Place) -> Box:
        """Box of a label."""
        side, length = BESIDE * POINT, LETTER * len(text)
        left = self.x(place.level) + (-side - length if place.before else side)
        bottom = self.height * place.row - (ABOVE - 1 if place.above else BELOW - 2) * POINT
        return Box(left, left + length, bottom - HEIGHT, bottom)

    def edges(self) -> list[Box]:
        """Nodes of the tree, and the names of cell types at its right end."""
        dots = [(self.x(self.view.hierarchy.by_name[name].level), self.view.rows[name]) for name in self.view.opened]
        boxes = [Box(x - DOT, x + DOT, self.height * row - DOT, self.height * row + DOT) for x, row in dots]
        return [*boxes, Box(self.width, np.inf, -np.inf, np.inf)]

    def lines(self) -> Iterator[Box]:
        """Lines of the tree."""
        hierarchy, rows = self.view.hierarchy, self.view.rows
        for name, row in rows.items():
            y, end = self.height * row, hierarchy.by_name[name].level if name in self.view.opened else 0.0
            yield Box(self.x(hierarchy.segment(name).high), self.x(end), y, y)
        for node in self.view.opened:
            x, children = self.x(hierarchy.by_name[node].level), [rows[child] for child in hierarchy.children[node]]
            yield Box(x, x, self.height * min(children), self.height * max(children))


def label_branches(axis: Axes, canvas: Canvas, genes: dict[str, list[str]]) -> None:
    """Label branches with genes, and with their names the nodes that ``hierarchy`` had no room for.

    Parameters
    ----------
    genes
        Labels of the genes of each branch, the best first. Where there is no room for all, the first are drawn; where
        there is room for none, they are left out.
    """
    view = canvas.view
    nodes = node_labels(view, names=True)
    drawn = without_overlaps(nodes)
    texts = [canvas.box(of.text, Place(of.node.level, of.y, before=True, above=True)) for of in drawn]
    lines = list(canvas.lines())

    def draw(choices: Iterable[str], places: list[Place], style: Style) -> None:
        found = place_label(canvas, choices, places, [*canvas.edges(), *texts], lines)
        if found is None:
            return
        text, place = found
        texts.append(canvas.box(text, place))
        offset = (-BESIDE if place.before else BESIDE, ABOVE if place.above else BELOW)
        how: Style = {"textcoords": "offset points", "fontsize": 7, "path_effects": [HALO], **style}
        axis.annotate(text, (place.level, place.row), offset, ha="right" if place.before else "left", **how)

    for label in nodes:
        if label not in drawn:
            sides = [Place(label.node.level, label.y, before, above=True) for before in (True, False)]
            draw([label.text], sides, {"color": "#555"})
    for name in sorted(genes, key=lambda name: -view.hierarchy.segment(name).high):
        choices = [", ".join(genes[name][:n]) for n in range(len(genes[name]), 0, -1)]
        draw(choices, places_of(view, name), {"color": "#1d5c8f", "style": "italic"})


def places_of(view: View, name: str) -> list[Place]:
    """List where the genes of a branch may be, the best place first."""
    branch, row = view.hierarchy.by_name[name], view.rows[name]
    end = Place(branch.level, row, before=True, above=False)
    if name in view.opened:
        return [end, *(Place(branch.level, row, before=False, above=above) for above in (False, True))]
    # Other branches are long, or end in the point of a wedge, so that labels begin where they begin.
    high = view.hierarchy.segment(name).high
    return [*(Place(high, row, before=False, above=above) for above in (False, True)), end]


def place_label(
    canvas: Canvas, choices: Iterable[str], places: list[Place], covered: list[Box], lines: list[Box]
) -> tuple[str, Place] | None:
    """Choose a text and a place: the longest that covers nothing, else one across lines, else none."""
    found = [(text, place, canvas.box(text, place)) for text in choices for place in places]
    free = [(text, place, box) for text, place, box in found if box.left > 0 and not any(map(box.overlaps, covered))]
    clear = [(text, place) for text, place, box in free if not any(map(box.overlaps, lines))]
    return next(iter([*clear, *((text, place) for text, place, _ in free)]), None)
