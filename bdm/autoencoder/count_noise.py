"""Noise of generated counts: dispersions that match the squared residuals of training cells."""

from __future__ import annotations

from typing import cast

import anndata as ad
import torch
from torch import Tensor

from bdm._core.parallel import threads
from bdm._core.seeds import to_tensor, torch_generator
from bdm.autoencoder.adapters import MAX_CELLS
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.inputs import N_BOUND_ITERATIONS, batch_codes, sample_rows_of_population
from bdm.autoencoder.observation import GROWTH, MIN_DISPERSION, MIN_MEAN, GrowingNegativeBinomial, NegativeBinomial

N_ITERATIONS = 5  # of the weights, which depend on the dispersion
PRIOR_SCALE = 0.3  # prior standard deviation of a dispersion, relative to the one of the decoder
MIN_CHANGE = 0.02  # smallest dispersion, relative to the one of the decoder


def fit_count_noise(
    cells: ad.AnnData, autoencoder: GeneAutoencoder, populations: tuple[str, ...], *, seed: int
) -> dict[str, GrowingNegativeBinomial]:
    """Fit the noise of generated counts in each population.

    Dispersions of the decoder make its cells most likely, for which a few outlying counts matter most. Dispersions for
    generation match squared residuals instead, so that most counts vary as in real cells.

    Parameters
    ----------
    cells
        Prepared cells with ``obs["sub_population"]``; training cells are used, at most ``MAX_CELLS["train"]`` per
        population.
    autoencoder
        Autoencoder whose decoders have negative binomial counts; with others, the result is empty.
    populations
        Names of populations to fit.
    seed
        Seed of all random numbers.

    Returns
    -------
    Observation model of each population with training cells.
    """
    if autoencoder.network.decoder.observation_model is not NegativeBinomial:
        return {}

    @torch.no_grad()  # applies to the current thread only
    def fit(population: str) -> GrowingNegativeBinomial:
        rows = sample_rows_of_population(cells.obs, population, "train", MAX_CELLS["train"], seed=seed)
        network, code = autoencoder.network_of(population), autoencoder.type_code(population)
        sampled, cell_type = cells[rows], torch.full((len(rows),), code)
        counts, batch = to_tensor(sampled.X.toarray()), batch_codes(sampled, autoencoder.batches)
        posterior = network.encode(counts, cell_type, batch, n_iterations=N_BOUND_ITERATIONS)
        noise = torch.randn(posterior.mean.shape, generator=torch_generator(seed, "noise", population))
        decoder = network.decoder
        log_mean = decoder.decode(posterior.sample(noise), batch, log_size=decoder.size(counts).log())
        likelihood = cast(NegativeBinomial, decoder.observation(cell_type[:1]))
        return match_residuals(counts, log_mean.exp(), likelihood.log_inverse_dispersion[0])

    trained = set(cells.obs["sub_population"][(cells.obs["split"] == "train").to_numpy()])
    names = [name for name in populations if name in trained]
    with threads() as run:
        return dict(zip(names, run(fit, names), strict=True))


def match_residuals(counts: Tensor, mean: Tensor, log_inverse_dispersion: Tensor) -> GrowingNegativeBinomial:
    """Fit dispersions to squared residuals, shrunk to the dispersions of the decoder.

    With dispersion phi at the reference mean and ``s = mean**2 (mean / reference)**-GROWTH``, the expected squared
    residual is ``mean + phi s``. Weighted least squares has the weights 1 / (mean + phi s)**2.

    Parameters
    ----------
    counts, mean
        Counts and their means given samples of the latents, cells x genes.
    log_inverse_dispersion
        Parameters of the decoder, genes.

    Returns
    -------
    Noise of the counts; the reference is the mean over cells.
    """
    counts, mean = counts.double(), mean.double().clamp(min=MIN_MEAN)
    start, reference = (-log_inverse_dispersion.double()).exp(), mean.mean(dim=0)
    squares, scale = (counts - mean) ** 2 - mean, mean**2 * (mean / reference) ** -GROWTH
    information = ((scale / (mean + start * scale)) ** 2).sum(dim=0) / 2
    share = information / (information + (PRIOR_SCALE * start) ** -2)
    dispersion = start
    for _ in range(N_ITERATIONS):
        weight = scale / (mean + dispersion * scale) ** 2
        estimate = (squares * weight).sum(dim=0) / (scale * weight).sum(dim=0)
        dispersion = torch.maximum(share * estimate + (1 - share) * start, MIN_CHANGE * start)
    log_r = -dispersion.clamp(min=MIN_DISPERSION).log()
    return GrowingNegativeBinomial(log_r.float(), reference.log().float())
