"""Membership inference on the models of a data set, as the report shows it."""

import logging
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bdm.audit.card import check_audit
from bdm.audit.results import FIGURE, GENERATED, SETS, SUMMARY, Audit
from bdm.audit.verdict import ATTACKS
from bdm.errors import InputError, abbreviated
from bdm.model.model import BranchedModel

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ShownAudit:
    """An audit with its figure (PNG)."""

    audit: Audit
    figure: bytes


def read_audit(folder: Path, model: BranchedModel) -> ShownAudit | None:
    """Read the audit of the data set in a folder; None where there is none, or one of other models of bdm."""
    audited = Path(folder) / "audit"
    if not (audited / SUMMARY).is_file():
        return None
    audit = Audit.load(audited)
    if audit.record.get("generator") == "bdm":
        try:
            check_audit(audit, model)
        except InputError as error:
            logger.warning("Not shown: %s. %s", audited, error)
            return None
    return ShownAudit(audit, (audited / FIGURE).read_bytes())


def summary(shown: ShownAudit | None) -> dict[str, Any] | None:
    """Collect what the report shows of an audit."""
    if shown is None:
        return None
    audit = shown.audit
    return {
        "verdict": audit.verdict,
        "unit": audit.unit,
        "rows": list(attack_rows(audit)),
        "types": list(type_rows(audit)),
        "left_out": abbreviated(list(audit.record.get("left_out", ())), n_shown=10),
        "figure": b64encode(shown.figure).decode(),
    }


def attack_rows(audit: Audit) -> Iterator[dict[str, Any]]:
    """Yield the areas of each attack on units, the highest first."""
    table = audit.attacks_on_units
    for finding in audit.verdict.findings:
        areas = {name: table["auc"].get((name, finding.attack)) for name in SETS}
        generated = table.loc[(GENERATED, finding.attack)]
        interval = {name: generated[name] for name in ("low", "high", "true_positives")}
        yield {"name": ATTACKS[finding.attack], "finding": finding, **areas, **interval}


def type_rows(audit: Audit) -> Iterator[dict[str, Any]]:
    """Yield the highest area of any attack on generated cells for each cell type."""
    column = "auc_of_donors" if audit.unit == "donor" else "auc"
    table = audit.by_label[(audit.by_label["set"] == GENERATED) & audit.by_label[column].notna()]
    best = table.sort_values(column, ascending=False, kind="stable").drop_duplicates("cell_type")
    for row in best.itertuples():
        auc = float(getattr(row, column))
        yield {"name": row.cell_type, "attack": ATTACKS[row.attack], "auc": auc, "limit": row.limit}
