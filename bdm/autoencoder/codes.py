import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from bdm.tensors import tensor_of


def type_names(adata: ad.AnnData) -> tuple[str, ...]:
    """Names of the cell types of prepared cells."""
    return tuple(adata.obs["cell_type"].cat.categories)


def type_codes(adata: ad.AnnData, cell_types: tuple[str, ...]) -> Tensor:
    """Index of each cell's type among ``cell_types``."""
    return tensor_of(pd.Index(cell_types).get_indexer(adata.obs["cell_type"].astype(str)).astype(np.int64))


def batch_names(adata: ad.AnnData) -> tuple[str, ...]:
    """Names of the batches of prepared cells; none where no batch enters."""
    return tuple(adata.obs["batch"].cat.categories) if "batch" in adata.obs else ()


def batch_codes(adata: ad.AnnData, batches: tuple[str, ...]) -> Tensor:
    """Index of each cell's batch among ``batches``; 0 where no batch enters."""
    if not batches:
        return torch.zeros(adata.n_obs, dtype=torch.long)
    return tensor_of(pd.Index(batches).get_indexer(adata.obs["batch"].astype(str)).astype(np.int64))
