"""Priors, decoders and effects of one's own: examples of the documentation go all the way, without a change to bdm."""

import importlib.util
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from warm import start

import bdm
from bdm._core.errors import InputError
from bdm.generation.request import request_cells
from bdm.model.model import expected_counts, observation_model
from bdm.prior.base import LatentPrior
from bdm.settings import (
    DECODERS,
    EFFECTS,
    PRIORS,
    AutoencoderSettings,
    HierarchySettings,
    Settings,
    TrainSettings,
)

EXAMPLES = Path(__file__).parents[1] / "docs/examples"
NEW = "CD34+"


def example(name: str):
    """Import an example of the documentation."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def goes_all_the_way(example_cells, settings, folder: Path, **choice) -> bdm.BranchedDiffusion:
    """Fit, generate, extend, save and load; returns the loaded model."""
    known = example_cells[example_cells.obs["bulk_labels"] != NEW].copy()
    model = bdm.BranchedDiffusion(known, label_key="bulk_labels", settings=settings, **choice).fit()
    before = model.generate(30)
    assert sorted(before.obs["cell_type"].unique()) == sorted(model.cell_types)
    extended = model.extend(example_cells, cell_types=[NEW]) or model
    after = extended.generate({NEW: 20, model.cell_types[0]: 30})
    first = before[before.obs["cell_type"] == model.cell_types[0]]
    assert (after[after.obs["cell_type"] == model.cell_types[0]].X != first.X).nnz == 0
    assert (after.obs["cell_type"] == NEW).sum() == 20
    extended.save(folder)
    loaded = bdm.BranchedDiffusion.load(folder)
    assert (loaded.generate({NEW: 20}).X != extended.generate({NEW: 20}).X).nnz == 0
    return loaded


@pytest.mark.slow
def test_prior_of_the_documentation(example_cells, small_settings, tmp_path):
    prior = example("normal_prior").NormalPrior
    loaded = goes_all_the_way(example_cells, small_settings, tmp_path / "model", prior="normal")
    assert isinstance(loaded.model.prior, prior)
    with pytest.raises(InputError, match="The prior 'normal' cannot sample cells with shared ancestors; fit the model"):
        loaded.generate(5, shared_ancestors=True)
    with pytest.raises(InputError, match="The prior 'normal' cannot be conditioned on a coordinate"):
        loaded.model.conditioned("log_library_size", 7.0)
    # the command line has not imported it
    process = start(["generate", "model", "cells.h5ad", "--cells", "2"], tmp_path, log := tmp_path / "log")
    process.join()
    assert process.exitcode == 2
    lacking = "model.json: There is no prior 'normal' in this installation, which has mixture, diffusion; name one"
    assert lacking in log.read_text()
    assert not (tmp_path / "cells.h5ad").exists()


@pytest.mark.slow
@pytest.mark.parametrize("prior", ["diffusion", pytest.param("mixture", marks=pytest.mark.nightly)])
def test_priors_of_bdm(example_cells, small_settings, tmp_path, prior, monkeypatch):
    monkeypatch.setattr("bdm.prior.diffusion.MIN_GAIN", -np.inf)  # so that the network is kept
    loaded = goes_all_the_way(example_cells, small_settings, tmp_path / "model", prior=prior)
    assert loaded.model.prior.name == prior
    assert set(loaded.generate(3, shared_ancestors=True).obs["ancestor"]) == {0, 1, 2}


def test_unknown_prior_is_one_sentence(example_cells):
    with pytest.raises(
        InputError, match="There is no prior 'diffusions' in this installation, which has mixture, diffusion"
    ):
        bdm.BranchedDiffusion(example_cells, label_key="bulk_labels", prior="diffusions")


def test_names_of_priors_are_known_before_they_are_imported():
    code = "from bdm.settings import PRIORS; import sys; print(PRIORS.names, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["('mixture',", "'diffusion')", "False"]
    assert all(issubclass(PRIORS.find(name), LatentPrior) for name in ("mixture", "diffusion"))
    documented = bdm.BranchedDiffusion.__doc__.partition("Distribution of latents")[2].partition("your own")[0]
    assert re.findall(r"``(\w+)``", documented) == list(PRIORS.built_in)
    assert TrainSettings().prior == PRIORS.names[0]


def test_cells_of_a_conditioned_model_have_the_value(small_model):
    model = small_model.model
    given = model.conditioned("log_library_size", np.log(1000))
    x = given.prior.sampler().sample(model.populations[0], 50, torch.Generator().manual_seed(0))
    y = model.whitening.inverse(x)
    np.testing.assert_allclose(y[:, model.layout.library_sizes], np.log(1000), atol=1e-3)
    known = re.escape(", ".join(model.layout.names[:2]))
    with pytest.raises(InputError, match=rf"no coordinate 'time'; it has {known}"):
        model.conditioned("time", 1.0)


def test_populations_of_a_conditioned_model_are_as_common_as_cells_with_the_value(small_model):
    model, value = small_model.model, np.log(400)
    populations, near = list(model.autoencoder.populations_of("Dendritic")), []
    for name in populations:
        x = model.prior.sampler().sample(name, 200_000, torch.Generator().manual_seed(0))
        size = model.whitening.inverse(x)[:, model.layout.library_sizes].squeeze(1)
        near.append(float(((size - value).abs() < 0.05).float().mean()) * model.composition.loc[name].sum())
    numbers = request_cells(model.conditioned("log_library_size", value), {"Dendritic": 1000}).n_by_population
    assert len(populations) == 2
    assert [numbers[name] for name in populations] == pytest.approx(1000 * np.array(near) / sum(near), abs=15)


# ---- decoders


@pytest.fixture(scope="module")
def poisson():
    """Decoder of the documentation, as if it was installed."""
    yield example("poisson_decoder")
    del DECODERS.registered["poisson"]


def test_decoder_of_the_documentation(example_cells, tiny_settings, tmp_path, monkeypatch, poisson):
    settings = replace(tiny_settings, autoencoder=replace(tiny_settings.autoencoder, n_steps=100))
    loaded = goes_all_the_way(example_cells, settings, tmp_path / "model", likelihood="poisson")
    autoencoder = loaded.model.autoencoder
    assert isinstance(autoencoder.network.decoder, poisson.PoissonDecoder)
    assert len(autoencoder.adapters) > 1
    assert set(autoencoder.adapters.parameters) == {"loadings", "offset"}  # and no dispersion
    x = loaded.model.moments.mean[:1].expand(4000, -1)
    mean = expected_counts(loaded.model, x, pd.DataFrame(), loaded.model.populations[0])
    observation = observation_model(loaded.model, loaded.model.populations[0])
    counts = observation.sample(mean, np.random.default_rng(0)).toarray()
    often = mean[0] > 0.1
    np.testing.assert_allclose((counts.var(axis=0)[often] / mean[0][often]).mean(), 1, atol=0.02)
    monkeypatch.delitem(DECODERS.registered, "poisson")
    with pytest.raises(InputError, match=r"model\.json: There is no decoder 'poisson' in this installation"):
        bdm.BranchedDiffusion.load(tmp_path / "model")


def test_unknown_decoder_is_one_sentence(example_cells):
    with pytest.raises(InputError, match="There is no decoder 'gamma' in this installation"):
        bdm.BranchedDiffusion(example_cells, label_key="bulk_labels", likelihood="gamma")


# ---- effects

N_GENES, N_ROWS = 100, 8
QUICK = Settings(
    autoencoder=AutoencoderSettings(n_latent=6, n_steps=150, sub_populations="none"),
    hierarchy=HierarchySettings(n_bootstrap=0),
    train=TrainSettings(),
)


@pytest.fixture(scope="module")
def plate() -> AnnData:
    """Two types, whose counts fall by a quarter from row to row."""
    generator = np.random.default_rng(0)
    cell_type, row = np.repeat(["A", "B"], 300), np.arange(600) % N_ROWS
    profile = dict(zip("AB", generator.gamma(2.0, size=(2, N_GENES)), strict=True))
    mean = np.stack([profile[name] / profile[name].sum() for name in cell_type])
    counts = generator.poisson(3000 * 0.75 ** row[:, None] * mean).astype(np.float32)
    obs = pd.DataFrame({"cell_type": cell_type, "row": row}, index=[f"cell-{n}" for n in range(600)])
    return AnnData(sparse.csr_matrix(counts), obs=obs)


@pytest.fixture(scope="module")
def plate_model(plate):
    example("plate_rows")
    try:
        yield bdm.BranchedDiffusion(plate, settings=QUICK).fit()
    finally:  # other tests fit no effect of rows
        del EFFECTS.registered["plate_rows"]


def slope(adata: AnnData, row: np.ndarray) -> float:
    """Return the factor of library sizes from row to row."""
    return float(np.exp(np.polyfit(row, np.log(adata.X.sum(axis=1).A1), 1)[0]))


def test_an_effect_of_one_class_is_fitted_generated_and_saved(plate, plate_model, tmp_path):
    model = plate_model
    assert model.model.learned == {"plate_rows": model.model.effects["plate_rows"].summary}
    rows = pd.DataFrame({"cell_type": "A", "n_cells": 40, "row": range(N_ROWS)})
    generated = model.generate(rows, seed=1)
    assert slope(generated, generated.obs["row"]) == pytest.approx(slope(plate, plate.obs["row"]), abs=0.02)
    filled = model.generate(200, seed=1)
    assert slope(filled, filled.obs["row"]) == pytest.approx(0.75, abs=0.02)
    like = model.generate(plate)
    assert like.obs["row"].value_counts().to_dict() == plate.obs["row"].value_counts().to_dict()
    model.save(tmp_path / "model")
    again = bdm.BranchedDiffusion.load(tmp_path / "model")
    assert (again.generate(rows, seed=1).X != generated.X).nnz == 0
    assert "library sizes change by -2" in repr(again)
    assert "library sizes change by -2" in again.card()


def test_an_effect_of_one_class_moves_cells_of_designs_and_of_other_types(plate, plate_model):
    model = plate_model
    design = model.simulate({"samples": {"conditions": ["control"], "donors": 2, "cells": 400}, "seed": 1})
    assert slope(design, design.obs["row"]) == pytest.approx(0.75, abs=0.02)
    moved = model.transmute(plate, "B")
    assert slope(moved, moved.obs["row"]) == pytest.approx(0.75, abs=0.03)
    late = plate[(plate.obs["row"] == N_ROWS - 1).to_numpy()].copy()
    late.obs["cell_type"] = "C"
    model.extend(late)
    assert model.generate({"C": 5}).n_obs == 5
