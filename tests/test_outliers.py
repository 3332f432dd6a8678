"""Outlying counts: what is lowered, and what is not."""

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from bdm.data.counts import MAX_GENES, MIN_COUNT
from bdm.data.prepare import prepare, prepared_cells
from bdm.data.read import read_cells
from bdm.settings import PrepareSettings

N_CELLS, N_GENES = 400, 60
SETTINGS = {"genes": "all", "min_cells_per_gene": 0, "test": 0.2}


def cells_with(planted: dict[tuple[int, int], int], *, n_types: int = 2) -> AnnData:
    """Cells of Poisson counts (mean 1, and 8 for the first ten genes), with some counts in their place."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.where(np.arange(N_GENES) < 10, 8.0, 1.0), (N_CELLS, N_GENES)).astype(np.float32)
    for place, count in planted.items():
        counts[place] = count
    obs = pd.DataFrame(
        {"cell_type": [f"type {i % n_types}" for i in range(N_CELLS)]}, index=[f"cell-{i}" for i in range(N_CELLS)]
    )
    return AnnData(sparse.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=[f"gene-{i}" for i in range(N_GENES)]))


def clipped(adata: AnnData) -> np.ndarray:
    return prepare(adata, PrepareSettings(clip_outliers=True, **SETTINGS)).X.toarray()


def test_counts_far_above_all_others_are_lowered_to_the_largest_regular_one():
    planted = {(0, 30): 60, (2, 31): 40, (4, 31): 30, (5, 0): 200}
    adata = cells_with(planted)
    found, before = clipped(adata), adata.X.toarray()
    changed = list(zip(*(axis.tolist() for axis in np.nonzero(found != before)), strict=True))
    assert changed == sorted(planted)
    for cell, gene in planted:
        regular = np.delete(before[cell % 2 :: 2, gene], [other // 2 for other, _ in planted if other % 2 == cell % 2])
        assert 1 <= found[cell, gene] <= 2 * regular.max()


def test_test_cells_have_the_limits_of_the_training_cells():
    split = prepare(cells_with({}), PrepareSettings(**SETTINGS)).obs["split"]
    cell = int(np.flatnonzero(split == "test")[0])
    adata = cells_with({(cell, 30): 60})
    assert clipped(adata)[cell, 30] < MIN_COUNT


@pytest.mark.parametrize(
    "planted",
    [
        pytest.param({}, id="nothing"),
        pytest.param({(0, 30): MIN_COUNT - 1}, id="a small count"),
        pytest.param({(cell, 30): 30 + cell // 8 for cell in range(0, 80, 4)}, id="a rare population"),
        pytest.param({(0, 30 + gene): 60 for gene in range(MAX_GENES + 1)}, id="an unusual cell"),
    ],
)
def test_regular_counts_stay(planted):
    adata = cells_with(planted)
    assert (clipped(adata) == adata.X.toarray()).all()


def test_small_types_stay():
    adata = cells_with({(0, 30): 60}, n_types=25)  # 16 cells of each
    assert (clipped(adata) == adata.X.toarray()).all()


def test_counts_are_kept_without_the_setting():
    adata = cells_with({(0, 30): 60})
    assert prepare(adata, PrepareSettings(**SETTINGS)).X[0, 30] == 60


def test_genes_are_ranked_by_clipped_counts(example_cells):
    def chosen(adata: AnnData, *, clip: bool) -> set[str]:
        return set(
            prepare(adata, PrepareSettings(n_genes=400, keep_genes="none", clip_outliers=clip, test=0.2)).var_names
        )

    raw, clipped_first = (
        prepare(example_cells, PrepareSettings(label_key="bulk_labels", genes="all", clip_outliers=clip, test=0.2))
        for clip in (False, True)
    )
    assert chosen(raw, clip=True) == chosen(clipped_first, clip=False) != chosen(raw, clip=False)


def test_cells_on_disk_have_the_same_counts(tmp_path):
    adata = cells_with({(0, 30): 60, (2, 31): 40, (4, 31): 30})
    adata.write_h5ad(tmp_path / "cells.h5ad")
    settings = PrepareSettings(clip_outliers=True, **SETTINGS)
    prepared_cells(read_cells(tmp_path / "cells.h5ad", on_disk=True), settings).write(tmp_path / "prepared.h5ad")
    assert (read_cells(tmp_path / "prepared.h5ad").X.toarray() == clipped(adata)).all()


@pytest.mark.parametrize(("every", "hinted"), [(40, True), (400, False)])
def test_data_with_many_outlying_counts_are_hinted_at(caplog, every, hinted):
    split = prepare(cells_with({}), PrepareSettings(**SETTINGS)).obs["split"]
    cells = np.flatnonzero(split == "train")[::every]
    with caplog.at_level("WARNING"):
        prepare(cells_with({(int(cell), 30 + i): 100 for i, cell in enumerate(cells)}), PrepareSettings(**SETTINGS))
    assert (
        "to lower them to the largest regular ones, use `settings.prepare.clip_outliers=True`" in caplog.text
    ) == hinted
