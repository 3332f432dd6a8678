from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.interpret import Interpretation
from bdm.interpretation.markers import Dots
from bdm.plotting.clades import shortened
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import BRANCH, POINT
from bdm.plotting.markers import colorbar_aspect, draw_dots, explain_sizes, part_groups, shown_genes
from bdm.plotting.view import view_of

MAX_ENDS = 45


def hybrids_figure(interpretation: Interpretation, *, new: NewFigure = Figure) -> Figure:
    """Draw a dot plot of marker genes down the tree: in the hybrid at the end of each branch, and in real cells below.

    Size: share of cells with counts. Colour: mean of log1p(CP10k), as a share of the gene's largest in the panel. Of
    more branches than there is room for, those that leave the highest nodes are drawn.
    """
    hierarchy, markers = interpretation.hierarchy, interpretation.markers
    view = view_of(hierarchy, max_rows=MAX_ENDS)
    names = list(view.drawn)
    groups = shown_genes(markers, hierarchy)
    genes = [gene for group in groups for gene in group]
    width = max(0.21 * len(genes), 3.2)  # of a panel in inches, with room for its title
    figure = new(figsize=(6.5 + 2 * width, 2.8 + 0.24 * len(names)), layout="constrained")
    tree, *axes = figure.subplots(1, 3, sharey=True, width_ratios=[4.5, width, width])
    draw_outline(tree, hierarchy, names, opened=set(view.opened))
    shown = {"hybrids of the model": markers.hybrids, "real training cells below the branch": markers.clades}
    for axis, (title, dots) in zip(axes, shown.items(), strict=True):
        mean = dots.mean[genes]
        share = mean / mean.max().clip(lower=1e-9)
        points = draw_dots(axis, Dots(share.loc[names], dots.fraction.loc[names, genes]), interpretation.names.labels)
        part_groups(axis, groups)
        axis.set_title(title, fontsize=11)
    tree.set_ylim(len(names) - 0.4, -0.6)
    figure.colorbar(
        points, ax=axes, pad=0.01, aspect=colorbar_aspect(len(names)), label="share of the gene's largest mean"
    )
    explain_sizes(figure)
    return figure


def draw_outline(axis: Axes, hierarchy: Hierarchy, names: list[str], *, opened: set[str]) -> None:
    """Draw the tree as an outline: one row a branch, each below and to the right of its parent; some are not opened."""
    row = {name: i for i, name in enumerate(names)}
    depth: dict[str | None, int] = {None: -1}
    for name in names:
        branch = hierarchy.by_name[name]
        depth[name] = depth[branch.parent] + 1
        if branch.parent is not None:
            above = depth[branch.parent]
            axis.plot([above, above, above + 0.9], [row[branch.parent] + 0.3, row[name], row[name]], color="0.6", lw=1)
        leaf = not hierarchy.children[name]
        label = shortened(name, width=34) if leaf else f"{name} · {branch.level:.1f}"
        if not leaf and name not in opened:
            label += f" · {sum(1 for _ in hierarchy.leaves(name))} types"
        looks = {"fontsize": 8.5, "va": "center", "color": BRANCH if leaf else POINT}
        axis.text(depth[name] + (0.1 if leaf else -0.3), row[name], label, weight="normal" if leaf else "bold", **looks)
    deepest = max(depth[name] for name in names)
    axis.set_xlim(-0.6, deepest + max(6, 1.2 * deepest))
    axis.set_title("branch · level of its end", fontsize=9, loc="left")
    axis.set_axis_off()
