"""Cells that are evaluated: in memory or on disk, named by set, sampled by cell type, and compared in resamples."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_numeric_dtype
from scipy import sparse

from bdm._core.errors import InputError, abbreviated
from bdm._core.progress import progress
from bdm.data.counts import as_counts, first_fault
from bdm.data.filters import capped
from bdm.data.genes import GeneNames
from bdm.data.matrix import take_cells
from bdm.data.modalities import Modality, has_modalities, modalities_of

logger = logging.getLogger(__name__)

# Keys of sets of cells in tables
FLOOR = "floor"
GENERATED = "generated"  # by bdm, or by any other simulator
TRANSMUTED, UNCHANGED = "transmuted", "unchanged"  # after and before a transmutation
FILES = ("prepared", "test_cells", "model")  # whose checksums are recorded with those of sets
RESERVED_SET_NAMES = (GENERATED, TRANSMUTED, UNCHANGED, FLOOR, "test", "train", *FILES)
COORDINATES = ["umap_1", "umap_2"]  # columns of embeddings
MIN_CELLS_OF_TYPE = 2  # a single cell has no distance to others of its type
MIN_CELLS_FOR_MEANS = 5  # with two or three, scores are mostly noise that a mean over types would pass on
BLOCK = 20_000  # cells of a file that are checked at a time, which takes several times their memory


class TypedCells(ABC):
    """Cells of known types, in memory or on disk."""

    cell_type: np.ndarray
    covariates: pd.DataFrame | None

    def __len__(self) -> int:
        return len(self.cell_type)

    @abstractmethod
    def __getitem__(self, index: np.ndarray) -> Cells:
        """Read the cells with these indices."""

    @abstractmethod
    def of_modality(self, modality: Modality) -> TypedCells:
        """Take the features of a modality."""

    @cached_property
    def n_by_type(self) -> pd.Series:
        """Number of cells of each type, by name."""
        return pd.Series(self.cell_type, dtype=str).value_counts().sort_index()

    def types(self, *, fewest: int) -> list[str]:
        """Return the types of at least ``fewest`` cells."""
        return list(self.n_by_type.index[self.n_by_type >= fewest])


@dataclass(frozen=True)
class Cells(TypedCells):
    """Cells in memory."""

    counts: sparse.csr_matrix  # cells x genes
    cell_type: np.ndarray
    batch: np.ndarray | None = None  # None where it is not known
    population: np.ndarray | None = None  # None where populations are not compared
    covariates: pd.DataFrame | None = None  # values by cell and covariate; None where there are none
    modalities: tuple[Modality, ...] = ()  # none for RNA alone

    @classmethod
    def from_anndata(cls, adata: AnnData, covariates: Sequence[str] = ()) -> Cells:
        """Take counts from ``X``, and types, batches and covariates, if any, from ``obs``."""
        counts = sparse.csr_matrix(adata.X, dtype=np.float32)
        cell_type = adata.obs["cell_type"].to_numpy(dtype=str)
        values = covariates_in(adata.obs, covariates)
        return cls(counts, cell_type, batch_in(adata.obs), covariates=values, modalities=other_than_rna(adata.var))

    def __getitem__(self, index: np.ndarray) -> Cells:
        batch, population = (None if column is None else column[index] for column in (self.batch, self.population))
        covariates = rows_in(self.covariates, index)
        return Cells(self.counts[index], self.cell_type[index], batch, population, covariates, self.modalities)

    def of_modality(self, modality: Modality) -> Cells:
        """Take the features of a modality."""
        counts = self.counts[:, modality.features]
        alone = () if modality.normalised else (replace(modality, features=slice(0, counts.shape[1])),)
        return replace(self, counts=counts, modalities=alone)

    @cached_property
    def library_size(self) -> np.ndarray:
        """Sum of the counts of each cell."""
        return np.asarray(self.counts.sum(axis=1)).ravel()

    @property
    def has_size(self) -> bool:
        """Whether counts are shares of a library size, as those of proteins are not."""
        return all(modality.normalised for modality in self.modalities)

    @cached_property
    def by_modality(self) -> list[Cells]:
        """Cells of each modality."""
        return [self.of_modality(modality) for modality in self.modalities] if self.modalities else [self]

    @cached_property
    def n_detected(self) -> np.ndarray:
        """Number of genes with counts in each cell."""
        return self.counts.astype(bool).getnnz(axis=1)

    @cached_property
    def cp10k(self) -> sparse.csr_matrix:
        """Counts per 10,000 counts of the cell in the modality, zeros where it has none; of proteins, counts."""
        if len(self.modalities) > 1:
            return sparse.csr_matrix(sparse.hstack([part.cp10k for part in self.by_modality]))
        if not self.has_size:
            return self.counts
        return sparse.csr_matrix(sparse.diags(1e4 / np.maximum(self.library_size, 1)) @ self.counts)

    @cached_property
    def expression(self) -> sparse.csr_matrix:
        """``log1p(CP10k)``."""
        return self.cp10k.log1p()


def other_than_rna(var: pd.DataFrame) -> tuple[Modality, ...]:
    """Modalities of features; none for RNA alone."""
    return tuple(modalities_of(var)) if has_modalities(var) else ()


def batch_in(obs: pd.DataFrame) -> np.ndarray | None:
    """Batch of each cell; None if there is no such column."""
    return obs["batch"].to_numpy(dtype=str) if "batch" in obs else None


def covariates_in(obs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame | None:
    """Values of the covariates that ``obs`` has for all cells; None if there are none."""
    known = [name for name in names if name in obs and is_numeric_dtype(obs[name]) and obs[name].notna().all()]
    return obs[known].astype(float).reset_index(drop=True) if known else None


def rows_in(table: pd.DataFrame | None, index: np.ndarray) -> pd.DataFrame | None:
    """Take rows of a table, if there is one."""
    return None if table is None else table.iloc[index].reset_index(drop=True)


def sample_by_type(cells: TypedCells, n_by_type: pd.Series, *, seed: int) -> np.ndarray:
    """Draw rows of ``n_by_type`` cells of each type without replacement, as repeated cells would give a sample away."""
    shuffled = np.random.default_rng(seed).permutation(len(cells))
    number_within_type = pd.Series(cells.cell_type[shuffled]).groupby(cells.cell_type[shuffled]).cumcount()
    requested = n_by_type.reindex(cells.cell_type[shuffled], fill_value=0)
    return np.sort(shuffled[number_within_type.to_numpy() < requested.to_numpy()])


def match(query: Cells, test: Cells, *, seed: int) -> tuple[Cells, Cells]:
    """Draw from both, of each type, as many cells as the smaller of the two has."""
    n_by_type = smaller_numbers(query.n_by_type, test.n_by_type)
    query, test = (cells[sample_by_type(cells, n_by_type, seed=seed)] for cells in (query, test))
    return query, test


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
    """Cells in a file, whose counts are read, and checked, when they are needed."""

    path: Path
    adata: AnnData  # all cells of the file, with counts on disk
    rows: np.ndarray  # indices of the cells in the file
    genes: pd.Index  # names of the genes, in the order of the real cells
    cell_type: np.ndarray
    batch: np.ndarray | None = None
    place: str = "X"  # of raw counts, for messages
    covariates: pd.DataFrame | None = None

    @classmethod
    def from_anndata(
        cls,
        path: Path,
        adata: AnnData,
        rows: np.ndarray,
        genes: pd.Index,
        place: str = "X",
        covariates: Sequence[str] = (),
    ) -> StoredCells:
        """Take types, batches and covariates, if any, from ``obs``."""
        obs = adata.obs.iloc[rows]
        cell_type, found = obs["cell_type"].to_numpy(dtype=str), covariates_in(obs, covariates)
        return cls(path, adata, rows, genes, cell_type, batch_in(obs), place, found)

    def __getitem__(self, index: np.ndarray) -> Cells:
        rows, parts = self.rows[index], []
        for start in range(0, max(len(rows), 1), BLOCK):
            block = take_cells(self.adata, rows[start : start + BLOCK])
            parts.append(sparse.csr_matrix(checked(block, self.path, self.place)[:, self.genes].X))
        batch = None if self.batch is None else self.batch[index]
        counts, covariates = sparse.vstack(parts, format="csr"), rows_in(self.covariates, index)
        modalities = other_than_rna(self.adata.var.loc[self.genes])
        return Cells(counts, self.cell_type[index], batch, covariates=covariates, modalities=modalities)

    def of_modality(self, modality: Modality) -> StoredCells:
        """Take the features of a modality."""
        return replace(self, genes=self.genes[modality.features])

    def in_memory(self) -> Cells:
        """Read all cells."""
        return self[np.arange(len(self))]


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

    def of_modality(self, modality: Modality) -> RealCells:
        """Take the features of a modality."""
        names = GeneNames(self.names.var.iloc[modality.features], self.names.column)
        return RealCells(self.training.of_modality(modality), self.test.of_modality(modality), names)


Populations = Callable[[Cells], np.ndarray | None]  # gives the population of each cell; None if it cannot be found


@dataclass(frozen=True, kw_only=True)
class SizeLimits:
    """Most cells that the steps of an evaluation take, so that memory and time hardly grow with the data."""

    compared: int = 20_000  # of a set, at a time
    resampled: int = (
        2_000  # test cells of all resamples together, from which on no other is drawn: AUCs are within 0.01
    )
    gene_auc: int = 10_000  # of a set, classified against test cells by all genes, which takes most memory
    by_tree: int = 5_000  # that each tree of a random forest is fitted to; each samples its cells anew
    pairs: int = 2_000_000_000  # of query and training cells; where there are more, fewer query cells are taken
    marking: int = 50_000  # test cells that choose marker genes and variable genes
    mapped: int = 4_000  # in the UMAP, of all sets together
    properties: int = 4_000  # of a set whose properties are compared


SIZE_LIMITS = SizeLimits()


@dataclass(frozen=True)
class ResampledCells:
    """Cells of one resample, in memory."""

    test: Cells
    query: dict[str, Cells]  # the floor and the generated sets: of each type as many as test cells, or all
    floor_rows: np.ndarray  # indices of the floor among training cells
    seed: int

    def of_modality(self, modality: Modality) -> ResampledCells:
        """Take the features of a modality."""
        query = {name: cells.of_modality(modality) for name, cells in self.query.items()}
        return replace(self, test=self.test.of_modality(modality), query=query)

    def with_populations(self, populations: Populations) -> ResampledCells:
        """Find the population of each cell."""

        def found(cells: Cells) -> Cells:
            return replace(cells, population=populations(cells))

        return replace(self, test=found(self.test), query={name: found(cells) for name, cells in self.query.items()})


def with_progress(resamples: Sequence[ResampledCells], *, doing: str) -> Iterator[tuple[ResampledCells, str, Cells]]:
    """Yield each set of query cells, with its resample and its name, and show the progress."""
    compared = [(resample, name, cells) for resample in resamples for name, cells in resample.query.items()]
    yield from progress(compared, total=len(compared), doing=doing, unit="comparison")


def resampled_cells(
    real: RealCells,
    generated: Mapping[str, TypedCells],
    seeds: list[int],
    *,
    max_cells_per_type: int,
    max_cells: int = SIZE_LIMITS.compared,
) -> list[ResampledCells]:
    """Draw a resample by each seed, and read each set once; the floor has at most half of the cells of a type."""
    n_test = numbers_to_compare(real.test, max_cells_per_type=max_cells_per_type, max_cells=max_cells)

    def rows(cells: TypedCells, available: pd.Series) -> list[np.ndarray]:
        numbers = smaller_numbers(available, n_test)
        return [sample_by_type(cells, numbers, seed=seed) for seed in seeds]

    floor_rows = rows(real.training, real.training.n_by_type // 2)
    query = {FLOOR: take_samples(real.training, floor_rows)}
    for name, cells in generated.items():
        query[name] = take_samples(cells, rows(cells, cells.n_by_type))
    test = take_samples(real.test, rows(real.test, n_test))
    return [
        ResampledCells(test[i], {name: cells[i] for name, cells in query.items()}, floor_rows[i], seed)
        for i, seed in enumerate(seeds)
    ]


def numbers_to_compare(test: TypedCells, *, max_cells_per_type: int, max_cells: int) -> pd.Series:
    """Count the test cells of each type that are compared at a time; a type of one is left out, as it has no spread."""
    n_test = test.n_by_type[test.n_by_type >= MIN_CELLS_OF_TYPE].clip(upper=max_cells_per_type)
    return capped(n_test, most=max_cells, fewest=MIN_CELLS_FOR_MEANS)


# ---- checks


def checked(adata: AnnData, path: Path | str, place: str = "X") -> AnnData:
    """Reject cells without raw counts, and return counts and ``obs`` alone."""
    if problem := first_fault(adata):
        raise InputError(f"{path} has {problem}; raw counts are needed in {place}.")
    return as_counts(adata)


def check_genes(genes: pd.Index, expected: pd.Index, path: Path | str) -> None:
    """Reject cells of other genes than the real ones."""
    for problem, names in {
        "lacks": expected.difference(genes),
        "has, beyond the real cells,": genes.difference(expected),
        "repeats": genes[genes.duplicated()],
    }.items():
        if len(names):
            raise InputError(f"{path} {problem} the genes {abbreviated(names)}; it needs the genes of the real cells.")


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
            "%s: there are fewer cells than test cells of %s, so fewer are compared.", name, abbreviated(short)
        )
