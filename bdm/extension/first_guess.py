import anndata as ad
import torch

from bdm.autoencoder.adapt import of_type
from bdm.autoencoder.expected import N_ITERATIONS, blocks
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.storage import GeneAutoencoder


def first_guess(cells: ad.AnnData, cell_type: str, autoencoder: GeneAutoencoder) -> CountAutoencoder:
    """Make an autoencoder of one cell type, which knows of it what the model does; of a new one, its mean latent."""
    if cell_type in autoencoder.cell_types:
        return of_type(autoencoder.network_of(cell_type), autoencoder.type_code(cell_type))
    network = of_type(autoencoder.network, slice(None))
    with torch.no_grad():
        for _ in range(5):  # the mean latent draws the posteriors, whose mean it is
            of_cells = blocks(cells, autoencoder.batches)
            means = [network.encode(*block, n_iterations=N_ITERATIONS).mean for block in of_cells]
            network.prior_sum.copy_(torch.cat(means).mean(dim=0, keepdim=True))
    return network
