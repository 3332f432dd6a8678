"""Labelled cells, in memory or on disk, as arrays of counts and cell types."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from anndata import AnnData
from pandas.api.types import is_numeric_dtype
from scipy import sparse

from bdm._core.errors import InputError, abbreviated
from bdm.data.counts import as_counts, first_fault
from bdm.data.genes import GeneNames
from bdm.data.matrix import take_cells
from bdm.data.modalities import Modality, has_modalities, modalities_of
from bdm.data.space import PREPARED, PositionKeys, position_table

logger = logging.getLogger(__name__)

# Keys of sets of cells in tables
FLOOR = "floor"
GENERATED = "generated"  # by bdm or any other simulator
TRANSMUTED, UNCHANGED = "transmuted", "unchanged"  # after and before a transmutation
FILES = ("prepared", "test_cells", "model")  # checksums are recorded under these keys, next to the sets
RESERVED_SET_NAMES = (GENERATED, TRANSMUTED, UNCHANGED, FLOOR, "test", "train", *FILES)
MIN_CELLS_OF_TYPE = 2  # one cell has no within-type distance
MIN_CELLS_FOR_MEANS = 5  # scores of fewer cells are too noisy to average over types
BLOCK = 20_000  # cells read and checked at a time; checks need several times their memory


class TypedCells(ABC):
    """Base class of labelled cells, in memory or on disk."""

    cell_type: np.ndarray  # of each cell
    batch: np.ndarray | None  # None if unknown
    donor: np.ndarray | None  # None if unknown
    covariates: pd.DataFrame | None  # cells x covariates
    positions: pd.DataFrame | None  # see :func:`bdm.data.space.position_table`

    def __len__(self) -> int:
        return len(self.cell_type)

    @abstractmethod
    def __getitem__(self, index: np.ndarray) -> Cells:
        """Read the cells at the given indices."""

    @abstractmethod
    def of_modality(self, modality: Modality) -> TypedCells:
        """Select the features of a modality."""

    @cached_property
    def n_by_type(self) -> pd.Series:
        """Number of cells per type, sorted by name."""
        return pd.Series(self.cell_type, dtype=str).value_counts().sort_index()

    def types(self, *, fewest: int) -> list[str]:
        """Return the types with at least ``fewest`` cells."""
        return list(self.n_by_type.index[self.n_by_type >= fewest])


@dataclass(frozen=True)
class Cells(TypedCells):
    """Cells in memory."""

    counts: sparse.csr_matrix  # cells x genes
    cell_type: np.ndarray
    batch: np.ndarray | None = None  # None if unknown
    population: np.ndarray | None = None  # None unless sub-populations are compared
    covariates: pd.DataFrame | None = None  # cells x covariates; None if there are none
    modalities: tuple[Modality, ...] = ()  # empty for RNA alone
    positions: pd.DataFrame | None = None  # see :func:`bdm.data.space.position_table`
    donor: np.ndarray | None = None  # None if unknown

    @classmethod
    def from_anndata(cls, adata: AnnData, covariates: Sequence[str] = ()) -> Cells:
        """Read counts from ``X``, any positions from ``obsm``, types and other columns from ``obs``."""
        counts = sparse.csr_matrix(adata.X, dtype=np.float32)
        cell_type, batch, donor = adata.obs["cell_type"].to_numpy(dtype=str), *read_groups(adata.obs)
        values, modalities = covariates_in(adata.obs, covariates), modalities_if_several(adata.var)
        return cls(counts, cell_type, batch, None, values, modalities, position_table(adata), donor)

    def __getitem__(self, index: np.ndarray) -> Cells:
        columns = (self.batch, self.population, self.donor)
        batch, population, donor = (None if column is None else column[index] for column in columns)
        covariates, positions = select_rows(self.covariates, index), select_rows(self.positions, index)
        counts, cell_type = self.counts[index], self.cell_type[index]
        return Cells(counts, cell_type, batch, population, covariates, self.modalities, positions, donor)

    def of_modality(self, modality: Modality) -> Cells:
        """Select the features of a modality."""
        counts = self.counts[:, modality.features]
        # A normalised modality alone is treated as RNA alone
        modalities = () if modality.normalised else (replace(modality, features=slice(0, counts.shape[1])),)
        return replace(self, counts=counts, modalities=modalities)

    @cached_property
    def library_size(self) -> np.ndarray:
        """Total counts per cell."""
        return np.asarray(self.counts.sum(axis=1)).ravel()

    @property
    def has_size(self) -> bool:
        """Whether counts depend on library size; counts of proteins do not."""
        return all(modality.normalised for modality in self.modalities)

    @cached_property
    def by_modality(self) -> list[Cells]:
        """Cells, once per modality, each with its features only."""
        return [self.of_modality(modality) for modality in self.modalities] if self.modalities else [self]

    @cached_property
    def n_detected(self) -> np.ndarray:
        """Number of detected genes per cell."""
        return self.counts.astype(bool).getnnz(axis=1)

    @cached_property
    def cp10k(self) -> sparse.csr_matrix:
        """Counts per 10,000 in each modality, cells x genes.

        Counts of proteins are not normalised. Empty cells stay zero.
        """
        if len(self.modalities) > 1:
            return sparse.csr_matrix(sparse.hstack([part.cp10k for part in self.by_modality]))
        if not self.has_size:
            return self.counts
        return sparse.csr_matrix(sparse.diags(1e4 / np.maximum(self.library_size, 1)) @ self.counts)

    @cached_property
    def expression(self) -> sparse.csr_matrix:
        """``log1p(CP10k)``."""
        return self.cp10k.log1p()


@dataclass(frozen=True)
class StoredCells(TypedCells):
    """Cells in a file; counts are read and checked on demand."""

    path: Path
    adata: AnnData  # all cells of the file, backed
    rows: np.ndarray  # indices of these cells in the file
    genes: pd.Index  # in the order of the real cells
    cell_type: np.ndarray
    batch: np.ndarray | None = None  # None if unknown
    slot: str = "X"  # slot of the raw counts, for messages
    covariates: pd.DataFrame | None = None  # cells x covariates; None if there are none
    positions: pd.DataFrame | None = None  # see :func:`bdm.data.space.position_table`
    donor: np.ndarray | None = None  # None if unknown

    @classmethod
    def from_anndata(
        cls,
        path: Path,
        adata: AnnData,
        rows: np.ndarray,
        genes: pd.Index,
        slot: str = "X",
        covariates: Sequence[str] = (),
        position_keys: PositionKeys = PREPARED,
    ) -> StoredCells:
        """Read types and any batches, covariates and positions of the cells ``rows``."""
        obs, positions = adata.obs.iloc[rows], select_rows(position_table(adata, position_keys), rows)
        cell_type, values = obs["cell_type"].to_numpy(dtype=str), covariates_in(obs, covariates)
        batch, donor = read_groups(obs)
        return cls(path, adata, rows, genes, cell_type, batch, slot, values, positions, donor)

    def __getitem__(self, index: np.ndarray) -> Cells:
        rows, parts = self.rows[index], []
        for start in range(0, max(len(rows), 1), BLOCK):
            block = take_cells(self.adata, rows[start : start + BLOCK])
            parts.append(sparse.csr_matrix(checked_counts(block, self.path, self.slot)[:, self.genes].X))
        batch, donor = (None if column is None else column[index] for column in (self.batch, self.donor))
        covariates, positions = select_rows(self.covariates, index), select_rows(self.positions, index)
        counts, cell_type = sparse.vstack(parts, format="csr"), self.cell_type[index]
        modalities = modalities_if_several(self.adata.var.loc[self.genes])
        return Cells(counts, cell_type, batch, None, covariates, modalities, positions, donor)

    def of_modality(self, modality: Modality) -> StoredCells:
        """Select the features of a modality."""
        return replace(self, genes=self.genes[modality.features])

    def in_memory(self) -> Cells:
        """Read all cells into memory."""
        return self[np.arange(len(self))]


@dataclass(frozen=True)
class RealCells:
    """Real cells for an evaluation: training cells and held-out test cells.

    Training cells include the validation cells of the fit.
    """

    training: TypedCells
    test: TypedCells
    names: GeneNames
    position_keys: PositionKeys = PREPARED  # of the user's cells, and of cells that a model generates

    @property
    def genes(self) -> pd.Index:
        """Names of the genes, as in the data."""
        return self.names.index

    def of_modality(self, modality: Modality) -> RealCells:
        """Select the features of a modality."""
        names = GeneNames(self.names.var.iloc[modality.features], self.names.column)
        return RealCells(self.training.of_modality(modality), self.test.of_modality(modality), names)


Populations = Callable[[Cells], np.ndarray | None]  # assigns a population to each cell; None if it cannot


# ---- columns and samples of cells


def modalities_if_several(var: pd.DataFrame) -> tuple[Modality, ...]:
    """Return the modalities of the features; none for RNA alone."""
    return tuple(modalities_of(var)) if has_modalities(var) else ()


def read_groups(obs: pd.DataFrame) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return the batch and the donor of each cell; None without a column ``batch`` or ``donor``."""
    batch, donor = (obs[name].to_numpy(dtype=str) if name in obs else None for name in ("batch", "donor"))
    return batch, donor


def covariates_in(obs: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame | None:
    """Return the numeric covariates without missing values, or None if there are none."""
    known = [name for name in names if name in obs and is_numeric_dtype(obs[name]) and obs[name].notna().all()]
    return obs[known].astype(float).reset_index(drop=True) if known else None


def select_rows(table: pd.DataFrame | None, index: np.ndarray) -> pd.DataFrame | None:
    """Select rows of a table; None stays None."""
    return None if table is None else table.iloc[index].reset_index(drop=True)


def sample_by_type(cells: TypedCells, n_by_type: pd.Series, *, seed: int) -> np.ndarray:
    """Sample ``n_by_type`` cells of each type, and return their sorted indices."""
    return sample_by_label(cells.cell_type, n_by_type, seed=seed)


def sample_by_label(labels: np.ndarray, numbers: pd.Series, *, seed: int) -> np.ndarray:
    """Sample cells of each label, by ``numbers``, and return their sorted indices.

    Sampling is without replacement: duplicated cells would be easy to detect.
    """
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    number_within_label = pd.Series(labels[shuffled]).groupby(labels[shuffled]).cumcount()
    requested = numbers.reindex(labels[shuffled], fill_value=0)
    return np.sort(shuffled[number_within_label.to_numpy() < requested.to_numpy()])


def smaller_numbers(n_by_type: pd.Series, at_most: pd.Series) -> pd.Series:
    """Cap the number of cells of each type in ``at_most``."""
    return np.minimum(n_by_type.reindex(at_most.index, fill_value=0), at_most)


def split_in_halves(cells: Cells, *, seed: int) -> tuple[Cells, Cells]:
    """Split cells at random into two halves, stratified by type."""
    first = sample_by_type(cells, cells.n_by_type // 2, seed=seed)
    return cells[first], cells[np.setdiff1d(np.arange(len(cells)), first)]


# ---- checks


def checked_counts(adata: AnnData, path: Path | str, slot: str = "X") -> AnnData:
    """Check that cells have raw counts, and return only counts and ``obs``."""
    if problem := first_fault(adata):
        raise InputError(f"{path} has {problem}; raw counts are needed in {slot}.")
    return as_counts(adata)


def check_genes(genes: pd.Index, expected: pd.Index, path: Path | str) -> None:
    """Check that cells have exactly the genes of the real cells."""
    for problem, names in {
        "lacks": expected.difference(genes),
        "also has": genes.difference(expected),
        "repeats": genes[genes.duplicated()],
    }.items():
        if len(names):
            raise InputError(f"{path} {problem} the genes {abbreviated(names)}; it needs the genes of the real cells.")


def check_number(n_cells: pd.Series, n_test: pd.Series, name: str) -> None:
    """Check that a set has enough cells to compare.

    Warns about types with fewer cells than test cells.
    """
    n_matched = smaller_numbers(n_cells, n_test)
    one_type = len(n_cells.index.union(n_test.index)) == 1
    if (n_matched >= MIN_CELLS_FOR_MEANS).sum() < (1 if one_type else 2):
        types = "" if one_type else " in each of two types"
        raise InputError(
            f"{name} cannot be evaluated: it needs {MIN_CELLS_FOR_MEANS} cells and as many test cells{types}; "
            "give more cells."
        )
    short = n_matched.index[n_matched < n_test]
    if len(short):
        logger.warning("%s has fewer cells than test cells of %s, so fewer are compared.", name, abbreviated(short))
