"""Analyses beyond one model: responses to conditions, lineages, and tests.

The module also has the classes of results, to load them from their folders. Invalid input raises a
:class:`bdm.InputError` with the cause and a remedy.

::

    settings = bdm.tl.ExperimentSettings(sample_key="donor", condition_key="condition", label_key="cell_type")
    genes = bdm.tl.pseudobulk_tests(adata, settings)

    responses = bdm.tl.respond(adata, bdm.tl.ResponseSettings(control="ctrl"))
    stimulated = bdm.tl.predict(responses, adata[adata.obs["condition"] == "ctrl"], "stim")

    responses = bdm.tl.respond(adata, settings, features="pathways.csv")  # relate conditions
    knocked_out = bdm.tl.predict(responses, adata_control, "JAK2")  # a condition that no cell has

    lineage = bdm.tl.lineage(adata, bdm.tl.LineageSettings(time_key="minutes"), tree="lineage.nwk")
    ancestors = bdm.tl.reconstruct(lineage, adata, "ASG_AWA")
"""

from bdm.applications.audit.audit import Audit
from bdm.applications.power.analysis import PowerAnalysis
from bdm.applications.power.differential import (
    ExperimentSettings,
    composition_tests,
    log_cpm_tests,
    pseudobulk_tests,
    wilcoxon_tests,
)
from bdm.applications.relations.fit_lineage import lineage
from bdm.applications.relations.gaussian_process import GaussianProcess
from bdm.applications.relations.lineage import Lineage
from bdm.applications.relations.predict import predict
from bdm.applications.relations.reconstruct import reconstruct
from bdm.applications.relations.respond import respond
from bdm.applications.relations.responses import Responses
from bdm.settings import LineageSettings, ResponseSettings

__all__ = [
    "Audit",
    "ExperimentSettings",
    "GaussianProcess",
    "Lineage",
    "LineageSettings",
    "PowerAnalysis",
    "ResponseSettings",
    "Responses",
    "composition_tests",
    "lineage",
    "log_cpm_tests",
    "predict",
    "pseudobulk_tests",
    "reconstruct",
    "respond",
    "wilcoxon_tests",
]


def __dir__() -> list[str]:
    return __all__
