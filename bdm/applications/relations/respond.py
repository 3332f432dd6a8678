"""Measure responses of cell types from pseudobulk counts, and fit their Gaussian processes."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError
from bdm._core.files import provenance
from bdm._core.parallel import threads, using_threads
from bdm._core.schema import checked
from bdm._core.validation import SEPARATOR, control_rejection, usual_controls
from bdm.applications.relations.gaussian_process import GaussianProcess, Prior
from bdm.applications.relations.pseudobulk import PSEUDO, Counts, Sums
from bdm.applications.relations.related_types import RelatedTypes, heights_in_own_tree
from bdm.applications.relations.responses import Responses, most_changed_by_type
from bdm.data.columns import text_column
from bdm.data.counts import find_counts
from bdm.data.read import rna_in
from bdm.hierarchy.files import Tree, as_clade
from bdm.settings import ResponseSettings

PRIOR_DONORS = 4  # weight of the prior variance, in donors
N_BINS = 10  # bins of genes by expression, for the prior variance between donors
ERRORS = ("predicted", "unrelated", "common", "nearest", "sampling")


@checked
@using_threads()
def respond(adata: AnnData, settings: ResponseSettings = ResponseSettings(), *, tree: Tree | None = None) -> Responses:
    """Fit Gaussian processes of responses of cell types to conditions.

    Responses are log fold changes of pseudobulk counts. The model is in
    :mod:`bdm.applications.relations.gaussian_process`.

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
    measured = measure(rna_in(adata, counts=settings.counts), settings)
    if tree is not None:
        height = heights_in_own_tree(as_clade(tree), measured.cell_types, measured.has_profile)
        measured = replace(measured, height=height)
    related = measured.relate_types()

    def fit(condition: str) -> tuple[Prior, pd.DataFrame]:
        process = measured.gaussian_process(condition, related)
        fitted, unrelated = process.fit(), replace(process, kernels=[]).fit()
        genes = np.unique(most_changed_by_type(process))
        predicted, without_kernels = (each.select_genes(genes).leave_out()[0] for each in (fitted, unrelated))
        errors = errors_of(process.select_genes(genes), predicted, without_kernels, related).assign(condition=condition)
        return fitted.calibrate(related.profile[process.measured]).prior, errors

    with threads() as run:
        priors, errors = zip(*run(fit, measured.conditions), strict=True)
    table = pd.concat(errors, ignore_index=True)[["condition", "cell_type", *ERRORS]]
    return replace(measured, priors=priors, errors=table)


def errors_of(
    process: GaussianProcess, predicted: np.ndarray, unrelated: np.ndarray, related: RelatedTypes
) -> pd.DataFrame:
    """Compute leave-one-out errors, see :attr:`Responses.errors`."""
    effect, variance, rows = process.values.numpy(), process.variance.numpy(), []
    distance = related.distance[np.ix_(process.measured, process.measured)].copy()
    np.fill_diagonal(distance, np.inf)
    for column, genes in enumerate(most_changed_by_type(process).T):
        real, others = effect[genes, column], np.arange(len(process.measured)) != column
        unchanged = np.sqrt(np.mean(real**2))  # error of unchanged cells
        predictions = {
            "predicted": predicted[genes, column],
            "unrelated": unrelated[genes, column],
            "common": effect[genes][:, others].mean(axis=1),
            "nearest": effect[genes, int(distance[column].argmin())],
        }
        row = {name: np.sqrt(np.mean((values - real) ** 2)) / unchanged for name, values in predictions.items()}
        row["sampling"] = np.sqrt(variance[genes, column].mean()) / unchanged
        rows.append({"cell_type": related.cell_types[process.measured[column]], **row})
    return pd.DataFrame(rows)


# ---- measurement


def measure(adata: AnnData, settings: ResponseSettings) -> Responses:
    """Measure responses of cell types to conditions, without a fit.

    Raises
    ------
    InputError
        If a column or the control is missing, or a condition has only one donor. Also if fewer than two types have
        enough cells both in a condition and in the control.
    """
    condition = conditions_of(adata.obs, settings.condition_key)
    control = control_of(condition, settings.control)
    cell_type = text_column(adata.obs, settings.label_key, argument="label_key")
    donor = np.zeros(adata.n_obs, dtype=int)
    if settings.donor_key is not None:
        donor = donors_of(adata.obs, condition, settings.donor_key)
    cells = find_counts(adata, source=settings.counts)[0]
    counts = Counts.from_matrix(cells.X)
    types, conditions = sorted(cell_type.unique()), [control, *sorted(set(condition) - {control})]
    type_code, condition_code = pd.Index(types).get_indexer(cell_type), pd.Index(conditions).get_indexer(condition)
    n_donors = int(donor.max()) + 1
    n_cells = pd.DataFrame(pd.crosstab(type_code, condition_code).to_numpy(), index=types, columns=conditions)
    enough = (n_cells >= settings.min_cells).to_numpy().T
    check_measured(enough, types, conditions)

    def sums_of(number: int) -> tuple[Sums, Sums]:
        """Sum counts in a condition by type, and by type and donor."""
        rows = np.flatnonzero(condition_code == number)
        by_donor = counts.sums(rows, type_code[rows] * n_donors + donor[rows], len(types) * n_donors)
        return by_donor.pooled(n_donors), by_donor

    before, before_by_donor = sums_of(0)
    variance_before, influence_before = before.variance, influences(before_by_donor, before)
    shape = (len(conditions) - 1, *before.counts.shape)
    effect, variance = (np.full(shape, np.nan, dtype=np.float32) for _ in range(2))
    profile = np.where(enough[0][:, None], before.log_share, np.nan)
    dispersion = [before.dispersion(enough[0])]
    control_estimates: dict[int, list[np.ndarray]] = {}  # by type: profiles in conditions minus the mean effect
    for number in range(len(conditions) - 1):
        after, after_by_donor = sums_of(number + 1)
        sampling = variance_before + after.variance
        if settings.donor_key is not None:
            influence = influences(after_by_donor, after) - influence_before
            present = (np.stack([before_by_donor.n, after_by_donor.n]) > 0).reshape(2, len(types), n_donors)
            sampling = variance_between_donors(influence, present, sampling, before.share)
        has_effect, lacks_control = enough[number + 1] & enough[0], enough[number + 1] & ~enough[0]
        effect[number, has_effect] = (after.log_share - before.log_share)[has_effect]
        variance[number, has_effect] = sampling[has_effect]
        dispersion.append(after.dispersion(enough[number + 1]))
        for row in np.flatnonzero(lacks_control):
            estimate = after.log_share[row] - np.nanmean(effect[number], axis=0)
            control_estimates.setdefault(int(row), []).append(estimate)
    for type_number, profiles in control_estimates.items():
        profile[type_number] = np.mean(profiles, axis=0)
    return Responses(
        genes=cells.var.loc[counts.detected],
        cell_types=tuple(types),
        conditions=tuple(conditions[1:]),
        control=control,
        profile=profile,
        effect=effect,
        variance=variance,
        dispersion=np.array(dispersion),
        n_cells=n_cells,
        relation=settings.relations,
        label_key=settings.label_key,
        condition_key=tuple(settings.condition_key),
        provenance=provenance(seed=0, settings=asdict(settings)),
    )


def conditions_of(obs: pd.DataFrame, keys: tuple[str, ...]) -> pd.Series:
    """Return the condition of each cell, joined if there are several columns."""
    first, *others = columns = [text_column(obs, key, argument="condition_key") for key in keys]
    if not others:
        return first
    for key, column in zip(keys, columns, strict=True):
        if (joined := column.str.contains(SEPARATOR, regex=False)).any():
            raise InputError(
                f"obs[{key!r}] has the value {column[joined.to_numpy()].iloc[0]!r}, but {SEPARATOR!r} joins the values "
                "of several columns of conditions; rename it."
            )
    return first.str.cat(others, sep=SEPARATOR)


def control_of(conditions: pd.Series, control: str | None) -> str:
    """Return the control: by default the only condition with a usual name."""
    known = sorted(conditions.unique())
    if sentence := control_rejection(control, known):
        raise InputError(sentence)
    return usual_controls(known)[0] if control is None else control


def donors_of(obs: pd.DataFrame, condition: pd.Series, key: str) -> np.ndarray:
    """Return donor codes of cells; reject conditions with a single donor."""
    donor = text_column(obs, key, argument="donor_key")
    n_donors = donor.groupby(condition).nunique()
    if (n_donors < 2).any():
        raise InputError(
            f"Condition {str(n_donors.idxmin())!r} has cells of one donor only, so what it does cannot be "
            "distinguished from how this donor differs; give cells of more donors, or leave out `donor_key=`."
        )
    return np.asarray(pd.factorize(donor, sort=True)[0])


def check_measured(enough: np.ndarray, types: list[str], conditions: list[str]) -> None:
    """Reject conditions with fewer than two measured cell types."""
    if not enough[0].any():
        raise InputError(f"No cell type has enough cells in the control {conditions[0]!r}; see `min_cells=`.")
    if len(conditions) == 1:
        raise InputError(
            f"All cells are of the control {conditions[0]!r}; a response needs cells of another condition."
        )
    for number, name in enumerate(conditions[1:], start=1):
        both = np.array(types)[enough[0] & enough[number]].tolist()
        if len(both) < 2:
            where = f"in {both[0]!r} only" if both else "in no cell type"
            raise InputError(
                f"The response to {name!r} was measured {where}: enough cells (`min_cells=`) of two types or more are "
                f"needed both in it and in the control {conditions[0]!r}; add cells, or leave the condition out."
            )


def influences(by_donor: Sums, pooled: Sums) -> np.ndarray:
    """Return residuals of donors relative to pooled shares, types x donors x genes."""
    shape = (len(pooled.n), -1, pooled.counts.shape[1])
    share, size = pooled.share[:, None], np.maximum(pooled.size, 1)[:, None, None]
    residual = by_donor.counts.reshape(shape) - share * by_donor.size.reshape(*shape[:2], 1)
    return np.asarray(residual / (size * (share + PSEUDO)))


def variance_between_donors(
    influence: np.ndarray, present: np.ndarray, between_cells: np.ndarray, share: np.ndarray
) -> np.ndarray:
    """Estimate the sampling variance of effects with donors as replicates.

    This is a cluster-robust estimate: the sum of squared influences times n / (n - 1) for n donors. The influence of a
    donor is its residual in the condition minus its residual in the control, each relative to the pooled share. Donors
    in both conditions are thus paired. With few donors, the estimate is shrunk to the variance between cells times the
    mean ratio of both variances among genes of similar expression. It is at least the variance between cells.

    Parameters
    ----------
    influence
        Influences of donors, types x donors x genes.
    present
        Whether donors have cells, (control, condition) x types x donors.
    between_cells
        Variance for independent cells, types x genes.
    share
        Shares of counts in the control, types x genes.

    Returns
    -------
    Variances, types x genes.
    """
    variance = between_cells.copy()
    for row, cell_variance in enumerate(between_cells):
        n = int(present[:, row].any(axis=0).sum())
        if n < 2 or not present[:, row].any(axis=1).all():
            continue
        estimate = (influence[row] ** 2).sum(axis=0) * n / (n - 1)
        prior_variance = cell_variance * mean_of_similar(estimate / cell_variance, share[row])
        shrunken = (PRIOR_DONORS * prior_variance + (n - 1) * estimate) / (PRIOR_DONORS + n - 1)
        variance[row] = np.maximum(shrunken, cell_variance)
    return variance


def mean_of_similar(values: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Average values over genes of similar expression."""
    bins = (np.argsort(np.argsort(share)) * N_BINS) // len(share)
    means = np.array([values[bins == number].mean() if (bins == number).any() else 1.0 for number in range(N_BINS)])
    return np.asarray(means[bins])
