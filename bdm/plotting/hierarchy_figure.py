"""Figure of the tree of cell types over noise levels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import copysign
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from bdm._core.errors import InputError, abbreviated, counted, printable
from bdm.hierarchy.tree import MIN_PLACE, PLACE_UNCERTAIN, Branch, Hierarchy
from bdm.plotting.style import (
    ADDED,
    BRANCH,
    HALO,
    LETTER,
    NODE,
    NOISE_LEVEL,
    Style,
    axes_or_new,
    check_class,
    clade_label,
    draws,
    open_frame,
    scale_noise_levels,
    shortened,
)

if TYPE_CHECKING:
    from bdm.api import BranchedDiffusion
    from bdm.applications.extension.extend import ExtensionReport
    from bdm.interpretation.interpretation import Interpretation

MAX_ROWS = 60


@dataclass(frozen=True)
class End:
    """Row of a drawn tree: a population, or a collapsed clade."""

    branches: tuple[Branch, ...]  # several if siblings share a row
    populations: tuple[str, ...]
    cell_types: tuple[str, ...]
    name: str  # of the branch, or ``others`` for several
    high: float  # noise level at which its branches begin
    level: float  # highest noise level at which its populations separate
    n_cells: int
    is_new: bool  # whether it is a cell type to highlight as added

    @property
    def collapsed(self) -> bool:
        """Whether the row holds several cell types."""
        return len(self.cell_types) > 1

    @property
    def divided(self) -> bool:
        """Whether the row holds several sub-populations of one cell type."""
        return not self.collapsed and len(self.populations) > 1

    @property
    def half_width(self) -> float:
        """Half the width of the wedge, in rows; 0 for a single population."""
        return 0.36 if self.collapsed else 0.16 if self.divided else 0.0


@dataclass(frozen=True)
class View:
    """Part of a tree to draw, from one branch down to the rows."""

    hierarchy: Hierarchy
    root: str
    opened: tuple[str, ...]  # nodes with visible children, parents first
    ends: tuple[End, ...]
    since: int  # types and nodes added after this extension are highlighted

    @cached_property
    def rows(self) -> dict[str, float]:
        """Row of each visible branch; nodes are midway between their children."""
        rows = {branch.name: float(row) for row, end in enumerate(self.ends) for branch in end.branches}
        for node in reversed(self.opened):
            children = [rows[child] for child in self.hierarchy.children[node]]
            rows[node] = (min(children) + max(children)) / 2
        return rows

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """Names of opened nodes and of branches with a separate row, parents first."""
        ends = {end.branches[0].name for end in self.ends if len(end.branches) == 1}
        return tuple(branch.name for branch in self.hierarchy.branches if branch.name in ends.union(self.opened))


def view_of(
    hierarchy: Hierarchy,
    *,
    root: str | None = None,
    max_rows: int = MAX_ROWS,
    since: int = 0,
    sub_populations: bool = False,
) -> View:
    """Select the part of a tree to draw in at most ``max_rows`` rows.

    The highest nodes are opened, and lower ones collapsed. Nodes above cell types that were added after extension
    ``since`` are opened first. If a node has too many children, the small ones share a row. A cell type has one row,
    unless ``sub_populations`` are requested, or ``root`` is the cell type or below it.
    """
    root = hierarchy.root.name if root is None else root
    if root not in hierarchy.by_name:
        raise InputError(f"The tree has no branch {root!r}; its nodes are node 1, node 2, and so on.")
    hierarchy = without_ties(hierarchy, root=root)
    if max_rows < 2:
        raise InputError(f"max_rows is {max_rows}, but a tree needs two or more.")
    above_new = {
        above.name for branch in hierarchy.branches if branch.added > since for above in hierarchy.lineage(branch.name)
    }
    shown: dict[str, list[tuple[str, ...]]] = {}  # groups of children of each opened node, one row per group
    below_type = sub_populations or hierarchy.by_name[root].cell_type is not None
    waiting, room = [root], max_rows - 1
    while waiting and room:
        node = max(waiting, key=lambda name: (name in above_new, hierarchy.by_name[name].level))
        waiting.remove(node)
        children = hierarchy.children[node]
        if not children or (hierarchy.by_name[node].cell_type is not None and not below_type):
            continue
        shown[node] = group_rows(hierarchy, children, room + 1, first=above_new)
        room -= len(shown[node]) - 1
        waiting += [group[0] for group in shown[node] if len(group) == 1]
    opened = tuple(branch.name for branch in hierarchy.branches if branch.name in shown)
    return View(hierarchy, root, opened, tuple(collect_ends(hierarchy, (root,), shown, since=since)), since)


def without_ties(hierarchy: Hierarchy, *, root: str) -> Hierarchy:
    """Remove nodes at the level of their parent; their order is not estimated.

    Cell types and ``root`` stay.
    """
    parent: dict[str, str | None] = {}  # of removed nodes
    kept = []
    for branch in hierarchy.branches:
        above = branch.parent
        while above is not None and above in parent:
            above = parent[above]
        tied = above is not None and branch.level == hierarchy.by_name[above].level and hierarchy.children[branch.name]
        if tied and branch.name not in (root, branch.cell_type):
            parent[branch.name] = above
        else:
            kept.append(replace(branch, parent=above))
    return replace(hierarchy, branches=tuple(kept))


def group_rows(hierarchy: Hierarchy, children: Sequence[str], n_rows: int, *, first: set[str]) -> list[tuple[str, ...]]:
    """Group children into at most ``n_rows`` rows, in their order.

    The last row holds the smallest children; names in ``first`` count as the largest.
    """
    if len(children) <= n_rows:
        return [(child,) for child in children]
    by_size = sorted(children, key=lambda name: (name not in first, -hierarchy.by_name[name].n_cells))
    alone = set(by_size[: n_rows - 1])
    sharing = tuple(child for child in children if child not in alone)
    return [*((child,) for child in children if child in alone), sharing]


def collect_ends(
    hierarchy: Hierarchy, group: tuple[str, ...], shown: dict[str, list[tuple[str, ...]]], *, since: int = 0
) -> list[End]:
    """Collect the rows below a group of branches, in the order of the tree."""
    waiting, ends = [group], []
    while waiting:
        group = waiting.pop()
        if group[0] in shown:
            waiting.extend(reversed(shown[group[0]]))
        else:
            populations = tuple(leaf for name in group for leaf in hierarchy.leaves(name))
            cell_types = tuple(dict.fromkeys(t for name in group for t in hierarchy.types_below(name)))
            branches = tuple(hierarchy.by_name[name] for name in group)
            name, high = group[0] if len(group) == 1 else "others", hierarchy.segment(group[0]).high
            level, n_cells = max(branch.level for branch in branches), sum(branch.n_cells for branch in branches)
            is_new = len(cell_types) == 1 and all(branch.added > since for branch in branches)
            ends.append(End(branches, populations, cell_types, name, high, level, n_cells, is_new))
    return ends


ROW, WIDTH = 0.32, 6.5  # inches of a row, and of the tree without names
MAX_LETTERS = 100  # of a name
GENES: Style = {"color": "#1d5c8f", "style": "italic"}
SMALL_LETTER, SMALL_LINE = 0.06, 0.125  # approximate inches of a letter and of a line at a node
BESIDE, ABOVE = 0.07, 0.09  # inches from node to label, and from branch to the middle of the label


@draws(Hierarchy, "hierarchy", of=lambda model: model)
def hierarchy(
    model: "BranchedDiffusion | Hierarchy | Interpretation | ExtensionReport",
    *,
    root: str | None = None,
    names: bool = False,
    max_rows: int = MAX_ROWS,
    since: int | None = None,
    sub_populations: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw the tree of cell types, with the noise level and support of nodes.

    At the left, noise hides all differences; at the right, all cell types are separate. With more cell types than rows,
    the types that separate at the lowest levels are drawn as a wedge with the name of their node. A thin wedge holds
    the sub-populations of a cell type. Saved as SVG, the figure has tooltips with the facts of each branch.

    Parameters
    ----------
    model
        A fitted model, its hierarchy, or a result with a hierarchy.
    root
        Draw only the clade below this branch; for a cell type, its sub-populations.
    names
        Whether to label nodes with their names.
    max_rows
        Maximum number of rows; further cell types are drawn as clades.
    since
        Highlight types added after this extension, with a ``+`` before their name. By default, all added types; for an
        :class:`~bdm.ExtensionReport`, the types of this extension.
    sub_populations
        Whether to draw each sub-population; by default, a cell type has one row.

    Examples
    --------
    ::

        bdm.pl.hierarchy(model)
        bdm.pl.hierarchy(model, root="node 7", show=False).figure.savefig("clade.svg")
    """
    tree = check_class(getattr(model, "hierarchy", model), Hierarchy)
    if since is None:
        since = getattr(model, "n_before", 0)
    view = view_of(tree, root=root, max_rows=max_rows, since=since, sub_populations=sub_populations)
    return draw_hierarchy(view, names=names, ax=ax)


def draw_hierarchy(
    view: View,
    *,
    names: bool = False,
    genes: Mapping[str, Sequence[str]] | None = None,
    width: float = WIDTH,
    row_height: float = ROW,
    ax: Axes | None = None,
) -> Axes:
    """Draw part of a tree, with genes of branches; sizes are in inches."""
    hierarchy, genes = view.hierarchy, genes or {}
    labels = [*map(label_end, view.ends)]
    ax = axes_or_new(ax, width + LETTER * max(map(len, labels)), 1.4 + row_height * len(view.ends))
    for row, end in enumerate(view.ends):
        draw_end(ax, end, row)
        if end.name in genes:
            coordinates, style = ax.get_yaxis_transform(), {"fontsize": 7, "va": "center", **GENES}
            ax.annotate(
                ", ".join(genes[end.name]), (1, row), (7, -12), coordinates, textcoords="offset points", **style
            )
    for name in view.opened:
        draw_node(ax, view, hierarchy.by_name[name])
    ax.yaxis.tick_right()
    ax.set_yticks(range(len(view.ends)), labels)
    for tick, end in zip(ax.get_yticklabels(), view.ends, strict=True):
        faint = end.collapsed or end.branches[0].place_uncertain
        tick.set_color(ADDED if end.is_new else BRANCH if faint else "black")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(view.ends) - 0.4, -0.6)
    scale_noise_levels(ax, hierarchy.segment(view.root).high, margin=0.1)
    ax.set_xlabel(NOISE_LEVEL)
    open_frame(ax, "left")
    for label in placed_labels(view, names=names, genes=genes, width=width, row_height=row_height):
        offset = (-5 if label.before else 5, 9 * label.line - (5 if label.line > 0 else 0))
        style = {"fontsize": 7, "path_effects": [HALO], "color": "#555", **(GENES if label.of_genes else {})}
        style |= {"ha": "right" if label.before else "left", "textcoords": "offset points"}
        ax.annotate(label.text, (label.level, label.row), offset, **style)
    ax.add_artist(Tooltips(view, ax))
    ax.set_title(write_title(view, names=names, genes=bool(genes)), fontsize=10, loc="left")
    return ax


def write_title(view: View, *, names: bool, genes: bool) -> str:
    """Write the title, with a legend of the symbols."""
    hierarchy = view.hierarchy
    below = "Sub-populations of" if hierarchy.by_name[view.root].cell_type == view.root else "Cell types below"
    whole = view.root == hierarchy.root.name
    shown = "Hierarchy of cell types" if whole else f"{below} {shortened(view.root, width=60)}"
    lines = [f"{shown} (nodes: {'name · ' if names else ''}level · support)"]
    if genes:
        lines[0] += " with the best marker genes of each branch"
    if any(end.collapsed for end in view.ends):
        n_types = len(hierarchy.types_below(view.root))
        lines.append(f"{n_types:,} types in {len(view.ends)} rows; a wedge holds the types below its node")
    if any(end.divided for end in view.ends):
        lines.append("a thin wedge holds the sub-populations of a cell type, from where they separate")
    if any(end.is_new for end in view.ends):
        lines.append("green, with +: added by extension")
    if any(PLACE_UNCERTAIN in label_end(end) for end in view.ends):
        lines.append(f"place uncertain: few cells, elsewhere in the tree in more than {1 - MIN_PLACE:.0%} of resamples")
    return "\n".join(lines)


def draw_end(ax: Axes, end: End, row: int) -> None:
    """Draw the branch of a population, or the wedge of a clade."""
    colour = ADDED if end.is_new else BRANCH
    ax.plot([end.high, end.level], [row, row], color=colour, lw=1.6, solid_capstyle="round")
    if half := end.half_width:
        ax.fill([end.level, 0, 0], [row, row - half, row + half], facecolor=colour, alpha=0.35, edgecolor=colour)


def draw_node(ax: Axes, view: View, node: Branch) -> None:
    """Draw a node, its branch, and the line that joins its children."""
    row, high = view.rows[node.name], view.hierarchy.segment(node.name).high
    children = [view.rows[child] for child in view.hierarchy.children[node.name]]
    ax.plot([high, node.level], [row, row], color=BRANCH, lw=1.6, solid_capstyle="round")
    ax.plot([node.level] * 2, [min(children), max(children)], color=BRANCH, lw=1.6, solid_capstyle="round", zorder=1.5)
    ax.plot(node.level, row, "o", color=ADDED if node.added > view.since else NODE, ms=5, zorder=3)


def label_end(end: End) -> str:
    """Label a row with its name, number of cells, and notes."""
    first, sign = end.branches[0], "+ " if end.is_new else ""
    if end.collapsed:
        return f"{end.name}: {len(end.cell_types)} types  ({end.n_cells:,})  {clade_label(end.cell_types)}"
    divided = f"{len(end.populations)} sub-populations"
    note = f", {PLACE_UNCERTAIN}" if first.place_uncertain else ""
    if not end.divided:
        nearer = f", nearer to {shortened(first.nearer_to)}" if first.nearer_to else ""
        return f"{sign}{shortened(first.name, width=MAX_LETTERS)}  ({end.n_cells:,}{nearer}{note})"
    if end.name == first.cell_type:
        return f"{sign}{shortened(end.name, width=MAX_LETTERS)}  ({divided}, {end.n_cells:,}{note})"
    return f"{end.name}: {divided}  ({end.n_cells:,})  {clade_label(end.populations)}"


@dataclass(frozen=True)
class Label:
    """Text at a node, before or after it, and above or below its branch."""

    text: str
    level: float
    row: float
    before: bool  # left of the node
    line: int  # 1 or 2 above the branch, -1 or -2 below
    of_genes: bool


Box: TypeAlias = tuple[float, float, float, float]  # left, right, top, bottom; inches from the top left

PLACES = [(before, line) for before in (True, False) for line in (1, -1, 2, -2)]  # in order of preference


def placed_labels(
    view: View, *, names: bool, genes: Mapping[str, Sequence[str]], width: float = WIDTH, row_height: float = ROW
) -> list[Label]:
    """Place the labels of nodes without overlaps, the highest nodes first.

    Every node gets its level and support, shortened to fit, before any node gets as many genes as fit.
    """
    nodes = sorted((view.hierarchy.by_name[name] for name in view.opened), key=lambda node: -node.level)
    candidates = [(node, write_texts(node, names=names), False) for node in nodes]
    for node in nodes:
        words = genes.get(node.name, ())
        candidates.append((node, [", ".join(words[:n]) for n in range(len(words), 0, -1)], True))
    labels: list[Label] = []
    top = np.arcsinh(view.hierarchy.segment(view.root).high * 1.1) or 1.0

    def position(level: float) -> float:
        """Return the x position of a noise level, in inches from the left."""
        return float(width * (1 - np.arcsinh(level) / top))

    boxes = collect_boxes(view, position, width=width, row_height=row_height)
    for node, texts, of_genes in candidates:
        x, row = position(node.level), view.rows[node.name]
        for text, (before, line) in product(texts, PLACES):
            length = SMALL_LETTER * len(text)
            left = x - BESIDE - length if before else x + BESIDE
            middle = row_height * row - copysign(ABOVE + SMALL_LINE * (abs(line) - 1), line)
            box = (left, left + length, middle - SMALL_LINE / 2, middle + SMALL_LINE / 2)
            if (before or box[1] < width) and not any(overlap(box, occupied) for occupied in boxes):
                labels.append(Label(text, node.level, row, before, line, of_genes))
                boxes.append(box)
                break
    return labels


def collect_boxes(view: View, position: Callable[[float], float], *, width: float, row_height: float) -> list[Box]:
    """Return the bounding boxes of nodes, lines and wedges."""
    boxes: list[Box] = []
    for name in view.opened:
        x, y = position(view.hierarchy.by_name[name].level), row_height * view.rows[name]
        children = [row_height * view.rows[child] for child in view.hierarchy.children[name]]
        boxes.append((x - BESIDE / 2, x + BESIDE / 2, y - BESIDE / 2, y + BESIDE / 2))
        boxes.append((position(view.hierarchy.segment(name).high), x, y, y))
        boxes.append((x, x, min(children), max(children)))
    for row, end in enumerate(view.ends):
        y, half = row_height * row, row_height * end.half_width
        boxes.append((position(end.high), width, y - half, y + half))
    return boxes


def overlap(a: Box, b: Box) -> bool:
    """Return whether two boxes overlap; touching sides do not count."""
    return a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3]


def write_texts(node: Branch, *, names: bool) -> list[str]:
    """Write name, level and support of a node, then shorter versions.

    The name is included if requested, and for cell types.
    """
    words = [shortened(node.name, width=30)] if names or node.name == node.cell_type else []
    words += [f"{node.level:.1f}", *([] if node.support is None else [f"{node.support:.0%}"])]
    return [" · ".join(words[:n]) for n in range(len(words), 0, -1)]


class Tooltips(Artist):
    """Transparent rectangles over rows and nodes, whose titles browsers show as tooltips; only in SVG."""

    def __init__(self, view: View, ax: Axes) -> None:
        super().__init__()
        self.view, self.ax = view, ax
        self.set_in_layout(False)

    def draw(self, renderer: Any) -> None:
        """Write a rectangle from the start of each branch to its node, or to the end of its row."""
        if not hasattr(renderer, "writer"):
            return
        view, to_points = self.view, self.ax.transData.transform
        labels_end = max(label.get_window_extent(renderer).x1 for label in self.ax.get_yticklabels())
        nodes = [collect_ends(view.hierarchy, (name,), {})[0] for name in view.opened]
        for end in (*view.ends, *nodes):
            row = view.rows[end.branches[0].name]
            (left, top), (right, bottom) = to_points([(end.high, row - 0.5), (end.level, row + 0.5)])
            right = right + 4 if end in nodes else labels_end
            size = {"width": f"{right - left:.1f}", "height": f"{top - bottom:.1f}"}
            place = {"x": f"{left:.1f}", "y": f"{renderer.height - top:.1f}", **size}
            renderer.writer.start("rect", place, style="fill-opacity: 0")
            renderer.writer.element("title", write_tooltip(end))
            renderer.writer.end("rect")


def write_tooltip(end: End) -> str:
    """Write name, level, support and number of cells, then types and notes, a fact in each line."""
    first, alone, several = end.branches[0], len(end.branches) == 1, len(end.populations) > 1
    noun, names = ("types", end.cell_types) if end.collapsed else ("sub-populations", end.populations)
    facts = (
        end.name,
        several and f"noise level {end.level:.1f}",
        alone and first.support is not None and f"support {first.support:.0%}",
        counted(end.n_cells, "cell"),
        several and f"{len(names):,} {noun}: {abbreviated(names, n_shown=10)}",
        alone and first.nearer_to and f"nearer to {first.nearer_to}",
        alone and first.place_uncertain and PLACE_UNCERTAIN,
        alone and first.added and "added by extension",
    )
    return "\n".join(printable(fact) for fact in facts if fact)
