"""Responses of cell types to conditions: measured ones, and predictions for all other types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr

from bdm._core.errors import InputError, abbreviated, counted, markdown
from bdm._core.store import Result
from bdm._core.validation import unknown_condition, unknown_type
from bdm.applications.relations.gaussian_process import GaussianProcess, Prediction, Prior, as_tensor
from bdm.applications.relations.related_types import RelatedTypes
from bdm.data.columns import as_names
from bdm.settings import Relation

MIN_TYPES = 4  # minimum number of measured types; with fewer, predictions get a warning
MAX_ERROR_RATIO = 0.95  # error relative to the mean response's; above, predictions are called no better
N_COMPARED = 100  # genes with the most significant changes of a type, for errors


@dataclass(frozen=True, repr=False)
class Responses(Result):
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
    relation
        Relations along which responses may covary: ``all``, ``tree``, ``distance`` or ``none``.
    label_key, condition_key
        Columns of ``obs`` in the data.
    provenance
        Version, packages, seed and settings.
    height
        Heights of common ancestors in the user's tree, types x types; None if types were clustered.
    priors
        Fitted Gaussian-process prior of each condition, with the calibration of its intervals.
    errors
        Table of leave-one-out errors, by measured ``condition`` and ``cell_type``. Errors are root mean squares over
        the 100 most significantly changed genes, relative to their log fold changes (0: exact, 1: no better than
        unchanged cells), by method: the Gaussian process (``predicted``), the same without kernels between types
        (``unrelated``), the mean of the other types (``common``), or the type with the nearest control profile
        (``nearest``). ``sampling`` is the measurement error.
    """

    kind = "responses"

    genes: pd.DataFrame
    cell_types: tuple[str, ...]
    conditions: tuple[str, ...]
    control: str
    profile: np.ndarray
    effect: np.ndarray
    variance: np.ndarray
    dispersion: np.ndarray
    n_cells: pd.DataFrame
    relation: Relation
    label_key: str
    condition_key: tuple[str, ...]
    provenance: dict[str, Any]
    height: np.ndarray | None = None
    priors: tuple[Prior, ...] = ()
    errors: pd.DataFrame = field(default_factory=pd.DataFrame)

    def __repr__(self) -> str:
        return "\n".join(self.sentence(name) for name in self.conditions)

    # ---- conditions and types

    def condition_index(self, condition: str) -> int:
        """Return the index of a condition; reject the control and unknown names."""
        if condition not in self.conditions:
            raise InputError(unknown_condition(condition, self.conditions))
        return self.conditions.index(condition)

    @cached_property
    def measured(self) -> pd.DataFrame:
        """Whether each response was measured, cell types x conditions."""
        is_measured = ~np.isnan(self.effect[:, :, 0])  # for all genes or none
        return pd.DataFrame(is_measured.T, index=self.cell_types, columns=self.conditions)

    def is_measured(self, condition: str, cell_type: str) -> bool:
        """Return whether the response of a type to a condition was measured."""
        return cell_type in self.cell_types and bool(self.measured.loc[cell_type, condition])

    def n_measured(self, condition: str) -> int:
        """Count the cell types with a measured response to a condition."""
        return int(self.measured.iloc[:, self.condition_index(condition)].sum())

    @property
    def has_profile(self) -> np.ndarray:
        """Whether each cell type has a profile, which kernels need."""
        return np.asarray(~np.isnan(self.profile).any(axis=1))

    @property
    def types_with_profile(self) -> tuple[str, ...]:
        """Cell types that have a profile."""
        return tuple(np.array(self.cell_types)[self.has_profile].tolist())

    def relate_types(self, added: Mapping[str, np.ndarray] = {}) -> RelatedTypes:
        """Relate the types with a profile, and types with added profiles by name."""
        names = (*self.types_with_profile, *added)
        related = RelatedTypes.from_profiles(np.vstack([self.profile[self.has_profile], *added.values()]), names)
        if self.height is None:
            return related
        row_in_tree = {name: row for row, name in enumerate(self.cell_types) if not np.isnan(self.height[row]).all()}
        if missing := [name for name in added if name not in row_in_tree]:
            raise InputError(
                f"The tree that the responses were fitted with has no type {missing[0]!r}; fit them again with a tree "
                "that has it, or without a tree of your own."
            )
        rows = [row_in_tree[name] for name in names]
        return replace(related, height=self.height[np.ix_(rows, rows)])

    # ---- predictions

    def select_genes(self, rows: np.ndarray) -> Responses:
        """Select genes by row; distances between types then use these genes only."""
        if len(rows) == len(self.genes):
            return self
        arrays = ("profile", "effect", "variance", "dispersion")
        return replace(self, genes=self.genes.iloc[rows], **{name: getattr(self, name)[..., rows] for name in arrays})

    def gaussian_process(self, condition: str, related: RelatedTypes) -> GaussianProcess:
        """Return the Gaussian process of a condition, with the related types as places."""
        number = self.condition_index(condition)
        measured = [place for place, name in enumerate(related.cell_types) if self.is_measured(condition, name)]
        rows = [self.cell_types.index(related.cell_types[place]) for place in measured]
        return GaussianProcess(
            values=as_tensor(self.effect[number, rows].T),
            variance=as_tensor(self.variance[number, rows].T),
            covariate=as_tensor((related.profile - related.profile[measured].mean(axis=0)).T),
            measured=np.array(measured),
            kernels=[as_tensor(kernel) for kernel in related.kernels(self.relation)],
            prior=self.priors[number] if self.priors else Prior(),
        )

    def predictions(
        self,
        condition: str,
        cell_types: Sequence[str],
        added: Mapping[str, np.ndarray] = {},
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
        related = self.relate_types(added)
        process = self.gaussian_process(condition, related).select_genes(genes)
        if missing := [name for name in cell_types if name not in related.cell_types]:
            raise InputError(unknown_type(missing[0], related.cell_types, of="The responses have"))
        return process.predict(np.array([related.cell_types.index(name) for name in cell_types]))

    def effects(
        self, condition: str, cell_types: str | Sequence[str] = (), *, profiles: Mapping[str, np.ndarray] = {}
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
        names, tables = as_names(cell_types) or (*self.types_with_profile, *profiles), []
        predicted = self.predictions(condition, names, profiles)
        number, unit = self.condition_index(condition), np.log(2)
        for column, name in enumerate(names):
            is_measured, mean = self.is_measured(condition, name), predicted.mean[:, column]
            sd = np.sqrt(predicted.variance[:, column])
            if not is_measured:
                profile = profiles[name] if name in profiles else self.profile[self.cell_types.index(name)]
                sd = sd * self.priors[number].sd_factors(profile)
            table = pd.DataFrame({"cell_type": name, "gene": self.genes.index, "log2_fold_change": mean / unit})
            table["sd"], table["sign"] = sd / unit, ndtr(np.abs(mean) / np.maximum(sd, 1e-12))
            for term, values in predicted.terms.items():
                table[term] = values[:, column] / unit
            table["measured"] = is_measured
            effect = self.effect[number, self.cell_types.index(name)] if is_measured else np.nan
            table["measured_log2_fold_change"] = effect / unit
            tables.append(table)
        return pd.concat(tables, ignore_index=True)

    def most_changed(self, condition: str) -> np.ndarray:
        """Return rows of genes that are among the most changed of any type."""
        return np.unique(most_changed_by_type(self.gaussian_process(condition, self.relate_types())))

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
        related = self.relate_types()
        predicted = self.predictions(condition, related.cell_types, genes=genes)
        names, tables = np.array(related.cell_types), []
        for node in related.nodes:
            below, above = np.isin(names, list(node)) / len(node), related.parent(node)
            weight = below if above is None else below - np.isin(names, list(above)) / len(above)
            change, variance = predicted.mean @ weight, predicted.variance @ weight**2
            table = pd.DataFrame({"cell_types": "; ".join(sorted(node)), "gene": self.genes.index[genes]})
            table["mean"], table["change"] = predicted.mean @ below / np.log(2), change / np.log(2)
            table["z"] = change / np.sqrt(np.maximum(variance, 1e-12))
            tables.append(table.sort_values("z", key=np.abs, ascending=False, kind="stable"))
        return pd.concat(tables, ignore_index=True)

    def next_prediction(self) -> tuple[str, str]:
        """Suggest a condition and a type with control cells, unmeasured if possible."""
        types = [name for name in self.types_with_profile if self.n_cells.loc[name, self.control]]
        return min(product(self.conditions, types), key=lambda pair: self.is_measured(*pair))

    # ---- errors

    def expected_error(self, condition: str) -> pd.Series:
        """Average :attr:`errors` of a condition over measured cell types."""
        errors = self.errors[self.errors["condition"] == self.conditions[self.condition_index(condition)]]
        return errors.drop(columns=["condition", "cell_type"]).mean()

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
        error, n_types = self.expected_error(condition), self.n_measured(condition)
        is_common = error["predicted"] >= MAX_ERROR_RATIO * error["common"]
        is_far = error["predicted"] > (1 + error["sampling"]) / 2
        reasons = (
            (n_types < MIN_TYPES, f"only {n_types} types were measured, too few to say what others do"),
            (is_common, "predictions are no better than the mean response of the other types"),
            (is_far, "predictions are nearer to unchanged cells than to real ones; do not use them"),
        )
        return [f"In {condition}, {reason}." for holds, reason in reasons if holds]

    def _write_tables(self, folder: Path) -> None:
        self.errors.to_csv(folder / "errors.csv", index=False, float_format="%.4g")


def most_changed_by_type(process: GaussianProcess) -> np.ndarray:
    """Return the genes with the most significant changes in order, genes x measured types."""
    significance = process.values.abs() / process.variance.sqrt()
    return np.argsort(-significance.numpy(), axis=0, kind="stable")[:N_COMPARED]


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
    rows = []
    for name in conditions[:N_SHOWN]:
        n_measured, error = responses.n_measured(name), responses.expected_error(name)
        shown = (f"{error[method]:.0%}" for method in ("predicted", "common", "nearest", "sampling"))
        rows.append((markdown(name), f"{n_measured} of {len(responses.cell_types)}", *shown))
    worst = responses.errors.loc[responses.errors["predicted"].idxmax()]
    of_worst = f"{markdown(worst['cell_type'])} in {markdown(worst['condition'])}"
    return {
        "conditions": markdown(abbreviated(conditions, n_shown=N_SHOWN)),
        "control": markdown(responses.control),
        "n_cells": int(responses.n_cells.to_numpy().sum()),
        "replicates": "cells" if donor_key is None else f"donors, in the column {markdown(donor_key)}",
        "rows": rows,
        "others": counted(max(len(conditions) - N_SHOWN, 0), "other condition"),
        "has_others": len(conditions) > N_SHOWN,
        "worst": f"{worst['predicted']:.0%}, is that of {of_worst}",
        "warnings": [markdown(text) for condition in conditions for text in responses.warnings(condition)],
    }
