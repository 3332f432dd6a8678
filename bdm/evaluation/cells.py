"""Cells that are evaluated: read from files, in memory or on disk, named by set, and sampled by cell type."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm.data.counts import as_counts, first_fault
from bdm.data.filters import capped
from bdm.data.matrix import take_cells, to_row_storage
from bdm.data.read import read_cells
from bdm.data.symbols import GeneNames
from bdm.errors import InputError, abbreviated

logger = logging.getLogger(__name__)

# Keys of sets of cells in tables
FLOOR = "floor"
GENERATED = "generated"  # by bdm, or by any other simulator
TRANSMUTED, UNCHANGED = "transmuted", "unchanged"  # after and before a transmutation
FILES = ("prepared", "test_cells", "model")  # whose checksums are recorded with those of sets
RESERVED_SET_NAMES = (GENERATED, TRANSMUTED, UNCHANGED, FLOOR, "test", "train", *FILES)
MIN_CELLS_OF_TYPE = 2  # a single cell has no distance to others of its type
MIN_CELLS_FOR_MEANS = 5  # with two or three, scores are mostly noise that a mean over types would pass on
BLOCK = 20_000  # cells of a file that are checked at a time, which takes several times their memory


class TypedCells(ABC):
    """Cells of known types, in memory or on disk."""

    cell_type: np.ndarray

    def __len__(self) -> int:
        return len(self.cell_type)

    @abstractmethod
    def __getitem__(self, index: np.ndarray) -> Cells:
        """Read the cells with these indices."""

    @cached_property
    def n_by_type(self) -> pd.Series:
        """Number of cells of each type, by name."""
        return pd.Series(self.cell_type, dtype=str).value_counts().sort_index()

    def types(self, *, fewest: int) -> list[str]:
        """Return the types of at least ``fewest`` cells."""
        return list(self.n_by_type.index[self.n_by_type >= fewest])


@dataclass(frozen=True)
class Cells(TypedCells):
    """Cells in memory.

    Attributes
    ----------
    counts
        Cells x genes.
    cell_type
        Name of each cell's type.
    batch
        Name of each cell's batch; None where it is not known.
    population
        Name of each cell's population; None where populations are not compared.
    """

    counts: sparse.csr_matrix
    cell_type: np.ndarray
    batch: np.ndarray | None = None
    population: np.ndarray | None = None

    @classmethod
    def from_anndata(cls, adata: AnnData) -> Cells:
        """Take counts from ``X``, types from ``obs['cell_type']``, and batches from ``obs['batch']``, if any."""
        counts = sparse.csr_matrix(adata.X, dtype=np.float32)
        return cls(counts, adata.obs["cell_type"].to_numpy(dtype=str), batch_in(adata.obs))

    def __getitem__(self, index: np.ndarray) -> Cells:
        batch, population = (None if of is None else of[index] for of in (self.batch, self.population))
        return Cells(self.counts[index], self.cell_type[index], batch, population)

    @cached_property
    def library_size(self) -> np.ndarray:
        """Sum of the counts of each cell."""
        return np.asarray(self.counts.sum(axis=1)).ravel()

    @cached_property
    def n_detected(self) -> np.ndarray:
        """Number of genes with counts in each cell."""
        return self.counts.astype(bool).getnnz(axis=1)

    @cached_property
    def cp10k(self) -> sparse.csr_matrix:
        """Counts per 10,000 counts of the cell; zeros where a cell has no counts."""
        return sparse.csr_matrix(sparse.diags(1e4 / np.maximum(self.library_size, 1)) @ self.counts)

    @cached_property
    def expression(self) -> sparse.csr_matrix:
        """``log1p(CP10k)``."""
        return self.cp10k.log1p()


def batch_in(obs: pd.DataFrame) -> np.ndarray | None:
    """Batch of each cell by the column ``batch``; None if there is none."""
    return obs["batch"].to_numpy(dtype=str) if "batch" in obs else None


@dataclass(frozen=True)
class Matched:
    """Query cells and test cells, equal in number for every type."""

    query: Cells
    test: Cells


def sample_by_type(cells: TypedCells, n_by_type: pd.Series, *, seed: int) -> np.ndarray:
    """Draw ``n_by_type`` cells of each type without replacement, and return their indices.

    With replacement, repeated cells would distinguish a sample of real cells from any other.
    """
    shuffled = np.random.default_rng(seed).permutation(len(cells))
    number_within_type = pd.Series(cells.cell_type[shuffled]).groupby(cells.cell_type[shuffled]).cumcount()
    requested = n_by_type.reindex(cells.cell_type[shuffled], fill_value=0)
    return np.sort(shuffled[number_within_type.to_numpy() < requested.to_numpy()])


def match(query: Cells, test: Cells, *, seed: int) -> Matched:
    """Draw from both, of each type, as many cells as the smaller of the two has."""
    n_by_type = smaller_numbers(query.n_by_type, test.n_by_type)
    return Matched(
        query=query[sample_by_type(query, n_by_type, seed=seed)],
        test=test[sample_by_type(test, n_by_type, seed=seed)],
    )


def thin(matched: Matched, *, most: int, seed: int) -> Matched:
    """Draw ``most`` cells or fewer from either, by :func:`capped`."""
    return Matched(
        query=sample_at_most(matched.query, most=most, seed=seed),
        test=sample_at_most(matched.test, most=most, seed=seed),
    )


def smaller_numbers(n_by_type: pd.Series, at_most: pd.Series) -> pd.Series:
    """Return the smaller number of each type, for the types of ``at_most``."""
    return np.minimum(n_by_type.reindex(at_most.index, fill_value=0), at_most)


def halves_of(cells: Cells, *, seed: int) -> tuple[Cells, Cells]:
    """Divide cells at random into two halves of the same types."""
    first = sample_by_type(cells, cells.n_by_type // 2, seed=seed)
    return cells[first], cells[np.setdiff1d(np.arange(len(cells)), first)]


def sample_at_most(cells: TypedCells, *, most: int, seed: int) -> Cells:
    """Draw ``most`` cells or fewer, by :func:`capped`."""
    return cells[sample_by_type(cells, capped(cells.n_by_type, most=most, fewest=MIN_CELLS_FOR_MEANS), seed=seed)]


def take_samples(cells: TypedCells, samples: list[np.ndarray]) -> list[Cells]:
    """Read several samples of cells, given by their indices, at once."""
    rows = np.unique(np.concatenate(samples))
    pool = cells[rows]
    return [pool[np.searchsorted(rows, sample)] for sample in samples]


@dataclass(frozen=True)
class StoredCells(TypedCells):
    """Cells in a file, whose counts are read, and checked, when they are needed.

    Attributes
    ----------
    adata
        All cells of the file, with counts on disk.
    rows
        Indices of the cells in the file.
    genes
        Names of the genes, in the order of the real cells.
    place
        Where raw counts are needed, for messages.
    """

    path: Path
    adata: AnnData
    rows: np.ndarray
    genes: pd.Index
    cell_type: np.ndarray
    batch: np.ndarray | None = None
    place: str = "X"

    @classmethod
    def from_anndata(cls, path: Path, adata: AnnData, rows: np.ndarray, genes: pd.Index) -> StoredCells:
        """Take types from ``obs['cell_type']``, and batches from ``obs['batch']``, if any."""
        obs = adata.obs.iloc[rows]
        return cls(path, adata, rows, genes, obs["cell_type"].to_numpy(dtype=str), batch_in(obs))

    def __getitem__(self, index: np.ndarray) -> Cells:
        rows = self.rows[index]
        parts = [self.counts(rows[start : start + BLOCK]) for start in range(0, max(len(rows), 1), BLOCK)]
        batch = None if self.batch is None else self.batch[index]
        return Cells(sparse.vstack(parts, format="csr"), self.cell_type[index], batch)

    def counts(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Read the counts of cells by their indices in the file."""
        return sparse.csr_matrix(checked(take_cells(self.adata, rows), self.path, self.place)[:, self.genes].X)

    def in_memory(self) -> Cells:
        """Read all cells."""
        return self[np.arange(len(self))]


def checked(adata: AnnData, path: Path, place: str = "X") -> AnnData:
    """Reject cells without raw counts, and return counts and ``obs`` alone."""
    if problem := first_fault(adata):
        raise InputError(f"{path} has {problem}; raw counts are needed in {place}.")
    return as_counts(adata)


@dataclass(frozen=True)
class RealCells:
    """Real cells: the cells that a model was fitted to (training and validation), and held-out test cells."""

    training: TypedCells
    test: TypedCells
    names: GeneNames

    @property
    def genes(self) -> pd.Index:
        """Names of the genes, as the data have them."""
        return self.names.index


def read_counts(path: Path, *, columns: tuple[str, ...]) -> AnnData:
    """Read counts, and check that they are raw counts and that ``obs`` has ``columns``."""
    return checked(with_columns(read_cells(path), columns, path), path)


def open_counts(path: Path, *, columns: tuple[str, ...]) -> AnnData:
    """Leave counts on disk, unchecked, where rows can be read from it; check that ``obs`` has ``columns``."""
    adata = with_columns(read_cells(path, on_disk=True), columns, path)
    adata.X = to_row_storage(adata.X)
    return adata


def with_columns(adata: AnnData, columns: tuple[str, ...], path: Path) -> AnnData:
    """Reject cells without one of ``columns`` in ``obs``."""
    for column in columns:
        if column not in adata.obs:
            raise InputError(f"{path} has no column {column!r} in obs; give a file that bdm wrote, or add it.")
    return adata


def check_genes(genes: pd.Index, expected: pd.Index, path: Path) -> None:
    """Reject cells of other genes than the real ones."""
    for problem, names in {
        "lacks": expected.difference(genes),
        "has, beyond the real cells,": genes.difference(expected),
        "repeats": genes[genes.duplicated()],
    }.items():
        if len(names):
            raise InputError(
                f"{path} {problem} the genes {subset_of_names(names)}; it needs the genes of the real cells."
            )


def check_number(n_cells: pd.Series, n_test: pd.Series, name: str) -> None:
    """Reject sets of too few cells to compare; warn about types with fewer cells than there are test cells."""
    n_matched = smaller_numbers(n_cells, n_test)
    one_type = len(n_cells.index.union(n_test.index)) == 1
    if (n_matched >= MIN_CELLS_FOR_MEANS).sum() < (1 if one_type else 2):
        problem = "there are not" if one_type else "fewer than two types have"
        raise InputError(
            f"{name} cannot be evaluated: {problem} {MIN_CELLS_FOR_MEANS} cells or more, in it and among the test "
            "cells; give more cells."
        )
    short = n_matched.index[n_matched < n_test]
    if len(short):
        logger.warning(
            "%s: there are fewer cells than test cells of %s, so fewer are compared.", name, subset_of_names(short)
        )


def subset_of_names(names: pd.Index) -> str:
    """List the first three names, and the number of the others."""
    return abbreviated(names, n_shown=3)
