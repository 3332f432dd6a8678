"""Resampling: real and generated cells that are compared at a time, and limits of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from bdm.data.filters import capped
from bdm.evaluation.cells import (
    FLOOR,
    MIN_CELLS_FOR_MEANS,
    MIN_CELLS_OF_TYPE,
    Cells,
    TypedCells,
    sample_by_type,
    smaller_numbers,
    take_samples,
)

Populations = Callable[[Cells], np.ndarray | None]  # gives the population of each cell; None if it cannot be found


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """Most cells that the steps of an evaluation take, so that memory and time hardly grow with the data.

    The standard error of an AUC of 2,000 cells is about 0.01, so more resamples of as many would not change what it
    shows.

    Attributes
    ----------
    compared
        Cells of a set that are compared at a time.
    resampled
        Test cells of all resamples together, from which on no other resample is drawn.
    gene_auc
        Cells of a set that are classified against test cells by all genes, which takes most memory.
    by_tree
        Cells that each tree of a random forest is fitted to; each tree samples its cells anew.
    pairs
        Pairs of a query cell and a training cell whose distances memorisation is measured by: where there are more,
        the nearest training cell is found for fewer query cells, but still among all training cells.
    marking
        Test cells by which marker genes and variable genes are chosen.
    mapped
        Cells in the UMAP, of all sets together.
    properties
        Cells of a set whose properties are compared.
    """

    compared: int = 20_000
    resampled: int = 2_000
    gene_auc: int = 10_000
    by_tree: int = 5_000
    pairs: int = 2_000_000_000
    marking: int = 50_000
    mapped: int = 4_000
    properties: int = 4_000


SIZE_LIMITS = SizeLimits()


@dataclass(frozen=True)
class Resample:
    """One random selection of real cells, which are read when they are needed.

    Attributes
    ----------
    all_training, all_test
        All real cells.
    floor_rows, test_rows
        Indices of the selected cells among them.
    n_by_type
        Numbers of the selected test cells.
    """

    all_training: TypedCells
    all_test: TypedCells
    floor_rows: np.ndarray
    test_rows: np.ndarray
    n_by_type: pd.Series

    @cached_property
    def test(self) -> Cells:
        """Selected test cells."""
        return self.all_test[self.test_rows]

    @cached_property
    def floor(self) -> Cells:
        """Training cells that are evaluated as if they had been generated."""
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

    The floor has at most half of the training cells of a type. A type with a single test cell is left out, as its
    spread is unknown. Of the commonest types fewer cells are drawn where there would be more than ``max_cells`` in all.
    """
    n_test = numbers_to_compare(test, max_cells_per_type=max_cells_per_type, max_cells=max_cells)
    floor = sample_by_type(training, smaller_numbers(training.n_by_type // 2, n_test), seed=seed)
    return Resample(training, test, floor, sample_by_type(test, n_test, seed=seed), n_test)


def numbers_to_compare(test: TypedCells, *, max_cells_per_type: int, max_cells: int) -> pd.Series:
    """Count the test cells of each type that are compared at a time."""
    n_test = test.n_by_type[test.n_by_type >= MIN_CELLS_OF_TYPE].clip(upper=max_cells_per_type)
    return capped(n_test, most=max_cells, fewest=MIN_CELLS_FOR_MEANS)


@dataclass(frozen=True)
class ResampledCells:
    """Cells of one resample, in memory.

    Attributes
    ----------
    test
        Test cells.
    query
        The floor, and the generated sets: of each type as many cells as there are test cells, or all.
    floor_rows
        Indices of the floor among training cells.
    seed
        Seed of the selection.
    """

    test: Cells
    query: dict[str, Cells]
    floor_rows: np.ndarray
    seed: int

    def with_populations(self, populations: Populations) -> ResampledCells:
        """Find the population of each cell."""

        def found(cells: Cells) -> Cells:
            return replace(cells, population=populations(cells))

        return replace(self, test=found(self.test), query={name: found(cells) for name, cells in self.query.items()})


def resampled_cells(
    training: TypedCells,
    test: TypedCells,
    generated: Mapping[str, TypedCells],
    seeds: list[int],
    *,
    max_cells_per_type: int,
    max_cells: int,
) -> list[ResampledCells]:
    """Draw a resample by each seed, and read each set once."""
    most = {"max_cells_per_type": max_cells_per_type, "max_cells": max_cells}
    resamples = [draw_resample(training, test, **most, seed=seed) for seed in seeds]
    query = {FLOOR: take_samples(training, [resample.floor_rows for resample in resamples])}
    for name, cells in generated.items():
        numbers = [smaller_numbers(cells.n_by_type, resample.n_by_type) for resample in resamples]
        query[name] = take_samples(
            cells, [sample_by_type(cells, n, seed=seed) for n, seed in zip(numbers, seeds, strict=True)]
        )
    test_cells = take_samples(test, [resample.test_rows for resample in resamples])
    return [
        ResampledCells(test_cells[i], {name: cells[i] for name, cells in query.items()}, resample.floor_rows, seeds[i])
        for i, resample in enumerate(resamples)
    ]
