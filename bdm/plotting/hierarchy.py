from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from bdm.hierarchy.tree import Hierarchy

BRANCH, POINT = "#3b4a63", "#d1701f"


def plot_hierarchy(hierarchy: Hierarchy, *, ax: Axes | None = None) -> Axes:
    """Draw the tree of cell types: noise level on the axis, cell types with their numbers, support at branch points.

    Read it from left, where noise hides all differences, to right, where each cell type is a type of its own.
    """
    if ax is None:
        ax = Figure(figsize=(8, 1.2 + 0.32 * len(hierarchy.cell_types)), layout="constrained").add_subplot()
    height = {cell_type: float(row) for row, cell_type in enumerate(hierarchy.cell_types)}
    for branch in reversed(hierarchy.branches):
        children = hierarchy.children[branch.name]
        if children:
            rows = [height[child] for child in children]
            height[branch.name] = (min(rows) + max(rows)) / 2
            ax.plot([branch.level] * 2, [min(rows), max(rows)], color=BRANCH, lw=1.6, solid_capstyle="round")
    for branch in hierarchy.branches:
        segment, row = hierarchy.segment(branch.name), height[branch.name]
        ax.plot([segment.high, segment.low], [row, row], color=BRANCH, lw=1.6, solid_capstyle="round")
        if hierarchy.children[branch.name]:
            ax.plot(branch.level, row, "o", color=POINT, ms=5, zorder=3)
            label = f"{branch.level:.1f}" + ("" if branch.support is None else f" · {branch.support:.0%}")
            ax.annotate(
                label, (branch.level, row), (-5, 4), textcoords="offset points", ha="right", fontsize=7, color="#555"
            )
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
