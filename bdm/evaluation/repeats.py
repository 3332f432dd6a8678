from dataclasses import dataclass

import numpy as np

from bdm.evaluation.cells import Cells, TypedCells, draw, fewer, taken
from bdm.evaluation.trial import draw_trial

FLOOR = "floor"


@dataclass(frozen=True)
class Repeat:
    """Cells of one repeat.

    Attributes
    ----------
    test
        Test cells to judge by.
    judged
        The floor, and the generated sets: of each type as many cells as there are test cells, or all.
    floor_rows
        Places of the floor among training cells.
    seed
        Seed of all that is drawn.
    """

    test: Cells
    judged: dict[str, Cells]
    floor_rows: np.ndarray
    seed: int


def draw_repeats(
    training: TypedCells,
    test: TypedCells,
    generated: dict[str, TypedCells],
    seeds: list[int],
    *,
    max_cells_per_type: int,
    max_cells: int,
) -> list[Repeat]:
    """Draw the cells of one repeat by each seed, and read each set once."""
    most = {"max_cells_per_type": max_cells_per_type, "max_cells": max_cells}
    trials = [draw_trial(training, test, **most, seed=seed) for seed in seeds]
    judged = {FLOOR: taken(training, [trial.floor_rows for trial in trials])}
    for name, cells in generated.items():
        numbers = [fewer(cells.n_by_type, trial.n_by_type) for trial in trials]
        judged[name] = taken(cells, [draw(cells, n, seed=seed) for n, seed in zip(numbers, seeds, strict=True)])
    test_cells = taken(test, [trial.test_rows for trial in trials])
    return [
        Repeat(test_cells[i], {name: cells[i] for name, cells in judged.items()}, trial.floor_rows, seeds[i])
        for i, trial in enumerate(trials)
    ]
