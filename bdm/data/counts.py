"""Raw counts: finding and checking them, and limiting outliers."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError
from bdm._core.seeds import numpy_generator
from bdm.data.filters import capped
from bdm.data.matrix import Matrix, blocks_of_rows, take_rows, to_row_storage

logger = logging.getLogger(__name__)

MAX_COUNT = 2**24  # float32 represents all integers up to here

# Normalised values that were rounded leave gaps: many genes of a cell have the value 2, say, and none has 1. In 18 data
# sets, gaps are in at most 0.2% of the cells with raw or downsampled counts. After normalisation to the median library
# size or to 10,000, they are in 18% or more (3 and 10% with 33 genes); to fewer counts than most cells have, in few.
GAP_GENES = 10  # genes with a value whose predecessor no gene has
GAP_SHARE, MIN_GAP_CELLS = 0.05, 3  # share and number of the inspected cells with gaps in rounded values
MIN_INSPECTED = 500  # evenly chosen cells of each block, or all if it has fewer


def raw_counts(adata: AnnData, *, source: str = "auto") -> AnnData:
    """Find and check the raw counts, as :func:`find_counts`, and read them into memory.

    Returns integer counts in ``X`` (CSR, float32), with the ``obs`` and ``var`` of the slot that holds them.
    """
    return as_counts(find_counts(adata, source=source)[0])


def find_counts(adata: AnnData, *, source: str = "auto") -> tuple[AnnData, np.ndarray]:
    """Find the raw counts, and check them one block at a time.

    ``source`` is a layer, ``raw``, ``X``, or ``auto`` for the first of layer ``counts``, ``raw`` and ``X`` with raw
    counts. Returns the counts in ``X`` with the ``obs`` and ``var`` of their slot, and the number of genes detected in
    each cell.
    """
    slots = count_slots(adata)
    if source not in ("auto", *slots):
        raise InputError(f"there is no layer {source!r}; counts can be taken from {', '.join(slots) or 'nowhere'}.")
    if not adata.n_obs or not adata.n_vars:
        raise InputError(f"there are {adata.n_obs} cells and {adata.n_vars} genes; both are needed.")

    candidates = [slot for slot in ("counts", "raw", "X") if slot in slots] if source == "auto" else [source]
    faults = {}
    for name in candidates:
        cells = AnnData(to_row_storage(slots[name].X), obs=slots[name].obs, var=slots[name].var)
        faults[name], n_genes = inspect_counts(cells)
        if not faults[name]:
            if source == "auto" and len(slots) > 1:
                logger.info("Counts are taken from %s.", name)
            return cells, n_genes

    valid = [name for name in slots if name not in faults and not first_fault(slots[name])]
    remedy = f"give `counts={valid[0]!r}`" if valid else "raw counts are needed in X, raw or a layer"
    problems = "; ".join(f"{name} has {fault}" for name, fault in faults.items())
    raise InputError(f"no raw counts: {problems or 'X is empty'}; {remedy}.")


def count_slots(adata: AnnData) -> dict[str, AnnData]:
    """Return the matrices that may hold counts, by name: layers, ``raw`` and ``X``."""
    slots = {name: AnnData(layer, obs=adata.obs, var=adata.var) for name, layer in named_layers(adata).items()}
    if adata.raw is not None:
        slots["raw"] = AnnData(adata.raw.X, obs=adata.obs, var=adata.raw.var)
    if adata.X is not None:
        slots["X"] = AnnData(adata.X, obs=adata.obs, var=adata.var)
    return slots


def named_layers(adata: AnnData) -> dict[str, Matrix]:
    """Return the layers without ``X``, which anndata 0.13 lists as the layer None."""
    return {name: layer for name, layer in adata.layers.items() if name is not None}


def slot_or_auto(adata: AnnData, slot: str) -> str:
    """Return a slot of raw counts if the cells have it; ``auto`` otherwise."""
    return slot if slot in count_slots(adata) else "auto"


def first_fault(cells: AnnData) -> str | None:
    """Describe an invalid count, its gene and cell; None if all are valid."""
    return inspect_counts(AnnData(to_row_storage(cells.X), obs=cells.obs, var=cells.var))[0]


def inspect_counts(cells: AnnData) -> tuple[str | None, np.ndarray]:
    """Describe the first invalid count, and count the genes detected in each cell.

    Returns None if all counts are valid. After an invalid count, the numbers of genes are of no use.
    """
    n_genes = np.zeros(cells.n_obs, dtype=np.int64)
    n_inspected, gaps = 0, []
    if cells.X.dtype.kind not in "buif":
        return f"values of type {cells.X.dtype}, which are not counts", n_genes
    for rows, values in blocks_of_rows(cells.X):
        data, indptr = values.data, values.indptr
        is_count = (data >= 0) & (data <= MAX_COUNT) & (data == np.rint(data))
        if not is_count.all():
            row = np.searchsorted(indptr, is_count.argmin(), side="right") - 1
            position, reason = first_invalid(data[indptr[row] : indptr[row + 1]])
            gene = cells.var_names[values.indices[indptr[row] + position]]
            value = data[indptr[row] + position]
            digits = f"{value:g}"
            if value != np.rint(value) and float(digits).is_integer():
                digits = str(value)  # all digits, as the first six are a whole number
            return f"{digits} for gene {gene} in cell {cells.obs_names[rows][row]}, {reason}", n_genes
        counts = count_matrix(values)
        n_genes[rows] = np.diff(counts.indptr)
        sample = np.arange(0, counts.shape[0], max(counts.shape[0] // MIN_INSPECTED, 1))
        n_inspected += len(sample)
        gaps += [(cells.obs_names[rows][sample[row]], *gap) for row, *gap in gaps_of_cells(counts[sample])]
    if len(gaps) >= max(MIN_GAP_CELLS, GAP_SHARE * n_inspected):
        name, value, n_alike = gaps[0]
        return (
            f"gaps in {len(gaps)} of {n_inspected} cells, as in normalised data that were rounded: {n_alike} genes of "
            f"cell {name} have the value {value}, and none has {value - 1}"
        ), n_genes
    return None, n_genes


def gaps_of_cells(counts: sparse.csr_matrix) -> list[tuple[int, int, int]]:
    """List cells with a gap: the row, the value above the gap, and the number of genes with this value."""
    width = int(counts.data.max(initial=0)) + 1
    keys, n_genes = np.unique(cell_of_entries(counts) * width + counts.data.astype(np.int64), return_counts=True)
    cell, value = np.divmod(keys, width)
    is_gap = (n_genes >= GAP_GENES) & (value > 1) & (np.diff(keys, prepend=-2) > 1)
    _, first = np.unique(cell[is_gap], return_index=True)
    return list(zip(*(column[is_gap][first].tolist() for column in (cell, value, n_genes)), strict=True))


def first_invalid(values: np.ndarray) -> tuple[int, str]:
    """Return the position of an invalid count in a cell, and the reason."""
    scale = "log-normalised" if values.max(initial=0) < 20 else "normalised"
    invalid = {
        "which is not finite": ~np.isfinite(values),
        "which is negative, as in scaled data": values < 0,
        f"which is not whole, as in {scale} data": values != np.rint(values),
        f"which is above {MAX_COUNT:,}, the largest count that is represented exactly": values > MAX_COUNT,
    }
    return next((int(mask.argmax()), reason) for reason, mask in invalid.items() if mask.any())


def as_counts(cells: AnnData) -> AnnData:
    """Return cells in memory with counts (:func:`count_matrix`), ``obs`` and ``var``."""
    return AnnData(count_matrix(take_rows(cells.X, slice(None))), obs=cells.obs, var=cells.var)


def count_matrix(values: np.ndarray | sparse.csr_matrix) -> sparse.csr_matrix:
    """Copy counts to CSR (float32) with sorted indices and no stored zeros."""
    counts = sparse.csr_matrix(values, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


# ---- outliers

# An outlying count is far above all others of the gene in the cell type
FACTOR = 3  # minimum ratio to the largest regular count of the type, both relative to library size
MIN_COUNT = 10  # smaller counts are never outlying
SHARE = 0.01  # maximum share of a type's cells with outlying counts of a gene
MAX_GENES = 10  # outlying genes per cell; a cell with more is unusual, and stays as it is
MIN_CELLS = 20  # training cells per type; the counts of smaller types are not limited
MAX_CELLS = 2000  # training cells per type that define the limits
MAX_CELLS_IN_ALL = 20_000  # training cells of all types that define the limits


@dataclass(frozen=True)
class CountLimits:
    """Limits of counts per gene and cell type, as shares of library size."""

    regular: np.ndarray  # largest regular share, cell types x genes; infinite where counts are not limited
    unit: np.ndarray  # share of one count in a typical cell of each type; lower bound of regular shares
    code: np.ndarray  # index of the type of each cell to read

    def of_cells(self, cells: np.ndarray) -> "CountLimits":
        """Select the cells to read by a mask."""
        return replace(self, code=self.code[cells])

    def outlying(self, counts: sparse.csr_matrix, rows: slice) -> np.ndarray:
        """Return a mask of the outlying entries of ``counts`` (cells x genes)."""
        cell = cell_of_entries(counts)
        code = self.code[rows][cell]
        share = counts.data / library_sizes(counts)[cell]
        limit = FACTOR * np.maximum(self.regular[code, counts.indices], self.unit[code])
        is_outlying = (counts.data >= MIN_COUNT) & (share >= limit)
        return np.asarray(is_outlying & (np.bincount(cell[is_outlying], minlength=counts.shape[0]) <= MAX_GENES)[cell])

    def clipped(self, counts: sparse.csr_matrix, rows: slice) -> sparse.csr_matrix:
        """Lower outlying counts to the largest regular ones, at least 1.

        Regular shares apply to the cell's library size without outlying counts.
        """
        is_outlying = self.outlying(counts, rows)
        if not is_outlying.any():
            return counts
        cell = cell_of_entries(counts)[is_outlying]
        data = np.where(is_outlying, 0, counts.data)
        size = library_sizes(sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape))[cell]
        share = self.regular[self.code[rows][cell], counts.indices[is_outlying]]
        data[is_outlying] = np.maximum(np.rint(share * size), 1)
        return sparse.csr_matrix((data, counts.indices, counts.indptr), shape=counts.shape)


def cell_of_entries(counts: sparse.csr_matrix) -> np.ndarray:
    """Return the cell (row) of each entry."""
    return np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr))


def library_sizes(counts: sparse.csr_matrix) -> np.ndarray:
    """Sum the counts of each cell."""
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()


def count_limits(
    matrix: Matrix, rows: np.ndarray, cell_type: pd.Series, is_train: np.ndarray, *, seed: int
) -> tuple[CountLimits, sparse.csr_matrix, np.ndarray]:
    """Compute the limits of counts from training cells, or a sample of them.

    A count is outlying if it is at least 10, and at least three times the gene's largest regular count in the type,
    relative to library size. At most 1% of a type's cells may have one. Most are artefacts, such as molecules that were
    counted many times: a rare population would have high counts in more cells, or of many genes.

    Returns the limits, the counts of the cells that define them, and a mask of the outlying entries.
    """
    types = pd.Categorical(cell_type.astype(str))
    code, n_types = types.codes.astype(int), len(types.categories)
    training = [np.flatnonzero(is_train & (code == number)) for number in range(n_types)]  # by type
    n_cells = pd.Series([len(cells) if len(cells) >= MIN_CELLS else 0 for cells in training])
    n_sampled = capped(n_cells.clip(upper=MAX_CELLS), most=MAX_CELLS_IN_ALL, fewest=MIN_CELLS)
    chosen = [
        numpy_generator(seed, "limits", number).choice(cells, n, replace=False)
        for number, (cells, n) in enumerate(zip(training, n_sampled, strict=True))
    ]
    sampled = np.sort(np.concatenate(chosen))
    counts = take_rows(matrix, rows[sampled])
    regular, unit = np.full((n_types, matrix.shape[1]), np.inf), np.zeros(n_types)
    for number in np.flatnonzero(n_sampled):
        regular[number], unit[number] = regular_shares(counts[code[sampled] == number])
    limits = CountLimits(regular, unit, code)
    return limits, counts, limits.of_cells(sampled).outlying(counts, slice(None))


def regular_shares(counts: sparse.csr_matrix) -> tuple[np.ndarray, float]:
    """Return each gene's largest regular share, and the share of one count.

    If one of a gene's k largest shares is at least ``FACTOR`` times the next one, the share below this gap is the
    largest regular one.
    """
    size = library_sizes(counts)
    counts, size = counts[size > 0], size[size > 0]
    unit = float(1 / np.median(size))
    shares = sparse.diags(1 / size).dot(counts).tocsc()
    regular = np.asarray(shares.max(axis=0).todense()).ravel()
    genes = np.flatnonzero(np.asarray(counts.max(axis=0).todense()).ravel() >= MIN_COUNT)
    k = min(ceil(SHARE * len(size)), len(size) - 1)
    if len(genes):
        top = -np.sort(-np.partition(shares[:, genes].toarray(), -(k + 1), axis=0)[-(k + 1) :], axis=0)
        for next_largest, share in zip(top[1:], top[:-1], strict=True):
            is_gap = share >= FACTOR * np.maximum(next_largest, unit)
            regular[genes[is_gap]] = next_largest[is_gap]
    return regular, unit


# ---- counts of selected cells


@dataclass(frozen=True)
class CellCounts:
    """Counts of selected cells; each iteration reads them again in blocks."""

    matrix: Matrix  # counts, in memory or on disk, cells x genes
    rows: np.ndarray  # indices of the cells, in ascending order
    limits: CountLimits | None = None  # None if outlying counts stay as they are

    def of_cells(self, chosen: np.ndarray) -> "CellCounts":
        """Select cells by a mask."""
        limits = None if self.limits is None else self.limits.of_cells(chosen)
        return CellCounts(self.matrix, self.rows[chosen], limits)

    def __iter__(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        for rows, values in blocks_of_rows(self.matrix, self.rows):
            counts = count_matrix(values)
            yield rows, counts if self.limits is None else self.limits.clipped(counts, rows)
