"""Fit Gaussian processes of responses to conditions, and compute their leave-one-out errors."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import counted
from bdm._core.parallel import threads, using_threads
from bdm._core.progress import progress
from bdm._core.schema import checked
from bdm._core.seeds import numpy_generator
from bdm.applications.relations.condition_field import METHODS_OF_CONDITIONS, ConditionField, ConditionFit
from bdm.applications.relations.field import log_warnings
from bdm.applications.relations.gaussian_process import (
    CONSTANTS,
    N_CALIBRATED,
    WEAK_CONSTANTS,
    GaussianProcess,
    Intervals,
    Prior,
)
from bdm.applications.relations.measure_responses import measure
from bdm.applications.relations.related_conditions import read_features
from bdm.applications.relations.related_types import RelatedTypes
from bdm.applications.relations.responses import N_COMPARED, NO_ERRORS, Responses, most_changed, require_related
from bdm.data.genes import hint_at_symbols
from bdm.data.read import rna_in
from bdm.settings import ResponseSettings

logger = logging.getLogger(__name__)

SIMPLE = ("the nearest", "the mean")  # methods of predictions of conditions without a Gaussian process
MIN_GAIN = 0.1  # of squared errors
MIN_SHARE = 0.02  # of genes that follow a set; such sets are also tried without each of their members
MANY_TYPES = 20  # more types need fewer genes each to calibrate intervals
MAX_ERROR_TYPES = 5  # types with errors of left-out conditions
N_PERMUTED = 20  # conditions in which relations of types are permuted; the others would take as long again
MAX_PERMUTATIONS = 100  # draws of a permutation that changes relations
MAX_COMPARED, MIN_COMPARED = 2000, 20  # genes for errors: of all left-out types or conditions together, of each


@checked
@using_threads()
def respond(
    adata: AnnData,
    settings: ResponseSettings = ResponseSettings(),
    *,
    features: pd.DataFrame | Path | str | None = None,
) -> Responses:
    """Fit Gaussian processes of responses of cell types to conditions.

    Responses are log fold changes of pseudobulk counts. The model is in
    :mod:`bdm.applications.relations.gaussian_process`. If conditions are related, by features, doses or common parts,
    a first model predicts each condition from the others, and a second one how types differ from this prediction.

    Parameters
    ----------
    adata
        Cells of the control and at least one other condition, with raw counts, and the columns of ``obs`` in
        ``settings``.
    features
        Features of perturbations, such as pathways (0 or 1) or numbers: a table with a row for each perturbation, or a
        CSV file with the perturbations in its first column. Perturbations without cells can then be predicted.

    Returns
    -------
    Responses with the measurements, the fitted Gaussian processes and their leave-one-out errors.

    Raises
    ------
    InputError
        If a column or the control is missing, or counts are not raw. Also if a condition has fewer than two measured
        types (one, if conditions are related), or none with replicates of donors. Also if features are missing or
        constant.
    """
    table = None if features is None else read_features(features)
    measured, halves = measure(rna_in(adata, counts=settings.counts), settings, features=table)
    hint_at_symbols(measured.names)
    n_types, n_conditions = len(measured.cell_types), len(measured.conditions)
    logger.info("Fitting responses of %s to %s.", counted(n_types, "type"), counted(n_conditions, "condition"))
    tables, related = [], measured.relate_types()
    if measured.related_conditions is not None:
        [measured, *halves], errors = fit_conditions(measured, halves)
        tables.append(errors)

    def fit(number: int) -> tuple[Prior, pd.DataFrame]:
        return fit_types(measured, halves, number, related)

    with threads() as run:
        fitted = run(fit, range(n_conditions))
        fitted = progress(fitted, total=n_conditions, doing="fitting responses of types", unit="condition")
        priors, errors_of_types = zip(*fitted, strict=True)
    tables = [table for table in (*tables, *errors_of_types) if len(table)]
    errors = pd.concat(tables, ignore_index=True) if tables else NO_ERRORS
    responses = replace(measured, priors=priors, errors=errors)
    log_warnings(logger, responses.warnings())
    return responses


def fit_types(
    measured: Responses, halves: Sequence[Responses], number: int, related: RelatedTypes
) -> tuple[Prior, pd.DataFrame]:
    """Fit the Gaussian process of types in a condition, and compute its leave-one-out errors.

    Each half of the data predicts types that are left out, and the other half has the measurements to compare with.
    """
    condition = measured.conditions[number]
    constants = CONSTANTS if measured.expected is None else (*WEAK_CONSTANTS, *CONSTANTS)
    fitted = measured.gaussian_process(condition, related).fit(constants=constants)
    permuted = None
    order = permutation_of([kernel.numpy() for kernel in fitted.kernels], "permuted types", condition)
    is_sampled = number in np.linspace(0, len(measured.conditions) - 1, N_PERMUTED).astype(int)
    if order is not None and is_sampled:
        kernels = tuple(kernel[order][:, order] for kernel in fitted.kernels)
        permuted = replace(fitted, kernels=kernels).fit(constants=constants)
    errors, unmeasured, remeasured = list[dict[str, Any]](), list[Intervals](), list[Intervals]()
    for half, second in (halves, halves[::-1]):
        process, truth = (
            each.gaussian_process(condition, replace(related, profile=each.profile[each.has_profile]))
            for each in (half, second)
        )
        places = np.intersect1d(process.measured, truth.measured)
        if not len(places):
            continue
        types, columns = [related.cell_types[place] for place in places], np.searchsorted(process.measured, places)
        by_type = [measured.cell_types.index(name) for name in types]
        own, real = half.effect[number, by_type].T, second.effect[number, by_type].T
        own_noise, noise = (each.sampling_variance(number)[by_type].T for each in (half, second))
        top, expected = most_changed(own, own_noise)[: n_compared(len(places))], half.expected_effect(number)[:, None]
        n_calibrated = N_CALIBRATED * MANY_TYPES // max(len(places), MANY_TYPES)
        genes = np.union1d(top, process.genes_to_calibrate(n_calibrated))
        selected = replace(process.select_genes(genes), prior=fitted.prior)
        direct, left_out = selected.smooth_and_leave_out()
        mean, variance = (values[:, columns] for values in direct)
        remeasured.append(Intervals(mean + expected[genes], variance, real[genes], noise[genes]))
        if len(process.measured) < 2:
            continue
        mean, variance = (values[:, columns] for values in left_out)
        unmeasured.append(Intervals(mean + expected[genes], variance, real[genes], noise[genes]))
        compared = np.unique(top)
        shuffled = np.full((len(compared), len(types)), np.nan)
        if permuted is not None:
            control = replace(process.select_genes(compared), kernels=permuted.kernels, prior=permuted.prior)
            shuffled = control.leave_out()[0][:, columns]
        distance = np.where(np.eye(len(places), dtype=bool), np.inf, related.distance[np.ix_(places, places)])
        for column, name in enumerate(types):
            rows = top[:, column]
            row = np.searchsorted(genes, rows)
            others = np.delete(own[rows], column, axis=1)
            predictions = {
                "predicted": mean[row, column] + expected[rows, 0],
                "permuted": shuffled[np.searchsorted(compared, rows), column] + expected[rows, 0],
                "common": others.mean(axis=1) if others.size else np.zeros(len(rows)),
                "nearest": own[rows, int(distance[column].argmin())],
                "halves": own[rows, column],
            }
            relative = relative_errors(predictions, real[rows, column])
            errors.append({"condition": condition, "cell_type": name, **relative})
    return fitted.prior.calibrated(unmeasured=unmeasured, measured=remeasured), mean_errors(
        pd.DataFrame(errors), "type"
    )


def fit_conditions(measured: Responses, halves: Sequence[Responses]) -> tuple[list[Responses], pd.DataFrame]:
    """Fit the Gaussian processes over conditions, and compute their leave-one-out errors.

    Sets of features that genes follow are fitted again with sets that lack one of their members. Conditions that are
    left out choose the scale of the Gaussian processes, or a simple prediction in their place.
    """
    related = require_related(measured)
    plain = measured.condition_field().fit()
    shares = plain.common_prior.kernel_shares(len(plain.kernels))
    followed = {kernel.feature for kernel, share in zip(plain.kernels, shares, strict=True) if share >= MIN_SHARE}
    expanded = tuple(sorted(followed - {""}))
    measured, *halves = (replace(each, fit=ConditionFit(expanded)) for each in (measured, *halves))
    logs = replace(plain, kernels=tuple(measured.condition_kernels)).fit() if expanded else plain
    del plain
    fields = {"logs": logs}
    if len(related.limits.columns):  # mixtures are linear in counts, so their shares are; sets and doses are not
        fields["counts"] = logs.on_counts().fit()
    simple = {name: related.simple_weights(logs.measured, nearest=name == "the nearest") for name in SIMPLE}

    def compare(fields: dict[str, ConditionField]) -> tuple[pd.DataFrame, dict[str, list[Intervals]]]:
        def of_half(number: int) -> tuple[pd.DataFrame, dict[str, list[Intervals]]]:
            return compare_conditions(halves[number], halves[1 - number], fields, simple)

        both = run(of_half, range(2))
        tables, intervals = zip(*both, strict=True)
        joined = {name: [*chain(*(half[name] for half in intervals))] for name in intervals[0]}
        return pd.concat(tables, ignore_index=True), joined

    with threads() as run:
        errors, intervals = compare(fields)
        method = choose_method(errors)
        field = fields["counts" if method == "counts" else "logs"]
        errors = errors.assign(predicted=errors[method], permuted=np.nan)
        order = permutation_of([kernel.matrix for kernel in logs.kernels], "permuted conditions")
        if order is not None:
            permuted = field.permute(order).fit()
            errors["permuted"] = compare({"permuted": permuted})[0]["permuted"]
        prior = field.common_prior.calibrated(unmeasured=intervals[method])
        fit = ConditionFit(expanded, method, prior, field.deviation_prior)
        fitted = [replace(each, fit=fit) for each in (measured, *halves)]
        left_out = [*run(lambda each: each.condition_field().leave_out(), fitted)]
    table = mean_errors(errors, "condition")
    by_condition = np.sqrt((table.set_index("condition")["predicted"].astype(float) ** 2).groupby(level=0).mean())
    rows = [measured.conditions.index(str(name)) for name in by_condition.index]
    fit = fit.with_errors(fit.expected_errors(*left_out[0])[rows], by_condition.to_numpy())
    fitted = [replace(each, fit=fit, expected=mean.T) for each, (mean, _) in zip(fitted, left_out, strict=True)]
    return fitted, table


def choose_method(errors: pd.DataFrame) -> str:
    """Choose how to predict conditions: by log fold changes, unless another method is better beyond chance.

    Its squared errors of left-out conditions must be lower on average by more than the standard error of the
    difference, and by more than ``MIN_GAIN``, as conditions without measurements may differ more than these.
    """
    if errors.empty:
        return "logs"
    square = (errors.filter([*METHODS_OF_CONDITIONS, "halves"]) ** 2).mul(errors["size"] ** 2, axis=0)
    square = square.groupby(errors["condition"]).mean()
    excess = max(square["logs"].mean() - square.pop("halves").mean() / 2, 0)  # beyond the error of measurements
    gain = square.rsub(square["logs"], axis=0)
    mean, least = gain.mean(), np.maximum(gain.std() / np.sqrt(len(gain)), MIN_GAIN * excess)
    return str(mean.where(mean > least, 0).fillna(0).idxmax())


def compare_conditions(
    half: Responses, second: Responses, fields: dict[str, ConditionField], simple: dict[str, np.ndarray]
) -> tuple[pd.DataFrame, dict[str, list[Intervals]]]:
    """Predict each condition from the others in one half of the data, and compare it with the second half.

    ``fields`` predict by name; ``simple`` are weights of conditions, in place of the common response in ``logs``.
    """
    logs = half.condition_field()
    both = ~(np.isnan(half.effect[:, :, 0]) | np.isnan(second.effect[:, :, 0]))
    types = np.argsort(-both.sum(axis=0), kind="stable")[:MAX_ERROR_TYPES]
    top = most_changed(logs.common.values.numpy(), logs.common.sampling_variance.numpy())
    top = top[: n_compared(len(logs.measured))]
    sample = logs.common.genes_to_calibrate()
    genes = np.union1d(top, sample)
    logs = logs.select_genes(genes)
    common, nearest = logs.common.values.numpy(), replace(logs, weights=simple["the nearest"]).simple(logs.measured)
    predicted = dict[str, tuple[np.ndarray, np.ndarray]]()
    for name, field in fields.items():
        of_half = (logs if field.unit is None else logs.on_counts()).like(field)
        left_out = of_half.sum_up(GaussianProcess.leave_out, types)
        for method, weights in ({name: None} | (simple if name == "logs" else {})).items():
            common_part, deviation, variance = replace(logs, weights=weights).simplify(*left_out, logs.measured)
            predicted[method] = common_part + deviation, variance
    rows, intervals = list[dict[str, Any]](), {name: list[Intervals]() for name in predicted}
    for number, condition in enumerate(half.conditions):
        chosen, others = np.searchsorted(genes, top[:, number]), np.delete(np.arange(len(logs.measured)), number)
        for column, row in enumerate(types):
            if not both[number, row]:
                continue
            real, noise = second.effect[number, row, genes], second.sampling_variance(number)[row, genes]
            for name, moments in predicted.items():
                mean, variance = (values[:, number, column] for values in moments)
                each = Intervals(mean, variance, real, noise, number).select(np.searchsorted(genes, sample))
                intervals[name].append(each)
            predictions = {
                **{name: mean[chosen, number, column] for name, (mean, _) in predicted.items()},
                "common": common[chosen][:, others].mean(axis=1),
                "nearest": nearest[chosen, number],
                "halves": half.effect[number, row, genes[chosen]],
            }
            errors = relative_errors(predictions, real[chosen])
            rows.append({"condition": condition, "cell_type": half.cell_types[row], **errors})
    return pd.DataFrame(rows), intervals


def permutation_of(kernels: Sequence[np.ndarray], *names: str) -> np.ndarray | None:
    """Draw a permutation of places that changes kernels; None if there is none, as for two types."""
    generator = numpy_generator(0, *names)
    for _ in range(MAX_PERMUTATIONS):
        order = generator.permutation(len(kernels[0]) if kernels else 0)
        if not all(np.allclose(kernel[order][:, order], kernel) for kernel in kernels):
            return order
    return None


def n_compared(n_places: int) -> int:
    """Return the number of genes to compare at each of several places."""
    return min(N_COMPARED, max(MIN_COMPARED, MAX_COMPARED // max(n_places, 1)))


def relative_errors(predictions: dict[str, np.ndarray], real: np.ndarray) -> dict[str, float]:
    """Return the root mean squared log2 fold change, and errors relative to it."""
    unchanged = float(np.sqrt(np.maximum(np.mean(real**2), 1e-12)))
    errors = {name: float(np.sqrt(np.mean((values - real) ** 2))) / unchanged for name, values in predictions.items()}
    return {"size": unchanged / np.log(2), **errors}


def mean_errors(rows: pd.DataFrame | list[dict[str, Any]], left_out: str) -> pd.DataFrame:
    """Average errors over both halves of the data, by condition and cell type."""
    if not len(rows):
        return NO_ERRORS
    means = pd.DataFrame(rows).groupby(["condition", "cell_type"], sort=False).mean().reset_index()
    means.insert(0, "left_out", left_out)
    return means[NO_ERRORS.columns]
