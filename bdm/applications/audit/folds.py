"""Divide donors or cells into members, reference and non-members for an audit.

A generator is fitted to the members alone. Attacks see its cells and the reference, and score members and non-members.
"""

import logging
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm._core.errors import InputError, abbreviated
from bdm._core.seeds import derive, numpy_generator
from bdm.applications.audit.limits import MIN_DONORS, cells_for_donors, explain_inconclusive
from bdm.data.columns import group_column, without_unused_categories
from bdm.data.filters import split_by_type
from bdm.data.matrix import take_cells
from bdm.data.prepare import has_donors, recorded_settings
from bdm.settings import AuditSettings, PrepareSettings

logger = logging.getLogger(__name__)
PARTS = MEMBERS, REFERENCE, NON_MEMBERS = ("members", "reference", "non-members")
MIN_CELLS = 3  # fewest cells of a cell type in each part


@dataclass(frozen=True)
class Units:
    """Donors or cells. All cells of a unit are members, or none."""

    code: np.ndarray  # code of each cell's unit
    cell_type: np.ndarray
    are_donors: bool
    too_few_donors: int | None = None  # number of donors, if cells are units because donors are too few

    @classmethod
    def from_prepared(cls, prepared: AnnData) -> "Units":
        """Return the donors of prepared cells if they suffice, else cells."""
        obs = prepared.obs
        cell_type = obs["cell_type"].to_numpy(dtype=str)
        cells = cls(np.arange(len(obs)), cell_type, are_donors=False)
        if not has_donors(prepared):
            return cells
        donors = group_column(obs, "donor", argument="donor_key")
        names = donors.cat.remove_unused_categories().cat.categories
        if len(names) < MIN_DONORS:
            return replace(cells, too_few_donors=len(names))
        plain = pd.Series(names, dtype=str).str.strip().str.casefold()
        if plain.duplicated().any():
            similar = names[(plain == plain[plain.duplicated()].iloc[0]).to_numpy()]
            raise InputError(
                f"donors {similar[0]!r} and {similar[1]!r} in obs['donor'] differ only in case or blanks, so a donor "
                "might be both in the training data and outside; give each donor a single name."
            )
        return cls(names.get_indexer(donors), cell_type, are_donors=True)

    @property
    def noun(self) -> str:
        """Name of a unit: ``donor`` or ``cell``."""
        return "donor" if self.are_donors else "cell"

    @property
    def n_units(self) -> int:
        """Number of units."""
        return int(self.code.max()) + 1


@dataclass(frozen=True)
class Fold:
    """Division of all cells into ``PARTS``."""

    number: int  # from 1
    part: np.ndarray  # part of each cell
    unit: np.ndarray  # shuffled number of each cell's unit, independent of donor names

    def rows(self, *parts: str) -> np.ndarray:
        """Return the row numbers of cells in any of the parts."""
        return np.flatnonzero(np.isin(self.part, parts))

    @property
    def attacked(self) -> np.ndarray:
        """Row numbers of the cells that attacks score."""
        return self.rows(MEMBERS, NON_MEMBERS)


@dataclass(frozen=True)
class AuditFolds:
    """Audited cells and their folds."""

    cells: AnnData  # in memory
    units: Units
    folds: tuple[Fold, ...]
    left_out: tuple[str, ...] = ()  # cell types too rare for three parts

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Numbers of members and of non-members in each fold."""
        units = [[np.unique(fold.unit[fold.rows(part)]) for part in (MEMBERS, NON_MEMBERS)] for fold in self.folds]
        return [(len(members), len(non_members)) for members, non_members in units]

    @property
    def n_tested(self) -> int:
        """Number of units that are members in at least one fold."""
        is_tested = np.any([fold.part == MEMBERS for fold in self.folds], axis=0)
        return len(np.unique(self.units.code[is_tested]))


def divide(prepared: AnnData, settings: AuditSettings, *, seed: int) -> AuditFolds:
    """Divide prepared cells into members, reference and non-members for each fold.

    Parts are balanced by number of units, overall and in each cell type. Cell types with fewer than three cells in a
    part are left out.
    """
    cells, left_out = prepared, []
    while True:
        units = Units.from_prepared(cells)
        folds = []
        for number in range(1, settings.n_folds + 1):
            rng = numpy_generator(seed, "fold", number)
            part = np.array(PARTS)[divide_units(units, rng)]
            folds.append(Fold(number, part, rng.permutation(units.n_units)[units.code]))
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
    if units.too_few_donors is not None:
        logger.warning("%s", cells_for_donors(units.too_few_donors))
    division = AuditFolds(cells, units, tuple(folds), tuple(left_out))
    if problem := explain_inconclusive(division.sides, units.noun):
        logger.warning("This audit will be inconclusive: %s.", problem)
    return division


def divide_units(units: Units, rng: np.random.Generator) -> np.ndarray:
    """Stratify units by cell type into parts; return each cell's part.

    Iterative stratification, because a unit may have several cell types: Sechidis et al. 2011, On the Stratification of
    Multi-label Data, https://doi.org/10.1007/978-3-642-23808-6_10.
    """
    names, type_of_cell = np.unique(units.cell_type, return_inverse=True)
    n_units, n_parts = units.n_units, len(PARTS)
    has_type = np.zeros((n_units, len(names)), dtype=bool)
    has_type[units.code, type_of_cell] = True
    missing_units = np.full(n_parts, n_units / n_parts)
    missing_by_type = np.repeat(has_type.sum(axis=0)[:, None] / n_parts, n_parts, axis=1)
    part = np.full(n_units, -1)
    order = rng.permutation(n_units)
    n_left = has_type.sum(axis=0)
    while (part < 0).any():
        rarest = np.flatnonzero(n_left == n_left[n_left > 0].min())[0]
        for unit in order[has_type[order, rarest] & (part[order] < 0)]:
            best = np.lexsort((rng.random(n_parts), -missing_units, -missing_by_type[rarest]))[0]
            part[unit] = best
            missing_by_type[has_type[unit], best] -= 1
            missing_units[best] -= 1
            n_left = n_left - has_type[unit]
    return np.asarray(part[units.code])


def training_cells(prepared: AnnData, fold: Fold, part: str = MEMBERS, *, seed: int) -> AnnData:
    """Select the cells of a part, with a new validation split."""
    cells = take_cells(prepared, fold.rows(part))
    cells.uns["bdm"] = dict(prepared.uns["bdm"])
    validation = recorded_settings(prepared).get("validation", PrepareSettings().validation)
    split = split_by_type(cells.obs["cell_type"], validation=validation, test=0.0, seed=derive(seed, "split", part))
    cells.obs = without_unused_categories(cells.obs.assign(split=split))
    return cells


def members_by_type(obs: pd.DataFrame, fold: Fold) -> dict[str, int]:
    """Count the members of each cell type."""
    number = obs["cell_type"][fold.part == MEMBERS].value_counts()
    return {str(name): int(n) for name, n in number.items() if n}
