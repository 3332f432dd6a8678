"""Results of an audit: scores of attacked cells, tables of areas under ROC curves, the verdict, and their files."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm, sem, t

from bdm._core.files import write_json
from bdm._core.seeds import derive, numpy_generator
from bdm._core.store import Result
from bdm.audit.attacks import GENERATED, ON_MODEL
from bdm.audit.limits import LEVEL
from bdm.audit.verdict import (
    N_DRAWS,
    N_PERMUTATIONS,
    AuditVerdict,
    areas,
    null_of_units,
    of_units,
    score_columns,
    sides_in,
    some_cells,
    spread_of_auc,
    standardised,
    verdict_of,
)
from bdm.errors import counted

KIND, SUMMARY = "audit", "summary.json"
TABLES = {"attacks": "attacks.csv", "by_fold": "by_fold.csv", "by_label": "by_label.csv"}
NUMBERS_OF_CELLS = (50, 100)  # of each donor, besides all
ROW = ["set", "attack", "level", "n_cells"]


@dataclass(frozen=True, repr=False)
class Audit(Result):
    """What attacks found in the folds of an audit.

    Attributes
    ----------
    scores
        A row for each attacked cell of each fold: ``fold``, ``unit`` (a number, in random order), ``cell_type``,
        ``member`` (1 if the cell was in the training data), and a column ``SET/ATTACK`` for each score.
    record
        How it was made: ``unit`` (``donor`` or ``cell``), ``n_folds``, ``seed``, ``fingerprints`` of the folds,
        ``n_generated`` (number of generated cells of each fold), ``n_tested`` (number of units that are members in at
        least one of all folds; attacks show nothing about the others), ``generator``, settings and versions.
    """

    kind = KIND

    scores: pd.DataFrame
    record: dict[str, Any]

    def __repr__(self) -> str:
        return f"Audit of {self.unit}s in {counted(self.n_folds, 'fold')}\n{self.verdict.text}"

    @property
    def unit(self) -> str:
        """What was in the training data as a whole, or not: ``donor`` or ``cell``."""
        return str(self.record["unit"])

    @property
    def n_folds(self) -> int:
        """Number of folds that the audit has."""
        return int(self.scores["fold"].nunique())

    @cached_property
    def _cells(self) -> pd.DataFrame:
        return standardised(self.scores)

    @cached_property
    def _units(self) -> pd.DataFrame:
        return of_units(self._cells)

    @cached_property
    def by_fold(self) -> pd.DataFrame:
        """Table of folds, sets and attacks.

        ``set`` is what the attacks took for generated cells: the ``generated`` ones, ``copies`` of the training cells,
        or, for ``chance``, cells of other units. ``level`` is ``cell`` or ``donor``, and ``n_cells`` the number of
        cells of each donor, NaN for all. ``auc`` is the area under the ROC curve of members against non-members, and
        ``true_positives`` the share of members that are found where 1% of non-members are taken for members.
        """
        tables = [areas(self._cells, ["fold"]).assign(level="cell", n_cells=np.nan)]
        if self.unit == "donor":
            tables.append(areas(self._units, ["fold"]).assign(level="donor", n_cells=np.nan))
            largest = self.scores.groupby(["fold", "unit"]).size().max()
            for number in NUMBERS_OF_CELLS:
                if number < largest:  # means over draws of some of the cells of each donor
                    rng = numpy_generator(self.record["seed"], "cells of donors", number)
                    draws = [areas(of_units(some_cells(self._cells, number, rng)), ["fold"]) for _ in range(N_DRAWS)]
                    means = {name: np.mean([of[name] for of in draws], axis=0) for name in ("auc", "true_positives")}
                    tables.append(draws[0].assign(**means, level="donor", n_cells=number))
        return pd.concat(tables, ignore_index=True)[["fold", *ROW, "auc", "true_positives"]]

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """The table :attr:`by_fold` as means over folds, with 95% intervals of the area (``low``, ``high``)."""
        rows = []
        for key, of in self.by_fold.groupby(ROW, sort=False, dropna=False):
            low, high = interval(of["auc"].dropna().to_numpy())
            means = {"auc": of["auc"].mean(), "low": low, "high": high, "true_positives": of["true_positives"].mean()}
            rows.append({**dict(zip(ROW, key, strict=True)), **means, "n_folds": int(of["auc"].count())})
        return pd.DataFrame(rows)

    @property
    def attacks_on_units(self) -> pd.DataFrame:
        """Rows of :attr:`attacks` of donors (of cells, without donors) with all of their cells, by set and attack."""
        rows = self.attacks[(self.attacks["level"] == self.unit) & self.attacks["n_cells"].isna()]
        return rows.set_index(["set", "attack"])

    @cached_property
    def by_label(self) -> pd.DataFrame:
        """Table of cell types, sets and attacks, as means over folds.

        ``auc`` is the area of cells, ``auc_of_donors`` of donors with their cells of the type, and ``limit`` the area
        (of donors, or of cells without donors) that chance reaches in any attack and cell type in one of 20 audits,
        by a normal approximation. An area is beyond chance if it is above the limit: with a limit of 1, none is.
        """
        by = ["cell_type", "set", "attack"]
        units = of_units(self._cells, by=("cell_type",))
        table = areas(self._cells, ["cell_type", "fold"]).groupby(by, sort=False)["auc"].mean().to_frame()
        if self.unit == "donor":
            table["auc_of_donors"] = areas(units, ["cell_type", "fold"]).groupby(by, sort=False)["auc"].mean()
        table = table.reset_index()
        n_cells = self.scores["cell_type"].value_counts() // self.n_folds
        table.insert(len(by), "n_cells", table["cell_type"].map(n_cells))
        z = norm.isf(LEVEL / max((table["set"] == GENERATED).sum(), 1))
        limits = {}
        for name, of_type in units.groupby("cell_type"):
            spreads = [spread_of_auc(*sides) for sides in sides_in(of_type)]
            # with few units, the approximation exceeds all areas
            limits[name] = np.minimum(0.5 + z * np.sqrt(np.square(spreads).sum()) / len(spreads), 1.0)
        return table.assign(limit=table["cell_type"].map(limits))

    @cached_property
    def verdict(self) -> AuditVerdict:
        """Which attacks on the generated cells found members among units, with all of their cells."""
        units = self._units
        columns = [
            name for name in score_columns(units) if name.startswith(f"{GENERATED}/") and units[name].notna().any()
        ]
        null = null_of_units(units, columns, n_permutations=N_PERMUTATIONS, seed=derive(self.record["seed"], "null"))
        means = self.attacks_on_units["auc"].loc[GENERATED]
        return verdict_of(dict(means.dropna()), null, sides=sides_in(units), unit=self.unit)

    def best_by_type(self, *, on_model: bool) -> Iterator[tuple[str, str, float, float]]:
        """Yield each cell type with the best attack on its generated cells, its area, and the limit of chance."""
        area = "auc_of_donors" if self.unit == "donor" else "auc"
        counted_in = (self.by_label["set"] == GENERATED) & (on_model | ~self.by_label["attack"].isin(ON_MODEL))
        table = self.by_label[counted_in].dropna(subset=area).sort_values(area, ascending=False, kind="stable")
        for row in table.drop_duplicates("cell_type").to_dict("records"):
            yield row["cell_type"], row["attack"], row[area], row["limit"]

    def _write_tables(self, folder: Path) -> None:
        for name, file in TABLES.items():
            getattr(self, name).to_csv(folder / file, index=False, float_format="%.4f")
        write_json(folder / SUMMARY, self.verdict.summary() | {"n_tested": self.record["n_tested"]})


def interval(areas: np.ndarray) -> tuple[float, float]:
    """Compute the 95% interval of the mean of areas over folds, by Student's t; NaN for a single fold."""
    if len(areas) < 2:
        return np.nan, np.nan
    half = t.ppf(0.975, len(areas) - 1) * sem(areas)
    return float(max(areas.mean() - half, 0)), float(min(areas.mean() + half, 1))
