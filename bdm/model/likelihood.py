"""How well a fitted model explains cells: bounds on the likelihoods of their counts, and the loss of its prior."""

import numpy as np
import torch
from anndata import AnnData

from bdm._core.parallel import using_threads
from bdm._core.seeds import torch_generator
from bdm.autoencoder.cells import batch_codes, evidence_lower_bounds
from bdm.data.matrix import take_cells
from bdm.latent.cells import cells_by_network, latent_cells, populations_of_cells
from bdm.latent.moments import population_moments
from bdm.model.model import BranchedModel
from bdm.prior.losses import branch_table, branches_at, denoised_in_blocks, denoising_losses, sample_noised
from bdm.prior.mixture import GaussianMixturePrior
from bdm.settings import PriorSettings

N_DRAWS = 16  # of noise, for each cell


def has_batches_of(model: BranchedModel, cells: AnnData) -> bool:
    """Whether a model has the batches of prepared cells."""
    known = model.autoencoder.batches
    return not known or set(cells.obs["batch"].astype(str)) <= set(known)


def bounds_of_cells(model: BranchedModel, cells: AnnData, *, seed: int) -> np.ndarray:
    """Evidence lower bound of each cell in nats, by the decoder of the most probable population of its type."""
    population = populations_of_cells(cells, model.autoencoder)
    types, batches = model.autoencoder.type_codes(population), batch_codes(cells, model.autoencoder.batches)
    bounds = np.empty(cells.n_obs)
    for rows in cells_by_network(population, model.autoencoder):
        network = model.autoencoder.network_of(population[rows[0]])
        bounds[rows] = evidence_lower_bounds(network, take_cells(cells, rows), types[rows], batches[rows], seed=seed)
    return bounds


@using_threads()
@torch.no_grad()
def denoising_gains(model: BranchedModel, cells: AnnData, reference: AnnData, *, seed: int) -> np.ndarray:
    """How much better the model's prior denoises each cell than a prior of ``reference`` does, averaged over noise."""
    latent = latent_cells(model.encode(cells), held_out=None)
    index, table = torch.arange(cells.n_obs), branch_table(model.hierarchy, latent.populations)
    prior = model.prior.to("cpu")
    denoisers = (prior_of(reference, model).denoise, prior.denoise)
    generator = torch_generator(seed, "noise of attacked cells")
    gains = torch.zeros(cells.n_obs, dtype=torch.float64)
    for _ in range(N_DRAWS):
        x = model.whitening(latent.sample(index, generator))
        noised, sigma = sample_noised(x, PriorSettings(), model.hierarchy.sigma_max, generator)
        noisy = (noised, sigma, branches_at(table, latent.population, sigma))
        theirs, own = (denoising_losses(denoised_in_blocks(of, *noisy), x, sigma) for of in denoisers)
        gains += theirs - own
    return (gains / N_DRAWS).numpy()


def prior_of(cells: AnnData, model: BranchedModel) -> GaussianMixturePrior:
    """Prior with the moments of other cells in the model's latent space; populations without any keep theirs."""
    encoded = model.encode(cells)
    encoded.obs["sub_population"] = encoded.obs["sub_population"].cat.remove_unused_categories()
    moments = population_moments(latent_cells(encoded, held_out=None), model.whitening)
    return GaussianMixturePrior.from_moments(model.moments.joined(moments), model.hierarchy)
