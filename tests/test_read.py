import gzip
import logging
import re
import sys
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import io, sparse

from bdm._core.errors import InputError
from bdm.data.read import read_cells

GENE_IDS = ["ENSG1", "ENSG2", "ENSG3"]
SYMBOLS = ["CD3D", "MATR3", "MATR3"]
BARCODES = ["AAA-1", "CCC-1"]
COUNTS = np.array([[1, 0, 3], [0, 5, 2]], dtype=np.float32)


@pytest.fixture
def cells() -> AnnData:
    return AnnData(
        sparse.csr_matrix(COUNTS),
        obs=pd.DataFrame({"cell_type": ["T", "B"]}, index=BARCODES),
        var=pd.DataFrame(index=GENE_IDS),
    )


def write_loom(cells: AnnData, path: Path) -> None:
    """Write as ``AnnData.write_loom`` does, which is about to go."""
    import loompy  # late, as it takes seconds

    genes, columns = {"var_names": cells.var_names.to_numpy(str)}, {"obs_names": cells.obs_names.to_numpy(str)}
    columns |= {name: column.to_numpy(str) for name, column in cells.obs.items()}
    loompy.create(str(path), cells.X.T.toarray(), genes, columns)


def write_10x_h5(path: Path) -> None:
    by_cell = sparse.csr_matrix(COUNTS.astype(np.int32))
    with h5py.File(path, "w") as file:
        matrix = file.create_group("matrix")
        matrix["data"], matrix["indices"], matrix["indptr"] = by_cell.data, by_cell.indices, by_cell.indptr
        matrix["shape"] = np.array(COUNTS.T.shape)
        matrix["barcodes"] = np.array(BARCODES, dtype="S")
        features = {"id": GENE_IDS, "name": SYMBOLS, "feature_type": ["Gene Expression"] * 3, "genome": ["GRCh38"] * 3}
        for name, values in features.items():
            matrix[f"features/{name}"] = np.array(values, dtype="S")


def write_10x_folder(path: Path, *, prefix: str = "") -> None:
    path.mkdir()
    features = [f"{i}\t{name}\tGene Expression\n" for i, name in zip(GENE_IDS, SYMBOLS, strict=True)]
    with gzip.open(path / f"{prefix}matrix.mtx.gz", "wb") as file:
        io.mmwrite(file, sparse.coo_matrix(COUNTS.T.astype(int)))
    with gzip.open(path / f"{prefix}features.tsv.gz", "wt") as file:
        file.writelines(features)
    with gzip.open(path / f"{prefix}barcodes.tsv.gz", "wt") as file:
        file.writelines(f"{barcode}\n" for barcode in BARCODES)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cells.h5ad", AnnData.write_h5ad),
        ("cells.H5AD", AnnData.write_h5ad),
        ("cells.zarr", AnnData.write_zarr),
        ("cells.loom", write_loom),
    ],
)
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_reads_cells_with_their_labels(tmp_path, cells, name, write):
    write(cells, tmp_path / name)
    read = read_cells(tmp_path / name)
    np.testing.assert_array_equal(read.to_df(), COUNTS)
    assert list(read.obs_names) == BARCODES
    assert list(read.var_names) == GENE_IDS
    assert list(read.obs["cell_type"]) == ["T", "B"]


def test_reads_loom_of_velocyto_with_its_main_matrix(tmp_path):
    import loompy

    layers = {"": COUNTS.T, "spliced": COUNTS.T - 1}
    genes, cells = {"Gene": np.array(SYMBOLS)}, {"CellID": np.array(BARCODES)}
    loompy.create(str(tmp_path / "cells.loom"), layers, genes, cells)
    read = read_cells(tmp_path / "cells.loom")
    np.testing.assert_array_equal(read.to_df(), COUNTS)
    assert list(read.obs_names) == BARCODES
    assert "spliced" in read.layers


def test_missing_package_is_named(cells, tmp_path, monkeypatch):
    write_loom(cells, tmp_path / "cells.loom")
    monkeypatch.setitem(sys.modules, "loompy", None)
    with pytest.raises(InputError, match=r"cells\.loom .* loompy, .* `loom`"):
        read_cells(tmp_path / "cells.loom")


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("cells.h5", write_10x_h5),
        ("folder", write_10x_folder),
        ("prefixed", lambda path: write_10x_folder(path, prefix="GSM1_")),
    ],
)
def test_reads_10x_with_unique_genes(tmp_path, name, write):
    write(tmp_path / name)
    read = read_cells(tmp_path / name)
    np.testing.assert_array_equal(read.to_df(), COUNTS)
    assert list(read.obs_names) == BARCODES
    assert list(read.var_names) == ["CD3D", "MATR3", "MATR3-1"]
    assert list(read.var["gene_ids"]) == GENE_IDS


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("labels.csv", 'barcode,type,cluster\nCCC-1,"B, naive",01\nAAA-1,T,02\n'),
        ("labels.tsv", "barcode\ttype\tcluster\nCCC-1\tB, naive\t01\nAAA-1\tT\t02\n"),
        ("of_R.txt", '"type"\t"cluster"\n"CCC-1"\t"B, naive"\t"01"\n"AAA-1"\t"T"\t"02"\n'),
    ],
)
def test_joins_labels_by_barcode_as_text(tmp_path, name, table):
    write_10x_h5(tmp_path / "cells.h5")
    (tmp_path / name).write_text(table)
    read = read_cells(tmp_path / "cells.h5", labels=tmp_path / name)
    assert list(read.obs["type"]) == ["T", "B, naive"]
    assert list(read.obs["cluster"]) == ["02", "01"]


def test_warns_of_rows_without_cell_and_of_replaced_columns(tmp_path, cells, caplog):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "labels.csv").write_text("barcode,cell_type\nAAA-1,NK\nCCC-1,DC\nGGG-1,DC\n")
    with caplog.at_level(logging.WARNING):
        read = read_cells(tmp_path / "cells.h5ad", labels=tmp_path / "labels.csv")
    assert list(read.obs["cell_type"]) == ["NK", "DC"]
    assert re.search("1 row.* GGG-1", caplog.text)
    assert re.search("replaces .*cell_type", caplog.text)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("barcode,type\nAAA,T\nCCC-1,B\n", r"no row for 1 of 2 cells, .* AAA-1 .*AAA\)"),
        ("barcode,type\nAAA-1,T\nAAA-1,T\nCCC-1,B\n", "more than one row for cell AAA-1"),
        ("barcode\ttype\nAAA-1\tT\n", "separated by commas"),
        ("barcode,type\n", "not a table of cell names and labels"),
        ("barcode,type\nAAA-1,T,1,2\nCCC-1,B\n", "not a table of cell names and labels"),
        ("", "cannot be read as a table"),
        (None, "No such file"),
    ],
)
def test_rejects_labels(tmp_path, cells, table, message):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    if table is not None:
        (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(InputError, match=message) as refusal:
        read_cells(tmp_path / "cells.h5ad", labels=tmp_path / "labels.csv")
    assert "labels.csv" in str(refusal.value)


def write_other_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["weights"] = np.ones(3)


def test_folder_as_written_in_r(example_cells, tmp_path):
    """As docs/own_data.md has it, with row names in a column without a name in the table of labels."""
    folder = tmp_path / "cells"
    folder.mkdir()
    io.mmwrite(folder / "matrix.mtx", sparse.coo_matrix(example_cells.X.T.astype(int)), field="integer")
    genes = pd.DataFrame({"id": example_cells.var_names, "name": example_cells.var_names})
    genes.to_csv(folder / "genes.tsv", sep="\t", header=False, index=False)
    (folder / "barcodes.tsv").write_text("".join(f"{name}\n" for name in example_cells.obs_names))
    example_cells.obs.to_csv(tmp_path / "labels.csv", index_label="")
    read = read_cells(folder, labels=tmp_path / "labels.csv")
    assert (read.X != example_cells.X).nnz == 0
    assert list(read.var_names) == list(example_cells.var_names)
    assert list(read.obs["bulk_labels"]) == list(example_cells.obs["bulk_labels"])


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("absent.h5ad", lambda path: None, "No such file or folder"),
        ("cells.txt", Path.touch, "unknown ending"),
        ("cells.rds", Path.touch, r"holds an R object, .*; write it as .h5ad in R first, .* anndataR::write_h5ad"),
        ("matrix.mtx.gz", Path.touch, "without names of genes and cells; give the 10x folder"),
        ("text.h5ad", lambda path: path.write_text("cells"), "damaged, or misnamed"),
        ("other.h5ad", write_other_hdf5, "damaged, or misnamed"),
        ("other.h5", write_other_hdf5, "damaged, or misnamed"),
        ("other.loom", write_other_hdf5, "damaged, or misnamed"),
        ("empty.zarr", Path.mkdir, "damaged, or misnamed"),
        ("folder", lambda path: (path / "notes").mkdir(parents=True), "one file .*matrix.mtx.*, but this folder has 0"),
        ("partial", lambda path: write_10x_folder(path) or (path / "barcodes.tsv.gz").unlink(), r"barcodes\.tsv\.gz"),
    ],
)
def test_rejects_what_is_not_cells(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as refusal:
        read_cells(tmp_path / name)
    assert name in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("types", [(np.int64, np.int32), (np.int32, np.int64)])
def test_indices_of_different_types_become_one(tmp_path, cells, types):
    cells.X = sparse.csr_matrix(cells.X)
    cells.layers["counts"] = cells.X.copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        for matrix in (file["X"], file["layers/counts"]):
            for name, kind in zip(("indptr", "indices"), types, strict=True):
                values = matrix[name][:]
                del matrix[name]
                matrix[name] = values.astype(kind)
    found = read_cells(tmp_path / "cells.h5ad")
    for matrix in (found.X, found.layers["counts"]):
        assert matrix.indptr.dtype == matrix.indices.dtype == np.int32
        assert (sparse.coo_matrix(matrix) != cells.X).nnz == 0
