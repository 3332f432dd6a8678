"""Fit Gaussian processes of responses to conditions, and compute their leave-one-out errors."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import counted
from bdm._core.parallel import threads, using_threads
from bdm._core.progress import progress
from bdm._core.schema import checked
from bdm._core.seeds import numpy_generator
from bdm.applications.relations.condition_field import METHODS_OF_CONDITIONS, SIMPLE, ConditionField
from bdm.applications.relations.field import log_warnings
from bdm.applications.relations.gaussian_process import (
    CONSTANTS,
    N_CALIBRATED,
    WEAK_CONSTANTS,
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
    prior = measured.gaussian_process(condition, related).fit(constants=constants).prior
    order = permutation_of(related.kernels(related.distance), "permuted types", condition)
    is_sampled = number in np.linspace(0, len(measured.conditions) - 1, N_PERMUTED).astype(int)
    permuted = None if order is None or not is_sampled else related.permute(order)
    if permuted is not None:
        permuted_prior = measured.gaussian_process(condition, permuted).fit(constants=constants).prior
    tables, unmeasured, remeasured = list[pd.DataFrame](), list[Intervals](), list[Intervals]()
    for half, second in (halves, halves[::-1]):
        known = half.measured_types(number)
        types = np.intersect1d(known, second.measured_types(number))
        if not len(types):
            continue
        process, columns = half.gaussian_process(condition, related), np.searchsorted(known, types)
        own, own_noise, real, noise = (
            values[types].T
            for each in (half, second)
            for values in (each.effect[number], each.sampling_variance(number))
        )
        top = most_changed(own, own_noise)[: n_compared(len(types))]
        n_calibrated = N_CALIBRATED * MANY_TYPES // max(len(types), MANY_TYPES)
        genes = np.union1d(top, process.genes_to_calibrate(n_calibrated))
        own, real, noise, expected = own[genes], real[genes], noise[genes], half.expected_effect(number)[genes, None]
        direct, left_out = replace(process.select_genes(genes), prior=prior).smooth_and_leave_out()
        for intervals, (mean, variance) in zip((remeasured, unmeasured), (direct, left_out), strict=True):
            intervals.append(Intervals(mean[:, columns] + expected, variance[:, columns], real, noise))
        if len(known) < 2:
            unmeasured.pop()
            continue
        shuffled = np.full(own.shape, np.nan)
        if permuted is not None:
            control = half.gaussian_process(condition, permuted).select_genes(genes)
            shuffled = replace(control, prior=permuted_prior).leave_out()[0][:, columns] + expected
        places = np.searchsorted(np.flatnonzero(measured.has_profile), types)
        distance = np.where(np.eye(len(types), dtype=bool), np.inf, related.distance[np.ix_(places, places)])
        predictions = {
            "predicted": unmeasured[-1].mean,
            "permuted": shuffled,
            "common": mean_of_others(own),
            "nearest": own[:, distance.argmin(axis=1)],
            "halves": own,
        }
        table = relative_errors(predictions, real, np.searchsorted(genes, top))
        tables.append(table.assign(condition=condition, cell_type=np.array(measured.cell_types)[types]))
    return prior.calibrated(unmeasured, remeasured), mean_errors(tables, "type")


def fit_conditions(measured: Responses, halves: Sequence[Responses]) -> tuple[list[Responses], pd.DataFrame]:
    """Fit the Gaussian processes over conditions, and compute their leave-one-out errors.

    Sets of features that genes follow are fitted again with sets that lack one of their members. Conditions that are
    left out choose the scale of the Gaussian processes, or a simple prediction in their place.
    """
    related, plain = require_related(measured), measured.condition_field().fitted()
    shares = plain.fit.common.kernel_shares(len(plain.kernels))
    followed = {kernel.feature for kernel, share in zip(plain.kernels, shares, strict=True) if share >= MIN_SHARE}
    if expanded := tuple(sorted(followed - {""})):
        related = replace(related, expanded=expanded)
        measured, *halves = (replace(each, related_conditions=related) for each in (measured, *halves))
    logs = measured.condition_field().fitted() if expanded else plain
    del plain
    fields = {"logs": logs}
    if len(related.limits.columns):  # mixtures are linear in counts, so their shares are; sets and doses are not
        fields["counts"] = logs.on_counts().fitted()

    def compare(fields: dict[str, ConditionField]) -> tuple[pd.DataFrame, dict[str, list[Intervals]]]:
        both = run(lambda first: compare_conditions(halves[first], halves[1 - first], fields), range(2))
        tables, intervals = zip(*both, strict=True)
        return pd.concat(tables, ignore_index=True), {name: [half[name] for half in intervals] for name in intervals[0]}

    with threads() as run:
        errors, intervals = compare(fields)
        method = choose_method(errors)
        field = fields["counts" if method == "counts" else "logs"]
        errors = errors.assign(predicted=errors[method], permuted=np.nan)
        order = permutation_of([kernel.matrix for kernel in logs.kernels], "permuted conditions")
        if order is not None:
            permuted = field.permute(order).fitted()
            errors["permuted"] = compare({"permuted": permuted})[0]["permuted"]
        fit = replace(field.fit, method=method, common=field.fit.common.calibrated(intervals[method]))
        fitted = [replace(each, fit=fit) for each in (measured, *halves)]
        left_out = [*run(lambda each: each.condition_field().leave_out(), fitted)]
    table = mean_errors([errors], "condition")
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
    halves = square.pop("halves")
    excess = max(square["logs"].mean() - halves.mean() / 2, 0)  # beyond the error of measurements
    gain = square.rsub(square["logs"], axis=0)
    mean, least = gain.mean(), np.maximum(gain.std() / np.sqrt(len(gain)), MIN_GAIN * excess)
    return str(mean.where(mean > least, 0).fillna(0).idxmax())


def compare_conditions(
    half: Responses, second: Responses, fields: dict[str, ConditionField]
) -> tuple[pd.DataFrame, dict[str, Intervals]]:
    """Predict each condition from the others in one half of the data, and compare it with the second half.

    ``fields`` predict by name; simple predictions replace the common response of ``logs``.
    """
    logs = half.condition_field()
    both = ~(np.isnan(half.effect[:, :, 0]) | np.isnan(second.effect[:, :, 0]))
    types = np.argsort(-both.sum(axis=0), kind="stable")[:MAX_ERROR_TYPES]
    top = most_changed(logs.common.values.numpy(), logs.common.sampling_variance.numpy())
    top, sample = top[: n_compared(len(both))], logs.common.genes_to_calibrate()
    genes = np.union1d(top, sample)
    logs, sampled = logs.select_genes(genes), np.searchsorted(genes, sample)
    number, column = np.nonzero(both[:, types])  # pairs of condition and type
    row = types[column]
    real = second.effect[number, row][:, genes].T
    noise = np.array([second.sampling_variance(n)[i, genes] for n, i in zip(number.tolist(), row, strict=True)]).T
    predictions, intervals = dict[str, np.ndarray](), dict[str, Intervals]()
    for name, field in fields.items():
        of_half = (logs if field.unit is None else logs.on_counts()).like(field)
        left_out = of_half.parts_left_out(types)
        for method in (name, *(SIMPLE if name == "logs" else ())):
            fit = replace(of_half.fit, method=method)
            parts = replace(of_half, fit=fit).simplify(*left_out)
            common, own, variance = (part[:, number, column] for part in parts)
            predictions[method] = common + own
            mean, variance = predictions[method][sampled], variance[sampled]
            intervals[method] = Intervals(mean, variance, real[sampled], noise[sampled], number)
    predictions |= {
        "common": mean_of_others(logs.common.values.numpy())[:, number],
        "nearest": logs.simple_means("the nearest")[:, number],
        "halves": half.effect[number, row][:, genes].T,
    }
    errors = relative_errors(predictions, real, np.searchsorted(genes, top)[:, number])
    names = (np.array(each)[rows] for each, rows in ((half.conditions, number), (half.cell_types, row)))
    return errors.assign(**dict(zip(("condition", "cell_type"), names, strict=True))), intervals


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


def mean_of_others(values: np.ndarray) -> np.ndarray:
    """Average the other columns, for each column; 0 if there is none."""
    return np.asarray((values.sum(axis=1, keepdims=True) - values) / max(values.shape[1] - 1, 1))


def relative_errors(predictions: dict[str, np.ndarray], real: np.ndarray, top: np.ndarray) -> pd.DataFrame:
    """Return the root mean squared log2 fold change at each place, and errors relative to it.

    Predictions, by method, and ``real`` values are genes x places. ``top`` are the rows of the genes to compare, which
    may differ between places.
    """

    def root_mean_square(values: np.ndarray) -> np.ndarray:
        return np.asarray(np.sqrt(np.mean(np.take_along_axis(values, top, axis=0) ** 2, axis=0)))

    unchanged = np.maximum(root_mean_square(real), 1e-6)
    errors = {name: root_mean_square(values - real) / unchanged for name, values in predictions.items()}
    return pd.DataFrame({"size": unchanged / np.log(2), **errors})


def mean_errors(tables: Sequence[pd.DataFrame], left_out: str) -> pd.DataFrame:
    """Average errors over both halves of the data, by condition and cell type."""
    if not sum(map(len, tables)):
        return NO_ERRORS
    means = pd.concat(tables).groupby(["condition", "cell_type"], sort=False).mean().reset_index()
    means.insert(0, "left_out", left_out)
    return means[NO_ERRORS.columns]
