"""Batches, donors, covariates and positions together."""

import anndata as ad
import numpy as np
import pytest
from test_covariates import N_GENES, SETTINGS, simulated

from bdm.api import BranchedDiffusion


def cells_with_all_inputs() -> ad.AnnData:
    """Cells of six donors of an age, in two batches, over time and a tissue; half of the genes of type a change."""
    cells, rng = simulated(900), np.random.default_rng(3)
    donor = rng.integers(0, 6, cells.n_obs)
    cells.obs["donor"], cells.obs["age"] = [f"d{number}" for number in donor], 20.0 + 10 * donor
    cells.obs["batch"] = np.where(rng.random(cells.n_obs) < 0.5, "v2", "v3")
    cells.obsm["spatial"] = rng.random((cells.n_obs, 2)) * 1000
    log_factor = rng.normal(0, 0.15, (6, N_GENES))[donor]
    log_factor += rng.normal(0, 0.4, N_GENES) * (cells.obs["batch"] == "v3").to_numpy()[:, None]
    log_factor[:, 20:26] += cells.obsm["spatial"][:, :1] / 1000
    cells.X = rng.poisson(cells.X * np.exp(log_factor) * 0.7).astype(np.float32)
    return cells


@pytest.fixture(scope="module")
def model_of_all():
    keys = {"batch_key": "batch", "donor_key": "donor", "covariate_key": ("time", "age"), "spatial_key": "spatial"}
    return BranchedDiffusion(cells_with_all_inputs(), **keys, settings=SETTINGS).fit()


@pytest.mark.parametrize("batches", [None, "v2"])
def test_the_truth_holds_with_batches_donors_covariates_and_positions(model_of_all, batches):
    assert set(model_of_all.model.effects) == {"batches", "covariates", "positions", "donors"}
    time = {"time": {"control": 0.1, "treated": [0.6, 0.9]}}
    samples = {"donors": 4, "conditions": ["control", "treated"], "cells": 3000, "covariates": time}
    up = {"name": "up", "condition": "treated", "in": ["still"], "genes": ["g1", "g20"], "log2_fold_change": 1.0}
    design = {"samples": {**samples, "positions": True, "paired": True, "batches": batches}, "changes": [up]}
    cells = model_of_all.simulate(design)
    known = cells.obs.groupby("donor", observed=True)["age"]
    assert (known.nunique() == 1).all()
    assert known.first().nunique() > 1
    assert cells.obs["age"].between(20, 70).all()
    assert cells.uns["truth"]["samples"].groupby("donor")["age"].first().to_dict() == known.first().to_dict()
    for name in ("moving", "still"):
        of_type = cells[cells.obs["cell_type"] == name]
        treated = (of_type.obs["condition"] == "treated").to_numpy()
        mean = [np.asarray(of_type.X[rows].mean(axis=0)).ravel() for rows in (~treated, treated)]
        expected = cells.varm["log2_fold_change_treated"][name].to_numpy()
        assert np.polyfit(expected, np.log2(mean[1] / mean[0]), 1)[0] == pytest.approx(1, abs=0.05)
