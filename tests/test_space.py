"""Cells in space: simulated cells whose expression and types follow known fields."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from scipy.stats import multivariate_normal

from bdm._core.errors import InputError
from bdm.api import BranchedDiffusion
from bdm.data.prepare import prepare
from bdm.effects.fit_space import inverse_variance, narrowed
from bdm.effects.surfaces import (
    Basis,
    BlockDesign,
    LocalFields,
    Places,
    fit_scaled_surfaces,
    fit_surfaces,
    held_out_gain,
    local_variance,
    matern,
)
from bdm.effects.tissue import Tissue, choose, nearest_distance
from bdm.generation.request import cells_like
from bdm.model.model import load_model
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, Settings

N_GENES, GRADIENT, OF_ONE_TYPE, WAVE, CONSTANT = 40, slice(0, 6), slice(6, 12), 15, slice(20, 40)


def simulated(n: int = 700, seed: int = 0) -> ad.AnnData:
    """Simulate two types on a plane: B is rare on the left, some genes rise to the right, others in type A upwards.

    One gene varies in type B alone, in stripes.
    """
    rng = np.random.default_rng(seed)
    positions = rng.random((n, 2)) * [2000, 1000]
    right, up = positions[:, 0] / 2000, positions[:, 1] / 1000
    is_b = rng.random(n) < right
    log_mean = np.tile(np.random.default_rng(7).normal(0, 0.5, N_GENES), (n, 1))
    log_mean[is_b, -5:] += 2
    log_mean[:, GRADIENT] += 2 * (right[:, None] - 0.5)
    log_mean[~is_b, OF_ONE_TYPE] += 2 * (up[~is_b, None] - 0.5)
    log_mean[is_b, WAVE] += stripes(positions[is_b])
    expression = np.exp(log_mean) / np.exp(log_mean).sum(axis=1, keepdims=True)
    counts = rng.poisson(rng.lognormal(6, 0.2, n)[:, None] * expression).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.where(is_b, "B", "A"), "slide": np.where(rng.random(n) < 0.5, "s1", "s2")})
    obs.index = [f"cell-{i}" for i in range(n)]
    var = pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)])
    return ad.AnnData(counts, obs=obs, var=var, obsm={"xy": positions})


def stripes(positions: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * positions[:, 1] / 1000)


SETTINGS = Settings(
    prepare=PrepareSettings(genes="all", test=0.0),
    autoencoder=AutoencoderSettings(n_latent=5, n_steps=120, sub_populations="none"),
    hierarchy=HierarchySettings(n_bootstrap=0),
)


@pytest.fixture(scope="module")
def cells():
    return simulated()


@pytest.fixture(scope="module")
def model(cells):
    return BranchedDiffusion(cells, spatial_key="xy", settings=SETTINGS).fit()


@pytest.fixture(scope="module")
def of_sections(cells):
    return BranchedDiffusion(cells, spatial_key="xy", section_key="slide", batch_key="slide", settings=SETTINGS).fit()


def grid(n: int = 30) -> Places:
    x, y = np.meshgrid(np.linspace(-1, 1, n), np.linspace(-1, 1, n))
    return Places(np.column_stack([x.ravel(), y.ravel()]), np.zeros(n * n, dtype=int))


# ---- surfaces


def test_the_basis_has_the_covariance_of_the_kernel_within_sections():
    places = grid(12)
    places = Places(places.positions, np.arange(144) % 2)
    functions = Basis.from_places(places, 0.8, seed=0)(places)
    distance = np.linalg.norm(places.positions[:, None] - places.positions, axis=2)
    expected = np.where(places.section[:, None] == places.section, matern(distance, 0.8), 0)
    error = functions @ functions.T - expected
    assert np.abs(error).max() < 0.15
    assert np.abs(error[expected == 0]).max() == 0


def test_the_gain_is_the_log_density_of_left_out_blocks_given_the_others():
    places, rng = grid(6), np.random.default_rng(0)
    functions = Basis.from_places(places, 0.7, seed=0)(places)
    block, values = places.blocks() % 3, rng.normal(size=(36, 2))
    design = BlockDesign(functions, np.ones(36), block)
    total, variance = np.array([1.0, 2.0]), np.array([0.3, 0.5])
    gain = held_out_gain(design.statistics(values), variance, total)

    def log_density(cells: np.ndarray, k: int, surface: float) -> float:
        covariance = surface * functions[cells] @ functions[cells].T + (total[k] - surface) * np.eye(cells.sum())
        return float(multivariate_normal(cov=covariance).logpdf(values[cells, k]))

    every = np.ones(36, dtype=bool)
    for k in range(2):
        expected = sum(
            (log_density(every, k, surface) - log_density(block != number, k, surface)) * sign
            for number in range(3)
            for surface, sign in ((variance[k], 1), (0.0, -1))
        )
        assert gain[k] == pytest.approx(expected, rel=1e-6)


def test_surfaces_follow_a_field_and_leave_noise_alone():
    places, rng = grid(), np.random.default_rng(0)
    field = np.sin(3 * places.positions[:, 0])
    values = np.column_stack([field, np.zeros_like(field)]) + rng.normal(0, 1, (900, 2))
    design = BlockDesign(Basis.from_places(places, 0.4, seed=0)(places), np.ones(900), places.blocks())
    coefficients, strength, gain = fit_surfaces(design, values)
    assert np.corrcoef(design.functions @ coefficients[:, 0], field)[0, 1] > 0.9
    assert strength[0] > 0
    assert strength[1] == 0
    assert not coefficients[:, 1].any()
    assert gain[0] > 50
    assert not fit_scaled_surfaces(design, rng.normal(0, 1, (900, 2)), np.array([0.3, 0.3])).any()


def test_one_block_supports_no_surface():
    places = grid(5)
    design = BlockDesign(Basis.from_places(places, 0.4, seed=0)(places), np.ones(25), np.zeros(25, dtype=int))
    _, strength, _ = fit_surfaces(design, places.positions)
    assert not strength.any()


def test_local_fields_have_the_covariance_of_the_kernel_and_differ_between_sections():
    places = grid(10)
    fields = LocalFields.from_seed(4000, 2, 0.3, seed=0, name="test")(places)
    covariance = fields @ fields.T / 4000
    distance = np.linalg.norm(places.positions[:, None] - places.positions, axis=2)
    assert np.abs(covariance - matern(distance, 0.3)).max() < 0.2
    others = LocalFields.from_seed(4000, 2, 0.3, seed=0, name="test")(replace(places, section=places.section + 1))
    assert np.abs((fields * others).mean()) < 0.1


def test_local_variance_is_the_covariance_of_neighbours_beyond_the_surface():
    places, rng = grid(), np.random.default_rng(0)
    shared = LocalFields.from_seed(20, 2, 0.15, seed=1, name="test")(places) * np.sqrt(0.4)
    shared[:, 10:] = 0
    values = shared + rng.normal(0, np.sqrt(0.6), (900, 20))
    cells, neighbours = places.neighbours()
    kernel = matern(places.distance(cells, neighbours), 0.15).mean()
    expected = (shared[cells] * shared[neighbours]).mean(axis=0) / kernel
    variance = local_variance(values, np.zeros_like(values), np.ones(900), places, 0.15, 3.0)
    assert np.abs(variance - expected).mean() < 0.05
    assert (variance[10:] == 0).mean() > 0.8
    assert local_variance(values, shared, np.ones(900), places, 0.15, 3.0).mean() < 0.05


def test_neighbours_are_of_the_same_section():
    places = Places(np.random.default_rng(0).random((50, 2)), np.arange(50) % 2)
    cells, neighbours = places.neighbours()
    assert len(cells) == 50 * 6
    assert (places.section[cells] == places.section[neighbours]).all()
    assert not (cells == neighbours).any()
    lonely = Places(np.zeros((1, 2)), np.zeros(1, dtype=int))
    assert not len(lonely.neighbours()[0])
    uneven = Places(np.repeat(np.random.default_rng(0).random((6, 2)), 5, axis=0), np.repeat([0, 1], [26, 4]))
    cells, neighbours = uneven.neighbours(10)
    assert (np.bincount(cells) == np.repeat([10, 3], [26, 4])).all()
    assert not (cells == neighbours).any()
    assert uneven.spacing > 0


def test_sections_with_distant_coordinates_are_apart():
    places = Places(np.array([[1e3, 0.0], [0.0, 0.0], [0.0, 0.0]]), np.array([0, 1, 1]))
    first, *_ = distances = np.linalg.norm(places.apart()[:, None] - places.apart(), axis=2)
    assert (first[1:] >= 1e3).all()
    assert distances[1, 2] == 0


# ---- parts of the effects


def test_a_narrowed_population_keeps_its_covariance_over_positions():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(4, 4)) / 3 + np.eye(4)
    covariance = root @ root.T
    surface = rng.normal(0, 0.3, (5000, 4))
    local = np.array([[0.2, 0.1, 0.0, 0.0]])
    transposed = narrowed(torch.from_numpy(covariance), surface, local)
    total = transposed.T @ covariance @ transposed + surface.T @ surface / 5000 + local.T @ local
    assert total == pytest.approx(covariance, abs=1e-6)


def test_residuals_of_deep_cells_weigh_more_as_far_as_their_variance_is_smaller():
    rng = np.random.default_rng(0)
    size = rng.lognormal(6, 1, 3000)
    variance = 2 * size.mean() / size + 3
    residuals = rng.normal(size=(3000, 20)) * np.sqrt(variance)[:, None] * rng.lognormal(size=20)
    expected = 1 / variance / (1 / variance).mean()
    assert inverse_variance(residuals, size) == pytest.approx(expected, rel=0.15)


def test_chosen_populations_have_their_shares_and_are_alike_in_neighbours():
    places, rng = grid(60), np.random.default_rng(0)
    log_odds = np.log([0.2, 0.3, 0.5])[None].repeat(len(places), axis=0)
    independent = rng.standard_normal(log_odds.shape)
    shared = LocalFields.from_seed(3, 2, 0.1, seed=0, name="test")(places)
    cells, neighbours = places.neighbours()
    agreement = []
    for coupling in (0.0, 0.9):
        chosen = choose(log_odds, independent, shared, coupling)
        assert np.bincount(chosen) / len(places) == pytest.approx([0.2, 0.3, 0.5], abs=0.08)
        agreement.append((chosen[cells] == chosen[neighbours]).mean())
    assert agreement[0] == pytest.approx(0.38, abs=0.03)
    assert agreement[1] > 0.6


def test_new_positions_are_as_dense_as_cells():
    rng = np.random.default_rng(0)
    left = rng.random((900, 2)) * [1, 2]
    right = rng.random((100, 2)) * [1, 2] + [3, 0]
    tissue = Tissue.from_places(Places(np.concatenate([left, right]), np.zeros(1000, dtype=int)))
    drawn = tissue.sample(5000, np.random.default_rng(1))
    assert (drawn.positions[:, 0] < 2).mean() == pytest.approx(0.9, abs=0.03)
    assert tissue.contains(drawn).all()
    assert not tissue.contains(Places(np.array([[2.0, 1.0], [0.5, 9.0]]), np.zeros(2, dtype=int))).any()
    assert not tissue.contains(Places(np.array([[0.5, 1.0]]), np.ones(1, dtype=int))).any()


@pytest.mark.parametrize("jitter", [0.05, 0.15])
def test_new_positions_keep_the_distances_of_cells(jitter):
    """A lattice of two sections, one at half the density, and independent positions."""
    rng, (x, y) = np.random.default_rng(0), np.mgrid[:40, :40].reshape(2, -1)
    lattice = np.column_stack([x + 0.5 * (y % 2), y * np.sqrt(0.75)]) + rng.normal(0, jitter, (1600, 2))
    positions = np.concatenate([lattice, 2 * lattice, 40 * rng.random((1600, 2))])
    real = Places(positions, np.arange(3).repeat(1600))
    tissue = Tissue.from_places(real)
    new = tissue.sample(len(real), np.random.default_rng(1))
    for section in range(3):
        expected, found = (
            np.quantile(nearest_distance(places.positions[places.section == section])[0], [0.05, 0.5, 0.95])
            for places in (real, new)
        )
        assert found == pytest.approx(expected, rel=0.15 if section == 2 else 0.06)
    assert tissue.contains(new).all()
    uniform = Tissue(tissue.width, tissue.bins, tissue.n_cells).sample(1600, np.random.default_rng(1), section=0)
    assert np.quantile(nearest_distance(uniform.positions)[0], 0.05) < 0.2  # models of bdm 0.1.0


# ---- models


def log_change(adata: ad.AnnData, of: np.ndarray) -> np.ndarray:
    """Log ratio of the shares of genes in the half of the cells where ``of`` is larger."""
    counts, upper = adata.X.toarray(), of > np.median(of)
    high, low = (counts[rows].sum(axis=0) + 1 for rows in (upper, ~upper))
    return np.log(high / high[CONSTANT].sum()) - np.log(low / low[CONSTANT].sum())


def test_generated_cells_follow_the_fields_of_their_type(model, cells):
    new = model.generate(cells, seed=1)
    assert new.n_obs == cells.n_obs
    assert sorted(map(tuple, new.obsm["xy"].round(6))) == sorted(map(tuple, cells.obsm["xy"].round(6)))
    assert (new.obs["cell_type"].value_counts() == cells.obs["cell_type"].value_counts()).all()
    real = ad.AnnData(sparse.csr_matrix(cells.X), obs=cells.obs, obsm=dict(cells.obsm))
    for name, axis, genes in (("A", 0, GRADIENT), ("A", 1, OF_ONE_TYPE), ("B", 1, OF_ONE_TYPE)):
        change, truth = (
            log_change(part, part.obsm["xy"][:, axis])[genes].mean()
            for part in (sets[sets.obs["cell_type"] == name] for sets in (new, real))
        )
        assert change == pytest.approx(truth, abs=0.2)


def test_a_gene_follows_the_field_of_one_type(model, cells):
    new = model.generate(cells, seed=1)
    for name, smallest, largest in (("A", -0.1, 0.1), ("B", 0.35, 0.8)):
        part = new[new.obs["cell_type"] == name]
        counts = part.X[:, WAVE].toarray().ravel()
        assert smallest < np.cov(counts / counts.mean(), stripes(part.obsm["xy"]))[0, 1] < largest
    own = model.model.space.genes.has_own
    assert own[WAVE, 1]
    assert own[CONSTANT].mean() < 0.1


def test_types_follow_the_map(model):
    new = model.generate(new_locations=3000, seed=2)
    is_b = (new.obs["cell_type"] == "B").to_numpy()
    x = new.obsm["xy"][:, 0]
    assert is_b[x < 500].mean() < 0.3
    assert is_b[x > 1500].mean() > 0.7


def test_cells_without_positions_are_as_without_the_key(model, cells):
    plain = BranchedDiffusion(cells, settings=SETTINGS).fit()
    first, second = plain.generate(50, seed=3), model.generate(50, seed=3)
    assert (first.X != second.X).nnz == 0
    assert "xy" not in second.obsm


@pytest.mark.parametrize("seed", [0, 4])
def test_nothing_spatial_gives_no_surface(cells, seed):
    shuffled = cells.copy()
    shuffled.obsm["xy"] = np.random.default_rng(seed).permutation(cells.obsm["xy"])
    space = BranchedDiffusion(shuffled, spatial_key="xy", settings=SETTINGS).fit().model.space
    assert not space.coefficients.any()
    assert not len(space.local)
    assert not space.log_odds.any()
    assert space.genes.number < 0.1 * N_GENES


def test_real_cells_at_random_positions_have_no_surface(example_cells, small_settings):
    """Axes of latents are chosen by autocorrelation, and rare genes are in few cells."""
    cells = example_cells.copy()
    cells.obsm["spatial"] = np.random.default_rng(0).random((cells.n_obs, 2))
    keys = {"label_key": "bulk_labels", "spatial_key": "spatial"}
    space = BranchedDiffusion(cells, **keys, settings=small_settings).fit().model.space
    assert not space.coefficients.any()
    assert not len(space.local)
    assert space.genes.number < 0.05 * len(space.genes.shared)


def test_a_seed_gives_the_same_cells_at_a_location_whatever_else_is_generated(model):
    table = pd.DataFrame({"x": [300.0, 900.0, 1500.0], "y": [400.0, 500.0, 600.0], "cell_type": ["A", "A", "A"]})
    every, first = model.generate(table, seed=4), model.generate(table.iloc[:1], seed=4)
    assert (every.X[0] != first.X[0]).nnz == 0
    assert (every.X != model.generate(table, seed=4).X).nnz == 0
    assert (every.X != model.generate(table, seed=5).X).nnz > 0


def test_batches_and_covariates_at_positions(cells):
    """Each request is one table: a batch or a covariate at positions, and missing ones filled."""
    timed, key = cells[:300].copy(), "slide"
    timed.obs["hour"] = np.linspace(0, 10, 300)
    keys = {"spatial_key": "xy", "batch_key": key, "covariate_key": "hour"}
    model = BranchedDiffusion(timed, **keys, settings=SETTINGS).fit()
    like = cells_like(timed, model.model)
    assert list(like) == ["hour", "cell_type", "batch", "x", "y"]
    table = like.drop(columns="hour").assign(batch="s2", well=range(300)).set_axis(timed.obs_names)
    new = model.generate(table, at={"hour": 5})
    assert list(new.obs_names) == list(timed.obs_names)
    np.testing.assert_allclose(new.obsm["xy"], timed.obsm["xy"])
    assert list(new.obs["cell_type"]) == list(timed.obs["cell_type"])
    assert list(new.obs["well"]) == list(range(300))
    assert (new.obs[key] == "s2").all()
    assert (new.obs["hour"] == 5).all()
    spread = model.generate(table[["x", "y"]].sort_values("x"), at={"hour": (2, 8)})
    assert sorted(spread.obs["hour"]) == pytest.approx(list(np.linspace(2, 8, 300)), abs=0.2)
    assert abs(np.corrcoef(spread.obs["hour"], spread.obsm["xy"][:, 0])[0, 1]) < 0.1
    assert set(spread.obs[key]) == {"s1", "s2"}
    repeated = model.generate(timed)
    assert list(repeated.obs[key]) == list(timed.obs[key])
    np.testing.assert_allclose(repeated.obs["hour"], timed.obs["hour"])
    np.testing.assert_allclose(repeated.obsm["xy"], timed.obsm["xy"])


def test_sections_and_batches_come_through(of_sections, cells):
    new = of_sections.generate(cells, seed=0)
    assert (new.obs["slide"].value_counts() == cells.obs["slide"].value_counts()).all()
    place = {
        tuple(position): slide for position, slide in zip(cells.obsm["xy"].round(6), cells.obs["slide"], strict=True)
    }
    assert [place[tuple(position)] for position in new.obsm["xy"].round(6)] == list(new.obs["slide"])
    anywhere = of_sections.generate(new_locations=200, seed=0)
    assert set(anywhere.obs["slide"]) == {"s1", "s2"}
    assert of_sections.model.space.sections == ("s1", "s2")


def test_a_saved_model_generates_the_same_cells(model, cells, tmp_path):
    model.save(tmp_path / "model")
    loaded = BranchedDiffusion.load(tmp_path / "model")
    assert (loaded.generate(cells, seed=0).X != model.generate(cells, seed=0).X).nnz == 0
    assert load_model(tmp_path / "model").space.summary == model.model.space.summary


def test_small_sections_and_equal_positions(cells):
    """Spots of a lattice, as of several overlaid slides, with a section of few cells."""
    spots = cells.copy()
    spots.obsm["xy"] = (spots.obsm["xy"] / 100).round() * 100
    spots.obs["slide"] = np.where(np.arange(spots.n_obs) < 10, "small", "large")
    model = BranchedDiffusion(spots, spatial_key="xy", section_key="slide", settings=SETTINGS).fit()
    assert np.isfinite(model.generate(spots).X.data).all()


def test_three_coordinates(cells):
    deep = cells.copy()
    deep.obsm["xyz"] = np.column_stack([cells.obsm["xy"], np.random.default_rng(0).random(cells.n_obs) * 500])
    model = BranchedDiffusion(deep, spatial_key="xyz", settings=SETTINGS).fit()
    assert model.generate(new_locations=20).obsm["xyz"].shape == (20, 3)
    with pytest.raises(InputError, match="column 'z'"):
        model.generate(pd.DataFrame({"x": [1.0], "y": [1.0]}))


def test_commands(bdm, cells, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    options = ["--label-key", "cell_type", "--genes", "all", "--spatial-key", "xy"]
    assert bdm("fit", tmp_path / "cells.h5ad", tmp_path / "model", *options)[0] == 0
    assert bdm("generate", tmp_path / "model", tmp_path / "like.h5ad", "--cells-like", tmp_path / "cells.h5ad")[0] == 0
    assert ad.read_h5ad(tmp_path / "like.h5ad").obsm["xy"].shape == (700, 2)
    assert bdm("generate", tmp_path / "model", tmp_path / "new.h5ad", "--new-locations", 30)[0] == 0
    assert ad.read_h5ad(tmp_path / "new.h5ad").n_obs == 30
    like = ("generate", tmp_path / "model", tmp_path / "at.h5ad", "--cells-like", tmp_path / "cells.h5ad")
    code, message = bdm(*like, "--at", "time=.5")
    assert (code, "The model has no covariates" in message) == (2, True)
    (tmp_path / "positions.csv").write_text("x,y\n300,400\n9e5,400\n")
    arguments = ("generate", tmp_path / "model", tmp_path / "at.h5ad", "--cells-from", tmp_path / "positions.csv")
    code, message = bdm(*arguments)
    assert code == 2
    assert "1 of 2 positions are far from all training cells" in message
    assert "--extrapolate" in message
    assert bdm(*arguments, "--extrapolate")[0] == 0
    code, message = bdm("generate", tmp_path / "model", tmp_path / "no.h5ad", "--new-locations", 3, "--cells", 3)
    assert code == 2
    assert "--new-locations" in message


# ---- invalid input


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda xy: None, r"no obsm\['xy'\]"),
        (lambda xy: np.column_stack([xy, xy]), "two or three coordinates"),
        (lambda xy: np.where(np.arange(len(xy))[:, None] == 3, np.nan, xy), "no finite position for 1 of 700"),
        (lambda xy: xy * [1, 0], "A coordinate is constant in all cells"),
        (lambda xy: xy.astype(str), None),
        (lambda xy: np.full(xy.shape, "a"), "no numbers"),
    ],
)
def test_invalid_positions(cells, change, sentence):
    invalid = cells.copy()
    positions = change(cells.obsm["xy"])
    del invalid.obsm["xy"]
    if positions is not None:
        invalid.obsm["xy"] = positions
    settings = replace(SETTINGS.prepare, spatial_key="xy")
    if sentence is None:  # numbers as text
        assert prepare(invalid, settings).obsm["spatial"] == pytest.approx(cells.obsm["xy"])
        return
    with pytest.raises(InputError, match=sentence):
        prepare(invalid, settings)


def test_unused_positions_are_mentioned(cells, caplog):
    caplog.set_level("INFO", logger="bdm")
    placed = ad.AnnData(cells.X, cells.obs, cells.var, obsm={"spatial": cells.obsm["xy"]})
    assert "spatial" not in prepare(placed, SETTINGS.prepare).obsm
    assert "set `spatial_key='spatial'`" in caplog.text


def test_invalid_sections(cells):
    with pytest.raises(InputError, match="section_key needs positions"):
        PrepareSettings(section_key="slide")
    settings = replace(SETTINGS.prepare, spatial_key="xy", section_key="slide")
    with pytest.raises(InputError, match="no column 'slide'"):
        prepare(ad.AnnData(cells.X, cells.obs[["cell_type"]], cells.var, obsm=dict(cells.obsm)), settings)
    lonely = cells.copy()
    lonely.obs["slide"] = ["alone", *lonely.obs["slide"][1:]]
    with pytest.raises(InputError, match="section 'alone'"):
        prepare(lonely, settings)


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({"x": [1.0]}, "column 'y'"),
        ({"x": [1.0], "y": ["here"]}, "'here' for 'y'"),
        ({"x": [1.0], "y": [1.0], "synthetic": ["A"]}, "column 'synthetic'"),
        ({"x": [1.0], "y": [1.0], "cell_type": ["C"]}, "no type 'C'"),
        ({"x": [], "y": []}, "no cells"),
        ({"x": [1.0], "y": [1.0], "section": ["s9"]}, "no section 's9'"),
    ],
)
def test_invalid_locations(model, table, sentence):
    with pytest.raises(InputError, match=sentence):
        model.generate(pd.DataFrame(table))


def test_a_few_locations_outside_are_a_warning(model, cells, caplog):
    locations = pd.DataFrame(cells.obsm["xy"][:200], columns=["x", "y"])
    locations.loc[0, "x"] = 9e5
    assert model.generate(locations).n_obs == 200
    assert "1 of 200 positions are far from all training cells" in caplog.text


def test_requests_that_models_cannot_answer(model, of_sections, cells):
    table = pd.DataFrame({"x": [300.0], "y": [400.0]})
    with pytest.raises(InputError, match="no positions; fit it with `spatial_key=`"):
        BranchedDiffusion(cells, settings=SETTINGS).fit().generate(table)
    with pytest.raises(InputError, match="positions have no section"):
        of_sections.generate(table)
    with pytest.raises(InputError, match="some cells have another batch"):
        of_sections.generate(table.assign(section="s1", batch="s2"))
    with pytest.raises(InputError, match="either `cells=`"):
        model.generate(10, new_locations=10)
    for number, problem in ((0, "at least 1"), ("100", "a whole number")):
        with pytest.raises(InputError, match=f"new_locations is .*, but must be {problem}"):
            model.generate(new_locations=number)
