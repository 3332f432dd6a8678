import logging
from collections.abc import Iterator

import anndata as ad
import numpy as np

from bdm.autoencoder.adapt import AdapterSettings, adapted, of_type
from bdm.autoencoder.cells import batch_names, sample_rows_of_type, type_names
from bdm.autoencoder.network import CountAutoencoder
from bdm.data.matrix import take_cells
from bdm.errors import TrainingError
from bdm.progress import progress
from bdm.threads import threads

logger = logging.getLogger(__name__)

# A known type is expressed well already, and it takes little to overfit it
OWN = AdapterSettings(
    loading_scale=0.05, expression_scale=0.3, dispersion_scale=0.2, n_prior=500, learning_rate=1e-2
)  # fmt: skip
MOST = {"train": 1000, "validation": 300}  # cells of a type that are read; more make no better decoder
TOGETHER = 100_000  # cells that are read in one go through the file


def own_networks(network: CountAutoencoder, adata: ad.AnnData, *, seed: int) -> dict[str, CountAutoencoder]:
    """Give each cell type an autoencoder of its own, in the latent space of all, where its validation cells gain by it.

    A few latent dimensions for all types cannot tell all that sets apart a small one. Types without validation cells
    keep to the shared one, as whether they gain cannot be told, and so do those whose own goes wrong in training.

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
    batches, cell_types = batch_names(adata), type_names(adata)

    def own(of: tuple[int, ad.AnnData]) -> CountAutoencoder | None:
        code, cells = of
        return own_network(network, code, cells, batches, seed=seed)

    with threads() as run:
        networks = run(own, enumerate(cells_by_type(adata, cell_types, seed=seed)))
        found = list(progress(networks, total=len(cell_types), doing="own decoders", unit="type"))
    return {cell_type: its_own for cell_type, its_own in zip(cell_types, found, strict=True) if its_own is not None}


def own_network(
    network: CountAutoencoder, code: int, cells: ad.AnnData, batches: tuple[str, ...], *, seed: int
) -> CountAutoencoder | None:
    """Give the cell type with the index ``code`` an autoencoder of its own, from its cells, if it gains by it."""
    if not (cells.obs["split"] == "validation").any():
        return None
    try:
        return adapted(of_type(network, code), cells, batches, OWN, least_gain=0, seed=seed)
    except TrainingError as error:
        logger.warning("%s keeps to the decoder of all types: %s", cells.obs["cell_type"].iloc[0], error)
        return None


def cells_by_type(adata: ad.AnnData, cell_types: tuple[str, ...], *, seed: int) -> Iterator[ad.AnnData]:
    """Yield some cells of each type, of which those of several types are read together."""
    rows = [
        np.concatenate(
            [sample_rows_of_type(adata.obs, cell_type, split, most, seed=seed) for split, most in MOST.items()]
        )
        for cell_type in cell_types
    ]
    n_cells = np.array([len(of_type) for of_type in rows])
    portion = (n_cells.cumsum() - n_cells) // TOGETHER
    for together in np.unique(portion):
        members = np.flatnonzero(portion == together)
        cells = take_cells(adata, np.concatenate([rows[code] for code in members]))
        for code, end in zip(members, n_cells[members].cumsum(), strict=True):
            yield cells[end - n_cells[code] : end].copy()
