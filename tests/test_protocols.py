"""Priors and decoders of one's own: the examples of the documentation go all the way, without a change to bdm."""

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
from warm import start

import bdm
from bdm._core.errors import InputError
from bdm.generation.request import request_cells
from bdm.model.model import expected_counts, observation_model
from bdm.prior.base import LatentPrior
from bdm.settings import DECODERS, PRIORS, TrainSettings

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
    lacking = (
        "model.json: There is no prior 'normal' in this installation, which has mixture, diffusion, flow; name one"
    )
    assert lacking in log.read_text()
    assert not (tmp_path / "cells.h5ad").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "prior", ["flow", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("mixture", "diffusion"))]
)
def test_priors_of_bdm(example_cells, small_settings, tmp_path, prior):
    loaded = goes_all_the_way(example_cells, small_settings, tmp_path / "model", prior=prior)
    assert loaded.model.prior.name == prior
    assert set(loaded.generate(3, shared_ancestors=True).obs["ancestor"]) == {0, 1, 2}


def test_unknown_prior_is_one_sentence(example_cells):
    with pytest.raises(
        InputError, match="There is no prior 'flows' in this installation, which has mixture, diffusion"
    ):
        bdm.BranchedDiffusion(example_cells, label_key="bulk_labels", prior="flows")


def test_names_of_priors_are_known_before_they_are_imported():
    code = "from bdm.settings import PRIORS; import sys; print(PRIORS.names, 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["('mixture',", "'diffusion',", "'flow')", "False"]
    assert all(issubclass(PRIORS.find(name), LatentPrior) for name in ("mixture", "diffusion", "flow"))
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
