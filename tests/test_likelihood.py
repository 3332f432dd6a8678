"""How well a model explains cells: gains of its prior over a prior of other cells."""

import numpy as np
import pytest
import torch

from bdm._core.parallel import using_threads
from bdm.applications.audit.attacks import denoising_gains, fit_reference_prior
from bdm.prior.network import BLOCK, denoised_in_blocks


@pytest.fixture(scope="module")
def training_cells(small_model):
    """The cells that the small model was fitted to."""
    return small_model.prepared


@pytest.fixture(scope="module")
def closed_form(small_model):
    """The small model, whose prior has no network."""
    return small_model.model


def test_a_prior_of_the_training_cells_is_that_of_the_model(closed_form, training_cells):
    fitted = training_cells[(training_cells.obs["split"] != "test").to_numpy()].copy()
    gains = denoising_gains(closed_form, training_cells, fitted, seed=0)
    assert gains.shape == (training_cells.n_obs,)
    np.testing.assert_allclose(gains, 0, atol=2e-3)
    half = fitted[::2].copy()
    assert np.abs(denoising_gains(closed_form, training_cells, half, seed=0)).mean() > 0.02


def test_cells_of_the_reference_are_denoised_better_by_it(closed_form, training_cells):
    some = training_cells[::3].copy()
    others = np.setdiff1d(np.arange(training_cells.n_obs), np.arange(0, training_cells.n_obs, 3))
    gains = denoising_gains(closed_form, training_cells, some, seed=1)
    assert gains[::3].mean() < gains[others].mean()
    with using_threads(2):
        np.testing.assert_array_equal(gains, denoising_gains(closed_form, training_cells, some, seed=1))


def test_populations_that_the_reference_lacks_keep_their_moments(closed_form, training_cells):
    names = [branch.name for branch in closed_form.hierarchy.branches]
    lacking, present = (names.index(name) for name in closed_form.cell_types[:2])
    without = training_cells[(training_cells.obs["cell_type"] != names[lacking]).to_numpy()][::2].copy()
    other, own = (prior.populations.mean for prior in (fit_reference_prior(without, closed_form), closed_form.prior))
    torch.testing.assert_close(other[lacking], own[lacking])
    assert not torch.allclose(other[present], own[present], atol=0.01)


def test_many_cells_are_denoised_in_blocks(closed_form):
    prior, n_dims = closed_form.prior, len(closed_form.layout.names)
    x = torch.randn(BLOCK + 3, n_dims)
    sigma, branch = torch.rand(len(x)) + 0.1, torch.arange(len(x)) % prior.n_rows
    torch.testing.assert_close(denoised_in_blocks(prior.denoise, x, sigma, branch), prior.denoise(x, sigma, branch))
    assert denoised_in_blocks(prior.denoise, x[:0], sigma[:0], branch[:0]).shape == (0, n_dims)
