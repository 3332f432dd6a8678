"""Section of a model card on an audit: its verdict, its attacks, and what was not attacked."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bdm.audit.attacks import ATTACKS, CHANCE, COPIES, GENERATED, ON_MODEL
from bdm.audit.results import Audit
from bdm.errors import InputError, abbreviated, counted, markdown
from bdm.model.card import GeneratedFile
from bdm.model.model import BranchedModel

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
    known = audit.attacks_on_units["auc"]
    at_one_percent = audit.attacks_on_units["true_positives"]
    for finding in audit.verdict.findings:
        ends = [known.get((name, finding.attack)) for name in (COPIES, CHANCE)]
        copies, chance = ("" if of is None or np.isnan(of) else f"{of:.2f}" for of in ends)
        share = f"{at_one_percent[GENERATED, finding.attack]:.0%}"
        on = "model" if finding.attack in ON_MODEL else "cells"
        found = "inconclusive" if audit.verdict.inconclusive else "yes" if finding.found else "no"
        yield ATTACKS[finding.attack], on, f"{finding.auc:.2f}", copies, chance, share, found


def audited_type_rows(audit: Audit) -> Iterator[tuple[str, ...]]:
    """Yield each audited cell type: attacked units in a fold, best attack on cells, its area, and limit of chance."""
    n_units = audit.scores.groupby(["cell_type", "fold"])["unit"].nunique().groupby("cell_type").min()
    for name, attack, auc, limit in sorted(audit.best_by_type(on_model=False)):
        yield markdown(name), f"{n_units[name]:,}", ATTACKS[attack], f"{auc:.2f}", f"{limit:.2f}"


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
        (audit.record["fit"]["prior"], model.provenance["settings"]),
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
