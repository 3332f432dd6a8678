"""What is transmuted, from which cells, to which type."""

import logging
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from bdm.errors import InputError
from bdm.model.match import SAME, batch_column, batches_of, label_column, labels_of, model_counts
from bdm.model.model import BranchedModel
from bdm.settings import InputKeys

logger = logging.getLogger(__name__)

BANDWIDTH = 0.25  # of the median distance between the types that are moved and those of the pairs


class Pair(NamedTuple):
    """Two cell types that a model knows, the second of which the first became."""

    old: str
    new: str


@dataclass(frozen=True)
class Goal:
    """Where cells are to go.

    Attributes
    ----------
    to
        Cell type to move to.
    like
        If given, the model need not know ``to``: cells go from their type as the types of these pairs went, and most as
        those that are nearest to it.
    """

    to: str
    like: tuple[Pair, ...] = ()

    @property
    def cell_types(self) -> tuple[str, ...]:
        """Types that the model has to know."""
        return tuple(name for pair in self.like for name in pair) if self.like else (self.to,)


def read_pair(text: str, cell_types: tuple[str, ...]) -> Pair:
    """Read ``OLD=NEW``, where either name may have the sign in it.

    Raises
    ------
    InputError
        If no division gives two of the cell types.
    """
    parts = text.split("=")
    divided = [Pair("=".join(parts[:i]), "=".join(parts[i:])) for i in range(1, len(parts))]
    for pair in divided:
        if set(pair) <= set(cell_types):
            return pair
    raise InputError(f"--like {text} is not of the form OLD=NEW with two types of the model: {', '.join(cell_types)}.")


def weights(model: BranchedModel, cell_type: str, like: tuple[Pair, ...]) -> pd.Series:
    """Weigh pairs for a cell type by a Gaussian kernel of the distance of their old type's mean to its own.

    Distances are in whitened space; the kernel's width is ``BANDWIDTH`` times their median.
    """
    distance = torch.stack([(mean(model, pair.old) - mean(model, cell_type)).norm() for pair in like]).double()
    width = BANDWIDTH * float(distance.quantile(0.5))
    log_weight = -((distance / width) ** 2) / 2 if width > 0 else -distance
    return pd.Series(torch.softmax(log_weight, dim=0).numpy(), index=pd.MultiIndex.from_tuples(like))


def shift(model: BranchedModel, cell_type: str, like: tuple[Pair, ...]) -> Tensor:
    """Mean difference between the types of pairs, weighted for a cell type, in whitened space."""
    differences = torch.stack([mean(model, pair.new) - mean(model, pair.old) for pair in like])
    return torch.from_numpy(weights(model, cell_type, like).to_numpy(dtype="float32")) @ differences


def mean(model: BranchedModel, cell_type: str) -> Tensor:
    """Mean of a type in whitened space."""
    return model.moments.mixture((cell_type,)).mean


@dataclass(frozen=True)
class Sources:
    """Cells to move.

    Attributes
    ----------
    adata
        Counts of the model's genes in the model's order (CSR), with the ``obs`` that the cells came with.
    cell_type, batch
        Type and batch of each cell, as the model names them; no batches (None) where the model has none.
    label_column, batch_column
        Columns of ``obs`` that the cells have them in.
    """

    adata: AnnData
    cell_type: np.ndarray
    batch: np.ndarray | None
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
    check_source_types(model, (*goal.cell_types, *cell_types))
    if goal.like and not cell_types:
        raise InputError("Name the types to transmute (`from_=`) where they follow other types (`like=`).")
    labels = labels_of(adata, model, keys)
    known = labels.isin(model.cell_types)
    if not known.all():
        logger.warning(
            "Left out %d cells of types that the model lacks: %s.", (~known).sum(), first_names(labels[~known])
        )
    taken = (labels.isin(cell_types) if cell_types else known & (labels != goal.to)).to_numpy()
    if not taken.any():
        raise InputError(
            f"There are no cells to move to {goal.to!r}; the cells are of the types {first_names(labels)}."
        )
    chosen, labels = model_counts(adata, model, keys)[taken], labels[taken]
    seen = np.asarray(chosen.X.sum(axis=1)).ravel() > 0
    if not seen.all():
        logger.warning("Left out %d cells with no counts of the model's genes.", (~seen).sum())
    if not seen.any():
        raise InputError("No cell has counts of the model's genes.")
    chosen = chosen[seen].copy()
    columns = label_column(adata.obs, model, keys), batch_column(adata.obs, model, keys)
    return Sources(chosen, labels[seen].to_numpy(), batches_of(chosen, model, keys), *columns)


def check_source_types(model: BranchedModel, cell_types: tuple[str, ...]) -> None:
    """Refuse cell types that the model does not know."""
    for cell_type in cell_types:
        if cell_type not in model.cell_types:
            raise InputError(f"The model knows no type {cell_type!r}; its types are {', '.join(model.cell_types)}.")


def first_names(labels: pd.Series) -> str:
    """Name the cells' types."""
    return ", ".join("no type" if pd.isna(name) else repr(name) for name in labels.unique()[:5]) or "none"
