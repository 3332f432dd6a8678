"""Protection of donors: noise of the size of their differences, which is drawn once for a model."""

import importlib
import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import norm

from bdm.api import BranchedDiffusion
from bdm.audit.folds import NON_MEMBERS
from bdm.audit.settings import AuditSettings
from bdm.cli import main
from bdm.errors import InputError
from bdm.extension.new_cells import new_cells
from bdm.generation.audited import AuditedModels, model_of
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.card import model_card
from bdm.model.model import load_model, log_expression, save_model
from bdm.model.protection import is_protected, new_deviation, protected, sampling_variance
from bdm.settings import DenoiserSettings, PrepareSettings, SamplerSettings, Settings

N_DONORS = 8
FLAGS = ["--n-latent=4", "--autoencoder-n-steps=40", "--sub-populations=none", "--n-bootstrap=0"]
FLAGS += ["--width=16", "--n-layers=1", "--denoiser-n-steps=20"]


def cells_of_donors(*, n_donors: int = N_DONORS, n_cells: int = 24, n_genes: int = 60) -> ad.AnnData:
    """Cells of two types, from donors that differ in the expression of all genes."""
    rng = np.random.default_rng(0)
    base, rows = rng.normal(size=(2, n_genes)), []
    for _ in range(n_donors):
        own = rng.normal(scale=0.4, size=n_genes)
        for of_type in base:
            expression = np.exp(of_type + own)
            rows.append(rng.poisson(400 * expression / expression.sum(), size=(n_cells, n_genes)))
    obs = pd.DataFrame(
        {
            "cell_type": np.tile(np.repeat(["B cell", "T cell"], n_cells), n_donors),
            "donor": np.repeat([f"d{number}" for number in range(n_donors)], 2 * n_cells),
        },
        index=[f"cell {number}" for number in range(2 * n_cells * n_donors)],
    )
    var = pd.DataFrame(index=[f"gene {number}" for number in range(n_genes)])
    return ad.AnnData(np.concatenate(rows).astype(np.float32), obs=obs, var=var)


def settings_with(privacy: str) -> Settings:
    small = Settings(prepare=PrepareSettings(label_key="cell_type", donor_key="donor", genes="all"))
    return replace(
        small,
        autoencoder=replace(small.autoencoder, n_latent=4, n_steps=40, sub_populations="none"),
        hierarchy=replace(small.hierarchy, n_bootstrap=0),
        denoiser=DenoiserSettings(width=16, n_layers=1, n_steps=20, privacy=privacy),
    )


def fitted(privacy: str, cells: ad.AnnData | None = None):
    given = cells_of_donors() if cells is None else cells
    return BranchedDiffusion(given, settings=settings_with(privacy)).fit().model


@pytest.fixture(scope="module")
def plain():
    return fitted("none")


@pytest.fixture(scope="module")
def careful():
    return fitted("careful")


def deviations(model, of) -> np.ndarray:
    """Changes of the mean log expression of cell types (types x genes), in units of what donors differ by."""
    shift = [log_expression(model, name, type_specific=True) for name in of.cell_types]
    shift = np.stack(shift) - [log_expression(of, name, type_specific=True) for name in of.cell_types]
    sd = of.donor_effects.sd[:, :-1].double().numpy()
    return (shift - shift.mean(axis=1, keepdims=True)) / np.sqrt(sd**2 + np.log1p(sampling_variance(of, N_DONORS)))


def test_the_fit_protects_as_the_function_does(plain, careful):
    again = protected(plain, seed=0)
    assert torch.equal(careful.autoencoder.adapters.offset, again.autoencoder.adapters.offset)
    assert torch.equal(careful.autoencoder.network.loadings.bias, again.autoencoder.network.loadings.bias)
    assert is_protected(careful)
    assert not is_protected(plain)


def test_without_protection_the_tensors_are_the_same_as_before(plain, careful):
    for name in ("mean", "covariance", "weight"):
        assert torch.equal(getattr(plain.moments, name), getattr(careful.moments, name))
    shared = plain.autoencoder.network.state_dict()
    changed = careful.autoencoder.network.state_dict()
    assert [name for name in shared if not torch.equal(shared[name], changed[name])] == ["loadings.bias"]


def test_means_are_as_far_away_as_a_new_donor(plain):
    sizes = [np.std(deviations(protected(plain, seed=seed), plain)) for seed in range(8)]
    assert np.mean(sizes) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("noise", [0.3, 2.0])
def test_noise_is_in_units_of_donors(plain, noise):
    effects = plain.donor_effects
    found = [new_deviation(plain, plain.donors, noise, np.random.default_rng(seed)) for seed in range(30)]
    variance = noise**2 * effects.sd[:, :-1].double().numpy() ** 2
    variance += np.log1p(noise**2 * sampling_variance(plain, N_DONORS))
    assert np.mean(np.var(found, axis=0) / variance) == pytest.approx(1, abs=0.1)
    assert np.mean(np.mean(found, axis=0) + variance / 2) == pytest.approx(0, abs=0.03)


def test_sampling_variance_is_that_of_generated_pseudobulks(plain):
    counts = generate_cells(plain, request_cells(plain, {"B cell": 4000}), SamplerSettings(), seed=0).X.toarray()
    n_cells = plain.composition_of_types.loc["B cell"].sum() / N_DONORS
    observed = counts.var(axis=0) / counts.mean(axis=0) ** 2 / n_cells
    expected = sampling_variance(plain, N_DONORS)[plain.cell_types.index("B cell")]
    assert np.median(observed / expected) == pytest.approx(1, abs=0.15)


def test_what_is_learned_of_donors_is_not_stored(careful, plain, tmp_path):
    assert plain.donor_effects is not None
    assert careful.donors is None
    smallest, largest = careful.library_sizes.tolist()
    assert smallest <= plain.library_sizes[0]
    assert largest >= plain.library_sizes[1]
    assert (2 * smallest) % 1 == (2 * largest) % 1 == 0
    save_model(tmp_path / "model", careful)
    loaded = load_model(tmp_path / "model")
    assert torch.equal(loaded.autoencoder.adapters.offset, careful.autoencoder.adapters.offset)
    assert loaded.provenance["protection"] == {"noise": 1.0, "n_donors": N_DONORS}


def test_the_same_seed_gives_the_same_noise_and_others_do_not(plain):
    offsets = [protected(plain, seed=seed).autoencoder.adapters.offset for seed in (0, 0, 1)]
    assert torch.equal(offsets[0], offsets[1])
    assert not torch.allclose(offsets[0], offsets[2])


def test_noise_cannot_be_drawn_again_without_the_parameters(plain):
    other = replace(plain.autoencoder, likelihood=plain.autoencoder.likelihood)
    state = other.network.state_dict()
    state["paced_dispersion"] = state["paced_dispersion"] + 1e-6
    changed = replace(
        plain, autoencoder=replace(other, network=type(other.network).of_state(other.network.shape, state))
    )
    drawn = [deviations(protected(model, seed=0), model).ravel() for model in (plain, changed)]
    assert abs(np.corrcoef(*drawn)[0, 1]) < 0.5


def test_cells_do_not_depend_on_the_number_of_jobs(careful):
    from bdm.threads import using_threads

    request, counts = request_cells(careful, 300), []
    for n_threads in (1, 2):
        with using_threads(n_threads):
            counts.append(generate_cells(careful, request, SamplerSettings(), seed=0).X)
    assert (counts[0] != counts[1]).nnz == 0


def test_the_card_names_it(careful, plain):
    text = " ".join(model_card(careful).split())
    assert "protects its donors by noise" in text
    assert f"| donors | {N_DONORS}, in the column `donor` |" in text
    assert "how much donors differ" not in text
    assert "protects its donors" not in model_card(plain)


def test_no_type_is_added_to_a_protected_model(careful):
    with pytest.raises(InputError, match="protects its donors by noise"):
        new_cells(cells_of_donors(), careful, seed=0)


def test_attackers_do_not_protect_their_models(tmp_path):
    from bdm.audit.folds import MEMBERS, REFERENCE, folds_of

    prepared = BranchedDiffusion(cells_of_donors(n_donors=15), settings=settings_with("none")).prepared
    models = AuditedModels(fit=settings_with("careful"), folder=tmp_path)
    fold = folds_of(prepared.obs, AuditSettings(n_folds=1), seed=0)[0]
    assert is_protected(model_of(prepared, fold, MEMBERS, models))
    from bdm.generation.audited import unprotected

    assert not is_protected(model_of(prepared, fold, REFERENCE, unprotected(models)))
    assert (fold.part == NON_MEMBERS).any()


def test_cells_without_donors_are_rejected_before_any_work(caplog):
    caplog.set_level(logging.INFO)
    settings = settings_with("careful")
    without = replace(settings, prepare=replace(settings.prepare, donor_key=None))
    with pytest.raises(InputError, match="privacy is 'careful', which needs to know the donors"):
        BranchedDiffusion(cells_of_donors(), settings=without).fit()
    assert "training" not in caplog.text


def test_a_type_of_few_donors_is_rejected_before_any_work():
    cells = cells_of_donors()
    cells = cells[
        ~((cells.obs["cell_type"] == "T cell") & cells.obs["donor"].isin(["d0", "d1", "d2", "d3"])).to_numpy()
    ]
    with pytest.raises(InputError, match="cell type 'T cell' has cells of 4 donors, and `privacy='careful'` needs 5"):
        fitted("careful", cells.copy())


def test_too_few_members_of_a_fold_are_rejected_before_any_work(caplog):
    caplog.set_level(logging.INFO)
    model = BranchedDiffusion(cells_of_donors(), settings=settings_with("careful"))
    with pytest.raises(InputError, match=r"^Among the members of fold 1, cell type .* needs 5; an audit fits each"):
        model.audit()
    assert "training" not in caplog.text


def test_differential_privacy_is_refused_in_a_sentence():
    with pytest.raises(
        InputError, match=r"privacy is 'dp', which is not offered: .* donors; choose 'careful' or 'none'\."
    ):
        DenoiserSettings(privacy="dp")
    with pytest.raises(InputError, match="privacy is 'much', but must be none, careful"):
        DenoiserSettings(privacy="much")


def test_bdm_fit_has_the_option(tmp_path, monkeypatch, capsys):
    cells_of_donors().write_h5ad(tmp_path / "cells.h5ad")

    def run(*more: str) -> int:
        line = f"bdm fit {tmp_path}/cells.h5ad {tmp_path}/model --label-key cell_type --genes all --privacy careful"
        monkeypatch.setattr(sys, "argv", [*shlex.split(line), *FLAGS, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code or 0

    assert run() == 2
    assert "privacy is 'careful', which needs to know the donors" in " ".join(capsys.readouterr().err.split())
    assert run("--donor-key=donor", "--dry-run") == 0
    assert not (tmp_path / "model").exists()
    assert run("--donor-key=donor") == 0
    assert is_protected(load_model(tmp_path / "model"))


def test_the_benchmark_attacks_models_with_noise(plain, tmp_path, monkeypatch):
    folder = Path(__file__).parents[1] / "benchmarks/scripts"
    monkeypatch.syspath_prepend(folder)
    attacks, tables, divisions = (
        importlib.import_module(f"privacy_{name}") for name in ("attacks", "table", "divisions")
    )
    prepared = BranchedDiffusion(cells_of_donors(n_donors=18), settings=settings_with("none")).prepared
    parts = [divisions.divide(prepared, name, n_others=7, seed=0) for name in ("2-1", "4-1", "thirds-1")]
    rows = [[set(of.unit[of.rows(name)]) for name in ("members", "reference", "non-members")] for of in parts]
    assert [[len(units) for units in of] for of in rows] == [[2, 7, 7], [4, 7, 7], [6, 6, 6]]
    assert rows[0][1:] == rows[1][1:]
    assert rows[0][0] < rows[1][0]
    table = pd.DataFrame(attacks.rows(prepared, parts[2], plain, plain, attacks.Plan((0.0, 1.0), (0.5,), 2)))
    assert table["set"].tolist() == ["floor", "noise", "cells", "cells", "noise", "noise"]
    table.insert(0, "n_donors", 6)
    paths = [tmp_path / f"data/{seed}/{name}.csv" for seed in (0, 1) for name in ("thirds-1", "6-1")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
    tables.main(tmp_path, paths)
    assert pd.read_csv(tmp_path / "privacy.csv")["seed"].value_counts().to_dict() == {0: 12, 1: 12}
    assert "all parameters of a model | 1 | 36 | 1,445" in (tmp_path / "privacy.md").read_text()
    assert (tmp_path / "privacy.png").stat().st_size > 20_000


@pytest.mark.parametrize("epsilon", [0.5, 5.0, 50.0])
def test_the_gaussian_mechanism_has_its_guarantee(monkeypatch, epsilon):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks/scripts")
    scale = importlib.import_module("privacy_table").gaussian_scale(epsilon, 1e-3)
    x = np.linspace(-20 * scale, 1 + 20 * scale, 400_001)
    with_donor, without = (norm.pdf(x, mean, scale) for mean in (1, 0))
    excess = np.trapezoid(np.maximum(with_donor - np.exp(epsilon) * without, 0), x)
    assert excess == pytest.approx(1e-3, rel=1e-3)
