import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.errors import InputError
from bdm.model.match import SAME, InputKeys, batch_column, batches_of, label_column, labels_of, model_counts
from bdm.model.model import BranchedModel
from bdm.transmutation.goal import Goal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Cells to move.

    Attributes
    ----------
    adata
        Counts of the model's genes in the model's order (CSR), with the ``obs`` that the cells came with.
    cell_type, batch
        Of each cell, as the model names them; ``""`` where the model has no batches.
    label_column, batch_column
        Columns of ``obs`` that the cells have them in.
    """

    adata: AnnData
    cell_type: np.ndarray
    batch: np.ndarray
    label_column: str
    batch_column: str | None


def sources_of(
    adata: AnnData, model: BranchedModel, goal: Goal, keys: InputKeys = SAME, *, cell_types: tuple[str, ...] = ()
) -> Sources:
    """Take the cells to move, and check that the model can.

    Cells of types that the model does not know are left out with a warning, and so are cells with no counts.

    Parameters
    ----------
    adata
        Cells with raw counts of at least the model's genes.
    cell_types
        Types whose cells to take; all but that to move to if none are named.

    Raises
    ------
    InputError
        If the model lacks a named type or a batch, the cells lack genes, or no cells are left.
    """
    check_types(model, (*goal.cell_types, *cell_types))
    if goal.like and not cell_types:
        raise InputError("Name the types to transmute (`from_=`) where they follow other types (`like=`).")
    labels = labels_of(adata, model, keys)
    known = labels.isin(model.cell_types)
    if not known.all():
        logger.warning("Left out %d cells of types that the model lacks: %s.", (~known).sum(), some(labels[~known]))
    taken = (labels.isin(cell_types) if cell_types else known & (labels != goal.to)).to_numpy()
    if not taken.any():
        raise InputError(f"There are no cells to move to {goal.to!r}; the cells are of the types {some(labels)}.")
    chosen, labels = model_counts(adata, model, keys)[taken], labels[taken]
    seen = np.asarray(chosen.X.sum(axis=1)).ravel() > 0
    if not seen.all():
        logger.warning("Left out %d cells with no counts of the model's genes.", (~seen).sum())
    if not seen.any():
        raise InputError("No cell has counts of the model's genes.")
    chosen = chosen[seen].copy()
    columns = label_column(adata.obs, model, keys), batch_column(adata.obs, model, keys)
    return Sources(chosen, labels[seen].to_numpy(), batches_of(chosen, model, keys), *columns)


def check_types(model: BranchedModel, cell_types: tuple[str, ...]) -> None:
    """Refuse cell types that the model does not know."""
    for cell_type in cell_types:
        if cell_type not in model.cell_types:
            raise InputError(f"The model knows no type {cell_type!r}; its types are {', '.join(model.cell_types)}.")


def some(labels: pd.Series) -> str:
    """Name the cells' types."""
    return ", ".join("no type" if pd.isna(name) else repr(name) for name in labels.unique()[:5]) or "none"
