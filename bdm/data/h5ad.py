"""Writing of .h5ad files with a checksum, at once or by rows."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from anndata import AnnData
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

from bdm.checksums import ChecksummedFile, checksummed_hdf5

# As fast to read as lzf is, at half its size
COMPRESSION = {"compression": "gzip", "compression_opts": 1, "shuffle": True}
ENTRIES = 2**16  # in a chunk of the file


@contextmanager
def new_h5ad(path: Path, adata: AnnData, **storage: Any) -> Iterator[h5py.File]:
    """Write cells into a new ``.h5ad`` file with a checksum, and yield the open file for further writing.

    Parameters
    ----------
    storage
        Arguments of h5py for arrays, such as ``compression``.
    """
    adata.strings_to_categoricals()
    with checksummed_hdf5(path) as file:
        write_elem(file, "/", adata, dataset_kwargs=storage)
        for name in ("X", "raw"):  # write_elem writes an empty element where they are absent; AnnData leaves it out
            if getattr(adata, name) is None and name in file:
                del file[name]
        yield file


def write_h5ad(path: Path, adata: AnnData) -> None:
    """Write cells in memory into an ``.h5ad`` file with a checksum."""
    with new_h5ad(path, adata, compression="gzip"):
        pass


@contextmanager
def appended_rows(
    file: h5py.Group,
    name: str,
    *,
    n_columns: int,
    max_entries: int,
    compression: Mapping[str, Any] = COMPRESSION,
) -> Iterator[Callable[[sparse.csr_matrix], None]]:
    """Yield a function that appends rows to a new matrix (CSR) in an ``.h5ad`` file.

    Parameters
    ----------
    max_entries
        Upper bound on the number of entries, which determines the type of the indices.
    compression
        Arguments of h5py for the entries.
    """
    empty: sparse.csr_matrix = sparse.csr_matrix(np.zeros((0, n_columns), dtype=np.float32))
    index = sparse.get_index_dtype(maxval=max(max_entries, n_columns))
    empty.indices, empty.indptr = empty.indices.astype(index), empty.indptr.astype(index)
    write_elem(file, name, empty, dataset_kwargs={"chunks": (ENTRIES,), **compression})
    # Kept open: each time a dataset is closed, its last chunk is compressed, and read again later
    opened = list(file[name].values())
    stored = sparse_dataset(file[name])

    def append(rows: sparse.csr_matrix) -> None:
        stored.append(rows)
        if isinstance(file, ChecksummedFile):
            file.disk.check()

    yield append
    del opened
