"""Responses of cell types to conditions, measured and predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.special import ndtr

from bdm._core.errors import InputError, abbreviated, counted, markdown
from bdm._core.validation import SEPARATOR, unknown_condition, unknown_type
from bdm.applications.relations.condition_field import METHODS_OF_CONDITIONS, ConditionField, ConditionFit
from bdm.applications.relations.condition_names import separator_in
from bdm.applications.relations.field import Field
from bdm.applications.relations.gaussian_process import GaussianProcess, Prediction, Prior
from bdm.applications.relations.related_conditions import RelatedConditions, square_root
from bdm.applications.relations.related_types import RelatedTypes
from bdm.data.columns import as_names
from bdm.settings import ResponseSettings

MIN_TYPES = 4  # minimum number of measured types; with fewer, predictions get a warning
MAX_ERROR = 0.95  # error relative to unchanged cells; above, predictions are called no better
MAX_ERROR_RATIO = 0.95  # error relative to the mean response's; above, predictions are called no better
N_COMPARED = 100  # genes with the most significant changes of a type, for errors
METHODS = ("predicted", "permuted", "common", "nearest", "halves")  # columns of errors
NEW_CONDITION = "A condition without measurements"  # subject of warnings
MIN_SD = 1e-4  # of log fold changes; below, genes are unchanged under all hypotheses
NO_ERRORS = pd.DataFrame(columns=["left_out", "condition", "cell_type", "size", *METHODS])


@dataclass(frozen=True, repr=False)
class Responses(Field):
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
        Natural log of the share of counts plus 1e-4 in the control, shrunk towards the mean over types (posterior
        mean), cell types x genes. With too few control cells, it is estimated from the conditions. NaN if these have
        too few cells as well.
    effect, variance
        Natural log fold changes from the control and the variances of their independent sampling errors, conditions x
        cell types x genes; NaN if not measured.
    control_error, baseline_error, donor_error
        Standard deviations of other sampling errors: of the control profile of each type, which is part of
        ``variance``, but the same in all conditions; of the mean of control profiles, which all types share (each cell
        types x genes); and errors that donors cause (conditions x cell types x genes; empty without donors).
    donor_correlation
        Correlation of ``donor_error`` between types, conditions x cell types x cell types.
    dispersion
        Squared coefficient of variation of counts within types in excess of Poisson noise, (control, conditions) x
        genes.
    n_cells
        Number of cells, cell types x (control, conditions).
    settings
        Settings of the fit, such as columns of ``obs`` in the data.
    provenance
        Version, packages, seed and settings.
    related_conditions
        Features, doses and parts of conditions, measured or not; None if conditions are not related.
    fit
        Fitted Gaussian-process priors over conditions, of the common response and of the deviations of types.
    expected
        Common response to each condition, predicted from the other conditions, conditions x genes; None if conditions
        are not related.
    priors
        Fitted Gaussian-process prior of each condition over types, with the calibration of its intervals.
    errors
        Table of errors of predictions for a cell type (``left_out`` is ``type``) or a condition (``condition``) that is
        left out, by ``condition`` and ``cell_type``. Half of the cells, or of the donors, predict the other half.
        ``size`` is the root mean square of the log2 fold changes of the 100 most significantly changed genes. Errors
        are relative to it (0: exact, 1: no better than unchanged cells), by method: the Gaussian process
        (``predicted``), the same with relations permuted at random (``permuted``; NaN if permutations do not change
        them), the mean of the other types or conditions (``common``), or a simple neighbour (``nearest``): the type
        with the nearest control profile; the sum of the parts, the nearest dose, or the condition with the most similar
        features. ``halves`` is the error of the measurement in half of the cells.
    """

    kind = "responses"

    cell_types: tuple[str, ...]
    conditions: tuple[str, ...]
    control: str
    profile: np.ndarray
    effect: np.ndarray
    variance: np.ndarray
    control_error: np.ndarray
    baseline_error: np.ndarray
    donor_error: np.ndarray
    donor_correlation: np.ndarray
    n_cells: pd.DataFrame
    settings: ResponseSettings
    related_conditions: RelatedConditions | None = None
    fit: ConditionFit = field(default_factory=ConditionFit)
    expected: np.ndarray | None = None
    priors: tuple[Prior, ...] = ()

    # ---- conditions and types

    def condition_index(self, condition: str) -> int:
        """Return the index of a condition; reject the control and unknown names."""
        if condition not in self.conditions:
            raise InputError(unknown_condition(condition, self.conditions))
        return self.conditions.index(condition)

    def place_of(self, name: str, *, extrapolate: bool = False) -> np.ndarray:
        """Return the place of a condition without measurements, such as a new dose, among related conditions.

        Raises
        ------
        InputError
            If the condition is not related to measured ones, or its dose or a number among its features is beyond the
            measured ones (without ``extrapolate``).
        """
        related = self.related_conditions
        if related is None or related.separator is None:
            perturbation = name.rpartition(SEPARATOR)[0] if self.settings.dose_key is not None else name
            separator = separator_in(perturbation, self.conditions if related is None else related.parts)
            if separator is not None:
                raise InputError(
                    f"There is no condition {name!r}; to predict combinations, fit the responses with "
                    f"`combination_separator={separator.strip() or separator!r}`."
                )
        if related is None:
            raise InputError(unknown_condition(name, self.conditions))
        place, reason = related.place(name), related.extrapolation(name)
        if reason is not None and not extrapolate:
            raise InputError(
                f"{reason[0].upper()}{reason[1:]}; predict a condition between measured ones, or use "
                "`extrapolate=True` to predict it all the same, with a larger error than between them, where "
                f"{self.sentence()}."
            )
        return place

    @cached_property
    def measured(self) -> pd.DataFrame:
        """Whether each response was measured, cell types x conditions."""
        is_measured = ~np.isnan(self.effect[:, :, 0])  # for all genes or none
        return pd.DataFrame(is_measured.T, index=self.cell_types, columns=self.conditions)

    def is_measured(self, condition: str, cell_type: str) -> bool:
        """Return whether the response of a type to a condition was measured."""
        is_known = cell_type in self.cell_types and condition in self.conditions
        return is_known and bool(self.measured.loc[cell_type, condition])

    @property
    def has_profile(self) -> np.ndarray:
        """Whether each cell type has a profile, which kernels need."""
        return np.asarray(~np.isnan(self.profile).any(axis=1))

    @property
    def types_with_profile(self) -> tuple[str, ...]:
        """Cell types that have a profile."""
        return tuple(np.array(self.cell_types)[self.has_profile].tolist())

    def relate_types(self) -> RelatedTypes:
        """Relate the types with a profile."""
        return RelatedTypes.from_profiles(self.profile[self.has_profile], self.types_with_profile)

    # ---- predictions

    def select_genes(self, rows: np.ndarray) -> Responses:
        """Select genes by row; distances between types then use these genes only."""
        if len(rows) == len(self.genes):
            return self
        names = ["profile", "effect", "variance", "control_error", "baseline_error", "dispersion"]
        names += ["donor_error"] * bool(self.donor_error.size) + ["expected"] * (self.expected is not None)
        return replace(self, genes=self.genes.iloc[rows], **{name: getattr(self, name)[..., rows] for name in names})

    def sampling_variance(self, number: int) -> np.ndarray:
        """Return variances of sampling errors in a condition, cell types x genes."""
        of_condition = (error if error.ndim == 2 else error[number] for error in self.further_errors)
        return np.asarray(sum((error**2 for error in of_condition), self.variance[number]))

    @property
    def further_errors(self) -> tuple[np.ndarray, ...]:
        """Standard deviations of sampling errors beyond :attr:`variance`, (conditions x) cell types x genes."""
        return (self.baseline_error, self.donor_error) if self.donor_error.size else (self.baseline_error,)

    def measured_types(self, number: int) -> np.ndarray:
        """Return the rows of the types that were measured in a condition."""
        return np.flatnonzero(self.measured.iloc[:, number])

    def gaussian_process(self, condition: str, related: RelatedTypes) -> GaussianProcess:
        """Return the Gaussian process of a condition; its places are the measured types.

        Its values are relative to the response that is expected from other conditions, if these are related.
        """
        number = self.condition_index(condition)
        rows = self.measured_types(number)
        places = np.searchsorted(np.flatnonzero(self.has_profile), rows)
        errors = [self.baseline_error[rows].T[:, :, None]]
        if self.donor_error.size:
            factor = square_root(self.donor_correlation[number][np.ix_(rows, rows)])
            errors.append(self.donor_error[number, rows].T[:, :, None] * factor)
        return GaussianProcess.from_arrays(
            self.effect[number, rows].T - self.expected_effect(number)[:, None],
            self.variance[number, rows].T,
            related.kernels(related.distance[np.ix_(places, places)]),
            covariate=(self.profile[rows] - self.profile[rows].mean(axis=0)).T,
            shared_errors=np.concatenate(errors, axis=2),
            prior=self.priors[number] if self.priors else Prior(),
        )

    def predict_types(
        self,
        condition: str,
        profile: np.ndarray,
        rows: np.ndarray,
        genes: slice | np.ndarray = slice(None),
        weights: np.ndarray | None = None,
    ) -> Prediction:
        """Predict how types, or weighted sums of types, deviate from the response expected from other conditions.

        ``profile`` of the types is types x genes; ``rows`` are their rows, -1 for types that the responses lack.
        """
        related, known = self.relate_types(), self.measured_types(self.condition_index(condition))
        cross, within = (related.kernels(cdist(profile, each)) for each in (self.profile[known], profile))
        covariate = (profile - self.profile[known].mean(axis=0)).T[genes]
        measured = pd.Index(known).get_indexer(rows)
        process = self.gaussian_process(condition, related).select_genes(genes)
        return process.predict(cross, within, covariate=covariate, measured=measured, weights=weights)

    def condition_field(self) -> ConditionField:
        """Return the Gaussian processes over related conditions."""
        related = require_related(self)
        square = self.control_error**2 + self.baseline_error**2
        if self.donor_error.size:
            square = square + (self.donor_error**2).mean(axis=0) / 2  # donors of the control are in all conditions
        field = ConditionField(
            effect=self.effect,
            variance=self.variance,
            shared_error=np.sqrt(square),
            genes=self.genes.index,
            related=related,
            kernels=tuple(related.kernels),
            fit=self.fit,
            further_errors=self.further_errors,
        )
        return field.on_counts() if self.fit.method == "counts" else field

    def predictions(
        self,
        condition: str,
        cell_types: Sequence[str],
        added: Mapping[str, np.ndarray] = {},
        genes: slice | np.ndarray = slice(None),
    ) -> Prediction:
        """Predict natural log fold changes, genes x types, with calibrated variances.

        The condition was measured in some types, or is related to measured ones. ``added`` are control profiles (log
        shares of counts) of types that the responses lack, by name.
        """
        profiles = dict(zip(self.types_with_profile, self.profile[self.has_profile], strict=True)) | {**added}
        if missing := [name for name in cell_types if name not in profiles]:
            raise InputError(unknown_type(missing[0], tuple(profiles), of="The responses have"))
        if condition not in self.conditions:
            return self.predict_condition(condition, cell_types, genes)
        number = self.condition_index(condition)
        rows = np.array([-1 if name in added else self.cell_types.index(name) for name in cell_types], dtype=int)
        profile = np.stack([profiles[name] for name in cell_types])
        predicted = self.predict_types(condition, profile, rows, genes)
        expected = self.expected_effect(number)[genes][:, None]
        mean, terms = predicted.mean + expected, predicted.terms | {"common": predicted.terms["common"] + expected}
        factors = self.priors[number].sd_factors(mean, np.isin(rows, self.measured_types(number)).astype(int))
        return Prediction(mean, predicted.variance * factors**2, terms)

    def predict_condition(self, condition: str, cell_types: Sequence[str], genes: slice | np.ndarray) -> Prediction:
        """Predict the response to a condition without measurements from related conditions."""
        place = self.place_of(condition, extrapolate=True)
        rows = [self.cell_types.index(name) if name in self.cell_types else None for name in cell_types]
        common, own, variance = self.condition_field().select_genes(genes).predict(place, rows)
        mean, none = common + own, np.zeros_like(own)
        factors = self.fit.common.sd_factors(mean)
        return Prediction(mean, variance * factors**2, {"common": common, "level": none, "related": none, "own": own})

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
        unit = np.log(2)
        for column, name in enumerate(names):
            is_measured, mean = self.is_measured(condition, name), predicted.mean[:, column]
            sd = np.sqrt(predicted.variance[:, column])
            table = pd.DataFrame({"cell_type": name, "gene": self.genes.index, "log2_fold_change": mean / unit})
            table["sd"], table["sign"] = sd / unit, ndtr(np.abs(mean) / np.maximum(sd, MIN_SD))
            for term, values in predicted.terms.items():
                table[term] = values[:, column] / unit
            table["measured"] = is_measured
            place = (self.conditions.index(condition), self.cell_types.index(name)) if is_measured else None
            table["measured_log2_fold_change"] = np.nan if place is None else self.effect[place] / unit
            tables.append(table)
        return self.names.with_symbols(pd.concat(tables, ignore_index=True))

    def most_changed(self, condition: str) -> np.ndarray:
        """Return rows of genes that are among the most changed of any type."""
        number = self.condition_index(condition)
        known = self.measured[condition].to_numpy()
        return np.unique(most_changed(self.effect[number, known].T, self.sampling_variance(number)[known].T))

    def expected_effect(self, number: int) -> np.ndarray:
        """Return the common response that other conditions predict; 0 without relations."""
        return np.zeros(len(self.genes)) if self.expected is None else np.asarray(self.expected[number], dtype=float)

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
        related, number, tables = self.relate_types(), self.condition_index(condition), []
        names, expected = np.array(related.cell_types), self.expected_effect(number)[genes][:, None]
        below = np.stack([np.isin(names, list(node)) / len(node) for node in related.nodes])
        parents = [related.parent(node) for node in related.nodes]
        above = np.stack(
            [np.zeros(len(names)) if each is None else below[related.nodes.index(each)] for each in parents]
        )
        rows, weights = np.flatnonzero(self.has_profile), np.vstack([below, below - above])
        predicted = self.predict_types(condition, self.profile[rows], rows, genes, weights)
        means, changes = np.split(predicted.mean, 2, axis=1)
        means, changes = means + expected, changes + expected * np.array([each is None for each in parents])
        is_measured = (below @ self.measured.loc[names, condition].to_numpy() > 0).astype(int)  # any type of the branch
        sd = np.sqrt(predicted.variance[:, len(below) :]) * self.priors[number].sd_factors(changes, is_measured)
        for column, node in enumerate(related.nodes):
            table = pd.DataFrame({"cell_types": "; ".join(sorted(node)), "gene": self.genes.index[genes]})
            table["mean"], table["change"] = means[:, column] / np.log(2), changes[:, column] / np.log(2)
            table["z"] = changes[:, column] / np.maximum(sd[:, column], MIN_SD)
            tables.append(table.sort_values("z", key=np.abs, ascending=False, kind="stable"))
        return self.names.with_symbols(pd.concat(tables, ignore_index=True))

    def next_prediction(self) -> tuple[str, str]:
        """Suggest a condition and a type with control cells, unmeasured if possible."""
        types = [name for name in self.types_with_profile if self.n_cells.loc[name, self.control]]
        related = self.related_conditions
        parts = () if related is None or related.is_dosed else related.parts
        return min(product((*self.conditions, *parts), types), key=lambda pair: self.is_measured(*pair))

    # ---- errors

    def expected_error(self, condition: str | None = None) -> pd.Series:
        """Average :attr:`errors` of a condition over cell types, and count these as ``n``.

        For a measured condition, types are left out; for any other condition (by default), measured conditions. Squared
        errors are added up, and divided by the sum of squared log fold changes.
        """
        is_measured = condition in self.conditions
        if condition is not None and not is_measured:
            self.place_of(condition, extrapolate=True)  # rejects unknown names
        errors = self.errors[self.errors["left_out"] == ("type" if is_measured else "condition")]
        if is_measured:
            errors = errors[errors["condition"] == condition]
        number = errors["cell_type" if is_measured else "condition"].nunique()
        square = errors["size"].astype(float) ** 2
        total = (errors[[*METHODS]].astype(float) ** 2).mul(square, axis=0).sum(min_count=1)
        return pd.concat([np.sqrt(total / max(square.sum(), 1e-12)), pd.Series({"n": number})])

    def error_of_condition(self, condition: str) -> float:
        """Return the expected error of a condition without measurements, relative to unchanged cells.

        It differs from the mean of left-out conditions as far as their errors follow what the Gaussian process expects.
        """
        error = float(self.expected_error(condition)["predicted"])
        if not self.fit.slope:
            return error
        place = self.place_of(condition, extrapolate=True)
        common, _, variance = self.condition_field().predict(place)
        log_expected = float(np.log(np.maximum(self.fit.expected_errors(common, variance), 1e-3))[0])
        own = error * np.exp(self.fit.slope * (log_expected - self.fit.mean_log))
        return float(np.clip(own, self.fit.lowest, self.fit.highest))

    @property
    def described_conditions(self) -> list[str | None]:
        """Conditions with known errors; None for conditions without measurements."""
        if self.related_conditions is None:
            return [*self.conditions]
        return [None, *self.errors.loc[self.errors["left_out"] == "type", "condition"].unique()]

    def sentences(self) -> list[str]:
        """Describe the errors of predictions for types and conditions."""
        return [self.sentence(name) for name in self.described_conditions]

    def sentence(self, condition: str | None = None) -> str:
        """Describe the error of predictions for types in a condition, or new conditions."""
        error, is_measured = self.expected_error(condition), condition in self.conditions
        subject = f"{condition}: a type that was not measured" if is_measured else "a condition that was not measured"
        unit = "type" if is_measured else "condition"
        if not error["n"]:
            return f"{subject} is predicted with an error that is not known, as no {unit} could be left out"
        if condition is not None and not is_measured and self.fit.slope:
            share = f"{self.error_of_condition(condition):.0%}"
            return (
                f"{condition}: about {share} of the error of unchanged cells is expected; on average, {self.sentence()}"
            )
        part = "cells" if self.settings.donor_key is None else "donors"
        verdict = "no better than by unchanged cells, " if error["predicted"] > MAX_ERROR else ""
        names = (f"mean of other {unit}s", "nearest", "permuted relations", f"measurement in half of the {part}")
        others = zip(names, ("common", "nearest", "permuted", "halves"), strict=True)
        compared = ", ".join(f"{name} {error[method]:.0%}" for name, method in others if not np.isnan(error[method]))
        return (
            f"{subject} is predicted {verdict}with {error['predicted']:.0%} of the error of unchanged cells "
            f"({compared}), by {counted(int(error['n']), unit)} left out, in the other half of the {part}"
            f"{'' if is_measured else f'; they chose {METHODS_OF_CONDITIONS[self.fit.method]}'}"
        )

    def warnings(self, condition: str | None = None, *, measured: bool = False) -> list[str]:
        """Return reasons not to rely on predictions.

        Parameters
        ----------
        condition
            Condition to predict, measured or not. By default, all measured conditions, and any other one; equal reasons
            then name their conditions together.
        measured
            Return only the warnings that also concern measured types.
        """
        if condition is not None:
            subject = f"In {condition}" if condition in self.conditions else NEW_CONDITION
            return [f"{subject}: {reason}." for reason in self.reasons(condition, measured=measured)]
        conditions: dict[str, list[str]] = {}
        for name in self.conditions:
            for reason in self.reasons(name, measured=measured):
                conditions.setdefault(reason, []).append(name)
        warnings = [f"{NEW_CONDITION}: {each}." for each in (self.reasons() if self.related_conditions else [])]
        for reason, names in conditions.items():
            warnings.append(f"In {abbreviated(names if len(names) == 1 else [*map(repr, names)])}: {reason}.")
        return warnings

    def reasons(self, condition: str | None = None, *, measured: bool = False) -> list[str]:
        """Return reasons not to rely on predictions in a condition; None for conditions without measurements."""
        error, is_known = self.expected_error(condition), condition in self.conditions
        if not error["n"]:
            return []
        reasons = [(is_known and error["halves"] >= 1, "no response is seen beyond sampling error")]
        if not measured:
            n_types = int(self.measured[condition].sum()) if is_known else MIN_TYPES
            few = f"only {counted(n_types, 'type')} were measured, too few to say what others do"
            others = "types" if is_known else "conditions"
            simple = {"common": f"the mean response of the other {others}", "permuted": "permuted relations"}
            simple["nearest"] = "the nearest type" if is_known else "the nearest condition"
            as_good = [name for key, name in simple.items() if error["predicted"] >= MAX_ERROR_RATIO * error[key]]
            reasons = [
                (n_types < MIN_TYPES, few),
                *reasons,
                (error["predicted"] > MAX_ERROR, "predictions are no better than unchanged cells; do not use them"),
                (bool(as_good), f"predictions are no better than by {' or '.join(as_good)}"),
            ]
        return [reason for holds, reason in reasons if holds]


def require_related(responses: Responses) -> RelatedConditions:
    """Return how conditions are related; reject responses without such relations."""
    if responses.related_conditions is None:
        raise InputError("The conditions are not related; fit the responses with features, doses or a separator.")
    return responses.related_conditions


def most_changed(effect: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Return the genes with the most significant changes in order, genes x places."""
    return np.argsort(-np.abs(effect) / np.sqrt(variance), axis=0, kind="stable")[:N_COMPARED]


# ---- section of a model card

N_SHOWN = 10  # conditions


def responses_section(responses: Responses, cell_types: Sequence[str]) -> dict[str, Any]:
    """Return the values for the responses section of a model card."""
    if set(responses.cell_types).isdisjoint(cell_types):
        raise InputError(
            f"The responses are of other cell types ({abbreviated(responses.cell_types, n_shown=3)}) than the model "
            f"({abbreviated(list(cell_types), n_shown=3)}); give responses of the same data."
        )
    conditions, donor_key = responses.conditions, responses.settings.donor_key
    rows, described = [], responses.described_conditions
    for name in described[:N_SHOWN]:
        error = responses.expected_error(name)
        values = (error[method] for method in ("predicted", "common", "nearest", "permuted", "halves"))
        shown = ("not known" if np.isnan(value) else f"{value:.0%}" for value in values)
        left_out = f"type in {markdown(name)}" if name is not None else "condition"
        rows.append((left_out, int(error["n"]), *shown))
    worst = "is not known, as no type could be left out"
    if len(responses.errors):
        largest = responses.errors.loc[responses.errors["predicted"].idxmax()]
        of_largest = f"{markdown(largest['cell_type'])} in {markdown(largest['condition'])}"
        worst = f"{largest['predicted']:.0%}, is that of {of_largest}"
    return {
        "conditions": markdown(abbreviated(conditions, n_shown=N_SHOWN)),
        "control": markdown(responses.control),
        "n_cells": int(responses.n_cells.to_numpy().sum()),
        "replicates": "cells" if donor_key is None else f"donors, in the column {markdown(donor_key)}",
        "rows": rows,
        "others": counted(max(len(described) - N_SHOWN, 0), "other condition"),
        "has_others": len(described) > N_SHOWN,
        "predicts_conditions": None in described,
        "worst": worst,
        "warnings": [*map(markdown, responses.warnings())],
    }
