import re
from collections import defaultdict

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from matplotlib.image import imread

from bdm._core.errors import InputError
from bdm.cli import app
from bdm.data.cell_sets import read_generated, read_real_cells
from bdm.data.cells import GENERATED
from bdm.data.matrix import path_of, take_rows
from bdm.data.prepare import prepare
from bdm.evaluation.evaluate import Evaluation, evaluate
from bdm.evaluation.table import wide
from bdm.settings import EvaluationSettings, PrepareSettings


def bdm(*arguments) -> None:
    app([str(argument) for argument in arguments], standalone_mode=False)


@pytest.fixture(scope="module")
def prepared(example_cells) -> AnnData:
    return prepare(example_cells, PrepareSettings(label_key="bulk_labels", n_genes=300, keep_genes="none", test=0.2))


@pytest.fixture
def generated(prepared) -> AnnData:
    training = prepared[prepared.obs["split"] != "test"]
    return AnnData(training.X.copy(), obs=training.obs[["cell_type"]].copy(), var=prepared.var[[]])


@pytest.fixture
def files(prepared, generated, tmp_path):
    prepared.write_h5ad(tmp_path / "prepared.h5ad")
    generated.write_h5ad(tmp_path / "generated.h5ad")
    return tmp_path


@pytest.mark.slow
def test_evaluate_writes_tables_and_figures(files, prepared, generated, caplog, capsys, monkeypatch):
    generated[:, ::-1].copy().write_h5ad(files / "flat.h5ad")
    caplog.set_level("INFO")
    out = files / "evaluation"
    out.mkdir()
    options = ("--compare", f"flat={files / 'flat.h5ad'}", "--n-repeats", 1)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    bdm("evaluate", files / "prepared.h5ad", files / "generated.h5ad", out, *options)
    shown = re.findall(r"(\w[\w ]+): 100%.* (\d+)/", capsys.readouterr().err)
    assert dict(shown) == {"scoring": "3", "drawing": "4"}

    scores = pd.read_csv(out / "scores.csv")
    overall = wide(scores[scores["kind"] == "all"], "score")
    assert overall.columns.tolist() == ["floor", "generated", "flat"]
    assert overall.drop("gene_correlation").notna().all(axis=None)  # no type has cells enough for it
    pd.testing.assert_series_equal(overall["generated"], overall["flat"], check_names=False)

    is_test = (prepared.obs["split"] == "test").to_numpy()
    test, training = prepared.X[is_test].toarray(), prepared.X[~is_test].toarray()
    n_outlying = ((test >= 10) & (test > 2 * training.max(axis=0))).sum()
    assert n_outlying > 0
    assert overall.loc["outlying_counts"].tolist() == pytest.approx([1000 * n_outlying / is_test.sum(), 0, 0], rel=1e-5)

    by_type = scores[scores["kind"] == "type"]
    assert set(by_type["group"]) == set(generated.obs["cell_type"])
    assert (by_type["missing"].isna() | by_type["value"].isna()).all()
    assert not list(out.glob("*space*")) + list(out.glob("*covariate*"))

    evaluation = Evaluation.load(out)
    assert evaluation.overall.loc["energy", "flat"] == pytest.approx(overall.loc["energy", "flat"], rel=1e-4)
    assert evaluation.provenance["settings"] == {"n_repeats": 1, "max_cells_per_type": 500}
    assert set(evaluation.provenance["sha256"]) == {"prepared", "generated", "flat"}
    numbers = pd.read_csv(out / "n_cells.csv", index_col="cell_type")
    assert numbers.columns.tolist() == [
        *("test", "train", "generated", "flat"),
        *("compared_test", "compared_floor", "compared_generated", "compared_flat"),
    ]
    assert numbers["compared_flat"].equals(evaluation.n_compared["flat"])
    for name in ("overall", "by_type", "genes", "umap"):
        assert imread(out / f"{name}.png").std() > 0.05
    assert "Comparing generated, flat with" in caplog.text
    assert any(message.split()[:3] == ["floor", "generated", "flat"] for message in caplog.messages)
    assert "forest_auc" in caplog.text
    rows = dict(line.split(maxsplit=1) for line in caplog.messages[-1].splitlines())
    assert rows["generated"].startswith(("cannot be distinguished", "no difference seen", "nearly like", "differ from"))
    assert rows["generated"] == rows["flat"]
    assert "not checked: batches, donors, positions (not in the real cells)" in caplog.messages[-1]


def test_evaluate_reads_the_cells_that_it_compares_and_no_others(files, generated, monkeypatch):
    from bdm.data import matrix
    from bdm.evaluation import metrics

    n_read = defaultdict(list)

    def counted(matrix, rows, columns=None):
        n_read[path_of(matrix).stem].append(len(rows))
        return take_rows(matrix, rows, columns)

    monkeypatch.setattr(matrix, "take_rows", counted)
    monkeypatch.setattr(metrics, "BLOCK", 50)
    real = read_real_cells(files / "prepared.h5ad", on_disk=True)
    sets = {GENERATED: read_generated(files / "generated.h5ad", real, on_disk=True)}
    evaluation = evaluate(real, sets, EvaluationSettings(n_repeats=1, max_cells_per_type=5), seed=0)

    n_cells, n_compared = evaluation.n_cells, evaluation.n_compared
    assert n_compared["test"].equals(n_cells["test"].clip(upper=5))
    assert n_compared["generated"].equals(n_compared["test"])
    assert sum(n_read["generated"]) == n_compared["generated"].sum() < generated.n_obs / 5
    n_test, n_floor, n_marking, *n_blocks = n_read["prepared"]
    assert (n_test, n_floor) == (n_compared["test"].sum(), n_compared["floor"].sum())
    assert n_marking == n_cells["test"].sum()  # all test cells choose genes
    assert sum(n_blocks) == n_cells["train"].sum()
    assert max(n_blocks) == 50


def renamed_genes(adata: AnnData) -> AnnData:
    adata.var_names = [f"other_{name}" for name in adata.var_names]
    return adata


def renamed_type(adata: AnnData) -> AnnData:
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"CD19+ B": "Unheard of"})
    return adata


def log_counts(adata: AnnData) -> AnnData:
    adata.X = adata.X.log1p()
    return adata


SPOILT = {
    "lacks the genes": renamed_genes,
    "lacks the genes [^ ]+;": lambda adata: adata[:, 1:].copy(),
    "Unheard of": renamed_type,
    "raw counts are needed": log_counts,
    "give more cells": lambda adata: adata[:6].copy(),
}


@pytest.mark.parametrize("message", SPOILT)
def test_unfit_generated_cells_are_rejected(files, generated, message):
    SPOILT[message](generated).write_h5ad(files / "generated.h5ad")
    with pytest.raises(InputError, match=message) as caught:
        bdm("evaluate", files / "prepared.h5ad", files / "generated.h5ad", files / "out")
    assert str(files / "generated.h5ad") in str(caught.value)
    assert sorted(path.name for path in files.iterdir()) == ["generated.h5ad", "prepared.h5ad"]


@pytest.mark.parametrize(
    "compare",
    ["flat", "=flat.h5ad", "floor=flat.h5ad", "generated=flat.h5ad", "flat=", "model=flat.h5ad"],
)
def test_compared_sets_need_a_name_each(files, compare):
    with pytest.raises(InputError, match="--compare"):
        bdm("evaluate", files / "prepared.h5ad", files / "generated.h5ad", files / "out", "--compare", compare)


def test_types_of_few_cells_are_reported(files, generated, caplog):
    few = np.flatnonzero(generated.obs["cell_type"] == "CD19+ B")[3:]
    generated[np.setdiff1d(np.arange(generated.n_obs), few)].copy().write_h5ad(files / "few.h5ad")
    assert anndata.read_h5ad(files / "few.h5ad").n_obs < generated.n_obs
    read_generated(files / "few.h5ad", read_real_cells(files / "prepared.h5ad"))
    assert "CD19+ B" in caplog.text


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_cells_taken_from_disk_are_those_in_memory(files, prepared, generated, suffix):
    file = files / f"flat{suffix}"
    getattr(generated[:, ::-1].copy(), f"write_{suffix[1:]}")(file)
    real = read_real_cells(files / "prepared.h5ad", on_disk=True)
    stored, whole = read_generated(file, real, on_disk=True), read_generated(file, real)
    for index in (np.array([7, 3, 250]), np.arange(len(stored)) % 3 == 0):
        some = stored[index]
        assert (some.counts != generated.X[index]).nnz == 0
        assert (some.counts != whole[index].counts).nnz == 0
        assert some.cell_type.tolist() == whole.cell_type[index].tolist()
    test = prepared[prepared.obs["split"] == "test"]
    assert (real.test[np.arange(len(real.test))].counts != test.X).nnz == 0
