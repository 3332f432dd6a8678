"""The tree of cell types: which nodes are opened in a figure, the tree over noise levels, and its outline."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from matplotlib.axes import Axes

from bdm.api import BranchedDiffusion
from bdm.errors import InputError
from bdm.extension.results import ExtensionReport
from bdm.hierarchy.tree import PLACE_UNCERTAIN, Branch, Hierarchy
from bdm.interpretation.results import Interpretation
from bdm.plotting.style import (
    ADDED,
    BRANCH,
    HALO,
    NODE,
    NOISE_LEVEL,
    Style,
    axes_or_new,
    check_kind,
    clade_label,
    open_frame,
    scale_noise_levels,
    shortened,
    shown,
)

MAX_ROWS = 60


@dataclass(frozen=True)
class End:
    """Row of a drawn tree: a population, or a clade that is drawn as one: a cell type, or several.

    Attributes
    ----------
    branches
        The branch that ends here; several where siblings are too many for a row each.
    populations, cell_types
        All that are below.
    """

    branches: tuple[Branch, ...]
    populations: tuple[str, ...]
    cell_types: tuple[str, ...]

    @property
    def collapsed(self) -> bool:
        """Whether it stands for several cell types."""
        return len(self.cell_types) > 1

    @property
    def divided(self) -> bool:
        """Whether it stands for several sub-populations of one cell type."""
        return not self.collapsed and len(self.populations) > 1

    @property
    def name(self) -> str:
        """Name of the branch that ends here, or ``others``."""
        return self.branches[0].name if len(self.branches) == 1 else "others"

    @property
    def level(self) -> float:
        """Noise level at which the first of its populations separate."""
        return max(branch.level for branch in self.branches)

    @property
    def n_cells(self) -> int:
        """Cells below."""
        return sum(branch.n_cells for branch in self.branches)


@dataclass(frozen=True)
class View:
    """Part of a tree that is drawn: from a branch down to ends, each of which has a row.

    Attributes
    ----------
    opened
        Inner nodes whose children are drawn, parents first.
    ends
        From the first row to the last.
    """

    hierarchy: Hierarchy
    root: str
    opened: tuple[str, ...]
    ends: tuple[End, ...]

    @cached_property
    def rows(self) -> dict[str, float]:
        """Row of each branch that is drawn; of nodes, midway between their children's."""
        rows = {branch.name: float(row) for row, end in enumerate(self.ends) for branch in end.branches}
        for node in reversed(self.opened):
            children = [rows[child] for child in self.hierarchy.children[node]]
            rows[node] = (min(children) + max(children)) / 2
        return rows

    @cached_property
    def drawn(self) -> tuple[str, ...]:
        """Names of nodes that are opened, and of branches that have a row of their own, parents first."""
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
    """Choose what to draw of a tree in ``max_rows`` rows: the highest nodes are opened, and the others collapsed.

    Nodes above cell types that were added after extension ``since`` are opened first. Where a node has more children
    than there are rows, the small ones share one. A cell type has one row for all of its sub-populations, unless these
    are asked for, or ``root`` is the cell type or below it.

    Nodes at one level are drawn as one, see :func:`without_ties`.

    Raises
    ------
    InputError
        If the tree has no branch ``root``, or there are fewer than two rows.
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
    shown: dict[str, list[tuple[str, ...]]] = {}  # children of each opened node, siblings that share a row together
    below_type = sub_populations or hierarchy.by_name[root].cell_type is not None
    waiting, room = [root], max_rows - 1
    while waiting and room:
        node = max(waiting, key=lambda name: (name in above_new, hierarchy.by_name[name].level))
        waiting.remove(node)
        children = hierarchy.children[node]
        if not children or (hierarchy.by_name[node].cell_type is not None and not below_type):
            continue
        shown[node] = _sharing(hierarchy, children, room + 1, first=above_new)
        room -= len(shown[node]) - 1
        waiting += [group[0] for group in shown[node] if len(group) == 1]
    opened = tuple(branch.name for branch in hierarchy.branches if branch.name in shown)
    return View(hierarchy, root, opened, tuple(_ends(hierarchy, (root,), shown)))


def without_ties(hierarchy: Hierarchy, *, root: str) -> Hierarchy:
    """Leave out nodes that end at the level of the node above, whose children become children of that node.

    Most are at the least level, where cells do not show the order in which populations separate. The nodes of cell
    types are kept, and so is ``root``. This is for drawing: cells are generated by all nodes, as branches without
    length have no part in it, and the files of the tree have the support of each.
    """
    parent: dict[str, str | None] = {}  # of nodes that are left out
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


def _sharing(hierarchy: Hierarchy, children: Sequence[str], n_rows: int, *, first: set[str]) -> list[tuple[str, ...]]:
    """Divide children into ``n_rows`` groups at most, in their order; the last group holds the smallest children."""
    if len(children) <= n_rows:
        return [(child,) for child in children]
    by_size = sorted(children, key=lambda name: (name not in first, -hierarchy.by_name[name].n_cells))
    alone = set(by_size[: n_rows - 1])
    sharing = tuple(child for child in children if child not in alone)
    return [*((child,) for child in children if child in alone), sharing]


def _ends(hierarchy: Hierarchy, group: tuple[str, ...], shown: dict[str, list[tuple[str, ...]]]) -> list[End]:
    waiting, ends = [group], []
    while waiting:
        group = waiting.pop()
        if group[0] in shown:
            waiting.extend(reversed(shown[group[0]]))
        else:
            populations = tuple(leaf for name in group for leaf in hierarchy.leaves(name))
            cell_types = tuple(dict.fromkeys(t for name in group for t in hierarchy.types_below(name)))
            ends.append(End(tuple(hierarchy.by_name[name] for name in group), populations, cell_types))
    return ends


ROW, WIDTH = 0.32, 6.5  # inches of a row, and of the tree without the names of cell types
MAX_LETTERS = 100  # letters of a name
LETTER, SMALL_LETTER = 0.085, 0.055  # inches of a letter of a name, and of one at a node, about


def hierarchy(
    model: BranchedDiffusion | Interpretation | ExtensionReport | Hierarchy,
    *,
    root: str | None = None,
    names: bool = False,
    max_rows: int = MAX_ROWS,
    since: int | None = None,
    sub_populations: bool = False,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw the tree of cell types, with the noise level and the support of each node, and numbers of cells.

    Read it from left, where noise hides all differences, to right, where all cell types are separate. Where there are
    more cell types than rows, the types that separate at the lowest levels are drawn together, as a wedge with the name
    of their node. A thin wedge stands for the sub-populations of a cell type.

    Parameters
    ----------
    model
        A fitted or loaded model, or the hierarchy of one, or a result that has a hierarchy.
    root
        Draw only the clade below this branch; of a cell type, its sub-populations.
    names
        Label the nodes with their names too.
    max_rows
        Most rows; more cell types are drawn as clades.
    since
        Extension after which added types are highlighted, with a ``+`` before their name; by default all types that
        were added, and of an :class:`~bdm.ExtensionReport` the types of this extension.
    sub_populations
        Draw each sub-population of a cell type; by default a cell type has one row.

    Examples
    --------
    ::

        bdm.pl.hierarchy(model)
    """
    check_kind(model, BranchedDiffusion, Interpretation, ExtensionReport, Hierarchy)
    if since is None:
        since = model.n_before if isinstance(model, ExtensionReport) else 0
    tree = model if isinstance(model, Hierarchy) else model.hierarchy
    view = view_of(tree, root=root, max_rows=max_rows, since=since, sub_populations=sub_populations)
    axis = draw_hierarchy(view, names=names, since=since, ax=ax)
    return shown(axis, show=show, complete=ax is None)


def draw_hierarchy(view: View, *, names: bool = False, since: int = 0, ax: Axes | None = None) -> Axes:
    """Draw a part of a tree; see :func:`hierarchy`."""
    labels = [end_label(view.hierarchy, end, since=since) for end in view.ends]
    ax = axes_or_new(ax, WIDTH + LETTER * max(map(len, labels)), 1.4 + ROW * len(view.ends))
    hierarchy = view.hierarchy
    for row, end in enumerate(view.ends):
        draw_end(ax, hierarchy, end, row, is_new=any(branch.added > since for branch in end.branches))
    for name in view.opened:
        draw_node(ax, view, hierarchy.by_name[name], is_new=hierarchy.by_name[name].added > since)
    ax.yaxis.tick_right()
    ax.set_yticks(range(len(view.ends)), labels)
    for tick, end in zip(ax.get_yticklabels(), view.ends, strict=True):
        faint = end.collapsed or end.branches[0].place_uncertain
        tick.set_color(ADDED if n_added(hierarchy, end, since) else BRANCH if faint else "black")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(view.ends) - 0.4, -0.6)
    scale_noise_levels(ax, hierarchy.segment(view.root).high, margin=0.1)
    ax.set_xlabel(NOISE_LEVEL)
    open_frame(ax, "left")
    label_nodes(ax, view, names=names)
    ax.set_title(title_of(view, since=since), fontsize=10, loc="left")
    return ax


def title_of(view: View, *, since: int) -> str:
    """Name what is drawn, and explain its signs."""
    hierarchy = view.hierarchy
    root = shortened(view.root, width=60)
    below = "Sub-populations of" if hierarchy.by_name[view.root].cell_type == view.root else "Cell types below"
    shown = "Hierarchy of cell types" if view.root == hierarchy.root.name else f"{below} {root}"
    lines = [f"{shown} (nodes: level · support)"]
    if any(end.collapsed for end in view.ends):
        n_types = len(hierarchy.types_below(view.root))
        lines.append(f"{n_types:,} types in {len(view.ends)} rows; a wedge holds the types below its node")
    if any(end.divided for end in view.ends):
        lines.append("a thin wedge holds the sub-populations of a cell type, from where they separate")
    if any(n_added(hierarchy, end, since) for end in view.ends):
        lines.append("green, with +: added by extension")
    return "\n".join(lines)


def draw_end(ax: Axes, hierarchy: Hierarchy, end: End, row: int, *, is_new: bool) -> None:
    """Draw the branch of a population down to level 0, or a wedge from where the populations of a clade separate."""
    colour, high = ADDED if is_new else BRANCH, hierarchy.segment(end.branches[0].name).high
    ax.plot([high, end.level], [row, row], color=colour, lw=1.6, solid_capstyle="round")
    if len(end.populations) > 1:
        half = 0.36 if end.collapsed else 0.16
        ax.fill([end.level, 0, 0], [row, row - half, row + half], facecolor=colour, alpha=0.35, edgecolor=colour)


def draw_node(ax: Axes, view: View, node: Branch, *, is_new: bool) -> None:
    """Draw the branch that ends at a node, and the line that joins the children of the node."""
    row, high = view.rows[node.name], view.hierarchy.segment(node.name).high
    children = [view.rows[child] for child in view.hierarchy.children[node.name]]
    ax.plot([high, node.level], [row, row], color=BRANCH, lw=1.6, solid_capstyle="round")
    ax.plot([node.level] * 2, [min(children), max(children)], color=BRANCH, lw=1.6, solid_capstyle="round", zorder=1.5)
    ax.plot(node.level, row, "o", color=ADDED if is_new else NODE, ms=5, zorder=3)


def n_added(hierarchy: Hierarchy, end: End, since: int) -> int:
    """Count the cell types of a row that were added after an extension."""
    populations = map(hierarchy.populations_of, end.cell_types)
    return sum(all(hierarchy.by_name[name].added > since for name in names) for names in populations)


def end_label(hierarchy: Hierarchy, end: End, *, since: int) -> str:
    """Name a population, a cell type with the number of its sub-populations, or a clade of several; with the cells."""
    n_new, first = n_added(hierarchy, end, since), end.branches[0]
    if end.collapsed:
        new = f", +{n_new} added" if n_new else ""
        return f"{end.name}: {len(end.cell_types)} types{new}  ({end.n_cells:,})  {clade_label(end.cell_types)}"
    sign, divided = "+ " if n_new else "", f"{len(end.populations)} sub-populations"
    note = f", {PLACE_UNCERTAIN}" if first.place_uncertain else ""
    if not end.divided:
        nearer = f", nearer to {shortened(first.nearer_to)}" if first.nearer_to else ""
        return f"{sign}{shortened(first.name, width=MAX_LETTERS)}  ({end.n_cells:,}{nearer}{note})"
    if end.name == first.cell_type:
        return f"{sign}{shortened(end.name, width=MAX_LETTERS)}  ({divided}, {end.n_cells:,}{note})"
    return f"{end.name}: {divided}  ({end.n_cells:,})  {clade_label(end.populations)}"


def n_below(hierarchy: Hierarchy, name: str) -> str:
    """Count the cell types below a branch, or its populations where they are of one type."""
    n_types, n_populations = len(hierarchy.types_below(name)), sum(1 for _ in hierarchy.leaves(name))
    return f"{n_types} types" if n_types > 1 else f"{n_populations} sub-populations"


@dataclass(frozen=True)
class Label:
    """Text before a node; it ends ``x`` inches from the axis' left end, and ``y`` rows from its top."""

    node: Branch
    text: str
    x: float
    y: float

    def overlaps(self, other: "Label") -> bool:
        """Whether two labels would be printed over each other, about."""
        left, right = sorted((self, other), key=lambda label: label.x)
        return abs(self.y - other.y) < 0.36 and right.x - SMALL_LETTER * len(right.text) < left.x


def label_nodes(ax: Axes, view: View, *, names: bool) -> None:
    """Label nodes with their level and support; where labels would overlap, only the nodes of the highest levels."""
    style: Style = {"ha": "right", "fontsize": 7, "color": "#555", "path_effects": [HALO]}
    for label in without_overlaps(node_labels(view, names=names)):
        ax.annotate(label.text, (label.node.level, label.y), (-5, 4), textcoords="offset points", **style)


def inches(view: View, level: float, width: float) -> float:
    """Distance of a noise level from the left end of a tree that is drawn in ``width`` inches, about."""
    top = np.arcsinh(view.hierarchy.segment(view.root).high * 1.1) or 1.0
    return float(width * (1 - np.arcsinh(level) / top))


def node_labels(view: View, *, names: bool) -> list[Label]:
    """Labels of all nodes that are drawn, the highest first."""
    labels = []
    for name in view.opened:
        node = view.hierarchy.by_name[name]
        text = f"{node.level:.1f}" + ("" if node.support is None else f" · {node.support:.0%}")
        x = inches(view, node.level, WIDTH)
        named = f"{shortened(name, width=30)} · {text}" if names or name == node.cell_type else text
        labels.append(Label(node, named, x, view.rows[name]))
    return sorted(labels, key=lambda label: -label.node.level)


def without_overlaps(labels: Iterable[Label]) -> list[Label]:
    """Leave out labels that overlap an earlier one."""
    chosen: list[Label] = []
    for label in labels:
        if not any(map(label.overlaps, chosen)):
            chosen.append(label)
    return chosen


def draw_outline(axis: Axes, hierarchy: Hierarchy, names: list[str], *, opened: set[str]) -> None:
    """Draw the tree as an outline with one row a branch, below and to the right of its parent.

    Parameters
    ----------
    names
        Branches to draw, parents first.
    opened
        Nodes whose children are drawn; the other nodes show the number of their cell types or sub-populations.
    """
    row = {name: i for i, name in enumerate(names)}
    depth: dict[str | None, int] = {None: -1}
    for name in names:
        branch = hierarchy.by_name[name]
        depth[name] = depth[branch.parent] + 1
        leaf = not hierarchy.children[name]
        if branch.parent is not None:
            above, end = depth[branch.parent], depth[name] - (0.1 if leaf else 0.4)  # before the label
            axis.plot([above, above, end], [row[branch.parent] + 0.3, row[name], row[name]], color="0.6", lw=1)
        label = shortened(name, width=34) if leaf else f"{shortened(name, width=34)} · {branch.level:.1f}"
        if not leaf and name not in opened:
            label += f" · {n_below(hierarchy, name)}"
        style: Style = {"fontsize": 8.5, "va": "center", "color": BRANCH if leaf else NODE}
        axis.text(depth[name] + (0.1 if leaf else -0.3), row[name], label, weight="normal" if leaf else "bold", **style)
    deepest = max(depth[name] for name in names)
    axis.set_xlim(-0.6, deepest + max(6, 1.2 * deepest))
    axis.set_title("branch · level of its end", fontsize=9, loc="left")
    axis.set_axis_off()
