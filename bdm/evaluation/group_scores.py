"""Scores of cells by batch, donor and section, and of the differences between these groups."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse

from bdm.data.cells import MIN_CELLS_OF_TYPE, Cells, RealCells, TypedCells, sample_by_label, smaller_numbers
from bdm.data.filters import capped
from bdm.data.gene_tests import PSEUDOCOUNT
from bdm.data.space import SECTION as SECTIONS
from bdm.evaluation.resamples import take_samples
from bdm.evaluation.scores import Comparison, assign_bins, auc, bin_edges, mean_scores
from bdm.evaluation.table import (
    BATCH,
    COVARIATE,
    DONOR,
    EVERY,
    MIN_CELLS,
    SECTION,
    Row,
    floor_of,
    missing_row,
    score_rows,
)

Labels = Callable[[TypedCells], np.ndarray | None]

N_FLOORS = 8  # samples of training cells, whose standard deviation is that of the scores between groups
MAX_GROUPS = 20  # the largest of a kind; others are not checked
MIN_VARIANCE = 0.1  # of CP10k, of genes with few counts
N_GENES = 50  # that differ most between a group and the others of a type
SMALL_SAMPLE = 1.3  # ratio of quantiles at 1%: t with 7 degrees of freedom, and the normal distribution


N_BINS = 4  # of each covariate, with equal numbers of test cells


def labels_of(test: TypedCells) -> Iterator[tuple[str, str, Labels]]:
    """Yield the kind and name of groups, and a function that returns the group of each cell; None if unknown."""

    def section(cells: TypedCells) -> np.ndarray | None:
        return None if cells.positions is None else cells.positions[SECTIONS].to_numpy(dtype=str)

    def covariate(cells: TypedCells, name: str, edges: np.ndarray) -> np.ndarray | None:
        if cells.covariates is None or name not in cells.covariates:
            return None
        names = np.array([f"{name} {low:.4g} to {high:.4g}" for low, high in pairwise(edges)])
        return np.asarray(names[assign_bins(cells, name, edges)])

    yield from [(BATCH, EVERY, lambda cells: cells.batch), (DONOR, EVERY, lambda cells: cells.donor)]
    yield SECTION, EVERY, section
    for name, edges in bin_edges(test, N_BINS).items():
        yield COVARIATE, name, partial(covariate, name=name, edges=edges)


def score_groups(real: RealCells, generated: Mapping[str, TypedCells], *, most: int, seed: int) -> Iterator[Row]:
    """Yield the scores of each set by batch, donor, section and bins of covariates.

    Each comparison with test cells, and of training cells (the floor) with test cells, is between equal numbers of each
    type in each group, at most ``most`` in a group.
    """
    for kind, all_groups, labels in labels_of(real.test):
        for name, cells in generated.items():
            missing = partial(missing_row, kind, name, "forest_auc", group=all_groups)
            if kind == DONOR and real.training.donor is not None:
                yield from score_donors(labels, real.training, cells, name, most=5 * most, seed=seed)
            if (in_training := labels(real.training)) is None or labels(real.test) is None:
                if kind != SECTION:
                    yield missing("not in the real cells")
            elif labels(cells) is None:
                yield missing("not in this set")
            elif len(np.unique(in_training)) > 1:
                yield from score_kind(kind, all_groups, labels, real, cells, name, most=most, seed=seed)


def score_kind(
    kind: str, all_groups: str, labels: Labels, real: RealCells, cells: TypedCells, name: str, *, most: int, seed: int
) -> Iterator[Row]:
    """Yield the scores of a set by the groups of a kind."""
    keys = {
        part: pairs(labels, each) for part, each in {"test": real.test, "floor": real.training, name: cells}.items()
    }
    n_test, n_training, n_cells = (key.value_counts() for key in keys.values())
    numbers = smaller_numbers(n_cells, smaller_numbers(n_training // 2, n_test))
    numbers = numbers.where(numbers >= MIN_CELLS_OF_TYPE, 0)
    by_group = numbers.groupby(level="group").sum().sort_values(ascending=False, kind="stable")
    for group in by_group.index[by_group < MIN_CELLS]:
        reason = "fewer than ten cells to compare" if group in n_cells.index.unique("group") else "no cells in this set"
        yield missing_row(kind, name, "forest_auc", reason, group=group)
    by_group = by_group[by_group >= MIN_CELLS]
    for group in by_group.index[MAX_GROUPS:]:
        yield missing_row(kind, name, "forest_auc", f"only the {MAX_GROUPS} largest are compared", group=group)
    groups = by_group.index[:MAX_GROUPS]
    if not len(groups):
        return
    numbers = pd.concat(
        [
            capped(numbers.xs(group, level="group", drop_level=False), most=most, fewest=MIN_CELLS_OF_TYPE)
            for group in groups
        ]
    )

    def sample(cells: TypedCells, key: pd.MultiIndex, n: int = 1) -> list[Cells]:
        codes = numbers.index.get_indexer(key)
        numbers_by_code = pd.Series(numbers.to_numpy(), index=range(len(numbers)))
        return take_samples(cells, [sample_by_label(codes, numbers_by_code, seed=seed + i) for i in range(n)])

    [test], [query] = sample(real.test, keys["test"]), sample(cells, keys[name])
    floors = sample(real.training, keys["floor"], N_FLOORS)
    for group in groups:
        of_test, of_query, of_floor = (each[np.flatnonzero(labels(each) == group)] for each in (test, query, floors[0]))
        for key, each in {name: of_query, floor_of(name): of_floor}.items():
            yield from score_rows(
                score_group(each, of_test, seed=seed), kind=kind, group=group, set=key, n_cells=len(each)
            )
    slopes = [*map(GroupDifferences.between(labels, test).group_slope, [query, *floors])]
    share = numbers.sum() / n_training.reindex(numbers.index).sum()
    yield from compared(slopes, share, "group_slope", kind=kind, group=all_groups, set=name, n_cells=len(query))


def score_donors(
    labels: Labels, training: TypedCells, cells: TypedCells, name: str, *, most: int, seed: int
) -> Iterator[Row]:
    """Yield how far a set resembles a single donor: half of the training cells, with samples of the rest as floor."""
    n_half = capped(training.n_by_type // 2, most=most, fewest=MIN_CELLS)
    half = sample_by_label(training.cell_type, n_half, seed=seed)
    rest = np.setdiff1d(np.arange(len(training)), half)
    numbers = smaller_numbers(cells.n_by_type, n_half // 2)
    rows = [rest[sample_by_label(training.cell_type[rest], numbers, seed=seed + i)] for i in range(N_FLOORS)]
    reference, *floors = take_samples(training, [half, *rows])
    query = cells[sample_by_label(cells.cell_type, numbers, seed=seed)]
    slopes = [*map(GroupDifferences.between(labels, reference).donor_slope, [query, *floors])]
    where = {"kind": DONOR, "group": EVERY, "set": name, "n_cells": len(query)}
    yield from compared(slopes, numbers.sum() / len(rest), "donor_slope", **where)


def compared(values: Sequence[float], share: float, score: str, **where: Any) -> Iterator[Row]:
    """Yield a score of a set, the first value, and of its floor, the mean of the others.

    The others are of samples, each a ``share`` of the training cells, which vary less than independent ones.
    """
    value, *others = values
    variance = np.var(others, ddof=1) / (1 - share)
    chance = SMALL_SAMPLE * np.sqrt(variance * (1 + share + (1 - share) / len(others)))
    yield from score_rows({score: value, f"{score}_chance": chance}, **where)
    yield from score_rows({score: float(np.mean(others))}, **where | {"set": floor_of(where["set"])})


def pairs(labels: Labels, cells: TypedCells) -> pd.MultiIndex:
    """Return the group and type of each cell."""
    return pd.MultiIndex.from_arrays([labels(cells), cells.cell_type], names=["group", "cell_type"])


def score_group(query: Cells, test: Cells, *, seed: int) -> dict[str, float]:
    """Score query cells of a group against as many test cells of each type."""
    comparison, by_type = Comparison.between(query, test, seed=seed), {}
    for cell_type in test.n_by_type.index:
        in_query, in_test = query.cell_type == cell_type, test.cell_type == cell_type
        by_size = auc(query.library_size[in_query], test.library_size[in_test])
        by_type[cell_type] = comparison.scores(in_query, in_test) | {"library_size_auc": by_size}
    means = mean_scores(pd.DataFrame.from_dict(by_type, orient="index"), test)
    return {
        **means[["relative_energy", "relative_energy_chance", "relative_energy_skewness"]],
        "forest_auc": auc(*comparison.probabilities),
        "library_size_auc": 0.5 + abs(means["library_size_auc"] - 0.5),
    }


# ---- differences between groups

Sums = tuple[np.ndarray, np.ndarray]  # numbers of cells, and sums of their CP10k, with a row for each group of a type


@dataclass(frozen=True)
class GroupDifferences:
    """Log fold changes between each group of test cells and the other groups of its type, in standard errors.

    A row is a group of a type. It is 0 except in the :data:`N_GENES` genes that differ most, and without ten cells in
    the group and in the others.
    """

    labels: Labels
    index: pd.MultiIndex  # group and type of each row
    same_type: np.ndarray  # rows x rows
    all_groups: Sums  # test cells of the type
    error: np.ndarray  # standard errors, rows x genes
    x: np.ndarray  # rows x genes

    @classmethod
    def between(cls, labels: Labels, test: Cells) -> GroupDifferences:
        """Compare the groups of test cells."""
        keys = pairs(labels, test)
        index, cell_type = keys.unique(), keys.unique().get_level_values("cell_type").to_numpy()
        same_type = (cell_type[:, None] == cell_type).astype(np.float32)
        is_group = index.get_indexer(keys) == np.arange(len(index))[:, None]
        n, total = own = sums(is_group, test.cp10k)
        n_others, rest = others = same_type @ n - n, same_type @ total - total
        variance = same_type @ (sums(is_group, test.cp10k.power(2))[1] - total**2 / n) / (n + n_others)
        variance = np.maximum(variance * (1 / n + 1 / np.maximum(n_others, 1)), MIN_VARIANCE)
        error = np.sqrt(variance) / means(own)
        x = np.log(means(own) / means(others)) / error
        x *= np.argsort(np.argsort(-np.abs(x), axis=1, kind="stable"), axis=1) < N_GENES
        x *= np.minimum(n, n_others) >= MIN_CELLS
        return cls(labels, index, same_type, (n + n_others, total + rest), error, x)

    def products(self, cells: Sums, base: Sums) -> np.ndarray:
        """Return the products of log fold changes between two sums with those of test cells, of each row."""
        y = np.log(means(cells) / means(base)) / self.error * (cells[0] >= MIN_CELLS)
        return np.asarray((self.x * y).sum(axis=1))

    def group_slope(self, cells: Cells) -> float:
        """Return the slope for each group of cells and the other groups of its type, in all groups together."""
        is_group = self.index.get_indexer(pairs(self.labels, cells)) == np.arange(len(self.index))[:, None]
        n, total = own = sums(is_group, cells.cp10k)
        products = self.products(own, (self.same_type @ n - n, self.same_type @ total - total))
        return float(products.sum() / (self.x**2).sum()) if self.x.any() else np.nan

    def donor_slope(self, cells: Cells) -> float:
        """Return the slope for all cells of a type and all test cells of the type, in the group where it is largest."""
        is_type = self.index.get_level_values("cell_type").to_numpy()[:, None] == cells.cell_type
        products = self.products(sums(is_type, cells.cp10k), self.all_groups), (self.x**2).sum(axis=1)
        xy, xx = (pd.Series(each).groupby(self.index.get_level_values("group")).sum() for each in products)
        return float((xy / xx).max())


def sums(members: np.ndarray, values: sparse.csr_matrix) -> Sums:
    """Sum the values of the members of each row, rows x cells."""
    return members.sum(axis=1, keepdims=True), np.asarray(members.astype(np.float32) @ values)


def means(cells: Sums) -> np.ndarray:
    """Return mean CP10k with a pseudocount."""
    return np.asarray(cells[1] / np.maximum(cells[0], 1) + PSEUDOCOUNT)
