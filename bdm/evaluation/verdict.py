"""Verdicts: whether generated cells can be distinguished from real ones, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from bdm.evaluation.scores import SCORE_NAMES


@dataclass(frozen=True)
class Limit:
    """Limits of how much worse than the floor a score may be.

    Attributes
    ----------
    same, near
        Largest excess of cells that cannot be distinguished from real ones, and of cells that are nearly like them.
    chance, power
        Standard deviation of the excess of real cells is about ``chance / n**power``, with ``n`` of them and as many
        test cells.
    ideal
        Average score of a perfect model.
    higher
        Whether a higher score is worse.
    """

    same: float
    near: float
    chance: float
    power: float = 0.5
    ideal: float = 0.0
    higher: bool = True

    def excess(self, score: float, floor: float) -> float:
        """Return how much worse than the floor a score is; NaN where either is unknown."""
        return float(score - max(floor, self.ideal) if self.higher else min(floor, self.ideal) - score)

    def by_chance(self, n_cells: int, *, deviations: float) -> float:
        """Return the largest excess that chance gives to real cells, up to a number of standard deviations."""
        return float(deviations * self.chance / max(n_cells, 1) ** self.power)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of all scores.

    The limits of distances and classifiers correspond to the same two shifts of all cells: by 0.2 standard deviations,
    which is called a small effect, and by 0.5, a medium one. With such a shift d, the best classifier reaches
    an AUC of Phi(d / sqrt(2)), which is 0.56 and 0.64, and the energy distance is d**2 / 2 of the mean distance of two
    cells of the type, which is 0.02 and 0.125. The correlation of fold changes and F1 may be lower by 0.05 and by 0.15.
    Where a share c of cells are copies of training cells, and a fifth of the cells are test cells, the score of
    memorisation rises by 0.15 for c = 0.41, and by 0.25 for c = 0.62: it detects only many copies.

    Chance was measured on real cells that were evaluated as if generated (five splits of ``pbmc68k_reduced``, 4 to 142
    cells). For AUC it is the standard error of the rank sum, 1 / sqrt(6 n).

    Attributes
    ----------
    deviations
        Standard deviations of chance that are allowed.
    min_cells, many_cells
        Fewest compared cells of a verdict, and the number from which on they are not few.

    References
    ----------
    Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, for small and medium effects.
    """

    relative_energy: Limit = Limit(0.02, 0.125, chance=0.3, power=1)
    forest_auc: Limit = Limit(0.06, 0.14, chance=0.41, ideal=0.5)
    gene_auc: Limit = Limit(0.06, 0.14, chance=0.41, ideal=0.5)
    fold_change_correlation: Limit = Limit(0.05, 0.15, chance=0.4, ideal=1, higher=False)
    f1: Limit = Limit(0.05, 0.15, chance=0.3, ideal=1, higher=False)
    memorisation: Limit = Limit(0.15, 0.25, chance=1.0, ideal=0.5)
    deviations: float = 2.0
    min_cells: int = 10
    many_cells: int = 35

    @property
    def by_score(self) -> dict[str, Limit]:
        """Limits of all scores."""
        return {name: limit for name, limit in vars(self).items() if isinstance(limit, Limit)}


LIMITS = Limits()


class Grade(IntEnum):
    """Result of the comparison with real cells, the worst last."""

    SAME = 0
    NEAR = 1
    DIFFERS = 2
    UNKNOWN = 3


@dataclass(frozen=True)
class Finding:
    """Grade of one score.

    Attributes
    ----------
    excess
        How much worse than the floor the score is.
    same, near
        Limits of the excess, extended by chance.
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
    """Summary of all scores of a set of cells, in comparison with the floor.

    Attributes
    ----------
    n_cells
        Cells that were compared with as many test cells.
    few_cells
        Whether there are so few cells that only large differences can be detected.
    """

    grade: Grade
    findings: tuple[Finding, ...]
    n_cells: int
    few_cells: bool

    @property
    def worst_scores(self) -> tuple[str, ...]:
        """Names of the scores that are as bad as the verdict, the worst first; none if the cells do not differ."""
        worst = [finding for finding in self.findings if finding.grade == self.grade in (Grade.NEAR, Grade.DIFFERS)]
        return tuple(SCORE_NAMES[one.score] for one in sorted(worst, key=lambda one: -one.excess / one.near))

    @property
    def label(self) -> str:
        """The verdict in a few words."""
        if self.grade == Grade.UNKNOWN:
            return "too few cells to compare"
        if self.grade == Grade.SAME:
            return "no difference seen in few cells" if self.few_cells else "cannot be distinguished from real cells"
        return "nearly like real cells" if self.grade == Grade.NEAR else "differ from real cells"

    @property
    def text(self) -> str:
        """The verdict with the scores in which the cells differ."""
        link = {Grade.NEAR: "; small differences in ", Grade.DIFFERS: " in "}.get(self.grade, "")
        return f"{self.label}{link}{', '.join(self.worst_scores)}"


def verdict(
    scores: Mapping[str, float], floor: Mapping[str, float], *, n_cells: int, limits: Limits = LIMITS
) -> Verdict:
    """Summarise scores in comparison with the scores of the floor, real training cells that were evaluated alike.

    What counts is the *excess*, how much worse than the floor's a score is; where the floor is by chance better than a
    perfect model, how much worse than a perfect model's. Each score has two limits of the excess: up to the first,
    cells are as good as real cells, up to the second nearly so, and beyond it they differ (:class:`Limits`). The
    verdict is the worst of all scores.

    A verdict needs ten test cells, and as many generated cells; with fewer there is none, whatever the scores are.
    Either limit is extended by what chance alone gives, a multiple of the scatter of a score between real cells, which
    is larger for fewer cells. So the same scores never get a better verdict with more cells. A score whose chance is
    above its second limit can only show that cells differ. With fewer than 35 cells, where a classifier would miss a
    medium difference, cells without an excess show no difference in few cells, and are not called like real ones.

    Parameters
    ----------
    scores, floor
        By the names of :class:`bdm.evaluation.scores.OverallScores` or ``TypeScores``; absent and unknown scores are
        skipped.
    n_cells
        Cells that were compared with as many test cells.
    """
    findings = tuple(
        finding(name, float(scores[name]), float(floor[name]), limit, n_cells, limits)
        for name, limit in limits.by_score.items()
        if _is_known(scores, name) and _is_known(floor, name)
    )
    return Verdict(grade_of(findings), findings, n_cells, few_cells=n_cells < limits.many_cells)


def finding(name: str, score: float, floor: float, limit: Limit, n_cells: int, limits: Limits) -> Finding:
    """Grade one score."""
    excess, chance = limit.excess(score, floor), limit.by_chance(n_cells, deviations=limits.deviations)
    same, near = max(limit.same, chance), max(limit.near, chance)
    if n_cells < limits.min_cells:
        grade = Grade.UNKNOWN
    elif excess > near:
        grade = Grade.DIFFERS
    elif chance > limit.near:
        grade = Grade.UNKNOWN
    else:
        grade = Grade.SAME if excess <= same else Grade.NEAR
    return Finding(name, score, floor, excess, same, near, grade)


def grade_of(findings: tuple[Finding, ...]) -> Grade:
    """Return the worst of the known grades; unknown if there is none."""
    return max((one.grade for one in findings if one.grade != Grade.UNKNOWN), default=Grade.UNKNOWN)


def _is_known(scores: Mapping[str, float], name: str) -> bool:
    return name in scores and scores[name] is not None and bool(np.isfinite(scores[name]))
