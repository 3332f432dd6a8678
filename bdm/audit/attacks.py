"""Attacks on generated cells: scores that are the higher, the more a cell seems to have been in the training data.

An attack has the generated cells, and reference cells, which are real and were not in the training data. Neither it nor
the principal components use which of the attacked cells were.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.linalg import solve_triangular
from sklearn.covariance import LedoitWolf
from sklearn.neighbors import NearestNeighbors

from bdm.evaluation.cells import Cells
from bdm.evaluation.metrics import fitted_pca

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
