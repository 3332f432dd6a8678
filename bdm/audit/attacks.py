"""Attacks on generated cells and on models: scores that are the higher, the more a cell seems a member.

An attack sees the generated cells, or the model, and the reference, but not which of the attacked cells are members;
nor do the principal components, which are fitted to generated cells and the reference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scipy.linalg import solve_triangular
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from bdm._core.parallel import using_threads
from bdm._core.seeds import torch_generator
from bdm.autoencoder.cells import batch_codes, evidence_lower_bounds
from bdm.data.matrix import take_cells
from bdm.evaluation.cells import Cells
from bdm.evaluation.metrics import fitted_pca
from bdm.latent.cells import cells_by_network, latent_cells, populations_of_cells
from bdm.latent.moments import population_moments
from bdm.model.model import BranchedModel
from bdm.prior.mixture import GaussianMixturePrior
from bdm.prior.network import add_random_noise, branches_at, denoised_in_blocks, denoising_losses, path_table

GENERATED, COPIES, CHANCE = SETS = ("generated", "copies", "chance")  # what attacks take for generated cells
ATTACKS = {
    "nearest": "nearest generated cell",
    "density_ratio": "density ratio",
    "likelihood_ratio": "likelihood ratio",
    "mean_shift": "shift of means",
    "denoiser_loss": "denoising loss",
    "bound": "bound under the model",
}
ON_MODEL = ("denoiser_loss", "bound")  # attacks that need the model; the others need its cells
N_NEIGHBOURS = 5
MIN_CELLS_OF_TYPE = 2  # generated cells, and reference cells; one has no covariance
MIN_VARIANCE = 0.05  # that is added to each gene's, as a share of the mean over genes
MIN_SPREAD = 1e-3  # that is added to covariances, likewise, as all cells may be the same
MIN_DONORS = 3  # whose means have a variance
TINY = np.finfo(np.float32).tiny
N_NOISES = 16  # of each cell, over which gains are averaged


@dataclass(frozen=True)
class Space:
    """Cells of one type, in principal components or by gene (log1p(CP10k)); cells x dimensions."""

    attacked: np.ndarray
    generated: np.ndarray
    reference: np.ndarray
    donor: np.ndarray  # of each reference cell; its own number where there are no donors


def nearest(space: Space) -> np.ndarray:
    """Compute minus the distance to the nearest generated cell."""
    return -distance_to(space.generated, space.attacked, n_neighbours=1)


def density_ratio(space: Space) -> np.ndarray:
    """Log ratio of the mean distances to the nearest reference cells and to the nearest generated cells.

    High where generated cells are denser than real cells: van Breugel et al. 2023, https://arxiv.org/abs/2302.12580.
    """
    to_reference, to_generated = (
        np.log(np.maximum(distance_to(among, space.attacked, n_neighbours=N_NEIGHBOURS), TINY))
        for among in (space.reference, space.generated)
    )
    return np.asarray(to_reference - to_generated)


def likelihood_ratio(space: Space) -> np.ndarray:
    """Log ratio of normal densities with shrunk covariances (Ledoit and Wolf 2004), generated over reference."""
    return np.asarray(log_density(space.generated, space.attacked) - log_density(space.reference, space.attacked))


def mean_shift(space: Space) -> np.ndarray:
    """Compute how much nearer a cell is to the mean of the generated cells than to the mean of the reference.

    Distances are squared, in units of the variance of each gene between donors of the reference (of cells, where there
    are no donors). Homer et al. 2008, https://doi.org/10.1371/journal.pgen.1000167.
    """
    generated, reference = space.generated.mean(axis=0), space.reference.mean(axis=0)
    variance = of_donors(space.reference, space.donor).var(axis=0)
    weight = 1 / (variance + max(MIN_VARIANCE * variance.mean(), TINY))
    return np.asarray(2 * ((space.attacked - (generated + reference) / 2) * weight) @ (generated - reference))


IN_COMPONENTS: dict[str, Callable[[Space], np.ndarray]] = {
    "nearest": nearest,
    "density_ratio": density_ratio,
    "likelihood_ratio": likelihood_ratio,
}
BY_GENE: dict[str, Callable[[Space], np.ndarray]] = {"mean_shift": mean_shift}


def attack(attacked: Cells, generated: Cells, reference: Cells, donor: np.ndarray, *, seed: int) -> pd.DataFrame:
    """Score cells by each attack, within their types; NaN for types with fewer than two generated or reference cells.

    ``donor`` is the number of the donor of each reference cell; of the cell, where there are no donors.
    """
    both = sparse.vstack([generated.expression, reference.expression]).tocsr()
    pca = fitted_pca(both, seed=seed)
    scores = pd.DataFrame(np.nan, index=range(len(attacked)), columns=[*IN_COMPONENTS, *BY_GENE], dtype=np.float32)
    for name in attacked.n_by_type.index:
        rows = [np.flatnonzero(cells.cell_type == name) for cells in (attacked, generated, reference)]
        if min(len(rows[1]), len(rows[2])) < MIN_CELLS_OF_TYPE:
            continue
        of_type = [cells.expression[index] for cells, index in zip((attacked, generated, reference), rows, strict=True)]
        spaces = [[pca.transform(one) for one in of_type], [one.toarray() for one in of_type]]
        for attacks, (own, synthetic, real) in zip((IN_COMPONENTS, BY_GENE), spaces, strict=True):
            space = Space(own, synthetic, real, donor[rows[2]])
            for key, score in attacks.items():
                scores.loc[rows[0], key] = score(space).astype(np.float32)
    return scores


def of_donors(cells: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Average the cells of each donor; the cells themselves where fewer than three donors have any."""
    codes, number = np.unique(donor, return_inverse=True)
    if len(codes) in (*range(MIN_DONORS), len(cells)):
        return cells
    mean = sparse.csr_matrix((np.ones(len(cells)), (number, np.arange(len(cells)))))
    return np.asarray(mean @ cells / np.bincount(number)[:, None])


def distance_to(among: np.ndarray, cells: np.ndarray, *, n_neighbours: int) -> np.ndarray:
    """Compute the mean distance of each cell to its nearest neighbours among others."""
    n_neighbours = min(n_neighbours, len(among))
    distance = NearestNeighbors(n_neighbors=n_neighbours).fit(among).kneighbors(cells)[0]
    return np.asarray(distance.mean(axis=1))


def log_density(of: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Compute the log density, without its constant, of the normal distribution of some cells at others."""
    fitted = LedoitWolf().fit(of)
    floor = max(MIN_SPREAD * at.var(axis=0).mean(), TINY)
    factor = np.linalg.cholesky(fitted.covariance_ + floor * np.eye(at.shape[1]))
    deviation = solve_triangular(factor, (at - fitted.location_).T, lower=True)
    return np.asarray(-(deviation**2).sum(axis=0) / 2 - np.log(np.diag(factor)).sum())


# ---- on models


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
    latent = latent_cells(model.encode(cells), every=True)
    index, table = torch.arange(cells.n_obs), path_table(model.hierarchy, latent.populations)
    prior = model.prior.to("cpu")
    denoisers = (prior_of(reference, model).denoise, prior.denoise)
    generator = torch_generator(seed, "noise of attacked cells")
    gains = torch.zeros(cells.n_obs, dtype=torch.float64)
    for _ in range(N_NOISES):
        x = model.whitening(latent.sample(index, generator))
        noised, sigma = add_random_noise(x, model.hierarchy.sigma_max, generator)
        noisy = (noised, sigma, branches_at(table, latent.population, sigma))
        theirs, own = (denoising_losses(denoised_in_blocks(denoise, *noisy), x, sigma) for denoise in denoisers)
        gains += theirs - own
    return (gains / N_NOISES).numpy()


def prior_of(cells: AnnData, model: BranchedModel) -> GaussianMixturePrior:
    """Prior with the moments of other cells in the model's latent space; populations without any keep theirs."""
    encoded = model.encode(cells)
    encoded.obs["sub_population"] = encoded.obs["sub_population"].cat.remove_unused_categories()
    moments = population_moments(latent_cells(encoded, every=True), model.whitening)
    return GaussianMixturePrior.from_moments(model.moments.joined(moments), model.hierarchy)
