"""Analyses beyond one model: responses to conditions, lineages, and tests.

The module also has the classes of results, to load them from their folders.

::

    settings = bdm.tl.ExperimentSettings(sample_key="donor", condition_key="condition", label_key="cell_type")
    genes = bdm.tl.pseudobulk_tests(adata, settings)

    responses = bdm.tl.respond(adata, bdm.tl.ResponseSettings(control="ctrl"))
    stimulated = bdm.tl.predict_cells(responses, adata[adata.obs["condition"] == "ctrl"], "stim")
    evaluation = bdm.tl.evaluate_predicted(adata_control, adata_real, stimulated)

    lineage = bdm.tl.lineage(adata, bdm.tl.LineageSettings(time_key="minutes"), tree="lineage.nwk")
    ancestors = bdm.tl.reconstruct(lineage, adata, "ASG_AWA")
"""

from bdm.audit.results import Audit
from bdm.evaluation.predicted import PredictedEvaluation, evaluate_predicted
from bdm.lineages.cells import fates
from bdm.lineages.cells import reconstruct_cells as reconstruct
from bdm.lineages.results import Lineage
from bdm.lineages.results import fit_lineage as lineage
from bdm.power.analysis import PowerAnalysis
from bdm.power.differential import (
    ExperimentSettings,
    composition_tests,
    log_cpm_tests,
    pseudobulk_tests,
    wilcoxon_tests,
)
from bdm.responses.cells import predict_cells
from bdm.responses.results import Responses
from bdm.responses.results import fit_responses as respond
from bdm.settings import LineageSettings, PredictedEvaluationSettings, ResponseSettings

__all__ = [
    "Audit",
    "ExperimentSettings",
    "Lineage",
    "LineageSettings",
    "PowerAnalysis",
    "PredictedEvaluation",
    "PredictedEvaluationSettings",
    "ResponseSettings",
    "Responses",
    "composition_tests",
    "evaluate_predicted",
    "fates",
    "lineage",
    "log_cpm_tests",
    "predict_cells",
    "pseudobulk_tests",
    "reconstruct",
    "respond",
    "wilcoxon_tests",
]


def __dir__() -> list[str]:
    return __all__
