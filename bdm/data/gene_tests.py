"""Marker genes, fold changes and tests between cell types, and agreement of paired values."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.stats import false_discovery_control

from bdm.data.cells import MIN_CELLS_OF_TYPE, Cells

PSEUDOCOUNT = 1.0  # CP10k, added to both means of a fold change


@dataclass(frozen=True)
class Agreement:
    """Paired values of query cells and test cells, and their agreement."""

    query: np.ndarray
    test: np.ndarray

    @classmethod
    def pooled(cls, agreements: Iterable[Agreement]) -> Agreement:
        """Concatenate the values of several agreements."""
        pairs = [(np.empty(0), np.empty(0)), *((each.query, each.test) for each in agreements)]
        return cls(*map(np.concatenate, zip(*pairs, strict=True)))

    def subset(self, index: np.ndarray) -> Agreement:
        """Select values by index."""
        return Agreement(self.query[index], self.test[index])

    @property
    def correlation(self) -> float:
        """Pearson correlation; NaN for constant values, or fewer than two."""
        if len(self.test) < 2:
            return float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.corrcoef(self.test, self.query)[0, 1])

    def correlation_chance(self, *, independent: float) -> float:
        """Compute the standard deviation of the difference of two such correlations.

        ``independent`` is the share of independent values. Fisher 1915, Biometrika 10:507-521.
        """
        return float((1 - self.correlation**2) * np.sqrt(2 / max(independent * len(self.test) - 3, 1)))

    @property
    def slope(self) -> float:
        """Least-squares slope of query values on test values.

        NaN for constant test values, or fewer than two.
        """
        if len(self.test) < 2:
            return float("nan")
        with np.errstate(invalid="ignore", divide="ignore"):
            return float(np.cov(self.test, self.query)[0, 1] / np.var(self.test, ddof=1))

    def slope_chance(self, *, independent: float) -> float:
        """Compute the standard deviation of the difference of two such slopes, as :meth:`correlation_chance`."""
        if len(self.test) < 2 or not self.test.std() > 0:
            return float("nan")
        unexplained = self.query.var() * (1 - self.correlation**2) / self.test.var()
        return float(np.sqrt(2 * unexplained / max(independent * len(self.test) - 3, 1)))

    def scores(self, name: str, *, independent: float) -> dict[str, float]:
        """Return the scores ``NAME_correlation`` and ``NAME_slope``, each with its standard deviation by chance."""
        return {
            f"{name}_correlation": self.correlation,
            f"{name}_correlation_chance": self.correlation_chance(independent=independent),
            f"{name}_slope": self.slope,
            f"{name}_slope_chance": self.slope_chance(independent=independent),
        }

    def columns(self, name: str) -> dict[str, np.ndarray]:
        """Return columns of a table: ``NAME`` of query cells, and ``NAME_test`` of test cells."""
        return {name: self.query, f"{name}_test": self.test}

    @property
    def rmse(self) -> float:
        """Root mean squared difference."""
        return float(np.sqrt(np.mean((self.query - self.test) ** 2)))

    @property
    def mean_difference(self) -> float:
        """Mean absolute difference."""
        return float(np.mean(np.abs(self.query - self.test)))


def marker_genes(cells: Cells, *, n_genes: int = 50) -> dict[str, np.ndarray]:
    """Select up to ``n_genes`` markers of each type by scanpy's t-test.

    Markers are higher in the type than in all other cells. Returns column indices by cell type.
    """
    import scanpy as sc  # takes a second to import

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
    """Compute log2 fold changes between each type and all other cells.

    Fold changes are of mean CP10k, types x genes.
    """
    is_type = (cells.cell_type == np.array(cell_types)[:, None]).astype(np.float32)
    n_cells = is_type.sum(axis=1, keepdims=True)
    inside = is_type @ cells.cp10k
    outside = cells.cp10k.sum(axis=0).A1 - inside
    return np.asarray(np.log2((inside / n_cells + PSEUDOCOUNT) / (outside / (len(cells) - n_cells) + PSEUDOCOUNT)))


def wilcoxon(cells: Cells, groups: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Test each group of cells against all others, by scanpy's Wilcoxon test.

    Ties are corrected. Returns scores and p-values of the genes, by group.
    """
    import scanpy as sc  # takes a second to import

    adata = AnnData(cells.expression, obs={"group": pd.Categorical(cells.cell_type)})
    with warnings.catch_warnings(action="ignore"):  # on fragmented tables and unused fold changes
        sc.tl.rank_genes_groups(adata, "group", groups=groups, method="wilcoxon", tie_correct=True)
    result, tested = adata.uns["rank_genes_groups"], {}
    for group in groups:
        order = np.argsort(result["names"][group].astype(int))
        tested[group] = result["scores"][group][order].astype(float), result["pvals"][group][order]
    return tested


def adjusted(p_values: np.ndarray) -> np.ndarray:
    """Adjust p-values by Benjamini and Hochberg (1995), ignoring NaN."""
    q_values, is_known = np.full(len(p_values), np.nan), ~np.isnan(p_values)
    if is_known.any():
        q_values[is_known] = false_discovery_control(p_values[is_known])
    return q_values
