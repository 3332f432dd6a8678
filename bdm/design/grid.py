"""The section ``power`` of a design: a grid of experiments, and the tests that are applied to them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from annotated_types import Ge, Gt, Lt

from bdm.errors import InputError
from bdm.schema import StageSettings, Unset
from bdm.seeds import derive

if TYPE_CHECKING:
    from bdm.design.settings import Change, Design

AS_DESIGNED = Unset("as in the design")
WHOLE_NUMBERS = ("donors", "cells")
LARGEST = 20  # log2 fold change, and shift of log odds; counts could overflow beyond
EXPRESSION_METHODS = ("deseq2", "deseq2_t", "t_test", "wilcoxon")
MIN_DONORS_OF_DESEQ2 = 12  # of each condition; with fewer, its normal distribution makes too many false discoveries


@dataclass(frozen=True, kw_only=True)
class PowerSettings(StageSettings):
    """The values of a grid, in all combinations, and how often each experiment is simulated and tested."""

    section: ClassVar[str] = "power"

    donors: Annotated[tuple[float, ...], "Donors in each condition.", AS_DESIGNED] = ()
    cells: Annotated[tuple[float, ...], "Cells of each sample.", AS_DESIGNED] = ()
    depth: Annotated[tuple[float, ...], "Factors of the library sizes of the design.", AS_DESIGNED] = ()
    log2_fold_change: Annotated[
        tuple[float, ...], "Sizes of the planted log2 fold changes, which keep their signs.", AS_DESIGNED
    ] = ()
    log_odds: Annotated[
        tuple[float, ...], "Sizes of the shifts of the composition, which keep their signs.", AS_DESIGNED
    ] = ()
    n_repeats: Annotated[int, Ge(1), "Simulated experiments of each combination."] = 10
    methods: Annotated[
        tuple[str, ...] | None,
        "Tests of expression: `deseq2`, `deseq2_t`, `t_test` or `wilcoxon`; none for the composition alone.",
        Unset(f"`deseq2`, or `deseq2_t` where any condition has fewer than {MIN_DONORS_OF_DESEQ2} donors"),
    ] = None
    fdr: Annotated[float, Gt(0), Lt(1), "False discovery rate below which a gene or a cell type is found."] = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in AXES:
            for value in getattr(self, name):
                smallest = 1 if name in WHOLE_NUMBERS else 0
                if value < smallest or (name == "depth" and value == 0):
                    limit = "at least 1" if name in WHOLE_NUMBERS else "above 0" if name == "depth" else "at least 0"
                    raise InputError(f"{name} is {value:g}, but must be {limit}.")
                if name in ("log2_fold_change", "log_odds") and value > LARGEST:
                    raise InputError(f"{name} is {value:g}, but must be at most {LARGEST}.")
                if name in WHOLE_NUMBERS and value != int(value):
                    raise InputError(f"{name} is {value:g}, but must be a whole number.")
        if 1 in self.donors:
            raise InputError("donors is 1, but tests need 2 or more donors in each condition.")
        unknown = next((name for name in self.methods or () if name not in EXPRESSION_METHODS), None)
        if unknown:
            known = ", ".join(EXPRESSION_METHODS)
            raise InputError(f"methods has {unknown!r}, but must have one or more of {known}.")


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


AXES = ("donors", "cells", "depth", "log2_fold_change", "log_odds")


def points_of(power: PowerSettings) -> Iterator[Point]:
    """List all combinations of the values of a grid."""
    values = [getattr(power, name) or (None,) for name in AXES]
    for number, (donors, cells, *others) in enumerate(product(*values)):
        whole = (None if value is None else int(value) for value in (donors, cells))
        yield Point(number, *whole, *others)


def methods_of(design: "Design") -> tuple[str, ...]:
    """Name the tests of expression of a power analysis, which are the same for all its experiments."""
    if design.power.methods is not None:
        return design.power.methods
    samples = design.samples
    donors = min(design.power.donors or [samples.donors_in(condition) for condition in samples.conditions])
    return ("deseq2" if donors >= MIN_DONORS_OF_DESEQ2 else "deseq2_t",)


def design_at(design: "Design", point: Point, *, repeat: int) -> "Design":
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


def of_size(change: "Change", size: float) -> "Change":
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
