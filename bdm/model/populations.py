"""Populations of cells that are evaluated, as a model finds them."""

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.evaluation.cells import Cells, Populations
from bdm.latent.cells import populations_of_cells
from bdm.model.model import BranchedModel


def populations_by(model: BranchedModel) -> Populations | None:
    """Return a function that finds the most probable population of each cell, by its counts and its cell type.

    Generated cells are assigned in the same way as real ones, whichever population they were drawn from. Otherwise real
    cells would lie within the borders between populations, and generated ones beyond.

    Returns: None if no cell type of the model has sub-populations. The function returns None for cells without known
    batches, if the model has batches.
    """
    autoencoder = model.autoencoder
    if not len(autoencoder.sub_populations):
        return None

    def populations(cells: Cells) -> np.ndarray | None:
        obs = pd.DataFrame({"cell_type": cells.cell_type}, index=np.arange(len(cells)).astype(str))
        if autoencoder.batches:
            if cells.batch is None or not set(cells.batch) <= set(autoencoder.batches):
                return None
            obs["batch"] = cells.batch
        return populations_of_cells(AnnData(cells.counts, obs=obs), autoencoder)

    return populations
