from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from bdm.hierarchy.tree import Hierarchy
from bdm.plotting.clades import branch_rows
from bdm.plotting.looks import BRANCH, POINT

HALO = withStroke(linewidth=3, foreground="white")  # keeps labels readable where they cross a branch


def plot_hierarchy(hierarchy: Hierarchy, *, ax: Axes | None = None, names: bool = False) -> Axes:
    """Draw the tree of cell types: noise level on the axis, cell types with their numbers, support at branch points.

    Read it from left, where noise hides all differences, to right, where each cell type is a type of its own.

    Parameters
    ----------
    names
        Name the branch points too.
    """
    if ax is None:
        ax = Figure(figsize=(8, 1.2 + 0.32 * len(hierarchy.cell_types)), layout="constrained").add_subplot()
    rows = branch_rows(hierarchy)
    for branch in hierarchy.branches:
        segment, row = hierarchy.segment(branch.name), rows[branch.name]
        ax.plot([segment.high, segment.low], [row, row], color=BRANCH, lw=1.6, solid_capstyle="round")
        children = [rows[child] for child in hierarchy.children[branch.name]]
        if children:
            ax.plot([branch.level] * 2, [min(children), max(children)], color=BRANCH, lw=1.6, solid_capstyle="round")
            ax.plot(branch.level, row, "o", color=POINT, ms=5, zorder=3)
            label = f"{branch.level:.1f}" + ("" if branch.support is None else f" · {branch.support:.0%}")
            label = f"{branch.name} · {label}" if names else label
            looks = {"ha": "right", "fontsize": 7, "color": "#555", "path_effects": [HALO]}
            ax.annotate(label, (branch.level, row), (-5, 4), textcoords="offset points", **looks)
    types = [f"{cell_type}  ({hierarchy.by_name[cell_type].n_cells:,})" for cell_type in hierarchy.cell_types]
    ax.set_yticks(range(len(types)), types)
    ax.yaxis.tick_right()
    ax.tick_params(axis="y", length=0)
    ax.set_xscale("asinh", linear_width=1)
    ax.set_xlim(hierarchy.sigma_max * 1.1, 0)
    ax.set_ylim(len(types) - 0.4, -0.6)
    ticks = [level for level in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if level <= hierarchy.sigma_max]
    ax.set_xticks(ticks, [str(tick) for tick in ticks])
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xlabel("noise level (within-type standard deviations)")
    ax.spines[["left", "right", "top"]].set_visible(False)
    ax.set_title("Hierarchy of cell types (branch points: level · support)", fontsize=10, loc="left")
    return ax
