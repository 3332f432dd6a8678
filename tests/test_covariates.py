"""Continuous covariates: simulated cells whose expression follows known curves."""

import re
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from bdm._core.errors import InputError
from bdm.api import BranchedDiffusion
from bdm.data.prepare import recorded_covariates
from bdm.effects.covariates import fit_effects
from bdm.effects.curves import CONSTANT, LINEAR, N_FOLDS, SMOOTH, fit_curve, fit_proportions, unshrunk
from bdm.generation.covariate_values import parse_at
from bdm.generation.request import cells_like
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, Settings, TrainSettings

ROOT = Path(__file__).parents[1]
N_GENES, RISING, WAVE = 40, slice(0, 8), slice(8, 16)
TWO = ["control", "treated"]


def log_change(time: np.ndarray) -> np.ndarray:
    """Log expression of ``moving`` cells: some genes rise, others rise and fall."""
    change = np.zeros((len(time), N_GENES))
    change[:, RISING] = 2 * (time[:, None] - 0.5)
    change[:, WAVE] = 1.5 * np.sin(np.pi * time[:, None])
    return change


def simulated(n: int = 240, seed: int = 0, *, deepening: float = 0) -> ad.AnnData:
    """Simulate equal numbers of cells of a moving and a still type.

    Log library sizes rise by ``deepening`` over time.
    """
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(7).normal(0, 0.7, (2, N_GENES))
    base[1, -10:] += 2
    time = rng.random(2 * n) ** 1.5  # not uniform
    moving = np.repeat([True, False], n)
    log_mean = base[np.where(moving, 0, 1)] + np.where(moving[:, None], log_change(time), 0)
    expression = np.exp(log_mean) / np.exp(log_mean).sum(axis=1, keepdims=True)
    depth = rng.lognormal(6, 0.2, 2 * n) * np.exp(deepening * time)
    counts = rng.poisson(depth[:, None] * expression).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.where(moving, "moving", "still"), "time": time})
    obs["dose"] = rng.integers(0, 3, 2 * n)
    obs.index = [f"cell-{seed}-{i}" for i in range(2 * n)]
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))


SETTINGS = Settings(
    prepare=PrepareSettings(genes="all", test=0.0),
    autoencoder=AutoencoderSettings(n_latent=4, n_steps=400, sub_populations="none"),
    hierarchy=HierarchySettings(n_bootstrap=3),
)


@pytest.fixture(scope="module")
def model():
    return BranchedDiffusion(simulated(), covariate_key="time", settings=SETTINGS).fit()


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("covariates") / "model"
    model.save(path)
    return path


def log_shares(adata: ad.AnnData) -> np.ndarray:
    """Log expression of each gene, relative to genes that do not change."""
    total = np.asarray(adata.X.sum(axis=0)).ravel() + 1.0
    return np.log(total / total[16:30].sum())


@pytest.mark.parametrize("time", [0.15, 0.5, 0.85])
def test_cells_at_a_value_follow_the_curve(model, time):
    earlier, later = (log_shares(model.generate({"moving": 3000}, at={"time": t}, seed=1)) for t in (0.02, time))
    expected = log_change(np.array([time]))[0] - log_change(np.array([0.02]))[0]
    assert (later - earlier)[RISING].mean() == pytest.approx(expected[RISING].mean(), abs=0.15)
    assert (later - earlier)[WAVE].mean() == pytest.approx(expected[WAVE].mean(), abs=0.15)


def test_the_curve_is_as_simple_as_the_cells_allow(model):
    curves = model.model.covariates.curves
    assert dict(zip(curves.cell_types, curves.forms, strict=True)) == {"moving": SMOOTH, "still": CONSTANT}
    rng = np.random.default_rng(0)
    time, noise, group = rng.random((300, 1)), rng.normal(size=(300, 3)), np.zeros(300, dtype=int)
    forms = [
        fit_curve(time, group, noise + change, np.ones(300)).form for change in (0, 3 * time, 2 * np.sin(6 * time))
    ]
    assert forms == [CONSTANT, LINEAR, SMOOTH]


def test_no_curve_is_found_where_there_is_none():
    forms = []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        forms.append(
            fit_curve(rng.random((200, 1)), rng.integers(0, 2, 200), rng.normal(size=(200, 10)), np.ones(200)).form
        )
    assert sum(form != CONSTANT for form in forms) <= 4


@pytest.mark.parametrize(("n_cells", "most"), [(60, 0.11), (300, 0.035)])
def test_a_bend_is_estimated_from_few_cells_and_across_a_gap(n_cells, most):
    between, error = np.linspace(0.35, 0.65, 20)[:, None], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        time, size = rng.random((n_cells, 1)), rng.normal(0, 0.5, 10)
        time = np.where(time < 0.5, time * 2 / 3, 1 - (1 - time) * 2 / 3)  # none from 1/3 to 2/3
        bend, gap = (2.2 * (2 * of - 1) ** 2 * size for of in (time, between))
        curve = fit_curve(time, np.zeros(n_cells, dtype=int), bend + rng.normal(size=bend.shape), np.ones(n_cells))
        difference = curve(between) - curve(time).mean(axis=0) - (gap - bend.mean(axis=0))
        error.append((difference**2).mean())
    assert np.mean(error) < most


def test_a_covariate_of_donors_has_no_curve_because_donors_differ():
    rng, n_donors = np.random.default_rng(0), 24
    donor = np.repeat([f"d{number:02}" for number in range(n_donors)], 40)
    age = np.repeat(rng.random(n_donors), 40)
    for slope, form in ((0.0, CONSTANT), (3.0, LINEAR)):
        mean = (
            rng.normal(size=(len(age), 3)) + rng.normal(0, 0.6, (n_donors, 3)).repeat(40, axis=0) + slope * age[:, None]
        )
        obs = pd.DataFrame({"age": age, "donor": donor, "split": "train", "cell_type": "x"})
        obs["sub_population"] = pd.Categorical(["x"] * len(obs))
        latent = ad.AnnData(mean.astype(np.float32), obs=obs.set_axis(map(str, range(len(obs)))))
        latent.layers["scale"] = np.zeros(mean.shape, np.float32)
        effects = fit_effects(("age",), (False,), latent)
        assert effects.of_donors.names == ("age",)
        assert effects.curves.forms == (form,)


def test_a_covariate_of_few_values_does_not_straighten_the_others():
    rng = np.random.default_rng(0)
    values = np.column_stack([rng.random(300), rng.integers(0, 3, 300)])
    mean = rng.normal(size=(300, 3)) + 2 * np.sin(6 * values[:, [0]]) + values[:, [1]]
    curve = fit_curve(values, np.zeros(300, dtype=int), mean, np.ones(300))
    top, bottom = curve(np.array([[0.26, 1.0], [0.78, 1.0]]))
    assert curve.form == SMOOTH
    assert (top - bottom).mean() == pytest.approx(4, abs=1)


def test_means_that_the_prior_draws_together_are_drawn_apart():
    """Few counts shrink posterior means along the curve."""
    rng = np.random.default_rng(0)
    time = rng.random((2000, 1))
    variance = np.repeat([0.2, 0.8], 1000)[:, None]
    suggested = 3 * (time - 0.5) + rng.normal(size=(2000, 1)) / np.sqrt(1 - variance)
    mean = (1 - variance) * suggested
    group = np.zeros(2000, dtype=int)
    curve = fit_curve(time, group, *unshrunk(group, mean, np.sqrt(variance)))
    assert float(curve(np.array([[1.0]]))[0, 0] - curve(np.array([[0.0]]))[0, 0]) == pytest.approx(3, abs=0.25)


def test_populations_that_differ_in_time_do_not_flatten_the_curve():
    rng = np.random.default_rng(0)
    time = np.sort(rng.random((600, 1)), axis=0)
    group = (rng.random(600) < time[:, 0]).astype(int)
    mean = 4 * time + np.array([0.0, 3.0])[group, None] + rng.normal(size=(600, 3))
    curve = fit_curve(time, group, mean, np.ones(600))
    assert (curve(np.ones((1, 1))) - curve(np.zeros((1, 1)))).mean() == pytest.approx(4, abs=0.4)


def test_shares_of_populations_follow_the_covariate():
    rng = np.random.default_rng(0)
    time = rng.random((600, 1))
    group = (rng.random(600) < time[:, 0]).astype(int)
    odds = fit_proportions(time, group, np.arange(600) % N_FOLDS)(np.array([[0.1], [0.9]]))
    share = np.exp(odds) * np.bincount(group) / 600
    share /= share.sum(axis=1, keepdims=True)
    assert share[:, 1] == pytest.approx([0.1, 0.9], abs=0.08)


def test_values_are_drawn_as_training_cells_have_them(model):
    real = model.prepared.obs.groupby("cell_type", observed=True)["time"]
    generated = model.generate(800, seed=2).obs.groupby("cell_type", observed=True)["time"]
    for level in (0.1, 0.5, 0.9):
        assert generated.quantile(level).to_numpy() == pytest.approx(real.quantile(level).to_numpy(), abs=0.05)


def test_generated_cells_vary_as_real_ones_at_their_values(model):
    """The variance that the covariate explains is not counted twice."""
    cells = model.prepared[model.prepared.obs["cell_type"] == "moving"]
    request = pd.DataFrame({"cell_type": "moving", "n_cells": 1, "time": cells.obs["time"]})
    generated = model.generate(request, seed=3)
    real, new = (np.log1p(of.X.toarray()[:, RISING].sum(axis=1)).var() for of in (cells, generated))
    assert new == pytest.approx(real, rel=0.15)


def test_a_range_is_spread_evenly_and_limited_to_training_cells(model, caplog):
    values = np.sort(model.generate({"moving": 50}, at={"time": (0.2, 0.4)}).obs["time"])
    assert values == pytest.approx(0.2 + 0.2 * (np.arange(50) + 0.5) / 50)
    assert not caplog.messages
    limited = model.generate({"moving": 50}, at={"time": (0.5, 3)}).obs["time"]
    assert limited.max() <= model.prepared.obs["time"].max()
    assert caplog.messages[-1].startswith("Limited to training cells, as time is 0.5 to 3: moving (")


def test_cells_cover_several_ranges():
    settings = replace(SETTINGS, autoencoder=replace(SETTINGS.autoencoder, n_steps=5))
    model = BranchedDiffusion(simulated(60), covariate_key=("time", "dose"), settings=settings).fit()
    values = model.generate({"moving": 50}, at={"time": (0.2, 0.4), "dose": (0, 2)}).obs[["time", "dose"]]
    for name, low, width in (("time", 0.2, 0.2), ("dose", 0, 2)):
        assert np.sort(values[name]) == pytest.approx(low + width * (np.arange(50) + 0.5) / 50)
    assert abs(np.corrcoef(values, rowvar=False)[0, 1]) < 0.2


def test_a_cell_depends_on_its_seed_and_number_alone(model, saved):
    cells = model.generate({"moving": 130}, seed=5)
    fewer = model.generate({"moving": 70}, seed=5)
    assert (cells.X[:70] != fewer.X).nnz == 0
    assert list(cells.obs["time"][:70]) == list(fewer.obs["time"])
    loaded = BranchedDiffusion.load(saved, n_threads=1).generate({"moving": 130}, seed=5)
    assert (loaded.X != cells.X).nnz == 0


def test_cells_like_others_have_their_values(saved, tmp_path, bdm):
    like = simulated(30, seed=4)
    like.write_h5ad(tmp_path / "like.h5ad")
    assert bdm("generate", saved, tmp_path / "new.h5ad", "--cells-like", tmp_path / "like.h5ad")[0] == 0
    new = ad.read_h5ad(tmp_path / "new.h5ad")
    for cell_type in ("moving", "still"):
        values = [np.sort(of.obs["time"][of.obs["cell_type"] == cell_type]) for of in (like, new)]
        assert values[0] == pytest.approx(values[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at", "tim=0.5"), "The model has no covariate 'tim'; did you mean 'time'?"),
        (("--at", "time"), "--at time is not of the form NAME=NUMBER or NAME=LOW:HIGH"),
        (("--at", "time=soon"), "is not of the form"),
        (("--at", "time=0.5:0.2"), "give a number, or a range by its lower and its upper end"),
        (("--at", "time=7"), "No training cell has time 7 in moving ("),
    ],
)
def test_values_that_cannot_be_generated_are_rejected(saved, tmp_path, bdm, options, message):
    code, said = bdm("generate", saved, tmp_path / "new.h5ad", "--cells", 5, *options)
    assert code == 2
    assert message in said
    assert not (tmp_path / "new.h5ad").exists()


def test_values_beyond_training_cells_are_extrapolated_on_request(model, caplog):
    last = model.prepared.obs.loc[model.prepared.obs["cell_type"] == "moving", "time"].max()
    beyond = model.generate({"moving": 40}, at={"time": 7}, extrapolate=True)
    assert "Generated as at the nearest value of training cells" in caplog.messages[-1]
    at_end = model.generate({"moving": 40}, at={"time": last})
    assert (beyond.X != at_end.X).nnz == 0
    assert (beyond.obs["time"] == 7).all()


def test_a_model_without_covariates_rejects_values(small_model):
    with pytest.raises(InputError, match="The model has no covariates; fit it with `covariate_key=`"):
        small_model.generate(3, at={"time": 1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda cells: ["early"] * len(cells), "holds values such as 'early', but cells depend on a covariate"),
        (lambda cells: [1.0] * len(cells), "has one value for all cells"),
        (
            lambda cells: [np.nan, *cells.obs["time"][1:]],
            "has no finite number for 1 of 480 cells, for example cell-0-0",
        ),
        (lambda cells: cells.obs["time"] > 0.5, "holds true and false"),
    ],
)
def test_columns_that_are_no_covariates_are_rejected(values, message):
    cells = simulated()
    cells.obs["x"] = values(cells)
    with pytest.raises(InputError, match=message):
        BranchedDiffusion(cells, covariate_key="x", settings=SETTINGS)


def test_covariates_may_be_numbers_as_text():
    cells = simulated()
    numbers = BranchedDiffusion(cells, covariate_key="time", settings=SETTINGS).prepared.obs["time"]
    cells.obs["time"] = cells.obs["time"].map(repr).astype("category")
    text = BranchedDiffusion(cells, covariate_key="time", settings=SETTINGS).prepared.obs["time"]
    pd.testing.assert_series_equal(text, numbers)


def test_a_covariate_is_no_other_key():
    with pytest.raises(InputError, match="is named twice by `covariate_key=`"):
        PrepareSettings(covariate_key=("time", "time"))
    with pytest.raises(InputError, match=r"obs has no column 'tme'"):
        BranchedDiffusion(simulated(), covariate_key="tme")


@pytest.mark.parametrize("key", ["n_cells", "batch", "split"])
def test_a_covariate_has_no_name_of_a_column_that_bdm_writes(key):
    cells = simulated()
    cells.obs[key] = cells.obs["time"]
    with pytest.raises(InputError, match=f"'{key}'.* by `covariate_key=`, but bdm writes a column of this name"):
        BranchedDiffusion(cells, covariate_key=key, settings=SETTINGS)


def test_columns_that_files_cannot_keep_apart_are_rejected():
    cells = simulated()
    cells.obs["time/h"] = cells.obs["time_h"] = cells.obs["time"]
    with pytest.raises(InputError, match="obs has the columns 'time/h' and 'time_h', which have the same name in"):
        BranchedDiffusion(cells, covariate_key="time/h", settings=SETTINGS)


def with_slash(cells: ad.AnnData) -> ad.AnnData:
    """Cells with a covariate name that files cannot hold."""
    cells.obs = cells.obs.rename(columns={"time": "time/h"})
    return cells


def test_cells_have_covariates_and_batches_whose_names_files_cannot_hold():
    cells = with_slash(simulated(100))
    cells.obs["plate/1"] = np.where(np.arange(cells.n_obs) % 2, "a", "b")
    settings = replace(SETTINGS, autoencoder=replace(SETTINGS.autoencoder, n_steps=5))
    model = BranchedDiffusion(cells, batch_key="plate/1", covariate_key="time/h", settings=settings).fit()
    new = with_slash(simulated(20, seed=8))
    new.obs["plate/1"], new.obs["cell_type"] = "a", "other"
    moved = model.transmute(cells, to="moving", from_="still")
    assert list(moved.obs["time_h"]) == list(cells.obs.loc[moved.obs_names, "time/h"])
    assert model.transmute(moved, to="still").n_obs == moved.n_obs
    model.extend(new)
    assert model.model.extensions[0].effects["covariates"].has("other")
    assert set(cells_like(cells, model.model)) == {"cell_type", "batch", "time_h", "n_cells"}
    assert not model.prepared.obs["time_h"].isna().any()
    assert recorded_covariates(model.prepared) == ("time_h",)
    evaluation = model.evaluate(adata_test=with_slash(simulated(40, seed=9)), n_repeats=1)
    assert evaluation.scores_of("covariate")["group"].str.startswith("time_h").all()


def test_values_given_twice_are_rejected():
    assert parse_at(["a=1", "b c=-1:2e3"]) == {"a": 1.0, "b c": (-1.0, 2000.0)}
    with pytest.raises(InputError, match="gives 'a' twice"):
        parse_at(["a=1", "a=2"])


def test_several_covariates_are_drawn_together():
    rng = np.random.default_rng(0)
    first = rng.normal(size=900)
    values = np.column_stack([np.exp(first + 0.3 * rng.normal(size=900)), (first > 0).astype(float)])
    obs = pd.DataFrame(values, columns=["a", "b"]).assign(
        split="train", cell_type="x", sub_population=pd.Categorical(["x"] * 900)
    )
    latent = ad.AnnData(rng.normal(size=(900, 3)).astype(np.float32), obs=obs.set_axis(map(str, range(900))))
    latent.layers["scale"] = np.zeros((900, 3), np.float32)
    effects = fit_effects(("a", "b"), (False, True), latent)
    sampled = effects.sample("x", np.full((2000, 2), np.nan), np.random.default_rng(1))
    assert set(sampled[:, 1]) == {0.0, 1.0}
    expected, correlation = (np.corrcoef(np.log(table[:, 0]), table[:, 1])[0, 1] for table in (values, sampled))
    assert correlation == pytest.approx(expected, abs=0.12)
    known = np.column_stack([np.full(2000, np.nan), np.repeat([0.0, 1.0], 1000)])
    completed = effects.sample("x", known, np.random.default_rng(1))
    assert (completed[:, 1] == known[:, 1]).all()
    assert np.log(completed[1000:, 0]).mean() - np.log(completed[:1000, 0]).mean() > 0.8


def test_transmuted_cells_keep_their_time_or_have_another(model):
    cells = simulated(40, seed=6)
    kept = model.transmute(cells, to="moving", from_="still", seed=1)
    assert list(kept.obs["time"]) == list(cells.obs.loc[kept.obs_names, "time"])
    early, late = (model.transmute(cells, to="moving", from_="still", at={"time": t}) for t in (0.05, 0.9))
    change = (log_shares(late) - log_shares(early))[RISING].mean()
    assert change == pytest.approx(2 * 0.85, abs=0.35)
    del cells.obs["time"]
    with pytest.raises(InputError, match="obs has no column 'time'"):
        model.transmute(cells, to="moving", from_="still")


def test_cells_of_a_designed_experiment_have_times_as_training_cells(model):
    adata = model.simulate({"samples": {"donors": 2, "cells": 400}, "doublets": {"rate": 0.1}})
    moving = adata[(adata.obs["cell_type"] == "moving") & ~adata.obs["doublet"]]
    time, real = moving.obs["time"], model.prepared.obs["time"][model.prepared.obs["cell_type"] == "moving"]
    assert time.mean() == pytest.approx(real.mean(), abs=0.06)
    early, late = (log_shares(moving[rows]) for rows in (time < 0.2, time > 0.6))
    assert (late - early)[RISING].mean() > 0.8


@pytest.fixture(scope="module")
def mixed():
    """Model with sub-populations in both types, and shares that depend on time."""
    cells, rng = simulated(300), np.random.default_rng(1)
    second = (rng.random(cells.n_obs) < cells.obs["time"]) & (cells.obs["cell_type"] == "still")
    cells.X[np.ix_(second, range(30, 36))] += rng.poisson(40, (second.sum(), 6))
    autoencoder = replace(SETTINGS.autoencoder, sub_populations="auto")
    settings = replace(SETTINGS, autoencoder=autoencoder)
    return BranchedDiffusion(cells, covariate_key="time", settings=settings).fit()


BY_CONDITION = {"control": 0.15, "treated": [0.5, 0.9]}
BY_SAMPLE = {"control": 0.3, "sample-3": 0.2, "sample-4": 0.8}
UP = {"name": "up", "condition": "treated", "in": ["moving"], "genes": ["g1", "g20"], "log2_fold_change": 1.0}


@pytest.mark.parametrize(
    ("values", "ends"),
    [(BY_CONDITION, [(0.15, 0.15)] * 2 + [(0.5, 0.9)] * 2), (BY_SAMPLE, [(of, of) for of in (0.3, 0.3, 0.2, 0.8)])],
    ids=["by condition", "by sample"],
)
def test_the_truth_of_a_design_is_the_mean_of_its_cells_at_given_values(mixed, values, ends):
    samples = {"donors": 2, "conditions": ["control", "treated"], "cells": 3000, "covariates": {"time": values}}
    adata = mixed.simulate({"samples": samples, "changes": [UP], "doublets": {"rate": 0.02}})
    truth, cells = adata.uns["truth"], adata[~adata.obs["doublet"]]
    times = cells.obs.groupby("sample", observed=True)["time"].agg(["min", "max"]).to_numpy()
    assert times == pytest.approx(np.array(ends), abs=0.01)
    for name in ("moving", "still"):
        mean = [cells[(cells.obs["cell_type"] == name) & (cells.obs["condition"] == of)].X.mean(axis=0) for of in TWO]
        measured = np.log2(np.asarray(mean[1] / mean[0])).ravel()
        expected = cells.varm["log2_fold_change_treated"][name].to_numpy()
        assert measured == pytest.approx(expected, abs=0.12)
        assert np.abs(expected).max() > 0.5
        library = truth["composition"].set_index(["condition", "cell_type"])["log2_library_size"]["treated", name]
        assert library == pytest.approx(np.log2(mean[1].sum() / mean[0].sum()), abs=0.05)
        shares = truth["sub_populations"].query("cell_type == @name").set_index(["condition", "sub_population"])
        of_type = cells.obs[cells.obs["cell_type"] == name].groupby("condition", observed=True)["sub_population"]
        counted = of_type.value_counts(normalize=True)
        assert counted[shares.index].to_numpy() == pytest.approx(shares["share"].to_numpy(), abs=0.04)
    planted = truth["genes"].set_index("gene")
    without = mixed.simulate({"samples": samples}).varm["log2_fold_change_treated"]["moving"]
    assert planted["log2_fold_change"].to_numpy() == pytest.approx(without[planted.index].to_numpy() + 1, abs=1e-6)


def test_shares_of_sub_populations_that_a_design_names_stay_at_all_values(mixed):
    shares = {"moving": 0.5, "still/1": 0.25, "still/2": 0.25}
    samples = {"conditions": TWO, "cells": 2000, "covariates": {"time": BY_CONDITION}}
    adata = mixed.simulate({"samples": samples, "composition": {"proportions": shares}})
    still = adata.obs[adata.obs["cell_type"] == "still"].groupby("condition", observed=True)["sub_population"]
    assert still.value_counts(normalize=True)[:, "still/1"].to_numpy() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("covariates", "message"),
    [
        ({"tim": 1}, "samples.covariates: The model has no covariate 'tim'; did you mean 'time'?"),
        ({"time": np.float64("nan")}, "covariates.time is to be nan; give a number"),
        ({"time": "late"}, "covariates.time is to be 'late'; give a number, or a range by its lower and its upper end"),
        ({"time": {"treated": [0.8, 0.2]}}, r"covariates.time is to be \[0.8, 0.2\]; give a number, or a range"),
        ({"time": {"treatd": 1}}, "covariates.time: there is no condition or sample 'treatd'; the conditions are"),
        ({"time": {"sample-3": 1}}, "covariates.time: there is no condition or sample 'sample-3'"),
        ({"time": {"treated": 7}}, "No training cell has time 7 in moving .* or use samples.extrapolate: true"),
        (0.5, "covariates is 0.5, but must be keys with values"),
    ],
)
def test_values_that_a_design_cannot_have_are_rejected(model, covariates, message):
    with pytest.raises(InputError, match=message):
        model.simulate({"samples": {"conditions": TWO, "covariates": covariates}})


def test_a_design_has_values_beyond_training_cells_on_request(model):
    samples = {"cells": 30, "covariates": {"time": 7}, "extrapolate": True}
    assert (model.simulate({"samples": samples}).obs["time"] == 7).all()


def test_power_is_of_designs_whose_values_are_the_same_in_all_samples(model):
    samples = {"donors": 6, "conditions": TWO, "cells": 200, "variation": 0.1, "covariates": {"time": 0.5}}
    content = {"samples": samples, "changes": [UP], "power": {"n_repeats": 1, "methods": ["t_test"]}}
    analysis = model.power(content)
    assert analysis.repeats["n_planted"].sum() == 2
    assert analysis.power["power"].item() == 1
    samples["covariates"] = {"time": BY_CONDITION}
    with pytest.raises(InputError, match="time differs between samples, so that all genes change"):
        model.power(content)


@pytest.mark.parametrize("with_time", [True, False])
def test_a_type_that_is_added_has_a_curve_if_it_has_the_covariate(saved, with_time):
    model = BranchedDiffusion.load(saved)
    before = model.generate({"moving": 20}, at={"time": 0.5})
    new = simulated(80, seed=8)
    new = new[new.obs["cell_type"] == "moving"].copy()
    new.obs["cell_type"] = "other"
    new.obs_names = ["cell"] * new.n_obs  # names may repeat
    if not with_time:
        del new.obs["time"]
    model.extend(new)
    assert (model.generate({"moving": 20}, at={"time": 0.5}).X != before.X).nnz == 0
    early, late = (log_shares(model.generate({"other": 300}, at={"time": t})) for t in (0.1, 0.8))
    assert (late - early)[RISING].mean() == pytest.approx(1.4 if with_time else 0, abs=0.4)


def test_depth_follows_the_covariate_to_its_ends():
    settings = replace(SETTINGS, autoencoder=replace(SETTINGS.autoencoder, n_steps=20))
    model = BranchedDiffusion(simulated(100, deepening=3), covariate_key="time", settings=settings).fit()
    new = simulated(100, seed=8, deepening=3)
    new = new[new.obs["cell_type"] == "moving"].copy()
    new.obs["cell_type"] = "other"
    model.extend(new)
    for name in ("moving", "other"):
        early, late = (np.log(model.generate({name: 200}, at={"time": t}).X.sum(axis=1)).mean() for t in (0.02, 0.95))
        assert late - early == pytest.approx(3 * 0.93, rel=0.1)


@pytest.mark.slow
def test_a_prior_with_a_network_is_moved_along_the_curve_too():
    settings = replace(SETTINGS, train=TrainSettings(prior="diffusion", width=32, n_layers=2, n_steps=200))
    model = BranchedDiffusion(simulated(120), covariate_key="time", settings=settings).fit()
    early, late = (log_shares(model.generate({"moving": 300}, at={"time": t})) for t in (0.1, 0.8))
    assert (late - early)[RISING].mean() == pytest.approx(1.4, abs=0.4)


@pytest.fixture(scope="module")
def evaluation(model):
    return model.evaluate(adata_test=simulated(100, seed=9), n_repeats=2)


def test_scores_by_bins_are_with_those_of_the_floor(evaluation):
    table = evaluation.scores_of("covariate").set_index("score").loc["relative_energy"]
    assert table["group"].nunique() == 4
    assert table["value"].mean() < 0.03
    assert table["floor"].mean() < 0.02


def test_cells_of_a_model_without_the_covariate_are_far_in_bins(model, evaluation):
    """Shuffled times keep overall scores, and worsen scores at times."""
    cells = simulated(100, seed=9)
    shuffled = model.generate(pd.DataFrame({"cell_type": cells.obs["cell_type"], "n_cells": 1}), seed=1)
    shuffled.obs["time"] = np.random.default_rng(0).permutation(shuffled.obs["time"])
    worse, better = (
        each.scores_of("covariate").set_index("score").loc["relative_energy", "value"].mean()
        for each in (model.evaluate(shuffled, adata_test=cells), evaluation)
    )
    assert worse > 3 * better


@pytest.mark.slow
def test_figure_has_real_and_generated_cells_along_the_covariate(evaluation, tmp_path):
    from bdm.pl import write_result
    from bdm.plotting.evaluation import covariates

    axes = covariates(evaluation, show=False)
    assert [axis.get_title() for axis in axes] == list(evaluation.along["gene"].unique()[:6])
    assert len(axes[0].containers) == 3
    write_result(tmp_path / "evaluation", evaluation)
    assert (tmp_path / "evaluation/covariates.png").is_file()
    rule = (ROOT / "workflow/rules/evaluate.smk").read_text()  # Snakemake removes what it names, before a second run
    written = {path.name for path in (tmp_path / "evaluation").iterdir()}
    assert written == {*re.findall(r"evaluation/([\w.]+)", rule), "covariates.png"}
    gene = evaluation.along["gene"].iloc[0]
    assert [axis.get_title() for axis in covariates(evaluation, gene, show=False)] == [gene]
    for arguments, message in (
        ({"genes": ["nothing"]}, "no gene along time 'nothing'; it has g"),
        ({"covariate": "dose"}, r"no covariate 'dose'; it has time\.$"),
        ({"name": "flat"}, r"no set 'flat'; it has floor, generated\.$"),
    ):
        with pytest.raises(InputError, match=f"The evaluation has {message}"):
            covariates(evaluation, **arguments, show=False)
