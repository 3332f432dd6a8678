from pathlib import Path

from matplotlib.figure import Figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure in the format that the path's ending names, at 150 dots an inch if it has dots."""
    figure.savefig(path, dpi=150, bbox_inches="tight", metadata={"Software": None} if path.suffix == ".png" else None)
