"""The figures of each kind of result, as the commands write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bdm.evaluation.results import Evaluation
from bdm.extension.results import ExtensionReport
from bdm.interpretation.results import Interpretation
from bdm.plotting.agreement import agreement_figure
from bdm.plotting.ancestral_states import ancestral_states_figure, paths_figure, plot_ancestral_umap
from bdm.plotting.branches import branch_genes_figure, plot_commitment
from bdm.plotting.evaluation import by_type_figure, genes_figure, overall_figure, umap_figure
from bdm.plotting.extension import plot_likelihood, type_specific_genes_figure
from bdm.plotting.markers import markers_figure
from bdm.plotting.properties import properties_figure
from bdm.plotting.style import save_figure
from bdm.plotting.transmutation import (
    transmutation_genes_figure,
    transmutation_scores_figure,
    transmutation_umap_figure,
)
from bdm.plotting.tree import plot_hierarchy
from bdm.transmutation.results import TransmutationEvaluation

Draw = Callable[[Any], Figure | Axes]

FIGURES: dict[type[Any], dict[str, Draw]] = {
    Evaluation: {
        "overall": overall_figure,
        "by_type": by_type_figure,
        "properties": properties_figure,
        "genes": genes_figure,
        "umap": umap_figure,
    },
    Interpretation: {
        "branch_genes": branch_genes_figure,
        "commitment": plot_commitment,
        "paths": paths_figure,
        "ancestral_states": ancestral_states_figure,
        "umap": plot_ancestral_umap,
        "agreement": agreement_figure,
        "markers": markers_figure,
    },
    TransmutationEvaluation: {
        "scores": lambda result: transmutation_scores_figure(result.table, result.to),
        "genes": transmutation_genes_figure,
        "umap": transmutation_umap_figure,
    },
    ExtensionReport: {
        "hierarchy": lambda result: plot_hierarchy(result.hierarchy, since=result.n_before),
        "likelihood": lambda result: plot_likelihood(result.likelihood),
        "type_specific_genes": lambda result: type_specific_genes_figure(result.genes),
    },
}


def write_figures(
    folder: Path, result: Evaluation | Interpretation | TransmutationEvaluation | ExtensionReport
) -> None:
    """Write each figure of a result as a PNG of its name."""
    for name, draw in FIGURES[type(result)].items():
        save_figure(draw(result), folder / f"{name}.png")
