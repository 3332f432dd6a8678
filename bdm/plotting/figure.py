"""Grids of panels, and figures as files with the fonts that names of all languages need."""

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import get_font_names
from matplotlib.text import Text

from bdm.errors import InputError

# For letters that matplotlib's own font lacks, such as Chinese ones; those of them that are installed are used
FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Yu Gothic",
)

NewFigure = Callable[..., Figure]  # Figure for a file, or matplotlib.pyplot.figure for a screen


def panels(figure: Figure | SubFigure, n_panels: int, *, n_columns: int, sharex: bool = False) -> list[Axes]:
    """Divide a figure into a grid of ``n_columns`` columns, and return the axes of the first ``n_panels`` panels."""
    axes = figure.subplots(-(-n_panels // n_columns), n_columns, squeeze=False, sharex=sharex).ravel()
    for axis in axes[n_panels:]:
        axis.remove()
    return list(axes[:n_panels])


def figure_of_text(text: str, *, new: NewFigure) -> Figure:
    """Write a text in place of a figure."""
    figure = new(figsize=(5, 0.6), layout="constrained")
    figure.text(0.5, 0.5, text, ha="center", va="center")
    return figure


def save_figure(drawn: Figure | Axes, path: Path) -> None:
    """Write a figure, or the figure of an axes, in the format of the path's ending, with 150 dots per inch.

    Raises
    ------
    InputError
        If the ending names no format of figures.
    """
    figure = drawn.figure if isinstance(drawn, Axes) else drawn
    if isinstance(figure, SubFigure):
        figure = figure.figure
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path.name} has an unknown ending; figures are written as .png, .svg or .pdf.")
    installed = get_font_names()
    fonts = [name for name in FONTS if name in installed]
    for text in figure.findobj(Text):
        text.set_fontfamily([*text.get_fontfamily(), *fonts])
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None} if path.suffix == ".png" else None)
