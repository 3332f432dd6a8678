"""Positions and numbers of the plots of the page, which its templates draw."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bdm.data.symbols import display_names
from bdm.evaluation.cells import FLOOR, GENERATED, TRANSMUTED, UNCHANGED
from bdm.evaluation.verdict import LIMITS, Finding
from bdm.plotting.style import REAL, set_styles

DARK = "#5b6470"  # the floor's grey on white, where marks are thin


@dataclass(frozen=True)
class Mark:
    """A value on a strip: its position in percent, and the set of its symbol.

    Attributes
    ----------
    low, high
        Ends of its interval, in percent; None without one.
    """

    name: str
    value: float
    position: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Strip:
    """Values of one score on a line.

    Attributes
    ----------
    same, near
        Intervals of values like real cells, and nearly so: start and width, in percent; None without a verdict.
    ideal
        Position of the score of a perfect model; None where there is none.
    alt
        Values in words.
    """

    marks: tuple[Mark, ...]
    alt: str
    same: tuple[float, float] | None = None
    near: tuple[float, float] | None = None
    ideal: float | None = None


@dataclass(frozen=True)
class Scale:
    """Map from values to percent of the width of a strip."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float], *, margin: float = 0.06) -> "Scale":
        """Return the scale of all known values, with a margin."""
        known = np.array([value for value in values if value is not None and np.isfinite(value)], dtype=float)
        low, high = (known.min(), known.max()) if len(known) else (0.0, 1.0)
        width = (high - low) or 1.0
        return cls(float(low - margin * width), float(high + margin * width))

    def __call__(self, value: float) -> float:
        """Return the position of a value, within the strip."""
        return round(float(np.clip(100 * (value - self.low) / (self.high - self.low), 0, 100)), 2)


def ticks(scale: Scale, *, most: int = 5) -> tuple[tuple[str, float], ...]:
    """Numbers of an axis, two at least, with their positions in percent; every second one where there are too many."""
    numbers = round_numbers(scale)
    if len(numbers) > most:
        numbers = numbers[np.argmin(np.abs(numbers)) % 2 :: 2]  # the one nearest to 0 stays
    return tuple((signed(number), scale(number)) for number in numbers)


def round_numbers(scale: Scale) -> np.ndarray:
    """Return about four round numbers on a scale."""
    step = nice_step(scale.high - scale.low)
    return np.round(np.arange(np.ceil(scale.low / step) * step, scale.high, step), 6) + 0.0


def signed(number: float) -> str:
    """Format a number, with a minus sign where it is negative."""
    return f"{number:g}".replace("-", "\N{MINUS SIGN}")


def strip(scores: Mapping[str, float], scale: Scale, *, finding: Finding | None = None) -> Strip:
    """Draw a score of several sets, with the limits of its verdict and the ideal where there is a verdict."""
    known = {name: float(value) for name, value in scores.items() if value is not None and np.isfinite(value)}
    in_front = sorted(known, key=lambda name: (name != FLOOR, -list(known).index(name)))  # generated cells the last
    marks = tuple(Mark(name, known[name], scale(known[name])) for name in in_front)
    alt = ", ".join(f"{name} {value:.2f}" for name, value in known.items()) or "not known"
    if finding is None:
        return Strip(marks, alt)
    limit = LIMITS.by_score[finding.score]
    same, near = limit_of(finding, finding.same), limit_of(finding, finding.near)
    good = scale.low if limit.higher else scale.high
    return Strip(marks, alt, _span(scale, good, same), _span(scale, same, near), scale(limit.ideal))


def _span(scale: Scale, one: float, other: float) -> tuple[float, float]:
    low, high = sorted((scale(one), scale(other)))
    return low, round(high - low, 2)


def limit_of(finding: Finding, excess: float) -> float:
    """Return the score that has this excess."""
    sign = 1 if LIMITS.by_score[finding.score].higher else -1
    return finding.value - sign * (finding.excess - excess)


def limits_of(findings: Iterable[Finding]) -> list[float]:
    """Return values that a scale must include to show the limits of verdicts."""
    return [limit_of(finding, excess) for finding in findings for excess in (0.0, 1.15 * finding.near)]


@dataclass(frozen=True)
class Scatter:
    """One statistic of genes in query cells against test cells.

    Attributes
    ----------
    floor, query
        SVG path data of the points, in a square of 300 units.
    labels
        Names of the genes that differ most, with their positions.
    ticks
        Numbers along either axis, with their positions.
    """

    title: str
    floor: str
    query: str
    labels: tuple[tuple[str, float, float], ...]
    ticks: tuple[tuple[str, float], ...]
    r_floor: float
    r_query: float


SIDE, MARGIN = 300, 8
STATISTICS = {
    "mean": "mean of log1p(CP10k)",
    "variance": "variance of log1p(CP10k)",
    "zero_fraction": "share of cells without a count",
}


def scatters(genes: pd.DataFrame, query: str, *, n_labels: int = 3) -> list[Scatter]:
    """Draw the statistics of genes in a set over the same statistics in the floor."""
    return [scatter(genes, query, statistic, title, n_labels) for statistic, title in STATISTICS.items()]


def scatter(genes: pd.DataFrame, query: str, statistic: str, title: str, n_labels: int) -> Scatter:
    """Draw one statistic, with the names of the genes farthest from the diagonal."""
    sets = {name: genes[genes["set"] == name] for name in (FLOOR, query)}
    columns = [statistic, f"{statistic}_test"]
    values = np.concatenate([table[columns].to_numpy(dtype=float).ravel() for table in sets.values()])
    scale = Scale.of(values, margin=0.03)

    def position(value: np.ndarray) -> np.ndarray:
        return MARGIN + (SIDE - 2 * MARGIN) * (value - scale.low) / (scale.high - scale.low)

    points = {
        name: (
            position(table[columns[1]].to_numpy(dtype=float)),
            SIDE - position(table[columns[0]].to_numpy(dtype=float)),
        )
        for name, table in sets.items()
    }
    x, y = points[query]
    far = without_overlaps(np.argsort(-np.abs(x + y - SIDE), kind="stable")[: 5 * n_labels], x, y)[:n_labels]
    names = display_names(sets[query]).to_numpy(dtype=str)
    return Scatter(
        title=title,
        floor="".join(f"M{a - 2:.0f} {b:.0f}h4m-2-2v4" for a, b in zip(*points[FLOOR], strict=True)),
        query="".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, y, strict=True)),
        labels=tuple((names[i], round(float(x[i]), 1), round(float(y[i]), 1)) for i in far),
        ticks=tuple((signed(number), round(float(position(number)), 1)) for number in round_numbers(scale)),
        r_floor=correlation(sets[FLOOR], columns),
        r_query=correlation(sets[query], columns),
    )


def without_overlaps(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> list[int]:
    """Leave out points whose names would overlap with the name of an earlier one."""
    separate: list[int] = []
    for i in points:
        if all(abs(y[i] - y[j]) > 14 or abs(x[i] - x[j]) > 130 for j in separate):
            separate.append(int(i))
    return separate


def correlation(table: pd.DataFrame, columns: list[str]) -> float:
    """Pearson correlation of two columns; NaN where one is constant."""
    return float(table[columns[0]].astype(float).corr(table[columns[1]].astype(float)))


def nice_step(width: float) -> float:
    """Return the step of about four ticks: 1, 2 or 5 times a power of ten."""
    power = 10 ** np.floor(np.log10(width / 4))
    return float(next(factor * power for factor in (1, 2, 5, 10) if width / (factor * power) <= 5))


def symbols(sets: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the colour and the shape of each set as in all figures, and of the symbols that only the page has."""
    shapes = {"o": "circle", "s": "square", "^": "triangle", "d": "diamond", "D": "diamond"}
    styles = set_styles(dict.fromkeys([FLOOR, GENERATED, "flat", UNCHANGED, *sets]))
    found = {name: (look.colour, look.marker) for name, look in styles.items()}
    found |= dict.fromkeys(["model", TRANSMUTED], found[GENERATED])
    found |= {FLOOR: (DARK, found[FLOOR][1]), "test": (REAL["color"], REAL["marker"])}
    return {name: {"colour": colour, "shape": shapes.get(marker, "circle")} for name, (colour, marker) in found.items()}
