"""Matrices of counts in memory and on disk, read by rows, a block at a time."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from bdm.errors import InputError

logger = logging.getLogger(__name__)


class UnreadableError(InputError):
    """A file that cannot be read, named in the message."""


ON_DISK = (CSRDataset, h5py.Dataset, zarr.Array)
Matrix = np.ndarray | sparse.csr_matrix | CSRDataset | h5py.Dataset | zarr.Array

BLOCK = 2**22  # entries in memory at a time
GAP = 2**14  # entries that are rather read along than left out by reading anew behind them


def to_row_storage(matrix: Matrix | sparse.csc_matrix | CSCDataset) -> Matrix:
    """Bring a matrix that is stored by columns, of which rows cannot be read, into memory and order."""
    if isinstance(matrix, CSCDataset):
        with reject_if_unreadable(path_of(matrix)):
            size = sum(matrix.group[name].size * matrix.group[name].dtype.itemsize for name in ("data", "indices"))
            logger.warning("%s is stored by genes, and so is read whole: %d MB.", path_of(matrix), size // 10**6)
            found = matrix.to_memory()
            found.check_format()  # what is damaged could end the process
            return found.tocsr()
    return matrix.tocsr() if sparse.issparse(matrix) else matrix


def blocks_of_rows(matrix: Matrix, rows: np.ndarray | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Read rows of a matrix, in memory or on disk, some at a time.

    Parameters
    ----------
    rows
        Indices of the rows to read, in ascending order; all by default.

    Yields
    ------
    Which of ``rows``, and what is in them.
    """
    rows = np.arange(matrix.shape[0]) if rows is None else rows
    before = row_offsets(matrix)
    read, start = row_reader(matrix, before), 0
    for run in adjacent_runs(rows, before):
        block = read(slice(run[0], run[-1] + 1))
        yield slice(start, start + len(run)), block if block.shape[0] == len(run) else block[run - run[0]]
        start += len(run)


def take_rows(matrix: Matrix, rows: np.ndarray | slice) -> sparse.csr_matrix:
    """Take rows of a matrix, in memory or on disk.

    On disk, rows that are near each other are read together, so that many cost no more than all of the file, read once.

    Parameters
    ----------
    rows
        Indices in any order, maybe repeated; a mask or a slice.
    """
    if not isinstance(matrix, ON_DISK):
        return sparse.csr_matrix(without_float16(matrix[rows]))
    wanted, place = np.unique(np.arange(matrix.shape[0])[rows], return_inverse=True)
    if not len(wanted):
        return sparse.csr_matrix((0, matrix.shape[1]), dtype=matrix.dtype)
    found = sparse.vstack([block for _, block in blocks_of_rows(matrix, wanted)], format="csr")
    return found if np.array_equal(place, np.arange(len(wanted))) else found[place]


def take_cells(adata: AnnData, rows: np.ndarray) -> AnnData:
    """Take cells with their ``obs`` and ``var``, and nothing else, as :func:`take_rows` takes counts."""
    return AnnData(take_rows(adata.X, rows), obs=adata.obs.iloc[rows].copy(), var=adata.var)


def adjacent_runs(rows: np.ndarray, before: np.ndarray) -> Iterator[np.ndarray]:
    """Divide rows in order into such as are read together: near each other, and not too many entries."""
    if len(rows):
        is_far = before[rows[1:]] - before[rows[:-1] + 1] > GAP
        is_full = np.diff(before[rows] // BLOCK) > 0
        yield from np.split(rows, np.flatnonzero(is_far | is_full) + 1)


def row_offsets(matrix: Matrix) -> np.ndarray:
    """Count the entries stored before each row, and all."""
    if isinstance(matrix, CSRDataset):
        with reject_if_unreadable(path_of(matrix)):
            before = matrix.group["indptr"][:].astype(np.int64)
            if len(before) != matrix.shape[0] + 1 or (np.diff(before, append=matrix.group["data"].size) < 0).any():
                raise ValueError("its rows do not follow each other")
            return before
    if sparse.issparse(matrix):
        return matrix.indptr.astype(np.int64)
    return np.arange(matrix.shape[0] + 1) * matrix.shape[1]


def row_reader(matrix: Matrix, before: np.ndarray) -> Callable[[slice], sparse.csr_matrix]:
    """Give a function that brings some rows into memory; ``before`` are the entries before each row."""

    def safe() -> AbstractContextManager:
        return reject_if_unreadable(path_of(matrix)) if isinstance(matrix, ON_DISK) else nullcontext()

    with safe():
        source = StoredRows.of(matrix, before) if isinstance(matrix, CSRDataset) else matrix

    def read(rows: slice) -> sparse.csr_matrix:
        with safe():
            return sparse.csr_matrix(without_float16(source[rows]))

    return read


def without_float16(values: np.ndarray | sparse.spmatrix) -> np.ndarray | sparse.spmatrix:
    """Turn numbers of 16 bits, of which scipy makes no sparse matrices, into such of 32."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


@dataclass(frozen=True)
class StoredRows:
    """Rows of a sparse matrix on disk, read without the cost of anndata's way, which grows with the rows of the file.

    Attributes
    ----------
    data, indices
        Kept open, or each access would look for them anew.
    before
        Entries before each row.
    """

    data: h5py.Dataset | zarr.Array
    indices: h5py.Dataset | zarr.Array
    before: np.ndarray
    n_columns: int

    @classmethod
    def of(cls, matrix: CSRDataset, before: np.ndarray) -> "StoredRows":
        """Open the parts of ``matrix``."""
        return cls(matrix.group["data"], matrix.group["indices"], before, matrix.shape[1])

    def __getitem__(self, rows: slice) -> sparse.csr_matrix:
        entries = slice(self.before[rows.start], self.before[rows.stop])
        indptr = self.before[rows.start : rows.stop + 1] - self.before[rows.start]
        shape = (rows.stop - rows.start, self.n_columns)
        found = sparse.csr_matrix((without_float16(self.data[entries]), self.indices[entries], indptr), shape=shape)
        found.check_format()  # what is damaged could end the process later
        return found


def path_of(matrix: Matrix) -> Path:
    """Tell the file, or the folder, of a matrix on disk."""
    stored = matrix.group if isinstance(matrix, CSRDataset | CSCDataset) else matrix
    return Path(stored.store.root if hasattr(stored, "store") else stored.file.filename)


@contextmanager
def reject_if_unreadable(path: Path) -> Iterator[None]:
    """Turn whatever the libraries of file formats happen to raise on damage to ``path`` into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UnreadableError(
            f"{path} cannot be read ({reason or type(error).__name__}); is it damaged, or misnamed?"
        ) from error
