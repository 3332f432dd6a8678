import logging
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from bdm.errors import InputError
from bdm.evaluation.cells import FEWEST_FOR_MEANS, Cells
from bdm.evaluation.evaluate import FLOOR
from bdm.evaluation.inputs import RealCells
from bdm.threads import using_threads
from bdm.transmutation.scores import Ends, score_move

logger = logging.getLogger(__name__)

UNMOVED = "unmoved"


@dataclass(frozen=True)
class MovedCells:
    """Cells that were moved to another type, and the same cells before, of the types that they were of."""

    after: Cells
    before: Cells

    def of(self, original_type: str) -> tuple[Cells, Cells]:
        """Take the cells that were of one type, after and before."""
        rows = np.flatnonzero(self.before.cell_type == original_type)
        return self.after[rows], self.before[rows]


@dataclass(frozen=True, repr=False)
class MoveEvaluation:
    """Scores of moved cells by the type that they were of.

    Attributes
    ----------
    to
        The type that they were moved to.
    table
        (original_type, set) x ``n_cells`` and the scores of :class:`bdm.transmutation.scores.MoveScores`; sets are the
        floor (training cells of the new type), the moved sets, and the cells unmoved.
    """

    to: str
    table: pd.DataFrame
    real: RealCells
    moved: dict[str, MovedCells]

    def __repr__(self) -> str:
        return f"Evaluation of cells transmuted to {self.to}\n{self.table.to_string(float_format='{:.3f}'.format)}"

    @property
    def original_types(self) -> list[str]:
        """Types that cells were moved from."""
        return self.table.index.unique("original_type").tolist()


@using_threads()
def evaluate_moves(real: RealCells, moved: dict[str, MovedCells], to: str, *, seed: int = 0) -> MoveEvaluation:
    """Judge cells moved to one type by its test cells.

    Raises
    ------
    InputError
        If there are too few real cells to judge by.
    """
    first = next(iter(moved.values()))
    rows = {}
    for original_type in pd.unique(first.before.cell_type):
        ends = ends_of(real, original_type, to)
        for name, (after, before) in sets_of(moved, ends, original_type).items():
            if len(after) < FEWEST_FOR_MEANS:
                logger.warning("Not judged: %s of %s, of which there are %d cells.", name, original_type, len(after))
                continue
            scores = score_move(after, ends, before=before, seed=seed)
            rows[original_type, name] = {"n_cells": len(after), **asdict(scores)}
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(["original_type", "set"])
    return MoveEvaluation(to, table, real, moved)


def ends_of(real: RealCells, original_type: str, to: str) -> Ends:
    """Take the real cells of two types."""
    old, new = (real.training[real.training.cell_type == name] for name in (original_type, to))
    test = real.test[real.test.cell_type == to]
    numbers = {
        f"training cells of {original_type!r}": len(old),
        f"training cells of {to!r}": len(new),
        f"test cells of {to!r}": len(test),
    }
    for what, number in numbers.items():
        if number < FEWEST_FOR_MEANS:
            raise InputError(f"There are {number} {what} to judge by; {FEWEST_FOR_MEANS} are needed.")
    return Ends(old, new, test)


def sets_of(moved: dict[str, MovedCells], ends: Ends, original_type: str) -> dict[str, tuple[Cells, Cells | None]]:
    """Name all sets to judge, after and before."""
    parts = {name: cells.of(original_type) for name, cells in moved.items()}
    unmoved = next(iter(parts.values()))[1]
    return {FLOOR: (ends.new, None), **parts, UNMOVED: (unmoved, unmoved)}
