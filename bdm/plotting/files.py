"""The figures of each kind of result, as the commands write them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bdm.audit.results import Audit
from bdm.evaluation.results import Evaluation
from bdm.extension.results import ExtensionReport
from bdm.interpretation.results import Interpretation
from bdm.lineages.results import Lineage
from bdm.plotting.ancestral_states import ancestral_states, markers
from bdm.plotting.branches import agreement, branch_genes, commitment
from bdm.plotting.covariates import covariates
from bdm.plotting.evaluation import genes, properties, scores, scores_by_type, umap
from bdm.plotting.experiments import audit, power
from bdm.plotting.lineages import lineage
from bdm.plotting.responses import response, response_errors
from bdm.plotting.style import save_figure
from bdm.plotting.transmutation import transmutation, transmutation_genes
from bdm.plotting.tree import hierarchy
from bdm.power.analysis import PowerAnalysis
from bdm.responses.results import Responses
from bdm.transmutation.evaluate import TransmutationEvaluation

FIGURES: dict[type[Any], dict[str, Callable[..., Any]]] = {  # of each result, by the names of their files
    Audit: {"audit": audit},
    Evaluation: {
        "overall": scores,
        "by_type": scores_by_type,
        "properties": properties,
        "genes": genes,
        "umap": umap,
        "covariates": covariates,
    },
    ExtensionReport: {"hierarchy": hierarchy},
    Interpretation: {
        "branch_genes": branch_genes,
        "commitment": commitment,
        "ancestral_states": ancestral_states,
        "agreement": agreement,
        "markers": markers,
    },
    Lineage: {"lineage": lineage},
    PowerAnalysis: {"power": power},
    Responses: {"response": response, "errors": response_errors},
    TransmutationEvaluation: {
        "scores": transmutation,
        "genes": transmutation_genes,
    },
}


def figures_of(result: Any) -> dict[str, Callable[..., Any]]:
    """Figures of a result by the names of their files, without that of covariates where the cells have none."""
    figures = FIGURES[type(result)]
    if isinstance(result, Evaluation) and not len(result.along):
        return {name: draw for name, draw in figures.items() if draw is not covariates}
    return figures


def write_result(folder: Path, result: Any) -> None:
    """Write a result as a folder, with each of its figures, of :data:`FIGURES`, as a PNG of its name."""
    result.save(folder)
    for name, draw in figures_of(result).items():
        save_figure(draw(result, show=False), folder / f"{name}.png")
