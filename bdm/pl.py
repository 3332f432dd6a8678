"""Figures of models and of results, as matplotlib axes, in the manner of ``scanpy.pl``.

The functions draw results in memory, such as ``model.evaluate(adata_test)`` returns, and results on disk, such as
``bdm.Evaluation.load("evaluation")``. The argument ``interpretation`` is a :class:`~bdm.Interpretation`, or a model
after :meth:`~bdm.BranchedDiffusion.interpret`; ``evaluation`` is what ``evaluate`` or ``evaluate_transmuted`` returned.

``show=None`` follows ``scanpy.settings.autoshow``: a figure is shown, and nothing returned, where there is a screen to
show it on, as in a notebook. Elsewhere, as in a script, and with ``show=False``, axes are returned: one, or the axes of
all panels in a list. Unlike in scanpy, a figure that is drawn into given axes (``ax``) is not shown unless
``show=True``, as it is not complete yet.

::

    ax = bdm.pl.hierarchy(model, show=False)
    ax.set_title("blood")
    plt.savefig("hierarchy.pdf")
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes

from bdm.api import BranchedDiffusion
from bdm.errors import InputError
from bdm.evaluation.results import Evaluation
from bdm.extension.results import ExtensionReport, genes_table
from bdm.hierarchy.tree import Hierarchy
from bdm.interpretation.results import Interpretation
from bdm.plotting.agreement import agreement_figure
from bdm.plotting.ancestral_states import ancestral_states_figure, paths_figure, plot_ancestral_umap
from bdm.plotting.audit import audit
from bdm.plotting.branches import MAX_GENES, branch_genes_figure, plot_branch, plot_commitment
from bdm.plotting.evaluation import (
    LABELS,
    SCORES_BY_TYPE,
    by_type_figure,
    genes_figure,
    overall_figure,
    plot_score,
    plot_types,
    umap_figure,
)
from bdm.plotting.extension import plot_likelihood, type_specific_genes_figure
from bdm.plotting.markers import markers_figure
from bdm.plotting.power import power
from bdm.plotting.properties import properties_figure
from bdm.plotting.style import check_no_axes, check_score, shown
from bdm.plotting.transmutation import (
    transmutation_genes_figure,
    transmutation_scores_figure,
    transmutation_umap_figure,
)
from bdm.plotting.tree import MAX_ROWS, plot_hierarchy
from bdm.transmutation.results import TransmutationEvaluation

__all__ = [
    "agreement",
    "ancestral_states",
    "ancestral_umap",
    "audit",
    "branch_genes",
    "commitment",
    "genes",
    "hierarchy",
    "likelihood",
    "markers",
    "paths",
    "power",
    "properties",
    "scores",
    "scores_by_type",
    "transmutation",
    "transmutation_genes",
    "transmutation_umap",
    "type_specific_genes",
    "umap",
]


def __dir__() -> list[str]:
    return __all__


Interpreted = Interpretation | BranchedDiffusion  # an interpretation, or a model that was interpreted


def hierarchy(
    model: BranchedDiffusion | Interpretation | ExtensionReport | Hierarchy,
    *,
    root: str | None = None,
    names: bool = False,
    max_rows: int = MAX_ROWS,
    since: int | None = None,
    sub_populations: bool = False,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw the tree of cell types, with the noise level and the support of each node.

    Parameters
    ----------
    model
        A fitted or loaded model, or the hierarchy of one, or a result that has a hierarchy.
    root
        Draw only the clade below this branch; of a cell type, its sub-populations.
    names
        Label the nodes with their names too.
    max_rows
        Most rows; more cell types are drawn as clades.
    since
        Extension after which added types are highlighted; by default all types that were added, and of an
        :class:`~bdm.ExtensionReport` the types of this extension.
    sub_populations
        Draw each sub-population of a cell type; by default a cell type has one row.

    Examples
    --------
    ::

        bdm.pl.hierarchy(model)
    """
    check_kind(model, BranchedDiffusion, Interpretation, ExtensionReport, Hierarchy)
    if since is None:
        since = model.n_before if isinstance(model, ExtensionReport) else 0
    tree = model if isinstance(model, Hierarchy) else model.hierarchy
    which: dict[str, Any] = {"root": root, "max_rows": max_rows, "since": since, "sub_populations": sub_populations}
    axis = plot_hierarchy(tree, ax=ax, new=plt.figure, names=names, **which)
    return shown(axis, show=show, complete=ax is None)


def branch_genes(
    interpretation: Interpreted,
    branch: str | None = None,
    *,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | list[Axes] | None:
    """Draw the marker genes of each branch, with 95% intervals of their fold changes in the model and in real cells.

    Parameters
    ----------
    interpretation
        An interpretation, or a model that was interpreted.
    branch
        Cell type or node whose genes alone are drawn, against its siblings; if not given, all, below the tree.
    ax
        For the genes of one branch.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.branch_genes(model, "CD19+ B")
        bdm.pl.branch_genes(bdm.Interpretation.load("interpretation"))
    """
    result = interpretation_of(interpretation)
    if branch is None:
        check_no_axes(ax, "branch")
        return shown(branch_genes_figure(result, new=plt.figure), show=show)
    return shown(plot_branch(result, branch, ax=ax, new=plt.figure), show=show, complete=ax is None)


def commitment(
    interpretation: Interpreted,
    *,
    max_genes: int = MAX_GENES,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw how well each gene alone distinguishes the children of its node, by noise level.

    Parameters
    ----------
    interpretation
        An interpretation, or a model that was interpreted.
    max_genes
        Most genes, two or more of each node; each has a row.
    """
    if max_genes < 2:
        raise InputError(f"max_genes is {max_genes}, but must be 2 or more.")
    axis = plot_commitment(interpretation_of(interpretation), max_genes=max_genes, ax=ax, new=plt.figure)
    return shown(axis, show=show, complete=ax is None)


def paths(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the mean path of each cell type through the noise levels, for the best marker gene of each branch."""
    return shown(paths_figure(interpretation_of(interpretation), new=plt.figure), show=show)


def ancestral_states(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw a dot plot of marker genes by branch: in its ancestral state, and in the real cells below it."""
    return shown(ancestral_states_figure(interpretation_of(interpretation), new=plt.figure), show=show)


def ancestral_umap(interpretation: Interpreted, *, ax: Axes | None = None, show: bool | None = None) -> Axes | None:
    """Draw the ancestral states among real cells in one UMAP, joined as in the tree."""
    axis = plot_ancestral_umap(interpretation_of(interpretation), ax=ax, new=plt.figure)
    return shown(axis, show=show, complete=ax is None)


def markers(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw a dot plot of marker genes in real cells beside one in generated cells."""
    return shown(markers_figure(interpretation_of(interpretation), new=plt.figure), show=show)


def agreement(interpretation: Interpreted, *, show: bool | None = None) -> list[Axes] | None:
    """Draw how far the genes of each node agree with real cells, and how far real cells agree with each other."""
    return shown(agreement_figure(interpretation_of(interpretation), new=plt.figure), show=show)


def scores(
    evaluation: Evaluation, score: str | None = None, *, ax: Axes | None = None, show: bool | None = None
) -> Axes | list[Axes] | None:
    """Draw the scores of generated cells, with the floor and the ideal of each score.

    Parameters
    ----------
    evaluation
        Result of :meth:`~bdm.BranchedDiffusion.evaluate`.
    score
        Row of ``evaluation.overall`` that alone is drawn, such as ``energy``.
    ax
        For one score.

    Examples
    --------
    ::

        bdm.pl.scores(model.evaluate(adata_test))
        bdm.pl.scores(bdm.Evaluation.load("evaluation"))
    """
    check_kind(evaluation, Evaluation)
    if score is None:
        check_no_axes(ax, "score")
        return shown(overall_figure(evaluation, new=plt.figure), show=show)
    check_score(score, tuple(LABELS))
    return shown(plot_score(evaluation, score, ax=ax, new=plt.figure), show=show, complete=ax is None)


def scores_by_type(
    evaluation: Evaluation, score: str | None = None, *, ax: Axes | None = None, show: bool | None = None
) -> Axes | list[Axes] | None:
    """Draw the scores of each cell type, with the floor.

    Parameters
    ----------
    evaluation
        Result of :meth:`~bdm.BranchedDiffusion.evaluate`.
    score
        ``energy``, ``forest_auc``, ``slope`` or ``f1``, which alone is drawn.
    ax
        For one score.
    """
    check_kind(evaluation, Evaluation)
    if score is None:
        check_no_axes(ax, "score")
        return shown(by_type_figure(evaluation, new=plt.figure), show=show)
    check_score(score, SCORES_BY_TYPE)
    return shown(plot_types(evaluation, score, ax=ax, new=plt.figure), show=show, complete=ax is None)


def properties(evaluation: Evaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw how much farther from test cells than the floor each set is, in each property that benchmarks compare.

    Parameters
    ----------
    evaluation
        Result of :meth:`~bdm.BranchedDiffusion.evaluate`, whose table ``properties`` has the values.
    """
    return shown(properties_figure(check_kind(evaluation, Evaluation), new=plt.figure), show=show)


def genes(evaluation: Evaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw statistics of each gene in generated cells against the same in test cells, over the floor."""
    return shown(genes_figure(check_kind(evaluation, Evaluation), new=plt.figure), show=show)


def umap(evaluation: Evaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw test cells, training cells and generated cells in a joint UMAP, one panel each."""
    return shown(umap_figure(check_kind(evaluation, Evaluation), new=plt.figure), show=show)


def transmutation(evaluation: TransmutationEvaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the scores of transmuted cells, with the floor.

    Parameters
    ----------
    evaluation
        Result of :meth:`~bdm.BranchedDiffusion.evaluate_transmuted`.

    Examples
    --------
    ::

        adata_transmuted = model.transmute(adata, to="NK")
        bdm.pl.transmutation(model.evaluate_transmuted(adata_transmuted, adata, adata_test))
        bdm.pl.transmutation(bdm.TransmutationEvaluation.load("transmutation"))
    """
    check_kind(evaluation, TransmutationEvaluation)
    return shown(transmutation_scores_figure(evaluation.table, evaluation.to, new=plt.figure), show=show)


def transmutation_genes(evaluation: TransmutationEvaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the fold changes of the genes that differ most between two types, in transmuted and in real cells."""
    check_kind(evaluation, TransmutationEvaluation)
    return shown(transmutation_genes_figure(evaluation, new=plt.figure), show=show)


def transmutation_umap(evaluation: TransmutationEvaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw transmuted cells, the same cells before, and real cells of the new type, one panel an original type."""
    check_kind(evaluation, TransmutationEvaluation)
    return shown(transmutation_umap_figure(evaluation, new=plt.figure), show=show)


def likelihood(
    report: ExtensionReport | BranchedDiffusion, *, ax: Axes | None = None, show: bool | None = None
) -> Axes | None:
    """Draw the log likelihood of held-out cells of each type; of added types, before and after the extension.

    Parameters
    ----------
    report
        Report of an extension, or a model that was extended in this session.

    Examples
    --------
    ::

        model.extend(adata_other)
        bdm.pl.likelihood(model)
        bdm.pl.likelihood(bdm.ExtensionReport.load("report"))
    """
    check_kind(report, ExtensionReport, BranchedDiffusion)
    if isinstance(report, BranchedDiffusion):
        if not report.last_extension:
            raise InputError("The model was not extended in this session; call extend() first.")
        report = ExtensionReport.of(report.last_extension)
    return shown(plot_likelihood(report.likelihood, ax=ax, new=plt.figure), show=show, complete=ax is None)


def type_specific_genes(
    model: BranchedDiffusion | ExtensionReport, cell_types: Sequence[str] = (), *, show: bool | None = None
) -> Axes | list[Axes] | None:
    """Draw the genes that the type-specific decoder of each type changes most.

    Parameters
    ----------
    model
        A fitted or loaded model, or the report of an extension.
    cell_types
        Types to draw; by default all that have a type-specific decoder, or all of the report.

    Examples
    --------
    ::

        bdm.pl.type_specific_genes(model, ["Dendritic"])
    """
    check_kind(model, BranchedDiffusion, ExtensionReport)
    if isinstance(model, ExtensionReport):
        available = list(dict.fromkeys(model.genes["cell_type"]))
    else:
        available = list(model.model.autoencoder.adapters)
    for name in cell_types:
        if name not in available:
            raise InputError(f"The type {name!r} has no type-specific decoder; choose among {', '.join(available)}.")
    chosen = list(cell_types) or available
    if isinstance(model, ExtensionReport):
        table = model.genes[model.genes["cell_type"].isin(chosen)]
    else:
        table = genes_table(model.model, chosen) if chosen else pd.DataFrame({"cell_type": []})
    return shown(type_specific_genes_figure(table, new=plt.figure), show=show)


Kind = TypeVar("Kind")
SOURCES = {
    BranchedDiffusion: "a model (bdm.BranchedDiffusion)",
    Evaluation: "an evaluation, as model.evaluate(adata_test) returns",
    ExtensionReport: "the report of an extension (bdm.ExtensionReport)",
    Hierarchy: "a hierarchy",
    Interpretation: "an interpretation (bdm.Interpretation)",
    TransmutationEvaluation: "an evaluation of transmuted cells, as model.evaluate_transmuted() returns",
}


def check_kind(value: Any, *kinds: type[Kind]) -> Kind:
    """Return a value if it is of one of the kinds that a figure draws, or raise an InputError."""
    if not isinstance(value, kinds):
        accepted = " or ".join(SOURCES[kind] for kind in kinds)
        raise InputError(f"This figure draws {accepted}; {type(value).__name__} is none.")
    return value


def interpretation_of(source: Interpreted) -> Interpretation:
    """Return an interpretation, or the one of a model."""
    check_kind(source, Interpretation, BranchedDiffusion)
    if isinstance(source, Interpretation):
        return source
    if source.interpretation is None:
        raise InputError("The model is not interpreted yet, or has changed since; call interpret() first.")
    return source.interpretation
