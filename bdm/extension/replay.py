import anndata as ad
import pandas as pd

from bdm.data.split import split_by_type
from bdm.diffusion.walk import SamplerSettings
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.model.model import BranchedModel
from bdm.seeds import derive


def with_replayed(cells: ad.AnnData, model: BranchedModel, cell_type: str, n_most: int, *, seed: int) -> ad.AnnData:
    """Add generated cells of a known type to new ones, in place of those that it was learnt from, which are not here.

    So what is learnt from the new cells is not at the cost of what was known (generative replay, Shin et al. 2017,
    arXiv 1705.08690).

    Parameters
    ----------
    cells
        Prepared cells of the type.
    n_most
        Most cells to generate; as many as the type was learnt from, if these are fewer.
    """
    n_cells = min(int(model.composition.loc[cell_type].sum()), n_most)
    request = request_cells(model, {cell_type: n_cells})
    replayed = generate_cells(model, request, SamplerSettings(), seed=derive(seed, "replay"))
    replayed.X = replayed.X.astype(cells.X.dtype)
    replayed.obs["split"] = split_by_type(replayed.obs["cell_type"], validation=0.1, test=0.0, seed=seed)
    del replayed.obsm["latent"]
    both = ad.concat([cells, replayed], join="inner", index_unique="-")
    both.var = cells.var
    both.obs["cell_type"] = pd.Categorical([cell_type] * both.n_obs)
    return both
