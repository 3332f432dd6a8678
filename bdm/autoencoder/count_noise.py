"""Noise of generated counts: dispersions that fall as the mean rises."""

from __future__ import annotations

from typing import cast

import anndata as ad
import torch
from torch import Tensor

from bdm._core.parallel import threads
from bdm._core.progress import progress
from bdm._core.seeds import to_tensor
from bdm.autoencoder.adapters import CELLS_PER_POPULATION
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.latent import sample_cells_with_latents, trained_populations
from bdm.autoencoder.observation import GROWTH, MIN_MEAN, GrowingNegativeBinomial, NegativeBinomial
from bdm.autoencoder.softmax import noise_step

N_ITERATIONS = 8  # Newton steps
PRIOR_SCALE = 0.5  # prior standard deviation of a log inverse dispersion


def fit_count_noise(
    cells: ad.AnnData, autoencoder: GeneAutoencoder, populations: tuple[str, ...], *, seed: int
) -> dict[str, GrowingNegativeBinomial]:
    """Fit the noise of generated counts in each population with training cells.

    With one dispersion per gene, as in the decoder, cells with high means have too many outlying counts, and cells with
    low means too few zeros. The result is empty for decoders whose counts are not negative binomial. ``cells`` are
    prepared, with ``obs["sub_population"]``; at most 1,000 training cells of a population are used.
    """
    if autoencoder.network.decoder.observation_model is not NegativeBinomial:
        return {}

    @torch.no_grad()  # applies to the current thread only
    def fit(population: str) -> GrowingNegativeBinomial:
        sampled = sample_cells_with_latents(
            cells, autoencoder, population, n_cells=CELLS_PER_POPULATION["train"], purpose="noise", seed=seed
        )
        decoder, counts = autoencoder.network_of(population).decoder, to_tensor(sampled.counts.toarray())
        log_mean = decoder.decode(sampled.latent, sampled.batch, log_size=decoder.size(counts).log())
        code = torch.tensor([autoencoder.population_code(population)])
        likelihood = cast(NegativeBinomial, decoder.observation(code))
        return fit_dispersions(counts, log_mean.exp(), likelihood.log_inverse_dispersion[0])

    names = trained_populations(cells, populations)
    with threads() as run:
        fitted = progress(run(fit, names), doing="fitting count noise", total=len(names), unit="population")
        return dict(zip(names, fitted, strict=True))


def fit_dispersions(counts: Tensor, mean: Tensor, log_inverse_dispersion: Tensor) -> GrowingNegativeBinomial:
    """Fit dispersions by maximum a posteriori.

    ``counts`` and ``mean`` (given samples of the latents) are cells x genes. The prior is normal around the parameters
    of the decoder, by gene. The reference of the result is the mean over cells.
    """
    mean = mean.clamp(min=MIN_MEAN)
    reference, precision = mean.mean(dim=0).log(), PRIOR_SCALE**-2
    growth, log_r = GROWTH * (mean.log() - reference), log_inverse_dispersion
    for _ in range(N_ITERATIONS):
        gradients = NegativeBinomial(log_r + growth).parameter_gradients(counts, mean)["log_inverse_dispersion"]
        log_r = log_r + noise_step(gradients, log_r - log_inverse_dispersion, precision)
    return GrowingNegativeBinomial(log_r, reference)
