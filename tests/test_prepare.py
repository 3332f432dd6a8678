import json
import logging
import re
import subprocess
import sys

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData
from scipy import sparse
from skmisc.loess import loess

from bdm._core.errors import InputError
from bdm.data.filters import split_by_type
from bdm.data.genes import GeneNames, symbol_column
from bdm.data.matrix import appended_rows
from bdm.data.prepare import prepare, prepared_cells, read_prepared
from bdm.data.read import read_cells
from bdm.settings import PrepareSettings

SMALL_TYPE = "CD4+/CD45RA+/CD25- Naive T"  # 8 cells


def settings(**changes) -> PrepareSettings:
    return PrepareSettings(**{"label_key": "bulk_labels", "n_genes": 200, "keep_genes": "none", "test": 0.2, **changes})


@pytest.fixture
def cells(example_cells) -> AnnData:
    return example_cells.copy()


# ---- what comes out


def test_prepared_cells(cells):
    prepared = prepare(cells, settings())
    assert prepared.shape == (692, 200)
    assert prepared.X.dtype == np.float32
    np.testing.assert_array_equal(prepared.X.toarray(), cells[prepared.obs_names, prepared.var_names].X.toarray())
    assert SMALL_TYPE not in set(prepared.obs["cell_type"].cat.categories)
    assert "batch" not in prepared.obs
    assert set(cells.obs) <= set(prepared.obs)
    assert json.loads(prepared.uns["bdm"]["settings"])["n_genes"] == 200


def test_genes_are_chosen_by_training_cells_alone(cells):
    prepared = prepare(cells, settings())
    held_out = prepared.obs_names[prepared.obs["split"] != "train"]
    changed = cells.copy()
    changed.X = cells.X.toarray()
    changed.X[cells.obs_names.isin(held_out)] = changed.X[cells.obs_names.isin(held_out)][:, ::-1]
    assert list(prepare(changed, settings()).var_names) == list(prepared.var_names)
    assert list(prepare(cells, settings(seed=1)).var_names) != list(prepared.var_names)


@pytest.mark.parametrize("genes", ["all", "seurat_v3"])
def test_all_genes(cells, genes):
    prepared = prepare(cells, settings(genes=genes, n_genes=10_000, min_cells_per_gene=0))
    assert list(prepared.var_names) == list(cells.var_names)


@pytest.mark.parametrize("kept", [["LYZ", "CD3D"], "a file"])
def test_kept_genes_are_added_to_the_most_variable_ones(cells, tmp_path, kept):
    few = set(prepare(cells, settings(n_genes=20)).var_names)
    assert "CD3D" not in few
    (tmp_path / "keep.txt").write_text("LYZ\nCD3D\n")
    kept = str(tmp_path / "keep.txt") if isinstance(kept, str) else kept
    prepared = prepare(cells, settings(n_genes=20, keep_genes=kept))
    assert set(prepared.var_names) == few | {"LYZ", "CD3D"}
    assert set(prepare(cells, settings(genes=["CD74"], keep_genes=["CD3D"])).var_names) == {"CD74", "CD3D"}


def test_kept_genes_of_few_cells_are_left_out_with_a_warning(cells, caplog):
    rare = cells.var_names[cells.X.getnnz(axis=0).argmin()]
    prepared = prepare(cells, settings(n_genes=20, keep_genes=[rare, "CD3D"], min_cells_per_gene=50))
    assert "CD3D" in prepared.var_names
    assert rare not in prepared.var_names
    assert re.search(rf"fewer than 50 training cells: {rare}\.", caplog.text)


def test_genes_that_are_not_highly_variable_come_last(cells):
    cells.var["highly_variable"] = np.arange(cells.n_vars) < 10  # of another selection
    few = prepare(cells, settings(n_genes=20))
    prepared = prepare(cells, settings(n_genes=20, keep_genes="all"))
    assert "highly_variable" not in few.var
    assert set(prepared.var_names) == set(prepare(cells, settings(genes="all")).var_names)
    assert (
        list(prepared.var_names[:20])
        == list(few.var_names)
        == list(prepared.var_names[prepared.var["highly_variable"]])
    )
    counted = few.obs_names[:50]
    np.testing.assert_array_equal(prepared[counted].X.toarray(), cells[counted, prepared.var_names].X.toarray())


# ---- gene symbols


@pytest.fixture
def with_ids(cells) -> AnnData:
    """Cells whose genes are named by identifiers; two genes share a symbol, and one has none."""
    cells.var["feature_name"] = cells.var_names.to_series().replace({"CD8A": "CD3D", "NKG7": ""}).astype("category")
    cells.var_names = [f"ENSG{number:011}" for number in range(cells.n_vars)]
    return cells


def ids_of(cells, *symbols: str) -> list[str]:
    return list(cells.var_names[cells.var["feature_name"].isin(symbols)])


def test_lists_of_genes_name_symbols_or_identifiers(with_ids, tmp_path):
    lyz, cd3d = ids_of(with_ids, "LYZ"), ids_of(with_ids, "CD3D")
    assert len(cd3d) == 2
    (tmp_path / "genes.txt").write_text("\n".join([*lyz, "CD3D", "CD74"]))
    prepared = prepare(with_ids, settings(genes=str(tmp_path / "genes.txt")))
    assert set(prepared.var_names) == {*lyz, *cd3d, *ids_of(with_ids, "CD74")}
    assert set(prepare(with_ids, settings(n_genes=20, keep_genes=["CD3D"])).var_names) > set(cd3d)
    with pytest.raises(InputError, match=r"1 of 2 listed genes .*CD4000; .* ENSG00000000000 or HES4"):
        prepare(with_ids, settings(genes=["CD3D", "CD4000"]))


def test_column_of_symbols_is_remembered(with_ids):
    with_ids.var["mine/own"] = with_ids.var["feature_name"]

    def recorded(**changes) -> tuple[str | None, AnnData]:
        prepared = prepare(with_ids, settings(**changes))
        return json.loads(prepared.uns["bdm"]["settings"])["gene_symbols"], prepared

    column, prepared = recorded()
    assert column == "feature_name"
    assert list(prepared.var["feature_name"]) == list(with_ids.var.loc[prepared.var_names, "feature_name"])
    column, prepared = recorded(gene_symbols="mine/own")
    assert column in prepared.var


@pytest.mark.parametrize(
    ("names", "column"),
    [
        ("ENSG{:011}", "feature_name"),
        ("ENSMUSG{:011}.3", "feature_name"),
        ("FBgn{:07}", "feature_name"),
        ("WBGene{:08}", "feature_name"),
        ("AT1G{:05}", "feature_name"),
        ("{}", "feature_name"),
        ("GENE{}", None),
        ("CD{}A", None),
    ],
)
def test_symbols_are_looked_for_where_names_are_identifiers(names, column):
    var = pd.DataFrame({"n_cells": 1, "symbol": "CD3D", "feature_name": "CD3D"}, [names.format(i) for i in range(30)])
    assert symbol_column(var) == column
    assert symbol_column(var.assign(feature_name=1, symbol=var.index)) is None
    assert symbol_column(var, "symbol") == "symbol"


@pytest.mark.parametrize(
    ("column", "message"), [("symbols", r"no column 'symbols'.*n_cells"), ("n_cells", "is not text")]
)
def test_rejects_a_column_without_symbols(with_ids, column, message):
    with_ids.var["n_cells"] = 3
    with pytest.raises(InputError, match=message):
        prepare(with_ids, settings(gene_symbols=column))


def test_genes_without_a_symbol_of_their_own_are_shown_with_their_names():
    var = pd.DataFrame({"symbol": ["CD3D", "LYZ", "LYZ", np.nan, " ", "e"]}, index=list("abcdef"))
    names = GeneNames(var, "symbol")
    assert list(names.labels) == ["CD3D", "LYZ (b)", "LYZ (c)", "d", "e", "e (f)"]
    table = names.with_symbols(pd.DataFrame({"gene": ["b", "a"], "score": [1, 2]}))
    assert list(table) == ["gene", "symbol", "score"]
    assert list(table["symbol"]) == ["LYZ (b)", "CD3D"]
    assert list(GeneNames(var).with_symbols(pd.DataFrame({"gene": ["b"]}))) == ["gene"]
    expected = {"LYZ": ("b", "c"), "LYZ (c)": ("c",), "a": ("a",), "e": ("e",), "cd3d": (), "x": ()}
    assert names.find([*expected]) == expected
    assert names.find(["cd3d"], ignore_case=True) == {"cd3d": ("a",)}


def test_genes_are_ranked_within_batches(cells, caplog):
    cells.obs["sample"] = [f"s{i % 3}" if i % 40 else "tiny" for i in range(cells.n_obs)]
    prepared = prepare(cells, settings(batch_key="sample"))
    assert list(prepared.obs["batch"].cat.categories) == ["s0", "s1", "s2", "tiny"]
    assert prepared.n_vars == 200
    assert list(prepared.var_names) != list(prepare(cells, settings()).var_names)
    assert "to rank genes in: tiny" in caplog.text


@pytest.mark.parametrize("missing", [None, np.nan, "", "nan"])
def test_cells_without_a_label_are_left_out_on_request(cells, caplog, missing):
    cells.obs["label"] = cells.obs["bulk_labels"].astype(object)
    cells.obs.loc[cells.obs_names[4:7], "label"] = [missing, missing, np.nan]
    prepared = prepare(cells, settings(label_key="label", drop_unlabelled=True))
    whole = prepare(cells, settings()).obs_names
    assert list(prepared.obs_names) == [name for name in whole if name not in cells.obs_names[4:7]]
    assert re.search(r"Left out 3 of 700 cells, .* obs\['label'\]", caplog.text)
    assert json.loads(prepared.uns["bdm"]["input"])["cells_left_out"] == {"drop_unlabelled": 3, "min_genes_per_cell": 0}


def test_numbers_of_clusters_with_gaps_are_names(cells):
    """Integers become floating point numbers in pandas where some are missing."""
    cells.obs["cluster"] = cells.obs["bulk_labels"].cat.codes.astype(float)
    cells.obs.iloc[:5, cells.obs.columns.get_loc("cluster")] = np.nan
    prepared = prepare(cells, settings(label_key="cluster", drop_unlabelled=True))
    assert set(prepared.obs["cell_type"]) <= set(map(str, range(10)))
    cells.obs["cluster"] += 0.5
    with pytest.raises(InputError, match="holds decimal numbers"):
        prepare(cells, settings(label_key="cluster", drop_unlabelled=True))


def test_names_of_no_types_are_pointed_out(cells, caplog):
    odd = ["Unknown", "B/T_doublets", "low-quality cells", "NA", "lowQuality"]
    kept = ["Ambigua", "DN (double negative) T", "Null-like", "unknowing"]
    names = dict(zip(cells.obs["bulk_labels"].cat.categories, odd + kept, strict=False))
    cells.obs["label"] = cells.obs["bulk_labels"].map(names).astype(object).fillna("T")
    prepare(cells, settings(label_key="label", min_cells_per_type=3))
    assert "no cell types: 'B/T_doublets', 'NA', 'Unknown', 'low-quality cells', 'lowQuality';" in caplog.text
    caplog.clear()
    prepare(cells, settings(label_key="label", min_cells_per_type=3, leave_out=tuple(odd)))
    assert "no cell types" not in caplog.text


def test_one_type_to_leave_out_may_be_given_as_text():
    assert settings(leave_out="CD34+") == settings(leave_out=("CD34+",))


def test_columns_that_look_like_batches_are_named_where_no_batches_are(cells, caplog):
    number = np.arange(cells.n_obs)
    cells.obs["donor_id"] = [f"d{i % 4}" for i in number]
    cells.obs["orig.ident"] = pd.Categorical(number % 2)
    cells.obs["batch"] = number % 3
    cells.obs["sample"] = "one"
    cells.obs["sampleBarcode"] = cells.obs_names  # one a cell
    cells.obs["library_size"] = 1000 + number % 7
    cells.obs["channel"] = cells.obs["bulk_labels"].cat.codes  # by type
    cells.obs["dispatch"] = number % 2
    cells.obs["Plate / run"] = [f"r{i % 2}" for i in number]
    cells.obs["seqRun"] = number % 4
    with caplog.at_level(logging.INFO, logger="bdm"):
        prepare(cells, settings())
    [line] = [record.getMessage() for record in caplog.records if "batch" in record.getMessage()]
    assert ": donor_id, orig.ident, batch, Plate / run, seqRun; " in line
    assert "`batch_key=`" in line


def test_records_name_files_without_their_folders(cells, tmp_path):
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(cells.var_names[:50]))
    record = prepare(cells, settings(genes=str(genes))).uns["bdm"]["settings"]
    assert json.loads(record)["genes"] == "genes.txt"


def test_what_was_left_out_of_the_input_is_recorded(cells):
    n_cells = cells.obs["bulk_labels"].value_counts()
    for cell in np.flatnonzero(cells.obs["bulk_labels"] == "CD19+ B")[:5]:
        cells.X.data[slice(*cells.X.indptr[cell : cell + 2])] = 0
    options = {"leave_out": ("CD34+", "CD56+ NK"), "min_cells_per_type": 20, "min_genes_per_cell": 1}
    facts = json.loads(prepare(cells, settings(**options)).uns["bdm"]["input"])
    by_setting = {"leave_out": ["CD56+ NK", "CD34+"], "min_cells_per_type": ["CD4+/CD45RO+ Memory", SMALL_TYPE]}
    assert facts.pop("types_left_out") == [
        {"cell_type": name, "n_cells": n_cells[name], "setting": setting}
        for setting, names in by_setting.items()
        for name in names
    ]
    left_out = {"drop_unlabelled": 0, "min_genes_per_cell": 5}
    assert facts == {"n_cells": 700, "n_genes": cells.n_vars, "cells_left_out": left_out}
    facts = json.loads(prepare(cells[cells.X.sum(axis=1) > 0], settings(min_cells_per_type=3)).uns["bdm"]["input"])
    assert (facts["types_left_out"], facts["cells_left_out"]) == ([], {"drop_unlabelled": 0, "min_genes_per_cell": 0})


def test_cells_without_counts_of_chosen_genes_are_left_out(cells, tmp_path, caplog):
    (tmp_path / "genes.txt").write_text("LYZ\n\n CD74 \nLYZ\n")
    prepared = prepare(cells, settings(genes=str(tmp_path / "genes.txt")))
    assert set(prepared.var_names) == {"LYZ", "CD74"}
    n_empty = 692 - prepared.n_obs
    assert n_empty > 0
    assert prepared.X.sum(axis=1).min() > 0
    assert re.search(f"Left out {n_empty} cells .* 2 chosen genes", caplog.text)


def test_input_columns_of_canonical_names_are_kept(cells, caplog):
    cells.obs["cell_type"] = cells.obs["louvain"]
    cells.obs["split"] = "mine"
    cells.obs["batch"] = "one"
    with caplog.at_level(logging.WARNING):
        obs = prepare(cells, settings()).obs
    assert list(obs["cell_type"]) == list(obs["bulk_labels"])
    assert list(obs["cell_type_input"]) == list(obs["louvain"])
    assert set(obs["split_input"]) == {"mine"}
    assert "batch" not in obs
    assert re.search("cell_type .*cell_type_input", caplog.text)


def test_the_column_of_cell_types_may_have_a_slash(cells):
    cells.obs = cells.obs.rename(columns={"bulk_labels": "cell/type"})
    obs = prepare(cells, settings(label_key="cell/type")).obs
    assert list(obs["cell_type"]) == list(obs["cell_type_"])
    assert isinstance(obs["cell_type"].dtype, pd.CategoricalDtype)


def test_former_test_cells_that_are_used_for_the_fit_are_counted(cells, caplog):
    once = prepare(cells, settings())
    same = prepare(once, settings(genes="all"))
    assert (same.obs["split"] == once.obs["split"]).all()
    assert "prepared before" not in caplog.text
    prepare(once, settings(genes="all", test=0.0))
    assert f"{(once.obs['split'] == 'test').sum()} of their test cells" in caplog.text


def test_prepared_cells_can_be_prepared_again(cells):
    once = prepare(cells, settings(genes="all"))
    twice = prepare(once, PrepareSettings(genes="all", seed=1, test=0.2))
    thrice = prepare(twice, PrepareSettings(genes="all", seed=1, test=0.2))
    assert "cell_type_input" not in twice.obs
    assert list(thrice.obs["split_input_input"]) == list(twice.obs["split"])


@pytest.mark.parametrize(
    "values",
    [
        [1, "a", None],
        [True, None, False],
        pd.to_datetime(["2024-01-01", None, "2024-01-02"]),
        pd.array(["a", "b", "c"], dtype="string"),
        pd.array([1, None, 2], dtype="Int64"),
        pd.Categorical([1, "a", 1]),
        pd.cut([1, 2, 3], 2),
        [[1], [2], [3]],
    ],
)
def test_any_column_can_be_written(cells, tmp_path, values):
    column = pd.Series(values).take(np.arange(cells.n_obs) % 3)
    cells.obs["odd/column"] = column.to_numpy() if column.dtype == object else column.array
    cells.var["odd"] = cells.obs["odd/column"].array.take(np.arange(cells.n_vars) % 3)
    prepare(cells, settings()).write_h5ad(tmp_path / "prepared.h5ad")
    read = anndata.read_h5ad(tmp_path / "prepared.h5ad")
    assert list(read.obs["odd_column"].isna()[:3]) == list(pd.isna(pd.Series(values)))


def test_columns_that_files_cannot_hold_are_renamed(cells, tmp_path):
    for frame in (cells.obs, cells.var):
        frame["_index"] = frame.index.to_numpy()
        frame["a/b"], frame["a_b"] = 1, 2
    prepared = prepare(cells, settings())
    for frame in (prepared.obs, prepared.var):
        assert {"_index_", "a_b", "a_b_"} <= set(frame)
    prepared.write_h5ad(tmp_path / "prepared.h5ad")
    pd.testing.assert_index_equal(anndata.read_h5ad(tmp_path / "prepared.h5ad").var.columns, prepared.var.columns)


@pytest.mark.parametrize("key", ["label_key", "batch_key"])
def test_rejects_columns_that_bdm_writes_itself(cells, key):
    cells.obs["sub_population"] = "a"
    with pytest.raises(InputError, match=rf"^obs\['sub_population'\] is named by `{key}=`"):
        prepare(cells, settings(**{key: "sub_population"}))


# ---- from disk, block by block


def written(cells, path) -> AnnData:
    (cells.write_zarr if path.suffix == ".zarr" else cells.write_h5ad)(path)
    return read_cells(path, on_disk=True)


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.nightly), 7919])
def block(request, monkeypatch):
    monkeypatch.setattr("bdm.data.matrix.BLOCK", request.param)


def with_matrix(change):
    def changed(cells, folder):
        cells.X = change(cells.X)
        return written(cells, folder / "cells.h5ad")

    return changed


def in_a_layer(cells, folder):
    cells.layers["counts"] = cells.X
    cells.X = cells.X.log1p()
    return written(cells, folder / "cells.h5ad")


def in_raw(cells, folder):
    cells.raw = cells.copy()
    return written(cells[:, :5].copy(), folder / "cells.h5ad")


PLACES = {
    "memory": lambda cells, folder: cells,
    "sparse": lambda cells, folder: written(cells, folder / "cells.h5ad"),
    "zarr": lambda cells, folder: written(cells, folder / "cells.zarr"),
    "dense": with_matrix(lambda counts: counts.toarray()),
    "dense integers": with_matrix(lambda counts: counts.toarray().astype(np.uint16)),
    "by genes": with_matrix(lambda counts: counts.tocsc()),
    "layer": in_a_layer,
    "raw": in_raw,
    "backed": lambda cells, folder: cells.write_h5ad(folder / "c.h5ad") or anndata.read_h5ad(folder / "c.h5ad", "r"),
}


@pytest.mark.parametrize("block", [*(pytest.param(n, marks=pytest.mark.nightly) for n in (1, 1000)), 7919])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_cells_are_prepared_alike_from_memory_and_disk(cells, tmp_path, monkeypatch, block, place):
    cells.obs["sample"] = pd.Categorical([f"s{i % 2}" for i in range(cells.n_obs)])
    cells.obs["note"] = ["long" if i % 3 else "short" for i in range(cells.n_obs)]
    chosen = settings(n_genes=20, batch_key="sample", min_genes_per_cell=50)
    expected = prepare(cells.copy(), chosen)
    monkeypatch.setattr("bdm.data.matrix.BLOCK", block)
    found = prepared_cells(PLACES[place](cells, tmp_path), chosen)
    expected.write_h5ad(tmp_path / "expected.h5ad")
    found.write(tmp_path / "found.h5ad")
    expected, found = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("expected", "found"))
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    pd.testing.assert_frame_equal(found.var, expected.var)
    assert found.uns == expected.uns
    assert 0 < found.n_obs < 692
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(found.X, part), getattr(expected.X, part), strict=True)


@pytest.fixture
def rounded_loess(monkeypatch):
    """Round what the local regression is given: it makes 1% of the last bit, in which versions of scanpy differ."""

    def rounded(x: np.ndarray, y: np.ndarray, **how):
        return loess(x.round(9), y.round(9), **how)

    for place in ("skmisc.loess.loess", "bdm.data.genes.loess"):
        monkeypatch.setattr(place, rounded)


@pytest.mark.parametrize("batch_key", [None, "sample"])
@pytest.mark.parametrize("n_genes", [100, 300])
@pytest.mark.usefixtures("rounded_loess")
def test_most_variable_genes_are_those_of_scanpy(cells, block, n_genes, batch_key):
    cells.obs["sample"] = [f"s{i % 3}" for i in range(cells.n_obs)]
    prepared = prepare(cells, settings(n_genes=n_genes, batch_key=batch_key))
    train = cells[prepared.obs_names[prepared.obs["split"] == "train"]].copy()
    sc.pp.filter_genes(train, min_cells=3)
    sc.pp.highly_variable_genes(train, flavor="seurat_v3", n_top_genes=n_genes, batch_key=batch_key)
    assert list(prepared.var_names) == list(train.var_names[train.var["highly_variable"]])


@pytest.mark.parametrize("value", [-1, 0.5])
def test_reports_the_last_value(cells, tmp_path, block, value):
    cells.X.data[-1] = value
    gene = cells.var_names[cells.X.indices[-1]]
    with pytest.raises(InputError, match=f"X has {value} for gene {gene} in cell {cells.obs_names[-1]}"):
        prepared_cells(written(cells, tmp_path / "cells.h5ad"), settings())


def many_cells(path, *, n_cells: int, n_genes: int, n_seen: int) -> None:
    """Write cells that each have counts of so many genes, a few thousand at a time."""
    rng, size = np.random.default_rng(0), 4000
    obs = pd.DataFrame({"cell_type": pd.Categorical(np.arange(n_cells) % 3).rename_categories(["a", "b", "c"])})
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    AnnData(obs=obs.set_index(obs.index.astype(str)), var=var).write_h5ad(path)
    step = n_genes // n_seen
    with (
        h5py.File(path, "r+") as file,
        appended_rows(file, "X", n_columns=n_genes, max_entries=n_cells * n_seen) as append,
    ):
        for _ in range(0, n_cells, size):
            first = rng.integers(step, size=(size, 1), dtype=np.int32)
            indices = first + np.arange(0, n_seen * step, step, dtype=np.int32)
            data = rng.integers(1, 4, size=size * n_seen).astype(np.float32)
            indptr = np.arange(0, size * n_seen + 1, n_seen)
            append(sparse.csr_matrix((data, indices.ravel(), indptr), shape=(size, n_genes)))


@pytest.mark.slow
def test_memory_does_not_grow_with_the_counts(tmp_path):
    many_cells(tmp_path / "cells.h5ad", n_cells=32_000, n_genes=4000, n_seen=800)
    code = (
        "import resource, sys\n"
        "from bdm.data.prepare import PrepareSettings, prepared_cells\n"
        "from bdm.data.read import read_cells\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "cells = read_cells(sys.argv[1], on_disk=True)\n"
        "prepared_cells(cells, PrepareSettings(n_genes=1000, test=0.2)).write(sys.argv[2])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    paths = [str(tmp_path / name) for name in ("cells.h5ad", "prepared.h5ad")]
    run = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 250  # MB; the counts alone take 205
    assert anndata.read_h5ad(paths[1], backed="r").shape == (32_000, 4000)


# ---- the split


def test_split_of_a_type_does_not_depend_on_others(cells):
    labels = cells.obs["bulk_labels"].astype(str)
    alone = labels[labels == "Dendritic"]
    fractions = {"validation": 0.1, "test": 0.2, "seed": 3}
    together = split_by_type(labels, **fractions)
    assert list(together[alone.index]) == list(split_by_type(alone, **fractions))
    assert list(together) == list(split_by_type(labels, **fractions))
    assert list(together) != list(split_by_type(labels, **{**fractions, "seed": 4}))


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"genes": "no_such_file.txt"}, "no_such_file.txt is none"),
        ({"genes": "empty.txt"}, r"empty\.txt names no genes"),
        ({"genes": []}, "`genes=` lists no genes"),
        ({"keep_genes": "no_such_file.txt"}, "`keep_genes=` takes 'all', 'none' .*no_such_file.txt is none"),
        ({"keep_genes": ()}, "`keep_genes=` lists no genes"),
    ],
)
def test_rejects_lists_of_genes(example_cells, tmp_path, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("\n\n")
    with pytest.raises(InputError, match=message):
        prepare(example_cells, settings(**changes))


def test_labels_that_differ_by_spaces_or_case_alone_are_warned_of(example_cells, caplog):
    cells = example_cells.copy()
    labels = cells.obs["bulk_labels"].astype(str)
    labels[labels == "Dendritic"] = np.where(np.arange((labels == "Dendritic").sum()) % 2, " dendritic ", "Dendritic")
    labels[labels == "CD19+ B"] = np.where(np.arange((labels == "CD19+ B").sum()) % 2, "CD19+B", "CD19+ B")
    cells.obs["bulk_labels"] = labels
    prepare(cells, settings())
    assert "obs['bulk_labels'] has ' dendritic ' and 'Dendritic', 'CD19+ B' and 'CD19+B'," in caplog.text
    caplog.clear()
    prepare(example_cells, settings())
    assert "obs['bulk_labels'] has" not in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label_key": "type"}, "no column 'type'; name one by `label_key=`, or use no labels, .*bulk_labels"),
        ({"batch_key": "donor"}, "no column 'donor'; name one by `batch_key=`"),
        ({"label_key": "percent_mito"}, "holds decimal numbers"),
        ({"label_key": "n_genes"}, "fewer than two of .* cell types have 10 cells"),
        ({"min_cells_per_gene": 700}, "no gene is seen in 700 training cells"),
        ({"n_genes": 1}, "choose more genes"),
    ],
)
def test_rejects_settings_that_do_not_fit_the_cells(example_cells, changes, message):
    with pytest.raises(InputError, match=message):
        prepare(example_cells, settings(**changes))


def untrained_batch(cells: AnnData) -> np.ndarray:
    """Batches; the last has test cells alone."""
    split = split_by_type(cells.obs["bulk_labels"].astype(str), validation=0.1, test=0.2, seed=0)
    return np.where((split == "test") & (cells.obs["bulk_labels"] == "Dendritic"), "b", "a")


def with_column(name: str, values):
    """Add a column of values, or of those that a function gives for the cells."""
    return lambda cells: cells.obs.insert(0, name, values(cells) if callable(values) else values)


LABEL, SAMPLE, FEW = {"label_key": "label"}, {"batch_key": "sample"}, {"n_genes": 10, "min_genes_per_cell": 1}


@pytest.mark.filterwarnings(
    "error", "ignore:The '(mode.chained_assignment|future.infer_string)' option:DeprecationWarning"
)
@pytest.mark.parametrize(
    ("changes", "spoil", "message"),
    [
        (LABEL, with_column("label", [None, "", np.nan, *697 * "T"]), "no value for 3 of 700 .*`drop_unlabelled=True`"),
        (LABEL | {"drop_unlabelled": True}, with_column("label", np.nan), "no value for any cell; .*`label_key=`"),
        (LABEL, with_column("label", "T"), r"obs\['label'\] has one value"),
        (LABEL, with_column("label", [1, "1"] * 350), r"obs\['label'\] has the values 1 and '1', which are one name"),
        (SAMPLE, with_column("sample", "a"), r"obs\['sample'\] has one value"),
        (SAMPLE, with_column("sample", untrained_batch), "batch b has no training cells"),
        (SAMPLE, with_column("sample", [f"s{i % 35}" for i in range(700)]), "training cells or genes a batch"),
        ({}, lambda cells: setattr(cells, "obs_names", cells.obs_names[[1, *range(1, 700)]]), "cell name"),
        ({}, lambda cells: setattr(cells, "var_names", cells.var_names[[1, *range(1, 765)]]), "gene name"),
        ({}, lambda cells: cells.X.data[: cells.X.indptr[5]].fill(0), "5 cells without .*`min_genes_per_cell=1`"),
        (FEW, lambda cells: cells._inplace_subset_var(cells.var_names[:20]), "ranked by variability .*genes='all'"),
        ({}, lambda cells: setattr(cells, "X", np.full(cells.shape, 1)), "ranked by variability .*genes='all'"),
    ],
)
def test_rejects_cells_that_no_model_is_fitted_to(cells, changes, spoil, message):
    spoil(cells)
    with pytest.raises(InputError, match=message) as refusal:
        prepare(cells, settings(**changes))
    assert "\n" not in str(refusal.value)


# ---- prepared cells that were changed


OF_BATCHES = PrepareSettings(label_key="bulk_labels", batch_key="batch", genes="all", min_cells_per_type=5, test=0.2)


def with_batches(cells: AnnData) -> AnnData:
    cells = cells.copy()
    cells.obs["batch"] = np.where(np.arange(cells.n_obs) % 2 == 0, "one", "two")
    return cells


def with_columns(**columns):
    def change(prepared: AnnData) -> None:
        prepared.obs = prepared.obs.assign(**{name: of(prepared.obs) for name, of in columns.items()})

    return change


def with_first_cell(value: float):
    def change(prepared: AnnData) -> None:
        counts = prepared.X.tolil()
        counts[0] = value
        prepared.X = counts.tocsr()

    return change


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize(
    ("change", "fault"),
    {
        "cells without counts": (with_first_cell(0), "no counts for 1 of 700 cells"),
        "negative counts": (with_first_cell(-1), "is negative"),
        "no type": (with_columns(cell_type=lambda obs: obs["cell_type"].where(obs.index != obs.index[3])), "for 1 of"),
        "numbers": (with_columns(cell_type=lambda obs: obs["cell_type"].cat.codes), "not categories of text"),
        "no training cells": (with_columns(split=lambda obs: "training"), "no training cells"),
        "no training cells of a type": (
            with_columns(split=lambda obs: obs["split"].where(obs["cell_type"] != "CD34+", "test")),
            "no training cells of the type 'CD34",
        ),
        "no batch": (with_columns(batch=lambda obs: obs["batch"].where(obs.index != obs.index[3])), "obs\\['batch'\\]"),
        "no batches": (lambda prepared: prepared.obs.pop("batch"), "no column 'batch'"),
    }.values(),
)
def test_prepared_cells_that_were_changed_are_rejected(example_cells, tmp_path, change, fault, on_disk):
    prepared = prepare(with_batches(example_cells), OF_BATCHES)
    change(prepared)
    prepared.write_h5ad(tmp_path / "prepared.h5ad")
    with pytest.raises(InputError, match=f"was changed .*{fault}.*; run bdm prepare"):
        read_prepared(tmp_path / "prepared.h5ad", on_disk=on_disk)


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("dtype", [np.float64, np.int32])
def test_counts_of_another_type_are_converted(example_cells, tmp_path, dtype, on_disk):
    prepared = prepare(with_batches(example_cells), OF_BATCHES)
    changed = AnnData(prepared.X.astype(dtype), obs=prepared.obs, var=prepared.var, uns=prepared.uns)
    changed.write_h5ad(tmp_path / "prepared.h5ad")
    found = read_prepared(tmp_path / "prepared.h5ad", on_disk=on_disk).X
    assert found.dtype == np.float32
    assert (found != prepared.X).nnz == 0
