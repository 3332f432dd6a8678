"""Count matrices in memory and on disk, read and written by blocks of rows."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import anndata as ad
import h5py
import numpy as np
import zarr
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from bdm._core.errors import InputError, UnreadableError
from bdm._core.files import checksummed_hdf5, require_space

logger = logging.getLogger(__name__)

ON_DISK = (CSRDataset, h5py.Dataset, zarr.Array)
Matrix: TypeAlias = np.ndarray | sparse.csr_matrix | CSRDataset | h5py.Dataset | zarr.Array[Any]
SparseMatrix: TypeAlias = sparse.csr_matrix | sparse.csc_matrix | sparse.csr_array | sparse.csc_array

BLOCK = 2**22  # entries in memory at a time
GAP = 2**18  # entries; rows with fewer entries between them are read together, which is faster


def to_row_storage(matrix: Matrix | sparse.csc_matrix | CSCDataset) -> Matrix:
    """Convert CSC to CSR in memory; return other matrices unchanged."""
    if isinstance(matrix, CSCDataset):
        with reject_if_unreadable(path_of(matrix)):
            size = sum(matrix.group[name].size * matrix.group[name].dtype.itemsize for name in ("data", "indices"))
            logger.warning("%s is stored by genes, so all of it is read: %d MB.", path_of(matrix), size // 10**6)
            loaded: sparse.csc_matrix = matrix.to_memory()
            loaded.check_format()  # a damaged matrix could end the process
            return loaded.tocsr()
    return matrix.tocsr() if isinstance(matrix, SparseMatrix) else matrix


def blocks_of_rows(matrix: Matrix, rows: np.ndarray | None = None) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Yield blocks of ``rows`` (ascending indices; by default, all): a slice, and its values."""
    rows = np.arange(matrix.shape[0]) if rows is None else rows
    start, offsets = 0, row_offsets(matrix)
    is_far = offsets[rows[1:]] - offsets[rows[:-1] + 1] > GAP
    is_full = np.diff(offsets[rows] // BLOCK) > 0
    for run in np.split(rows, np.flatnonzero(is_far | is_full) + 1) if len(rows) else ():
        block = read_rows(matrix, slice(run[0], run[-1] + 1))
        yield slice(start, start + len(run)), block if block.shape[0] == len(run) else block[run - run[0]]
        start += len(run)


def take_rows(matrix: Matrix, rows: np.ndarray | slice, columns: np.ndarray | None = None) -> sparse.csr_matrix:
    """Return rows of a matrix by indices, mask or slice; all columns by default."""
    if columns is not None and np.array_equal(columns, np.arange(matrix.shape[1])):
        columns = None
    if not isinstance(matrix, ON_DISK):
        chosen = matrix[rows] if columns is None else matrix[rows][:, columns]
        return sparse.csr_matrix(without_float16(chosen))
    unique, place = np.unique(np.arange(matrix.shape[0])[rows], return_inverse=True)
    if not len(unique):
        n_columns = matrix.shape[1] if columns is None else len(columns)
        return sparse.csr_matrix(without_float16(np.empty((0, n_columns), dtype=matrix.dtype)))
    blocks = (block for _, block in blocks_of_rows(matrix, unique))
    values = sparse.vstack([block if columns is None else block[:, columns] for block in blocks], format="csr")
    return values if np.array_equal(place, np.arange(len(unique))) else sparse.csr_matrix(values[place])


def take_cells(adata: AnnData, rows: np.ndarray, columns: np.ndarray | None = None) -> AnnData:
    """Return cells and features by indices, with only ``X``, ``obs`` and ``var``."""
    var = adata.var if columns is None else adata.var.iloc[columns]
    return AnnData(take_rows(adata.X, rows, columns), obs=adata.obs.iloc[rows].copy(), var=var)


def row_offsets(matrix: Matrix) -> np.ndarray:
    """Return the number of entries before each row, then the total (``indptr``)."""
    if isinstance(matrix, CSRDataset):
        with reject_if_unreadable(path_of(matrix)):
            offsets: np.ndarray = matrix.group["indptr"][:].astype(np.int64)
            if len(offsets) != matrix.shape[0] + 1 or (np.diff(offsets, append=matrix.group["data"].size) < 0).any():
                raise ValueError("the offsets of its rows are not in order")
            return offsets
    if isinstance(matrix, sparse.csr_matrix | sparse.csr_array):
        return matrix.indptr.astype(np.int64)
    return np.arange(matrix.shape[0] + 1) * matrix.shape[1]


def read_rows(matrix: Matrix, rows: slice) -> sparse.csr_matrix:
    """Return a slice of rows of a matrix in memory or on disk."""
    if not isinstance(matrix, ON_DISK):
        return sparse.csr_matrix(without_float16(matrix[rows]))
    with reject_if_unreadable(path_of(matrix)):
        values = sparse.csr_matrix(without_float16(matrix[rows]))
        values.check_format()  # a damaged matrix could end the process later
        return values


def without_float16(values: Any) -> Any:
    """Convert float16, unsupported by sparse matrices in scipy, to float32."""
    return values.astype(np.float32) if values.dtype == np.float16 else values


def path_of(matrix: Matrix) -> Path:
    """Return the file or folder of a matrix on disk."""
    stored: Any = matrix.group if isinstance(matrix, CSRDataset | CSCDataset) else matrix
    return Path(stored.store.root if hasattr(stored, "store") else stored.file.filename)


@contextmanager
def reject_if_unreadable(path: Path) -> Iterator[None]:
    """Convert errors while reading ``path`` to UnreadableErrors; InputErrors stay."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise UnreadableError(
            f"{path} cannot be read ({reason or type(error).__name__}); is it damaged, or misnamed?"
        ) from error


# ---- writing

# As fast to read as lzf, at half the size
COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
ENTRIES = 2**16  # entries per chunk of the file


@contextmanager
def new_h5ad(path: Path, adata: AnnData, **storage: Any) -> Iterator[h5py.File]:
    """Write cells to a new ``.h5ad`` file with a checksum; yield it open."""
    adata.strings_to_categoricals()
    require_space(path, adata.__sizeof__())
    with checksummed_hdf5(path) as file, plain_strings():
        write_elem(file, "/", adata, dataset_kwargs=storage)
        for name in ("X", "raw"):  # write_elem writes empty elements if these are absent; AnnData omits them
            if getattr(adata, name) is None and name in file:
                del file[name]
        yield file


def write_h5ad(path: Path, adata: AnnData) -> None:
    """Write cells in memory to an ``.h5ad`` file with a checksum."""
    with new_h5ad(path, adata, compression="gzip"):
        pass


@contextmanager
def plain_strings() -> Iterator[None]:
    """Have anndata write strings without a mask, for older readers.

    Masks were introduced by anndata 0.11, and are read by anndataR 1.4.
    """
    with ad.settings.override(allow_write_nullable_strings=False):
        yield


@contextmanager
def appended_rows(
    file: h5py.File,
    name: str,
    *,
    n_columns: int,
    max_entries: int,
    compression: Mapping[str, Any] = COMPRESSION,
) -> Iterator[Callable[[sparse.csr_matrix], None]]:
    """Create a CSR matrix, and yield a function that appends rows."""
    empty: sparse.csr_matrix = sparse.csr_matrix(np.zeros((0, n_columns), dtype=np.float32))
    index = sparse.get_index_dtype(maxval=max(max_entries, n_columns))
    empty.indices, empty.indptr = empty.indices.astype(index), empty.indptr.astype(index)
    write_elem(file, name, empty, dataset_kwargs={"chunks": (ENTRIES,), **compression})
    # Keep the datasets open: closing one compresses its last chunk, and the next append reads it again
    opened = list(file[name].values())
    stored = sparse_dataset(file[name])

    def append(rows: sparse.csr_matrix) -> None:
        require_space(Path(file.filename), rows.data.nbytes + rows.indices.nbytes)
        stored.append(rows)

    yield append
    del opened
