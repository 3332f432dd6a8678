"""Responses to conditions and their scores, tests between conditions, and the results of power analyses and audits.

::

    settings = bdm.tl.ExperimentSettings(sample_key="donor", condition_key="condition", label_key="cell_type")
    genes = bdm.tl.pseudobulk_tests(adata, settings)

    responses = bdm.tl.respond(adata, condition_key="condition", control="ctrl")
    stimulated = bdm.tl.predict_cells(responses, adata[adata.obs["condition"] == "ctrl"], "stim")
    evaluation = bdm.tl.evaluate_predicted(adata_control, adata_real, stimulated)
"""

from collections.abc import Sequence

from anndata import AnnData

from bdm.audit.results import Audit
from bdm.evaluation.predicted import PredictedEvaluation, evaluate_predicted
from bdm.hierarchy.files import Tree, as_clade
from bdm.power.analysis import PowerAnalysis
from bdm.power.experiment import ExperimentSettings
from bdm.power.tests import composition_tests, log_cpm_tests, pseudobulk_tests, wilcoxon_tests
from bdm.responses.cells import predict_cells
from bdm.responses.fit import fit_responses
from bdm.responses.results import Responses
from bdm.settings import PredictedEvaluationSettings, ResponseSettings

__all__ = [
    "Audit",
    "ExperimentSettings",
    "PowerAnalysis",
    "PredictedEvaluation",
    "PredictedEvaluationSettings",
    "ResponseSettings",
    "Responses",
    "composition_tests",
    "evaluate_predicted",
    "log_cpm_tests",
    "predict_cells",
    "pseudobulk_tests",
    "respond",
    "wilcoxon_tests",
]


def respond(
    adata: AnnData,
    *,
    label_key: str = ResponseSettings.label_key,
    condition_key: str | Sequence[str] = ResponseSettings.condition_key,
    control: str | None = None,
    donor_key: str | None = None,
    counts: str = ResponseSettings.counts,
    min_cells: int = ResponseSettings.min_cells,
    tree: Tree | None = None,
) -> Responses:
    """Measure how cell types respond to conditions, and find the law by which other types follow.

    Parameters
    ----------
    adata
        Cells of two conditions or more, with raw counts.
    label_key, condition_key, donor_key
        Columns of ``obs``; the conditions are the combined values, if several columns are named.
    control
        The condition that others are compared with; the one named ``control`` or the like, if not given.
    counts
        Where the raw counts are: ``X``, ``raw``, the name of a layer, or ``auto``.
    min_cells
        Fewest cells of a type in a condition whose response is measured.
    tree
        Your own tree of the cell types, see :class:`bdm.BranchedDiffusion`.

    Raises
    ------
    InputError
        If a column, the control or a second measured type is missing, or counts are not raw.
    """
    settings = ResponseSettings(
        label_key=label_key,
        condition_key=(condition_key,) if isinstance(condition_key, str) else tuple(condition_key),
        control=control,
        donor_key=donor_key,
        counts=counts,
        min_cells=min_cells,
    )
    return fit_responses(adata, settings, tree=None if tree is None else as_clade(tree))


def __dir__() -> list[str]:
    return __all__
