import numpy as np
import pandas as pd
import torch

from bdm.model.model import BranchedModel


def own_genes(model: BranchedModel, cell_type: str) -> pd.DataFrame:
    """Tell what a cell type's own decoder adds to the shared one.

    Both decode the type's mean latent.

    Returns
    -------
    Table of genes, the most changed first: ``shared`` and ``own``, expression by either decoder in CP10k, and
    ``log2_fold_change`` between them, with one CP10k added to both; and ``symbol``, where genes are shown as
    something else than their name.
    """
    shared, own = (np.exp(log_expression(model, cell_type, own=own)) * 1e4 for own in (False, True))
    names = model.gene_names
    table = pd.DataFrame({"shared": shared, "own": own}, index=names.index.rename("gene"))
    table["log2_fold_change"] = np.log2((table["own"] + 1) / (table["shared"] + 1))
    if names.differ:
        table.insert(0, "symbol", names.labels)
    return table.sort_values("log2_fold_change", key=np.abs, ascending=False, kind="stable")


@torch.no_grad()
def log_expression(model: BranchedModel, cell_type: str, *, own: bool) -> np.ndarray:
    """Log expression at a cell type's mean latent, of shares that sum to 1, without the offset of any batch.

    Parameters
    ----------
    own
        By the decoder that the type has of its own, if any, in place of the shared one.
    """
    y = model.whitening.inverse(model.moments.mixture((cell_type,)).mean[None])
    network = model.autoencoder.network_of(cell_type if own else None)
    return torch.log_softmax(network.loadings(y[:, :-1]), dim=1)[0].double().numpy()
