import logging
from pathlib import Path

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData

from bdm.errors import InputError

logger = logging.getLogger(__name__)

SMALLEST_RANKED = 30  # the local regression fails on fewer cells or genes, and can end the process with it


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
    train: AnnData, *, listed: pd.Index | None = None, n_most_variable: int | None = None, min_cells: int
) -> np.ndarray:
    """Choose genes by the training cells alone, so that none of the others bears on the choice.

    Parameters
    ----------
    listed
        Choose among these only.
    n_most_variable
        Choose so many by :func:`most_variable`.
    min_cells
        Choose among genes with counts in so many cells.

    Returns
    -------
    Mask over genes.
    """
    chosen = train.X.getnnz(axis=0) >= min_cells
    logger.info("%d genes are seen in fewer than %d training cells.", (~chosen).sum(), min_cells)
    if listed is not None:
        is_listed = train.var_names.isin(listed)
        rare = train.var_names[is_listed & ~chosen]
        if len(rare):
            names = ", ".join(rare)
            logger.warning("Left out listed genes seen in fewer than %d training cells: %s.", min_cells, names)
        chosen &= is_listed
    if not chosen.any():
        raise InputError(f"no gene is seen in {min_cells} training cells; lower `--min-cells-per-gene`.")
    if n_most_variable is not None:
        chosen[chosen] = most_variable(train[:, chosen].copy(), n_genes=n_most_variable)
    return chosen


def most_variable(train: AnnData, *, n_genes: int) -> np.ndarray:
    """Tell the genes that vary most beyond what their mean explains.

    With ``obs['batch']``, genes are ranked within each batch of 30 cells and genes or more, and chosen by
    their median rank.

    Returns
    -------
    Mask over genes.

    Raises
    ------
    InputError
        If there is too little to rank by.

    References
    ----------
    Stuart et al. 2019, Cell 177:1888 (Seurat v3)
    """
    if n_genes >= train.n_vars:
        return np.ones(train.n_vars, dtype=bool)
    batch_key = "batch" if "batch" in train.obs else None
    ranked = with_large_batches(train) if batch_key else train
    if not can_be_ranked(ranked):
        raise InputError(
            f"genes cannot be ranked by variability on fewer than {SMALLEST_RANKED} training cells or genes"
            f"{' a batch' if batch_key else ''}; give `--genes all`."
        )
    try:
        statistics = sc.pp.highly_variable_genes(
            ranked, flavor="seurat_v3", n_top_genes=n_genes, batch_key=batch_key, inplace=False
        )
    # The local regression fails where many genes have the same mean.
    except ValueError as error:
        raise InputError(f"genes cannot be ranked by variability ({error}); give `--genes all`.") from error
    return statistics["highly_variable"].to_numpy()


def with_large_batches(cells: AnnData) -> AnnData:
    """Keep the batches that genes can be ranked by."""
    rows = cells.obs.groupby("batch", observed=True).indices
    small = [name for name in rows if not can_be_ranked(cells[rows[name]])]
    if small:
        logger.warning("Genes are not ranked by the batches too small for it: %s.", ", ".join(small))
    return cells[~cells.obs["batch"].isin(small)].copy()


def can_be_ranked(cells: AnnData) -> bool:
    """Tell whether a trend of variance by mean can be fitted."""
    n_seen = np.count_nonzero(cells.X.getnnz(axis=0))
    return min(cells.n_obs, n_seen) >= SMALLEST_RANKED
