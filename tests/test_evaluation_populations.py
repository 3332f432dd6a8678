"""Scores by sub-population, with generated cells as test cells."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from bdm._core.errors import InputError
from bdm.cli import app
from bdm.data.cells import FLOOR, GENERATED, Cells, StoredCells
from bdm.evaluation.evaluate import Evaluation
from bdm.model.match import population_assigner, read_real_cells_for, real_cells_for

B, DENDRITIC = ["CD19+ B/1", "CD19+ B/2"], ["Dendritic/1", "Dendritic/2"]
NUMBERS = {"CD19+ B": 90, "Dendritic": 120, "CD56+ NK": 40, "CD14+ Monocyte": 60}


@pytest.fixture(scope="module")
def held_out(small_model):
    return small_model.generate(NUMBERS, seed=1)


@pytest.fixture(scope="module")
def evaluation(small_model, held_out) -> Evaluation:
    """Evaluation of equal cells, and of a set without `Dendritic/2`."""
    first = small_model.generate({**NUMBERS, "Dendritic": 0, DENDRITIC[0]: 120}, seed=2)
    same = small_model.generate(NUMBERS, seed=3)
    return small_model.evaluate(same, adata_test=held_out, compare={"one": first}, n_repeats=2)


def rows(evaluation: Evaluation, name: str) -> pd.DataFrame:
    table = evaluation.by_population
    return table[table["set"] == name].set_index("sub_population")


def test_each_sub_population_has_scores(evaluation):
    for name in (FLOOR, GENERATED, "one"):
        table = rows(evaluation, name)
        assert list(table.index) == [*B, *DENDRITIC]
        assert list(table["cell_type"]) == ["CD19+ B"] * 2 + ["Dendritic"] * 2
    same = rows(evaluation, GENERATED)
    by_type = same.groupby("cell_type")[["n_cells", "n_test"]].sum()
    assert (by_type["n_cells"] == by_type["n_test"]).all()
    assert by_type["n_test"].to_dict() == {"CD19+ B": 90, "Dendritic": 120}
    scores = ["energy", "relative_energy", "mmd", "forest_auc", "library_size_ks"]
    assert same[scores].notna().all(axis=None)
    assert (same["relative_energy"].abs() < 0.05).all()
    assert same["forest_auc"].between(0.3, 0.7).all()


def test_scores_show_a_sub_population_that_is_missing(evaluation):
    same, first = rows(evaluation, GENERATED), rows(evaluation, "one")
    assert first.loc[DENDRITIC[1], "n_cells"] < 0.3 * first.loc[DENDRITIC[1], "n_test"]
    assert first.loc[DENDRITIC[0], "n_cells"] > 1.15 * first.loc[DENDRITIC[0], "n_test"]
    assert abs(same.loc[DENDRITIC[0], "n_cells"] / same.loc[DENDRITIC[0], "n_test"] - 1) < 0.15
    # The cells that are there are as they should be
    assert abs(first.loc[DENDRITIC[0], "relative_energy"]) < 0.05
    of_label = evaluation.by_type["relative_energy"]
    assert of_label["one", "Dendritic"] > of_label[GENERATED, "Dendritic"] + 0.02


def test_populations_are_found_by_counts_whatever_cells_were_drawn_from(small_model, held_out):
    assigned = population_assigner(small_model.model)(Cells.from_anndata(held_out))
    sampled = held_out.obs["sub_population"].astype(str).to_numpy()
    of_one = ~held_out.obs["cell_type"].isin(["CD19+ B", "Dendritic"]).to_numpy()
    assert (assigned[of_one] == sampled[of_one]).all()
    assert (assigned[~of_one] == sampled[~of_one]).mean() > 0.95
    without = held_out.copy()
    del without.obs["sub_population"]
    assert (population_assigner(small_model.model)(Cells.from_anndata(without)) == assigned).all()


@pytest.mark.slow
def test_sets_without_known_batches_have_no_scores_by_sub_population(batch_model):
    test, new = (batch_model.generate(NUMBERS, seed=seed) for seed in (1, 2))
    unknown, none = new.copy(), new.copy()
    unknown.obs["donor"] = "three"
    del none.obs["donor"]
    evaluation = batch_model.evaluate(new, adata_test=test, compare={"unknown": unknown, "none": none}, n_repeats=1)
    assert set(evaluation.by_population["set"]) == {FLOOR, GENERATED}
    assert set(evaluation.by_type.index.get_level_values("set")) == {FLOOR, GENERATED, "unknown", "none"}


@pytest.mark.slow
def test_prepared_cells_stay_on_disk_with_the_model(small_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small_model.save("model")
    prepared = small_model._cells().copy()
    prepared.obs["split"] = np.where(np.arange(prepared.n_obs) % 3, "train", "test")
    prepared[:, ::-1].copy().write_h5ad("prepared.h5ad")
    prepared[:, 1:].copy().write_h5ad("lacking.h5ad")
    real = read_real_cells_for(small_model.model, Path("prepared.h5ad"))
    assert isinstance(real.training, StoredCells)
    assert list(real.genes) == list(prepared.var_names)
    expected = real_cells_for(small_model.model, prepared)
    for name in ("training", "test"):
        stored, in_memory = getattr(real, name).in_memory(), getattr(expected, name)
        assert (stored.counts != in_memory.counts).nnz == 0
        assert (stored.cell_type == in_memory.cell_type).all()
    small_model.generate(NUMBERS, seed=3).write_h5ad("new.h5ad")
    evaluated = ["prepared.h5ad", "new.h5ad", "evaluation", "--n-repeats", "1"]
    app(["evaluate", *evaluated, "--model", "model"], standalone_mode=False)
    assert len(pd.read_csv("evaluation/by_population.csv"))
    with pytest.raises(InputError, match=r"lacking\.h5ad: The prepared cells lack 1 of the model's genes"):
        read_real_cells_for(small_model.model, Path("lacking.h5ad"))
