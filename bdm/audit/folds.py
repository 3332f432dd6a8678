"""Folds of an audit: units, which are donors or cells, divided into members, reference and non-members.

A generator is fitted to the members alone. Attacks see its cells and the reference, and score members and non-members.
"""

import logging
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, abbreviated
from bdm._core.seeds import derive, numpy_generator
from bdm.audit.limits import audit_rejection, inconclusive
from bdm.data.columns import group_column, without_unused_categories
from bdm.data.filters import split_by_type
from bdm.data.matrix import take_cells
from bdm.data.prepare import recorded_settings
from bdm.settings import AuditSettings, PrepareSettings

logger = logging.getLogger(__name__)
PARTS = MEMBERS, REFERENCE, NON_MEMBERS = ("members", "reference", "non-members")
MIN_CELLS = 3  # of a cell type in each part


@dataclass(frozen=True)
class Units:
    """What is in the training data as a whole, or not: donors, or cells."""

    code: np.ndarray  # number of each cell's unit
    cell_type: np.ndarray
    are_donors: bool

    @classmethod
    def of(cls, obs: pd.DataFrame, settings: AuditSettings) -> "Units":
        """Find the units of prepared cells."""
        cell_type = obs["cell_type"].to_numpy(dtype=str)
        key = settings.donor_key or ("donor" if "donor" in obs else None)
        if key is None or settings.by_cell:
            return cls(np.arange(len(obs)), cell_type, are_donors=False)
        donors = group_column(obs, key, argument="donor_key")
        names = donors.cat.remove_unused_categories().cat.categories
        remedy = "audit cells in place of donors by `by_cell=True`, which shows nothing about donors"
        if problem := audit_rejection(len(names), key, remedy=remedy):
            raise InputError(problem)
        plain = pd.Series(names, dtype=str).str.strip().str.casefold()
        if plain.duplicated().any():
            same = names[(plain == plain[plain.duplicated()].iloc[0]).to_numpy()]
            raise InputError(
                f"donors {same[0]!r} and {same[1]!r} in obs[{key!r}] differ only in case or blanks, so that a donor "
                "might be both in the training data and not; give each donor one name."
            )
        return cls(names.get_indexer(donors), cell_type, are_donors=True)

    @property
    def noun(self) -> str:
        """What a unit is."""
        return "donor" if self.are_donors else "cell"

    @property
    def n_units(self) -> int:
        """Number of units."""
        return int(self.code.max()) + 1


@dataclass(frozen=True)
class Fold:
    """A division of all cells into ``PARTS``."""

    number: int  # from 1
    part: np.ndarray  # of each cell
    # 0 or 1 for cells of the reference, of which one half may take the place of generated cells; -1 for others
    half: np.ndarray
    unit: np.ndarray  # number of each cell's unit, in an order that does not depend on names

    def rows(self, *parts: str) -> np.ndarray:
        """Find the cells of one part, or of several, in their order in the data."""
        return np.flatnonzero(np.isin(self.part, parts))

    @property
    def attacked(self) -> np.ndarray:
        """Find the cells that attacks score."""
        return self.rows(MEMBERS, NON_MEMBERS)


@dataclass(frozen=True)
class AuditFolds:
    """Prepared cells that are audited, with their folds."""

    cells: AnnData  # in memory
    units: Units
    folds: tuple[Fold, ...]
    left_out: tuple[str, ...] = ()  # cell types that are too rare for three parts

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Numbers of members and of non-members in each fold."""
        units = [[np.unique(fold.unit[fold.rows(part)]) for part in (MEMBERS, NON_MEMBERS)] for fold in self.folds]
        return [(len(members), len(others)) for members, others in units]

    @property
    def n_tested(self) -> int:
        """Number of units that are members in at least one of the folds."""
        in_any = np.any([fold.part == MEMBERS for fold in self.folds], axis=0)
        return len(np.unique(self.units.code[in_any]))


def divide(prepared: AnnData, settings: AuditSettings, *, seed: int) -> AuditFolds:
    """Divide prepared cells into members, reference and non-members, once for each fold.

    The parts have as equal numbers of units as possible, and of units with cells of each type. Cell types with fewer
    than three cells in a part are left out.
    """
    cells, left_out = prepared, []
    while True:
        units = Units.of(cells.obs, settings)
        folds = tuple(fold_of(units, number, seed=seed) for number in range(1, settings.n_folds + 1))
        numbers = [pd.crosstab(units.cell_type, fold.part).reindex(columns=PARTS, fill_value=0) for fold in folds]
        rare = sorted({str(name) for n in numbers for name in n.index[(n < MIN_CELLS).any(axis=1)]})
        if not rare:
            break
        left_out += rare
        kept = np.flatnonzero(~np.isin(units.cell_type, rare))
        if not len(kept):
            raise InputError(
                f"no cell type has {MIN_CELLS} cells or more in each of the three parts of a fold "
                f"({abbreviated(left_out)}); join types before bdm prepare, or give more cells."
            )
        cells, uns = take_cells(cells, kept), cells.uns
        cells.obs, cells.uns["bdm"] = without_unused_categories(cells.obs), uns["bdm"]
    if left_out:
        logger.warning(
            "Not audited, as they have too few cells or donors for three parts: %s.", abbreviated(left_out, n_shown=10)
        )
    division = AuditFolds(cells, units, folds, tuple(left_out))
    if problem := inconclusive(division.sides, units.noun):
        logger.warning("This audit will be inconclusive: %s.", problem)
    return division


def fold_of(units: Units, number: int, *, seed: int) -> Fold:
    """Divide units for one fold."""
    rng = numpy_generator(seed, "fold", number)
    everyone = np.arange(len(units.code))
    part = np.array(PARTS)[divided(units, everyone, len(PARTS), rng)]
    half = np.full(len(units.code), -1)
    reference = np.flatnonzero(part == REFERENCE)
    half[reference] = divided(units, reference, 2, rng)
    return Fold(number, part, half, rng.permutation(units.n_units)[units.code])


def divided(units: Units, cells: np.ndarray, n_parts: int, rng: np.random.Generator) -> np.ndarray:
    """Part of each of some cells, whose units are divided stratified by cell types, of which a unit may have several.

    Sechidis et al. 2011, On the Stratification of Multi-label Data, https://doi.org/10.1007/978-3-642-23808-6_10.
    """
    codes, unit_of_cell = np.unique(units.code[cells], return_inverse=True)
    names, type_of_cell = np.unique(units.cell_type[cells], return_inverse=True)
    has_type = np.zeros((len(codes), len(names)), dtype=bool)
    has_type[unit_of_cell, type_of_cell] = True
    wanted_units = np.full(n_parts, len(codes) / n_parts)
    wanted = np.repeat(has_type.sum(axis=0)[:, None] / n_parts, n_parts, axis=1)
    part = np.full(len(codes), -1)
    order = rng.permutation(len(codes))
    left = has_type.sum(axis=0)
    while (part < 0).any():
        rarest = np.flatnonzero(left == left[left > 0].min())[0]
        for unit in order[has_type[order, rarest] & (part[order] < 0)]:
            best = np.lexsort((rng.random(n_parts), -wanted_units, -wanted[rarest]))[0]
            part[unit] = best
            wanted[has_type[unit], best] -= 1
            wanted_units[best] -= 1
            left = left - has_type[unit]
    return np.asarray(part[unit_of_cell])


def training_cells(prepared: AnnData, fold: Fold, part: str = MEMBERS, *, seed: int) -> AnnData:
    """Take the cells of a part, to fit a model to: with a new split into training and validation cells."""
    cells = take_cells(prepared, fold.rows(part))
    cells.uns["bdm"] = dict(prepared.uns["bdm"])
    validation = recorded_settings(prepared).get("validation", PrepareSettings().validation)
    split = split_by_type(cells.obs["cell_type"], validation=validation, test=0.0, seed=derive(seed, "split", part))
    cells.obs = without_unused_categories(cells.obs.assign(split=split))
    return cells


def fingerprint(obs: pd.DataFrame, fold: Fold) -> str:
    """Short checksum of a fold, by which results of the same fold are recognised."""
    digest = sha256("\0".join(obs.index[fold.part == MEMBERS]).encode())
    digest.update("\0".join(obs.index[fold.part == REFERENCE]).encode())
    return digest.hexdigest()[:12]


def members_by_type(obs: pd.DataFrame, fold: Fold) -> dict[str, int]:
    """Count the members' cells of each type."""
    number = obs["cell_type"][fold.part == MEMBERS].value_counts()
    return {str(name): int(n) for name, n in number.items() if n}
