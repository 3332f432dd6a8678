"""What all figures share: styles, labels, axes and panels, the results that they draw, and their display."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any, TypeAlias, TypeVar, overload

import matplotlib.pyplot as plt
import numpy as np
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure, SubFigure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from bdm.api import BranchedDiffusion
from bdm.errors import InputError, printable
from bdm.evaluation.cells import FLOOR
from bdm.evaluation.results import Evaluation
from bdm.extension.results import ExtensionReport
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.results import Interpretation
from bdm.transmutation.results import TransmutationEvaluation

# Okabe and Ito, distinct with any colour vision: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that pairs repeat late
GREY = "#8C8C8C"

Style: TypeAlias = dict[str, Any]  # keyword arguments of matplotlib's artists

# The model and real cells, which differ in their markers as well as in their colours
MODEL: Style = {"linestyle": "", "marker": "o", "color": "#0072B2", "markersize": 6}
REAL: Style = {"linestyle": "", "marker": "D", "color": "#D55E00", "markersize": 6.5, "markerfacecolor": "white"}
TRAINING: Style = {"linestyle": "", "marker": "^", "color": "#009E73", "markersize": 5.5, "markerfacecolor": "white"}

BRANCH, NODE = "#3b4a63", "#d1701f"  # of the tree, and of its nodes
ADDED = "#00795a"  # of what extensions added
FLOOR_LINE: Style = {"color": GREY, "linewidth": 1.2}
IDEAL_LINE: Style = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
HALO = withStroke(linewidth=2.5, foreground="white")  # keeps text readable where it crosses lines and points

NOISE_LEVEL = "noise level (within-type standard deviations)"
LEVELS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)

# Texts in place of figures
NO_NODES = "The tree is one population, without nodes whose branches could be compared."
NO_MARKERS = "There is one cell type, so no genes mark it against others."

Item = TypeVar("Item")


@dataclass(frozen=True)
class SetStyle:
    """Colour and marker of a set of cells."""

    colour: str
    marker: str


def set_styles(sets: Iterable[str]) -> dict[str, SetStyle]:
    """Give each set a colour and a marker; the floor is grey, and comes first."""
    others = [name for name in sets if name != FLOOR]
    styles = map(SetStyle, cycle(COLOURS), cycle(MARKERS))
    return {FLOOR: SetStyle(GREY, "d"), **dict(zip(others, styles, strict=False))}


# ---- labels


def without_formulas(text: str) -> str:
    """Escape dollar signs, or matplotlib reads the text between two of them as a formula."""
    return text.replace("$", r"\$")


def shortened(name: str, *, width: int = 40) -> str:
    """Shorten a long name in its middle, as the names of related types often differ at their ends."""
    name, n_first = printable(name), width // 3
    return without_formulas(name if len(name) <= width else f"{name[:n_first]}…{name[n_first + 1 - width :]}")


def clade_label(names: tuple[str, ...], *, width: int = 26) -> str:
    """Name a set of cell types or populations within ``width`` letters: as many as fit, and the number of others."""
    names = tuple(map(printable, names))
    if len(names) == 1:
        return shortened(names[0], width=width)
    for n_named in range(len(names), 0, -1):
        others = f" +{len(names) - n_named}" if n_named < len(names) else ""
        label = ", ".join(names[:n_named]) + others
        if len(label) <= width:
            return without_formulas(label)
    return shortened(names[0], width=width - len(others)) + others


def gene_label(gene: str) -> str:
    """Name a gene where there is room for few letters."""
    return shortened(gene, width=24)


def label_outermost_genes(
    axis: Axes, x: np.ndarray, y: np.ndarray, labels: Sequence[str], *, order: np.ndarray, n_labels: int
) -> None:
    """Label up to ``n_labels`` genes at either end of ``order``, those whose labels do not overlap."""
    apart = 0.06 * np.ptp(axis.get_ylim())
    for side, candidates in {"left": order, "right": order[::-1]}.items():
        chosen: list[int] = []
        for gene in candidates[: 5 * n_labels]:
            if len(chosen) < n_labels and all(abs(y[gene] - y[other]) > apart for other in chosen):
                chosen.append(gene)
        style: Style = {"textcoords": "offset points", "ha": side, "fontsize": 7, "path_effects": [HALO]}
        for gene in chosen:
            axis.annotate(gene_label(labels[gene]), (x[gene], y[gene]), (5 if side == "left" else -5, -3), **style)


def highest(items: Sequence[Item], n_items: int, *, level: Callable[[Item], float]) -> list[Item]:
    """Take the ``n_items`` of highest level, in their order."""
    chosen = sorted(range(len(items)), key=lambda i: -level(items[i]))[:n_items]
    return [items[i] for i in sorted(chosen)]


# ---- axes


def scale_noise_levels(axis: Axes, top: float, *, margin: float = 0.0) -> None:
    """Scale the x axis to noise levels, from ``top`` at the left, plus a share ``margin`` of it, to 0 at the right."""
    axis.set_xscale("asinh", linear_width=1)
    axis.set_xlim(top * (1 + margin), 0)
    ticks = [level for level in LEVELS if level <= top]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())


def shade_rows(axis: Axes, n_rows: int) -> None:
    """Shade every second row, so that the eye stays in a row."""
    for row in range(0, n_rows, 2):
        axis.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0)


def open_frame(axis: Axes, *others: str) -> None:
    """Draw no line at the top and at the right, nor at ``others``."""
    axis.spines[["top", "right", *others]].set_visible(False)


def draw_identity(axis: Axes) -> None:
    """Draw the line on which values are as in test cells."""
    axis.axline((0, 0), slope=1, label="as in test cells", **IDEAL_LINE)


# ---- figures


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of this size in inches, which :func:`shown` shows and :func:`save_figure` closes."""
    return plt.figure(figsize=(width, height), layout="constrained")


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """Return the given axes, or those of a new figure of this size in inches."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def figure_of(drawn: Figure | Axes | list[Axes]) -> Figure:
    """Return a figure, or the figure of axes."""
    drawn = drawn[0] if isinstance(drawn, list) else drawn
    figure = drawn.figure if isinstance(drawn, Axes) else drawn
    return figure.figure if isinstance(figure, SubFigure) else figure


def panels(
    figure: Figure | SubFigure, n_panels: int, *, n_columns: int, sharex: bool = False, sharey: bool = False
) -> list[Axes]:
    """Divide a figure into a grid of ``n_columns`` columns, and return the axes of the first ``n_panels`` panels."""
    axes = figure.subplots(-(-n_panels // n_columns), n_columns, squeeze=False, sharex=sharex, sharey=sharey).ravel()
    for axis in axes[n_panels:]:
        axis.remove()
    return list(axes[:n_panels])


def explain(figure: Figure | SubFigure, *axes: Axes, loc: str = "outside upper center", **style: Any) -> None:
    """Draw a legend of what is in the axes, each label once."""
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    style = {"loc": loc, "ncols": 8, "frameon": False, **style}
    figure.legend(handles.values(), handles.keys(), **style)


def write_text(axis: Axes, text: str) -> None:
    """Write a text in place of a figure."""
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
    axis.set_axis_off()


def text_figure(text: str) -> Figure:
    """Make a figure of a text."""
    figure = new_figure(5, 0.6)
    write_text(figure.add_subplot(), text)
    return figure


def check_no_axes(ax: Axes | None, one: str) -> None:
    """Raise an InputError where several panels would be drawn into one axes."""
    if ax is not None:
        raise InputError(f"This figure has several panels, which one ax cannot hold; choose one {one} to draw into it.")


def check_score(score: str, known: Iterable[str]) -> None:
    """Raise an InputError for a score that the figure does not have."""
    if score not in known:
        raise InputError(f"This figure has no score {score!r}; choose one of {', '.join(known)}.")


@overload
def shown(drawn: Axes, *, show: bool | None, complete: bool = True) -> Axes | None: ...
@overload
def shown(drawn: Figure, *, show: bool | None, complete: bool = True) -> list[Axes] | None: ...
def shown(drawn: Axes | Figure, *, show: bool | None, complete: bool = True) -> Axes | list[Axes] | None:
    """Show a figure, or return its axes: one, or the axes of all panels without colour bars.

    Parameters
    ----------
    complete
        Whether bdm made the figure, and nothing is to be added.
    """
    if show is None:
        show = complete and sc.settings.autoshow and has_screen()
    if show:
        plt.show()
        return None
    return [axis for axis in drawn.axes if axis.get_label() != "<colorbar>"] if isinstance(drawn, Figure) else drawn


def has_screen() -> bool:
    """Return whether matplotlib shows figures, as in a notebook or in a window, or only writes them to files."""
    off_screen = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
    return plt.get_backend().lower() not in off_screen


# ---- results


Interpreted = Interpretation | BranchedDiffusion  # an interpretation, or a model that was interpreted

SOURCES = {
    BranchedDiffusion: "a model (bdm.BranchedDiffusion)",
    Evaluation: "an evaluation, as model.evaluate(adata_test) returns",
    ExtensionReport: "the report of an extension (bdm.ExtensionReport)",
    Hierarchy: "a hierarchy",
    Interpretation: "an interpretation (bdm.Interpretation)",
    TransmutationEvaluation: "an evaluation of transmuted cells, as model.evaluate_transmuted() returns",
}


def check_kind(value: Any, *kinds: type[Any]) -> None:
    """Raise an InputError for a value of none of the kinds that a figure draws."""
    if not isinstance(value, kinds):
        accepted = " or ".join(SOURCES[kind] for kind in kinds)
        raise InputError(f"This figure draws {accepted}; {type(value).__name__} is none.")


def interpretation_of(source: Interpreted) -> Interpretation:
    """Return an interpretation, or the one of a model."""
    check_kind(source, Interpretation, BranchedDiffusion)
    if isinstance(source, Interpretation):
        return source
    if source.interpretation is None:
        raise InputError("The model is not interpreted yet, or has changed since; call interpret() first.")
    return source.interpretation
