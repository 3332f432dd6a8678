from dataclasses import dataclass

import numpy as np

from bdm.evaluation.cells import FEWEST_OF_TYPE, Cells, draw, fewer


@dataclass(frozen=True)
class Trial:
    """Real cells of one repeat.

    Attributes
    ----------
    test
        Test cells to judge by.
    floor
        Training cells to be judged as if they had been generated.
    rest
        All other training cells.
    """

    test: Cells
    floor: Cells
    rest: Cells


def draw_trial(training: Cells, test: Cells, *, max_cells_per_type: int, seed: int) -> Trial:
    """Draw up to ``max_cells_per_type`` test cells of each type, and as many training cells for the floor.

    Where these are more than half of the training cells of a type, the floor is that half. A type with a single
    test cell is left out: nothing is known of its spread.
    """
    n_test = test.n_by_type[test.n_by_type >= FEWEST_OF_TYPE].clip(upper=max_cells_per_type)
    floor = draw(training, fewer(training.n_by_type // 2, n_test), seed=seed)
    rest = np.setdiff1d(np.arange(len(training)), floor)
    return Trial(test[draw(test, n_test, seed=seed)], training[floor], training[rest])
