"""The benchmark of differential privacy: what a donor can change, and how much noise hides it."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from opacus.accountants import RDPAccountant
from test_protection import cells_of_donors, settings_with

from bdm.api import BranchedDiffusion
from bdm.audit.folds import MEMBERS, REFERENCE, training_cells
from bdm.data.matrix import take_cells
from bdm.latent.cells import encode, latent_cells
from bdm.latent.moments import fit_whitening

pytestmark = pytest.mark.nightly


@pytest.fixture(scope="module")
def scripts():
    """The modules of the benchmark, with small models."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[1] / "benchmarks/scripts")
        names = ("differential_privacy", "differential_privacy_table", "privacy_divisions")
        private, table, divisions = (importlib.import_module(name) for name in names)
        small, of = settings_with("none"), private.SETTINGS
        one_network = replace(small.autoencoder, shared_decoder=True)
        patch.setattr(private, "SETTINGS", replace(of, autoencoder=one_network, denoiser=small.denoiser))
        yield private, table, divisions


@pytest.fixture(scope="module")
def prepared():
    return BranchedDiffusion(cells_of_donors(n_donors=18), settings=settings_with("none")).prepared


@pytest.fixture(scope="module")
def divided(scripts, prepared):
    """A fit to the reference, and the cells of the members."""
    private, _, divisions = scripts
    fold = divisions.divide(prepared, "thirds-1", n_others=0, seed=0)
    members, reference = (training_cells(prepared, fold, part, seed=0) for part in (MEMBERS, REFERENCE))
    return private.Fit.to(reference, seed=0), members


def without_donor(cells, donor):
    return take_cells(cells, np.flatnonzero((cells.obs["donor"] != donor).to_numpy()))


def moved_means(private, public, members, epsilon, seed):
    """Differences between means with the mechanism and public means, in whitened units."""
    whitening = fit_whitening(latent_cells(public.latent))
    latent = encode(members, public.autoencoder)
    moved = private.with_private_means(public, latent, epsilon=epsilon, seed=seed)
    before, after = (private.means_by(of, whitening, ["cell_type"]) for of in (public.latent, moved))
    return (after - before).to_numpy().ravel()


def distances(private, public, latent):
    """Distances of donors from the public means, in whitened units."""
    whitening = fit_whitening(latent_cells(public.latent))
    means = private.means_by(public.latent, whitening, ["cell_type"])
    return np.linalg.norm(private.deviations(latent, whitening, means), axis=1)


def test_no_donor_moves_the_means_by_more_than_the_bound(scripts, divided):
    private, (public, members) = scripts[0], divided
    bound = np.median(distances(private, public, public.latent))
    donors = members.obs["donor"].unique()
    everyone = moved_means(private, public, members, np.inf, 0) * len(donors)
    apart = [
        np.linalg.norm(
            everyone - moved_means(private, public, without_donor(members, donor), np.inf, 0) * (len(donors) - 1)
        )
        for donor in donors
    ]
    assert max(apart) <= bound * 1.001
    far = distances(private, public, encode(members, public.autoencoder))
    assert max(apart) == pytest.approx(min(far.max(), bound), rel=1e-3)


def test_noise_of_the_means_has_the_size_of_the_mechanism(scripts, divided):
    private, (public, members) = scripts[0], divided
    bound = np.median(distances(private, public, public.latent))
    exact = moved_means(private, public, members, np.inf, 0)
    noise = np.concatenate([moved_means(private, public, members, 1.0, seed) - exact for seed in range(40)])
    n_members = members.obs["donor"].nunique()
    expected = private.noise_multiplier(1.0, steps=1) * bound / n_members
    assert noise.std() == pytest.approx(expected, rel=4 / np.sqrt(2 * len(noise)))
    assert private.noise_multiplier(1.0, steps=9) == pytest.approx(3 * private.noise_multiplier(1.0, steps=1))


@pytest.mark.parametrize("epsilon", [1.0, 10.0, 100.0])
def test_noise_of_the_steps_agrees_with_the_accountant_of_opacus(scripts, epsilon):
    accountant = RDPAccountant()
    accountant.history = [(scripts[0].noise_multiplier(epsilon, steps=30), 1.0, 30)]
    assert epsilon * 0.95 <= accountant.get_epsilon(delta=1e-3) <= epsilon * 1.25  # which overestimates it


def test_training_with_much_noise_learns_nothing_of_the_donors(scripts, divided):
    private, (public, members) = scripts[0], divided
    donors = members.obs["donor"].unique()
    some, others = (members[members.obs["donor"].isin(of)].copy() for of in (donors[:3], donors[3:]))

    def learned(cells, epsilon):
        how = {"epsilon": epsilon, "steps": 5, "learning_rate": 0.01, "seed": 0}
        network = private.trained_privately(public, cells, **how)
        return network.loadings.weight.detach() - public.fitted.network.loadings.weight.detach()

    def similarity(epsilon):
        first, second = learned(some, epsilon).flatten(), learned(others, epsilon).flatten()
        return float(torch.nn.functional.cosine_similarity(first, second, dim=0))

    assert similarity(1e-3) > 0.99  # the same noise
    assert similarity(np.inf) < 0.9


def test_the_benchmark_shows_each_model_beside_public_cells_and_members(scripts, prepared, tmp_path):
    private, table, divisions = scripts
    fold = divisions.divide(prepared, "thirds-1", n_others=0, seed=0)
    plan = private.Plan(epsilons=(1.0, np.inf), steps=2, learning_rates=(0.001,))
    found = pd.DataFrame(private.rows(prepared, fold, plan, seed=0))
    assert found["set"].tolist() == ["floor", "public", "members", "means", "means", "training", "training"]
    kept = found.set_index("set")["kept_deviation"]
    assert kept["members"] > kept["public"] + 0.3
    paths = [tmp_path / f"data/{seed}/1.csv" for seed in (0, 1)]
    for path in paths:
        path.parent.mkdir(parents=True)
        found.to_csv(path, index=False)
    table.main(tmp_path / "all.csv", tmp_path / "all.md", paths)
    assert pd.read_csv(tmp_path / "all.csv")["seed"].value_counts().to_dict() == {0: 7, 1: 7}
    text = (tmp_path / "all.md").read_text()
    for part in ("| data | public cells alone |  |  |", "| data | public, means of the members | inf |  |"):
        assert part in text


def test_what_is_learned_is_between_public_cells_and_copies_of_the_members(scripts):
    kept = {"floor": np.nan, "public": -0.5, "members": 1.0, "means": 0.25}
    rows = [
        {"data": "data", "seed": 0, "fold": fold, "set": name, "kept_deviation": value + fold * (name == "means")}
        for fold in (0, 1)
        for name, value in kept.items()
    ]
    learned = scripts[1].with_learned(pd.DataFrame(rows)).pivot(index="set", columns="fold", values="learned")
    assert learned.loc["public"].tolist() == [0, 0]
    assert learned.loc["members"].tolist() == [1, 1]
    assert learned.loc["means"].tolist() == pytest.approx([0.5, 0.5 + 1 / 1.5])
