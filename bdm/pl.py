"""Figures of models and of results, as matplotlib axes, in the manner of ``scanpy.pl``.

The functions draw results in memory, such as ``model.evaluate(adata_test)`` returns, and results on disk, such as
``bdm.Evaluation.load("evaluation")``. The argument ``interpretation`` is a :class:`~bdm.Interpretation`, or a model
after :meth:`~bdm.BranchedDiffusion.interpret`; ``evaluation`` is what ``evaluate`` or ``evaluate_transmuted`` returned.

With ``show=None``, a figure is shown, and nothing returned, where there is a screen to show it on, as in a notebook.
Elsewhere, as in a script, and with ``show=False``, axes are returned: one, or the axes of all panels in a list. Unlike
in scanpy, a figure that is drawn into given axes (``ax``) is not shown unless ``show=True``, as it is not complete yet.

::

    ax = bdm.pl.hierarchy(model, show=False)
    ax.set_title("blood")
    plt.savefig("hierarchy.pdf")
"""

from bdm.plotting.ancestral_states import ancestral_states, markers
from bdm.plotting.branches import agreement, branch_genes, commitment
from bdm.plotting.covariates import covariates
from bdm.plotting.evaluation import genes, properties, scores, scores_by_type, umap
from bdm.plotting.experiments import audit, power
from bdm.plotting.lineages import lineage
from bdm.plotting.responses import response, response_errors
from bdm.plotting.transmutation import transmutation, transmutation_genes
from bdm.plotting.tree import hierarchy

__all__ = [
    "agreement",
    "ancestral_states",
    "audit",
    "branch_genes",
    "commitment",
    "covariates",
    "genes",
    "hierarchy",
    "lineage",
    "markers",
    "power",
    "properties",
    "response",
    "response_errors",
    "scores",
    "scores_by_type",
    "transmutation",
    "transmutation_genes",
    "umap",
]


def __dir__() -> list[str]:
    return __all__
