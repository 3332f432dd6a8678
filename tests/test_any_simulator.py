"""Evaluation of cells of any origin, without a model of bdm: columns and layers as users have them."""

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from bdm.cli import app
from bdm.data.cell_sets import read_generated, read_real_cells
from bdm.data.cells import Cells
from bdm.evaluation.evaluate import Evaluation
from bdm.settings import InputKeys


def evaluate(*arguments) -> None:
    app(["evaluate", *map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def cells(example_cells) -> AnnData:
    """Raw counts in a layer, other values in ``X``, and columns of other names."""
    genes = np.asarray(example_cells.X.sum(axis=0)).ravel().argsort()[-150:]
    counts = example_cells[:, genes].X.copy()
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "annotation": example_cells.obs["bulk_labels"].astype(str).to_numpy(),
            "person": np.where(np.arange(example_cells.n_obs) % 2, "Ada", "Ben"),
            "split": np.where(rng.random(example_cells.n_obs) < 0.3, "test", "train"),
        },
        index=example_cells.obs_names,
    )
    return AnnData(counts.log1p(), obs=obs, var=example_cells.var.iloc[genes][[]], layers={"umi": counts})


KEYS = ("--label-key", "annotation", "--batch-key", "person", "--counts", "umi")
FEW = ("--n-repeats", 1, "--max-cells-per-type", 10, "--quiet")


@pytest.fixture
def files(cells, tmp_path):
    is_test = cells.obs["split"] == "test"
    cells.write_h5ad(tmp_path / "cells.h5ad")
    for name, rows in (("train", ~is_test), ("test", is_test)):
        part = cells[rows].copy()
        del part.obs["split"]
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    simulated = cells[::-1, ::-1].copy()
    del simulated.obs["split"]
    simulated.write_h5ad(tmp_path / "simulated.h5ad")
    return tmp_path


def assert_same(one: Cells, other: Cells) -> None:
    assert (one.counts != other.counts).nnz == 0
    assert one.cell_type.tolist() == other.cell_type.tolist()
    assert one.batch.tolist() == other.batch.tolist()


@pytest.mark.slow
def test_a_split_column_and_two_files_are_the_same_cells(files):
    keys = InputKeys(label_key="annotation", batch_key="person", counts="umi")
    one = read_real_cells(files / "cells.h5ad", None, keys)
    two = read_real_cells(files / "train.h5ad", files / "test.h5ad", keys)
    assert_same(one.training, two.training)
    assert_same(one.test, two.test)
    held_out = ("--test-cells", files / "test.h5ad")
    evaluate(files / "train.h5ad", files / "simulated.h5ad", files / "out", *held_out, *KEYS, *FEW)
    found = Evaluation.load(files / "out")
    assert set(found.provenance["sha256"]) == {"prepared", "test_cells", "generated"}


def test_counts_and_columns_of_generated_cells_may_have_their_usual_places(files, cells):
    plain = AnnData(cells.layers["umi"], obs=cells.obs.rename(columns={"annotation": "cell_type"}), var=cells.var)
    del plain.obs["person"], plain.obs["split"]
    plain.write_h5ad(files / "plain.h5ad")
    real = anndata.read_h5ad(files / "cells.h5ad")
    real.layers["counts"] = real.layers.pop("umi")  # which is found
    real.write_h5ad(files / "cells.h5ad")
    keys = InputKeys(label_key="annotation", batch_key="person", counts="auto")
    found = read_generated(files / "plain.h5ad", read_real_cells(files / "cells.h5ad", None, keys), keys)
    assert (found.counts != cells.layers["umi"]).nnz == 0
    assert found.cell_type.tolist() == cells.obs["annotation"].tolist()
    assert found.batch is None


@pytest.fixture
def rejected(bdm):
    """Run a command that ends with exit code 2 and one sentence, in which a text is."""

    def run(message, *arguments) -> None:
        code, printed = bdm(*arguments)
        assert code == 2
        assert message in printed
        assert len(printed.strip().splitlines()) == 1

    return run


def without_labels(adata: AnnData) -> AnnData:
    adata.obs.loc[adata.obs_names[3], "annotation"] = None
    return adata


def without_split(adata: AnnData) -> AnnData:
    del adata.obs["split"]
    return adata


def without_test_cells(adata: AnnData) -> AnnData:
    adata.obs["split"] = "train"
    return adata


def with_repeated_genes(adata: AnnData) -> AnnData:
    adata.var_names = ["gene", "gene", *adata.var_names[2:]]
    return adata


SPOILT = {
    "cells.h5ad has no column 'split' in obs, which is 'test' for test cells; add it, or give": without_split,
    "cells.h5ad has no test cells to evaluate by": without_test_cells,
    "cells.h5ad: obs['annotation'] has no value for 1 of 700 cells, for example": without_labels,
    "cells.h5ad repeats the genes gene; make their names unique.": with_repeated_genes,
}


@pytest.mark.parametrize("message", SPOILT)
def test_unfit_real_cells_are_rejected(files, cells, message, rejected):
    SPOILT[message](cells.copy()).write_h5ad(files / "cells.h5ad")
    rejected(message, "evaluate", files / "cells.h5ad", files / "simulated.h5ad", files / "out", *KEYS)
    assert not (files / "out").exists()


WRONG_OPTIONS = {
    "has no column 'cell_type' in obs; name another by `--label-key` (there are: annotation, person, split).": (),
    "has no column 'typo' in obs; name another by `--label-key`": ("--label-key", "typo"),
    "has no column 'sample' in obs; name another by `--batch-key`": ("--batch-key", "sample", *KEYS[:2]),
    "has no counts in 'spliced'; name where they are by `--counts` (umi, X).": (*KEYS[:4], "--counts", "spliced"),
    "raw counts are needed in X, or in a layer that `--counts` names.": KEYS[:4],
}


@pytest.mark.parametrize("message", WRONG_OPTIONS)
def test_wrong_columns_and_layers_are_rejected(files, message, rejected):
    options = WRONG_OPTIONS[message]
    rejected(message, "evaluate", files / "cells.h5ad", files / "simulated.h5ad", files / "out", *options, "--quiet")
    assert not (files / "out").exists()


def test_training_cells_are_no_test_cells(files, rejected):
    options = ("--test-cells", files / "train.h5ad", *KEYS)
    message = "train.h5ad: 505 of 505 test cells have the counts of training cells"
    rejected(message, "evaluate", files / "train.h5ad", files / "simulated.h5ad", files / "out", *options)


def test_test_cells_of_other_genes_are_rejected(files, rejected):
    anndata.read_h5ad(files / "test.h5ad")[:, 5:].copy().write_h5ad(files / "other.h5ad")
    options = ("--test-cells", files / "other.h5ad", *KEYS)
    message = "other.h5ad lacks the genes"
    rejected(message, "evaluate", files / "train.h5ad", files / "simulated.h5ad", files / "out", *options)
