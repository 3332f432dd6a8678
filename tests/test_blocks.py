import logging
import re

import anndata
import h5py
import numpy as np
import pytest
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError
from bdm.data import matrix as rows_module
from bdm.data.matrix import blocks_of_rows, take_rows, to_row_storage
from bdm.data.prepare import prepare, read_prepared
from bdm.data.read import read_cells
from bdm.settings import PrepareSettings

MATRIX = sparse.random(97, 31, density=0.2, format="csr", random_state=0, dtype=np.float32)
MATRIX[40:60] = 0
MATRIX.eliminate_zeros()

SOURCES = {
    "memory": lambda cells, folder: cells,
    "dense in memory": lambda cells, folder: AnnData(cells.X.toarray()),
    "sparse": lambda cells, folder: on_disk(cells, folder / "cells.h5ad"),
    "dense": lambda cells, folder: on_disk(AnnData(cells.X.toarray()), folder / "cells.h5ad"),
    "zarr": lambda cells, folder: on_disk(cells, folder / "cells.zarr"),
    "dense zarr": lambda cells, folder: on_disk(AnnData(cells.X.toarray()), folder / "cells.zarr"),
    "by genes": lambda cells, folder: on_disk(AnnData(cells.X.tocsc()), folder / "cells.h5ad"),
}


def on_disk(cells, path) -> AnnData:
    (cells.write_zarr if path.suffix == ".zarr" else cells.write_h5ad)(path)
    return read_cells(path, on_disk=True)


def assert_same(found, expected):
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found, part), getattr(expected, part), strict=True)
    assert found.shape == expected.shape


@pytest.fixture(params=SOURCES)
def matrix(request, tmp_path):
    return to_row_storage(SOURCES[request.param](AnnData(MATRIX.copy()), tmp_path).X)


@pytest.fixture(params=[(1, 0), (50, 7), (2**22, 2**14)])
def sizes(request, monkeypatch):
    monkeypatch.setattr(rows_module, "BLOCK", request.param[0])
    monkeypatch.setattr(rows_module, "GAP", request.param[1])


pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2")


ROWS = (
    np.arange(97),
    np.array([96, 3, 3, 50, 4, 0, 96]),
    np.array([2, 3, 41, 42, 90]),
    np.array([], dtype=int),
    np.array([-1, 5]),
    np.arange(97) % 3 == 0,
    slice(5, 80, 4),
)


@pytest.mark.usefixtures("sizes")
def test_rows_and_blocks_are_those_in_memory(matrix):
    for rows in ROWS:
        assert_same(take_rows(matrix, rows), MATRIX[rows])
    rows, parts = zip(*blocks_of_rows(matrix), strict=True)
    assert [row for block in rows for row in range(block.start, block.stop)] == list(range(97))
    assert_same(sparse.vstack(parts, format="csr"), MATRIX)


def test_what_is_stored_by_genes_is_read_whole_with_a_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        to_row_storage(SOURCES["by genes"](AnnData(MATRIX.copy()), tmp_path).X)
    assert re.search("by genes, .* 0 MB", caplog.text)


@pytest.mark.usefixtures("sizes")
def test_prepared_cells_stay_on_disk(example_cells, tmp_path):
    prepare(
        example_cells, PrepareSettings(label_key="bulk_labels", n_genes=50, keep_genes="none", test=0.2)
    ).write_h5ad(tmp_path / "prepared.h5ad")
    stored, held = (read_prepared(tmp_path / "prepared.h5ad", on_disk=how) for how in (True, False))
    assert isinstance(stored.X, anndata.abc.CSRDataset)
    assert stored.uns["bdm"] == held.uns["bdm"]
    assert stored.obs.equals(held.obs)
    assert stored.var.equals(held.var)
    rows = np.array([300, 2, 40])
    assert_same(stored.X[rows], held.X[rows])
    assert_same(stored[rows].X, held[rows].X)
    assert_same(take_rows(stored.X, rows), held.X[rows])


@pytest.mark.parametrize("part", ["data", "indices"])
def test_damage_shows_where_it_is_read(tmp_path, part):
    path = tmp_path / "cells.h5ad"
    AnnData(MATRIX.copy()).write_h5ad(path, compression="gzip")
    matrix = read_cells(path, on_disk=True).X
    place, size = (getattr(matrix.group[part].id.get_chunk_info(0), name) for name in ("byte_offset", "size"))
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(size))
    with pytest.raises(InputError, match=r"cells\.h5ad cannot be read \(.*\)") as refusal:
        list(blocks_of_rows(read_cells(path, on_disk=True).X))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("part", "spoil", "reason"),
    [
        ("indptr", lambda values: values[::-1], "its rows are not in order"),
        ("indptr", lambda values: values[:-1], "its rows are not in order"),
        ("indptr", lambda values: values * 2, "its rows are not in order"),
        ("indices", lambda values: values + 31, "indices must be < 31"),
        ("indices", lambda values: values[:-5], "same size"),
    ],
)
def test_parts_that_do_not_fit(tmp_path, part, spoil, reason):
    path = tmp_path / "cells.h5ad"
    AnnData(MATRIX.copy()).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        values = file["X"][part][:]
        del file["X"][part]
        file["X"][part] = spoil(values)
    with pytest.raises(InputError, match=rf"cells\.h5ad cannot be read \(.*{reason}"):
        list(blocks_of_rows(read_cells(path, on_disk=True).X))


def test_no_rows_of_numbers_of_16_bits(tmp_path):
    with h5py.File(tmp_path / "matrix.h5", "w") as file:
        file["X"] = np.ones((3, 2), dtype=np.float16)
        none = take_rows(file["X"], np.zeros(3, dtype=bool))
    assert none.shape == (0, 2)
    assert none.dtype == np.float32
