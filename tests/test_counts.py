import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError
from bdm.data.counts import raw_counts
from bdm.data.read import counts_before_rounding, pbmc68k_counts

CELLS, GENES = ["c0", "c1"], ["g0", "g1", "g2"]
COUNTS = np.array([[1, 0, 3], [0, 5, 2]], dtype=np.float32)
LOGS = np.log1p(COUNTS)


def cells_with(matrix, **slots) -> AnnData:
    obs, var = pd.DataFrame({"cell_type": ["T", "B"]}, index=CELLS), pd.DataFrame(index=GENES)
    return AnnData(matrix, obs=obs, var=var, **slots)


def test_example_undoes_the_normalisation():
    import scanpy as sc

    counts = counts_before_rounding(sc.datasets.pbmc68k_reduced()).data
    assert np.abs(counts - np.rint(counts)).max() < 0.1
    assert np.abs(counts - np.rint(counts)).mean() < 0.001


def test_example_is_counts():
    cells = pbmc68k_counts()
    assert cells.shape == (700, 765)
    assert cells.X.dtype == np.float32
    assert cells.X.data.min() == 1
    assert cells.obs["bulk_labels"].nunique() == 10
    np.testing.assert_array_equal(raw_counts(cells).X.toarray(), cells.X.toarray())


@pytest.mark.parametrize("form", [np.asarray, np.int64, sparse.csr_matrix, sparse.csc_matrix, sparse.csr_array])
def test_counts_come_in_one_form(form):
    counts = raw_counts(cells_with(form(COUNTS), obsm={"X_pca": np.ones((2, 2))}))
    assert isinstance(counts.X, sparse.csr_matrix)
    assert counts.X.dtype == np.float32
    assert counts.X.nnz == 4
    np.testing.assert_array_equal(counts.X.toarray(), COUNTS)
    assert list(counts.obs["cell_type"]) == ["T", "B"]
    assert not counts.obsm
    assert not counts.layers


@pytest.mark.parametrize(
    ("matrix", "layers", "source", "expected"),
    [
        (COUNTS, {}, "auto", COUNTS),
        (LOGS, {"counts": COUNTS}, "auto", COUNTS),
        (None, {"counts": COUNTS}, "auto", COUNTS),
        (COUNTS, {"counts": LOGS}, "auto", COUNTS),
        (COUNTS, {"counts": 2 * COUNTS}, "auto", 2 * COUNTS),
        (COUNTS, {"counts": 2 * COUNTS}, "X", COUNTS),
        (COUNTS, {"spliced": COUNTS // 2}, "auto", COUNTS),
        (COUNTS, {"spliced": COUNTS // 2}, "spliced", COUNTS // 2),
    ],
)
def test_finds_counts(matrix, layers, source, expected):
    found = raw_counts(cells_with(matrix, layers=layers), source=source)
    np.testing.assert_array_equal(found.X.toarray(), expected)


def test_takes_genes_of_raw():
    adata = cells_with(COUNTS)
    adata.raw = adata
    adata = adata[:, :1].copy()
    adata.X = np.log1p(adata.X)
    assert list(raw_counts(adata).var_names) == GENES


def test_leaves_the_input_as_it_is():
    adata = cells_with(COUNTS.copy())
    counts = raw_counts(adata)
    counts.X.data[:] = 9
    counts.obs["cell_type"] = "none"
    np.testing.assert_array_equal(adata.X, COUNTS)
    assert list(adata.obs["cell_type"]) == ["T", "B"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "X has nan for gene g2 in cell c1, which is not finite"),
        (np.inf, "X has inf for gene g2 in cell c1, which is not finite"),
        (-1, "X has -1 for gene g2 in cell c1, which is negative"),
        (1.5, "X has 1.5 for gene g2 in cell c1, which is not whole, as in log-normalised data"),
        (1.0000001, r"X has 1\.0000001\d* for gene g2 in cell c1, which is not whole"),
        (99.5, "X has 99.5 for gene g2 in cell c1, which is not whole, as in normalised data"),
        (2**25, "which is above 16,777,216"),
    ],
)
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_rejects_values_that_are_no_counts(form, value, message):
    matrix = COUNTS.copy()
    matrix[1, 2] = value
    with pytest.raises(InputError, match=message):
        raw_counts(cells_with(form(matrix)))


def test_rejects_rounded_normalised_values_but_no_downsampled_counts():
    import scanpy as sc

    cells = pbmc68k_counts()
    sc.pp.downsample_counts(cells, counts_per_cell=300)
    assert np.median(np.asarray(cells.X.sum(axis=1))) == 300
    raw_counts(cells)
    normalised = sc.pp.normalize_total(pbmc68k_counts(), copy=True)
    normalised.X.data = normalised.X.data.round()
    with pytest.raises(InputError, match=r"X has gaps in \d+ of 700 cells, as in normalised data that were rounded"):
        raw_counts(normalised)
    normalised.layers["umi"] = cells.X
    with pytest.raises(InputError, match="give `counts='umi'`"):
        raw_counts(normalised)


def test_names_where_counts_are_instead():
    adata = cells_with(LOGS, layers={"umi": COUNTS})
    with pytest.raises(InputError, match="give `counts='umi'`"):
        raw_counts(adata)
    with pytest.raises(InputError, match="give `counts='umi'`"):
        raw_counts(adata, source="X")
    with pytest.raises(InputError, match="no layer 'UMI'; counts can be taken from umi, X"):
        raw_counts(adata, source="UMI")


@pytest.mark.parametrize("shape", [(0, 3), (2, 0)])
def test_rejects_nothing(shape):
    with pytest.raises(InputError, match=f"there are {shape[0]} cells and {shape[1]} genes"):
        raw_counts(AnnData(np.ones(shape, dtype=np.float32)))


def test_rejects_an_empty_x():
    with pytest.raises(InputError, match="X is empty"):
        raw_counts(cells_with(None))
