"""Statistics of genes, log fold changes of marker genes, and genes that differ between cell types by five tests."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import chi2, false_discovery_control, kstwobign, ttest_ind_from_stats
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.cells import MIN_CELLS_FOR_MEANS, MIN_CELLS_OF_TYPE, Cells
from bdm.evaluation.metrics import Agreement

GENE_TESTS = {
    "de": "differentially expressed",
    "dv": "differentially variable",
    "dd": "differentially distributed",
    "dp": "differentially detected",
    "bd": "bimodal",
}
N_VARIABLE = 100  # genes whose correlations are compared
PSEUDOCOUNT = 1.0  # CP10k, added to means whose ratio is taken
FALSE_DISCOVERIES = 0.1  # rate below which a gene differs, as in SimBench
BIMODAL = 0.3  # difference of means in standard deviations from which a gene is bimodal, as in SimBench


def gene_statistics(query: Cells, test: Cells) -> dict[str, Agreement]:
    """Compare mean and variance of ``log1p(CP10k)``, and the share of cells without a count, of each gene."""
    mean_query, variance_query = mean_variance_axis(query.expression, axis=0)
    mean_test, variance_test = mean_variance_axis(test.expression, axis=0)
    return {
        "mean": Agreement(mean_query, mean_test),
        "variance": Agreement(variance_query, variance_test),
        "zero_fraction": Agreement(zero_fraction(query), zero_fraction(test)),
    }


def zero_fraction(cells: Cells) -> np.ndarray:
    """Share of the cells without a count, by gene."""
    return 1 - np.asarray((cells.counts > 0).mean(axis=0)).ravel()


def variable_genes(cells: Cells) -> np.ndarray:
    """Column indices of the genes of largest variance."""
    variance = mean_variance_axis(cells.expression, axis=0)[1]
    return np.argsort(-variance, kind="stable")[:N_VARIABLE]


def gene_pairs(query: Cells, test: Cells, genes: np.ndarray) -> Agreement:
    """Compare the Pearson correlations over cells of all pairs of ``genes`` that vary in both sets."""
    of_query, of_test = (correlations(cells.expression[:, genes].toarray().T) for cells in (query, test))
    vary = np.isfinite(of_query) & np.isfinite(of_test)
    return Agreement(of_query[vary], of_test[vary])


def correlations(rows: np.ndarray) -> np.ndarray:
    """Pearson correlation of each pair of rows; NaN where a row is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.corrcoef(rows)[np.triu_indices(len(rows), k=1)])


def kolmogorov_smirnov(query: np.ndarray, test: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples of numbers, in [0, 1], without SciPy's p-value, which takes long."""
    values = np.concatenate([query, test])
    of_query, of_test = (np.searchsorted(np.sort(of), values, side="right") / len(of) for of in (query, test))
    return float(np.abs(of_query - of_test).max())


def marker_genes(cells: Cells, *, n_genes: int = 50) -> dict[str, np.ndarray]:
    """Column indices of up to ``n_genes`` genes that are higher in each type than in all others, by scanpy's t-test."""
    import scanpy as sc  # late, as it takes a second to import

    if len(cells.n_by_type) < 2:
        return {}
    adata = AnnData(cells.expression)
    adata.obs["cell_type"] = pd.Categorical(cells.cell_type)
    cell_types = cells.types(fewest=MIN_CELLS_OF_TYPE)
    with warnings.catch_warnings(action="ignore", category=pd.errors.PerformanceWarning):
        sc.tl.rank_genes_groups(
            adata, "cell_type", groups=cell_types, method="t-test_overestim_var", n_genes=min(n_genes, adata.n_vars)
        )
    names, scores = (adata.uns["rank_genes_groups"][key] for key in ("names", "scores"))
    return {cell_type: names[cell_type][scores[cell_type] > 0].astype(int) for cell_type in cell_types}


def log_fold_changes(cells: Cells, cell_types: list[str]) -> np.ndarray:
    """Log2 fold changes of mean CP10k between each type and all other cells, types x genes."""
    is_type = (cells.cell_type == np.array(cell_types)[:, None]).astype(np.float32)
    n_cells = is_type.sum(axis=1, keepdims=True)
    inside = is_type @ cells.cp10k
    outside = cells.cp10k.sum(axis=0).A1 - inside
    return np.asarray(np.log2((inside / n_cells + PSEUDOCOUNT) / (outside / (len(cells) - n_cells) + PSEUDOCOUNT)))


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


@dataclass(frozen=True)
class OrderedValues:
    """Values above zero of ``log1p(CP10k)``, gene after gene and in ascending order; most values are zeros."""

    gene: np.ndarray  # indices of the gene and of the cell of each value
    cell: np.ndarray
    start: np.ndarray  # where the values of each gene start, and the number of all
    is_last: np.ndarray  # whether a value is the last of equal values of a gene

    @classmethod
    def from_cells(cls, cells: Cells) -> "OrderedValues":
        """Order the values of all genes."""
        columns = cells.expression.tocsc()
        columns.eliminate_zeros()
        gene = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
        order = np.lexsort((columns.data, gene))
        value = columns.data[order]
        is_last = np.ones(len(value), dtype=bool)
        is_last[:-1] = (np.diff(gene) > 0) | (np.diff(value) > 0)
        return cls(gene, columns.indices[order], columns.indptr, is_last)


def wilcoxon(cells: Cells, groups: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Score and p-value of each gene, by group of cells against all others, corrected for ties, by scanpy."""
    import scanpy as sc  # late, as it takes a second to import

    adata = AnnData(cells.expression, obs={"group": pd.Categorical(cells.cell_type)})
    with warnings.catch_warnings(action="ignore"):  # of fragmented tables, and of fold changes, which are not used
        sc.tl.rank_genes_groups(adata, "group", groups=groups, method="wilcoxon", tie_correct=True)
    found, tested = adata.uns["rank_genes_groups"], {}
    for group in groups:
        order = np.argsort(found["names"][group].astype(int))
        tested[group] = found["scores"][group][order].astype(float), found["pvals"][group][order]
    return tested


# ---- genes that differ between each cell type and all others


def compare_genes(query: Cells, test: Cells, labels: list[str]) -> dict[str, dict[str, float]]:
    """Compare the genes that differ between a cell type and all others, by type and property.

    ``*_share`` is the absolute difference of the shares of genes that differ; ``*_overlap`` is one minus the number of
    genes that differ in both over the number that differ in either.
    """
    compared: dict[str, dict[str, float]] = {label: {} for label in labels}
    of_query, of_test = genes_that_differ(query, labels), genes_that_differ(test, labels)
    for label, found in compared.items():
        for name in GENE_TESTS:
            one, other = of_query[label][name], of_test[label][name]
            either = (one | other).sum()
            found[f"{name}_share"] = float(abs(one.mean() - other.mean()))
            found[f"{name}_overlap"] = float(1 - (one & other).sum() / either) if either else float("nan")
    return compared


def genes_that_differ(cells: Cells, labels: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Masks of the genes that differ between each cell type and all others, by type and test.

    The five tests of SimBench, Cao et al. 2021, https://doi.org/10.1038/s41467-021-27130-w.
    """
    ordered, found = OrderedValues.from_cells(cells), {}
    for label in labels:
        is_type = cells.cell_type == label
        inside, outside = (Moments.of(cells, np.flatnonzero(rows)) for rows in (is_type, ~is_type))
        p_values = {
            "de": welch(inside, outside),
            "dv": bartlett(inside, outside),
            "dd": ks_test(ordered, is_type),
            "dp": chi_squared(inside, outside),
        }
        found[label] = {name: adjusted(p) < FALSE_DISCOVERIES for name, p in p_values.items()}
        found[label]["bd"] = bimodality(inside, outside) > BIMODAL
    return found


def adjusted(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values for their number (Benjamini and Hochberg 1995); missing ones remain missing, and do not count."""
    found, known = np.full(len(p_values), np.nan), ~np.isnan(p_values)
    if known.any():
        found[known] = false_discovery_control(p_values[known])
    return found


@dataclass(frozen=True)
class Moments:
    """Number of cells, and mean, unbiased variance and number of cells with counts of each gene."""

    n_cells: int
    mean: np.ndarray
    variance: np.ndarray
    n_detected: np.ndarray

    @classmethod
    def of(cls, cells: Cells, rows: np.ndarray) -> "Moments":
        """Compute the moments of ``log1p(CP10k)`` over some of the cells."""
        expression = cells.expression[rows]
        mean, variance = mean_variance_axis(expression, axis=0)
        n_cells = expression.shape[0]
        return cls(n_cells, mean, variance * n_cells / (n_cells - 1), expression.getnnz(axis=0))


# ---- p-values by gene; SciPy's functions of these tests take genes one by one, or the cells of all genes in full


def welch(inside: Moments, outside: Moments) -> np.ndarray:
    """P-values of the t-test with unequal variances; NaN for constant genes."""
    moments = [(side.mean, np.sqrt(side.variance), side.n_cells) for side in (inside, outside)]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(ttest_ind_from_stats(*moments[0], *moments[1], equal_var=False).pvalue)


def bartlett(inside: Moments, outside: Moments) -> np.ndarray:
    """P-values of Bartlett's test of equal variances; NaN for genes that are constant on one side."""
    degrees = np.array([inside.n_cells - 1, outside.n_cells - 1])
    variances = np.stack([inside.variance, outside.variance])
    pooled = degrees @ variances / degrees.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = degrees.sum() * np.log(pooled) - degrees @ np.log(variances)
        correction = 1 + ((1 / degrees).sum() - 1 / degrees.sum()) / 3
        return np.where((variances > 0).all(axis=0), chi2.sf(statistic / correction, 1), np.nan)


def chi_squared(inside: Moments, outside: Moments) -> np.ndarray:
    """P-values of the chi-squared test of the shares of cells with counts; NaN where all cells have, or none."""
    n_cells = np.array([inside.n_cells, outside.n_cells])
    detected = np.stack([inside.n_detected, outside.n_detected])
    share = detected.sum(axis=0) / n_cells.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = (detected - n_cells[:, None] * share) ** 2 / (n_cells[:, None] * share * (1 - share))
    return np.asarray(chi2.sf(squares.sum(axis=0), 1))


def ks_test(values: OrderedValues, is_inside: np.ndarray) -> np.ndarray:
    """Asymptotic p-values of the Kolmogorov-Smirnov test of some cells against the others."""
    n_inside, n_outside = int(is_inside.sum()), int((~is_inside).sum())
    weight = np.where(is_inside, 1 / n_inside, -1 / n_outside)[values.cell]
    total = np.concatenate([[0], np.cumsum(weight)])
    at_zero = -np.diff(total[values.start])  # as all shares together are 0
    difference = np.abs(total[1:] - total[values.start[:-1]][values.gene] + at_zero[values.gene])[values.is_last]
    distance = np.abs(at_zero)
    np.maximum.at(distance, values.gene[values.is_last], difference)
    return np.asarray(kstwobign.sf(distance * np.sqrt(n_inside * n_outside / (n_inside + n_outside))))


def bimodality(inside: Moments, outside: Moments) -> np.ndarray:
    """Difference of means over the standard deviation within both; 0 for constant genes."""
    n_cells = np.array([inside.n_cells, outside.n_cells])
    spread = np.sqrt(n_cells @ np.stack([inside.variance, outside.variance]) / n_cells.sum())
    difference = np.abs(inside.mean - outside.mean)
    return np.asarray(np.divide(difference, spread, out=np.zeros(len(spread)), where=spread > 0))
