"""Membership attacks on generated cells and on models.

An attack scores each cell; a higher score says that the cell is more likely a member. It sees the reference and either
the generated cells or the model, but no membership. Principal components are fitted to generated and reference cells.
"""

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.linalg import solve_triangular
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from bdm.autoencoder.inputs import batch_codes, evidence_lower_bounds
from bdm.autoencoder.latent import cells_by_network, populations_of_cells
from bdm.data.cells import Cells
from bdm.data.matrix import take_cells
from bdm.evaluation.metrics import fitted_pca
from bdm.model.model import BranchedModel

SETS = GENERATED, COPIES = ("generated", "copies")  # cells that attacks treat as generated
ATTACKS = {
    "nearest": "nearest generated cell",
    "likelihood_ratio": "likelihood ratio",
    "mean_shift": "shift of means",
    "bound": "bound under the model",
}
ON_CELLS = ["nearest", "likelihood_ratio", "mean_shift"]  # the others are on the model
N_REFERENCE_CELLS = 5  # nearest reference cells, as a measure of density
MIN_CELLS_OF_TYPE = 2  # generated and reference cells each; a single cell has no covariance
MIN_VARIANCE = 0.05  # added to the variance of each gene, as a share of the mean over genes
MIN_SPREAD = 1e-3  # added to covariances in the same way, because all cells may be identical
MIN_DONORS = 3  # fewest donors for a variance between donors
TINY = np.finfo(np.float32).tiny


def attack(attacked: Cells, generated: Cells, reference: Cells, donor: np.ndarray, *, seed: int) -> pd.DataFrame:
    """Score cells by each attack on generated cells, within cell types.

    ``donor`` has the donor code of each reference cell; without donors, a code for each cell. Returns attacked cells x
    attacks; NaN for cell types with fewer than two generated or two reference cells.
    """
    pca = fitted_pca(sparse.vstack([generated.expression, reference.expression]).tocsr(), seed=seed)
    scores = pd.DataFrame(np.nan, index=range(len(attacked)), columns=ON_CELLS, dtype=np.float32)
    for name in attacked.n_by_type.index:
        rows = [np.flatnonzero(cells.cell_type == name) for cells in (attacked, generated, reference)]
        if min(len(rows[1]), len(rows[2])) < MIN_CELLS_OF_TYPE:
            continue
        sets = zip((attacked, generated, reference), rows, strict=True)
        expression = [cells.expression[index] for cells, index in sets]
        components = [pca.transform(matrix) for matrix in expression]
        shift = mean_shift(*(matrix.toarray() for matrix in expression), donor=donor[rows[2]])
        scores_of_type = nearest(*components), likelihood_ratio(*components), shift
        scores.loc[rows[0]] = np.column_stack(scores_of_type).astype(np.float32)
    return scores


def nearest(attacked: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Compare the distances of a cell to generated and reference cells.

    From -1 to 1, for a copy. The mean distance to the nearest reference cells corrects for the density of cells: van
    Breugel et al. 2023, https://arxiv.org/abs/2302.12580.
    """
    to_generated = distance_to(generated, attacked, n_neighbours=1)
    to_reference = distance_to(reference, attacked, n_neighbours=N_REFERENCE_CELLS)
    return np.asarray((to_reference - to_generated) / np.maximum(to_reference + to_generated, TINY))


def likelihood_ratio(attacked: np.ndarray, generated: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the log ratio of two normal densities, generated over reference.

    Covariances are shrunk: Ledoit and Wolf 2004, https://doi.org/10.1016/S0047-259X(03)00096-4.
    """
    return np.asarray(log_density(generated, attacked) - log_density(reference, attacked))


def mean_shift(attacked: np.ndarray, generated: np.ndarray, reference: np.ndarray, *, donor: np.ndarray) -> np.ndarray:
    """Compare the distances of a cell to the generated and reference means.

    Higher scores are closer to the generated mean. Distances are squared and divided by the variance of each gene
    between reference donors, or between reference cells without donors. Homer et al. 2008,
    https://doi.org/10.1371/journal.pgen.1000167.
    """
    means = generated.mean(axis=0), reference.mean(axis=0)
    variance = donor_means(reference, donor).var(axis=0)
    weight = 1 / (variance + max(MIN_VARIANCE * variance.mean(), TINY))
    return np.asarray(2 * ((attacked - (means[0] + means[1]) / 2) * weight) @ (means[0] - means[1]))


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


def bounds_of_cells(model: BranchedModel, cells: AnnData, *, seed: int) -> np.ndarray:
    """Return evidence lower bounds by each cell's most probable population, in nats."""
    population = populations_of_cells(cells, model.autoencoder)
    types, batches = model.autoencoder.population_codes(population), batch_codes(cells, model.autoencoder.batches)
    bounds = np.empty(cells.n_obs)
    for rows in cells_by_network(population, model.autoencoder):
        network = model.autoencoder.network_of(population[rows[0]])
        bounds[rows] = evidence_lower_bounds(network, take_cells(cells, rows), types[rows], batches[rows], seed=seed)
    return bounds
