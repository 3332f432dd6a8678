"""ROC curves of the scores of attacks, by cells and by units, and the verdict: what they found beyond chance."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import auc, roc_curve

from bdm._core.errors import counted
from bdm.audit.attacks import ATTACKS
from bdm.audit.limits import LEVEL, Sides, inconclusive

KEYS = ["fold", "unit", "cell_type", "member"]  # of tables of scores
FALSE_POSITIVES = 0.01
N_PERMUTATIONS = 1000
N_AREAS = 2001  # from 0 to 1, of which some are in an interval
ROUNDING = 1e-9  # of areas
HIGH_LIMIT = 0.8  # of chance, from which an audit that finds nothing shows little


def score_columns(scores: pd.DataFrame) -> list[str]:
    """Names of the columns that are scores."""
    return [name for name in scores if name not in KEYS]


def standardised(scores: pd.DataFrame) -> pd.DataFrame:
    """Standardise scores by fold and cell type, members and non-members together."""
    columns = score_columns(scores)
    groups = scores.groupby(["fold", "cell_type"], sort=False)[columns]
    spread = groups.transform("std").replace(0, np.nan)
    values = (scores[columns] - groups.transform("mean")) / spread
    known = scores[columns].notna() & spread.isna()  # all cells of the type have the same score
    return scores[KEYS].join(values.mask(known, 0.0))


def of_units(cells: pd.DataFrame, *, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Average the scores of the cells of each unit in each fold, and by other columns."""
    keys = ["fold", *by, "unit"]
    columns = score_columns(cells)
    return cells.groupby(keys, sort=True)[["member", *columns]].mean().reset_index()


def areas(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Areas under ROC curves of all scores (``SET/ATTACK``), and shares of members found where 1% of others are."""
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
    """Count the members and the non-members in each fold."""
    is_member = units["member"] > 0
    n_members = is_member.groupby(units["fold"]).sum()
    return list(zip(n_members, is_member.groupby(units["fold"]).size() - n_members, strict=True))


def null_of_units(table: pd.DataFrame, columns: list[str], *, n_permutations: int, seed: int) -> np.ndarray:
    """Permute membership among the units of each fold: areas under ROC curves, permutations x scores.

    The table has a row for each unit, or for each cell, whose unit is permuted as a whole. All scores of a unit stay
    together, so that attacks depend on each other as they do.
    """
    rng = np.random.default_rng(seed)
    folds = [rows_of_fold for _, rows_of_fold in table.groupby("fold", sort=True)]
    areas = np.full((len(folds), n_permutations, len(columns)), np.nan)
    for rows_of_fold, of_fold in zip(folds, areas, strict=True):
        by_unit = rows_of_fold.groupby("unit", sort=True)
        known = rows_of_fold[columns].notna().groupby(rows_of_fold["unit"], sort=True).sum().to_numpy()
        ranks = rows_of_fold[columns].rank().groupby(rows_of_fold["unit"], sort=True).sum().to_numpy()
        n_members = int((by_unit["member"].first() > 0).sum())
        for row in of_fold:
            chosen = rng.permutation(len(known))[:n_members]
            n_known = known[chosen].sum(axis=0)
            pairs = n_known * (known.sum(axis=0) - n_known)
            above = ranks[chosen].sum(axis=0) - n_known * (n_known + 1) / 2
            np.divide(above, pairs, out=row, where=pairs > 0)
    return np.asarray(np.nanmean(areas, axis=0))


def spread_of_auc(n_members: int, n_others: int, auc: np.ndarray | float = 0.5) -> np.ndarray:
    """Compute the standard deviation of the area under the ROC curve of independent units without ties.

    At an area of 1/2, it is the one of permutations. Source: Newcombe 2006, Statistics in Medicine 25, 559-573.
    """
    if not n_members * n_others:
        return np.full_like(auc, np.nan, dtype=float)
    n_pairs, weight = n_members * n_others, (n_members + n_others) / 2 - 1
    return np.asarray(np.sqrt(auc * (1 - auc) * (1 + weight * ((1 - auc) / (2 - auc) + auc / (1 + auc))) / n_pairs))


def limit_of_chance(null: np.ndarray) -> float:
    """Return the area that the best attack reaches in 5% of permutations; larger ones are findings."""
    best = np.sort(null.max(axis=1)) if null.size else np.zeros(0)
    return float(best[-int(np.ceil(LEVEL * (1 + len(best))) - 1)]) if len(best) else float("nan")


def interval(auc: float, limit: float, sides: Sides) -> tuple[float, float]:
    """Compute confidence limits of an area by inverting the test of chance.

    The test accepts areas up to ``limit``, a number of standard deviations from 1/2; the limits are the last areas from
    which ``auc`` is as many of theirs away. So 1/2 is between them if, and only if, the attack found nothing.
    """
    if not np.isfinite(auc + limit):
        return np.nan, np.nan
    areas = np.append(np.linspace(0, 1, N_AREAS), auc)
    variance, at_chance = (sum(np.square(spread_of_auc(*side, auc=of)) for side in sides) for of in (areas, 0.5))
    within = areas[np.abs(auc - areas) <= max(limit - 0.5, 0) * np.sqrt(variance / at_chance) + ROUNDING]
    return float(within.min()), float(within.max())


@dataclass(frozen=True)
class AttackFinding:
    """What an attack on donors, or on cells, found."""

    attack: str
    auc: float  # a mean over folds
    p_value: float  # share of permutations in which any of the attacks reaches ``auc``
    found: bool


@dataclass(frozen=True, repr=False)
class AuditVerdict:
    """Summary of all attacks on the generated cells of all folds.

    Attributes
    ----------
    findings
        One for each attack, the highest area first.
    limit
        Area that chance reaches with any of the attacks in one of 20 audits.
    smallest_p
        Share of permutations in which any of the attacks finds all members.
    sides
        Numbers of units in the training data, and of others, that were attacked in each fold.
    unit
        ``donor`` or ``cell``.
    """

    findings: tuple[AttackFinding, ...]
    limit: float
    smallest_p: float
    sides: Sides
    unit: str

    def __repr__(self) -> str:
        return self.text

    @property
    def found(self) -> tuple[AttackFinding, ...]:
        """Findings of the attacks that found members."""
        return tuple(finding for finding in self.findings if finding.found)

    @property
    def inconclusive(self) -> str | None:
        """Why no attack could have found members, in a sentence; None if one could."""
        return inconclusive(self.sides, self.unit, p_value=self.smallest_p)

    @property
    def label(self) -> str:
        """The verdict in a few words."""
        if not self.findings:
            return "nothing was attacked"
        if self.inconclusive:
            return f"inconclusive: too few {self.unit}s"
        attacks = counted(len(self.findings), "attack")
        return f"{len(self.found) or 'none'} of {attacks} found {self.unit}s that were in the training data"

    @property
    def text(self) -> str:
        """The verdict in sentences, with its error rate."""
        if not self.findings:
            return f"{sentence(self.label)}."
        best, others = self.findings[0], self.findings[len(self.found) :]
        if self.inconclusive:
            return (
                f"Inconclusive: {self.inconclusive}. The highest AUC is {best.auc:.2f} ({ATTACKS[best.attack]}). "
                "Other attacks may find more."
            )
        n_folds = len(self.sides)
        n_members, n_others = (round(sum(side) / n_folds) for side in zip(*self.sides, strict=True))
        sentences = [sentence(self.label)]
        if self.found:
            sentences.append(f"Found by {in_words(self.found)}")
        if self.found and others:
            sentences.append(f"Not found by {in_words(others)}")
        if not self.found:
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
        return " ".join(f"{one}." for one in sentences)

    def summary(self) -> dict[str, Any]:
        """Give the verdict as it is written."""
        attacks = {
            one.attack: {"auc": round(one.auc, 4), "p_value": round(one.p_value, 4), "found": one.found}
            for one in self.findings
        }
        limit = None if np.isnan(self.limit) else round(self.limit, 4)
        return {"text": self.text, "conclusive": self.inconclusive is None, "attacks": attacks, "limit": limit}


def verdict_of(areas: dict[str, float], null: np.ndarray, *, sides: Sides, unit: str) -> AuditVerdict:
    """Compare areas, by attack, with the largest of all attacks in each permutation of membership.

    The maximum over tests is that of Westfall and Young 1993, Resampling-Based Multiple Testing.
    """
    best, limit = null.max(axis=1) if null.size else np.zeros(0), limit_of_chance(null)
    findings = [
        AttackFinding(attack, area, p_value_of(area, best), found=area > limit + ROUNDING)
        for attack, area in sorted(areas.items(), key=lambda item: -item[1])
    ]
    return AuditVerdict(tuple(findings), limit, p_value_of(1.0, best), sides, unit)


def p_value_of(auc: float, best: np.ndarray) -> float:
    """Compute the share of permutations, of which the true membership is one, that reach an area."""
    return float((1 + (best >= auc - ROUNDING).sum()) / (1 + len(best)))


def in_words(findings: tuple[AttackFinding, ...]) -> str:
    """Name attacks with their areas."""
    return ", ".join(f"{ATTACKS[one.attack]} (AUC {one.auc:.2f})" for one in findings)


def sentence(text: str) -> str:
    """Begin a text with a capital letter."""
    return text[:1].upper() + text[1:]
