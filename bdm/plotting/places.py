from itertools import cycle, islice

import numpy as np
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from bdm.interpretation.interpret import Interpretation
from bdm.plotting.clades import clade_label, shortened
from bdm.plotting.figure import NewFigure
from bdm.plotting.looks import BRANCH, POINT
from bdm.plotting.view import End, View, view_of

MOST_IN_COLUMN = 28  # keys
OUTLINE = withStroke(linewidth=2.5, foreground="white")


def plot_places(interpretation: Interpretation, *, ax: Axes | None = None, new: NewFigure = Figure) -> Axes:
    """Draw the hybrids among real cells in one UMAP, joined as the tree joins them; cell types have numbers.

    Of more cell types than there is room for, those of a clade that parts at little noise share a colour and a number.
    """
    hierarchy, places = interpretation.hierarchy, interpretation.places
    view = view_of(hierarchy)
    colours = list(islice(cycle(sc.pl.palettes.default_20), len(view.ends)))
    where = dict(zip((branch.name for branch in hierarchy.branches), places.hybrids, strict=True))
    many = len(view.ends) > MOST_IN_COLUMN
    if ax is None:
        ax = new(figsize=(15, 9) if many else (10.5, 7.5), layout="constrained").add_subplot()
    for end, colour in zip(view.ends, colours, strict=True):
        cells = places.cells[places.cells["cell_type"].isin(end.cell_types)]
        ax.plot(cells["umap1"], cells["umap2"], "o", color=colour, markersize=3, markeredgewidth=0, alpha=0.5)
    for name in view.drawn:
        parent = hierarchy.by_name[name].parent
        if parent is not None:
            ax.plot(*np.transpose([where[parent], where[name]]), color=BRANCH, linewidth=0.8, alpha=0.7, zorder=3)
    for name in view.opened:
        ax.plot(*where[name], "s", color=POINT, markeredgecolor="black", markersize=7, zorder=4)
    for end, colour in zip(view.ends, colours, strict=True):
        if len(end.branches) == 1:
            look = {"color": colour, "markeredgecolor": "black", "markersize": 7, "zorder": 4}
            ax.plot(*where[end.branches[0].name], "D" if end.collapsed else "o", **look)
    for (x, y), names in together({name: where[name] for name in view.opened}).items():
        label = ", ".join(name.removeprefix("node ") for name in names)
        looks = {"fontsize": 8, "weight": "bold", "color": POINT, "path_effects": [OUTLINE], "ha": "right"}
        ax.annotate(label, (x, y), (-5, -10), textcoords="offset points", zorder=5, **looks)
    for number, end in enumerate(view.ends, start=1):
        looks = {"fontsize": 9, "weight": "bold", "path_effects": [OUTLINE]}
        place = np.mean([where[branch.name] for branch in end.branches], axis=0)
        ax.annotate(str(number), place, (5, 4), textcoords="offset points", zorder=5, **looks)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.set_title("Hybrids of the model among real training cells", fontsize=11, loc="left")
    beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5), "ncols": 2 if many else 1}
    ax.legend(handles=keys(view, colours), frameon=False, **beside)
    return ax


def keys(view: View, colours: list[str]) -> list[Line2D]:
    """Explain numbers, colours and marks."""
    found = [
        Line2D(
            [], [], color=colour, marker="D" if end.collapsed else "o", linestyle="", label=f"{number}  {named(end)}"
        )
        for number, (end, colour) in enumerate(zip(view.ends, colours, strict=True), start=1)
    ]
    label = "node, by its number"
    return [*found, Line2D([], [], marker="s", linestyle="", color=POINT, markeredgecolor="black", label=label)]


def named(end: End) -> str:
    """Name a cell type, or a clade by its node and its first types."""
    if not end.collapsed:
        return shortened(end.cell_types[0], width=40)
    node = end.branches[0].name if len(end.branches) == 1 else "others"
    return f"{node}: {clade_label(end.cell_types)}"


def together(places: dict[str, np.ndarray], *, apart: float = 0.03) -> dict[tuple[float, float], list[str]]:
    """Names by place, those in one that are less than a share ``apart`` of the figure from the first of them."""
    spread = np.ptp(list(places.values()), axis=0) + 1e-9
    found: dict[tuple[float, float], list[str]] = {}
    for name, place in places.items():
        near = [key for key in found if np.all(np.abs(place - key) < apart * spread)]
        found.setdefault(near[0] if near else tuple(place), []).append(name)
    return found
