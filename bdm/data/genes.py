import logging
from pathlib import Path

import numpy as np
import pandas as pd

from bdm.data.counts import CellCounts
from bdm.data.variability import Sums, most_variable
from bdm.errors import InputError

logger = logging.getLogger(__name__)


def read_gene_list(path: Path) -> pd.Index:
    """Read gene names, one a line.

    Raises
    ------
    InputError
        If there is no such text file, or nothing in it.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Genes are 'seurat_v3', 'all' or a text file of names; {path} is none.") from error
    genes = pd.Index([line.strip() for line in lines if line.strip()]).unique()
    if genes.empty:
        raise InputError(f"{path} names no genes; write one a line.")
    return genes


def check_listed(listed: pd.Index, available: pd.Index) -> None:
    """Refuse a list with genes that the data lack."""
    absent = listed.difference(available, sort=False)
    if len(absent):
        raise InputError(
            f"{len(absent)} of {len(listed)} listed genes are not in the data, for example "
            f"{', '.join(absent[:3])}; its genes are named like {available[0]}."
        )


def choose_genes(
    train: CellCounts,
    genes: pd.Index,
    batch: pd.Series | None = None,
    *,
    listed: pd.Index | None = None,
    n_most_variable: int | None = None,
    min_cells: int,
) -> np.ndarray:
    """Choose genes by the training cells alone, so that none of the others bears on the choice.

    Parameters
    ----------
    genes
        Names of all genes.
    batch
        Of each training cell, if genes are ranked within batches.
    listed
        Choose among these only.
    n_most_variable
        Choose so many by :func:`bdm.data.variability.most_variable`.
    min_cells
        Choose among genes with counts in so many cells.

    Returns
    -------
    Mask over genes.
    """
    batch = pd.Categorical(["all"] * len(train.rows)) if batch is None else pd.Categorical(batch.astype(str))
    sums = Sums.over(train, batch, n_genes=len(genes))
    chosen = sums.n_seen.sum(axis=0) >= min_cells
    logger.info("%d genes are seen in fewer than %d training cells.", (~chosen).sum(), min_cells)
    if listed is not None:
        is_listed = genes.isin(listed)
        rare = genes[is_listed & ~chosen]
        if len(rare):
            names = ", ".join(rare)
            logger.warning("Left out listed genes seen in fewer than %d training cells: %s.", min_cells, names)
        chosen &= is_listed
    if not chosen.any():
        raise InputError(f"no gene is seen in {min_cells} training cells; lower `min_cells_per_gene=`.")
    if n_most_variable is not None and n_most_variable < chosen.sum():
        chosen = most_variable(train, batch, sums, among=chosen, n_genes=n_most_variable)
    return chosen
