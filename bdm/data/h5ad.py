"""Writing of .h5ad files, whole or by rows."""

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
ENTRIES = 2**16  # in a piece of the file


@contextmanager
def new_h5ad(path: Path, adata: AnnData, **how: Any) -> Iterator[h5py.File]:
    """Write cells into a new ``.h5ad`` file that knows its checksum, and let more be written to it.

    Parameters
    ----------
    how
        To store arrays: arguments of h5py, such as ``compression``.
    """
    adata.strings_to_categoricals()
    with checksummed_hdf5(path) as file:
        write_elem(file, "/", adata, dataset_kwargs=how)
        for name in ("X", "raw"):  # of which what is absent is written as nothing, and by AnnData itself left out
            if getattr(adata, name) is None and name in file:
                del file[name]
        yield file


def write_h5ad(path: Path, adata: AnnData) -> None:
    """Write cells that are in memory into an ``.h5ad`` file that knows its checksum."""
    with new_h5ad(path, adata, compression="gzip"):
        pass


@contextmanager
def appended_rows(
    file: h5py.Group,
    name: str,
    *,
    n_columns: int,
    n_most: int,
    how: Mapping[str, Any] = COMPRESSION,
) -> Iterator[Callable[[sparse.csr_matrix], None]]:
    """Write a matrix (CSR) into an ``.h5ad`` file, some rows at a time, by the function that this gives.

    Parameters
    ----------
    n_most
        Entries that there may be, which the type of the indices must be able to tell apart.
    how
        To compress the entries: arguments of h5py.
    """
    nothing = sparse.csr_matrix((0, n_columns), dtype=np.float32)
    index = sparse.get_index_dtype(maxval=max(n_most, n_columns))
    nothing.indices, nothing.indptr = nothing.indices.astype(index), nothing.indptr.astype(index)
    write_elem(file, name, nothing, dataset_kwargs={"chunks": (ENTRIES,), **how})
    # Left open, as a dataset's last piece is compressed, and read again, each time the dataset is closed
    opened = list(file[name].values())
    stored = sparse_dataset(file[name])

    def append(rows: sparse.csr_matrix) -> None:
        stored.append(rows)
        if isinstance(file, ChecksummedFile):
            file.disk.check()

    yield append
    del opened
