"""Effects of batches: on library sizes, on all types, and on single types."""

from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bdm.api import BranchedDiffusion
from bdm.settings import AutoencoderSettings, HierarchySettings, Settings, TrainSettings

N_GENES, N_CELLS = 80, 150  # cells of each type in each batch
OWN = slice(0, 20)  # genes that the batch changes in one type only
SETTINGS = Settings(
    autoencoder=AutoencoderSettings(n_latent=8, n_steps=200, sub_populations="none"),
    hierarchy=HierarchySettings(n_bootstrap=0),
    train=TrainSettings(),
)


def simulated(seed: int = 0, fold: float = 4.0) -> ad.AnnData:
    """Two types in two batches, of which the second has three times the counts, and changes genes in type A."""
    generator = np.random.default_rng(seed)
    profiles = generator.gamma(2.0, size=(2, N_GENES))
    parts, obs = [], []
    for cell_type, profile in zip("AB", profiles, strict=True):
        for batch, depth in (("one", 400.0), ("two", 1200.0)):
            mean = profile.copy()
            if cell_type == "A" and batch == "two":
                mean[OWN] *= fold
            size = depth * generator.lognormal(0, 0.3, size=(N_CELLS, 1))
            parts.append(generator.poisson(size * mean / mean.sum()))
            obs += [(cell_type, batch)] * N_CELLS
    table = pd.DataFrame(obs, columns=["cell_type", "lane"]).set_axis([f"cell-{n}" for n in range(len(obs))])
    return ad.AnnData(sparse.csr_matrix(np.concatenate(parts).astype(np.float32)), obs=table)


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return simulated()


@pytest.fixture(scope="module")
def model(cells) -> BranchedDiffusion:
    return BranchedDiffusion(cells, batch_key="lane", settings=SETTINGS).fit()


def of(cells: ad.AnnData, cell_type: str, batch: str) -> np.ndarray:
    rows = (cells.obs["cell_type"] == cell_type) & (cells.obs["lane"] == batch)
    return cells.X[rows.to_numpy()].toarray()


def test_cells_have_the_library_sizes_and_changes_of_their_batch_and_type(cells, model):
    numbers = pd.DataFrame(
        [(t, 300, b) for t in "AB" for b in ("one", "two")], columns=["cell_type", "n_cells", "batch"]
    )
    generated = model.generate(numbers)
    for cell_type in "AB":
        change = []
        for found in (generated, cells):
            one, two = (of(found, cell_type, batch) for batch in ("one", "two"))
            change.append(np.log(two.sum(axis=0) / two.sum()) - np.log(one.sum(axis=0) / one.sum()))
            sizes = np.median(one.sum(axis=1)), np.median(two.sum(axis=1))
            np.testing.assert_allclose(sizes, (400, 1200), rtol=0.15)
        np.testing.assert_allclose(change[0], change[1], atol=0.35)
        if cell_type == "A":
            np.testing.assert_allclose(np.polyfit(change[1], change[0], 1)[0], 1, atol=0.1)
    assert model.model.learned["batches"].startswith("2; latents by type, library sizes up to")


def test_batches_that_do_not_differ_have_no_effects(cells):
    alike = cells[cells.obs["lane"] == "two"].copy()
    alike.obs["lane"] = np.where(np.arange(alike.n_obs) % 2, "odd", "even")
    settings = replace(SETTINGS, autoencoder=replace(SETTINGS.autoencoder, n_steps=20))
    fitted = BranchedDiffusion(alike, batch_key="lane", settings=settings).fit()
    assert "batches" not in fitted.model.effects
    assert fitted.model.learned == {"batches": "2, offsets of genes"}
