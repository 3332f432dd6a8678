"""Commands on a model with positions: transmutation, extension, card and designed experiments."""

import json
import logging

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from zoo import kept_model

from bdm.api import BranchedDiffusion
from bdm.commands.autoencoder import summaries_of_effects
from bdm.report.page import audit_tables, environment
from bdm.settings import AuditSettings, AutoencoderSettings, HierarchySettings, PrepareSettings, Settings

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


# ---- extension


@pytest.fixture(scope="module")
def extended(saved):
    model = BranchedDiffusion.load(saved, device="cpu")
    return model.extend(simulated())


def test_extension_warns_that_added_types_have_no_positions(saved, caplog):
    model = BranchedDiffusion.load(saved, device="cpu")
    with caplog.at_level(logging.WARNING, logger="bdm"):
        model.extend(simulated())
    assert caplog.text.count("do not depend on their positions") == 1


def test_cells_of_known_types_stay_the_same_at_their_positions(model, extended):
    locations = pd.DataFrame(simulated(100, seed=1).obsm["xy"], columns=["x", "y"]).assign(section="b")
    before, after = (each.generate(locations=locations, seed=2) for each in (model, extended))
    assert (before.X != after.X).nnz == 0
    np.testing.assert_array_equal(before.obsm["xy"], after.obsm["xy"])


def test_cells_of_an_added_type_follow_the_surfaces_of_genes_alone(model, extended):
    locations = pd.DataFrame({"x": np.repeat([100, 900], 300), "y": 500, "section": "a", "cell_type": ADDED})
    cells = extended.generate(locations=locations)
    assert set(cells.obs["cell_type"]) == {ADDED}
    left, right = (cells[cells.obsm["xy"][:, 0] == x] for x in (100, 900))
    anywhere = extended.generate({ADDED: 600})
    np.testing.assert_array_equal(cells.obsm["latent"], anywhere.obsm["latent"])
    assert model.model.space.gene_coefficients[:, GRADIENT].any()
    assert right.X[:, GRADIENT].mean() > 2 * left.X[:, GRADIENT].mean()


def joined_cells(saved, new):
    from bdm.applications.extension.new_cells import join_known_cells, select_new_cells

    loaded = BranchedDiffusion.load(saved, device="cpu", adata=cells_of_fit())
    return join_known_cells(select_new_cells(new, loaded.model, seed=0), loaded.model, loaded.prepared)


def test_joined_cells_keep_positions(saved, caplog):
    joined = joined_cells(saved, simulated())
    np.testing.assert_array_equal(joined.obsm["spatial"], simulated()[joined.obs_names].obsm["xy"])
    assert list(joined.obs["section"]) == list(simulated()[joined.obs_names].obs["slide"])
    without = simulated()
    del without.obs["slide"]
    joined = joined_cells(saved, without)
    assert "spatial" not in joined.obsm
    assert json.loads(joined.uns["bdm"]["settings"])["spatial_key"] is None
    assert "The joined cells have no positions" in caplog.text


# ---- card and audit


def test_card_describes_positions(model):
    card, tissue = model.card(), model.model.space.tissue
    assert f"| positions | {model.model.space.summary} |" in card
    assert f"in each bin of the tissue ({tissue.width * model.model.space.unit:.3g} wide" in card
    assert summaries_of_effects(None, None, model.model.space) == {"positions": model.model.space.summary}


@pytest.mark.slow
def test_audit_names_positions_as_not_attacked(model):
    settings = AuditSettings(n_folds=1, cells_only=True)
    audit = BranchedDiffusion(cells_of_fit(), settings=model.settings).audit(settings)
    page = environment().get_template("audit.html").render(audit=audit, **audit_tables(audit), figure=lambda *words: "")
    assert "Positions were not attacked" in page
    assert "Positions of cells, which the audited models lack" in model.card(audit=audit)
