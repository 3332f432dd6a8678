from dataclasses import dataclass

import numpy as np
import pandas as pd
from umap import UMAP

from bdm.interpretation.hybrids import Hybrids
from bdm.latent.cells import LatentCells
from bdm.model.model import BranchedModel
from bdm.seeds import numpy_generator

MOST_CELLS = 3000


@dataclass(frozen=True)
class Places:
    """Places of hybrids and of real cells in one UMAP of the whitened latent space.

    Attributes
    ----------
    hybrids
        Branches x 2.
    cells
        Table of real cells with the columns ``cell_type``, ``umap1`` and ``umap2``.
    """

    hybrids: np.ndarray
    cells: pd.DataFrame


def places_of(model: BranchedModel, hybrids: Hybrids, cells: LatentCells, *, seed: int) -> Places:
    """Embed up to 3,000 real cells, and place the hybrids among their nearest of these.

    References
    ----------
    McInnes et al. 2018, https://arxiv.org/abs/1802.03426
    """
    n_cells = len(cells.mean)
    chosen = np.sort(numpy_generator(seed, "umap").permutation(n_cells)[:MOST_CELLS])
    x = model.whitening(cells.mean[chosen]).numpy()
    umap = UMAP(n_neighbors=min(15, len(x) - 1), min_dist=0.4, random_state=seed, n_jobs=1).fit(x)
    umap1, umap2 = umap.embedding_.T
    cell_type = np.array(cells.cell_types)[cells.cell_type.numpy()[chosen]]
    return Places(
        umap.transform(hybrids.x.astype(np.float32)),
        pd.DataFrame({"cell_type": cell_type, "umap1": umap1, "umap2": umap2}),
    )
