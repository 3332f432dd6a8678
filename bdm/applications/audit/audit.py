"""Results of an audit: scores, ROC areas, verdict and card."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm

from bdm._core.errors import InputError, abbreviated, counted, markdown
from bdm._core.files import write_json, write_table
from bdm._core.seeds import derive
from bdm._core.store import Result
from bdm.applications.audit.attacks import ATTACKS, COPIES, GENERATED, ON_CELLS, SETS
from bdm.applications.audit.audit_verdict import (
    N_PERMUTATIONS,
    AuditVerdict,
    auc_spread,
    average_units,
    permuted_areas,
    reach_verdict,
    roc_areas,
    sides_in,
    standardise,
)
from bdm.applications.audit.limits import LEVEL
from bdm.generation.generate import GeneratedFile
from bdm.model.model import BranchedModel

TABLES = {"attacks": "attacks.csv", "by_fold": "by_fold.csv", "by_label": "by_label.csv"}


@dataclass(frozen=True, repr=False)
class Audit(Result):
    """Scores of attacks in all folds of an audit, with their verdict.

    Attributes
    ----------
    scores
        Table with a row for each attacked cell and fold: ``fold``, ``unit`` (a random number), ``cell_type``,
        ``member`` (1 if the cell was in the training data), and a column ``SET/ATTACK`` for each score.
    record
        Provenance: ``unit`` (``donor`` or ``cell``), ``seed``, ``n_generated`` (generated cells in each fold),
        ``generator``, settings and versions. ``n_tested`` counts units that are members in at least one fold; attacks
        show nothing about the rest. ``too_few_donors`` is the number of donors, if cells were audited because donors
        were too few.
    """

    kind = "audit"

    scores: pd.DataFrame
    record: dict[str, Any]

    def __repr__(self) -> str:
        return f"Audit of {self.unit}s in {counted(self.n_folds, 'fold')}\n{self.verdict.text}"

    @property
    def unit(self) -> str:
        """Unit of membership: ``donor`` or ``cell``."""
        return str(self.record["unit"])

    @property
    def n_folds(self) -> int:
        """Number of folds."""
        return int(self.scores["fold"].nunique())

    @cached_property
    def _cells(self) -> pd.DataFrame:
        return standardise(self.scores)

    @cached_property
    def _units(self) -> pd.DataFrame:
        return average_units(self._cells)

    @cached_property
    def by_fold(self) -> pd.DataFrame:
        """Table of folds, sets and attacks.

        ``set`` names the cells that attacks treat as generated: ``generated`` cells, or ``copies`` of the training
        cells. ``auc`` is the area under the ROC curve of members against non-members; ``true_positives`` is the true
        positive rate at 1% false positives.
        """
        return roc_areas(self._units, ["fold"])

    @cached_property
    def attacks(self) -> pd.DataFrame:
        """Means of :attr:`by_fold` over folds."""
        by_attack = self.by_fold.groupby(["set", "attack"], sort=False)
        return by_attack[["auc", "true_positives"]].mean().reset_index()

    @cached_property
    def by_label(self) -> pd.DataFrame:
        """Table of cell types, sets and attacks, as means over folds.

        Donors are scored by their cells of the type. In one of 20 audits, chance alone exceeds ``limit`` with any
        attack in any cell type, by a normal approximation. No area exceeds a limit of 1.
        """
        by = ["cell_type", "set", "attack"]
        units = average_units(self._cells, by=("cell_type",))
        table = roc_areas(units, ["cell_type", "fold"]).groupby(by, sort=False)["auc"].mean().reset_index()
        n_cells = self.scores["cell_type"].value_counts() // self.n_folds
        table.insert(len(by), "n_cells", table["cell_type"].map(n_cells))
        z = norm.isf(LEVEL / max((table["set"] == GENERATED).sum(), 1))
        limits = {}
        for name, table_of_type in units.groupby("cell_type"):
            spreads = [auc_spread(*sides) for sides in sides_in(table_of_type)]
            # with few units, the approximation exceeds all areas
            limits[name] = np.minimum(0.5 + z * np.sqrt(np.square(spreads).sum()) / len(spreads), 1.0)
        return table.assign(limit=table["cell_type"].map(limits))

    @cached_property
    def verdict(self) -> AuditVerdict:
        """Verdict on the attacks on generated cells, tested on units."""
        units = self._units
        scored = units.filter(like=f"{GENERATED}/").dropna(axis=1, how="all")
        null = permuted_areas(units, [*scored], n_permutations=N_PERMUTATIONS, seed=derive(self.record["seed"], "null"))
        areas = self.attacks.set_index(["set", "attack"])["auc"].loc[GENERATED].dropna().to_dict()
        too_few_donors = self.record.get("too_few_donors")
        return reach_verdict(areas, null, sides=sides_in(units), unit=self.unit, too_few_donors=too_few_donors)

    def by_attack(self) -> Iterator[dict[str, Any]]:
        """Yield the result of each attack on units, highest area first."""
        table = self.attacks.set_index(["set", "attack"])
        for finding in self.verdict.findings:
            result = table.loc[(GENERATED, finding.attack)]
            yield {
                "name": ATTACKS[finding.attack],
                "on": "cells" if finding.attack in ON_CELLS else "model",
                "finding": finding,
                "members_found": "inconclusive" if self.verdict.inconclusive else "yes" if finding.succeeded else "no",
                **{name: table["auc"].get((name, finding.attack), np.nan) for name in SETS},
                "true_positives": result["true_positives"],
            }

    def best_by_type(self, *, on_model: bool) -> Iterator[dict[str, Any]]:
        """Yield the best attack on each cell type, highest area first.

        ``on_model`` includes attacks on the model; otherwise only attacks on generated cells count.
        """
        is_included = (self.by_label["set"] == GENERATED) & (on_model | self.by_label["attack"].isin(ON_CELLS))
        table = self.by_label[is_included].dropna(subset="auc").sort_values("auc", ascending=False, kind="stable")
        for row in table.drop_duplicates("cell_type").to_dict("records"):
            yield {"name": row["cell_type"], "attack": ATTACKS[row["attack"]], "auc": row["auc"], "limit": row["limit"]}

    def _write_tables(self, folder: Path) -> None:
        for name, file in TABLES.items():
            write_table(getattr(self, name), folder / file, digits=4)
        write_json(folder / "summary.json", self.verdict.summary() | {"n_tested": self.record["n_tested"]})


# ---- on a model card

# Settings of the preparation; the split may differ, because an audit divides all cells
AUDITED_SETTINGS = (
    *("genes", "n_genes", "keep_genes", "min_cells_per_gene", "clip_outliers"),
    *("counts", "label_key", "batch_key", "donor_key", "min_donors"),
)
GIVEN = ("not given", "given")  # by whether the user gave a tree


def audit_section(audit: Audit, model: BranchedModel, cells: GeneratedFile | None = None) -> dict[str, Any]:
    """Return the audit section of a model card, after :func:`check_audit`."""
    check_audit(audit, model, cells)
    left_out = markdown(abbreviated(list(audit.record.get("left_out", ())), n_shown=10))
    rows = {"attacks": list(attack_rows(audit)), "audited_types": list(audited_type_rows(audit))}
    n_fitted = int(model.composition.to_numpy().sum())
    return {"audit": audit, "left_out": left_out, "divided": describe_division(audit, cells, n_fitted), **rows}


def describe_division(audit: Audit, cells: GeneratedFile | None, n_fitted: int) -> str:
    """Return sentences on the number of tested units and of generated cells."""
    text, n_generated = "", list(audit.record.get("n_generated", {}).values())
    if (n_tested := audit.record["n_tested"]) == audit.record["n_units"]:
        text += f" Each {audit.unit} was a member in at least one fold."
    else:
        text += f" {counted(n_tested, audit.unit)} were members in at least one fold, the others in none."
    if n_generated:
        lowest, highest = min(n_generated), max(n_generated)
        number = f"{highest:,}" if lowest == highest else f"{lowest:,} to {highest:,}"
        share = rounded(sum(n_generated) / int(audit.scores["member"].sum()))
        text += f" The attacks had {number} generated cells in each fold, {share} for each training cell"
        if cells is not None:
            released = int(cells.n_by_type.sum())
            text += f"; the file described above has {released:,}, {rounded(released / n_fitted)} for each"
        text += ". More cells disclose more."
    return text


def rounded(ratio: float) -> str:
    """Format a ratio with two significant digits, without an exponent."""
    return np.format_float_positional(ratio, precision=2, fractional=False, trim="-")


def attack_rows(audit: Audit) -> Iterator[tuple[str, ...]]:
    """Yield table rows of attacks: name, target, areas, share found, and finding."""
    for row in audit.by_attack():
        copies, share = "" if np.isnan(row[COPIES]) else f"{row[COPIES]:.2f}", f"{row['true_positives']:.0%}"
        yield row["name"], row["on"], f"{row[GENERATED]:.2f}", copies, share, row["members_found"]


def audited_type_rows(audit: Audit) -> Iterator[tuple[str, ...]]:
    """Yield table rows of cell types: name, units, best attack, area, limit."""
    n_units = audit.scores.groupby(["cell_type", "fold"])["unit"].nunique().groupby("cell_type").min()
    for row in sorted(audit.best_by_type(on_model=False), key=lambda row: row["name"]):
        name, n_attacked = row["name"], n_units[row["name"]]
        yield markdown(name), f"{n_attacked:,}", row["attack"], f"{row['auc']:.2f}", f"{row['limit']:.2f}"


def check_audit(audit: Audit, model: BranchedModel, cells: GeneratedFile | None = None) -> None:
    """Raise an InputError if an audit differs from the model or cells."""
    if audit.record.get("generator") != "bdm":
        raise InputError("The audit is of cells of another generator (--cells); audit models of bdm.")
    audited, fitted = audit.record.get("data_sha256"), model.autoencoder.provenance.get("data_sha256")
    if audited and fitted and audited != fitted:
        raise InputError(
            f"The audit is of other data (the checksum of its file begins with {audited[:8]}, and of the model's file "
            f"with {fitted[:8]}); audit the model's data."
        )
    recorded = audit.record["prepare"]
    preparation = {name: recorded[name] for name in AUDITED_SETTINGS if name in {*recorded} & {*model.preparation}}
    tree = model.hierarchy
    hierarchy = {"threshold": tree.threshold, "tree": GIVEN[tree.from_user]}
    audited_hierarchy = {name: value for name, value in audit.record["fit"]["hierarchy"].items() if name in hierarchy}
    if "tree_given" in audit.record:
        audited_hierarchy["tree"] = GIVEN[audit.record["tree_given"]]
    compared = (
        (preparation, model.preparation),
        (audited_hierarchy, hierarchy),
        (audit.record["fit"]["autoencoder"], model.autoencoder.provenance["settings"]),
        (audit.record["fit"]["train"], model.provenance["settings"]),
    )
    for audited_settings, settings in compared:
        check_settings(audited_settings, settings, "models", "in this model")
    if cells is not None:
        check_settings(audit.record["sampling"], cells.sampling, "cells", f"in {cells.name}")
    if unshared := sorted({*audit.scores["cell_type"], *audit.record.get("left_out", ())} ^ set(model.cell_types)):
        raise InputError(f"The audit and the model have different cell types ({unshared[0]}); audit the model's data.")


def check_settings(audited: Mapping[str, Any], settings: Mapping[str, Any], noun: str, place: str) -> None:
    """Raise an InputError if settings differ; ``noun`` and ``place`` word the message."""
    for name, value in audited.items():
        if settings.get(name) != value:
            raise InputError(
                f"The audit is of {noun} with other settings ({name} is {value}, and {settings.get(name)} {place}); "
                f"audit {noun} with these settings."
            )
