"""Donors: learned variation, and new donors."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse

from bdm._core.errors import InputError
from bdm._core.seeds import numpy_generator
from bdm.api import BranchedDiffusion
from bdm.autoencoder.observation import NegativeBinomial
from bdm.cli import app
from bdm.data.modalities import RNA, Modality
from bdm.effects.donor_composition import MAX_SUM, dirichlet_parameters, fit_composition
from bdm.effects.donor_variance import certainty, donor_variance, group_cells, pseudobulks
from bdm.report.card import model_card

N_GENES, N_DONORS, SD = 120, 24, 0.4


def simulated_cells(seed, *, sd=SD, n_donors=N_DONORS, n_cells=40, n_types=2, library_sd=0.0, age_sd=0.0):
    """Simulate donors with differences in the first half of the genes, of which ``age_sd`` are linear in age."""
    rng = np.random.default_rng(seed)
    expression = rng.gamma(1.0, 1.0, N_GENES) + 0.3
    effect = rng.normal(0, sd, (n_donors, N_GENES)) * (np.arange(N_GENES) < N_GENES // 2)
    size = rng.normal(0, library_sd, n_donors)
    age = np.random.default_rng(seed).permutation(np.linspace(20, 80, n_donors))
    by_age = age_sd * (age - age.mean()) / age.std()
    effect += by_age[:, None] * np.resize([1, -1], N_GENES) * (np.arange(N_GENES) < N_GENES // 2)
    size = size + by_age
    donor = np.repeat(np.arange(n_donors), n_cells)
    cell_type = np.tile(np.arange(n_types), len(donor) // n_types + 1)[: len(donor)]
    shifted = expression * np.exp(0.8 * (cell_type[:, None] == np.arange(N_GENES) % 3))
    mean = shifted * np.exp(effect[donor]) / shifted.sum(axis=1, keepdims=True)
    total = np.exp(rng.normal(np.log(800), 0.3, len(donor)) + size[donor])[:, None]
    counts = rng.poisson(mean * total * rng.gamma(4, 1 / 4, mean.shape))
    obs = pd.DataFrame({"cell_type": [f"type{code}" for code in cell_type], "donor": [f"d{code}" for code in donor]})
    obs["age"] = age[donor]
    return AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs.set_index(obs.index.astype(str)))


def bulk_of(cells, *, batch=None, factor=None):
    codes = pd.DataFrame({"donor": pd.factorize(cells.obs["donor"])[0], "cell_type": 0, "population": 0})
    codes["batch"] = 0 if batch is None else batch
    groups = group_cells(cells, np.arange(cells.n_obs), codes, Modality("rna", RNA, slice(0, cells.n_vars)))
    factor = np.ones((1, N_GENES)) if factor is None else factor
    return pseudobulks(groups, lambda table: factor[table["batch"]], n_donors=cells.obs["donor"].nunique())[0]


def test_variance_between_donors_is_recovered():
    fitted = donor_variance(bulk_of(simulated_cells(0, n_types=1, library_sd=0.3)))
    differing, alike = fitted.variance[: N_GENES // 2], fitted.variance[N_GENES // 2 : -1]
    # Relative standard error: 0.3 for the variance of 24 donors, 0.04 for the mean over 60 genes
    assert differing.mean() == pytest.approx(SD**2, rel=0.2)
    assert alike.mean() < 0.05 * SD**2
    assert fitted.variance[-1] == pytest.approx(0.3**2, rel=0.8)


def test_donors_without_effects_have_almost_no_variance():
    fitted = donor_variance(bulk_of(simulated_cells(1, sd=0, n_types=1)))
    assert fitted.variance.mean() < 0.02 * SD**2
    assert np.abs(fitted.score).mean() < 0.1


def test_a_donor_with_few_cells_does_not_dominate():
    cells = simulated_cells(2, sd=0, n_types=1)
    few = (cells.obs["donor"] != "d0") | (cells.obs.groupby("donor").cumcount() < 2).to_numpy()
    cells = cells[few.to_numpy()].copy()
    counts = cells.X.toarray()
    counts[(cells.obs["donor"] == "d0").to_numpy(), :5] += 3  # as many as three times the mean
    fitted = donor_variance(bulk_of(AnnData(sparse.csr_matrix(counts), obs=cells.obs)))
    assert fitted.variance[:5].max() < 0.1 * SD**2
    assert np.abs(fitted.weight[0]).max() < 0.3


def test_batches_are_no_differences_between_donors():
    cells = simulated_cells(3, sd=0, n_types=1)
    batch = (pd.factorize(cells.obs["donor"])[0] % 2).astype(int)
    factor = np.exp(np.random.default_rng(0).normal(0, 0.5, (2, N_GENES)))
    rng, mean = np.random.default_rng(1), cells.X.toarray() * factor[batch]
    shifted = AnnData(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)), obs=cells.obs)
    without, known = (
        donor_variance(bulk_of(shifted, batch=codes, factor=factors))
        for codes, factors in ((None, None), (batch, factor))
    )
    assert without.variance[:-1].mean() > 0.08  # expected: half of the variance of the log factors, 0.125
    assert known.variance[:-1].mean() < 0.02


def test_one_donor_has_no_variance():
    cells = simulated_cells(4, n_donors=2, n_types=1)
    assert donor_variance(bulk_of(cells[cells.obs["donor"] == "d0"].copy())) is None


def test_effects_of_few_donors_are_drawn_towards_none():
    assert [certainty(n) for n in (1, 2, 3, 5, 40)] == [0, 0.25, 0.5, 1, 1]
    few = donor_variance(bulk_of(simulated_cells(5, n_donors=2, n_cells=200, n_types=1)))
    assert few.variance[: N_GENES // 2].mean() < 0.6 * SD**2


@pytest.mark.parametrize("concentration", [2.0, 20.0])
def test_concentration_of_composition_is_recovered(concentration):
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.array([0.5, 0.3, 0.2]) * concentration, 200)
    numbers = pd.DataFrame([rng.multinomial(100, share) for share in shares], columns=["a", "b", "c"])
    parameters = dirichlet_parameters(numbers)
    assert sum(parameters.values()) == pytest.approx(concentration, rel=0.2)
    assert parameters["a"] / sum(parameters.values()) == pytest.approx(0.5, abs=0.05)


def test_equal_composition_has_a_large_concentration():
    rng = np.random.default_rng(0)
    numbers = pd.DataFrame(rng.multinomial(100, [0.5, 0.3, 0.2], 100), columns=["a", "b", "c"])
    assert sum(dirichlet_parameters(numbers).values()) > 300
    assert dirichlet_parameters(numbers[["a"]]) == {"a": MAX_SUM}


def test_composition_gives_shares_of_all_populations():
    rng = np.random.default_rng(0)
    donor, population = np.repeat(np.arange(6), 50), rng.choice(["B", "T/1", "T/2"], 300, p=[0.2, 0.5, 0.3])
    composition = fit_composition(donor, population, {"B": "B", "T/1": "T", "T/2": "T"}, share_fitted=0.5)
    shares, n_cells = composition.sample(np.random.default_rng(1))
    assert list(shares.index) == ["B", "T/1", "T/2"]
    assert shares.sum() == pytest.approx(1)
    assert n_cells == 100
    added = composition.with_type("NK", ["NK"], 0.25, [100.0])
    assert added.cell_types["NK"] / added.concentration == pytest.approx(0.25)


@pytest.mark.parametrize("numbers", [(300, 500, 900, 1000, 4000), tuple(range(50, 450, 10)), (100, 200), (70, 70, 70)])
def test_numbers_of_cells_vary_as_they_do_between_donors(numbers):
    donor = np.repeat(np.arange(len(numbers)), numbers)
    composition = fit_composition(donor, np.repeat("B", sum(numbers)), {"B": "B"}, share_fitted=1.0)
    log_numbers = np.log([composition.sample(rng)[1] for rng in np.random.default_rng(0).spawn(2000)])
    expected = certainty(len(numbers)) * np.log(numbers).var(ddof=1)
    assert log_numbers.var() == pytest.approx(expected, rel=0.1, abs=1e-6)
    assert log_numbers.mean() == pytest.approx(np.log(numbers).mean(), abs=0.2 * np.sqrt(expected) + 1e-6)


def test_observation_within_donors_has_the_dispersion_that_is_left():
    r, variance = torch.tensor([2.0, 50.0, 1.0]), torch.tensor([0.1, 0.1, 0.0])
    within = NegativeBinomial(r.log()).within(variance).inverse_dispersion
    assert (1 + 1 / within[0]) * torch.exp(variance[0]) == pytest.approx(1 + 1 / 2)
    assert within[1] == pytest.approx(1e4, rel=1e-3)  # all of its variance is between donors
    assert within[2] == pytest.approx(1.0)


@pytest.fixture(scope="module")
def donor_model(small_settings):
    return BranchedDiffusion(simulated_cells(6), donor_key="donor", settings=small_settings).fit()


def test_model_learns_donors_and_keeps_them(donor_model, tmp_path):
    donors = donor_model.model.donors
    assert donors.n_donors == N_DONORS
    donor_model.save(tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    assert f"| donors | {N_DONORS}, in the column `donor` |" in card
    assert f"composition and number of cells ({N_DONORS} donors, standard deviation of log expression 0." in card
    assert "the donors of `bdm simulate` are new" in card
    assert "in each population" not in card
    again = BranchedDiffusion.load(tmp_path / "model").model.donors
    sampled, repeated = (of.sample(3, numpy_generator(0, "donors")) for of in (donors, again))
    np.testing.assert_array_equal(sampled.log_expression("type0"), repeated.log_expression("type0"))
    pd.testing.assert_frame_equal(sampled.proportions, repeated.proportions)
    assert not re.search(r"\bd0\b", (tmp_path / "model" / "model.json").read_text())  # no donor is named


def test_new_donors_vary_as_donors_do(donor_model):
    sampled = donor_model.model.donors.sample(400, numpy_generator(1, "donors"))
    offsets = sampled.log_expression("type0")
    variance = offsets.var(axis=0)
    genes = donor_model.prepared.var_names.astype(int).to_numpy()
    assert variance[genes < N_GENES // 2].mean() == pytest.approx(SD**2, rel=0.25)
    assert variance[genes >= N_GENES // 2].mean() < 0.1 * SD**2
    assert np.exp(offsets).mean() == pytest.approx(1, abs=0.01)
    of_types = [sampled.log_expression(name)[:, genes < N_GENES // 2] for name in ("type0", "type1")]
    correlation = np.mean([np.corrcoef(*pair)[0, 1] for pair in zip(*(of.T for of in of_types), strict=True)])
    assert correlation > 0.6  # effects are alike in both types


@pytest.mark.parametrize(("age_sd", "sd"), [(0.26, 0.0), (0.0, 0.3)])
def test_what_follows_from_covariates_is_no_difference_between_donors(age_sd, sd, small_settings):
    cells, keys = simulated_cells(10, sd=sd, age_sd=age_sd), {"donor_key": "donor", "covariate_key": "age"}
    model = BranchedDiffusion(cells, settings=small_settings, **keys).fit()
    genes, fitted = model.prepared.var_names.astype(int).to_numpy(), model.model.donor_effects.sd.numpy()
    # 0.24 of age_sd without the covariate; curves of age take a part of other differences by chance
    assert fitted[:, :-1][:, genes < N_GENES // 2].mean() == pytest.approx(0.95 * sd, abs=0.05)
    assert fitted[:, -1].max() < 0.1


def test_a_donor_depends_on_its_number_alone(donor_model):
    donors = donor_model.model.donors
    few, more = (donors.sample(n, numpy_generator(2, "donors")) for n in (2, 5))
    np.testing.assert_array_equal(few.log_expression("type1"), more.log_expression("type1")[:2])
    pd.testing.assert_frame_equal(few.proportions, more.proportions.iloc[:2])
    assert few.n_cells.tolist() == more.n_cells[:2].tolist()
    assert not np.array_equal(few.log_expression("type1")[0], few.log_expression("type1")[1])


def at_donors(donors, number):
    return pd.DataFrame({"donor": np.array(donors.names)[number]})


def test_cells_of_a_donor_vary_less_than_all(donor_model):
    model = donor_model.model
    sampled, population = model.donors.sample(300, numpy_generator(3, "donors")), model.populations[0]
    moments = model.moments
    covariance = moments.covariance[moments.populations.index(population)]
    mean = moments.mean[moments.populations.index(population)]
    generator = torch.Generator().manual_seed(0)
    x = mean + torch.randn(3000, len(mean), generator=generator) @ torch.linalg.cholesky(covariance).T
    donor = np.arange(3000) % 300
    moved = sampled.move(x, at_donors(sampled, donor), population, model.latent_space)
    centred = moved - torch.stack([moved[donor == number].mean(dim=0) for number in range(300)])[donor]
    assert centred.square().sum() < (x - x.mean(dim=0)).square().sum()
    size = model.whitening.inverse(moved)[:, -1], model.whitening.inverse(x)[:, -1]
    assert size[0].var() == pytest.approx(float(size[1].var()), rel=0.15)


def test_added_types_have_no_effects_of_donors(donor_model, small_settings, tmp_path):
    cells = simulated_cells(7, n_donors=4, n_types=1)
    cells.obs["cell_type"] = "new"
    model = BranchedDiffusion(simulated_cells(6), donor_key="donor", settings=small_settings)
    model.fitted, model.prepared = donor_model.fitted, None
    model.extend(cells)
    sampled = model.model.donors.sample(2, numpy_generator(4, "donors"))
    assert not sampled.log_expression("new").any()
    x = torch.zeros(3, len(model.model.layout.names))
    assert sampled.move(x, at_donors(sampled, np.array([0, 1, 1])), "new", model.model.latent_space) is x
    assert sampled.log_expression("type0").any()
    assert {"new", "type0", "type1"} <= {name.partition("/")[0] for name in sampled.proportions}
    model.save(tmp_path / "extended")
    again = BranchedDiffusion.load(tmp_path / "extended").model.donors.sample(2, numpy_generator(4, "donors"))
    pd.testing.assert_frame_equal(again.proportions, sampled.proportions)


def nested(obs):
    return obs["cell_type"].map({"type0": "a", "type1": "b", "type2": "c"})


def apart(obs):
    return pd.Series(np.where(obs["cell_type"] == "type2", "b", "a"), index=obs.index)


@pytest.mark.parametrize(
    ("change", "keys", "message"),
    [
        (None, {"donor_key": "person"}, "obs has no column 'person'"),
        ({"donor": "d"}, {"donor_key": "donor"}, "has one value for all cells"),
        ({"donor": nested}, {"donor_key": "donor"}, "has cells of one cell type only"),
        ({"donor": apart}, {"donor_key": "donor"}, "No cell type has cells of several donors"),
        ({"lane": lambda obs: "lane " + obs["donor"]}, {"donor_key": "donor", "batch_key": "lane"}, "is a batch"),
    ],
)
def test_donors_that_cannot_be_learned_are_rejected(change, keys, message, small_settings):
    cells = simulated_cells(8, n_donors=3, n_types=3)
    cells.obs = cells.obs.assign(**(change or {}))
    with pytest.raises(InputError, match=re.escape(message)):
        BranchedDiffusion(cells, settings=small_settings, **keys)


def test_card_says_that_sub_populations_are_of_one_donor(donor_model):
    model, autoencoder = donor_model.model, donor_model.model.autoencoder
    cell_type = model.cell_types[0]
    of_donor = replace(autoencoder, one_donor=autoencoder.populations_of(cell_type)[:1])
    card = model_card(replace(model, autoencoder=of_donor))
    words = "More than half of the cells are from one donor in"
    assert f"{words} 1 sub-population of {cell_type}." in card
    assert words not in model_card(model)
    assert "no generated cell belongs to a donor" not in card


def test_commands_learn_donors_and_name_few(tmp_path, caplog):
    caplog.set_level("INFO")
    simulated_cells(9, n_donors=3).write_h5ad(tmp_path / "cells.h5ad")
    at = {name: str(tmp_path / name) for name in ("cells.h5ad", "prepared.h5ad", "autoencoder", "tree.json", "model")}
    small = ["--n-latent", "4", "--n-steps", "30"]
    for arguments in (
        ["prepare", at["cells.h5ad"], at["prepared.h5ad"], "--donor-key", "donor", "--test", "0.2"],
        ["autoencoder", at["prepared.h5ad"], at["autoencoder"], *small],
        ["hierarchy", at["autoencoder"], at["tree.json"], "--n-bootstrap", "0"],
        ["train", at["autoencoder"], at["tree.json"], at["model"], "--n-steps", "100", "--width", "16"],
    ):
        app(arguments, standalone_mode=False)
    assert "fewer than 5 donors" in caplog.text
    assert "50%" in caplog.text
    assert BranchedDiffusion.load(tmp_path / "model").model.donors.n_donors == 3
