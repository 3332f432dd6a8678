import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from bdm.model.model import BranchedModel
from bdm.tensors import tensor_of


@torch.no_grad()
def expected_counts(model: BranchedModel, x: Tensor, batch: np.ndarray) -> np.ndarray:
    """Mean counts of cells in whitened space, cells x genes.

    Parameters
    ----------
    x
        Whitened cells, cells x dimensions.
    batch
        Name of each cell's batch; ``""`` where the model has none.
    """
    codes = tensor_of(pd.Index(model.autoencoder.batches or ("",)).get_indexer(batch))
    y = model.whitening.inverse(x)
    library = y[:, -1:].clamp(float(model.library_sizes[0]), float(model.library_sizes[1]))
    return (model.autoencoder.network.decode(y[:, :-1], codes) + library).exp().numpy()


def draw_counts(mean: np.ndarray, inverse_dispersion: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
    """Draw negative binomial counts, as Poisson counts of gamma rates.

    Parameters
    ----------
    mean
        Cells x genes.
    inverse_dispersion
        One a gene.
    """
    rates = generator.standard_gamma(inverse_dispersion, size=mean.shape) * (mean / inverse_dispersion)
    return sp.csr_matrix(generator.poisson(rates).astype(np.int32))
