"""Fit of responses: measure them, find the law of each condition, and leave each measured type out in turn."""

from dataclasses import asdict

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.files import provenance
from bdm._core.parallel import threads, using_threads
from bdm.data.read import rna_in
from bdm.hierarchy.files import Tree, as_clade
from bdm.hierarchy.tree import match_leaves
from bdm.kriging.law import Law, Measurements, calibration, fit_law, left_out
from bdm.responses.measured import measure
from bdm.responses.results import Relations, Responses, measurements, most_changed
from bdm.settings import ResponseSettings


@using_threads()
def fit_responses(
    adata: AnnData, settings: ResponseSettings = ResponseSettings(), *, tree: Tree | None = None
) -> Responses:
    """Measure the responses of cell types to conditions, and fit the law by which others follow.

    Parameters
    ----------
    adata
        Cells of two conditions or more, with raw counts, and the columns that ``settings`` name.
    tree
        Your own tree of the cell types, see :class:`bdm.BranchedDiffusion`; that of their control profiles by average
        linkage, if not given.

    Raises
    ------
    InputError
        If a column, the control or a second measured type is missing, counts are not raw, or the tree has other cell
        types.
    """
    found = measure(rna_in(adata), settings)
    known, names = found.has_profile, found.related_types
    relations = Relations.of(found.profile[known], names, None if tree is None else match_leaves(as_clade(tree), names))
    height = None
    if tree is not None:
        height = np.full((len(known), len(known)), np.nan)
        height[np.ix_(known, known)] = relations.height
    kernels = relations.kernels(settings.relations)

    def fitted(number: int) -> tuple[Law, np.ndarray, pd.DataFrame]:
        data = measurements(found, number, relations)
        law, unrelated = fit_law(data, kernels), fit_law(data, [])
        changed = data.genes(np.unique(most_changed(data)))
        predicted, without = left_out(law, changed, kernels)[0], left_out(unrelated, changed, [])[0]
        errors = errors_of(changed, predicted, without, relations).assign(condition=found.conditions[number])
        return law, calibration(law, data, kernels, relations.profile[data.measured]), errors

    with threads() as run:
        laws, calibrations, errors = zip(*run(fitted, range(len(found.conditions))), strict=True)
    return Responses(
        **vars(found),
        laws=laws,
        calibration=np.stack(calibrations),
        errors=pd.concat(errors, ignore_index=True)[["condition", "cell_type", *ERRORS]],
        height=height,
        relation=settings.relations,
        label_key=settings.label_key,
        condition_key=tuple(settings.condition_key),
        provenance=provenance(seed=0, settings=asdict(settings)),
    )


ERRORS = ("predicted", "unrelated", "common", "nearest", "sampling")


def errors_of(data: Measurements, mean: np.ndarray, unrelated: np.ndarray, relations: Relations) -> pd.DataFrame:
    """Errors of predictions of types that were left out; see :class:`bdm.responses.results.Responses`."""
    effect, variance = data.effect.numpy(), data.variance.numpy()
    n_types, rows = effect.shape[1], []
    distance = relations.distance[np.ix_(data.measured, data.measured)].copy()
    np.fill_diagonal(distance, np.inf)
    top = most_changed(data)
    for column in range(n_types):
        others, genes = np.arange(n_types) != column, top[:, column]
        real = effect[genes, column]
        size = np.sqrt(np.mean(real**2))
        predictions = {
            "predicted": mean[genes, column],
            "unrelated": unrelated[genes, column],
            "common": effect[genes][:, others].mean(axis=1),
            "nearest": effect[genes, int(distance[column].argmin())],
        }
        row = {name: np.sqrt(np.mean((values - real) ** 2)) / size for name, values in predictions.items()}
        row["sampling"] = np.sqrt(variance[genes, column].mean()) / size
        rows.append({"cell_type": relations.cell_types[data.measured[column]], **row})
    return pd.DataFrame(rows)
