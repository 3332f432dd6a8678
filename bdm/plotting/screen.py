"""Figures on a screen, where there is one, and as axes elsewhere."""

from typing import overload

import matplotlib.pyplot as plt
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure

from bdm.errors import InputError


def check_no_axes(ax: Axes | None, one: str) -> None:
    """Raise an InputError where several panels would be drawn into one axes."""
    if ax is not None:
        raise InputError(f"This figure has several panels, which one ax cannot hold; choose one {one} to draw into it.")


def check_score(score: str, known: tuple[str, ...]) -> None:
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
