"""Figures of a model and of how good it is, as matplotlib axes, in the manner of ``scanpy.pl``.

As there, ``show=None`` follows ``scanpy.settings.autoshow``: a figure is shown, and nothing returned, where there is a
screen to show it on, as in a notebook. Elsewhere, as in a script, and with ``show=False``, axes are returned: one, or
those of all panels in a list. Unlike there, a figure that is drawn into given axes (``ax``) is not shown unless
``show=True``, as it is not whole yet.

::

    ax = bdm.pl.hierarchy(model, show=False)
    ax.set_title("blood")
    plt.savefig("hierarchy.pdf")
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import matplotlib.pyplot as plt
import pandas as pd
import scanpy as sc
from matplotlib.axes import Axes
from matplotlib.backends import BackendFilter, backend_registry
from matplotlib.figure import Figure

from bdm.api import BranchedDiffusion
from bdm.errors import InputError
from bdm.evaluation.evaluate import Evaluation
from bdm.evaluation.figures.by_type import SCORES, by_type_figure, plot_types
from bdm.evaluation.figures.genes import genes_figure
from bdm.evaluation.figures.looks import LABELS
from bdm.evaluation.figures.overall import overall_figure, plot_score
from bdm.evaluation.figures.umap import umap_figure
from bdm.extension.report import genes_table, likelihood_table
from bdm.interpretation.interpret import Interpretation
from bdm.plotting import transmutation as moves
from bdm.plotting.branch_agreement import agreement_figure
from bdm.plotting.branch_genes import branch_genes_figure, plot_branch
from bdm.plotting.commitment import MAX_GENES, plot_commitment
from bdm.plotting.extension import own_genes_figure, plot_likelihood
from bdm.plotting.hierarchy import plot_hierarchy
from bdm.plotting.hybrids import hybrids_figure
from bdm.plotting.markers import markers_figure
from bdm.plotting.paths import paths_figure
from bdm.plotting.places import plot_places
from bdm.plotting.view import MAX_ROWS
from bdm.transmutation.evaluate import TransmutationEvaluation

__all__ = [
    "agreement",
    "branch_genes",
    "commitment",
    "genes",
    "hierarchy",
    "hybrid_umap",
    "hybrids",
    "likelihood",
    "markers",
    "own_genes",
    "paths",
    "scores",
    "scores_by_type",
    "transmutation",
    "transmutation_genes",
    "transmutation_umap",
    "umap",
]


def hierarchy(
    model: BranchedDiffusion,
    *,
    root: str | None = None,
    names: bool = False,
    max_rows: int = MAX_ROWS,
    since: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
) -> Axes | None:
    """Draw the tree of cell types, with the noise level and the support of each branch point.

    Parameters
    ----------
    model
        A fitted or loaded model.
    root
        Draw only the clade below this branch.
    names
        Name the branch points too.
    max_rows
        Most rows; more cell types are drawn as clades.
    since
        Extension after which added types are highlighted; all that were added by default.

    Examples
    --------
    ::

        bdm.pl.hierarchy(model)
    """
    drawable(model, BranchedDiffusion)
    looks = {"root": root, "names": names, "max_rows": max_rows, "since": since}
    return shown(plot_hierarchy(model.hierarchy, ax=ax, new=plt.figure, **looks), show=show, whole=ax is None)


def branch_genes(
    model: BranchedDiffusion, branch: str | None = None, *, ax: Axes | None = None, show: bool | None = None
) -> Axes | list[Axes] | None:
    """Draw the genes that part the children of each node, with 95% intervals, beside those in real cells.

    Parameters
    ----------
    model
        A model that :meth:`~bdm.BranchedDiffusion.interpret` was called on.
    branch
        Cell type or node whose genes alone are drawn, against its siblings; all, below the tree, if not given.
    ax
        For the genes of one branch.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.branch_genes(model, "CD19+ B")
    """
    found = interpretation_of(model)
    if branch is None:
        refuse(ax, "branch")
        return shown(branch_genes_figure(found, new=plt.figure), show=show)
    return shown(plot_branch(found, branch, ax=ax, new=plt.figure), show=show, whole=ax is None)


def commitment(
    model: BranchedDiffusion, *, max_genes: int = MAX_GENES, ax: Axes | None = None, show: bool | None = None
) -> Axes | None:
    """Draw how well each gene tells the children of its node apart, by noise level.

    Parameters
    ----------
    model
        A model that :meth:`~bdm.BranchedDiffusion.interpret` was called on.
    max_genes
        Most genes, two or more of each node; each has a row.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.commitment(model)
    """
    if max_genes < 2:
        raise InputError(f"max_genes is {max_genes}, but must be 2 or more.")
    drawn = plot_commitment(interpretation_of(model), max_genes=max_genes, ax=ax, new=plt.figure)
    return shown(drawn, show=show, whole=ax is None)


def paths(model: BranchedDiffusion, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the average path of each cell type through the noise levels, for the gene that marks each branch most.

    Parameters
    ----------
    model
        A model that :meth:`~bdm.BranchedDiffusion.interpret` was called on.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.paths(model)
    """
    return shown(paths_figure(interpretation_of(model), new=plt.figure), show=show)


def hybrids(model: BranchedDiffusion, *, show: bool | None = None) -> list[Axes] | None:
    """Draw a dot plot of marker genes down the tree: in the hybrid of each branch, and in the real cells below it.

    Parameters
    ----------
    model
        A model that :meth:`~bdm.BranchedDiffusion.interpret` was called on.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.hybrids(model)
    """
    return shown(hybrids_figure(interpretation_of(model), new=plt.figure), show=show)


def hybrid_umap(model: BranchedDiffusion, *, ax: Axes | None = None, show: bool | None = None) -> Axes | None:
    """Draw the hybrids among real cells in one UMAP, joined as the tree joins them.

    Parameters
    ----------
    model
        A model that :meth:`~bdm.BranchedDiffusion.interpret` was called on.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.hybrid_umap(model)
    """
    return shown(plot_places(interpretation_of(model), ax=ax, new=plt.figure), show=show, whole=ax is None)


def markers(model: BranchedDiffusion, *, show: bool | None = None) -> list[Axes] | None:
    """Draw a dot plot of marker genes in real cells beside one in generated cells.

    Parameters
    ----------
    model
        A model that :meth:`~bdm.BranchedDiffusion.interpret` was called on.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.markers(model)
    """
    found = interpretation_of(model)
    return shown(markers_figure(found.markers, found.hierarchy, labels=found.names.labels, new=plt.figure), show=show)


def agreement(model: BranchedDiffusion, *, show: bool | None = None) -> list[Axes] | None:
    """Draw how far the genes of each node agree with real cells, beside how far real cells agree with each other.

    Parameters
    ----------
    model
        A model that :meth:`~bdm.BranchedDiffusion.interpret` was called on.

    Examples
    --------
    ::

        model.interpret()
        bdm.pl.agreement(model)
    """
    return shown(agreement_figure(interpretation_of(model), new=plt.figure), show=show)


def scores(
    evaluation: Evaluation, score: str | None = None, *, ax: Axes | None = None, show: bool | None = None
) -> Axes | list[Axes] | None:
    """Draw how near generated cells come to real ones, with the floor and the ideal of each score.

    Parameters
    ----------
    evaluation
        Of :meth:`~bdm.BranchedDiffusion.evaluate`.
    score
        Row of ``evaluation.overall`` that alone is drawn, such as ``energy``.
    ax
        For one score.

    Examples
    --------
    ::

        evaluation = model.evaluate(adata_test)
        bdm.pl.scores(evaluation)
    """
    drawable(evaluation, Evaluation)
    if score is None:
        refuse(ax, "score")
        return shown(overall_figure(evaluation, new=plt.figure), show=show)
    check(score, tuple(LABELS))
    return shown(plot_score(evaluation, score, ax=ax, new=plt.figure), show=show, whole=ax is None)


def scores_by_type(
    evaluation: Evaluation, score: str | None = None, *, ax: Axes | None = None, show: bool | None = None
) -> Axes | list[Axes] | None:
    """Draw the scores of each cell type, with the floor.

    Parameters
    ----------
    evaluation
        Of :meth:`~bdm.BranchedDiffusion.evaluate`.
    score
        ``energy``, ``forest_auc``, ``slope`` or ``f1``, which alone is drawn.
    ax
        For one score.

    Examples
    --------
    ::

        evaluation = model.evaluate(adata_test)
        bdm.pl.scores_by_type(evaluation, "energy")
    """
    drawable(evaluation, Evaluation)
    if score is None:
        refuse(ax, "score")
        return shown(by_type_figure(evaluation, new=plt.figure), show=show)
    check(score, SCORES)
    return shown(plot_types(evaluation, score, ax=ax, new=plt.figure), show=show, whole=ax is None)


def genes(evaluation: Evaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw statistics of each gene in generated cells against those in test cells, over the floor.

    Parameters
    ----------
    evaluation
        Of :meth:`~bdm.BranchedDiffusion.evaluate`.

    Examples
    --------
    ::

        evaluation = model.evaluate(adata_test)
        bdm.pl.genes(evaluation)
    """
    return shown(genes_figure(drawable(evaluation, Evaluation), new=plt.figure), show=show)


def umap(evaluation: Evaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw test cells, training cells and generated cells in a joint UMAP, one panel each.

    Parameters
    ----------
    evaluation
        Of :meth:`~bdm.BranchedDiffusion.evaluate`.

    Examples
    --------
    ::

        evaluation = model.evaluate(adata_test)
        bdm.pl.umap(evaluation)
    """
    return shown(umap_figure(drawable(evaluation, Evaluation), new=plt.figure), show=show)


def transmutation(evaluation: TransmutationEvaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw how near transmuted cells come to real cells of their new type, and what they kept, with the floor.

    Parameters
    ----------
    evaluation
        Of :meth:`~bdm.BranchedDiffusion.evaluate_transmuted`.

    Examples
    --------
    ::

        adata_moved = model.transmute(adata, to="NK")
        bdm.pl.transmutation(model.evaluate_transmuted(adata_moved, adata, adata_test))
    """
    drawable(evaluation, TransmutationEvaluation)
    return shown(moves.scores_figure(evaluation.table, evaluation.to, new=plt.figure), show=show)


def transmutation_genes(evaluation: TransmutationEvaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw the fold changes of the genes that tell two types apart, in transmuted and in real cells.

    Parameters
    ----------
    evaluation
        Of :meth:`~bdm.BranchedDiffusion.evaluate_transmuted`.

    Examples
    --------
    ::

        adata_moved = model.transmute(adata, to="NK")
        bdm.pl.transmutation_genes(model.evaluate_transmuted(adata_moved, adata, adata_test))
    """
    return shown(moves.genes_figure(drawable(evaluation, TransmutationEvaluation), new=plt.figure), show=show)


def transmutation_umap(evaluation: TransmutationEvaluation, *, show: bool | None = None) -> list[Axes] | None:
    """Draw transmuted cells, what they were, and real cells of their new type, one panel a type that they were of.

    Parameters
    ----------
    evaluation
        Of :meth:`~bdm.BranchedDiffusion.evaluate_transmuted`.

    Examples
    --------
    ::

        adata_moved = model.transmute(adata, to="NK")
        bdm.pl.transmutation_umap(model.evaluate_transmuted(adata_moved, adata, adata_test))
    """
    return shown(moves.umap_figure(drawable(evaluation, TransmutationEvaluation), new=plt.figure), show=show)


def likelihood(model: BranchedDiffusion, *, ax: Axes | None = None, show: bool | None = None) -> Axes | None:
    """Draw how well each type is expressed: known ones, and those that were added before and after.

    Parameters
    ----------
    model
        A model that :meth:`~bdm.BranchedDiffusion.extend` was called on.

    Examples
    --------
    ::

        model.extend(adata_other)
        bdm.pl.likelihood(model)
    """
    if not model.learnt:
        raise InputError("The model has learnt no types by extension; call extend() first.")
    drawable(model, BranchedDiffusion)
    table = likelihood_table(list(model.learnt), model.model)
    return shown(plot_likelihood(table, ax=ax, new=plt.figure), show=show, whole=ax is None)


def own_genes(
    model: BranchedDiffusion, cell_types: Sequence[str] = (), *, show: bool | None = None
) -> Axes | list[Axes] | None:
    """Draw the genes that the own decoder of each type changes most.

    Parameters
    ----------
    model
        A fitted or loaded model.
    cell_types
        Types to draw; all that have a decoder of their own if none are named.

    Examples
    --------
    ::

        bdm.pl.own_genes(model, ["Dendritic"])
    """
    drawable(model, BranchedDiffusion)
    own = model.model.autoencoder.own
    for name in cell_types:
        if name not in own:
            raise InputError(f"The type {name!r} has no decoder of its own; those that have are {', '.join(own)}.")
    table = genes_table(model.model, cell_types or own) if own else pd.DataFrame({"cell_type": []})
    return shown(own_genes_figure(table, new=plt.figure), show=show)


Kind = TypeVar("Kind")
MAKES = {
    BranchedDiffusion: "bdm.BranchedDiffusion(adata) makes",
    Evaluation: "model.evaluate(adata_test) returns",
    TransmutationEvaluation: "model.evaluate_transmuted(adata_transmuted, adata, adata_test) returns",
}


def drawable(value: Any, kind: type[Kind]) -> Kind:
    """Give what is to be drawn, if it is of the right kind.

    Raises
    ------
    InputError
        If it is of another kind.
    """
    if not isinstance(value, kind):
        raise InputError(f"This figure is of what {MAKES[kind]}, not of {type(value).__name__}.")
    return value


def interpretation_of(model: BranchedDiffusion) -> Interpretation:
    """Take what ``interpret()`` found."""
    drawable(model, BranchedDiffusion)
    if model.interpretation is None:
        raise InputError("The model is not interpreted yet, or has changed since; call interpret() first.")
    return model.interpretation


def refuse(ax: Axes | None, one: str) -> None:
    """Refuse to draw several panels into one axes."""
    if ax is not None:
        raise InputError(f"This figure has several panels, which one ax cannot hold; name one {one} to draw into it.")


def check(score: str, known: tuple[str, ...]) -> None:
    """Refuse a score that is not drawn."""
    if score not in known:
        raise InputError(f"No score {score!r} is drawn; choose of {', '.join(known)}.")


def shown(drawn: Axes | Figure, *, show: bool | None, whole: bool = True) -> Axes | list[Axes] | None:
    """Show a figure, or give its axes: those of panels in a list, without colour bars.

    Parameters
    ----------
    whole
        Whether bdm made the figure, and nothing is to be added.
    """
    if show is None:
        show = whole and sc.settings.autoshow and on_screen()
    if show:
        plt.show()
        return None
    return [axis for axis in drawn.axes if axis.get_label() != "<colorbar>"] if isinstance(drawn, Figure) else drawn


def on_screen() -> bool:
    """Tell whether matplotlib shows figures, as in a notebook or in a window, or only writes them to files."""
    return plt.get_backend().lower() not in backend_registry.list_builtin(BackendFilter.NON_INTERACTIVE)
