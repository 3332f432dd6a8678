from dataclasses import replace
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pytest
import torch
from scipy.stats import nbinom

from bdm._core.seeds import derive
from bdm.autoencoder.count_noise import fit_count_noise, fit_dispersions
from bdm.autoencoder.observation import GROWTH, GrowingNegativeBinomial
from bdm.model.model import generated_noise

N_CELLS, DISPERSION = 20_000, np.array([0.05, 0.2, 1.0])


def growing(dispersion, reference) -> GrowingNegativeBinomial:
    log_r = -torch.from_numpy(np.log(dispersion)).float()
    return GrowingNegativeBinomial(log_r, torch.from_numpy(np.log(reference)).float())


def simulated(seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Counts with noise of known dispersions, and their means."""
    generator = np.random.default_rng(derive(seed, "noise"))
    mean = np.array([2.0, 5.0, 20.0]) * np.exp(0.7 * generator.standard_normal((N_CELLS, 3)))
    counts = growing(DISPERSION, mean.mean(axis=0)).sample(mean.astype(np.float32), generator).toarray()
    return counts, mean


@pytest.mark.parametrize("ratio", [0.1, 1.0, 8.0])
def test_dispersion_falls_with_the_mean(ratio):
    reference = np.array([2.0, 10.0])
    noise, mean = growing(np.array([0.3, 0.5]), reference), np.atleast_2d(ratio * reference)
    expected = nbinom(r := ratio**GROWTH / np.array([0.3, 0.5]), r / (r + mean))
    np.testing.assert_allclose(noise.variance(mean), expected.var(), rtol=1e-5)
    np.testing.assert_allclose(noise.detection(mean), 1 - expected.pmf(0), rtol=1e-5)
    counts = noise.sample(np.repeat(mean, 20_000, axis=0).astype(np.float32), np.random.default_rng(0)).toarray()
    np.testing.assert_allclose(counts.mean(axis=0), mean[0], rtol=0.05)
    np.testing.assert_allclose(counts.var(axis=0), expected.var()[0], rtol=0.1)


def test_means_of_zero_have_no_counts():
    noise = growing(np.array([0.3]), np.array([2.0]))
    assert noise.sample(np.zeros((5, 1), np.float32), np.random.default_rng(0)).nnz == 0
    assert noise.variance(np.zeros((1, 1))) == noise.detection(np.zeros((1, 1))) == 0


@pytest.mark.parametrize("of_decoder", [0.5, 1.0, 3.0])
def test_dispersions_are_estimated(of_decoder):
    counts, mean = (torch.from_numpy(values).float() for values in simulated())
    start = torch.from_numpy(-np.log(of_decoder * DISPERSION)).float()
    fitted = fit_dispersions(counts, mean, start)
    np.testing.assert_allclose(1 / fitted.inverse_dispersion, DISPERSION, rtol=0.15)
    np.testing.assert_allclose(fitted.log_reference.exp(), mean.mean(dim=0), rtol=1e-5)


def test_dispersions_of_few_cells_stay_near_the_decoder():
    counts, mean = (torch.from_numpy(values[:5]).float() for values in simulated())
    start = torch.from_numpy(-np.log(3 * DISPERSION)).float()
    change = (fit_dispersions(counts, mean, start).log_inverse_dispersion - start).abs()
    assert (change < 0.7).all()


def test_every_population_has_noise(small_model):
    model = small_model.model
    assert set(model.autoencoder.noise) == set(model.populations)
    for population in model.populations:
        assert generated_noise(model, population) is model.autoencoder.noise[population]


def test_other_likelihoods_keep_their_noise(small_model):
    class Poisson(GrowingNegativeBinomial):
        pass

    autoencoder = small_model.model.autoencoder
    network = SimpleNamespace(decoder=SimpleNamespace(observation_model=Poisson))
    assert fit_count_noise(ad.AnnData(np.zeros((1, 1))), replace(autoencoder, network=network), (), seed=0) == {}
