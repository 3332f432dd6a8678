"""Measure log fold changes of cell types, and compute kernels between types."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.cluster.hierarchy import cophenet, linkage
from scipy.spatial.distance import pdist, squareform

from bdm._core.errors import InputError
from bdm._core.validation import SEPARATOR, control_rejection, usual_controls
from bdm.applications.kriging.log_expression import PSEUDO, Sums, sizes_and_detected
from bdm.data.columns import text_column
from bdm.data.counts import count_matrix, find_counts
from bdm.data.matrix import take_rows
from bdm.hierarchy.tree import Clade
from bdm.settings import Relation, ResponseSettings

PRIOR_DONORS = 4  # weight of the prior variance, in donors
N_BINS = 10  # bins of genes by expression, for the prior variance between donors


@dataclass(frozen=True)
class MeasuredResponses:
    """Measured responses of cell types to conditions.

    Arrays are conditions x cell types x genes; NaN where fewer cells than ``min_cells`` were measured.
    """

    genes: pd.DataFrame
    cell_types: tuple[str, ...]
    conditions: tuple[str, ...]  # without the control
    control: str
    profile: np.ndarray  # natural log shares of counts in the control, cell types x genes
    effect: np.ndarray  # natural log fold changes from the control
    variance: np.ndarray  # sampling variance of effect
    dispersion: np.ndarray  # squared CV in excess of Poisson noise, (control, conditions) x genes
    n_cells: pd.DataFrame  # cell types x (control, conditions)

    @property
    def has_profile(self) -> np.ndarray:
        """Whether each cell type has a profile, which kernels need."""
        return np.asarray(~np.isnan(self.profile).any(axis=1))

    @property
    def related_types(self) -> tuple[str, ...]:
        """Cell types that have a profile."""
        return tuple(np.array(self.cell_types)[self.has_profile].tolist())


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


def measure(adata: AnnData, settings: ResponseSettings) -> MeasuredResponses:
    """Measure responses of cell types to conditions from pseudobulk counts.

    Raises
    ------
    InputError
        If a column or the control is missing, or a condition has only one donor. Also if fewer than two types have
        enough cells both in a condition and in the control.
    """
    condition = conditions_of(adata.obs, settings.condition_key)
    control = control_of(condition, settings.control)
    cell_type = text_column(adata.obs, settings.label_key, argument="label_key")
    donor = None if settings.donor_key is None else donors_of(adata.obs, condition, settings.donor_key)
    cells = find_counts(adata, source=settings.counts)[0]
    size, detected = sizes_and_detected(cells.X)
    types, conditions = sorted(cell_type.unique()), [control, *sorted(set(condition) - {control})]
    type_code = pd.Index(types).get_indexer(cell_type)
    condition_code = pd.Index(conditions).get_indexer(condition)
    n = pd.crosstab(type_code, condition_code).reindex(range(len(types)), fill_value=0).to_numpy().T
    enough = n >= settings.min_cells
    check_measured(enough, types, conditions)
    shape = (len(conditions) - 1, len(types), int(detected.sum()))
    effect, variance = (np.full(shape, np.nan, dtype=np.float32) for _ in range(2))
    dispersion = np.empty((len(conditions), shape[2]))

    def counts_of(rows: np.ndarray) -> sparse.csr_matrix:
        return count_matrix(take_rows(cells.X, rows))[:, detected].astype(float)

    def sums_of(rows: np.ndarray) -> Sums:
        return Sums.of(counts_of(rows), size[rows], type_code[rows], len(types))

    before = sums_of(condition_code == 0)
    profile = np.where(enough[0][:, None], before.log_share, np.nan)
    dispersion[0] = before.dispersion(enough[0])
    without_control: dict[int, list[np.ndarray]] = {}  # profiles in conditions minus the mean effect, by type
    for number in range(1, len(conditions)):
        after, measured = sums_of(condition_code == number), enough[number] & enough[0]
        of_condition = before.relative_variance + after.relative_variance
        if donor is not None:
            rows = (condition_code == 0) | (condition_code == number)
            group = (condition_code[rows] > 0) * len(types) + type_code[rows]
            by_donor = (counts_of(rows), size[rows], group, donor[rows])
            of_condition = variance_between_donors(*by_donor, (before, after), of_condition)
        effect[number - 1, measured] = (after.log_share - before.log_share)[measured]
        variance[number - 1, measured] = of_condition[measured]
        dispersion[number] = after.dispersion(enough[number])
        for row in np.flatnonzero(enough[number] & ~enough[0]):
            profile_before = after.log_share[row] - np.nanmean(effect[number - 1], axis=0)
            without_control.setdefault(int(row), []).append(profile_before)
    for of_type, profiles in without_control.items():
        profile[of_type] = np.mean(profiles, axis=0)
    return MeasuredResponses(
        genes=cells.var.loc[detected],
        cell_types=tuple(types),
        conditions=tuple(conditions[1:]),
        control=control,
        profile=profile,
        effect=effect,
        variance=variance,
        dispersion=dispersion,
        n_cells=pd.DataFrame(n.T, index=types, columns=conditions),
    )


def donors_of(obs: pd.DataFrame, condition: pd.Series, key: str) -> np.ndarray:
    """Return donor codes of cells; reject conditions with a single donor."""
    donor = text_column(obs, key, argument="donor_key")
    n_donors = donor.groupby(condition).nunique()
    if (n_donors < 2).any():
        name = str(n_donors.index[int((n_donors < 2).argmax())])
        raise InputError(
            f"Condition {name!r} has cells of one donor only, so what it does cannot be distinguished from how this "
            "donor differs; give cells of more donors, or leave out `donor_key=`."
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
        both = [cell_type for cell_type, has in zip(types, enough[0] & enough[number], strict=True) if has]
        if len(both) < 2:
            found = f"in {both[0]!r} only" if both else "in no cell type"
            raise InputError(
                f"The response to {name!r} was measured {found}: enough cells (`min_cells=`) of two types or more are "
                f"needed both in it and in the control {conditions[0]!r}; add cells, or leave the condition out."
            )


def variance_between_donors(
    counts: sparse.csr_matrix,
    size: np.ndarray,
    group: np.ndarray,
    donor: np.ndarray,
    sums: tuple[Sums, Sums],
    of_cells: np.ndarray,
) -> np.ndarray:
    """Estimate the sampling variance of effects with donors as replicates.

    This is a cluster-robust estimate: the sum of squared influences times n / (n - 1) for n donors. The influence of a
    donor is its residual in the condition minus its residual in the control, each relative to the pooled share. Donors
    in both conditions are thus paired. With few donors, the estimate is shrunk to the variance between cells times the
    mean ratio of both variances among genes of similar expression. It is at least the variance between cells.

    Parameters
    ----------
    counts
        Cells x genes.
    size
        Library size of each cell.
    group
        Code of each cell: its type in the control, and the number of types plus its type in the condition.
    donor
        Code of the donor of each cell.
    sums
        Sums over cells of each type, in the control and in the condition.
    of_cells
        Variance for independent cells, types x genes.

    Returns
    -------
    Variances, types x genes.
    """
    n_types, n_genes = of_cells.shape
    n_donors = int(donor.max()) + 1
    share, total = (np.concatenate([getattr(group, name) for group in sums]) for name in ("share", "size"))
    by_donor = Sums.of(counts, size, group * n_donors + donor, 2 * n_types * n_donors)
    residual = by_donor.counts - np.repeat(share, n_donors, axis=0) * by_donor.size[:, None]
    influence = residual / np.repeat(np.maximum(total, 1)[:, None] * (share + PSEUDO), n_donors, axis=0)
    influence = influence.reshape(2, n_types, n_donors, n_genes)
    present = (by_donor.n > 0).reshape(2, n_types, n_donors)
    variance = of_cells.copy()
    for row in range(n_types):
        n = int(present[:, row].any(axis=0).sum())
        if n < 2 or not present[:, row].any(axis=1).all():
            continue
        found = ((influence[1, row] - influence[0, row]) ** 2).sum(axis=0) * n / (n - 1)
        usual = of_cells[row] * usual_ratio(found / of_cells[row], sums[0].share[row])
        shrunken = (PRIOR_DONORS * usual + (n - 1) * found) / (PRIOR_DONORS + n - 1)
        variance[row] = np.maximum(shrunken, of_cells[row])
    return variance


def usual_ratio(ratio: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Average a ratio of variances over genes of similar expression."""
    bins = (np.argsort(np.argsort(share)) * N_BINS) // len(share)
    means = np.array([ratio[bins == number].mean() if (bins == number).any() else 1.0 for number in range(N_BINS)])
    return np.asarray(means[bins])


# ---- kernels between cell types, by their tree and by distances of profiles

SCALES = (0.5, 1.0, 2.0)  # factors of distances in exponents, in units of their median
CLOCKS = (1.0, 2.0)  # powers of heights of nodes


@dataclass(frozen=True)
class Relations:
    """Tree and distances of cell types, for kernels.

    Attributes
    ----------
    profile
        Natural log shares of counts in the control, types x genes.
    distance
        Euclidean distances of profiles, types x types.
    height
        Height of the last common ancestor of two types, types x types: 0 on the diagonal, 1 at the root.
    """

    cell_types: tuple[str, ...]
    profile: np.ndarray
    distance: np.ndarray
    height: np.ndarray

    @classmethod
    def of(cls, profile: np.ndarray, cell_types: tuple[str, ...]) -> Relations:
        """Compute distances of profiles, and their average-linkage tree."""
        distances = pdist(profile)
        height = squareform(cophenet(linkage(distances, "average")))
        return cls(cell_types, profile, squareform(distances), height / max(height.max(), 1e-12))

    def kernels(self, relation: Relation) -> list[np.ndarray]:
        """Return candidate kernels, types x types, with unit diagonal."""
        along_tree = [1 - self.height**power for power in CLOCKS]
        relative = self.distance / max(float(np.median(self.distance[np.triu_indices(len(self.distance), 1)])), 1e-12)
        smooth = [np.exp(-(relative**power) * scale) for power in (1, 2) for scale in SCALES]
        return {"all": along_tree + smooth, "tree": along_tree, "distance": smooth, "none": []}[relation]

    @cached_property
    def nodes(self) -> list[frozenset[str]]:
        """Cell types below each node of the tree, larger nodes first."""
        below = {frozenset(np.flatnonzero(row <= level)) for row in self.height for level in row}
        ordered = sorted(below, key=lambda rows: (-len(rows), min(rows)))
        return [frozenset(self.cell_types[row] for row in rows) for rows in ordered]

    def parent(self, node: frozenset[str]) -> frozenset[str] | None:
        """Return the parent of a node; None for the root."""
        above = [other for other in self.nodes if node < other]
        return min(above, key=lambda other: len(other)) if above else None


def heights(tree: Clade, cell_types: tuple[str, ...]) -> np.ndarray:
    """Return heights of last common ancestors, types x types.

    The height of a node is its largest number of levels down to a leaf, divided by the height of the root.
    """
    found = np.zeros((len(cell_types), len(cell_types)))

    def fill(node: Clade) -> tuple[int, list[int]]:
        if not node.children:
            return 0, [cell_types.index(str(node.name))]
        below = [fill(child) for child in node.children]
        height = 1 + max(depth for depth, _ in below)
        rows = [row for _, of_child in below for row in of_child]
        for _, of_child in below:
            for row in of_child:
                others = [other for other in rows if other not in of_child]
                found[row, others] = height
        return height, rows

    fill(tree)
    return np.asarray(found / max(found.max(), 1e-12))
