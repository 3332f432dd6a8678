"""Statistics of genes, and log fold changes of marker genes."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.stats import ks_2samp, norm
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.cells import MIN_CELLS_FOR_MEANS, MIN_CELLS_OF_TYPE, Cells
from bdm.evaluation.metrics import Agreement


@dataclass(frozen=True)
class GeneStatistics:
    """Agreement of statistics that have one value a gene.

    Attributes
    ----------
    mean, variance
        Of ``log1p(CP10k)``.
    zero_fraction
        Share of the cells without a count.
    """

    mean: Agreement
    variance: Agreement
    zero_fraction: Agreement


def gene_statistics(query: Cells, test: Cells) -> GeneStatistics:
    """Compare the statistics of each gene."""
    mean_query, variance_query = mean_variance_axis(query.expression, axis=0)
    mean_test, variance_test = mean_variance_axis(test.expression, axis=0)
    return GeneStatistics(
        mean=Agreement(mean_query, mean_test),
        variance=Agreement(variance_query, variance_test),
        zero_fraction=Agreement(zero_fraction(query), zero_fraction(test)),
    )


def zero_fraction(cells: Cells) -> np.ndarray:
    """Share of the cells without a count, by gene."""
    return 1 - np.asarray((cells.counts > 0).mean(axis=0)).ravel()


def variable_genes(cells: Cells, *, n_genes: int = 100) -> np.ndarray:
    """Column indices of the genes of largest variance."""
    variance = mean_variance_axis(cells.expression, axis=0)[1]
    return np.argsort(-variance, kind="stable")[:n_genes]


def gene_pairs(query: Cells, test: Cells, genes: np.ndarray) -> Agreement:
    """Compare the Pearson correlations over cells of all pairs of ``genes`` that vary in both sets."""
    of_query, of_test = pair_correlations(query, genes), pair_correlations(test, genes)
    vary = np.isfinite(of_query) & np.isfinite(of_test)
    return Agreement(of_query[vary], of_test[vary])


def pair_correlations(cells: Cells, genes: np.ndarray) -> np.ndarray:
    """Pearson correlation of each pair of ``genes`` over cells; NaN where a gene is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.corrcoef(cells.expression[:, genes].toarray(), rowvar=False)
    return np.asarray(correlations[np.triu_indices(len(genes), k=1)])


def kolmogorov_smirnov(query: np.ndarray, test: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples of numbers, in [0, 1]."""
    return float(ks_2samp(query, test, method="asymp").statistic)


def marker_genes(cells: Cells, *, n_genes: int = 50) -> dict[str, np.ndarray]:
    """Choose the genes that mark each type against all others.

    Returns
    -------
    Column indices of up to ``n_genes`` genes, by type; a type of a single cell has none, and a single type is absent.

    References
    ----------
    The t-test with overestimated variance of scanpy, Wolf et al. 2018, https://doi.org/10.1186/s13059-017-1382-0
    """
    if len(cells.n_by_type) < 2:
        return {}
    adata = AnnData(cells.expression)
    adata.obs["cell_type"] = pd.Categorical(cells.cell_type)
    cell_types = cells.types(fewest=MIN_CELLS_OF_TYPE)
    with warnings.catch_warnings(action="ignore", category=pd.errors.PerformanceWarning):
        sc.tl.rank_genes_groups(
            adata, "cell_type", groups=cell_types, method="t-test_overestim_var", n_genes=min(n_genes, adata.n_vars)
        )
    names = adata.uns["rank_genes_groups"]["names"]
    return {cell_type: names[cell_type].astype(int) for cell_type in cell_types}


def log_fold_changes(cells: Cells, cell_types: list[str], *, pseudocount: float = 1.0) -> np.ndarray:
    """Compare mean expression in each type with that in all other cells.

    Parameters
    ----------
    pseudocount
        Added to both means, in CP10k.

    Returns
    -------
    Log2 fold changes, types x genes.
    """
    is_type = (cells.cell_type == np.array(cell_types)[:, None]).astype(np.float32)
    n_cells = is_type.sum(axis=1, keepdims=True)
    inside = is_type @ cells.cp10k
    outside = cells.cp10k.sum(axis=0).A1 - inside
    return np.asarray(np.log2((inside / n_cells + pseudocount) / (outside / (len(cells) - n_cells) + pseudocount)))


def marker_fold_changes(
    query: Cells, test: Cells, markers: dict[str, np.ndarray], *, fewest: int = MIN_CELLS_OF_TYPE
) -> dict[str, Agreement]:
    """Compare the fold changes of each type's markers, for types of at least ``fewest`` query cells."""
    cell_types = [cell_type for cell_type in query.types(fewest=fewest) if cell_type in markers]
    if not cell_types:
        return {}
    of_query, of_test = log_fold_changes(query, cell_types), log_fold_changes(test, cell_types)
    return {
        cell_type: Agreement(of_query[i, markers[cell_type]], of_test[i, markers[cell_type]])
        for i, cell_type in enumerate(cell_types)
    }


def pooled_fold_changes(query: Cells, test: Cells, markers: dict[str, np.ndarray]) -> Agreement:
    """Compare the fold changes of the markers of all types, but rare ones, as one set of points."""
    return Agreement.pooled(marker_fold_changes(query, test, markers, fewest=MIN_CELLS_FOR_MEANS).values())


def wilcoxon(cells: Cells, groups: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Score and p-value of each gene, by group of cells, against all other cells, with the correction for ties.

    As ``scanpy.tl.rank_genes_groups``, to the last bit, which ranks zeros one by one; most values are zeros, all of one
    rank, so only the others are ordered here.
    """
    columns = cells.expression.tocsc()
    columns.eliminate_zeros()
    n_cells, n_genes = columns.shape
    n_zeros = n_cells - np.diff(columns.indptr)
    gene = np.repeat(np.arange(n_genes), np.diff(columns.indptr))
    order = np.lexsort((columns.data, gene))
    cell, value = columns.indices[order], columns.data[order]
    is_first = np.ones(len(value), dtype=bool)  # of equal values of a gene
    is_first[1:] = (np.diff(gene) > 0) | (np.diff(value) > 0)
    first, tie = np.flatnonzero(is_first), np.cumsum(is_first) - 1
    size = np.diff(np.append(first, len(value)))
    place = first - columns.indptr[gene[first]] + (size + 1) / 2
    rank, rank_of_zeros = n_zeros[gene] + place[tie], (n_zeros + 1) / 2
    tied = np.bincount(gene[first], size.astype(float) ** 3 - size, minlength=n_genes)
    tied += n_zeros.astype(float) ** 3 - n_zeros
    correction = 1 - tied / (float(n_cells) ** 3 - n_cells)
    tested = {}
    for group in groups:
        is_inside = cells.cell_type == group
        n_inside, inside = int(is_inside.sum()), is_inside[cell]
        n_zeros_inside = n_inside - np.bincount(gene, inside, minlength=n_genes)
        ranks = np.bincount(gene, rank * inside, minlength=n_genes) + n_zeros_inside * rank_of_zeros
        deviation = np.sqrt(correction * n_inside * (n_cells - n_inside) * (n_cells + 1) / 12.0)
        above = ranks - n_inside * (n_cells + 1) / 2.0
        score = np.divide(above, deviation, out=np.zeros(n_genes), where=deviation > 0)
        tested[group] = score.astype(np.float32).astype(float), 2 * norm.sf(np.abs(score))
    return tested
