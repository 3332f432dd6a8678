"""Genes that differ between each cell type and all others: how many, and which, in query cells and in test cells."""

from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.cells import Cells
from bdm.evaluation.properties.group import MIN_CELLS_OF_GROUP, Group, Side

FALSE_DISCOVERIES = 0.1  # rate below which a gene differs, as in SimBench
BIMODAL = 0.3  # difference of means in standard deviations from which a gene is bimodal, as in SimBench


def distances_by_label(group: Group) -> dict[str, dict[str, float]]:
    """Compare the genes that differ between a cell type and all others, for each type of enough cells.

    Returns
    -------
    By cell type and property: for ``*_share``, the absolute difference of the shares of genes that differ; for
    ``*_overlap``, one minus the number of genes that differ in both over the number that differ in either.
    """
    labels = [label for label in group.labels if all(has_others(side, label) for side in group.sides)]
    if not labels:
        return {}
    query, test = (genes_that_differ(side.cells, labels) for side in group.sides)
    return {label: compare(query[label], test[label]) for label in labels}


def has_others(side: Side, label: str) -> bool:
    """Whether there are enough cells of other types."""
    return bool((side.cells.cell_type != label).sum() >= MIN_CELLS_OF_GROUP)


def compare(query: dict[str, np.ndarray], test: dict[str, np.ndarray]) -> dict[str, float]:
    """Compare sets of genes, given as masks by test."""
    compared = {}
    for name, of_query in query.items():
        either = (of_query | test[name]).sum()
        compared[f"{name}_share"] = float(abs(of_query.mean() - test[name].mean()))
        compared[f"{name}_overlap"] = float(1 - (of_query & test[name]).sum() / either) if either else float("nan")
    return compared


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


def genes_that_differ(cells: Cells, labels: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Test all genes between each cell type and all others.

    Returns
    -------
    By cell type and test, masks of the genes that differ.

    References
    ----------
    The five tests of SimBench, Cao et al. 2021, https://doi.org/10.1038/s41467-021-27130-w
    """
    ordered, found = OrderedValues.of(cells), {}
    for label in labels:
        is_type = cells.cell_type == label
        inside, outside = (Moments.of(cells, np.flatnonzero(rows)) for rows in (is_type, ~is_type))
        p_values = {
            "de": welch(inside, outside),
            "dv": bartlett(inside, outside),
            "dd": ordered.kolmogorov_smirnov(is_type),
            "dp": chi_squared(inside, outside),
        }
        found[label] = {name: is_discovery(p) for name, p in p_values.items()}
        found[label]["bd"] = bimodality(inside, outside) > BIMODAL
    return found


def is_discovery(p_values: np.ndarray) -> np.ndarray:
    """Mask of the genes below the rate of false discoveries, of those with a p-value."""
    tested = np.isfinite(p_values)
    found = np.zeros(len(p_values), dtype=bool)
    if tested.any():
        found[tested] = stats.false_discovery_control(p_values[tested]) < FALSE_DISCOVERIES
    return found


def welch(inside: Moments, outside: Moments) -> np.ndarray:
    """P-values of the t-test with unequal variances; NaN for constant genes."""
    with np.errstate(invalid="ignore", divide="ignore"):
        result = stats.ttest_ind_from_stats(
            inside.mean,
            np.sqrt(inside.variance),
            inside.n_cells,
            outside.mean,
            np.sqrt(outside.variance),
            outside.n_cells,
            equal_var=False,
        )
    return np.asarray(result.pvalue)


def bartlett(inside: Moments, outside: Moments) -> np.ndarray:
    """P-values of Bartlett's test of equal variances; NaN for genes that are constant on one side."""
    degrees = np.array([inside.n_cells - 1, outside.n_cells - 1])
    variances = np.stack([inside.variance, outside.variance])
    pooled = degrees @ variances / degrees.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        statistic = degrees.sum() * np.log(pooled) - degrees @ np.log(variances)
        correction = 1 + ((1 / degrees).sum() - 1 / degrees.sum()) / 3
        return np.where((variances > 0).all(axis=0), stats.chi2.sf(statistic / correction, 1), np.nan)


def chi_squared(inside: Moments, outside: Moments) -> np.ndarray:
    """P-values of the chi-squared test of the shares of cells with counts; NaN where all cells have, or none."""
    n_cells = np.array([inside.n_cells, outside.n_cells])
    detected = np.stack([inside.n_detected, outside.n_detected])
    share = detected.sum(axis=0) / n_cells.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        squares = (detected - n_cells[:, None] * share) ** 2 / (n_cells[:, None] * share * (1 - share))
    return np.asarray(stats.chi2.sf(squares.sum(axis=0), 1))


def bimodality(inside: Moments, outside: Moments) -> np.ndarray:
    """Difference of means over the standard deviation within both; 0 for constant genes."""
    n_cells = np.array([inside.n_cells, outside.n_cells])
    spread = np.sqrt(n_cells @ np.stack([inside.variance, outside.variance]) / n_cells.sum())
    difference = np.abs(inside.mean - outside.mean)
    return np.asarray(np.divide(difference, spread, out=np.zeros(len(spread)), where=spread > 0))


@dataclass(frozen=True)
class OrderedValues:
    """Values above zero of all genes, gene after gene and in ascending order.

    Attributes
    ----------
    cell
        Index of the cell of each value.
    start
        Where the values of each gene start, and the number of all.
    is_last
        Whether a value is the last of equal values of a gene.
    """

    cell: np.ndarray
    start: np.ndarray
    is_last: np.ndarray

    @classmethod
    def of(cls, cells: Cells) -> "OrderedValues":
        """Order the values of ``log1p(CP10k)``."""
        columns = cells.expression.tocsc()
        gene = np.repeat(np.arange(columns.shape[1]), np.diff(columns.indptr))
        order = np.lexsort((columns.data, gene))
        gene, values = gene[order], columns.data[order]
        is_last = np.ones(len(values), dtype=bool)
        is_last[:-1] = (np.diff(gene) > 0) | (np.diff(values) > 0)
        return cls(columns.indices[order], columns.indptr, is_last)

    def kolmogorov_smirnov(self, is_inside: np.ndarray) -> np.ndarray:
        """Asymptotic p-values of the Kolmogorov-Smirnov test of some cells against the others, by gene."""
        n_inside, n_outside = int(is_inside.sum()), int((~is_inside).sum())
        weight = np.where(is_inside, 1 / n_inside, -1 / n_outside)[self.cell]
        total = np.concatenate([[0], np.cumsum(weight)])
        at_zero = -np.diff(total[self.start])  # as all shares together are 0
        gene = np.repeat(np.arange(len(at_zero)), np.diff(self.start))
        difference = np.abs(total[1:] - total[self.start[:-1]][gene] + at_zero[gene])[self.is_last]
        distance = np.abs(at_zero)
        np.maximum.at(distance, gene[self.is_last], difference)
        return np.asarray(stats.kstwobign.sf(distance * np.sqrt(n_inside * n_outside / (n_inside + n_outside))))
