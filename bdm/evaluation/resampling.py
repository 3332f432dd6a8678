"""Real and generated cells of each repeat of an evaluation."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from bdm.evaluation.cells import (
    FEWEST_OF_TYPE,
    Cells,
    TypedCells,
    capped,
    sample_by_type,
    smaller_numbers,
    take_samples,
)


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """Most cells that the steps of judging take, so that memory and time hardly grow with the data.

    The defaults let a set of any size be judged in two minutes or so by one core.

    Attributes
    ----------
    compared
        Cells of a set that are compared at a time.
    gene_auc
        Cells of a set that are told from test cells by all genes, which takes most memory.
    by_tree
        Cells that each tree of a random forest learns from; other trees learn from others.
    pairs
        Pairs of a judged and a training cell among which copies are sought: where there are more, the nearest training
        cell is found for fewer judged cells, but still among all training cells.
    marking
        Training cells by which marker genes and variable genes are chosen.
    mapped
        Cells in the UMAP, of all sets together.
    """

    compared: int = 20_000
    gene_auc: int = 10_000
    by_tree: int = 5_000
    pairs: int = 2_000_000_000
    marking: int = 50_000
    mapped: int = 20_000


SIZE_LIMITS = SizeLimits()


@dataclass(frozen=True)
class Resample:
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


def draw_resample(
    training: TypedCells,
    test: TypedCells,
    *,
    max_cells_per_type: int,
    max_cells: int = SIZE_LIMITS.compared,
    seed: int,
) -> Resample:
    """Draw up to ``max_cells_per_type`` test cells of each type, and as many training cells for the floor.

    Where these are more than half of the training cells of a type, the floor is that half. A type with a single
    test cell is left out: nothing is known of its spread. Of the commonest types fewer are drawn where there would be
    more than ``max_cells`` in all.
    """
    n_test = test.n_by_type[test.n_by_type >= FEWEST_OF_TYPE].clip(upper=max_cells_per_type)
    n_test = capped(n_test, most=max_cells)
    floor = sample_by_type(training, smaller_numbers(training.n_by_type // 2, n_test), seed=seed)
    return Resample(training, test, floor, sample_by_type(test, n_test, seed=seed), n_test)


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
    generated: Mapping[str, TypedCells],
    seeds: list[int],
    *,
    max_cells_per_type: int,
    max_cells: int,
) -> list[Repeat]:
    """Draw the cells of one repeat by each seed, and read each set once."""
    most = {"max_cells_per_type": max_cells_per_type, "max_cells": max_cells}
    trials = [draw_resample(training, test, **most, seed=seed) for seed in seeds]
    judged = {FLOOR: take_samples(training, [trial.floor_rows for trial in trials])}
    for name, cells in generated.items():
        numbers = [smaller_numbers(cells.n_by_type, trial.n_by_type) for trial in trials]
        judged[name] = take_samples(
            cells, [sample_by_type(cells, n, seed=seed) for n, seed in zip(numbers, seeds, strict=True)]
        )
    test_cells = take_samples(test, [trial.test_rows for trial in trials])
    return [
        Repeat(test_cells[i], {name: cells[i] for name, cells in judged.items()}, trial.floor_rows, seeds[i])
        for i, trial in enumerate(trials)
    ]
