from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from bdm.errors import InputError

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
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None} if path.suffix == ".png" else None)
