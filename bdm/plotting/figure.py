from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.text import Text

from bdm.errors import InputError

# For letters that matplotlib's own font lacks, such as Chinese ones; whichever of these there are
FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Yu Gothic",
)

NewFigure = Callable[..., Figure]  # Figure for a file, or matplotlib.pyplot.figure for a screen


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path's ending names, at 150 dots an inch if it has dots.

    Raises
    ------
    InputError
        If the ending names no format of figures.
    """
    if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
        raise InputError(f"{path.name} has an unknown ending; figures are written as .png, .svg or .pdf.")
    known = get_font_names()
    more = [name for name in FONTS if name in known]
    for text in figure.findobj(Text):
        text.set_fontfamily([*text.get_fontfamily(), *more])
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None} if path.suffix == ".png" else None)
