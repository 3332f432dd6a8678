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
    table = evaluation.scores_of("sub_population")
    return table[table["set"] == name].pivot(index="group", columns="score", values="value")


def test_each_sub_population_has_scores(evaluation):
    same = rows(evaluation, GENERATED)
    for table in (same, rows(evaluation, "one")):
        assert list(table.index) == [*B, *DENDRITIC]
    for names in (B, DENDRITIC):
        assert same.loc[names, "share"].sum() == pytest.approx(1)
    assert same.loc[B, "n_test"].sum() == evaluation.n_compared.loc["CD19+ B", "test"]
    assert same[["energy", "relative_energy", "mmd", "forest_auc", "library_size_ks"]].notna().all(axis=None)
    assert (same["relative_energy"].abs() < 0.05).all()
    assert same["forest_auc"].between(0.3, 0.7).all()


def test_scores_show_a_sub_population_that_is_missing(evaluation):
    same, first = rows(evaluation, GENERATED), rows(evaluation, "one")
    ratio = {name: table["share"] / table["share_test"] for name, table in (("same", same), ("first", first))}
    assert ratio["first"][DENDRITIC[1]] < 0.3
    assert ratio["first"][DENDRITIC[0]] > 1.15
    assert abs(ratio["same"][DENDRITIC[0]] - 1) < 0.15
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
    populations = evaluation.scores_of("sub_population").dropna(subset="value")
    assert set(populations["set"]) == {GENERATED}
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
    assert (pd.read_csv("evaluation/scores.csv")["kind"] == "sub_population").any()
    with pytest.raises(InputError, match=r"lacking\.h5ad: The prepared cells lack 1 of the model's genes"):
        read_real_cells_for(small_model.model, Path("lacking.h5ad"))
