"""Plot models and results, as ``scanpy.pl`` does.

Results may be in memory, such as ``model.evaluate(adata_test=adata_test)``, or loaded, such as
``bdm.Evaluation.load("evaluation")``. The argument ``interpretation`` accepts a :class:`~bdm.Interpretation`, or a
model after :meth:`~bdm.BranchedDiffusion.interpret`; ``evaluation`` accepts results of ``evaluate`` and
``evaluate_transmuted``.

With ``show=None``, a notebook or a session with a screen shows the figure and returns None. Scripts without a screen,
and ``show=False``, return the matplotlib axes: one, or a list with the axes of all panels. Unlike in scanpy, a figure
drawn into your own axes (``ax``) is shown only with ``show=True``.

::

    ax = bdm.pl.hierarchy(model, show=False)
    ax.set_title("blood")
    plt.savefig("hierarchy.pdf")
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from bdm._core.progress import progress
from bdm.applications.extension.extend import ExtensionReport
from bdm.evaluation.evaluate import Evaluation
from bdm.hierarchy.tree import Hierarchy
from bdm.plotting.branches import agreement, branch_genes, commitment
from bdm.plotting.dot_plots import ancestral_states, markers
from bdm.plotting.evaluation import covariates, genes, scores, scores_by_type, space, umap
from bdm.plotting.experiments import audit, power, transmutation, transmutation_genes
from bdm.plotting.hierarchy_figure import hierarchy
from bdm.plotting.responses_and_lineages import lineage, response, response_errors
from bdm.plotting.style import FIGURES, save_figure

__all__ = [
    "agreement",
    "ancestral_states",
    "audit",
    "branch_genes",
    "commitment",
    "covariates",
    "genes",
    "hierarchy",
    "lineage",
    "markers",
    "power",
    "response",
    "response_errors",
    "scores",
    "scores_by_type",
    "space",
    "transmutation",
    "transmutation_genes",
    "umap",
]

FIGURES[ExtensionReport] = FIGURES[Hierarchy]


def is_drawn(result: Any, name: str) -> bool:
    """Return whether a result has what one of its figures shows: covariates, or positions."""
    needed = {"covariates": "along", "space": "space"} if isinstance(result, Evaluation) else {}
    value = getattr(result, needed[name]) if name in needed else ()
    return name not in needed or (value is not None and len(getattr(value, "cells", value)) > 0)


def __dir__() -> list[str]:
    return __all__


def write_result(folder: Path, result: Any, sha256: dict[str, str] | None = None) -> None:
    """Write a result as a folder, with its :data:`FIGURES` as PNG.

    ``sha256`` are checksums of the input files, for the provenance.
    """
    if sha256 is not None:
        result = replace(result, provenance=result.provenance | {"sha256": sha256})
    result.save(folder)
    figures = {name: draw for name, draw in FIGURES.get(type(result), {}).items() if is_drawn(result, name)}
    for name, draw in progress(figures.items(), total=len(figures), doing="drawing", unit="figure"):
        save_figure(draw(result, show=False), folder / f"{name}.png")
