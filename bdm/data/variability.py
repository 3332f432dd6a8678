import logging
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from skmisc.loess import loess

from bdm.data.counts import CellCounts
from bdm.errors import InputError

logger = logging.getLogger(__name__)

SMALLEST_RANKED = 30  # the local regression fails on fewer cells or genes, and can end the process with it


@dataclass(frozen=True)
class Sums:
    """What is summed over the cells of each batch; exact, as all summands are whole.

    Attributes
    ----------
    n_cells
        By batch.
    n_seen, counts, squares
        Cells with counts of each gene, these counts, and their squares; batches x genes.
    """

    n_cells: np.ndarray
    n_seen: np.ndarray
    counts: np.ndarray
    squares: np.ndarray

    @classmethod
    def over(cls, cells: CellCounts, batch: pd.Categorical, *, n_genes: int) -> "Sums":
        """Go through the cells once."""
        n_batches = len(batch.categories)
        n_seen, counts, squares = np.zeros((3, n_batches, n_genes))
        for rows, block in cells:
            for total, values in (
                (n_seen, np.ones(block.nnz)),
                (counts, block.data.astype(float)),
                (squares, block.data.astype(float) ** 2),
            ):
                add_by_batch(total, block, values, batch.codes[rows])
        return cls(np.bincount(batch.codes, minlength=n_batches), n_seen, counts, squares)

    def n_varying(self, among: np.ndarray) -> np.ndarray:
        """Count the genes whose cells differ, of some genes, by batch."""
        n = np.maximum(self.n_cells[:, None], 1)
        return (self.squares[:, among] / n > (self.counts[:, among] / n) ** 2).sum(axis=1)

    def mean_and_variance(self, batch: int, among: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Estimate both for some genes in one batch."""
        n = self.n_cells[batch]
        mean = self.counts[batch, among] / n
        return mean, (self.squares[batch, among] / n - mean**2) * (n / (n - 1))


def add_by_batch(total: np.ndarray, block: sparse.csr_matrix, values: np.ndarray, codes: np.ndarray) -> None:
    """Add ``values``, which are where ``block`` has entries, to the batch of each cell, batches x genes."""
    n_cells = len(codes)
    members = sparse.csc_matrix((np.ones(n_cells), codes, np.arange(n_cells + 1)), shape=(len(total), n_cells)).tocsr()
    summed = (members @ sparse.csr_matrix((values, block.indices, block.indptr), shape=block.shape)).tocoo()
    total[summed.row, summed.col] += summed.data


def most_variable(
    cells: CellCounts, batch: pd.Categorical, sums: Sums, *, among: np.ndarray, n_genes: int
) -> np.ndarray:
    """Tell the genes that vary most beyond what their mean explains.

    As scanpy's ``seurat_v3``, to the same genes, but with a block of cells in memory at a time. Genes are ranked within
    each batch of 30 cells and genes or more, and chosen by their median rank.

    Parameters
    ----------
    sums
        Over these cells.
    among
        Mask of the genes to choose among, more than ``n_genes``.

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
    large = np.minimum(sums.n_cells, sums.n_varying(among)) >= SMALLEST_RANKED
    if not large.any():
        raise InputError(
            f"genes cannot be ranked by variability on fewer than {SMALLEST_RANKED} training cells or genes"
            f"{' a batch' if len(large) > 1 else ''}, or where fewer genes vary; give `genes='all'`."
        )
    if not large.all():
        small = ", ".join(batch.categories[~large])
        logger.warning("Genes are not ranked by the batches too small for it: %s.", small)

    ranked = np.flatnonzero(large)
    means, variances = np.stack([sums.mean_and_variance(k, among) for k in ranked], axis=1)
    expected = np.stack([expected_deviation(*moments) for moments in zip(means, variances, strict=True)])
    n_cells = sums.n_cells[ranked, None]
    limits = np.full(sums.counts.shape, np.inf)
    limits[np.ix_(ranked, among)] = expected * np.sqrt(n_cells) + means
    counts, squares = (total[np.ix_(ranked, among)] for total in limited_sums(cells, batch, limits))
    normalised = (n_cells * means**2 + squares - 2 * counts * means) / ((n_cells - 1) * expected**2)

    chosen = among.copy()
    chosen[among] = first_by_median_rank(normalised, n_genes)
    return chosen


def expected_deviation(mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Fit a local regression of variance by mean over genes, and give its standard deviations."""
    varies = variance > 0
    fitted = np.zeros(len(mean))
    model = loess(np.log10(mean[varies]), np.log10(variance[varies]), span=0.3, degree=2)
    try:
        model.fit()
    # It fails where many genes have the same mean.
    except ValueError as error:
        raise InputError(f"genes cannot be ranked by variability ({error}); give `genes='all'`.") from error
    fitted[varies] = model.outputs.fitted_values
    return np.sqrt(10**fitted)


def limited_sums(cells: CellCounts, batch: pd.Categorical, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sum counts and their squares by batch, where larger counts are taken as ``limits``, batches x genes."""
    counts, squares = np.zeros((2, *limits.shape))
    for rows, block in cells:
        codes = batch.codes[rows]
        values = np.minimum(block.data, limits[np.repeat(codes, np.diff(block.indptr)), block.indices])
        add_by_batch(counts, block, values, codes)
        add_by_batch(squares, block, values**2, codes)
    return counts, squares


def first_by_median_rank(variability: np.ndarray, n_genes: int) -> np.ndarray:
    """Take the genes with the best median rank over the batches, batches x genes, where they are among the first."""
    rank = np.argsort(np.argsort(-variability, axis=1), axis=1).astype(np.float32)
    rank[rank >= n_genes] = np.nan
    median = np.ma.median(np.ma.masked_invalid(rank), axis=0).filled(np.nan)
    table = pd.DataFrame({"rank": median, "n_batches": np.isfinite(rank).sum(axis=0)})
    order = table.sort_values(["rank", "n_batches"], ascending=[True, False], na_position="last").index
    return table.index.isin(order[:n_genes])
