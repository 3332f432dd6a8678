from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.plotting.clades import clade_label, shortened
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import ADDED, BRANCH, POINT
from bdm.plotting.view import MAX_ROWS, End, View, view_of

HALO = withStroke(linewidth=3, foreground="white")  # keeps labels readable where they cross a branch
ROW, WIDTH = 0.32, 6.5  # inches of a row, and of the tree without the names of cell types
WIDEST = 100  # letters of a name
LETTER, SMALL_LETTER = 0.085, 0.055  # inches of a letter of a name, and of one at a branch point, about


def plot_hierarchy(
    hierarchy: Hierarchy,
    *,
    ax: Axes | None = None,
    new: NewFigure = Figure,
    names: bool = False,
    root: str | None = None,
    max_rows: int = MAX_ROWS,
    since: int = 0,
) -> Axes:
    """Draw the tree of cell types: noise level on the axis, cell types with their numbers, support at branch points.

    Read it from left, where noise hides all differences, to right, where each cell type is a type of its own. Of more
    cell types than there are rows, those that part at least noise are drawn together, as a wedge that has the name
    of their node.

    Parameters
    ----------
    names
        Name the branch points too.
    root
        Draw only the clade below this branch.
    max_rows
        Most cell types and wedges to draw.
    since
        Branches that were added after this extension are highlighted, with a ``+`` before their name.
    """
    view = view_of(hierarchy, root=root, max_rows=max_rows, since=since)
    names_of_ends = [end_label(hierarchy, end, since=since) for end in view.ends]
    if ax is None:
        width = WIDTH + LETTER * max(map(len, names_of_ends))
        ax = new(figsize=(width, 1.4 + ROW * len(view.ends)), layout="constrained").add_subplot()
    for row, end in enumerate(view.ends):
        draw_end(ax, hierarchy, end, row, new=any(branch.added > since for branch in end.branches))
    for node in view.opened:
        draw_node(ax, view, hierarchy.by_name[node], new=hierarchy.by_name[node].added > since)
    ax.yaxis.tick_right()
    ax.set_yticks(range(len(view.ends)), names_of_ends)
    for tick, end in zip(ax.get_yticklabels(), view.ends, strict=True):
        tick.set_color(ADDED if n_added(hierarchy, end, since) else BRANCH if end.collapsed else "black")
    ax.tick_params(axis="y", length=0)
    top = hierarchy.segment(view.root).high
    ax.set_xscale("asinh", linear_width=1)
    ax.set_xlim(top * 1.1, 0)
    ax.set_ylim(len(view.ends) - 0.4, -0.6)
    ticks = [level for level in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if level <= top]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("noise level (within-type standard deviations)")
    ax.spines[["left", "right", "top"]].set_visible(False)
    label_nodes(ax, view, names=names)
    ax.set_title(title_of(view, since=since), fontsize=10, loc="left")
    return ax


def title_of(view: View, *, since: int) -> str:
    """Tell what is drawn, and what its signs are."""
    hierarchy = view.hierarchy
    root = shortened(view.root, width=60)
    shown = "Hierarchy of cell types" if view.root == hierarchy.root.name else f"Cell types below {root}"
    lines = [f"{shown} (branch points: level · support)"]
    if any(end.collapsed for end in view.ends):
        n_types = sum(len(end.cell_types) for end in view.ends)
        lines.append(f"{n_types:,} types in {len(view.ends)} rows; a wedge holds those below its node")
    if any(n_added(hierarchy, end, since) for end in view.ends):
        lines.append("green, with +: added by extension")
    return "\n".join(lines)


def draw_end(ax: Axes, hierarchy: Hierarchy, end: End, row: int, *, new: bool) -> None:
    """Draw the way of a cell type down to level 0, or a wedge from where a clade's types part."""
    colour, high = ADDED if new else BRANCH, hierarchy.segment(end.branches[0].name).high
    ax.plot([high, end.level], [row, row], color=colour, lw=1.6, solid_capstyle="round")
    if end.collapsed:
        ax.fill([end.level, 0, 0], [row, row - 0.36, row + 0.36], facecolor=colour, alpha=0.35, edgecolor=colour)


def draw_node(ax: Axes, view: View, node: Branch, *, new: bool) -> None:
    """Draw the way down to a branch point, and the line that joins its children."""
    row, high = view.rows[node.name], view.hierarchy.segment(node.name).high
    children = [view.rows[child] for child in view.hierarchy.children[node.name]]
    ax.plot([high, node.level], [row, row], color=BRANCH, lw=1.6, solid_capstyle="round")
    ax.plot([node.level] * 2, [min(children), max(children)], color=BRANCH, lw=1.6, solid_capstyle="round", zorder=1.5)
    ax.plot(node.level, row, "o", color=ADDED if new else POINT, ms=5, zorder=3)


def n_added(hierarchy: Hierarchy, end: End, since: int) -> int:
    """Count the cell types of a row that were added after an extension."""
    return sum(hierarchy.by_name[cell_type].added > since for cell_type in end.cell_types)


def end_label(hierarchy: Hierarchy, end: End, *, since: int) -> str:
    """Name a cell type, or what a wedge holds, with the number of cells."""
    n_new = n_added(hierarchy, end, since)
    if not end.collapsed:
        return f"{'+ ' if n_new else ''}{shortened(end.cell_types[0], width=WIDEST)}  ({end.n_cells:,})"
    node = end.branches[0].name if len(end.branches) == 1 else "others"
    new = f", +{n_new} added" if n_new else ""
    return f"{node}: {len(end.cell_types)} types{new}  ({end.n_cells:,})  {clade_label(end.cell_types)}"


@dataclass(frozen=True)
class Label:
    """Text before a branch point; it ends ``x`` inches from the axis' left end, and ``y`` rows from its top."""

    node: Branch
    text: str
    x: float
    y: float

    def overlaps(self, other: "Label") -> bool:
        """Whether two labels would be printed over each other, about."""
        left, right = sorted((self, other), key=lambda label: label.x)
        return abs(self.y - other.y) < 0.36 and right.x - SMALL_LETTER * len(right.text) < left.x


def label_nodes(ax: Axes, view: View, *, names: bool) -> None:
    """Tell level and support at branch points; where labels would overlap, only those of the highest levels."""
    looks = {"ha": "right", "fontsize": 7, "color": "#555", "path_effects": [HALO]}
    for label in apart(labels_of(view, names=names)):
        place = label.node.level, label.y
        ax.annotate(label.text, place, (-5, 4), textcoords="offset points", **looks)


def labels_of(view: View, *, names: bool) -> list[Label]:
    """Labels of all branch points that are drawn, the highest first."""
    top = np.arcsinh(view.hierarchy.segment(view.root).high * 1.1) or 1.0
    labels = []
    for name in view.opened:
        node = view.hierarchy.by_name[name]
        text = f"{node.level:.1f}" + ("" if node.support is None else f" · {node.support:.0%}")
        x = WIDTH * (1 - np.arcsinh(node.level) / top)
        labels.append(Label(node, f"{name} · {text}" if names else text, x, view.rows[name]))
    return sorted(labels, key=lambda label: -label.node.level)


def apart(labels: Iterable[Label]) -> list[Label]:
    """Leave out labels that overlap with one before them."""
    chosen: list[Label] = []
    for label in labels:
        if not any(map(label.overlaps, chosen)):
            chosen.append(label)
    return chosen
