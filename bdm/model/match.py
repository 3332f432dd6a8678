"""Match cells from elsewhere with what a model knows."""

import logging

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from bdm.data.columns import text
from bdm.data.counts import raw_counts
from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.model.model import BranchedModel

logger = logging.getLogger(__name__)


def counts_of(adata: AnnData, genes: pd.DataFrame, *, source: str = "auto", missing_as_zero: bool = False) -> AnnData:
    """Find the raw counts of a model's genes, in their order.

    Genes are matched by name, or by another column of ``var`` (as of identifiers) where more are found by that.

    Parameters
    ----------
    genes
        ``var`` of the model: names as index.
    missing_as_zero
        Take genes that the cells lack as not expressed.

    Raises
    ------
    InputError
        If names repeat, or genes are missing.
    """
    counts = raw_counts(adata, source=source)
    own, known = best_match(counts.var, genes)
    if not own.is_unique:
        raise InputError("The cells' gene names repeat; make them unique first, as by adata.var_names_make_unique().")
    place = own.get_indexer(known)
    missing = genes.index[place < 0]
    if len(missing) and not missing_as_zero:
        raise InputError(
            f"The cells lack {len(missing)} of the model's {len(genes)} genes, for example {missing[0]}; the model "
            "needs them all."
        )
    if len(missing) == len(genes):
        raise InputError(f"The cells have none of the model's {len(genes)} genes, such as {genes.index[0]}.")
    if len(missing):
        logger.warning("Taken as not expressed: %d genes that the cells lack, as %s.", len(missing), missing[0])
    # a column of zeros at the end, for genes that are missing
    padded = sparse.hstack([counts.X, sparse.csr_matrix((counts.n_obs, 1), dtype=counts.X.dtype)], format="csr")
    return AnnData(sparse.csr_matrix(padded[:, place]), obs=counts.obs, var=genes)


def known_cells(adata: AnnData, model: BranchedModel, label_key: str | None = None) -> Cells:
    """Take the cells of types that a model knows, with its genes in its order; others are left out with a warning.

    Raises
    ------
    InputError
        If there are no such cells, no column has their types, or genes are missing.
    """
    labels = labels_of(adata, model, label_key)
    known = labels.isin(model.cell_types).to_numpy()
    others = ", ".join(map(repr, labels[~known].unique()[:5]))
    if not known.any():
        raise InputError(f"There are no cells of the model's types, but of {others or 'none'}.")
    if not known.all():
        logger.warning("Left out %d cells of types that the model lacks: %s.", (~known).sum(), others)
    counts = counts_of(adata[known], model.autoencoder.genes).X
    return Cells(sparse.csr_matrix(counts, dtype=np.float32), labels[known].to_numpy(dtype=str))


def best_match(own: pd.DataFrame, known: pd.DataFrame) -> tuple[pd.Index, pd.Index]:
    """Choose what genes are matched by: names, or any two columns of text that share more."""
    best, n_best = (own.index, known.index), int(known.index.isin(own.index).sum())
    for name, of_known in names_of(known).items():
        for column, of_own in names_of(own).items():
            n_found = int(of_known.isin(of_own).sum())
            if n_found > n_best and of_known.is_unique:
                logger.info("Genes are matched by %s of the cells and %s of the model.", column, name)
                best, n_best = (of_own, of_known), n_found
    return best


def names_of(var: pd.DataFrame) -> dict[str, pd.Index]:
    """Give the index of ``var`` and its columns of text."""
    columns = {str(name): pd.Index(column.astype(str)) for name, column in var.items() if is_text(column)}
    return {"names": var.index, **columns}


def is_text(column: pd.Series) -> bool:
    """Tell whether a column holds text."""
    return isinstance(column.dtype, pd.CategoricalDtype) or pd.api.types.is_string_dtype(column.dtype)


def labels_of(adata: AnnData, model: BranchedModel, label_key: str | None) -> pd.Series:
    """Cell type of each cell, from the first column that there is; missing where it tells none."""
    keys = (label_key,) if label_key else (model.label_key, "cell_type")
    for key in keys:
        if key in adata.obs:
            return text(adata.obs[key]).astype(object).replace(["", "nan"], None)
    raise InputError(
        f"obs has no column {' or '.join(map(repr, keys))} with the cell types; name it by `label_key=` "
        f"(there are: {', '.join(map(str, adata.obs)) or 'none'})."
    )


def batches_of(adata: AnnData, model: BranchedModel, *, new_allowed: bool = False) -> np.ndarray:
    """Batch of each cell; ``""`` where the model has no batches.

    Raises
    ------
    InputError
        If there is no column of batches, it lacks values, or one is unknown and no new ones are allowed.
    """
    known = model.autoencoder.batches
    if not known:
        return np.full(adata.n_obs, "")
    key = model.autoencoder.provenance["prepare"]["batch_key"]
    for column in (key, "batch"):
        if column in adata.obs:
            named = text(adata.obs[column])
            break
    else:
        raise InputError(f"obs has no column {key!r} with the batches, which the model needs.")
    if named.isna().any():
        raise InputError(
            f"obs[{column!r}] has no batch for {named.isna().sum()} of {len(named)} cells, for example "
            f"{named.index[named.isna().argmax()]}; complete it, or leave these cells out."
        )
    batch = named.astype(object).to_numpy()
    unknown = sorted(set(batch) - set(known))
    if unknown and not new_allowed:
        raise InputError(f"The model knows no batch {unknown[0]!r}; its batches are {', '.join(known)}.")
    return batch
