"""Statistics of genes, cells, types and batches, for comparisons of sets."""

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

from bdm.data.cells import Cells
from bdm.evaluation.metrics import correlations

LABEL, BATCH = "label", "batch"  # columns that divide cells
MIN_NEIGHBOURS, MAX_NEIGHBOURS = 5, 50  # for occurrence and local density
N_TYPING = 5  # neighbours for cell typing, few enough for rare types
N_MIXING, MAX_MIXED = 70, 500  # neighbours for the mixing of batches, and number of cells tested
TRIMMED_RATIOS, TRIMMED_MEANS = 0.3, 0.05  # shares of genes trimmed at either end, as in edgeR


@dataclass(frozen=True)
class Side:
    """Query cells or test cells of a comparison.

    Coordinates and library sizes stay the same when cells are selected.
    """

    cells: Cells
    components: np.ndarray  # joint principal components of both sides, cells x components
    effective_library_size: np.ndarray  # see effective_library_size
    genes: np.ndarray  # column indices of variable genes
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
        """Batch of each cell; empty if unknown."""
        return np.array([], dtype=str) if self.cells.batch is None else self.cells.batch

    def column(self, by: str) -> np.ndarray:
        """Return cell types or batches."""
        return self.labels if by == LABEL else self.batches

    def among(self, by: str, names: Sequence[str] | np.ndarray) -> Side:
        """Select the cells of given types or batches."""
        return self[np.flatnonzero(np.isin(self.column(by), names))]

    @cached_property
    def moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of ``log1p(CP10k)`` by gene."""
        mean, variance = mean_variance_axis(self.cells.expression, axis=0)
        return mean, variance

    @cached_property
    def integrated(self) -> np.ndarray:
        """Principal components after batch correction by ComBat.

        Johnson et al. 2007, https://doi.org/10.1093/biostatistics/kxj037.
        """
        import scanpy as sc  # takes a second to import

        adata = AnnData(self.components.astype(float), obs={"batch": pd.Categorical(self.batches)})
        return np.asarray(sc.pp.combat(adata, key="batch", inplace=False))


# ---- genes


def coefficient_of_variation(side: Side) -> np.ndarray:
    """Compute the coefficient of variation of CP10k by gene.

    NaN for genes without counts.
    """
    mean, variance = mean_variance_axis(side.cells.cp10k, axis=0)
    return ratio(np.sqrt(variance), mean)


def dispersion(side: Side) -> np.ndarray:
    """Estimate the negative-binomial dispersion of each gene by moments.

    Counts divided by the relative library size have the variance ``mean * E[1 / size] + dispersion * mean**2``. NaN for
    genes without counts.
    """
    size = np.maximum(side.cells.library_size, 1)
    size = size / size.mean()
    mean, variance = mean_variance_axis(sparse.csr_matrix(sparse.diags(1 / size) @ side.cells.counts), axis=0)
    return ratio(variance - mean * np.mean(1 / size), mean**2)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide elementwise; NaN where the denominator is 0."""
    return np.asarray(np.divide(numerator, denominator, out=np.full(len(denominator), np.nan), where=denominator > 0))


def correlations_within_types(side: Side) -> np.ndarray:
    """Correlate all pairs of variable genes, after centring each type."""
    expression = side.cells.expression[:, side.genes].toarray().astype(float)
    for name in np.unique(side.labels):
        is_type = side.labels == name
        expression[is_type] -= expression[is_type].mean(axis=0)
    spread = expression.std(axis=0)
    expression[:, spread < 1e-6] = np.nan  # constant up to rounding
    return correlations(expression.T)


# ---- cells


def cell_zero_fraction(side: Side) -> np.ndarray:
    """Compute the share of genes without counts, by cell."""
    return np.asarray(1 - side.cells.n_detected / side.cells.counts.shape[1])


def effective_library_size(cells: Cells, reference: np.ndarray) -> np.ndarray:
    """Compute effective library sizes by the trimmed mean of M-values (TMM).

    ``reference`` has the total counts of each gene in the reference. Robinson and Oshlack 2010,
    https://doi.org/10.1186/gb-2010-11-3-r25.
    """
    counts = cells.counts.tocoo()
    shared = reference[counts.col] > 0
    row, count, base = counts.row[shared], counts.data[shared].astype(float), reference[counts.col[shared]]
    share, base_share = count / cells.library_size[row], base / reference.sum()
    log_ratio = np.log2(share / base_share)
    variance = (1 - share) / count + (1 - base_share) / base
    kept = mask_kept(log_ratio, row, TRIMMED_RATIOS) & mask_kept(share * base_share, row, TRIMMED_MEANS)
    kept &= variance > 0
    weight = np.bincount(row[kept], 1 / variance[kept], minlength=len(cells))
    total = np.bincount(row[kept], log_ratio[kept] / variance[kept], minlength=len(cells))
    factor = 2 ** np.divide(total, weight, out=np.zeros(len(cells)), where=weight > 0)
    return np.asarray(cells.library_size * factor)


def mask_kept(values: np.ndarray, row: np.ndarray, trimmed: float) -> np.ndarray:
    """Mask values outside the lowest and highest share ``trimmed`` of their row."""
    by_row = pd.Series(values).groupby(row)
    rank, n_values = by_row.rank(method="first"), by_row.transform("size")
    n_trimmed = np.floor(trimmed * n_values)
    return np.asarray((rank > n_trimmed) & (rank <= n_values - n_trimmed))


def occurrence(side: Side) -> np.ndarray:
    """Count how often each cell is a nearest neighbour, divided by the mean."""
    neighbours = index_neighbours(side, n_neighbours(len(side))).kneighbors(return_distance=False)
    return np.asarray(np.bincount(neighbours.ravel(), minlength=len(side)) / neighbours.shape[1])


def local_density(side: Side) -> np.ndarray:
    """Compute local outlier factors.

    The factor is the density at a cell's neighbours divided by its own. Breunig et al. 2000, https://doi.org/10.1145/335191.335388.
    """
    factors = LocalOutlierFactor(n_neighbors=n_neighbours(len(side)), algorithm="brute").fit(side.components)
    return np.asarray(-factors.negative_outlier_factor_)


def n_neighbours(n_cells: int) -> int:
    """Choose the number of neighbours: a twentieth of the cells, within limits."""
    return min(max(n_cells // 20, MIN_NEIGHBOURS), MAX_NEIGHBOURS, n_cells - 1)


def index_neighbours(side: Side, number: int) -> NearestNeighbors:
    """Index the cells of a side for a search of ``number`` nearest neighbours."""
    return NearestNeighbors(n_neighbors=min(number, len(side) - 1), algorithm="brute").fit(side.components)


# ---- cell types and batches


def variance_between(side: Side, column: np.ndarray) -> np.ndarray:
    """Compute the share of each gene's variance between types or batches.

    NaN for constant genes.
    """
    mean, variance = side.moments
    between = np.zeros(len(mean))
    for name in np.unique(column):
        is_group = column == name
        between += is_group.mean() * (mean_variance_axis(side.cells.expression[is_group], axis=0)[0] - mean) ** 2
    return np.asarray(np.divide(between, variance, out=np.full(len(mean), np.nan), where=variance > 1e-12))


def mixing(side: Side) -> np.ndarray:
    """Compute the cell-specific mixing score of batches.

    It measures how differently batches are distributed among the neighbours of a cell, ranked by distance. Lütge et al.
    2021, https://doi.org/10.26508/lsa.202001004; their p-value decreases as this statistic increases.
    """
    batches, batch = np.unique(side.batches, return_inverse=True)
    neighbours = index_neighbours(side, N_MIXING).kneighbors(return_distance=False)[:MAX_MIXED]
    return anderson_darling(batch[neighbours], n_groups=len(batches))


def anderson_darling(groups: np.ndarray, *, n_groups: int) -> np.ndarray:
    """Compute Anderson-Darling statistics of groups (samples x ranks).

    They are divided by their mean for equal distributions, and infinite for a single group. Scholz and Stephens 1987, https://doi.org/10.1080/01621459.1987.10478517.
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


# ---- analyses, with one value each


def agreement_of_k_means(side: Side) -> float:
    """Compute the adjusted Rand index of cell types and k-means clusters."""
    clusters = KMeans(len(np.unique(side.labels)), n_init=3, random_state=side.seed)
    return float(adjusted_rand_score(side.labels, clusters.fit_predict(side.components)))


def agreement_of_leiden(side: Side) -> float:
    """Compute the adjusted Rand index of cell types and Leiden clusters.

    Traag et al. 2019, https://doi.org/10.1038/s41598-019-41695-z.
    """
    import scanpy as sc

    adata = AnnData(side.components)
    sc.pp.neighbors(adata, use_rep="X", transformer="sklearn", random_state=side.seed)
    sc.tl.leiden(adata, flavor="igraph", n_iterations=2, directed=False, random_state=side.seed)
    return float(adjusted_rand_score(side.labels, adata.obs["leiden"]))


def mean_silhouette(coordinates: np.ndarray, column: np.ndarray) -> float:
    """Compute the mean silhouette width by type or batch; NaN for a single one."""
    return float(silhouette_score(coordinates, column)) if len(np.unique(column)) > 1 else float("nan")


def nearest_f1(reference: Side, typed: Side | None = None) -> pd.Series:
    """Type cells by their nearest reference cells, and compute F1 per type.

    Without ``typed``, each reference cell is typed by the others.
    """
    neighbours = index_neighbours(reference, N_TYPING).kneighbors(
        None if typed is None else typed.components, return_distance=False
    )
    names, code = np.unique(reference.cells.cell_type, return_inverse=True)
    votes = (code[neighbours][:, :, None] == np.arange(len(names))).sum(axis=1)
    truth = (reference if typed is None else typed).cells.cell_type
    labels = np.unique(truth)
    f1 = f1_score(truth, names[votes.argmax(axis=1)], labels=labels, average=None, zero_division=0)
    return pd.Series(f1, index=labels)
