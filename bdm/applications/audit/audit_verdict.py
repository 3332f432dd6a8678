"""ROC areas of attacks, permutation tests and the verdict."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import auc, roc_curve

from bdm._core.errors import counted
from bdm.applications.audit.attacks import ATTACKS
from bdm.applications.audit.limits import LEVEL, Sides, cells_for_donors, explain_inconclusive

KEYS = ["fold", "unit", "cell_type", "member"]  # columns of score tables that are not scores
FALSE_POSITIVES = 0.01
N_PERMUTATIONS = 1000
ROUNDING = 1e-9  # tolerance of areas
HIGH_LIMIT = 0.8  # if chance alone reaches this area, a negative audit says little


def score_columns(scores: pd.DataFrame) -> list[str]:
    """Return the names of score columns."""
    return [name for name in scores if name not in KEYS]


def standardise(scores: pd.DataFrame) -> pd.DataFrame:
    """Standardise scores within each fold and cell type."""
    columns = score_columns(scores)
    groups = scores.groupby(["fold", "cell_type"], sort=False)[columns]
    spread = groups.transform("std").replace(0, np.nan)
    values = (scores[columns] - groups.transform("mean")) / spread
    is_constant = scores[columns].notna() & spread.isna()  # all cells of the type have the same score
    return scores[KEYS].join(values.mask(is_constant, 0.0))


def average_units(cells: pd.DataFrame, *, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Average scores by fold and unit, and by further columns."""
    keys = ["fold", *by, "unit"]
    columns = score_columns(cells)
    return cells.groupby(keys, sort=True)[["member", *columns]].mean().reset_index()


def roc_areas(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Compute ROC areas of all scores (``SET/ATTACK``) in groups of rows.

    ``true_positives`` is the true positive rate at a false positive rate of 1%.
    """
    rows = []
    for key, group in table.groupby(by, sort=False):
        for column in score_columns(table):
            score = group[column].dropna()
            member = group["member"][score.index] > 0
            area = true_positives = np.nan
            if member.any() and not member.all():
                false, true, _ = roc_curve(member, score, drop_intermediate=False)
                area, true_positives = auc(false, true), true[false <= FALSE_POSITIVES].max()
            rows.append([*key, *column.split("/"), area, true_positives])
    return pd.DataFrame(rows, columns=[*by, "set", "attack", "auc", "true_positives"])


def sides_in(units: pd.DataFrame) -> list[tuple[int, int]]:
    """Count the members and non-members of each fold."""
    is_member = units["member"] > 0
    n_members = is_member.groupby(units["fold"]).sum()
    return list(zip(n_members, is_member.groupby(units["fold"]).size() - n_members, strict=True))


def permuted_areas(units: pd.DataFrame, columns: list[str], *, n_permutations: int, seed: int) -> np.ndarray:
    """Compute ROC areas under permutations of membership within folds.

    A unit moves with all its scores, which preserves the dependence between attacks. Returns means over folds,
    permutations x scores.
    """
    rng = np.random.default_rng(seed)
    folds = [fold for _, fold in units.groupby("fold", sort=True)]
    areas = np.full((len(folds), n_permutations, len(columns)), np.nan)
    for fold, areas_of_fold in zip(folds, areas, strict=True):
        is_scored, ranks = fold[columns].notna().to_numpy(), fold[columns].rank().fillna(0).to_numpy()
        n_members = int((fold["member"] > 0).sum())
        for row in areas_of_fold:
            members = rng.permutation(len(fold))[:n_members]
            n_positive = is_scored[members].sum(axis=0)
            n_pairs = n_positive * (is_scored.sum(axis=0) - n_positive)
            n_above = ranks[members].sum(axis=0) - n_positive * (n_positive + 1) / 2
            np.divide(n_above, n_pairs, out=row, where=n_pairs > 0)
    return np.asarray(np.nanmean(areas, axis=0))


def auc_spread(n_members: int, n_others: int) -> float:
    """Return the standard deviation of an ROC area over permutations of membership, without ties."""
    n_pairs = n_members * n_others
    return float(np.sqrt((n_members + n_others + 1) / (12 * n_pairs))) if n_pairs else np.nan


@dataclass(frozen=True)
class AttackFinding:
    """Test of an attack on donors or cells."""

    attack: str
    auc: float  # mean over folds
    p_value: float  # share of permutations where any attack reaches ``auc``
    succeeded: bool  # whether it found members


@dataclass(frozen=True, repr=False)
class AuditVerdict:
    """Summary of all attacks on the generated cells of all folds.

    Attributes
    ----------
    findings
        Result of each attack, highest area first.
    limit
        Area that chance alone exceeds, with any attack, in one of 20 audits.
    smallest_p
        Smallest p-value of an attack, if it distinguishes all members (an area of 1).
    sides
        Numbers of members and non-members in each fold.
    unit
        ``donor`` or ``cell``.
    too_few_donors
        Number of donors, if cells were audited because donors were too few.
    """

    findings: tuple[AttackFinding, ...]
    limit: float
    smallest_p: float
    sides: Sides
    unit: str
    too_few_donors: int | None = None

    def __repr__(self) -> str:
        return self.text

    @property
    def successful(self) -> tuple[AttackFinding, ...]:
        """Findings of the attacks that found members."""
        return tuple(finding for finding in self.findings if finding.succeeded)

    @property
    def inconclusive(self) -> str | None:
        """Reason why no attack could have found members, or None."""
        return explain_inconclusive(self.sides, self.unit, p_value=self.smallest_p)

    @property
    def label(self) -> str:
        """Verdict in a few words."""
        if not self.findings:
            return "nothing was attacked"
        if self.inconclusive:
            return f"inconclusive: too few {self.unit}s"
        attacks = counted(len(self.findings), "attack")
        return f"{len(self.successful) or 'none'} of {attacks} found {self.unit}s that were in the training data"

    @property
    def text(self) -> str:
        """Verdict in sentences, with its error rate."""
        about_donors = () if self.too_few_donors is None else (cells_for_donors(self.too_few_donors),)
        return " ".join([*about_donors, self._text_on_attacks])

    @property
    def _text_on_attacks(self) -> str:
        if not self.findings:
            return f"{capitalise(self.label)}."
        best, successful = self.findings[0], self.successful
        failed = self.findings[len(successful) :]
        if self.inconclusive:
            return (
                f"Inconclusive: {self.inconclusive}. The highest AUC is {best.auc:.2f} ({ATTACKS[best.attack]}). "
                "Other attacks may find more."
            )
        n_folds = len(self.sides)
        n_members, n_others = (round(sum(side) / n_folds) for side in zip(*self.sides, strict=True))
        sentences = [capitalise(self.label)]
        if successful:
            sentences.append(f"Found by {list_attacks(successful)}")
        if successful and failed:
            sentences.append(f"Not found by {list_attacks(failed)}")
        if not successful:
            sentences.append(
                f"The highest AUC is {best.auc:.2f} ({ATTACKS[best.attack]}), which chance reaches in "
                f"{best.p_value:.0%} of audits"
            )
        sentences.append(
            f"With {n_members} {self.unit}s in the training data and {n_others} others in "
            f"{counted(n_folds, 'fold')}, chance alone reaches an AUC of {self.limit:.2f} with any of the attacks "
            f"in {LEVEL:.0%} of audits"
        )
        if self.limit >= HIGH_LIMIT:
            sentences.append(
                f"So few {self.unit}s hide all but the largest leaks: this audit cannot show that cells are safe "
                "to share"
            )
        sentences.append("Other attacks may find more")
        return " ".join(f"{text}." for text in sentences)

    def summary(self) -> dict[str, Any]:
        """Return the verdict as a dictionary for JSON."""
        attacks = {}
        for finding in self.findings:
            numbers = {"auc": round(finding.auc, 4), "p_value": round(finding.p_value, 4)}
            attacks[finding.attack] = {**numbers, "found": finding.succeeded}
        limit = None if np.isnan(self.limit) else round(self.limit, 4)
        return {"text": self.text, "conclusive": self.inconclusive is None, "attacks": attacks, "limit": limit}


def reach_verdict(
    areas: dict[str, float], null: np.ndarray, *, sides: Sides, unit: str, too_few_donors: int | None = None
) -> AuditVerdict:
    """Test the areas of attacks against the best attack in each permutation.

    ``null`` is permutations x attacks. Its maximum over attacks adjusts for multiple tests: Westfall and Young 1993,
    Resampling-Based Multiple Testing.
    """
    best = np.sort(null.max(axis=1)) if null.size else np.zeros(0)
    limit = float(best[-int(np.ceil(LEVEL * (1 + len(best))) - 1)]) if len(best) else float("nan")
    findings = [
        AttackFinding(attack, area, permutation_p_value(area, best), succeeded=area > limit + ROUNDING)
        for attack, area in sorted(areas.items(), key=lambda item: -item[1])
    ]
    return AuditVerdict(tuple(findings), limit, permutation_p_value(1.0, best), sides, unit, too_few_donors)


def permutation_p_value(auc: float, best: np.ndarray) -> float:
    """Return the share of permutations, including the truth, that reach an area."""
    return float((1 + (best >= auc - ROUNDING).sum()) / (1 + len(best)))


def list_attacks(findings: tuple[AttackFinding, ...]) -> str:
    """List attacks with their areas."""
    return ", ".join(f"{ATTACKS[finding.attack]} (AUC {finding.auc:.2f})" for finding in findings)


def capitalise(text: str) -> str:
    """Capitalise the first letter of a text."""
    return text[:1].upper() + text[1:]
