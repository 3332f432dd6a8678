import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from bdm.interpretation.interpret import ContrastGenes, Interpretation
from bdm.plotting.clades import clade_label, gene_label, highest
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import MODEL, POINT

MAX_PANELS, N_COLUMNS = 12, 4
LEVEL_LINE = {"color": POINT, "linewidth": 1, "linestyle": ":"}
SIDES = {"child": MODEL["color"], "its siblings": "#D55E00", "other cell types": "0.8"}


def paths_figure(interpretation: Interpretation, *, new: NewFigure = Figure) -> Figure:
    """Draw the average path of each cell type through the noise levels, for the gene that marks a branch most.

    Of more branches than there is room for, those that leave the highest nodes are drawn.
    """
    shown = highest(list(interpretation.contrasts), MAX_PANELS, level=lambda of: of.contrast.level)
    n_rows = -(-len(shown) // N_COLUMNS)
    figure = new(figsize=(15, 0.8 + 2.6 * n_rows), layout="constrained")
    axes = figure.subplots(n_rows, N_COLUMNS, squeeze=False, sharex=True)
    for axis, of in zip(axes.flat, shown, strict=False):
        draw_paths(axis, of, interpretation)
    for axis in axes.flat[len(shown) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("CP10k", fontsize=8)
    figure.supxlabel("noise level (within-type standard deviations)", fontsize=9)
    keys = [Line2D([], [], color=colour, label=side) for side, colour in SIDES.items()]
    keys.append(Line2D([], [], label="level of the node", **LEVEL_LINE))
    title = "Mean expression that the model expects of each cell type on its way from noise"
    figure.legend(handles=keys, title=title, loc="outside upper center", ncols=4, frameon=False)
    return figure


def draw_paths(axis: Axes, of: ContrastGenes, interpretation: Interpretation) -> None:
    """Draw the staircase of each cell type, for the best gene of one branch."""
    hierarchy, contrast = interpretation.hierarchy, of.contrast
    gene = np.argmin(of.model.rank)
    expression = interpretation.hybrids.expression.iloc[:, gene]
    sides = {"other cell types": hierarchy.cell_types, "its siblings": contrast.outside, "child": contrast.inside}
    for side, cell_types in sides.items():
        for cell_type in cell_types:
            path = hierarchy.path(cell_type)
            levels = [path[0].high, *(segment.low for segment in path)]
            values = [expression[segment.branch] for segment in path]
            axis.step(levels, [*values, values[-1]], where="post", color=SIDES[side], linewidth=1.4)
    axis.axvline(contrast.level, **LEVEL_LINE)
    axis.set_xscale("asinh", linear_width=1)
    axis.set_yscale("asinh", linear_width=1)
    axis.set_ylim(bottom=0)
    axis.set_yticks([value for value in (0, 1, 10, 100, 1000) if value <= axis.get_ylim()[1]])
    axis.yaxis.set_major_formatter("{x:g}")
    axis.set_xlim(hierarchy.sigma_max, 0)
    ticks = [level for level in (0, 1, 2, 5, 10, 20, 50, 100, 200, 500) if level <= hierarchy.sigma_max]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_minor_locator(NullLocator())
    axis.tick_params(labelsize=8)
    name = gene_label(interpretation.labels[gene])
    axis.set_title(f"{name} · {contrast.node} → {clade_label(contrast.inside)}", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
