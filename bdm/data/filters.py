import logging

import numpy as np
import pandas as pd
from anndata import AnnData

from bdm.errors import InputError

logger = logging.getLogger(__name__)


def check_unique_names(cells: AnnData) -> None:
    """Refuse cells or genes that share a name."""
    for kind, names in (("cell", cells.obs_names), ("gene", cells.var_names)):
        if not names.is_unique:
            repeated = names[names.duplicated()][0]
            raise InputError(f"{kind} name {repeated} is there more than once; make {kind} names unique.")


def without_empty_cells(cells: AnnData, *, min_genes: int) -> AnnData:
    """Leave out cells with counts of fewer than ``min_genes`` genes.

    Raises
    ------
    InputError
        If ``min_genes`` is 0 and there are cells without any counts, which no model of counts can take.
    """
    few = np.diff(cells.X.indptr) < max(min_genes, 1)
    if not few.any():
        return cells
    if min_genes == 0:
        raise InputError(
            f"{few.sum()} cells have no counts at all, for example {cells.obs_names[few][0]}; leave them out "
            "by `--min-genes-per-cell 1`."
        )
    logger.warning("Left out %d cells with counts of fewer genes than %d.", few.sum(), min_genes)
    return cells[~few].copy()


def without_types(cells: AnnData, names: tuple[str, ...]) -> AnnData:
    """Leave out cell types by name.

    Raises
    ------
    InputError
        If there is no such type.
    """
    if not names:
        return cells
    known = cells.obs["cell_type"].astype(str)
    for name in names:
        if not (known == name).any():
            raise InputError(f"there is no cell type {name!r} to leave out; name one that there is.")
    return cells[~known.isin(names)].copy()


def without_small_types(cells: AnnData, *, min_cells: int) -> AnnData:
    """Leave out types of fewer than ``min_cells`` cells.

    Raises
    ------
    InputError
        If fewer than two types remain.
    """
    n_cells = cells.obs["cell_type"].value_counts()
    small = n_cells[n_cells < min_cells]
    if len(n_cells) - len(small) < 2:
        raise InputError(
            f"fewer than two of {len(n_cells)} cell types have {min_cells} cells or more (the largest has "
            f"{n_cells.max()}); name another column, or lower `--min-cells-per-type`."
        )
    for name, number in small.items():
        logger.warning("Left out type %s: %d cells are fewer than %d.", name, number, min_cells)
    return cells[~cells.obs["cell_type"].isin(small.index)].copy()


def without_uncounted_cells(cells: AnnData) -> AnnData:
    """Leave out cells that have no counts of the chosen genes.

    Raises
    ------
    InputError
        If a split loses all its cells of a type.
    """
    empty = np.diff(cells.X.indptr) == 0
    if not empty.any():
        return cells
    logger.warning("Left out %d cells with no counts of the %d chosen genes.", empty.sum(), cells.n_vars)
    n_cells = cells.obs[~empty].groupby(["cell_type", "split"], observed=False).size()
    if n_cells.min() == 0:
        name, split = n_cells.idxmin()
        raise InputError(f"no {split} cell of type {name} has counts of the chosen genes; choose more genes.")
    return cells[~empty].copy()


def check_trained_batches(obs: pd.DataFrame) -> None:
    """Refuse batches that have no training cells, of which nothing could be learnt."""
    if "batch" in obs:
        untrained = set(obs["batch"]) - set(obs["batch"][obs["split"] == "train"])
        if untrained:
            raise InputError(f"batch {min(untrained)} has no training cells; leave it out, or merge it with another.")
