"""Fit responses of cell types to conditions, and predict unmeasured ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.special import ndtr

from bdm._core.errors import InputError, abbreviated, counted, markdown
from bdm._core.files import provenance
from bdm._core.parallel import threads, using_threads
from bdm._core.schema import checked
from bdm._core.store import Result
from bdm._core.validation import unknown_condition, unknown_type
from bdm.applications.kriging.gaussian_process import (
    Law,
    Measurements,
    Prediction,
    bins_of,
    calibration,
    fit_law,
    left_out,
    predict,
)
from bdm.applications.responses.measured_responses import MeasuredResponses, Relations, heights, measure
from bdm.data.columns import as_names
from bdm.data.read import rna_in
from bdm.hierarchy.files import Tree, as_clade
from bdm.hierarchy.tree import Clade, match_leaves
from bdm.settings import Relation, ResponseSettings

MIN_TYPES = 4  # minimum number of measured types; with fewer, predictions get a warning
CLEARLY = 0.95  # share of the mean response's error; above, predictions are called no better
NEAREST = 100  # genes with the most significant changes, for errors


@dataclass(frozen=True, repr=False)
class Responses(MeasuredResponses, Result):
    """Measured responses of cell types, with Gaussian processes for the rest.

    The Gaussian process of a condition predicts the responses of unmeasured cell types.

    ::

        responses = bdm.tl.respond(adata, bdm.tl.ResponseSettings(control="ctrl"))
        stimulated = bdm.tl.predict(responses, adata_control, "stim")

    Attributes
    ----------
    genes
        ``var`` of the genes that are detected in enough cells; all others are left unchanged in predicted cells.
    cell_types, conditions, control
        Names of cell types, of conditions without the control, and of the control.
    profile
        Natural log of the share of counts plus 1e-4 in the control, cell types x genes. With too few control cells,
        it is estimated from the conditions. NaN if these have too few cells as well.
    effect, variance
        Natural log fold changes from the control and their sampling variances, conditions x cell types x genes; NaN if
        not measured.
    dispersion
        Squared coefficient of variation of counts within types in excess of Poisson noise, (control, conditions) x
        genes.
    n_cells
        Number of cells, cell types x (control, conditions).
    laws
        Fitted Gaussian-process prior of each condition.
    calibration
        Factors of posterior standard deviations, conditions x bins of expression. They make 90% intervals cover 90% of
        the genes of left-out types.
    errors
        Table of leave-one-out errors, by measured ``condition`` and ``cell_type``. Errors are root mean squares over
        the 100 most significantly changed genes, relative to their log fold changes (0: exact, 1: no better than
        unchanged cells), by method: the Gaussian process (``predicted``), the same without kernels between types
        (``unrelated``), the mean of the other types (``common``), or the type with the nearest control profile
        (``nearest``). ``sampling`` is the measurement error.
    height
        Heights of common ancestors in the user's tree, types x types; None if types were clustered.
    relation
        Relations along which responses may covary: ``all``, ``tree``, ``distance`` or ``none``.
    label_key, condition_key
        Columns of ``obs`` in the data.
    provenance
        Version, packages, seed and settings.
    """

    kind = "responses"

    laws: tuple[Law, ...]
    calibration: np.ndarray
    errors: pd.DataFrame
    height: np.ndarray | None
    relation: Relation
    label_key: str
    condition_key: tuple[str, ...]
    provenance: dict[str, Any]

    def __repr__(self) -> str:
        return "\n".join(self.sentence(name) for name in self.conditions)

    def condition_number(self, condition: str) -> int:
        """Return the index of a condition; reject the control and unknown names."""
        if condition not in self.conditions:
            raise InputError(unknown_condition(condition, self.conditions))
        return self.conditions.index(condition)

    @property
    def measured(self) -> pd.DataFrame:
        """Whether each response was measured, cell types x conditions."""
        is_measured = ~np.isnan(self.effect[:, :, 0])  # for all genes or none
        return pd.DataFrame(is_measured.T, index=self.cell_types, columns=self.conditions)

    def is_measured(self, condition: str, cell_type: str) -> bool:
        """Return whether the response of a type to a condition was measured."""
        return cell_type in self.cell_types and bool(self.measured.loc[cell_type, condition])

    def of_genes(self, rows: np.ndarray) -> Responses:
        """Select genes by row; distances between types then use these genes only."""
        if len(rows) == len(self.genes):
            return self
        arrays = ("profile", "effect", "variance", "dispersion")
        return replace(self, genes=self.genes.iloc[rows], **{name: getattr(self, name)[..., rows] for name in arrays})

    def relations(self, added: dict[str, np.ndarray] | None = None) -> Relations:
        """Return relations of the types with a profile, and of added profiles by name."""
        added = added or {}
        names = (*self.related_types, *added)
        found = Relations.of(np.vstack([self.profile[self.has_profile], *added.values()]), names)
        if self.height is None:
            return found
        of_tree = {name: row for row, name in enumerate(self.cell_types) if not np.isnan(self.height[row]).all()}
        if missing := [name for name in added if name not in of_tree]:
            raise InputError(
                f"The tree that the responses were fitted with has no type {missing[0]!r}; fit them again with a tree "
                "that has it, or without a tree of your own."
            )
        rows = [of_tree[name] for name in names]
        return replace(found, height=self.height[np.ix_(rows, rows)])

    def predictions(
        self,
        condition: str,
        cell_types: Sequence[str],
        added: dict[str, np.ndarray],
        genes: slice | np.ndarray = slice(None),
    ) -> Prediction:
        """Predict natural log fold changes, genes x types.

        Parameters
        ----------
        condition
            Measured condition.
        cell_types
            Types to predict.
        added
            Control profiles (log shares of counts) of types that the responses lack, by name.
        genes
            Rows of genes to predict; all by default.
        """
        number, relations = self.condition_number(condition), self.relations(added)
        missing = [name for name in cell_types if name not in relations.cell_types]
        if missing:
            raise InputError(unknown_type(missing[0], relations.cell_types, of="The responses have"))
        data = measurements(self, number, relations).genes(genes)
        at = np.array([relations.cell_types.index(name) for name in cell_types])
        return predict(self.laws[number], data, relations.kernels(self.relation), at)

    def effects(
        self, condition: str, cell_types: str | Sequence[str] = (), *, profiles: dict[str, np.ndarray] | None = None
    ) -> pd.DataFrame:
        """Predict log2 fold changes from the control to a condition.

        Parameters
        ----------
        condition
            Condition that was measured in some types.
        cell_types
            Types to tabulate; by default all with a profile, and those in ``profiles``.
        profiles
            Control profiles of further types by name: natural log of the share of counts plus 1e-4, for each gene.

        Returns
        -------
        Table with a row for each ``cell_type`` and ``gene``. Columns:

        - ``log2_fold_change``, its standard deviation ``sd``, and the probability ``sign`` that its sign is right
        - the terms of its sum: ``common`` to all types, due to the expression ``level`` of the gene in the type, shared
          with ``related`` types, and the type's ``own``
        - ``measured`` (True or False), and the ``measured_log2_fold_change``, NaN if not measured

        Raises
        ------
        InputError
            If a condition or a type is unknown.
        """
        added = profiles or {}
        names = as_names(cell_types) or (*self.related_types, *added)
        found, tables = self.predictions(condition, names, added), []
        number, unit = self.condition_number(condition), np.log(2)
        for column, name in enumerate(names):
            measured, mean = self.is_measured(condition, name), found.mean[:, column]
            sd = np.sqrt(found.variance[:, column])
            if not measured:
                profile = added[name] if name in added else self.profile[self.cell_types.index(name)]
                sd = sd * self.calibration[number][bins_of(profile)]
            table = pd.DataFrame({"cell_type": name, "gene": self.genes.index, "log2_fold_change": mean / unit})
            table["sd"], table["sign"] = sd / unit, ndtr(np.abs(mean) / np.maximum(sd, 1e-12))
            for part, values in found.parts.items():
                table[part] = values[:, column] / unit
            table["measured"] = measured
            known = self.effect[number, self.cell_types.index(name)] if measured else np.nan
            table["measured_log2_fold_change"] = known / unit
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def most_changed(self, condition: str) -> np.ndarray:
        """Return rows of genes that are among the most changed of any type."""
        return np.unique(most_changed(measurements(self, self.condition_number(condition), self.relations())))

    def branches(self, condition: str, genes: slice | np.ndarray = slice(None)) -> pd.DataFrame:
        """Tabulate how the response to a condition changes along the tree.

        Parameters
        ----------
        condition
            Condition that was measured in some types.
        genes
            Rows of genes to tabulate; all by default.

        Returns
        -------
        Table with a row for each branch and ``gene``, the largest ``z`` of each branch first. Columns:

        - ``cell_types`` below the branch, joined by ``"; "``
        - ``mean``: average log2 fold change of these types
        - ``change`` of the mean from the parent branch; at the root, the mean itself
        - ``z``: change divided by its standard deviation
        """
        relations = self.relations()
        found = self.predictions(condition, relations.cell_types, {}, genes)
        names, tables = np.array(relations.cell_types), []
        for node in relations.nodes:
            below, above = np.isin(names, list(node)) / len(node), relations.parent(node)
            weight = below if above is None else below - np.isin(names, list(above)) / len(above)
            change, variance = found.mean @ weight, found.variance @ weight**2
            table = pd.DataFrame({"cell_types": "; ".join(sorted(node)), "gene": self.genes.index[genes]})
            table["mean"], table["change"] = found.mean @ below / np.log(2), change / np.log(2)
            table["z"] = change / np.sqrt(np.maximum(variance, 1e-12))
            tables.append(table.sort_values("z", key=np.abs, ascending=False, kind="stable"))
        return pd.concat(tables, ignore_index=True)

    def next_prediction(self) -> tuple[str, str]:
        """Suggest a condition and a type with control cells, unmeasured if possible."""
        types = [name for name in self.related_types if self.n_cells.loc[name, self.control]]
        return min(product(self.conditions, types), key=lambda pair: self.is_measured(*pair))

    def n_measured(self, condition: str) -> int:
        """Count the cell types with a measured response to a condition."""
        return int(self.measured.iloc[:, self.condition_number(condition)].sum())

    def expected_error(self, condition: str) -> pd.Series:
        """Average :attr:`errors` of a condition over measured cell types."""
        of_condition = self.errors[self.errors["condition"] == self.conditions[self.condition_number(condition)]]
        return of_condition.drop(columns=["condition", "cell_type"]).mean()

    def sentence(self, condition: str) -> str:
        """Describe the leave-one-out error of predictions in a condition."""
        error, n_types = self.expected_error(condition), self.n_measured(condition)
        return (
            f"{condition}: a type that was not measured is predicted with {error['predicted']:.0%} of the error of "
            f"unchanged cells (common response {error['common']:.0%}, nearest type {error['nearest']:.0%}, measurement "
            f"alone {error['sampling']:.0%}), by {n_types} types that were left out in turn"
        )

    def warnings(self, condition: str) -> list[str]:
        """Return reasons not to rely on predictions in a condition."""
        error, found = self.expected_error(condition), []
        if (n_types := self.n_measured(condition)) < MIN_TYPES:
            found.append(f"In {condition}, only {n_types} types were measured, too few to say what others do.")
        if error["predicted"] >= CLEARLY * error["common"]:
            found.append(f"In {condition}, predictions are no better than the mean response of the other types.")
        if error["predicted"] > (1 + error["sampling"]) / 2:
            found.append(
                f"In {condition}, predictions are nearer to unchanged cells than to real ones; do not use them."
            )
        return found

    def _write_tables(self, folder: Path) -> None:
        self.errors.to_csv(folder / "errors.csv", index=False, float_format="%.4g")


def measurements(responses: MeasuredResponses, number: int, relations: Relations) -> Measurements:
    """Return the measurements of a condition, in the order of related types."""
    row = [responses.cell_types.index(name) if name in responses.cell_types else -1 for name in relations.cell_types]
    effect = np.where(np.array(row)[:, None] >= 0, responses.effect[number][row], np.nan)
    measured = np.flatnonzero(~np.isnan(effect).any(axis=1))
    level = relations.profile - relations.profile[measured].mean(axis=0)
    of_measured = np.array(row)[measured]
    return Measurements(
        effect=torch.from_numpy(effect[measured].T.astype(float)),
        variance=torch.from_numpy(responses.variance[number][of_measured].T.astype(float)),
        level=torch.from_numpy(level.T.astype(float)),
        measured=measured,
    )


def most_changed(data: Measurements) -> np.ndarray:
    """Return the genes with the most significant changes in order, genes x measured types."""
    significance = data.effect.abs() / data.variance.sqrt()
    return np.argsort(-significance.numpy(), axis=0, kind="stable")[:NEAREST]


# ---- fit: measure, fit a Gaussian process for each condition, and cross-validate over types


@checked
@using_threads()
def respond(adata: AnnData, settings: ResponseSettings = ResponseSettings(), *, tree: Tree | None = None) -> Responses:
    """Fit Gaussian processes of responses of cell types to conditions.

    Responses are log fold changes of pseudobulk counts. The model is in
    :mod:`bdm.applications.kriging.gaussian_process`.

    Parameters
    ----------
    adata
        Cells of the control and at least one other condition, with raw counts, and the columns of ``obs`` in
        ``settings``.
    settings
        Columns, name of the control, and the kernels to use.
    tree
        Your own tree of the cell types, as for :class:`bdm.BranchedDiffusion`. By default, control profiles are
        clustered by average linkage.

    Returns
    -------
    Responses with the measurements, the fitted Gaussian processes and their leave-one-out errors.

    Raises
    ------
    InputError
        If a column or the control is missing, or counts are not raw. Also if a condition has fewer than two measured
        types or a single donor, or the tree does not match the cell types.
    """
    found = measure(rna_in(adata, counts=settings.counts), settings)
    known = found.has_profile
    relations, height = Relations.of(found.profile[known], found.related_types), None
    if tree is not None:
        height = heights_in(as_clade(tree), found.cell_types, known)
        relations = replace(relations, height=height[known][:, known])
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


def heights_in(tree: Clade, cell_types: tuple[str, ...], known: np.ndarray) -> np.ndarray:
    """Return heights of last common ancestors in a user's tree, types x types.

    The tree must have the ``known`` types, and may have other types of the data; NaN for types that it lacks.
    """
    leaves = {leaf.replace("_", " ") for leaf in tree.leaves()}
    rows = [row for row, name in enumerate(cell_types) if known[row] or name.replace("_", " ") in leaves]
    names = tuple(cell_types[row] for row in rows)
    found = np.full((len(cell_types), len(cell_types)), np.nan)
    found[np.ix_(rows, rows)] = heights(match_leaves(tree, names), names)
    return found


ERRORS = ("predicted", "unrelated", "common", "nearest", "sampling")


def errors_of(data: Measurements, mean: np.ndarray, unrelated: np.ndarray, relations: Relations) -> pd.DataFrame:
    """Compute leave-one-out errors, see :attr:`Responses.errors`."""
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


# ---- section of a model card

N_SHOWN = 10  # conditions


def responses_section(responses: Responses, cell_types: Sequence[str]) -> dict[str, Any]:
    """Return the values for the responses section of a model card."""
    if set(responses.cell_types).isdisjoint(cell_types):
        raise InputError(
            f"The responses are of other cell types ({abbreviated(responses.cell_types, n_shown=3)}) than the model "
            f"({abbreviated(list(cell_types), n_shown=3)}); give responses of the same data."
        )
    conditions, donor_key = responses.conditions, responses.provenance["settings"]["donor_key"]
    worst = responses.errors.loc[responses.errors["predicted"].idxmax()]
    of_worst = f"{markdown(worst['cell_type'])} in {markdown(worst['condition'])}"
    return {
        "conditions": markdown(abbreviated(conditions, n_shown=N_SHOWN)),
        "control": markdown(responses.control),
        "n_cells": int(responses.n_cells.to_numpy().sum()),
        "replicates": "cells" if donor_key is None else f"donors, in the column {markdown(donor_key)}",
        "rows": list(error_rows(responses)),
        "others": counted(max(len(conditions) - N_SHOWN, 0), "other condition"),
        "has_others": len(conditions) > N_SHOWN,
        "worst": f"{worst['predicted']:.0%}, is that of {of_worst}",
        "warnings": [markdown(text) for condition in conditions for text in responses.warnings(condition)],
    }


def error_rows(responses: Responses) -> Iterator[tuple[str, ...]]:
    """Yield table rows: condition, number of measured types, and errors by method."""
    for name in responses.conditions[:N_SHOWN]:
        error = responses.expected_error(name)
        shown = (f"{error[method]:.0%}" for method in ("predicted", "common", "nearest", "sampling"))
        yield markdown(name), f"{responses.n_measured(name)} of {len(responses.cell_types)}", *shown
