"""Verdicts: whether generated cells can be distinguished from real ones, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import pandas as pd

from bdm.evaluation.metrics import Chance
from bdm.evaluation.scores import MANY_CELLS, SCORE_NAMES


@dataclass(frozen=True)
class Limit:
    """Limits of the excess of a score: how much worse than the floor's it is."""

    same: float  # largest excess of cells that cannot be distinguished from real ones
    near: float  # and of cells that are nearly like them
    chance: float  # of real cells: their excess has a standard deviation of about chance / n**power
    power: float = 0.5
    ideal: float = 0.0  # average score of a perfect model
    higher: bool = True  # whether a higher score is worse

    def excess(self, score: float, floor: float) -> float:
        """Return how much worse a score is than the floor's, or than that of a perfect model where this is worse."""
        return float(score - max(floor, self.ideal) if self.higher else min(floor, self.ideal) - score)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of all scores; the documentation explains them (``reading_results.md``, ``evaluation.md``).

    The relative energy distance of a sample of m real cells to the cells that it is drawn from is ``1 / m``, here of
    200 and of 50. A shift by 0.2 and by 0.5 standard deviations gives the best classifier an AUC of 0.56 and of 0.64.
    """

    relative_energy: Limit = Limit(0.005, 0.02, chance=0.4, power=1)
    forest_auc: Limit = Limit(0.06, 0.14, chance=0.48, ideal=0.5)
    gene_auc: Limit = Limit(0.06, 0.14, chance=0.48, ideal=0.5)
    fold_change_correlation: Limit = Limit(0.05, 0.15, chance=0.4, ideal=1, higher=False)
    f1: Limit = Limit(0.05, 0.15, chance=0.35, ideal=1, higher=False)
    memorisation: Limit = Limit(0.15, 0.25, chance=1.0, ideal=0.5)
    level: float = 0.01  # at which chance makes the worst score of real cells worse than allowed in under 1 of 20 sets
    min_cells: int = 10  # of a verdict
    many_cells: int = MANY_CELLS  # from which on cells are not few

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

    @classmethod
    def of(cls, excess: float, *, same: float, near: float) -> "Grade":
        """Return the grade of an excess, by its two limits."""
        return cls.DIFFERS if excess > near else cls.NEAR if excess > same else cls.SAME


@dataclass(frozen=True)
class Finding:
    """Grade of one score, unknown of too few cells, its excess, and the limits of it, which chance may widen."""

    score: str
    value: float
    floor: float
    excess: float
    same: float
    near: float
    grade: Grade

    @property
    def limits(self) -> tuple[float, float]:
        """Scores at the two limits."""
        sign = 1 if LIMITS.by_score[self.score].higher else -1
        same, near = (self.value - sign * (self.excess - limit) for limit in (self.same, self.near))
        return same, near


@dataclass(frozen=True, repr=False)
class Verdict:
    """Summary of all scores of a set of cells, in comparison with the floor."""

    findings: tuple[Finding, ...]
    n_cells: int  # that were compared with as many test cells

    def __repr__(self) -> str:
        rows = {SCORE_NAMES[one.score]: (one.value, one.floor, *one.limits) for one in self.findings}
        columns = ["score", "floor", "first limit", "second limit"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        return f"{self.text}\n{table.to_string(float_format='{:.3f}'.format)}" if rows else self.text

    @property
    def grade(self) -> Grade:
        """Grade of the worst score; unknown where there are too few cells, or no scores."""
        return max((one.grade for one in self.findings if one.grade != Grade.UNKNOWN), default=Grade.UNKNOWN)

    @property
    def few_cells(self) -> bool:
        """Whether there are so few cells that only large differences can be detected."""
        return self.n_cells < LIMITS.many_cells

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


def verdict(scores: Mapping[str, float], floor: Mapping[str, float], *, n_cells: int) -> Verdict:
    """Summarise scores in comparison with the scores of the floor; absent and unknown scores are skipped.

    The limits (:class:`Limits`) are extended by what chance alone gives to real cells, which is more for fewer cells.
    """
    findings = []
    for name, limit in LIMITS.by_score.items():
        if _is_known(name, scores, floor):
            value, of_floor = float(scores[name]), float(floor[name])
            chance = chance_of(name, scores, floor, n_cells=n_cells).largest(LIMITS.level)
            same, near = max(limit.same, chance), max(limit.near, chance)
            excess = limit.excess(value, of_floor)
            grade = Grade.of(excess, same=same, near=near) if n_cells >= LIMITS.min_cells else Grade.UNKNOWN
            findings.append(Finding(name, value, of_floor, excess, same, near, grade))
    return Verdict(tuple(findings), n_cells)


def chance_of(name: str, scores: Mapping[str, float], floor: Mapping[str, float], *, n_cells: int) -> Chance:
    """Excess of real cells by chance: ``NAME_chance`` (and ``NAME_skewness``) of the scores, where these have it."""
    if not _is_known(f"{name}_chance", scores, floor):
        limit = LIMITS.by_score[name]
        return Chance(float(limit.chance / max(n_cells, 1) ** limit.power))
    of_score, of_floor = (float(side[f"{name}_chance"]) for side in (scores, floor))
    if name == "memorisation":
        return Chance(float(np.hypot(of_score, of_floor)))
    if name == "fold_change_correlation":
        return Chance(of_floor)
    skewness = f"{name}_skewness"
    return Chance(of_score, float(scores[skewness]) if _is_known(skewness, scores) else 0.0)


def _is_known(name: str, *scores: Mapping[str, float]) -> bool:
    return all(name in side and side[name] is not None and bool(np.isfinite(side[name])) for side in scores)
