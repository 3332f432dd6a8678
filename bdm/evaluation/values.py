"""Values by which sets of cells are compared: of genes, of cells, and of the structure of cell types and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, f1_score, silhouette_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.cells import Cells
from bdm.evaluation.genes import correlations

LABEL, BATCH = "label", "batch"  # what divides cells
MIN_NEIGHBOURS, MAX_NEIGHBOURS = 5, 50  # in which a cell occurs, and by which its density is measured
N_TYPING = 5  # neighbours that type a cell, few enough for rare types
N_MIXING, MAX_MIXED = 70, 500  # neighbours in which batches mix, and cells whose neighbours are examined
TRIMMED_RATIOS, TRIMMED_MEANS = 0.3, 0.05  # shares of genes at either end, as in edgeR


@dataclass(frozen=True)
class Side:
    """Query cells or test cells, with coordinates and library sizes that were computed among all compared cells."""

    cells: Cells
    components: np.ndarray  # joint principal components of both sides, cells x components
    effective_library_size: np.ndarray  # library size times the factor by which the counts of most genes are scaled
    genes: np.ndarray  # column indices of the variable genes, whose correlations are compared
    seed: int

    def __len__(self) -> int:
        return len(self.cells)

    def __getitem__(self, index: np.ndarray) -> Side:
        return replace(
            self,
            cells=self.cells[index],
            components=self.components[index],
            effective_library_size=self.effective_library_size[index],
        )

    @property
    def labels(self) -> np.ndarray:
        """Cell type of each cell."""
        return self.cells.cell_type

    @property
    def batches(self) -> np.ndarray:
        """Batch of each cell; no values where batches are not known."""
        return np.array([], dtype=str) if self.cells.batch is None else self.cells.batch

    def column(self, by: str) -> np.ndarray:
        """Cell types, or batches."""
        return self.labels if by == LABEL else self.batches

    def among(self, by: str, names: Sequence[str] | np.ndarray) -> Side:
        """Select the cells of some types, or batches."""
        return self[np.flatnonzero(np.isin(self.column(by), names))]

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of ``log1p(CP10k)``, by gene."""
        mean, variance = mean_variance_axis(self.cells.expression, axis=0)
        return mean, variance

    @cached_property
    def integrated(self) -> np.ndarray:
        """Principal components, corrected by ComBat (Johnson et al. 2007, doi:10.1093/biostatistics/kxj037)."""
        import scanpy as sc  # late, as it takes a second to import

        adata = AnnData(self.components.astype(float), obs={"batch": pd.Categorical(self.batches)})
        return np.asarray(sc.pp.combat(adata, key="batch", inplace=False))


# ---- of genes


def coefficient_of_variation(side: Side) -> np.ndarray:
    """Divide the standard deviation of the CP10k of each gene by their mean; NaN for genes without counts."""
    mean, variance = mean_variance_axis(side.cells.cp10k, axis=0)
    return ratio(np.sqrt(variance), mean)


def dispersion(side: Side) -> np.ndarray:
    """Dispersion of the negative binomial of each gene by the method of moments; NaN for genes without counts.

    Counts over the relative library size have the variance ``mean * E[1 / size] + dispersion * mean**2``.
    """
    size = np.maximum(side.cells.library_size, 1)
    size = size / size.mean()
    mean, variance = mean_variance_axis(sparse.csr_matrix(sparse.diags(1 / size) @ side.cells.counts), axis=0)
    return ratio(variance - mean * np.mean(1 / size), mean**2)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where the denominator is 0."""
    return np.asarray(np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0))


def correlations_within_types(side: Side) -> np.ndarray:
    """Pearson correlation of each pair of variable genes over cells, after the means of types are subtracted."""
    expression = side.cells.expression[:, side.genes].toarray().astype(float)
    for name in np.unique(side.labels):
        of_type = side.labels == name
        expression[of_type] -= expression[of_type].mean(axis=0)
    spread = expression.std(axis=0)
    expression[:, spread < 1e-6] = np.nan  # constant, but for rounding
    return correlations(expression.T)


# ---- of cells


def cell_zero_fraction(side: Side) -> np.ndarray:
    """Share of the genes without a count, by cell."""
    return np.asarray(1 - side.cells.n_detected / side.cells.counts.shape[1])


def effective_library_size(cells: Cells, reference: np.ndarray) -> np.ndarray:
    """Library size times the trimmed mean of the ratios of a cell's counts to those of a reference (TMM).

    ``reference`` has the sum of the counts of each gene. Robinson and Oshlack 2010,
    https://doi.org/10.1186/gb-2010-11-3-r25.
    """
    counts = cells.counts.tocoo()
    shared = reference[counts.col] > 0
    row, count, base = counts.row[shared], counts.data[shared].astype(float), reference[counts.col[shared]]
    share, base_share = count / cells.library_size[row], base / reference.sum()
    log_ratio = np.log2(share / base_share)
    variance = (1 - share) / count + (1 - base_share) / base
    kept = within_ends(log_ratio, row, TRIMMED_RATIOS) & within_ends(share * base_share, row, TRIMMED_MEANS)
    kept &= variance > 0
    weight = np.bincount(row[kept], 1 / variance[kept], minlength=len(cells))
    total = np.bincount(row[kept], log_ratio[kept] / variance[kept], minlength=len(cells))
    factor = 2 ** np.divide(total, weight, out=np.zeros(len(cells)), where=weight > 0)
    return np.asarray(cells.library_size * factor)


def within_ends(values: np.ndarray, row: np.ndarray, trimmed: float) -> np.ndarray:
    """Mask of the values that are not in the lowest or highest share ``trimmed`` of their row."""
    by_row = pd.Series(values).groupby(row)
    rank, n_values = by_row.rank(method="first"), by_row.transform("size")
    n_trimmed = np.floor(trimmed * n_values)
    return np.asarray((rank > n_trimmed) & (rank <= n_values - n_trimmed))


def occurrence(side: Side) -> np.ndarray:
    """How often each cell is among the nearest neighbours of others, over the mean of all cells."""
    neighbours = nearest(side, n_neighbours(len(side))).kneighbors(return_distance=False)
    return np.asarray(np.bincount(neighbours.ravel(), minlength=len(side)) / neighbours.shape[1])


def local_density(side: Side) -> np.ndarray:
    """Local outlier factor: density at a cell's neighbours over its own.

    Breunig et al. 2000, https://doi.org/10.1145/335191.335388.
    """
    factors = LocalOutlierFactor(n_neighbors=n_neighbours(len(side)), algorithm="brute").fit(side.components)
    return np.asarray(-factors.negative_outlier_factor_)


def n_neighbours(n_cells: int) -> int:
    """Return a twentieth of the cells, within limits, and fewer than all."""
    return min(max(n_cells // 20, MIN_NEIGHBOURS), MAX_NEIGHBOURS, n_cells - 1)


def nearest(side: Side, number: int) -> NearestNeighbors:
    """Find the nearest cells of a side, all but a cell itself at most."""
    return NearestNeighbors(n_neighbors=min(number, len(side) - 1), algorithm="brute").fit(side.components)


# ---- of cell types and batches


def variance_between(side: Side, column: np.ndarray) -> np.ndarray:
    """Share of the variance of each gene that is between types, or batches; NaN for constant genes."""
    mean, variance = side.moments
    between = np.zeros(len(mean))
    for name in np.unique(column):
        of_name = column == name
        between += of_name.mean() * (mean_variance_axis(side.cells.expression[of_name], axis=0)[0] - mean) ** 2
    return np.asarray(np.divide(between, variance, out=np.full(len(mean), np.nan), where=variance > 1e-12))


def mixing(side: Side) -> np.ndarray:
    """Cell-specific mixing: how far the batches of a cell's neighbours differ in their distances to the cell.

    Lütge et al. 2021, https://doi.org/10.26508/lsa.202001004, whose p-value decreases as this statistic increases.
    """
    batches, batch = np.unique(side.batches, return_inverse=True)
    neighbours = nearest(side, N_MIXING).kneighbors(return_distance=False)[:MAX_MIXED]
    return anderson_darling(batch[neighbours], n_groups=len(batches))


def anderson_darling(groups: np.ndarray, *, n_groups: int) -> np.ndarray:
    """Anderson-Darling statistic of groups (samples x ranks) over its mean for equal distributions; infinite for one.

    Scholz and Stephens 1987, https://doi.org/10.1080/01621459.1987.10478517.
    """
    n_ranks = groups.shape[1]
    rank = np.arange(1, n_ranks)
    total, n_present = np.zeros(len(groups)), np.zeros(len(groups), dtype=int)
    for group in range(n_groups):
        is_member = groups == group
        n_members = is_member.sum(axis=1)
        below = np.cumsum(is_member, axis=1)[:, :-1]
        squares = (n_ranks * below - rank * n_members[:, None]) ** 2 / (rank * (n_ranks - rank))
        total += np.divide(squares.sum(axis=1), n_members, out=np.zeros(len(groups)), where=n_members > 0)
        n_present += n_members > 0
    statistic = total / n_ranks
    return np.asarray(np.divide(statistic, n_present - 1, out=np.full(len(groups), np.inf), where=n_present > 1))


# ---- of analyses: one value


def agreement_of_k_means(side: Side) -> float:
    """Agreement of cell types with as many clusters by k-means: adjusted Rand index."""
    clusters = KMeans(len(np.unique(side.labels)), n_init=3, random_state=side.seed)
    return float(adjusted_rand_score(side.labels, clusters.fit_predict(side.components)))


def agreement_of_leiden(side: Side) -> float:
    """Compare types with Leiden clusters: adjusted Rand index (Traag et al. 2019, doi:10.1038/s41598-019-41695-z)."""
    import scanpy as sc

    adata = AnnData(side.components)
    sc.pp.neighbors(adata, use_rep="X", transformer="sklearn", random_state=side.seed)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=side.seed)
    return float(adjusted_rand_score(side.labels, adata.obs["leiden"]))


def mean_silhouette(coordinates: np.ndarray, column: np.ndarray) -> float:
    """Mean silhouette width by cell type, or batch; NaN where there is one."""
    return float(silhouette_score(coordinates, column)) if len(np.unique(column)) > 1 else float("nan")


def nearest_f1(reference: Side, typed: Side | None = None) -> pd.Series:
    """F1 of each type, where the nearest neighbours in a reference type cells, or its own cells: each by the others."""
    found = nearest(reference, N_TYPING).kneighbors(None if typed is None else typed.components, return_distance=False)
    names, code = np.unique(reference.cells.cell_type, return_inverse=True)
    votes = (code[found][:, :, None] == np.arange(len(names))).sum(axis=1)
    truth = (reference if typed is None else typed).cells.cell_type
    labels = np.unique(truth)
    f1 = f1_score(truth, names[votes.argmax(axis=1)], labels=labels, average=None, zero_division=0)
    return pd.Series(f1, index=labels)
