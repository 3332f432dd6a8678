"""Verdicts in words: whether generated cells can be distinguished from real ones."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd

from bdm.evaluation.metrics import Chance
from bdm.evaluation.scores import MANY_CELLS, SCORE_NAMES


@dataclass(frozen=True)
class Limit:
    """Limits of the excess of a score over the floor."""

    same: float  # maximum excess of cells that cannot be distinguished from real ones
    near: float  # maximum excess of cells that are nearly like real ones
    chance: float  # the excess of n real cells has a standard deviation of about chance / n**power
    power: float = 0.5
    ideal: float = 0.0  # expected score of a perfect model
    higher: bool = True  # whether a higher score is worse

    def excess(self, score: float, floor: float) -> float:
        """Return how much worse a score is than both floor and ideal."""
        return float(score - max(floor, self.ideal) if self.higher else min(floor, self.ideal) - score)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of all scores, as explained in ``reading_results.md``.

    The limits of the relative energy distance correspond to samples of 200 and 50 real cells: the distance of m cells
    to their population is ``1 / m``. The limits of AUCs correspond to shifts by 0.2 and 0.5 standard deviations, for
    which the best classifier has an AUC of 0.56 and 0.64.
    """

    relative_energy: Limit = Limit(0.005, 0.02, chance=0.4, power=1)
    forest_auc: Limit = Limit(0.06, 0.14, chance=0.48, ideal=0.5)
    gene_auc: Limit = Limit(0.06, 0.14, chance=0.48, ideal=0.5)
    fold_change_correlation: Limit = Limit(0.05, 0.15, chance=0.4, ideal=1, higher=False)
    f1: Limit = Limit(0.05, 0.15, chance=0.35, ideal=1, higher=False)
    memorisation: Limit = Limit(0.15, 0.25, chance=1.0, ideal=0.5)
    level: float = 0.01  # per score; fewer than 1 in 20 sets of real cells then exceed any limit by chance
    min_cells: int = 10  # for a verdict
    many_cells: int = MANY_CELLS  # below, a verdict warns of few cells

    @property
    def by_score(self) -> dict[str, Limit]:
        """Limits by the name of the score."""
        return {name: limit for name, limit in vars(self).items() if isinstance(limit, Limit)}


LIMITS = Limits()


class Grade(IntEnum):
    """Grade of the comparison with real cells; higher is worse."""

    SAME = 0
    NEAR = 1
    DIFFERS = 2
    UNKNOWN = 3

    @classmethod
    def from_excess(cls, excess: float, *, same: float, near: float) -> "Grade":
        """Grade an excess by its two limits."""
        return cls.DIFFERS if excess > near else cls.NEAR if excess > same else cls.SAME


@dataclass(frozen=True)
class Finding:
    """Grade of one score, with its excess and limits.

    The grade is unknown for too few cells. Limits are at least the largest excess by chance.
    """

    score: str
    value: float
    floor: float
    excess: float
    same: float
    near: float
    grade: Grade

    @property
    def limits(self) -> tuple[float, float]:
        """Scores at which the two limits are reached."""
        sign = 1 if LIMITS.by_score[self.score].higher else -1
        same, near = (self.value - sign * (self.excess - limit) for limit in (self.same, self.near))
        return same, near


@dataclass(frozen=True, repr=False)
class Verdict:
    """Comparison of all scores of a set of cells with the floor."""

    findings: tuple[Finding, ...]
    n_cells: int  # compared with as many test cells

    def __repr__(self) -> str:
        rows = {SCORE_NAMES[each.score]: (each.value, each.floor, *each.limits) for each in self.findings}
        columns = ["score", "floor", "first limit", "second limit"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        return f"{self.text}\n{table.to_string(float_format='{:.3f}'.format)}" if rows else self.text

    @property
    def grade(self) -> Grade:
        """Grade of the worst score; unknown without scores or with too few cells."""
        return max((each.grade for each in self.findings if each.grade != Grade.UNKNOWN), default=Grade.UNKNOWN)

    @property
    def few_cells(self) -> bool:
        """Whether cells are so few that only large differences are detectable."""
        return self.n_cells < LIMITS.many_cells

    @property
    def worst_scores(self) -> tuple[str, ...]:
        """Names of the scores with the grade of the verdict, worst first.

        Empty if the cells do not differ.
        """
        worst = [finding for finding in self.findings if finding.grade == self.grade in (Grade.NEAR, Grade.DIFFERS)]
        return tuple(SCORE_NAMES[each.score] for each in sorted(worst, key=lambda each: -each.excess / each.near))

    @property
    def label(self) -> str:
        """Verdict in a few words."""
        if self.grade == Grade.UNKNOWN:
            return "too few cells to compare"
        if self.grade == Grade.SAME:
            return "no difference seen in few cells" if self.few_cells else "cannot be distinguished from real cells"
        return "nearly like real cells" if self.grade == Grade.NEAR else "differ from real cells"

    @property
    def text(self) -> str:
        """Verdict, with the names of the worst scores."""
        link = {Grade.NEAR: "; small differences in ", Grade.DIFFERS: " in "}.get(self.grade, "")
        return f"{self.label}{link}{', '.join(self.worst_scores)}"


def verdict(scores: Mapping[str, float], floor: Mapping[str, float], *, n_cells: int) -> Verdict:
    """Compare scores with the floor; missing and NaN scores are skipped.

    The limits (:class:`Limits`) are raised to the largest excess that real cells have by chance, which grows as cells
    become fewer.
    """
    findings = []
    for name, limit in LIMITS.by_score.items():
        if is_known(name, scores, floor):
            value, floor_value = float(scores[name]), float(floor[name])
            chance = null_distribution(name, scores, floor, n_cells=n_cells).largest(LIMITS.level)
            same, near = max(limit.same, chance), max(limit.near, chance)
            excess = limit.excess(value, floor_value)
            grade = Grade.from_excess(excess, same=same, near=near) if n_cells >= LIMITS.min_cells else Grade.UNKNOWN
            findings.append(Finding(name, value, floor_value, excess, same, near, grade))
    return Verdict(tuple(findings), n_cells)


def null_distribution(name: str, scores: Mapping[str, float], floor: Mapping[str, float], *, n_cells: int) -> Chance:
    """Return the null distribution of the excess of a score.

    Uses ``NAME_chance`` and ``NAME_skewness`` of the scores if available, else the approximation of :class:`Limit`.
    """
    if not is_known(f"{name}_chance", scores, floor):
        limit = LIMITS.by_score[name]
        return Chance(float(limit.chance / max(n_cells, 1) ** limit.power))
    deviation, floor_deviation = (float(side[f"{name}_chance"]) for side in (scores, floor))
    if name == "memorisation":
        return Chance(float(np.hypot(deviation, floor_deviation)))
    if name == "fold_change_correlation":  # already the deviation of a difference, see Agreement
        return Chance(floor_deviation)
    skewness = f"{name}_skewness"
    return Chance(deviation, float(scores[skewness]) if is_known(skewness, scores) else 0.0)


def is_known(name: str, *scores: Mapping[str, float]) -> bool:
    """Return whether all of these scores have a finite value."""
    return all(name in side and side[name] is not None and bool(np.isfinite(side[name])) for side in scores)
