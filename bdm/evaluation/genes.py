"""Statistics of genes, and log fold changes of marker genes."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scanpy as sc
from anndata import AnnData
from scipy.stats import ks_2samp
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.cells import FEWEST_FOR_MEANS, FEWEST_OF_TYPE, Cells
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
    cell_types = cells.types(fewest=FEWEST_OF_TYPE)
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
    query: Cells, test: Cells, markers: dict[str, np.ndarray], *, fewest: int = FEWEST_OF_TYPE
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
    return Agreement.pooled(marker_fold_changes(query, test, markers, fewest=FEWEST_FOR_MEANS).values())


def wilcoxon(cells: Cells, groups: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Score and p-value of each gene, by group of cells, against all other cells."""
    adata = AnnData(cells.expression.copy())
    adata.obs["group"] = pd.Categorical(cells.cell_type)
    with warnings.catch_warnings(action="ignore"):
        sc.tl.rank_genes_groups(adata, "group", groups=groups, method="wilcoxon", tie_correct=True)
    result = adata.uns["rank_genes_groups"]
    tested = {}
    for group in groups:
        in_order = np.argsort(result["names"][group].astype(int))
        tested[group] = tuple(result[key][group][in_order].astype(float) for key in ("scores", "pvals"))
    return tested
