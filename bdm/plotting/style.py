"""Shared styles, labels, axes and panels of figures; showing and saving them."""

import inspect
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
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
from bdm._core.schema import document

logger = logging.getLogger(__name__)

# Okabe and Ito, safe for colour blindness: https://jfly.uni-koeln.de/color/
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")  # one more than colours, so that few sets share both
GREY = "#8C8C8C"
TYPE_COLOURS = [*colormaps["tab20"].colors[::2], *colormaps["tab20"].colors[1::2]]  # type: ignore[attr-defined]

Style: TypeAlias = dict[str, Any]  # keyword arguments of matplotlib's artists

# Model and real cells differ in marker and colour
MODEL: Style = {"linestyle": "", "marker": "o", "color": "#0072B2", "markersize": 6}
REAL: Style = {"linestyle": "", "marker": "D", "color": "#D55E00", "markersize": 6.5, "markerfacecolor": "white"}
TRAINING: Style = {"linestyle": "", "marker": "^", "color": "#009E73", "markersize": 5.5, "markerfacecolor": "white"}

BRANCH, NODE = "#3b4a63", "#d1701f"  # colours of branches and nodes
ADDED = "#00795a"  # colour of branches added by extensions
FLOOR_LINE: Style = {"color": GREY, "linewidth": 1.2}
IDEAL_LINE: Style = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
LETTER = 0.085  # approximate width of a letter in inches
HALO = withStroke(linewidth=2.5, foreground="white")  # keeps text readable on lines and points

NOISE_LEVEL = "noise level (within-type standard deviations)"
LEVELS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500)

NO_NODES = "The tree is one population, without nodes whose branches could be compared."  # shown instead of a figure

# Fallback fonts for letters that matplotlib's default font lacks, such as Chinese; only installed fonts are used
FONTS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "WenQuanYi Micro Hei"),
    *("Arial Unicode MS", "Microsoft YaHei", "Yu Gothic"),
)
DPI, PAD = 150, 0.1  # dots per inch, and margin in inches

Item = TypeVar("Item")


# ---- labels


def shortened(name: str, *, width: int = 40) -> str:
    """Shorten a long name in its middle.

    Names of related types often differ at their ends.
    """
    name, n_first = printable(name), width // 3
    return escaped(name if len(name) <= width else f"{name[:n_first]}…{name[n_first + 1 - width :]}")


def escaped(text: str) -> str:
    """Escape dollar signs, which start formulas in matplotlib."""
    return text.replace("$", r"\$")


def clade_label(names: tuple[str, ...], *, width: int = 26) -> str:
    """List cell types or populations within ``width`` letters.

    Names that do not fit are counted, as in ``B, T +3``.
    """
    names = tuple(map(printable, names))
    if len(names) == 1:
        return shortened(names[0], width=width)
    for n_named in range(len(names), 0, -1):
        suffix = f" +{len(names) - n_named}" if n_named < len(names) else ""
        label = ", ".join(names[:n_named]) + suffix
        if len(label) <= width:
            return escaped(label)
    return shortened(names[0], width=width - len(suffix)) + suffix


def gene_label(gene: str) -> str:
    """Shorten the name of a gene for a narrow space."""
    return shortened(gene, width=32)  # fits peaks, e.g. atac:chr10:100006163-100006657


def highest(items: Sequence[Item], n_items: int, *, level: Callable[[Item], float]) -> list[Item]:
    """Select the ``n_items`` with the highest level, in their original order."""
    selected = sorted(range(len(items)), key=lambda i: -level(items[i]))[:n_items]
    return [items[i] for i in sorted(selected)]


# ---- axes


def scale_noise_levels(axis: Axes, top: float, *, margin: float = 0.0) -> None:
    """Scale the x axis to noise levels, from ``top`` down to 0.

    ``margin`` extends the left end, as a share of ``top``.
    """
    axis.set_xscale("asinh", linear_width=1)
    axis.set_xlim(top * (1 + margin), 0)
    ticks = [level for level in LEVELS if level <= top]
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())


def shade_rows(axis: Axes, n_rows: int) -> None:
    """Shade every second row."""
    for row in range(0, n_rows, 2):
        axis.axhspan(row - 0.5, row + 0.5, color="black", alpha=0.04, linewidth=0)


def name_rows(axis: Axes, names: Sequence[str], **text: Any) -> None:
    """Label the rows of axes, from the top."""
    axis.set_yticks(range(len(names)), names, **text)
    axis.set_ylim(len(names) - 0.5, -0.5)


def open_frame(axis: Axes, *sides: str) -> None:
    """Hide the frame at the top, at the right, and at ``sides``."""
    axis.spines[["top", "right", *sides]].set_visible(False)


def draw_equality(axis: Axes, *, scale: float) -> None:
    """Draw the line of equality with test cells, and a legend with larger markers."""
    axis.axline((0, 0), slope=1, label="as in test cells", **IDEAL_LINE)
    axis.legend(loc="upper left", frameon=False, handletextpad=0.4, handlelength=1.2, markerscale=scale)
    open_frame(axis)


# ---- figures


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of a size in inches, which :func:`save_figure` closes."""
    return plt.figure(figsize=(width, height), layout="constrained")


def axes_or_new(ax: Axes | None, width: float, height: float) -> Axes:
    """Return ``ax``, or new axes of a size in inches."""
    return new_figure(width, height).add_subplot() if ax is None else ax


def figure_of(source: Figure | Axes | list[Axes]) -> Figure:
    """Return the figure of axes; a figure stays the same."""
    source = source[0] if isinstance(source, list) else source
    figure = source.figure if isinstance(source, Axes) else source
    return figure.figure if isinstance(figure, SubFigure) else figure


def panels(figure: Figure | SubFigure, n_panels: int, *, n_columns: int, sharey: bool = False) -> list[Axes]:
    """Add ``n_panels`` axes to a figure, in a grid of ``n_columns`` columns."""
    axes = figure.subplots(-(-n_panels // n_columns), n_columns, squeeze=False, sharey=sharey).ravel()
    for axis in axes[n_panels:]:
        axis.remove()
    return list(axes[:n_panels])


def draw_legend(figure: Figure | SubFigure, *axes: Axes, loc: str = "outside upper center", **style: Any) -> None:
    """Draw a legend of all axes, with each label once."""
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    style = {"loc": loc, "ncols": 8, "frameon": False, **style}
    figure.legend(handles.values(), handles.keys(), **style)


def axes_of(figure: Figure) -> list[Axes]:
    """Return the axes of the panels of a figure, without colour bars."""
    return [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]


def text_axes(text: str, ax: Axes | None = None) -> Axes:
    """Draw a message instead of a figure."""
    axis = axes_or_new(ax, 5, 0.6)
    axis.text(0.5, 0.5, text, ha="center", va="center", transform=axis.transAxes)
    axis.set_axis_off()
    return axis


# Descriptions of the arguments that figures share
ARGUMENTS = {
    "analysis": "Result of :meth:`bdm.BranchedDiffusion.power`.",
    "audit": "Result of :meth:`bdm.BranchedDiffusion.audit`.",
    "ax": "Axes to draw into; by default, of a new figure.",
    "evaluation": "Result of :meth:`~bdm.BranchedDiffusion.evaluate`, or of ``evaluate_transmuted``.",
    "interpretation": "An interpretation, or an interpreted model.",
    "lineage": "Result of :func:`bdm.tl.lineage`.",
    "name": "Set of cells to draw.",
    "responses": "Result of :func:`bdm.tl.respond`.",
    "show": "Whether to show the figure; by default, a new figure if there is a screen.",
}


def check_class(value: object, kind: type[Item]) -> Item:
    """Check the class of an object to draw."""
    if not isinstance(value, kind):
        raise InputError(f"This figure needs the class {kind.__name__}; you passed {type(value).__name__}.")
    return value


# ---- showing and saving

Drawn: TypeAlias = Figure | Axes | str  # all panels, one panel, or a message instead of a figure
FIGURES: dict[type[Any], dict[str, Callable[..., Any]]] = {}  # figures of each result, by file name
SHOW = inspect.Parameter("show", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=bool | None)


def draws(
    kind: type[Any], file: str, *, of: Callable[[Any], Any] | None = None
) -> Callable[[Callable[..., Drawn]], Callable[..., Any]]:
    """Decorate a figure of results of class ``kind``, which commands write to a file of this name.

    Its first argument is ``of`` the user's, or has this class. The argument ``show`` is added: the figure is shown, by
    default if there is a screen, except in axes of the user (``ax``), which may be incomplete; otherwise its axes are
    returned. The docstring describes all arguments (:data:`ARGUMENTS`), and the axes.
    """

    def decorate(draw: Callable[..., Drawn]) -> Callable[..., Any]:
        signature, drawn_kinds = inspect.signature(draw), str(draw.__annotations__["return"])
        has_panels, may_be_one = "Figure" in drawn_kinds, "Axes" in drawn_kinds

        @wraps(draw)
        def run(*arguments: Any, show: bool | None = None, **options: Any) -> Any:
            values = signature.bind(*arguments, **options).arguments
            name, result = next(iter(values.items()))
            drawn = draw(**values | {name: of(result) if of else check_class(result, kind)})
            if isinstance(drawn, str):
                drawn = text_axes(drawn, values.get("ax"))
                drawn = figure_of(drawn) if has_panels else drawn
            if show_figures(show, complete=values.get("ax") is None):
                return None
            return axes_of(drawn) if isinstance(drawn, Figure) else drawn

        returned: Any = Axes | list[Axes] if has_panels and may_be_one else list[Axes] if has_panels else Axes
        parameters = [*signature.parameters.values(), SHOW]
        vars(run)["__signature__"] = signature.replace(parameters=parameters, return_annotation=returned | None)
        document(run, ARGUMENTS, returns=f"Axes{' of the panels' if has_panels else ''}; None if the figure is shown.")
        FIGURES.setdefault(kind, {})[file] = run
        return run

    return decorate


def show_figures(show: bool | None, *, complete: bool) -> bool:
    """Show figures if requested, and return whether they were shown; by default, complete ones if there is a screen."""
    if show is None:
        off_screen = backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
        show = complete and plt.get_backend().lower() not in off_screen
    if show:
        plt.show()
    return show


def save_figure(source: Figure | Axes | list[Axes], path: Path) -> None:
    """Save and close a figure, in the format of the path's suffix."""
    figure = figure_of(source)
    try:
        if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
            raise InputError(f"{path.name} has an unknown ending; figures are written as .png, .svg or .pdf.")
        if fonts := [name for name in FONTS if name in get_font_names()]:
            for text in figure.findobj(Text):
                text.set_fontfamily([*text.get_fontfamily(), *fonts])
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=r"Glyph .* missing from font")
            metadata = {".png": {"Software": None}, ".svg": {"Date": None}}.get(path.suffix)
            figure.savefig(path, dpi=DPI, bbox_inches="tight", pad_inches=PAD, metadata=metadata)
        if caught:
            logger.warning(
                "%s: letters missing from all fonts are drawn as boxes; install a font such as Noto Sans CJK.",
                path.name,
            )
    finally:
        plt.close(figure)


def svg_of(source: Figure | Axes, label: str) -> str:
    """Return a figure as a labelled SVG element of a page, with text that readers can search, and close it."""
    with TemporaryDirectory() as folder, plt.rc_context({"svg.fonttype": "none", "svg.hashsalt": "bdm"}):
        save_figure(source, path := Path(folder) / f"{label}.svg")
        return f'<svg role="group" aria-label="{label}"' + path.read_text(encoding="utf-8").partition("<svg")[2]
