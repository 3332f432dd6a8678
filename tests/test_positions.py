"""Commands on a model with positions: transmutation, extension, card and designed experiments."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from zoo import kept_model

from bdm.api import BranchedDiffusion
from bdm.settings import AutoencoderSettings, HierarchySettings, PrepareSettings, Settings

N_GENES, GRADIENT = 40, 0  # the expression of gene 0 rises along x
WIDTH = 1000.0  # of a section
ADDED = "added"


def simulated(n: int = 300, seed: int = 0) -> ad.AnnData:
    """Simulate cells of two sections: ``left`` and ``right`` lie in halves of the tissue, ``added`` anywhere."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(7).normal(0, 0.7, (3, N_GENES))
    positions = rng.random((2 * n, 2)) * WIDTH
    is_right = rng.random(2 * n) < 1 / (1 + np.exp(-(positions[:, 0] - WIDTH / 2) / 50))
    code = np.where(rng.random(2 * n) < 0.15, 2, is_right.astype(int))
    log_mean = base[code]
    log_mean[:, GRADIENT] += 3 * positions[:, 0] / WIDTH - 1.5
    expression = np.exp(log_mean) / np.exp(log_mean).sum(axis=1, keepdims=True)
    counts = rng.poisson(rng.lognormal(6.5, 0.2, 2 * n)[:, None] * expression).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(["left", "right", ADDED])[code], "slide": np.repeat(["a", "b"], n)})
    obs.index = [f"cell-{number}" for number in range(2 * n)]
    var = pd.DataFrame(index=[f"g{number}" for number in range(N_GENES)])
    return ad.AnnData(counts, obs=obs, var=var, obsm={"xy": positions})


def cells_of_fit() -> ad.AnnData:
    cells = simulated()
    return cells[cells.obs["cell_type"] != ADDED].copy()


def fit_with_positions():
    settings = Settings(
        prepare=PrepareSettings(genes="all", test=0.1),
        autoencoder=AutoencoderSettings(n_latent=4, n_steps=120, sub_populations="none"),
        hierarchy=HierarchySettings(n_bootstrap=3),
    )
    return BranchedDiffusion(cells_of_fit(), spatial_key="xy", section_key="slide", settings=settings).fit()


@pytest.fixture(scope="module")
def model():
    return kept_model(fit_with_positions)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("positions") / "model"
    model.save(path)
    return path


# ---- transmutation


@pytest.mark.parametrize("prepared", [False, True])
def test_transmuted_cells_keep_their_positions(model, prepared):
    cells = model.prepared if prepared else cells_of_fit()
    key = "spatial" if prepared else "xy"
    transmuted = model.transmute(cells, "right")
    source = cells[transmuted.obs_names]
    assert set(transmuted.obs["original_type"]) == {"left"}
    np.testing.assert_array_equal(transmuted.obsm[key], source.obsm[key])
    assert list(transmuted.obs["slide"]) == list(source.obs["slide"])
    without = cells.copy()
    del without.obsm[key]
    assert (model.transmute(without, "right").X != transmuted.X).nnz == 0


def test_file_of_transmuted_cells_has_their_positions(bdm, saved, tmp_path):
    cells = cells_of_fit()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    code, _ = bdm("transmute", saved, tmp_path / "cells.h5ad", tmp_path / "out.h5ad", "--to", "right")
    transmuted = ad.read_h5ad(tmp_path / "out.h5ad")
    assert code == 0
    np.testing.assert_array_equal(transmuted.obsm["xy"], cells[transmuted.obs_names].obsm["xy"])
    assert list(transmuted.obs["slide"]) == list(cells[transmuted.obs_names].obs["slide"])
