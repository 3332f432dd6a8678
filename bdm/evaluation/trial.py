from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bdm.evaluation.bounds import BOUNDS
from bdm.evaluation.cells import FEWEST_OF_TYPE, Cells, TypedCells, bounded, draw, fewer


@dataclass(frozen=True)
class Trial:
    """Real cells of one repeat, taken from all when they are asked for.

    Attributes
    ----------
    all_training, all_test
        What is drawn from.
    floor_rows, test_rows
        Places of the drawn cells therein.
    n_by_type
        Numbers of the drawn test cells.
    """

    all_training: TypedCells
    all_test: TypedCells
    floor_rows: np.ndarray
    test_rows: np.ndarray
    n_by_type: pd.Series

    @cached_property
    def test(self) -> Cells:
        """Test cells to judge by."""
        return self.all_test[self.test_rows]

    @cached_property
    def floor(self) -> Cells:
        """Training cells to be judged as if they had been generated."""
        return self.all_training[self.floor_rows]

    @cached_property
    def rest(self) -> Cells:
        """All other training cells."""
        return self.all_training[np.setdiff1d(np.arange(len(self.all_training)), self.floor_rows)]


def draw_trial(
    training: TypedCells,
    test: TypedCells,
    *,
    max_cells_per_type: int,
    max_cells: int = BOUNDS.compared,
    seed: int,
) -> Trial:
    """Draw up to ``max_cells_per_type`` test cells of each type, and as many training cells for the floor.

    Where these are more than half of the training cells of a type, the floor is that half. A type with a single
    test cell is left out: nothing is known of its spread. Of the commonest types fewer are drawn where there would be
    more than ``max_cells`` in all.
    """
    n_test = test.n_by_type[test.n_by_type >= FEWEST_OF_TYPE].clip(upper=max_cells_per_type)
    n_test = bounded(n_test, most=max_cells)
    floor = draw(training, fewer(training.n_by_type // 2, n_test), seed=seed)
    return Trial(training, test, floor, draw(test, n_test, seed=seed), n_test)
