"""Measure responses of cell types from pseudobulk counts, also in halves of the data."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError
from bdm._core.files import provenance
from bdm._core.seeds import numpy_generator
from bdm.applications.relations.condition_names import conditions_of, control_of, with_doses
from bdm.applications.relations.pseudobulk import (
    PSEUDO,
    Counts,
    ShrunkenProfiles,
    Sums,
    correlation_between_types,
    correlation_of_single_donors,
    variance_between_donors,
    variance_of_single_donors,
)
from bdm.applications.relations.related_conditions import RelatedConditions
from bdm.applications.relations.responses import Responses
from bdm.data.columns import text_column
from bdm.data.counts import find_counts
from bdm.settings import ResponseSettings

MIN_CELLS_IN_HALF = 2
MAX_GENES_IN_HALVES = 5000  # detected in most cells; more would take much memory
MAX_SHARE_OF_DONOR = 0.9  # of the cells of a type in a condition; above, the other donors are no replicates


def measure(
    adata: AnnData, settings: ResponseSettings, *, features: pd.DataFrame | None = None
) -> tuple[Responses, list[Responses]]:
    """Measure responses of cell types to conditions, also in two halves of the data."""
    base = conditions_of(adata.obs, settings.condition_key)
    control = control_of(base, settings.control)
    condition = with_doses(base, adata.obs, settings, control)
    cell_type = text_column(adata.obs, settings.label_key, argument="label_key")
    cells = find_counts(adata, source=settings.counts)[0]
    counts = Counts.from_matrix(cells.X)
    types, conditions = sorted(cell_type.unique()), [control, *sorted(set(condition) - {control})]
    population_code, condition_code = (
        pd.Index(types).get_indexer(cell_type),
        pd.Index(conditions).get_indexer(condition),
    )
    replicate, half_of_replicate = divide_replicates(adata.obs, condition, cell_type, settings.donor_key)
    n, are_donors = len(half_of_replicate), settings.donor_key is not None
    n_cells = pd.DataFrame(pd.crosstab(population_code, condition_code).to_numpy(), index=types, columns=conditions)
    enough = (n_cells >= settings.min_cells).to_numpy().T
    related = relate_conditions(conditions, settings, features)
    check_measured(enough, types, conditions, are_related=related is not None)
    donor_share = np.zeros((len(conditions), len(types), n))  # in the cells of a type in a condition
    np.add.at(donor_share, (condition_code, population_code, replicate), 1)
    donor_share /= np.maximum(donor_share.sum(axis=2, keepdims=True), 1)
    has_replicates = donor_share.max(axis=2) <= MAX_SHARE_OF_DONOR
    if are_donors:
        check_replicates(enough & has_replicates, conditions)

    def sums_of(number: int) -> tuple[Sums, ...]:
        """Sum counts of types in a condition: by replicate, in total, and in each half."""
        rows = np.flatnonzero(condition_code == number)
        by_replicate = counts.sums(rows, population_code[rows] * n + replicate[rows], len(types) * n)
        halves = (by_replicate.pooled(n, half_of_replicate == half) for half in range(2))
        return (by_replicate, by_replicate.pooled(n), *halves)

    def for_all_types(values: np.ndarray, default: float) -> np.ndarray:
        """Add the types without enough control cells."""
        array = np.full((len(types), values.shape[1]), default)
        array[enough[0]] = values
        return array

    by_replicate, *before = sums_of(0)
    shrunken = [ShrunkenProfiles.from_measured(sums.log_share[enough[0]], sums.variance[enough[0]]) for sums in before]
    profiles = [for_all_types(each.profile, np.nan) for each in shrunken]
    own = for_all_types(shrunken[0].variance, 0.0)
    influence_before = influences(by_replicate, before[0]) * for_all_types(shrunken[0].kept, 1.0)[:, None]
    shape = (len(conditions) - 1, *before[0].counts.shape)
    compared = np.sort(np.argsort(-counts.n_detected[counts.detected], kind="stable")[:MAX_GENES_IN_HALVES])
    selections = [slice(None), compared, compared]  # genes of all cells, and of both halves
    effects = [np.full((*shape[:2], n_genes), np.nan, np.float32) for n_genes in (shape[2], *[len(compared)] * 2)]
    variance = np.full(shape, np.nan, dtype=np.float32)
    donor_error = np.zeros(shape if are_donors else (0, 0, 0), dtype=np.float32)
    donor_correlation = np.zeros((shape[0], shape[1], shape[1]) if are_donors else (0, 0, 0))
    dispersion = [before[0].dispersion(enough[0])]
    control_estimates: dict[int, list[np.ndarray]] = {}  # by type: profiles in conditions minus the mean effect
    for number in range(len(conditions) - 1):
        by_replicate_after, *after = sums_of(number + 1)
        has_effect = enough[number + 1] & enough[0]
        for effect, profile, genes, sums, sums_before in zip(effects, profiles, selections, after, before, strict=True):
            has = has_effect & (sums.n >= MIN_CELLS_IN_HALF) & (sums_before.n >= MIN_CELLS_IN_HALF)
            effect[number, has] = (sums.log_share - profile)[has][:, genes]
        sampling = own + after[0].variance
        variance[number, has_effect] = sampling[has_effect]
        if are_donors:
            both = [0, number + 1]
            added, donor_correlation[number] = errors_of_donors(
                influence_before,
                influences(by_replicate_after, after[0]),
                donor_share[both],
                has_replicates[both].all(axis=0),
                has_effect,
                sampling,
                before[0].share,
            )
            donor_error[number] = np.sqrt(added)
        dispersion.append(after[0].dispersion(enough[number + 1]))
        for row in np.flatnonzero(enough[number + 1] & ~enough[0]):
            estimate = after[0].log_share[row] - np.nanmean(effects[0][number], axis=0)
            control_estimates.setdefault(int(row), []).append(estimate)
    for type_number, estimates in control_estimates.items():
        for profile in profiles:
            profile[type_number] = np.mean(estimates, axis=0)
    measured = Responses(
        genes=cells.var.loc[counts.detected],
        cell_types=tuple(types),
        conditions=tuple(conditions[1:]),
        control=control,
        profile=profiles[0],
        effect=effects[0],
        variance=variance,
        control_error=np.sqrt(own).astype(np.float32),
        baseline_error=for_all_types(shrunken[0].common_error, 0.0).astype(np.float32),
        donor_error=donor_error,
        donor_correlation=donor_correlation,
        dispersion=np.array(dispersion),
        n_cells=n_cells,
        settings=settings,
        provenance=provenance(seed=0, settings=asdict(settings)),
        related_conditions=related,
    )
    half = measured.select_genes(compared)
    names = ("control_error", "baseline_error", "donor_error")
    half = replace(half, variance=2 * half.variance, **{name: getattr(half, name) * 2**0.5 for name in names})
    halves = zip(profiles[1:], effects[1:], strict=True)
    return measured, [replace(half, profile=profile[:, compared], effect=effect) for profile, effect in halves]


def divide_replicates(
    obs: pd.DataFrame, condition: pd.Series, cell_type: pd.Series, key: str | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the replicate of each cell, and the half of the data (0 or 1) of each replicate.

    Replicates are donors, and those of the same conditions are divided evenly. Without donors, replicates are two
    random parts of the cells of each type and condition.
    """
    if key is None:
        order = numpy_generator(0, "halves").permutation(len(obs))
        groups = pd.DataFrame({"condition": condition.to_numpy(), "cell_type": cell_type.to_numpy()}).iloc[order]
        half = groups.groupby(["condition", "cell_type"]).cumcount().sort_index() % 2
        return half.to_numpy(), np.arange(2)
    code = np.asarray(pd.factorize(text_column(obs, key, argument="donor_key"), sort=True)[0])
    present = pd.crosstab(code, condition.to_numpy()).to_numpy() > 0
    half = np.empty(len(present), dtype=int)
    half[np.lexsort(present.T)] = np.arange(len(present)) % 2  # donors of the same conditions are neighbours
    return code, half


def relate_conditions(
    conditions: list[str], settings: ResponseSettings, features: pd.DataFrame | None
) -> RelatedConditions | None:
    """Relate conditions, after the control, by features, doses or common parts, if any."""
    dosed, separator = settings.dose_key is not None, settings.combination_separator
    if features is None and not dosed and separator is None:
        return None
    control, *names = conditions
    return RelatedConditions.from_names(names, features=features, separator=separator, dosed=dosed, control=control)


def check_measured(enough: np.ndarray, types: list[str], conditions: list[str], *, are_related: bool) -> None:
    """Reject conditions with too few measured cell types."""
    if not enough[0].any():
        raise InputError(f"No cell type has enough cells in the control {conditions[0]!r}; see `min_cells=`.")
    if len(conditions) == 1:
        raise InputError(
            f"All cells are of the control {conditions[0]!r}; a response needs cells of another condition."
        )
    if are_related and len(conditions) == 2:
        raise InputError(
            f"There is one condition, {conditions[1]!r}, besides the control {conditions[0]!r}; relations between "
            "conditions need two or more. Add conditions, or leave out their features, doses and separator."
        )
    for number, name in enumerate(conditions[1:], start=1):
        both = np.array(types)[enough[0] & enough[number]].tolist()
        if len(both) < (1 if are_related else 2):
            where = f"in {both[0]!r} only" if both else "in no cell type"
            needed = "of a type" if are_related else "of two types or more"
            raise InputError(
                f"The response to {name!r} was measured {where}: enough cells (`min_cells=`) {needed} are "
                f"needed both in it and in the control {conditions[0]!r}; add cells, or leave the condition out."
            )


def check_replicates(enough: np.ndarray, conditions: list[str]) -> None:
    """Reject conditions in which no cell type has replicates."""
    if not (has_replicates := (enough[0] & enough[1:]).any(axis=1)).all():
        raise InputError(
            f"In condition {conditions[1 + int(has_replicates.argmin())]!r} or in the control {conditions[0]!r}, each "
            f"cell type is of one donor only (at least {MAX_SHARE_OF_DONOR:.0%} of its cells), so a response cannot be "
            "distinguished from how donors differ; give cells of more donors, or leave out `donor_key=`."
        )


def errors_of_donors(
    before: np.ndarray,
    after: np.ndarray,
    donor_share: np.ndarray,
    has_replicates: np.ndarray,
    has_effect: np.ndarray,
    sampling: np.ndarray,
    share: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimate the variances that donors add to effects in a condition, and correlations between types.

    ``before`` and ``after`` are influences of donors on the control and on the condition, types x donors x genes.
    ``donor_share`` in the cells is (control, condition) x types x donors. ``sampling`` variances for independent cells
    and ``share`` of counts in the control are types x genes.
    """
    scale, degrees = scale_of_influences(donor_share > 0, has_replicates)
    influence = (after - before) * scale[:, :, None]
    added = variance_between_donors(influence, degrees, sampling, share)
    correlation = correlation_between_types(influence, added, sampling + added)
    if not (is_single := has_effect & ~has_replicates).any():
        return added, correlation
    n = (donor_share > 0).sum(axis=2)
    by_condition = np.stack([before, after]) * np.sqrt(n / np.maximum(n - 1, 1))[:, :, None, None]
    degrees = np.where(degrees > 0, n.sum(axis=0) - 2, 0)
    unpaired = variance_between_donors(np.concatenate([*by_condition], axis=1), degrees, sampling, share)
    weight, source = np.concatenate([*donor_share], axis=1), has_effect & has_replicates
    of_same, of_different = (variance_of_single_donors(each, weight, share, source) for each in (added, unpaired))
    is_same = donor_share[0].argmax(axis=1) == donor_share[1].argmax(axis=1)
    added[is_single] = np.where(is_same[:, None], of_same, of_different)[is_single]
    return added, correlation_of_single_donors(correlation, weight, source, is_single)


def influences(by_donor: Sums, pooled: Sums) -> np.ndarray:
    """Return residuals of donors relative to pooled shares, types x donors x genes."""
    shape = (len(pooled.n), -1, pooled.counts.shape[1])
    share, size = pooled.share[:, None], np.maximum(pooled.size, 1)[:, None, None]
    residual = by_donor.counts.reshape(shape) - share * by_donor.size.reshape(*shape[:2], 1)
    return np.asarray(residual / (size * (share + PSEUDO)))


def scale_of_influences(present: np.ndarray, has_replicates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return factors for unbiased variances, types x donors, and degrees of freedom of types.

    Donors in the control, in the condition, and in both are three groups. The variance of n donors of a group is scaled
    by n / (n - 1). A donor alone in its group has no replicate, so it is scaled as all donors together. Types whose
    donors are no replicates have no degrees of freedom. ``present`` is (control, condition) x types x donors.
    """
    group = present[0] + 2 * present[1]
    scale, degrees = np.zeros(group.shape), np.zeros(len(group), dtype=int)
    for row, of_type in enumerate(group):
        n_all = int((of_type > 0).sum())
        if not has_replicates[row] or not present[:, row].any(axis=1).all():
            continue
        for number in range(1, 4):
            members = of_type == number
            n = int(members.sum()) if members.sum() > 1 else n_all
            scale[row, members] = np.sqrt(n / (n - 1))
            degrees[row] += max(int(members.sum()) - 1, 0)
        degrees[row] = max(degrees[row], 1)
    return scale, degrees
