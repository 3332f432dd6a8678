import anndata as ad
import torch

from bdm.autoencoder.adapt import of_type
from bdm.autoencoder.blocks import blocks_of_type
from bdm.autoencoder.bounds import N_ITERATIONS
from bdm.autoencoder.network import CountAutoencoder
from bdm.autoencoder.storage import GeneAutoencoder


def first_guess(cells: ad.AnnData, cell_type: str, autoencoder: GeneAutoencoder) -> CountAutoencoder:
    """Make an autoencoder of one cell type, which knows of it what the model does; of a new one, its mean latent."""
    if cell_type in autoencoder.cell_types:
        known = of_type(autoencoder.network_of(cell_type), autoencoder.type_code(cell_type))
        return known.eval().requires_grad_(False)
    network = of_type(autoencoder.network, slice(None))
    with torch.no_grad():
        for _ in range(5):  # the mean latent draws the posteriors, whose mean it is
            of_cells = blocks_of_type(cells, autoencoder.batches)
            means = [network.encode(*block, n_iterations=N_ITERATIONS).mean for block in of_cells]
            network.prior_sum.copy_(torch.cat(means).mean(dim=0, keepdim=True))
    return network.eval().requires_grad_(False)
