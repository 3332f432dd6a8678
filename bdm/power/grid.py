"""The grid of a power analysis: its points, and the design of the experiment at each."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from bdm._core.seeds import derive
from bdm.design.settings import AXES, MIN_DONORS_OF_DESEQ2, Change, Design, PowerSettings


@dataclass(frozen=True)
class Point:
    """One combination of the values of a grid; None where a value is as in the design.

    Attributes
    ----------
    number
        Its position in the grid, from 0.
    """

    number: int
    donors: int | None = None
    cells: int | None = None
    depth: float | None = None
    log2_fold_change: float | None = None
    log_odds: float | None = None


def points_of(power: PowerSettings) -> Iterator[Point]:
    """List all combinations of the values of a grid."""
    values = [getattr(power, name) or (None,) for name in AXES]
    for number, (donors, cells, *others) in enumerate(product(*values)):
        whole = (None if value is None else int(value) for value in (donors, cells))
        yield Point(number, *whole, *others)


def methods_of(design: Design) -> tuple[str, ...]:
    """Name the tests of expression of a power analysis, which are the same for all its experiments."""
    if design.power.methods is not None:
        return design.power.methods
    samples = design.samples
    donors = min(design.power.donors or [samples.donors_in(condition) for condition in samples.conditions])
    return ("deseq2" if donors >= MIN_DONORS_OF_DESEQ2 else "deseq2_t",)


def design_at(design: Design, point: Point, *, repeat: int) -> Design:
    """Give the design of one experiment of a grid.

    The seed depends on the repeat alone, so that experiments of different depth, for example, have the same cells.
    """
    samples, depth = design.samples, design.depth
    if point.donors is not None:
        samples = replace(samples, donors=point.donors)
    if point.cells is not None:
        samples = replace(samples, cells=scaled(samples.cells, point.cells))
    if point.depth is not None:
        if depth.median is None:
            depth = replace(depth, factor=times(depth.factor, point.depth))
        else:
            depth = replace(depth, median=times(depth.median, point.depth))
    changes, shifts = design.changes, design.composition.shifts
    if point.log2_fold_change is not None:
        changes = tuple(of_size(change, point.log2_fold_change) for change in changes)
    if point.log_odds is not None:
        shifts = tuple(replace(shift, log_odds=sized(shift.log_odds, point.log_odds)) for shift in shifts)
    return replace(
        design,
        samples=samples,
        depth=depth,
        changes=changes,
        composition=replace(design.composition, shifts=shifts),
        seed=derive(design.seed, "power", repeat),
    )


def times(value: float | dict[str, float], factor: float) -> float | dict[str, float]:
    """Multiply a number, or the numbers of conditions."""
    if isinstance(value, dict):
        return {condition: number * factor for condition, number in value.items()}
    return value * factor


def sized(value: float, size: float) -> float:
    """Give a value another size, with its sign; 0 stays 0."""
    return float(np.sign(value) * size)


def scaled(cells: str | int | dict[str, int], total: int) -> int | dict[str, int]:
    """Scale numbers of cells by type to a total; learned numbers become the total."""
    if not isinstance(cells, dict):
        return total
    before = sum(cells.values())
    return {name: round(number * total / before) for name, number in cells.items()}


def of_size(change: Change, size: float) -> Change:
    """Give the fold changes of a change another size.

    Those of a distribution keep their spread relative to the mean; around 0, the size is their spread.
    """
    given = change.log2_fold_change
    if given.distribution is None:
        fold_change = replace(given, values=tuple(sized(value, size) for value in given.values))
    elif size == 0:
        fold_change = replace(given, distribution=None, values=(0.0,))
    else:
        spread = given.sd * size / abs(given.mean) if given.mean else size
        fold_change = replace(given, mean=sized(given.mean, size), sd=spread)
    return replace(change, log2_fold_change=fold_change)
