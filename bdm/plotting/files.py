"""Figures in files: those of each kind of result, as the commands write them."""

import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font_names
from matplotlib.text import Text

from bdm.audit.results import Audit
from bdm.errors import InputError
from bdm.evaluation.results import Evaluation
from bdm.extension.results import ExtensionReport
from bdm.interpretation.results import Interpretation
from bdm.plotting.agreement import agreement
from bdm.plotting.ancestral_states import ancestral_states, ancestral_umap, markers, paths
from bdm.plotting.branches import branch_genes, commitment
from bdm.plotting.evaluation import genes, properties, scores, scores_by_type, umap
from bdm.plotting.experiments import audit, power
from bdm.plotting.extension import likelihood, type_specific_genes
from bdm.plotting.responses import response, response_errors
from bdm.plotting.style import figure_of
from bdm.plotting.transmutation import transmutation, transmutation_genes, transmutation_umap
from bdm.plotting.tree import hierarchy
from bdm.power.analysis import PowerAnalysis
from bdm.responses.results import Responses
from bdm.transmutation.results import TransmutationEvaluation

logger = logging.getLogger(__name__)

FIGURES: dict[type[Any], dict[str, Callable[..., Any]]] = {  # of each result, by the names of their files
    Audit: {"audit": audit},
    Evaluation: {
        "overall": scores,
        "by_type": scores_by_type,
        "properties": properties,
        "genes": genes,
        "umap": umap,
    },
    ExtensionReport: {
        "hierarchy": hierarchy,
        "likelihood": likelihood,
        "type_specific_genes": type_specific_genes,
    },
    Interpretation: {
        "branch_genes": branch_genes,
        "commitment": commitment,
        "paths": paths,
        "ancestral_states": ancestral_states,
        "umap": ancestral_umap,
        "agreement": agreement,
        "markers": markers,
    },
    PowerAnalysis: {"power": power},
    Responses: {"response": response, "errors": response_errors},
    TransmutationEvaluation: {
        "scores": transmutation,
        "genes": transmutation_genes,
        "umap": transmutation_umap,
    },
}

# For letters that matplotlib's own font lacks, such as Chinese ones; those of them that are installed are used
FONTS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "WenQuanYi Micro Hei",
    "Arial Unicode MS",
    "Microsoft YaHei",
    "Yu Gothic",
)
DPI, PAD = 150, 0.1  # dots per inch, and inches around what is drawn


def write_figures(folder: Path, result: Any) -> None:
    """Write each figure of a result, a key of :data:`FIGURES`, as a PNG of its name."""
    for name, draw in FIGURES[type(result)].items():
        save_figure(draw(result, show=False), folder / f"{name}.png")


def save_figure(drawn: Figure | Axes | list[Axes], path: Path) -> None:
    """Write a figure, or the figure of axes, in the format of the path's ending, and close it.

    Raises
    ------
    InputError
        If the ending names no format of figures.
    """
    figure = figure_of(drawn)
    try:
        if path.suffix[1:].lower() not in figure.canvas.get_supported_filetypes():
            raise InputError(f"{path.name} has an unknown ending; figures are written as .png, .svg or .pdf.")
        if fonts := [name for name in FONTS if name in get_font_names()]:
            for text in figure.findobj(Text):
                text.set_fontfamily([*text.get_fontfamily(), *fonts])
        with warnings.catch_warnings(record=True) as caught:
            warnings.filterwarnings("always", message=r"Glyph .* missing from font")
            _write(figure, path)
        if caught:
            logger.warning(
                "%s: letters that no font has are drawn as boxes; install a font such as Noto Sans CJK.", path.name
            )
    finally:
        plt.close(figure)


def _write(figure: Figure, path: Path) -> None:
    """Write what is drawn, with a margin: as ``savefig(bbox_inches="tight")``, which draws everything once more."""
    figure.set_dpi(DPI)
    if (layout := figure.get_layout_engine()) is not None:
        layout.execute(figure)
        figure.set_layout_engine(None)
    metadata = {"Software": None} if path.suffix == ".png" else None
    figure.savefig(path, dpi=DPI, bbox_inches=figure.get_tightbbox().padded(PAD), metadata=metadata)
