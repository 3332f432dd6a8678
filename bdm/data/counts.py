"""Raw counts: where an AnnData keeps them, whether they are raw, and reading them a block at a time."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from anndata import AnnData
from scipy import sparse

from bdm.data.matrix import Matrix, blocks_of_rows, to_row_storage
from bdm.data.outliers import CountLimits
from bdm.errors import InputError
from bdm.validation import slot_rejection

logger = logging.getLogger(__name__)

MAX_COUNT = 2**24  # float32 represents all integers up to here


def raw_counts(adata: AnnData, *, source: str = "auto") -> AnnData:
    """Find the raw counts and check them.

    Parameters
    ----------
    source
        As in :func:`find_counts`.

    Returns
    -------
    Cells x genes of that slot: integer counts in ``X`` (CSR, float32), its ``obs`` and ``var``, nothing else.

    Raises
    ------
    InputError
        As :func:`find_counts`.
    """
    return as_counts(find_counts(adata, source=source)[0])


def find_counts(adata: AnnData, *, source: str = "auto") -> tuple[AnnData, np.ndarray]:
    """Find the raw counts and check them, with one block of counts in memory at a time.

    Parameters
    ----------
    adata
        Cells with counts in ``X``, ``raw`` or a layer, in memory or on disk.
    source
        ``X``, ``raw``, the name of a layer, or ``auto`` for the first of layer ``counts``, ``raw`` and ``X``
        that holds counts.

    Returns
    -------
    Cells x genes of that slot, with its ``obs`` and ``var``, nothing else; and the number of genes with counts of each
    cell.

    Raises
    ------
    InputError
        If there is no such slot, or a value in it is negative, not finite, not whole or above 2^24.
    """
    slots = count_slots(adata)
    if sentence := slot_rejection(source, slots):
        raise InputError(sentence)
    if not adata.n_obs or not adata.n_vars:
        raise InputError(f"there are {adata.n_obs} cells and {adata.n_vars} genes; both are needed.")

    faults = {}
    for name in [slot for slot in ("counts", "raw", "X") if slot in slots] if source == "auto" else [source]:
        cells = AnnData(to_row_storage(slots[name].X), obs=slots[name].obs, var=slots[name].var)
        faults[name], n_genes = inspect_counts(cells)
        if not faults[name]:
            if source == "auto":
                logger.info("Counts are taken from %s.", name)
            return cells, n_genes

    others = [name for name in slots if name not in faults and not first_fault(slots[name])]
    remedy = f"give `counts={others[0]!r}`" if others else "raw counts are needed in X, raw or a layer"
    found = "; ".join(f"{name} has {fault}" for name, fault in faults.items())
    raise InputError(f"no raw counts: {found or 'X is empty'}; {remedy}.")


def count_slots(adata: AnnData) -> dict[str, AnnData]:
    """Matrices of cells x genes, by the name that ``source`` has for each."""
    layers = {name: layer for name, layer in adata.layers.items() if name is not None}  # anndata 0.13 lists X there
    slots = {name: AnnData(layer, obs=adata.obs, var=adata.var) for name, layer in layers.items()}
    if adata.raw is not None:
        slots["raw"] = AnnData(adata.raw.X, obs=adata.obs, var=adata.raw.var)
    if adata.X is not None:
        slots["X"] = AnnData(adata.X, obs=adata.obs, var=adata.var)
    return slots


def first_fault(cells: AnnData) -> str | None:
    """Describe the first value that is not a raw count, with its gene and cell; None if all are."""
    return inspect_counts(AnnData(to_row_storage(cells.X), obs=cells.obs, var=cells.var))[0]


def inspect_counts(cells: AnnData) -> tuple[str | None, np.ndarray]:
    """Return the :func:`first_fault`, and the number of genes with counts of each cell before it."""
    n_genes = np.zeros(cells.n_obs, dtype=np.int64)
    if cells.X.dtype.kind not in "buif":
        return f"values of type {cells.X.dtype}, which are not counts", n_genes
    for rows, values in blocks_of_rows(cells.X):
        data, indptr = values.data, values.indptr
        is_count = (data >= 0) & (data <= MAX_COUNT) & (data == np.rint(data))
        if not is_count.all():
            row = np.searchsorted(indptr, is_count.argmin(), side="right") - 1
            place, reason = first_invalid(data[indptr[row] : indptr[row + 1]])
            gene = cells.var_names[values.indices[indptr[row] + place]]
            value = data[indptr[row] + place]
            return f"{value:g} for gene {gene} in cell {cells.obs_names[rows][row]}, {reason}", n_genes
        n_genes[rows] = np.diff(count_matrix(values).indptr)
    return None, n_genes


def first_invalid(values: np.ndarray) -> tuple[int, str]:
    """Position of the first of a cell's values that is not a count, and the reason."""
    scale = "log-normalised" if values.max(initial=0) < 20 else "normalised"
    invalid = {
        "which is not finite": ~np.isfinite(values),
        "which is negative, as in scaled data": values < 0,
        f"which is not whole, as in {scale} data": values != np.rint(values),
        f"which is above {MAX_COUNT:,}, the largest count that is represented exactly": values > MAX_COUNT,
    }
    return next((int(where.argmax()), reason) for reason, where in invalid.items() if where.any())


def as_counts(cells: AnnData) -> AnnData:
    """Return cells in memory with their counts as :func:`count_matrix`, their ``obs`` and ``var``, and nothing else."""
    return AnnData(count_matrix(cells.X), obs=cells.obs, var=cells.var)


def count_matrix(values: np.ndarray | sparse.csr_matrix) -> sparse.csr_matrix:
    """Copy counts to CSR, float32, with nonzeros only, in order."""
    counts = sparse.csr_matrix(values, dtype=np.float32, copy=True)
    counts.sum_duplicates()
    counts.eliminate_zeros()
    return counts


@dataclass(frozen=True)
class CellCounts:
    """Counts of a subset of cells; each iteration reads them again, block by block.

    Attributes
    ----------
    matrix
        Counts, in memory or on disk, cells x genes.
    rows
        Indices of the cells, in ascending order.
    limits
        Limits of the counts of these cells, if they are to be lowered.
    """

    matrix: Matrix
    rows: np.ndarray
    limits: CountLimits | None = None

    def of_cells(self, chosen: np.ndarray) -> "CellCounts":
        """Choose some of the cells, by a mask."""
        limits = None if self.limits is None else self.limits.of_cells(chosen)
        return CellCounts(self.matrix, self.rows[chosen], limits)

    def __iter__(self) -> Iterator[tuple[slice, sparse.csr_matrix]]:
        for rows, values in blocks_of_rows(self.matrix, self.rows):
            counts = count_matrix(values)
            yield rows, counts if self.limits is None else self.limits.clipped(counts, rows)
