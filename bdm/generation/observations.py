"""Columns of obs in which generated and transmuted cells bear their cell type and batch."""

from collections.abc import Sequence

import pandas as pd

from bdm.data.columns import writable_name
from bdm.model.model import BranchedModel

# Columns of generated and transmuted cells with a meaning of their own, and a name that AnnData files reserve
TAKEN = ("cell_type", "original_type", "synthetic", "ancestor", "parted_at", "parted_level", "_index")


def type_columns(model: BranchedModel, cell_type: Sequence[str], *names: str) -> dict[str, pd.Categorical]:
    """Cell types as ``cell_type`` and under the name that their column has in the data of the model.

    Parameters
    ----------
    cell_type
        Of each cell.
    names
        Further columns to give them in.
    """
    known = set(cell_type) <= set(model.cell_types)
    column = pd.Categorical(cell_type, categories=model.cell_types if known else sorted(set(cell_type)))
    return {"cell_type": column, **dict.fromkeys(own_names(model.label_key, *names), column)}


def batch_columns(model: BranchedModel, batch: Sequence[str], *names: str) -> dict[str, pd.Categorical]:
    """Batches under the name that their column has in the data of the model; no column where it has no batches."""
    if not model.autoencoder.batches:
        return {}
    column = pd.Categorical(batch, categories=model.autoencoder.batches)
    return dict.fromkeys(own_names(model.preparation["batch_key"], *names) or ["batch"], column)


def own_names(*names: str) -> list[str]:
    """Names of columns as files can hold them, without those that are taken."""
    return [name for name in map(writable_name, names) if name not in TAKEN]
