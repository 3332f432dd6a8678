"""Verdicts in words: whether cells can be distinguished from real ones, by the table of scores."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import pandas as pd

from bdm._core.errors import abbreviated
from bdm.evaluation.table import ALL, EVERY, JUDGED, KINDS, MANY_CELLS, MIN_CELLS, OTHER_GENES, SCORES, SPACE, TYPE, Row


class Grade(IntEnum):
    """Grade of the comparison with real cells; higher is worse."""

    SAME = 0
    NEAR = 1
    DIFFERS = 2
    UNKNOWN = 3


@dataclass(frozen=True, repr=False)
class Verdict:
    """Comparison of the scores of a set of cells with the floor."""

    findings: tuple[Any, ...]  # rows of the table of scores, with the ``name`` of the score, its ``grade`` and severity
    n_cells: int  # compared with as many test cells
    not_checked: str = ""  # scores and groups without a result, and why

    def __repr__(self) -> str:
        rows = {each.name: (each.value, each.floor, each.first_limit, each.second_limit) for each in self.findings}
        columns = ["score", "floor", "first limit", "second limit"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        shown = [self.text, f"Not checked: {self.not_checked}." if self.not_checked else ""]
        return "\n".join(filter(None, [*shown, table.to_string(float_format="{:.3f}".format) if rows else ""]))

    @property
    def grade(self) -> Grade:
        """Grade of the worst score; unknown without scores or with too few cells."""
        return max((each.grade for each in self.findings if each.grade != Grade.UNKNOWN), default=Grade.UNKNOWN)

    @property
    def few_cells(self) -> bool:
        """Whether cells are so few that only large differences are detectable."""
        return self.n_cells < MANY_CELLS

    @property
    def worst_scores(self) -> tuple[str, ...]:
        """Names of the scores with the grade of the verdict, worst first.

        Empty if the cells do not differ.
        """
        worst = [each for each in self.findings if each.grade == self.grade in (Grade.NEAR, Grade.DIFFERS)]
        return tuple(each.name for each in sorted(worst, key=lambda each: -each.severity))

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
        return f"{self.label}{link}{abbreviated(self.worst_scores, n_shown=6) if link else ''}"


def verdict(table: pd.DataFrame) -> Verdict:
    """Judge the scores of a set, or of a group of its cells: rows of a table of scores.

    Scores without a value are passed over. The worst score decides.
    """
    judged = table[table["score"].isin(JUDGED)]
    known = judged[np.isfinite(judged[["value", "first_limit"]].astype(float)).all(axis=1)]
    rows = known.to_dict("records")
    known = known.astype(object).where(known.notna(), None)
    known = known.assign(
        name=list(map(name_of, rows)),
        grade=pd.Series(list(map(grade, rows)), known.index, object),  # would be numbers otherwise
        severity=list(map(severity, rows)),
    )
    findings = tuple(known.itertuples(index=False, name="Finding"))
    return Verdict(findings, int(table["n_cells"].iloc[0]) if len(table) else 0, not_checked(judged))


def name_of(row: Row) -> str:
    """Return the name of a score, with its group if this is not all cells or a type."""
    kind, group, name = row["kind"], row["group"], SCORES[row["score"]].name
    return name if kind in (ALL, TYPE) else f"{name} ({KINDS[kind] if group == EVERY else f'{kind} {group}'})"


def severity(row: Row) -> float:
    """Return the excess in units of the second limit's."""
    score, floor = SCORES[row["score"]], row["floor"]
    return score.excess(row["value"], floor) / max(score.excess(row["second_limit"], floor), 1e-9)


def grade(row: Row) -> Grade:
    """Grade a row of the table of scores by its two limits."""
    if row["n_cells"] < MIN_CELLS:
        return Grade.UNKNOWN
    sign = 1 if SCORES[row["score"]].higher else -1
    beyond = [sign * (row["value"] - row[limit]) > 0 for limit in ("second_limit", "first_limit")]
    return Grade.DIFFERS if beyond[0] else Grade.NEAR if beyond[1] else Grade.SAME


def not_checked(judged: pd.DataFrame) -> str:
    """List the groups and scores without a result by reason, in one line.

    Other genes and positions, which have all cells in one group, are named by score if they have other scores.
    """
    partly = {OTHER_GENES, SPACE} & set(judged.loc[judged["value"].notna(), "kind"])
    names: dict[str, dict[str, None]] = {}
    for row in judged[judged["value"].isna()].to_dict("records"):
        kind, group = row["kind"], row["group"]
        name = SCORES[row["score"]].name
        if kind in KINDS and kind != ALL:
            of_group = f"{kind} {group}" if group not in (EVERY, kind) else KINDS[kind]
            name = f"{name} of {of_group}" if kind in partly else of_group
            name = f"differences between {of_group}" if row["score"] == "group_slope" else name
        names.setdefault(row["missing"], {})[name] = None
    return "; ".join(f"{abbreviated(list(each), n_shown=4)} ({reason})" for reason, each in names.items())
