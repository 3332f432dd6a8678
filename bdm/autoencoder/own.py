import anndata as ad
import numpy as np
from tqdm import tqdm

from bdm.autoencoder.adapt import AdapterSettings, adapted, of_type
from bdm.autoencoder.codes import batch_names, type_names
from bdm.autoencoder.draw import cells_of, some_of_type
from bdm.autoencoder.network import CountAutoencoder

# A known type is expressed well already, and it takes little to overfit it
OWN = AdapterSettings(loading_scale=0.05, expression_scale=0.3, dispersion_scale=0.2, n_prior=500, learning_rate=1e-2)
MOST = {"train": 2000, "validation": 500}  # cells of a type that are read; more make no better decoder


def own_networks(network: CountAutoencoder, adata: ad.AnnData, *, seed: int) -> dict[str, CountAutoencoder]:
    """Give each cell type an autoencoder of its own, in the latent space of all, where its validation cells gain by it.

    A few latent dimensions for all types cannot tell all that sets apart a small one. Types without validation cells
    keep to the shared one, as whether they gain cannot be told.

    Parameters
    ----------
    network
        Trained on all types.
    adata
        Prepared counts, in memory or on disk.

    Returns
    -------
    Autoencoders by type.
    """
    batches, found = batch_names(adata), {}
    for code, cell_type in enumerate(tqdm(type_names(adata), desc="own decoders", disable=None)):
        rows = [some_of_type(adata.obs, cell_type, split, most, seed=seed) for split, most in MOST.items()]
        cells = cells_of(adata, np.concatenate(rows))
        if (cells.obs["split"] == "validation").any():
            own = adapted(of_type(network, code), cells, batches, OWN, least_gain=0, seed=seed)
            found |= {} if own is None else {cell_type: own}
    return found
