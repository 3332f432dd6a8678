"""How well a fitted model explains cells: bounds on the likelihoods of their counts."""

import numpy as np
from anndata import AnnData

from bdm.autoencoder.cells import batch_codes, evidence_lower_bounds
from bdm.data.matrix import take_cells
from bdm.latent.cells import cells_by_network, populations_of_cells
from bdm.model.model import BranchedModel


def has_batches_of(model: BranchedModel, cells: AnnData) -> bool:
    """Whether a model has the batches of prepared cells."""
    known = model.autoencoder.batches
    return not known or set(cells.obs["batch"].astype(str)) <= set(known)


def bounds_of_cells(model: BranchedModel, cells: AnnData, *, seed: int) -> np.ndarray:
    """Compute the evidence lower bound of the counts of each cell, in nats.

    Each cell is taken for one of the most probable population of its cell type, whose decoder is used.

    Parameters
    ----------
    cells
        Prepared cells of the model's types and batches, with the model's genes.
    """
    population = populations_of_cells(cells, model.autoencoder)
    types, batches = model.autoencoder.type_codes(population), batch_codes(cells, model.autoencoder.batches)
    bounds = np.empty(cells.n_obs)
    for rows in cells_by_network(population, model.autoencoder):
        network = model.autoencoder.network_of(population[rows[0]])
        bounds[rows] = evidence_lower_bounds(network, take_cells(cells, rows), types[rows], batches[rows], seed=seed)
    return bounds
