"""Membership attacks on generated cells and on models.

An attack scores each cell; a higher score says that the cell is more likely a member. It sees the reference and either
the generated cells or the model, but no membership. Principal components are fitted to generated and reference cells.
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
from bdm.autoencoder.inputs import batch_codes, evidence_lower_bounds
from bdm.autoencoder.latent import cells_by_network, latent_cells, populations_of_cells
from bdm.autoencoder.moments import population_moments
from bdm.data.cells import Cells
from bdm.data.matrix import take_cells
from bdm.evaluation.metrics import fitted_pca
from bdm.model.model import BranchedModel
from bdm.prior.mixture import GaussianMixturePrior
from bdm.prior.network import add_random_noise, branches_at, denoised_in_blocks, denoising_losses, path_table

SETS = GENERATED, COPIES, CHANCE = ("generated", "copies", "chance")  # cells that attacks treat as generated
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
MIN_CELLS_OF_TYPE = 2  # generated and reference cells each; a single cell has no covariance
MIN_VARIANCE = 0.05  # added to the variance of each gene, as a share of the mean over genes
MIN_SPREAD = 1e-3  # added to covariances in the same way, because all cells may be identical
MIN_DONORS = 3  # fewest donors for a variance between donors
TINY = np.finfo(np.float32).tiny
N_NOISES = 16  # noise draws for each cell; gains are averaged over them


@dataclass(frozen=True)
class Space:
    """Cells of one type, cells x principal components, or cells x genes in log1p(CP10k)."""

    donor: np.ndarray  # donor code of each reference cell; unique to each cell without donors
    attacked: np.ndarray
    generated: np.ndarray
    reference: np.ndarray


def nearest(space: Space) -> np.ndarray:
    """Return the negative distance to the nearest generated cell."""
    return -distance_to(space.generated, space.attacked, n_neighbours=1)


def density_ratio(space: Space) -> np.ndarray:
    """Return the log ratio of distances to nearest reference and generated cells.

    High where generated cells are denser than real cells: van Breugel et al. 2023, https://arxiv.org/abs/2302.12580.
    """
    to_reference, to_generated = (
        np.log(np.maximum(distance_to(cells, space.attacked, n_neighbours=N_NEIGHBOURS), TINY))
        for cells in (space.reference, space.generated)
    )
    return np.asarray(to_reference - to_generated)


def likelihood_ratio(space: Space) -> np.ndarray:
    """Return the log ratio of two normal densities, generated over reference.

    Covariances are shrunk: Ledoit and Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4.
    """
    return np.asarray(log_density(space.generated, space.attacked) - log_density(space.reference, space.attacked))


def mean_shift(space: Space) -> np.ndarray:
    """Compare the distances of a cell to the generated and reference means.

    Higher scores are closer to the generated mean. Distances are squared and divided by the variance of each gene
    between reference donors, or between reference cells without donors. Homer et al. 2008,
    https://doi.org/10.1371/journal.pgen.1000167.
    """
    generated, reference = space.generated.mean(axis=0), space.reference.mean(axis=0)
    variance = donor_means(space.reference, space.donor).var(axis=0)
    weight = 1 / (variance + max(MIN_VARIANCE * variance.mean(), TINY))
    return np.asarray(2 * ((space.attacked - (generated + reference) / 2) * weight) @ (generated - reference))


IN_COMPONENTS: dict[str, Callable[[Space], np.ndarray]] = {
    "nearest": nearest,
    "density_ratio": density_ratio,
    "likelihood_ratio": likelihood_ratio,
}
BY_GENE: dict[str, Callable[[Space], np.ndarray]] = {"mean_shift": mean_shift}


def attack(attacked: Cells, generated: Cells, reference: Cells, donor: np.ndarray, *, seed: int) -> pd.DataFrame:
    """Score cells by each attack on generated cells, within cell types.

    ``donor`` has the donor code of each reference cell; without donors, a code for each cell. Returns attacked cells x
    attacks; NaN for cell types with fewer than two generated or two reference cells.
    """
    pca = fitted_pca(sparse.vstack([generated.expression, reference.expression]).tocsr(), seed=seed)
    scores = pd.DataFrame(np.nan, index=range(len(attacked)), columns=[*IN_COMPONENTS, *BY_GENE], dtype=np.float32)
    for name in attacked.n_by_type.index:
        rows = [np.flatnonzero(cells.cell_type == name) for cells in (attacked, generated, reference)]
        if min(len(rows[1]), len(rows[2])) < MIN_CELLS_OF_TYPE:
            continue
        expression = [
            cells.expression[index] for cells, index in zip((attacked, generated, reference), rows, strict=True)
        ]
        components = Space(donor[rows[2]], *(pca.transform(matrix) for matrix in expression))
        genes = Space(donor[rows[2]], *(matrix.toarray() for matrix in expression))
        for space, attacks in ((components, IN_COMPONENTS), (genes, BY_GENE)):
            for key, score in attacks.items():
                scores.loc[rows[0], key] = score(space).astype(np.float32)
    return scores


def donor_means(cells: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Average cells by donor.

    With fewer than three donors, or one cell of each, the cells are returned.
    """
    codes, number = np.unique(donor, return_inverse=True)
    if len(codes) < MIN_DONORS or len(codes) == len(cells):
        return cells
    mean = sparse.csr_matrix((np.ones(len(cells)), (number, np.arange(len(cells)))))
    return np.asarray(mean @ cells / np.bincount(number)[:, None])


def distance_to(neighbours: np.ndarray, cells: np.ndarray, *, n_neighbours: int) -> np.ndarray:
    """Return the mean distance of each cell to its nearest neighbours."""
    n_neighbours = min(n_neighbours, len(neighbours))
    distance = NearestNeighbors(n_neighbors=n_neighbours).fit(neighbours).kneighbors(cells)[0]
    return np.asarray(distance.mean(axis=1))


def log_density(cells: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Fit a normal distribution to cells; return log densities at ``x``."""
    fitted = LedoitWolf().fit(cells)
    floor = max(MIN_SPREAD * x.var(axis=0).mean(), TINY)
    factor = np.linalg.cholesky(fitted.covariance_ + floor * np.eye(x.shape[1]))
    deviation = solve_triangular(factor, (x - fitted.location_).T, lower=True)
    return np.asarray(-(deviation**2).sum(axis=0) / 2 - np.log(np.diag(factor)).sum())


# ---- on models


def has_batches_of(model: BranchedModel, cells: AnnData) -> bool:
    """Return whether a model knows all batches of prepared cells."""
    known = model.autoencoder.batches
    return not known or set(cells.obs["batch"].astype(str)) <= set(known)


def bounds_of_cells(model: BranchedModel, cells: AnnData, *, seed: int) -> np.ndarray:
    """Return evidence lower bounds by each cell's most probable population, in nats."""
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
    """Compare denoising losses of the model's prior and a reference prior.

    Returns the loss of the reference prior minus the loss of the model's prior, averaged over noise, (n_cells,).
    """
    latent = latent_cells(model.encode(cells), with_test=True)
    index, table = torch.arange(cells.n_obs), path_table(model.hierarchy, latent.populations)
    denoisers = (fit_reference_prior(reference, model).denoise, model.prior.to("cpu").denoise)
    generator = torch_generator(seed, "noise of attacked cells")
    gains = torch.zeros(cells.n_obs, dtype=torch.float64)
    for _ in range(N_NOISES):
        x = model.whitening(latent.sample(index, generator))
        noised, sigma = add_random_noise(x, model.hierarchy.sigma_max, generator)
        noisy = (noised, sigma, branches_at(table, latent.population, sigma))
        loss_of_reference, loss = (
            denoising_losses(denoised_in_blocks(denoise, *noisy), x, sigma) for denoise in denoisers
        )
        gains += loss_of_reference - loss
    return (gains / N_NOISES).numpy()


def fit_reference_prior(cells: AnnData, model: BranchedModel) -> GaussianMixturePrior:
    """Fit a prior to reference cells; populations without cells keep the model's moments."""
    encoded = model.encode(cells)
    encoded.obs["sub_population"] = encoded.obs["sub_population"].cat.remove_unused_categories()
    moments = population_moments(latent_cells(encoded, with_test=True), model.whitening)
    return GaussianMixturePrior.from_moments(model.moments.joined(moments), model.hierarchy)
