import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch import Tensor

from bdm.model.model import BranchedModel
from bdm.tensors import tensor_of


@torch.no_grad()
def expected_counts(model: BranchedModel, x: Tensor, batch: np.ndarray, cell_type: str | None = None) -> np.ndarray:
    """Mean counts of cells in whitened space, cells x genes.

    Parameters
    ----------
    x
        Whitened cells, cells x dimensions.
    batch
        Name of each cell's batch; ``""`` where the model has none.
    cell_type
        Of all of them; it matters to types that were added to the model, which have a decoder of their own.
    """
    codes = tensor_of(pd.Index(model.autoencoder.batches or ("",)).get_indexer(batch))
    y = model.whitening.inverse(x)
    smallest, largest = model.library_range(cell_type)
    library = y[:, -1:].clamp(smallest, largest)
    return (model.autoencoder.network_of(cell_type).decode(y[:, :-1], codes) + library).exp().numpy()


@torch.no_grad()
def inverse_dispersion(model: BranchedModel, cell_type: str) -> np.ndarray:
    """Inverse dispersion of each gene's counts in a cell type."""
    code = torch.tensor([model.autoencoder.type_code(cell_type)])
    return model.autoencoder.network_of(cell_type).log_inverse_dispersion(code)[0].exp().numpy()


def draw_counts(mean: np.ndarray, inverse_dispersion: np.ndarray, generator: np.random.Generator) -> sp.csr_matrix:
    """Draw negative binomial counts, with work in proportion to those that are not 0.

    A negative binomial count is the place at time r of a process that jumps at rate ``log(1 + mean / r)``, each time
    by a number that follows the logarithmic series distribution (Quenouille 1949, Biometrics 5:162). So a count is 0
    where the first jump, an exponential time, is after r; otherwise it is that jump, plus what the process gathers in
    the time left, which is negative binomial again: a Poisson number with a gamma rate.

    The counts of a cell depend on the generator and on the cells before it, but not on those after it.

    Parameters
    ----------
    mean
        Cells x genes.
    inverse_dispersion
        r, one a gene.
    """
    n_cells, n_genes = mean.shape
    for_times, for_jumps, for_rates, for_rest = generator.spawn(4)
    per_time = mean / inverse_dispersion
    n_expected = torch.log1p(tensor_of(per_time)).numpy() * inverse_dispersion
    first = for_times.standard_exponential(mean.shape)
    where = np.flatnonzero(first < n_expected)

    gene = where % n_genes
    r, per_time = inverse_dispersion[gene].astype(float), per_time.ravel()[where].astype(float)
    time_left = np.maximum(r - first.ravel()[where] / np.log1p(per_time), 0)
    jump = for_jumps.logseries(np.minimum(per_time / (1 + per_time), np.nextafter(1, 0)))
    counts = jump + for_rest.poisson(for_rates.standard_gamma(time_left) * per_time)
    ends = np.searchsorted(where, n_genes * np.arange(n_cells + 1))
    return sp.csr_matrix((counts.astype(np.float32), gene.astype(np.int32), ends), shape=mean.shape)
