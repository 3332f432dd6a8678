"""Verdicts: whether generated cells can be distinguished from real ones, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from bdm.evaluation.distances import Chance
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
        test cells; where scores have their own, see :func:`chance_of`, this is not used.
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

    def by_chance(self, n_cells: int) -> Chance:
        """Return the excess of real cells."""
        return Chance(float(self.chance / max(n_cells, 1) ** self.power))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of all scores.

    The limits of the relative energy distance are the distances of samples of 200 and of 50 real cells to the
    population that they are drawn from, which is one over their number in any space: up to the first limit, generated
    cells are as near to real cells as 200 real cells would be. The limits of classifiers correspond to a shift of all
    cells by 0.2 standard deviations, which is called a small effect, and by 0.5, a medium one: with such a shift d
    along any direction, the best classifier reaches an AUC of Phi(d / sqrt(2)), which is 0.56 and 0.64. Along the main
    axis of a type, the shift by 0.5 has a relative energy distance of about 0.02, too. The correlation of fold changes
    and F1 may be lower by 0.05 and by 0.15. Where a share c of cells are copies of training cells, and a fifth of the
    cells are test cells, the score of memorisation rises by 0.15 for c = 0.41, and by 0.25 for c = 0.62: it detects
    only many copies.

    The chance of energy distances is derived from the cells that are compared, in the space of the comparison, the
    chance of memorisation from the numbers of neighbours, and the chance of fold changes from the number of markers.
    For AUC and F1 it was measured on real cells; the AUC of cross-validation scatters somewhat more than the standard
    error of the rank sum, 1 / sqrt(6 n).

    Attributes
    ----------
    level
        Probability with which chance makes a score of real cells worse than allowed. With it, the worst of all scores
        together is wrong about real cells in fewer than one of twenty sets (``benchmarks/scripts/verdicts.py``).
    min_cells, many_cells
        Fewest compared cells of a verdict, and the number from which on they are not few.

    References
    ----------
    Cohen 1988, Statistical Power Analysis for the Behavioral Sciences, for small and medium effects.
    """

    relative_energy: Limit = Limit(0.005, 0.02, chance=0.4, power=1)
    forest_auc: Limit = Limit(0.06, 0.14, chance=0.48, ideal=0.5)
    gene_auc: Limit = Limit(0.06, 0.14, chance=0.48, ideal=0.5)
    fold_change_correlation: Limit = Limit(0.05, 0.15, chance=0.4, ideal=1, higher=False)
    f1: Limit = Limit(0.05, 0.15, chance=0.35, ideal=1, higher=False)
    memorisation: Limit = Limit(0.15, 0.25, chance=1.0, ideal=0.5)
    level: float = 0.01
    min_cells: int = 10
    many_cells: int = 60

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
    """Grade of one score.

    Attributes
    ----------
    excess
        How much worse than the floor the score is.
    chance
        Largest excess that chance gives to real cells.
    same, near
        Limits of the excess, extended by chance.
    grade
        ``UNKNOWN`` where there are too few cells.
    """

    score: str
    value: float
    floor: float
    excess: float
    chance: float
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
    Either limit is extended by what chance alone gives to real cells, which is more for fewer cells. So the same scores
    never get a better verdict with more cells. A score for which chance gives more than its second limit can only show
    that cells differ. With fewer than 60 cells, where a medium difference can be missed, cells without an
    excess show no difference in few cells, and are not called like real ones.

    Parameters
    ----------
    scores, floor
        By the names of :class:`bdm.evaluation.scores.OverallScores` or ``TypeScores``; absent and unknown scores are
        skipped.
    n_cells
        Cells that were compared with as many test cells.
    """
    findings = tuple(
        finding(
            name,
            limit,
            float(scores[name]),
            float(floor[name]),
            chance=chance_of(name, scores, floor, limit.by_chance(n_cells)),
            n_cells=n_cells,
            limits=limits,
        )
        for name, limit in limits.by_score.items()
        if _is_known(scores, name) and _is_known(floor, name)
    )
    return Verdict(grade_of(findings), findings, n_cells, few_cells=n_cells < limits.many_cells)


def chance_of(name: str, scores: Mapping[str, float], floor: Mapping[str, float], otherwise: Chance) -> Chance:
    """Return the excess of real cells by chance: derived from the cells of the comparison, if it is known.

    Scores have it as ``relative_energy_chance``, with its skewness, ``memorisation_chance``, and
    ``fold_change_correlation_chance``, which of the floor's correlation is right for real cells. The scatter of the
    energy distance of the floor is not added, as the floor counts only where it is worse than ideal.
    """
    own = f"{name}_chance"
    if not (_is_known(scores, own) and _is_known(floor, own)):
        return otherwise
    of_score, of_floor = float(scores[own]), float(floor[own])
    if name == "memorisation":
        return Chance(float(np.hypot(of_score, of_floor)))
    if name == "fold_change_correlation":
        return Chance(of_floor)
    skewness = f"{name}_skewness"
    return Chance(of_score, float(scores[skewness]) if _is_known(scores, skewness) else 0.0)


def finding(
    name: str, limit: Limit, score: float, floor: float, *, chance: Chance, n_cells: int, limits: Limits
) -> Finding:
    """Grade one score."""
    excess, by_chance = limit.excess(score, floor), chance.largest(limits.level)
    same, near = max(limit.same, by_chance), max(limit.near, by_chance)
    grade = Grade.UNKNOWN if n_cells < limits.min_cells else Grade.of(excess, same=same, near=near)
    return Finding(name, score, floor, excess, by_chance, same, near, grade)


def grade_of(findings: tuple[Finding, ...]) -> Grade:
    """Return the worst of the known grades; unknown if there is none."""
    return max((one.grade for one in findings if one.grade != Grade.UNKNOWN), default=Grade.UNKNOWN)


def _is_known(scores: Mapping[str, float], name: str) -> bool:
    return name in scores and scores[name] is not None and bool(np.isfinite(scores[name]))
