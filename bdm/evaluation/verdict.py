"""Whether generated cells can be told from real ones, in words.

A score is compared with that of the floor, real training cells that were judged in the same way. What counts is the
*excess*, how much worse it is than the floor's; where the floor is better than a perfect model can be, by chance, than
that of a perfect model. Of each score, an excess up to its first limit is as good as real cells, up to its second
nearly so, and beyond they differ (:class:`Limits`). The verdict is the worst of all scores.

A verdict needs ten test cells, and as many generated cells; with fewer there is none, whatever the scores are. What
chance alone gives, a multiple of the scatter of a score between real cells, is allowed beyond either limit, the more
the fewer cells there are. So the same scores never get a better verdict with more cells. A score whose chance is above
its second limit can only show that cells differ. With fewer than 35 cells, where a classifier would miss a medium
difference, cells without an excess show no difference in few cells, and are not called like real ones.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd

from bdm.evaluation.resampling import FLOOR
from bdm.evaluation.scores import SCORE_NAMES


@dataclass(frozen=True)
class Limit:
    """How much worse than the floor a score may be.

    Attributes
    ----------
    same, near
        Largest excess of cells that cannot be told from real ones, and of those that are nearly like them.
    chance, power
        Cells that are real have an excess of ``chance / n**power``, about, which is one standard deviation, where
        there are ``n`` of them and of test cells.
    ideal
        What a perfect model has, on average.
    higher
        Whether higher is worse.
    """

    same: float
    near: float
    chance: float
    power: float = 0.5
    ideal: float = 0.0
    higher: bool = True

    def excess(self, score: float, floor: float) -> float:
        """Tell how much worse than the floor a score is; NaN where either is not known."""
        return float(score - max(floor, self.ideal) if self.higher else min(floor, self.ideal) - score)

    def by_chance(self, n_cells: int, *, deviations: float) -> float:
        """Tell the largest excess that chance gives to real cells, but seldom."""
        return float(deviations * self.chance / max(n_cells, 1) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """When cells are like real ones, by score.

    The limits of distances and classifiers are one and the same two: a shift of all cells by 0.2 standard
    deviations, which is called a small effect, and by 0.5, a medium one. By such a shift d, the best classifier reaches
    an AUC of Phi(d / sqrt(2)), which is 0.56 and 0.64, and the energy distance is d**2 / 2 of the mean distance of two
    cells of the type, which is 0.02 and 0.125. The correlation of fold changes and
    F1 may be lower by 0.05 and by 0.15. Where
    a share c of cells are copies, and a fifth of the cells are for the test, the score of copying rises by 0.15 for
    c = 0.41, and by 0.25 for c = 0.62: it finds only many copies.

    Chance was measured on real cells that were judged as if generated (five splits of
    ``pbmc68k_reduced``, 4 to 142 cells).
    For AUC it is the standard error of the rank sum, 1 / sqrt(6 n).

    Attributes
    ----------
    deviations
        Standard deviations of chance that are allowed.
    fewest, plenty
        Compared cells that a verdict needs, and those from which on it is not one of few cells.

    References
    ----------
    Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, for what is small and medium.
    """

    relative_energy: Limit = Limit(0.02, 0.125, chance=0.3, power=1)
    forest_auc: Limit = Limit(0.06, 0.14, chance=0.41, ideal=0.5)
    gene_auc: Limit = Limit(0.06, 0.14, chance=0.41, ideal=0.5)
    fold_change_correlation: Limit = Limit(0.05, 0.15, chance=0.4, ideal=1, higher=False)
    f1: Limit = Limit(0.05, 0.15, chance=0.3, ideal=1, higher=False)
    copying: Limit = Limit(0.15, 0.25, chance=1.0, ideal=0.5)
    deviations: float = 2.0
    fewest: int = 10
    plenty: int = 35

    @property
    def by_score(self) -> dict[str, Limit]:
        """Limits of all scores."""
        return {name: limit for name, limit in vars(self).items() if isinstance(limit, Limit)}


LIMITS = Limits()


class Grade(IntEnum):
    """How cells compare with real ones, the worst last."""

    SAME = 0
    NEAR = 1
    DIFFERS = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class Finding:
    """What one score says.

    Attributes
    ----------
    excess
        How much worse than the floor.
    same, near
        Limits of the excess, with what chance allows.
    grade
        ``UNKNOWN`` where there are too few cells, or chance could hide a difference.
    """

    score: str
    value: float
    floor: float
    excess: float
    same: float
    near: float
    grade: Grade


@dataclass(frozen=True)
class Verdict:
    """What all scores say of cells, beside the floor.

    Attributes
    ----------
    n_cells
        Cells that were compared with as many test cells.
    few
        Whether there are so few that only large differences show.
    """

    grade: Grade
    findings: tuple[Finding, ...]
    n_cells: int
    few: bool

    @property
    def about(self) -> tuple[str, ...]:
        """Names of the scores that are as bad as the verdict, the worst first; none if the cells do not differ."""
        worst = [found for found in self.findings if found.grade == self.grade in (Grade.NEAR, Grade.DIFFERS)]
        return tuple(SCORE_NAMES[found.score] for found in sorted(worst, key=lambda found: -found.excess / found.near))

    @property
    def short(self) -> str:
        """Tell the verdict in a few words."""
        if self.grade == Grade.UNKNOWN:
            return "too few cells to compare"
        if self.grade == Grade.SAME:
            return "no difference seen in few cells" if self.few else "cannot be told from real cells"
        return "nearly like real cells" if self.grade == Grade.NEAR else "differ from real cells"

    @property
    def told(self) -> str:
        """Tell the verdict, and what the cells differ in."""
        how = {Grade.NEAR: "; small differences in ", Grade.DIFFERS: " in "}.get(self.grade, "")
        return f"{self.short}{how}{', '.join(self.about)}"


def verdict(
    scores: Mapping[str, float], floor: Mapping[str, float], *, n_cells: int, limits: Limits = LIMITS
) -> Verdict:
    """Compare scores with those of the floor.

    Parameters
    ----------
    scores, floor
        By the names of :class:`bdm.evaluation.scores.OverallScores` or ``TypeScores``; what is absent, or not known,
        is passed over.
    n_cells
        Cells that were compared with as many test cells.
    """
    findings = tuple(
        finding(name, float(scores[name]), float(floor[name]), limit, n_cells, limits)
        for name, limit in limits.by_score.items()
        if _known(scores, name) and _known(floor, name)
    )
    return Verdict(grade_of(findings), findings, n_cells, few=n_cells < limits.plenty)


def finding(name: str, score: float, floor: float, limit: Limit, n_cells: int, limits: Limits) -> Finding:
    """Grade one score."""
    excess, chance = limit.excess(score, floor), limit.by_chance(n_cells, deviations=limits.deviations)
    same, near = max(limit.same, chance), max(limit.near, chance)
    if n_cells < limits.fewest:
        grade = Grade.UNKNOWN
    elif excess > near:
        grade = Grade.DIFFERS
    elif chance > limit.near:
        grade = Grade.UNKNOWN
    else:
        grade = Grade.SAME if excess <= same else Grade.NEAR
    return Finding(name, score, floor, excess, same, near, grade)


def grade_of(findings: tuple[Finding, ...]) -> Grade:
    """Worst of the known grades; unknown if there is none."""
    return max((found.grade for found in findings if found.grade != Grade.UNKNOWN), default=Grade.UNKNOWN)


def _known(scores: Mapping[str, float], name: str) -> bool:
    return name in scores and scores[name] is not None and bool(np.isfinite(scores[name]))


def overall_verdict(
    overall: pd.DataFrame, n_compared: pd.DataFrame, name: str = "branched", *, limits: Limits = LIMITS
) -> Verdict:
    """Judge all cells of a set, from the tables of :class:`bdm.evaluation.evaluate.Evaluation`."""
    n_cells = int(n_compared_of(n_compared, name).sum())
    return verdict(overall[name], overall[FLOOR], n_cells=n_cells, limits=limits)


def verdicts_by_type(
    by_type: pd.DataFrame, n_compared: pd.DataFrame, name: str = "branched", *, limits: Limits = LIMITS
) -> dict[str, Verdict]:
    """Judge each type's cells of a set; types that were not compared have no verdict but that."""
    number = n_compared_of(n_compared, name)
    nothing: dict[str, float] = {}
    rows = {key: dict(row) for key, row in by_type.iterrows()}
    return {
        cell_type: verdict(
            rows.get((name, cell_type), nothing),
            rows.get((FLOOR, cell_type), nothing),
            n_cells=int(n_cells),
            limits=limits,
        )
        for cell_type, n_cells in number.items()
    }


def n_compared_of(n_compared: pd.DataFrame, name: str) -> pd.Series:
    """Count cells of each type that could be compared with as many test cells."""
    return np.minimum(n_compared[name], n_compared["test"])
