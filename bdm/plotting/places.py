from itertools import cycle, islice

import numpy as np
import scanpy as sc
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from bdm.interpretation.interpret import Interpretation
from bdm.plotting.clades import shortened
from bdm.plotting.looks import BRANCH, POINT

OUTLINE = withStroke(linewidth=2.5, foreground="white")


def places_figure(interpretation: Interpretation) -> Figure:
    """Draw the hybrids among real cells in one UMAP, joined as the tree joins them; cell types have numbers."""
    hierarchy, places = interpretation.hierarchy, interpretation.places
    colours = dict(zip(hierarchy.cell_types, islice(cycle(sc.pl.palettes.default_20), None), strict=False))
    numbers = {cell_type: number for number, cell_type in enumerate(hierarchy.cell_types, start=1)}
    where = dict(zip((branch.name for branch in hierarchy.branches), places.hybrids, strict=True))
    figure = Figure(figsize=(10.5, 7.5), layout="constrained")
    axis = figure.add_subplot()
    for cell_type, colour in colours.items():
        cells = places.cells[places.cells["cell_type"] == cell_type]
        axis.plot(cells["umap1"], cells["umap2"], "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.5)
    for branch in hierarchy.branches:
        x, y = where[branch.name]
        if branch.parent is not None:
            axis.plot(*np.transpose([where[branch.parent], (x, y)]), color=BRANCH, linewidth=0.8, alpha=0.7, zorder=3)
        leaf = branch.name in numbers
        fill = colours[branch.name] if leaf else POINT
        axis.plot(x, y, "o" if leaf else "s", color=fill, markeredgecolor="black", markersize=7, zorder=4)
    for (x, y), names in together({name: place for name, place in where.items() if name not in numbers}).items():
        label = ", ".join(name.removeprefix("node ") for name in names)
        looks = {"fontsize": 8, "weight": "bold", "color": POINT, "path_effects": [OUTLINE], "ha": "right"}
        axis.annotate(label, (x, y), (-5, -10), textcoords="offset points", zorder=5, **looks)
    for cell_type, number in numbers.items():
        looks = {"fontsize": 9, "weight": "bold", "path_effects": [OUTLINE]}
        axis.annotate(str(number), where[cell_type], (5, 4), textcoords="offset points", zorder=5, **looks)
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title("Hybrids of the model among real training cells", fontsize=11, loc="left")
    look = {"marker": "o", "linestyle": ""}
    keys = [
        Line2D([], [], color=colours[cell_type], label=f"{number}  {shortened(cell_type, width=40)}", **look)
        for cell_type, number in numbers.items()
    ]
    node = Line2D([], [], marker="s", linestyle="", color=POINT, markeredgecolor="black", label="node, by its number")
    figure.legend(handles=[*keys, node], loc="outside right center", frameon=False, ncols=1 if len(keys) < 30 else 2)
    return figure


def together(places: dict[str, np.ndarray], *, apart: float = 0.03) -> dict[tuple[float, float], list[str]]:
    """Names by place, those in one that are less than a share ``apart`` of the figure from the first of them."""
    spread = np.ptp(list(places.values()), axis=0) + 1e-9
    found: dict[tuple[float, float], list[str]] = {}
    for name, place in places.items():
        near = [key for key in found if np.all(np.abs(place - key) < apart * spread)]
        found.setdefault(near[0] if near else tuple(place), []).append(name)
    return found
