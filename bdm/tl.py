"""Tests between the conditions of any cells with samples, and the results of a power analysis and of an audit.

::

    settings = bdm.tl.ExperimentSettings(sample_key="donor", condition_key="condition", label_key="cell_type")
    genes = bdm.tl.pseudobulk_tests(adata, settings)
"""

from bdm.audit.results import Audit
from bdm.power.analysis import PowerAnalysis
from bdm.power.experiment import ExperimentSettings
from bdm.power.tests import composition_tests, log_cpm_tests, pseudobulk_tests, wilcoxon_tests

__all__ = [
    "Audit",
    "ExperimentSettings",
    "PowerAnalysis",
    "composition_tests",
    "log_cpm_tests",
    "pseudobulk_tests",
    "wilcoxon_tests",
]


def __dir__() -> list[str]:
    return __all__
