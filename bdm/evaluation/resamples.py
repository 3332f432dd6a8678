"""Resamples of real and generated cells, matched in numbers of cells by type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import pandas as pd

from bdm._core.progress import progress
from bdm.data.cells import (
    FLOOR,
    MIN_CELLS_FOR_MEANS,
    MIN_CELLS_OF_TYPE,
    Cells,
    Populations,
    RealCells,
    TypedCells,
    sample_by_type,
    smaller_numbers,
)
from bdm.data.filters import capped
from bdm.data.modalities import Modality
from bdm.evaluation.table import floor_of
from bdm.settings import EvaluationSettings


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """Maximum numbers of cells, which bound memory and time of an evaluation."""

    compared: int = 20_000  # per set and resample
    resampled: int = 2_000  # test cells over all resamples; with these, AUCs are exact to 0.01
    gene_auc: int = 10_000  # per set, for the classifier on all genes, which needs most memory
    tree: int = 5_000  # bootstrap sample of each tree of a random forest
    pairs: int = 2_000_000_000  # query cells x training cells, for memorisation
    markers: int = 50_000  # test cells for choosing marker genes and variable genes
    umap: int = 4_000  # over all sets
    grouped: int = 1_000  # per set and batch, donor or section
    space: int = 100_000  # real cells, for scores in space


SIZE_LIMITS = SizeLimits()


@dataclass(frozen=True)
class ResampledCells:
    """Cells of one resample, in memory."""

    test: Cells
    query: dict[str, Cells]  # generated sets and floors; at most as many cells per type as test cells
    floor_rows: dict[str, np.ndarray]  # indices of the floor cells in the training cells
    seed: int

    def of_modality(self, modality: Modality) -> ResampledCells:
        """Select the features of a modality."""
        query = {name: cells.of_modality(modality) for name, cells in self.query.items()}
        return replace(self, test=self.test.of_modality(modality), query=query)

    def with_populations(self, populations: Populations) -> ResampledCells:
        """Assign a population to each cell."""

        def assign(cells: Cells) -> Cells:
            return replace(cells, population=populations(cells))

        return replace(self, test=assign(self.test), query={name: assign(cells) for name, cells in self.query.items()})


def with_progress(resamples: Sequence[ResampledCells], *, doing: str) -> Iterator[tuple[ResampledCells, str, Cells]]:
    """Iterate over resamples and their query sets, with a progress bar.

    Yields the resample, and the name and cells of a set.
    """
    compared = [(resample, name, cells) for resample in resamples for name, cells in resample.query.items()]
    yield from progress(compared, total=len(compared), doing=doing, unit="comparison")


def draw_resamples(
    real: RealCells,
    generated: Mapping[str, TypedCells],
    settings: EvaluationSettings,
    size_limits: SizeLimits = SIZE_LIMITS,
    *,
    n_floor: pd.Series | None = None,
    seed: int,
) -> list[ResampledCells]:
    """Draw the resamples of an evaluation; each set is read only once.

    With many test cells, fewer resamples than ``settings.n_repeats`` suffice. Types with a single test cell are left
    out. The floor has as many cells of each type as test cells, at most ``n_floor``, by default half of the training
    cells, as the others show memorisation. A set with fewer cells has a floor of its own, with as many cells.
    """
    n_test = real.test.n_by_type
    n_test = n_test[n_test >= MIN_CELLS_OF_TYPE].clip(upper=settings.max_cells_per_type)
    n_floor = real.training.n_by_type // 2 if n_floor is None else n_floor
    n_test = n_test.where(
        n_floor.reindex(n_test.index, fill_value=0) < MIN_CELLS_OF_TYPE, smaller_numbers(n_floor, n_test)
    )
    n_test = capped(n_test, most=size_limits.compared, fewest=MIN_CELLS_FOR_MEANS)
    n_repeats = min(settings.n_repeats, ceil(size_limits.resampled / n_test.sum()))
    seeds = np.random.default_rng(seed).integers(2**31, size=n_repeats).tolist()  # valid for scikit-learn

    def sample_rows(cells: TypedCells, available: pd.Series) -> list[np.ndarray]:
        numbers = smaller_numbers(available, n_test)
        return [sample_by_type(cells, numbers, seed=seed) for seed in seeds]

    floor_rows = {FLOOR: sample_rows(real.training, n_floor)}
    for name, cells in generated.items():
        n_matched = smaller_numbers(cells.n_by_type, n_test)
        if (n_matched < smaller_numbers(n_floor, n_test)).any():
            floor_rows[floor_of(name)] = sample_rows(real.training, smaller_numbers(n_floor, n_matched))
    samples = take_samples(real.training, [rows for repeats in floor_rows.values() for rows in repeats])
    query = {name: samples[i * n_repeats : (i + 1) * n_repeats] for i, name in enumerate(floor_rows)}
    for name, cells in generated.items():
        query[name] = take_samples(cells, sample_rows(cells, cells.n_by_type))
    test = take_samples(real.test, sample_rows(real.test, n_test))
    return [
        ResampledCells(
            test[i],
            {name: cells[i] for name, cells in query.items()},
            {name: rows[i] for name, rows in floor_rows.items()},
            seed,
        )
        for i, seed in enumerate(seeds)
    ]


# ---- samples


def match(query: Cells, test: Cells, *, seed: int) -> tuple[Cells, Cells]:
    """Sample both sets to equal numbers of cells per type."""
    n_by_type = smaller_numbers(query.n_by_type, test.n_by_type)
    query, test = (cells[sample_by_type(cells, n_by_type, seed=seed)] for cells in (query, test))
    return query, test


def sample_at_most(cells: TypedCells, *, most: int, seed: int) -> Cells:
    """Sample at most ``most`` cells, by :func:`capped`."""
    return cells[sample_by_type(cells, capped(cells.n_by_type, most=most, fewest=MIN_CELLS_FOR_MEANS), seed=seed)]


def take_samples(cells: TypedCells, samples: list[np.ndarray]) -> list[Cells]:
    """Read several samples of cells in one pass.

    Each sample is an array of cell indices; a cell in several samples is read once.
    """
    rows = np.unique(np.concatenate(samples))
    pool = cells[rows]
    return [pool[np.searchsorted(rows, sample)] for sample in samples]
