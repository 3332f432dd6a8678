"""Cells and cell types that are left out, and the split of the rest into training, validation and test cells."""

import logging

import numpy as np
import pandas as pd

from bdm.data.columns import is_unwritable
from bdm.errors import InputError

logger = logging.getLogger(__name__)

SPLITS = ("train", "validation", "test")


def split_by_type(cell_type: pd.Series, *, validation: float, test: float, seed: int) -> pd.Series:
    """Assign cells at random to train, validation and test, each type in the same proportions.

    The cells of a type are split by ``seed`` and its name, so that other types make no difference to it.

    Returns
    -------
    Categories ``train``, ``validation`` and ``test``, of the index of ``cell_type``.
    """
    fractions = np.array([1 - validation - test, validation, test])
    split = pd.Series(pd.Categorical(["train"] * len(cell_type), categories=SPLITS), index=cell_type.index)
    for name, rows in cell_type.groupby(cell_type, observed=True).indices.items():
        rng = np.random.default_rng([seed, *name.encode()])
        split.iloc[rng.permutation(rows)] = np.repeat(SPLITS, split_sizes(len(rows), fractions))
    return split.cat.remove_unused_categories()


def split_sizes(n_cells: int, fractions: np.ndarray) -> np.ndarray:
    """Divide ``n_cells`` by largest remainder, with a cell at least for each fraction above 0."""
    share = n_cells * fractions
    sizes = np.floor(share).astype(int)
    sizes[np.argsort(sizes - share, kind="stable")[: n_cells - sizes.sum()]] += 1
    for empty in np.flatnonzero((sizes == 0) & (fractions > 0)):
        sizes[sizes.argmax()] -= 1
        sizes[empty] = 1
    return sizes


def check_names(names: pd.Index, *, kind: str) -> None:
    """Refuse cells or genes, as ``kind`` says, that share a name, or have one that no file can hold."""
    if not names.is_unique:
        repeated = names[names.duplicated()][0]
        raise InputError(f"{kind} name {repeated} is there more than once; make {kind} names unique.")
    unfit = next(filter(is_unwritable, names), None)
    if unfit is not None:
        raise InputError(f"{kind} name {unfit!r} is one that files cannot hold; rename it.")


def without_empty_cells(obs: pd.DataFrame, n_genes: pd.Series, *, min_genes: int) -> pd.DataFrame:
    """Leave out cells with counts of fewer than ``min_genes`` genes, of which each has ``n_genes``.

    Raises
    ------
    InputError
        If ``min_genes`` is 0 and there are cells without any counts, which no model of counts can take.
    """
    few = n_genes[obs.index].to_numpy() < max(min_genes, 1)
    if not few.any():
        return obs
    if min_genes == 0:
        raise InputError(
            f"{few.sum()} cells have no counts at all, for example {obs.index[few][0]}; leave them out "
            "by `min_genes_per_cell=1`."
        )
    logger.warning("Left out %d cells with counts of fewer genes than %d.", few.sum(), min_genes)
    return obs[~few]


def without_types(obs: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Leave out cell types by name.

    Raises
    ------
    InputError
        If there is no such type.
    """
    known = obs["cell_type"].astype(str)
    for name in names:
        if not (known == name).any():
            raise InputError(f"there is no cell type {name!r} to leave out; name one that there is.")
    return obs[~known.isin(names)]


def without_small_types(obs: pd.DataFrame, *, min_cells: int) -> pd.DataFrame:
    """Leave out types of fewer than ``min_cells`` cells.

    Raises
    ------
    InputError
        If fewer than two types remain.
    """
    if obs.empty:
        raise InputError("no cells are left; leave out fewer types, or lower `min_genes_per_cell=`.")
    n_cells = obs["cell_type"].cat.remove_unused_categories().value_counts()
    small = n_cells[n_cells < min_cells]
    if len(n_cells) - len(small) < 2:
        raise InputError(
            f"fewer than two of {len(n_cells)} cell types have {min_cells} cells or more (the largest has "
            f"{n_cells.max()}); name another column, or lower `min_cells_per_type=`."
        )
    for name, number in small.items():
        logger.warning("Left out type %s: %d cells are fewer than %d.", name, number, min_cells)
    return obs[~obs["cell_type"].isin(small.index)]


def without_uncounted_cells(obs: pd.DataFrame, counted: np.ndarray, *, n_genes: int) -> pd.DataFrame:
    """Leave out cells without counts of the ``n_genes`` chosen genes; ``counted`` are the indices of the others.

    Raises
    ------
    InputError
        If a split loses all its cells of a type.
    """
    if len(counted) == len(obs):
        return obs
    logger.warning("Left out %d cells with no counts of the %d chosen genes.", len(obs) - len(counted), n_genes)
    n_cells = obs.iloc[counted].groupby(["cell_type", "split"], observed=False).size()
    if n_cells.min() == 0:
        name, split = n_cells.idxmin()
        raise InputError(f"no {split} cell of type {name} has counts of the chosen genes; choose more genes.")
    return obs.iloc[counted]


def check_trained_batches(obs: pd.DataFrame) -> None:
    """Refuse batches that have no training cells, of which nothing could be learnt."""
    if "batch" in obs:
        untrained = set(obs["batch"]) - set(obs["batch"][obs["split"] == "train"])
        if untrained:
            raise InputError(f"batch {min(untrained)} has no training cells; leave it out, or merge it with another.")
