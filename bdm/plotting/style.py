"""What all figures share: styles, labels, axes and panels, and how they are shown and written to files."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import matplotlib.pyplot as plt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import get_font_names
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import NullLocator

from bdm._core.errors import InputError, printable

logger = logging.getLogger(__name__)

# Okabe and Ito, distinct with any colour vision: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that pairs repeat late
GREY = "#8C8C8C"
TYPE_COLOURS = [*colormaps["tab20"].colors[::2], *colormaps["tab20"].colors[1::2]]  # type: ignore[attr-defined]

Style: TypeAlias = dict[str, Any]  # keyword arguments of matplotlib's artists

# The model and real cells, which differ in their markers as well as in their colours
MODEL: Style = {"linestyle": "", "marker": "o", "color": "#0072B2", "markersize": 6}
REAL: Style = {"linestyle": "", "marker": "D", "color": "#D55E00", "markersize": 6.5, "markerfacecolor": "white"}
TRAINING: Style = {"linestyle": "", "marker": "^", "color": "#009E73", "markersize": 5.5, "markerfacecolor": "white"}

BRANCH, NODE = "#3b4a63", "#d1701f"  # of the tree, and of its nodes
ADDED = "#00795a"  # of what extensions added
FLOOR_LINE: Style = {"color": GREY, "linewidth": 1.2}
IDEAL_LINE: Style = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
LETTER = 0.085  # inches of a letter of a name, about
HALO = withStroke(linewidth=2.5, foreground="white")  # keeps text readable where it crosses lines and points

NOISE_LEVEL = "noise level (within-type standard deviations)"
LEVELS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)

NO_NODES = "The tree is one population, without nodes whose branches could be compared."  # in place of a figure

# For letters that matplotlib's own font lacks, such as Chinese ones; those of them that are installed are used
FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei"),
    *("Arial Unicode MS", "Microsoft YaHei", "Yu Gothic"),
)
DPI, PAD = 150, 0.1  # dots per inch, and inches around what is drawn

Item = TypeVar("Item")


# ---- labels


def shortened(name: str, *, width: int = 40) -> str:
    """Shorten a long name in its middle, as the names of related types often differ at their ends."""
    name, n_first = printable(name), width // 3
    return escaped(name if len(name) <= width else f"{name[:n_first]}…{name[n_first + 1 - width :]}")


def escaped(text: str) -> str:
    """Escape dollar signs, between which matplotlib reads formulas."""
    return text.replace("$", r"\$")


def clade_label(names: tuple[str, ...], *, width: int = 26) -> str:
    """Name a set of cell types or populations within ``width`` letters: as many as fit, and the number of others."""
    names = tuple(map(printable, names))
    if len(names) == 1:
        return shortened(names[0], width=width)
    for n_named in range(len(names), 0, -1):
        others = f" +{len(names) - n_named}" if n_named < len(names) else ""
        label = ", ".join(names[:n_named]) + others
        if len(label) <= width:
            return escaped(label)
    return shortened(names[0], width=width - len(others)) + others


def gene_label(gene: str) -> str:
    """Name a gene where there is room for few letters."""
    return shortened(gene, width=32)  # as long as peaks, atac:chr10:100006163-100006657


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


def name_rows(axis: Axes, names: Sequence[str], **text: Any) -> None:
    """Name the rows of axes, from the top."""
    axis.set_yticks(range(len(names)), names, **text)
    axis.set_ylim(len(names) - 0.5, -0.5)


def open_frame(axis: Axes, *others: str) -> None:
    """Draw no line at the top and at the right, nor at ``others``."""
    axis.spines[["top", "right", *others]].set_visible(False)


def compare_genes(axis: Axes, *, scale: float) -> None:
    """Draw the line on which values are as in test cells, and a legend with larger markers."""
    axis.axline((0, 0), slope=1, label="as in test cells", **IDEAL_LINE)
    axis.legend(loc="upper left", frameon=False, handletextpad=0.4, handlelength=1.2, markerscale=scale)
    open_frame(axis)


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


def panels(figure: Figure | SubFigure, n_panels: int, *, n_columns: int, sharey: bool = False) -> list[Axes]:
    """Divide a figure into a grid of ``n_columns`` columns, and return the axes of the first ``n_panels`` panels."""
    axes = figure.subplots(-(-n_panels // n_columns), n_columns, squeeze=False, sharey=sharey).ravel()
    for axis in axes[n_panels:]:
        axis.remove()
    return list(axes[:n_panels])


def explain(figure: Figure | SubFigure, *axes: Axes, loc: str = "outside upper center", **style: Any) -> None:
    """Draw a legend of what is in the axes, each label once."""
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    style = {"loc": loc, "ncols": 8, "frameon": False, **style}
    figure.legend(handles.values(), handles.keys(), **style)


def text_axes(text: str, ax: Axes | None = None) -> Axes:
    """Write a text in place of a figure."""
    axis = axes_or_new(ax, 5, 0.6)
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
    axis.set_axis_off()
    return axis


def checked(value: object, kind: type[Item]) -> Item:
    """Return what a figure draws; raise an InputError for anything else."""
    if not isinstance(value, kind):
        raise InputError(f"This figure draws objects of the class {kind.__name__}; {type(value).__name__} is none.")
    return value


# ---- shown and saved


def shown(axis: Axes, *, show: bool | None, ax: Axes | None = None) -> Axes | None:
    """Show the figure of axes, or return them; a figure that the axes ``ax`` were given for is not complete yet."""
    return None if is_shown(show, complete=ax is None) else axis


def shown_panels(figure: Figure, *, show: bool | None) -> list[Axes] | None:
    """Show a figure, or return the axes of its panels."""
    return None if is_shown(show) else [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def is_shown(show: bool | None, *, complete: bool = True) -> bool:
    """Show figures, if requested, or by default where there is a screen, as in a notebook; return whether it did."""
    if show is None:
        off_screen = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
        show = complete and plt.get_backend().lower() not in off_screen
    if show:
        plt.show()
    return show


def save_figure(drawn: Figure | Axes | list[Axes], path: Path) -> None:
    """Write a figure, or the figure of axes, in the format of the path's ending, and close it."""
    figure = figure_of(drawn)
    try:
        if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
            raise InputError(f"{path.name} has an unknown ending; figures are written as .png, .svg or .pdf.")
        if fonts := [name for name in FONTS if name in get_font_names()]:
            for text in figure.findobj(Text):
                text.set_fontfamily([*text.get_fontfamily(), *fonts])
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=r"Glyph .* missing from font")
            metadata = {"Software": None} if path.suffix == ".png" else None
            figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=PAD, metadata=metadata)
        if caught:
            logger.warning(
                "%s: letters that no font has are drawn as boxes; install a font such as Noto Sans CJK.", path.name
            )
    finally:
        plt.close(figure)
