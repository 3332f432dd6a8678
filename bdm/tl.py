"""Responses to conditions and their scores, lineages, tests between conditions, results of power analyses and audits.

::

    settings = bdm.tl.ExperimentSettings(sample_key="donor", condition_key="condition", label_key="cell_type")
    genes = bdm.tl.pseudobulk_tests(adata, settings)

    responses = bdm.tl.respond(adata, condition_key="condition", control="ctrl")
    stimulated = bdm.tl.predict_cells(responses, adata[adata.obs["condition"] == "ctrl"], "stim")
    evaluation = bdm.tl.evaluate_predicted(adata_control, adata_real, stimulated)

    lineage = bdm.tl.lineage(adata, tree="lineage.nwk", time_key="minutes")
    ancestors = bdm.tl.reconstruct(lineage, adata, "ASG_AWA")
"""

from collections.abc import Sequence
from pathlib import Path

from anndata import AnnData

from bdm.audit.results import Audit
from bdm.evaluation.predicted import PredictedEvaluation, evaluate_predicted
from bdm.hierarchy.files import Tree, as_clade
from bdm.hierarchy.tree import Clade
from bdm.lineages.cells import reconstruct_cells as reconstruct
from bdm.lineages.fates import fates
from bdm.lineages.fit import fit_lineage
from bdm.lineages.results import Lineage
from bdm.lineages.tree import read_lineage_tree
from bdm.power.analysis import PowerAnalysis
from bdm.power.differential import (
    ExperimentSettings,
    composition_tests,
    log_cpm_tests,
    pseudobulk_tests,
    wilcoxon_tests,
)
from bdm.responses.cells import predict_cells
from bdm.responses.fit import fit_responses
from bdm.responses.results import Responses
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


def lineage(
    adata: AnnData,
    *,
    tree: Path | str | Clade | None = None,
    lineage_key: str | None = None,
    time_key: str | None = None,
    label_key: str = LineageSettings.label_key,
    counts: str = LineageSettings.counts,
    n_times: int = LineageSettings.n_times,
    min_cells: int = LineageSettings.min_cells,
) -> Lineage:
    """Measure expression along a lineage and time, and find the law by which other nodes and times follow.

    Parameters
    ----------
    adata
        Cells of a lineage, with raw counts.
    tree
        The lineage tree in Newick, as a file or text, whose nodes are the cell types.
    lineage_key
        Column of ``obs`` with lineage names, such as ``ABpla``, in place of a tree.
    time_key, label_key
        Columns of ``obs`` with times, if any, and with cell types.
    counts
        Where the raw counts are: ``X``, ``raw``, the name of a layer, or ``auto``.
    n_times
        Number of time bins, if the cells have more times.
    min_cells
        Fewest cells of a node in a time bin whose expression is measured.

    Raises
    ------
    InputError
        If a column is missing or no time, a name has no node, times contradict the tree, or counts are not raw.
    """
    settings = LineageSettings(
        label_key=label_key,
        lineage_key=lineage_key,
        time_key=time_key,
        counts=counts,
        n_times=n_times,
        min_cells=min_cells,
    )
    return fit_lineage(adata, settings, tree=None if tree is None else read_lineage_tree(tree))


def __dir__() -> list[str]:
    return __all__
