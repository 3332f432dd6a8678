"""Results of an audit: scores of attacked cells, areas under ROC curves, the verdict, files, and the card's section."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from bdm._core.errors import InputError, abbreviated, counted, markdown
from bdm._core.files import write_json
from bdm._core.seeds import derive
from bdm._core.store import Result
from bdm.audit.attacks import ATTACKS, CHANCE, COPIES, GENERATED, ON_MODEL, SETS
from bdm.audit.limits import LEVEL
from bdm.audit.verdict import (
    N_PERMUTATIONS,
    AuditVerdict,
    areas,
    interval,
    limit_of_chance,
    null_of_units,
    of_units,
    score_columns,
    sides_in,
    spread_of_auc,
    standardised,
    verdict_of,
)
from bdm.model.card import GeneratedFile
from bdm.model.model import BranchedModel

TABLES = {"attacks": "attacks.csv", "by_fold": "by_fold.csv", "by_label": "by_label.csv"}
ROW = ["set", "attack", "level"]


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

    kind = "audit"

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
        or, for ``chance``, cells of other units. ``level`` is ``cell`` or ``donor``. ``auc`` is the area under the ROC
        curve of members against non-members, and ``true_positives`` the share of members that are found where 1% of
        non-members are taken for members.
        """
        tables = [areas(self._cells, ["fold"]).assign(level="cell")]
        if self.unit == "donor":
            tables.append(areas(self._units, ["fold"]).assign(level="donor"))
        return pd.concat(tables, ignore_index=True)[["fold", *ROW, "auc", "true_positives"]]

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """The table :attr:`by_fold` as means over folds, with confidence limits of the area (``low``, ``high``).

        In 95% of audits, the areas of all attacks on a set are above ``low``, and the area of each is below ``high``.
        ``low`` is above 0.5 if, and only if, the test of the verdict finds members.
        """
        sides = sides_in(self._units)
        limits = {
            (level, name): limit_of_chance(self._null(level, name))
            for level, name in self.by_fold[["level", "set"]].drop_duplicates().itertuples(index=False)
        }
        rows = []
        for (name, attack, level), table in self.by_fold.groupby(ROW, sort=False):
            auc, true_positives = table["auc"].mean(), table["true_positives"].mean()
            low, high = interval(auc, limits[level, name], sides)
            means = {"auc": auc, "low": low, "high": high, "true_positives": true_positives}
            rows.append({"set": name, "attack": attack, "level": level, **means, "n_folds": int(table["auc"].count())})
        return pd.DataFrame(rows)

    def _null(self, level: str, name: str) -> np.ndarray:
        """Areas of the attacks on a set after permutations of membership among units."""
        table = self._units if level == self.unit else self._cells
        columns = [column for column in score_columns(table) if column.startswith(f"{name}/")]
        known = [column for column in columns if table[column].notna().any()]
        return null_of_units(table, known, n_permutations=N_PERMUTATIONS, seed=derive(self.record["seed"], "null"))

    @property
    def attacks_on_units(self) -> pd.DataFrame:
        """Rows of :attr:`attacks` of donors (of cells, without donors), by set and attack."""
        return self.attacks[self.attacks["level"] == self.unit].set_index(["set", "attack"])

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
        null = self._null(self.unit, GENERATED)
        means = self.attacks_on_units["auc"].loc[GENERATED]
        return verdict_of(means.dropna().to_dict(), null, sides=sides_in(self._units), unit=self.unit)

    def by_attack(self) -> Iterator[dict[str, Any]]:
        """Yield what each attack on units found, the highest area first: areas by set, interval, and share found."""
        table = self.attacks_on_units
        for finding in self.verdict.findings:
            of_generated = table.loc[(GENERATED, finding.attack)]
            yield {
                "name": ATTACKS[finding.attack],
                "on": "model" if finding.attack in ON_MODEL else "cells",
                "finding": finding,
                "found": "inconclusive" if self.verdict.inconclusive else "yes" if finding.found else "no",
                **{name: table["auc"].get((name, finding.attack), np.nan) for name in SETS},
                **{name: of_generated[name] for name in ("low", "high", "true_positives")},
            }

    def best_by_type(self, *, on_model: bool) -> Iterator[dict[str, Any]]:
        """Yield the best attack on the generated cells of each cell type, its area, and the limit of chance."""
        area = "auc_of_donors" if self.unit == "donor" else "auc"
        counted_in = (self.by_label["set"] == GENERATED) & (on_model | ~self.by_label["attack"].isin(ON_MODEL))
        table = self.by_label[counted_in].dropna(subset=area).sort_values(area, ascending=False, kind="stable")
        for row in table.drop_duplicates("cell_type").to_dict("records"):
            yield {"name": row["cell_type"], "attack": ATTACKS[row["attack"]], "auc": row[area], "limit": row["limit"]}

    def _write_tables(self, folder: Path) -> None:
        for name, file in TABLES.items():
            getattr(self, name).to_csv(folder / file, index=False, float_format="%.4f")
        write_json(folder / "summary.json", self.verdict.summary() | {"n_tested": self.record["n_tested"]})


# ---- on a model card

# Of the preparation; an audit divides all cells, so their split may differ
AUDITED_SETTINGS = (
    *("genes", "n_genes", "keep_genes", "min_cells_per_gene", "clip_outliers"),
    *("counts", "label_key", "batch_key", "donor_key", "min_donors"),
)
GIVEN = ("not given", "given")


def audit_section(audit: Audit, model: BranchedModel, cells: GeneratedFile | None = None) -> dict[str, Any]:
    """Give the card of a model, and of a file of its cells, what it shows of an audit."""
    check_audit(audit, model, cells)
    left_out = markdown(abbreviated(list(audit.record.get("left_out", ())), n_shown=10))
    rows = {"attacks": list(attack_rows(audit)), "audited_types": list(audited_type_rows(audit))}
    n_fitted = int(model.composition.to_numpy().sum())
    return {"audit": audit, "left_out": left_out, "divided": divided_in_words(audit, cells, n_fitted), **rows}


def divided_in_words(audit: Audit, cells: GeneratedFile | None, n_fitted: int) -> str:
    """Say how many units were a member in any fold, and how many generated cells were attacked, as far as is known."""
    text, n_generated = "", list(audit.record.get("n_generated", {}).values())
    if (n_tested := audit.record["n_tested"]) == audit.record["n_units"]:
        text += f" Each {audit.unit} was a member in at least one division."
    else:
        text += f" {counted(n_tested, audit.unit)} were members in at least one division, and the others in none."
    if n_generated:
        least, most = min(n_generated), max(n_generated)
        number = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        share = rounded(sum(n_generated) / int(audit.scores["member"].sum()))
        text += f" The attacks had {number} generated cells in a division, {share} for each training cell"
        if cells is not None:
            released = int(cells.n_by_type.sum())
            text += f"; the file described above has {released:,}, {rounded(released / n_fitted)} for each"
        text += ". More cells disclose more."
    return text


def rounded(ratio: float) -> str:
    """Write a ratio with two digits, and without an exponent."""
    return np.format_float_positional(ratio, precision=2, fractional=False, trim="-")


def attack_rows(audit: Audit) -> Iterator[tuple[str, ...]]:
    """Yield the attacks of an audit: areas by generated cells, copies and chance, and which members were found."""
    for row in audit.by_attack():
        copies, chance = ("" if np.isnan(row[name]) else f"{row[name]:.2f}" for name in (COPIES, CHANCE))
        share = f"{row['true_positives']:.0%}"
        yield row["name"], row["on"], f"{row[GENERATED]:.2f}", copies, chance, share, row["found"]


def audited_type_rows(audit: Audit) -> Iterator[tuple[str, ...]]:
    """Yield each audited cell type: attacked units in a fold, best attack on cells, its area, and limit of chance."""
    n_units = audit.scores.groupby(["cell_type", "fold"])["unit"].nunique().groupby("cell_type").min()
    for row in sorted(audit.best_by_type(on_model=False), key=lambda row: row["name"]):
        name, n_attacked = row["name"], n_units[row["name"]]
        yield markdown(name), f"{n_attacked:,}", row["attack"], f"{row['auc']:.2f}", f"{row['limit']:.2f}"


def check_audit(audit: Audit, model: BranchedModel, cells: GeneratedFile | None = None) -> None:
    """Raise an InputError if an audit is not whole, or not of models and cells like these, fitted to the same data."""
    if audit.record.get("generator") != "bdm":
        raise InputError("The audit is of cells of another generator (--cells); audit models of bdm.")
    column, donor_key = audit.record["audit"].get("donor_key"), model.preparation.get("donor_key")
    if donor_key is not None and column not in (None, donor_key, "donor"):  # as bdm prepare names the column of donors
        raise InputError(
            f"The audit takes the donors from the column {column!r}, and the model from {donor_key!r}; audit with the "
            "column of the model."
        )
    audited, fitted = audit.record.get("data_sha256"), model.autoencoder.provenance.get("data_sha256")
    if audited and fitted and audited != fitted:
        raise InputError(
            f"The audit is of other data (the checksum of its file begins with {audited[:8]}, and of the model's file "
            f"with {fitted[:8]}); audit the model's data."
        )
    prepared = audit.record["prepare"]
    of_cells = {name: prepared[name] for name in AUDITED_SETTINGS if name in {*prepared} & {*model.preparation}}
    hierarchy = model.hierarchy
    of_model = {
        "threshold": hierarchy.threshold,
        "flat": hierarchy.flat,
        "tree": GIVEN[hierarchy.given],
    }
    of_tree = {name: value for name, value in audit.record["fit"]["hierarchy"].items() if name in of_model}
    if "tree_given" in audit.record:
        of_tree["tree"] = GIVEN[audit.record["tree_given"]]
    compared = (
        (of_cells, model.preparation),
        (of_tree, of_model),
        (audit.record["fit"]["autoencoder"], model.autoencoder.provenance["settings"]),
        (audit.record["fit"]["train"], model.provenance["settings"]),
    )
    for settings, here in compared:
        check_settings(settings, here, "models", "in this model")
    if cells is not None:
        check_settings(audit.record["sampling"], cells.sampling, "cells", f"in {cells.name}")
    if other := sorted({*audit.scores["cell_type"], *audit.record.get("left_out", ())} ^ set(model.cell_types)):
        raise InputError(f"The audit and the model have different cell types ({other[0]}); audit the model's data.")


def check_settings(audited: Mapping[str, Any], here: Mapping[str, Any], what: str, where: str) -> None:
    """Raise an InputError if settings differ from those of an audit."""
    for name, value in audited.items():
        if here.get(name) != value:
            raise InputError(
                f"The audit is of {what} with other settings ({name} is {value}, and {here.get(name)} {where}); audit "
                f"{what} with these settings."
            )
