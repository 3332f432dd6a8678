"""Pseudobulks: counts summed by donor and cell type, and what is expected if donors do not differ."""

from dataclasses import dataclass

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from bdm.data.matrix import blocks_of_rows


@dataclass(frozen=True)
class Pseudobulk:
    """Counts of one cell type by donor, with their expectation given batches and library sizes.

    Attributes
    ----------
    observed
        Sum of the counts, donors x genes.
    expected
        Sum of the expected counts if donors do not differ, donors x genes.
    squared
        Sum of the squares of the expected counts of cells, donors x genes.
    overdispersion
        Variance of a cell's count beyond Poisson, as a share of its squared mean, one per gene; includes the variance
        between donors.
    n_cells
        Number of cells of each donor.
    library_size, library_variance
        Mean log library size of a donor's cells, minus the mean of all; and the variance of a cell around the mean of
        its donor.
    """

    observed: np.ndarray
    expected: np.ndarray
    squared: np.ndarray
    overdispersion: np.ndarray
    n_cells: np.ndarray
    library_size: np.ndarray
    library_variance: float


@dataclass(frozen=True)
class Groups:
    """Cells by donor, cell type, population and batch, with the sums over the cells of each group.

    Attributes
    ----------
    table
        A row for each combination that has cells: codes of ``donor``, ``cell_type``, ``population`` and ``batch``;
        ``n_cells``; sums of ``library_size`` and of its ``square``, of ``log_library_size`` and of its ``log_square``.
    counts
        Sum of the counts, groups x genes.
    weighted
        Sum of the counts times library sizes, groups x genes.
    squares
        Sum of the squared counts, groups x genes.
    """

    table: pd.DataFrame
    counts: sparse.csr_matrix
    weighted: sparse.csr_matrix
    squares: sparse.csr_matrix


KEYS = ["donor", "cell_type", "population", "batch"]


def group_cells(adata: ad.AnnData, rows: np.ndarray, codes: pd.DataFrame) -> Groups:
    """Sum the counts of cells by group, in blocks of cells.

    Parameters
    ----------
    adata
        Prepared cells, in memory or on disk.
    rows
        Indices of the cells to sum, in ascending order.
    codes
        Codes of the donor, cell type, population and batch of each of these cells.
    """
    group = codes.groupby(KEYS, sort=True).ngroup().to_numpy()
    table = codes.assign(group=group).drop_duplicates("group").sort_values("group")[KEYS].reset_index(drop=True)
    shape = (len(table), adata.n_vars)
    counts, weighted, squares = (sparse.csr_matrix(shape) for _ in range(3))
    library_size = np.zeros(len(rows))
    for read, block in blocks_of_rows(adata.X, rows):
        x = sparse.csr_matrix(block, dtype=float)
        sizes = np.asarray(x.sum(axis=1)).ravel()
        library_size[read] = sizes
        cells = np.arange(x.shape[0])
        member = sparse.csr_matrix((np.ones(len(cells)), (group[read], cells)), shape=(shape[0], len(cells)))
        counts = counts + member @ x
        weighted = weighted + (member @ sparse.diags(sizes)) @ x
        squares = squares + member @ x.multiply(x).tocsr()
    logs = np.log(library_size)
    values = {"n_cells": None, "library_size": library_size, "square": library_size**2}
    values |= {"log_library_size": logs, "log_square": logs**2}
    for name, of_cells in values.items():
        table[name] = np.bincount(group, weights=of_cells, minlength=len(table))
    return Groups(table, counts, weighted, squares)


def pseudobulks(groups: Groups, batch_factor: np.ndarray, *, n_donors: int) -> dict[int, Pseudobulk]:
    """Compute the pseudobulks of each cell type, by its code.

    Parameters
    ----------
    batch_factor
        Factor by which each batch changes expression, batches x genes.
    """
    return {
        int(code): pseudobulk(groups, rows.to_numpy(), batch_factor, n_donors=n_donors)
        for code, rows in pd.Series(groups.table.index).groupby(groups.table["cell_type"])
    }


def pseudobulk(groups: Groups, rows: np.ndarray, batch_factor: np.ndarray, *, n_donors: int) -> Pseudobulk:
    """Compute the pseudobulks of one cell type, from the rows of its groups."""
    table = groups.table.iloc[rows].reset_index(drop=True)
    counts, weighted, squares = (
        np.asarray(of[rows].todense()) for of in (groups.counts, groups.weighted, groups.squares)
    )
    rate = expression_rates(table, counts, batch_factor)
    sizes, square = table["library_size"].to_numpy()[:, None], table["square"].to_numpy()[:, None]
    member = sparse.csr_matrix(
        (np.ones(len(table)), (table["donor"], np.arange(len(table)))), shape=(n_donors, len(table))
    )
    total = (square * rate**2).sum(axis=0)
    beyond = squares.sum(axis=0) - 2 * (rate * weighted).sum(axis=0) + total - (sizes * rate).sum(axis=0)
    centre = table["log_library_size"].sum() / table["n_cells"].sum()
    n_cells = member @ table["n_cells"].to_numpy()
    deviation = member @ (table["log_library_size"] - table["n_cells"] * centre).to_numpy()
    around = table["log_square"] - 2 * centre * table["log_library_size"] + table["n_cells"] * centre**2
    mean = deviation / np.maximum(n_cells, 1)
    within = float(around.sum() - (n_cells * mean**2).sum()) / max(float(n_cells.sum()) - (n_cells > 0).sum(), 1)
    return Pseudobulk(
        observed=member @ counts,
        expected=member @ (sizes * rate),
        squared=member @ (square * rate**2),
        overdispersion=np.maximum(beyond, 0) / total,
        n_cells=n_cells,
        library_size=mean,
        library_variance=max(within, 0.0),
    )


def expression_rates(table: pd.DataFrame, counts: np.ndarray, batch_factor: np.ndarray) -> np.ndarray:
    """Mean expression of the cell type in the batch of each group, groups x genes."""
    factor = batch_factor[table["batch"]]
    exposure = table["library_size"].to_numpy()[:, None] * factor
    return np.asarray(factor * (counts.sum(axis=0) + 0.5) / exposure.sum(axis=0))  # half a count, as no rate may be 0
