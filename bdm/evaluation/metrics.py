"""Metrics: principal components, classifiers, distances, memorisation, and agreement of genes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp, pearson3
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.data.cells import MIN_CELLS_OF_TYPE, Cells, TypedCells
from bdm.data.gene_tests import Agreement, log_fold_changes

TINY = np.finfo(float).tiny


def fitted_pca(expression: sparse.csr_matrix, *, n_components: int = 30, seed: int = 0) -> PCA:
    """Fit principal components to expression, cells x genes, without scaling.

    Cells in the fit spread wider along the components than new cells, so fit to both compared sets, or to neither.
    """
    n_components = min(n_components, min(expression.shape) - 1)
    return PCA(n_components, svd_solver="arpack", random_state=seed).fit(expression)


def joint_components(
    query: sparse.csr_matrix, test: sparse.csr_matrix, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Project two sets of cells onto principal components fitted to both."""
    pca = fitted_pca(sparse.vstack([query, test]).tocsr(), seed=seed)
    return pca.transform(query), pca.transform(test)


N_TREES = 100  # of a random forest
CLASSIFIER_BLOCK = 10_000  # dense cells in memory during prediction


def forest(*, max_samples: int | None = None, seed: int) -> ClassifierMixin:
    """Return a random forest, for few dimensions.

    Each tree is fitted to a bootstrap sample of ``max_samples`` cells; by default, of as many as there are.
    """
    return RandomForestClassifier(n_estimators=N_TREES, max_samples=max_samples, random_state=seed)


def linear_classifier() -> ClassifierMixin:
    """Return a logistic regression on standardised genes.

    Its penalty suits more genes than cells.
    """
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, class_weight="balanced", max_iter=1000))


def cross_validated_probabilities(
    classifier: ClassifierMixin,
    query: np.ndarray | sparse.csr_matrix,
    test: np.ndarray | sparse.csr_matrix,
    *,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Predict, by five-fold cross-validation, whether each cell is a query cell.

    Returns the probabilities of the query cells and of the test cells.
    """
    is_query = np.repeat([True, False], [query.shape[0], test.shape[0]])
    folds = StratifiedKFold(n_splits=5, shuffle=True, random_state=seed)
    features = np.concatenate([cells if isinstance(cells, np.ndarray) else cells.toarray() for cells in (query, test)])
    _, probability = cross_val_predict(classifier, features, is_query, cv=folds, method="predict_proba").T
    return probability[is_query], probability[~is_query]


def classifier_f1(query: Cells, test: Cells) -> dict[str, float]:
    """Fit a classifier to query cells, and compute F1 per type of test cells; NaN with a single type."""
    cell_types = np.unique(test.cell_type)
    if len(cell_types) == len(np.unique(query.cell_type)) == 1:
        return {str(cell_types[0]): float("nan")}
    classifier = linear_classifier().fit(query.expression.toarray(), query.cell_type)
    blocks = np.split(np.arange(len(test)), range(CLASSIFIER_BLOCK, len(test), CLASSIFIER_BLOCK))
    predicted = np.concatenate([classifier.predict(test.expression[rows].toarray()) for rows in blocks])
    f1 = f1_score(test.cell_type, predicted, labels=cell_types, average=None, zero_division=0)
    return dict(zip(cell_types.tolist(), f1.tolist(), strict=True))


# ---- distances


@dataclass(frozen=True)
class Chance:
    """Null distribution of a score: standard deviation around 0, and skewness."""

    deviation: float
    skewness: float = 0.0

    def largest(self, level: float) -> float:
        """Return the value exceeded with probability ``level`` (Pearson type III)."""
        return float(self.deviation * pearson3.isf(level, max(self.skewness, 0.0)))


def energy_scores(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Compare two samples of cells (samples x dimensions) by their Euclidean distances.

    The relative energy distance is divided by the mean distance between two samples of ``y``. ``mmd`` is the unbiased
    squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance: Gretton et al. 2012, Journal
    of Machine Learning Research 13:723-773.
    """
    distances, n_x = pair_distances(x, y), len(x)
    spread = max(mean_of_pairs(distances[n_x:, n_x:]), TINY)
    energy, error = energy_distance(distances, n_x), energy_error(distances, n_x)
    chance = energy_chance(distances, n_x)
    squared = distances**2
    width = max(np.median(squared[np.triu_indices(len(squared), k=1)]), TINY)
    return {
        "energy": energy,
        "energy_error": error,
        "relative_energy": energy / spread,
        "relative_energy_error": error / spread,
        "relative_energy_chance": chance.deviation / spread,
        "relative_energy_skewness": chance.skewness,
        "mmd": -energy_distance(np.exp(-squared / (2 * width)), n_x),
    }


def pair_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Compute Euclidean distances between all samples; samples of x come first, then samples of y."""
    both = np.concatenate([x, y])
    return np.asarray(cdist(both, both))


def energy_distance(distances: np.ndarray, n_x: int) -> float:
    """Compute the energy distance of the first ``n_x`` samples and the others; NaN with fewer than two of either.

    ``2 E|x - y| - E|x - x'| - E|y - y'|``, without the distance of a sample to itself. Unbiased, so it may be slightly
    negative: Székely and Rizzo 2013, https://doi.org/10.1016/j.jspi.2013.03.018.
    """
    within_x, within_y = mean_of_pairs(distances[:n_x, :n_x]), mean_of_pairs(distances[n_x:, n_x:])
    return float(2 * distances[:n_x, n_x:].mean() - within_x - within_y)


def energy_error(distances: np.ndarray, n_x: int) -> float:
    """Estimate the standard error of the energy distance, from the influence of each sample."""
    across, n_y = distances[:n_x, n_x:], len(distances) - n_x
    influence_x = across.mean(axis=1) - distances[:n_x, :n_x].sum(axis=1) / (n_x - 1)
    influence_y = across.mean(axis=0) - distances[n_x:, n_x:].sum(axis=1) / (n_y - 1)
    return float(2 * np.sqrt(influence_x.var(ddof=1) / n_x + influence_y.var(ddof=1) / n_y))


def energy_chance(distances: np.ndarray, n_x: int) -> Chance:
    """Return the null distribution of the energy distance, in closed form.

    For samples of one distribution, the energy distance is a sum of chi-squared variables, weighted by the eigenvalues
    of the centred distances. Unbiased centring: Székely and Rizzo 2014, https://doi.org/10.1214/14-AOS1255.
    """
    n = len(distances)
    if n < 4:
        return Chance(np.nan, np.nan)
    sums = distances.sum(axis=0) / (n - 2)
    centred = (distances - sums - sums[:, None] + sums.sum() / (n - 1)).astype(np.float32)
    np.fill_diagonal(centred, 0)
    squares = max(float(np.vdot(centred, centred)), TINY)
    cubes = -float(np.vdot(centred @ centred, centred))  # minus, as distances are negative inner products
    deviation = (1 / n_x + 1 / (n - n_x)) * np.sqrt(2 * squares / (n * (n - 3)))
    return Chance(float(deviation), float(np.sqrt(8) * cubes / squares**1.5))


def mean_of_pairs(matrix: np.ndarray) -> float:
    """Average a square matrix without its diagonal; NaN if smaller than 2 x 2."""
    n = len(matrix)
    return float((matrix.sum() - np.trace(matrix)) / (n * (n - 1))) if n > 1 else float("nan")


# ---- comparison with training cells

BLOCK = 20_000  # training cells in memory
MIN_OUTLYING_COUNT = 10  # a smaller count of a rare gene may exceed all training cells by chance


Neighbours = tuple[np.ndarray, np.ndarray]  # distance and type of the nearest neighbour of each query cell


@dataclass(frozen=True)
class QueryCells:
    """Query cells in principal components that favour neither training cells nor test cells.

    The components are fitted to the query cells alone.
    """

    pca: PCA
    coordinates: np.ndarray  # cells x components
    test: Cells
    training_rows: np.ndarray  # indices of query cells in the training cells, for the floor
    counts: sparse.csr_matrix  # cells to score by outlying counts x genes

    @classmethod
    def project(
        cls, query: Cells, test: Cells, training_rows: np.ndarray, *, most: int | None = None, seed: int = 0
    ) -> QueryCells:
        """Project at most ``most`` randomly sampled query cells.

        Training cells have no outlying counts, so the test cells represent the floor in this score.
        """
        pca = fitted_pca(query.expression, seed=seed)
        sampled = np.sort(np.random.default_rng(seed).permutation(len(query))[:most])
        counts = test.counts if len(training_rows) else query.counts
        return cls(pca, pca.transform(query.expression[sampled]), test, training_rows, counts)

    def nearest(self, cells: Cells) -> Neighbours:
        """Find the nearest of some cells; the distance is infinite if there are none."""
        n_cells = len(self.coordinates)
        if not len(cells):
            return np.full(n_cells, np.inf), np.full(n_cells, "", dtype=object)
        search = NearestNeighbors(n_neighbors=1).fit(self.pca.transform(cells.expression))
        distance, index = search.kneighbors(self.coordinates)
        return distance.ravel(), cells.cell_type[index.ravel()].astype(object)

    def candidates(self, block: Cells, rows: np.ndarray) -> Cells:
        """Leave out query cells themselves, and types without test cells, of a block of training cells."""
        return block[~np.isin(rows, self.training_rows) & np.isin(block.cell_type, self.test.n_by_type.index)]


def compare_with_training(queries: Sequence[QueryCells], training: TypedCells) -> pd.DataFrame:
    """Compare sets of query cells with training cells, one row per set.

    Training cells are read only once, in blocks. The columns are scores in :attr:`Evaluation.overall`; memorisation is
    similar to Meehan et al. 2020, arXiv 2004.05675.
    """
    nearest = [[query.nearest(query.test)] for query in queries]  # first in test cells, then in each block
    largest = np.zeros(queries[0].counts.shape[1])
    for start in range(0, len(training), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(training)))
        block = training[rows]
        for query, found in zip(queries, nearest, strict=True):
            found.append(query.nearest(query.candidates(block, rows)))
        largest = np.maximum(largest, block.counts.max(axis=0).toarray().ravel())
    return pd.DataFrame(
        [
            estimate_memorisation(*pair, training) | {"outlying_counts": outlying_counts(pair[0].counts, largest)}
            for pair in zip(queries, nearest, strict=True)
        ]
    )


def outlying_counts(counts: sparse.csr_matrix, largest: np.ndarray) -> float:
    """Return the number of outlying counts per 1,000 cells.

    They are ten or more, and more than twice the ``largest`` training count of the gene.
    """
    is_outlying = (counts.data >= MIN_OUTLYING_COUNT) & (counts.data > 2 * largest[counts.indices])
    return float(1000 * is_outlying.sum() / counts.shape[0])


def estimate_memorisation(query: QueryCells, nearest: list[Neighbours], training: TypedCells) -> dict[str, float]:
    """Estimate memorisation from nearest neighbours in test cells (first) and training cells, stratified by type.

    Without memorisation, a neighbour of a type with n training and m test cells is a training cell with odds n / m. The
    Mantel-Haenszel odds ratio compares the observed odds with these: the sum of m / (n + m) over training neighbours
    divided by the sum of n / (n + m) over test neighbours.
    """
    n_test = query.test.n_by_type
    own = pd.Series(training.cell_type[query.training_rows], dtype=str).value_counts()
    n_training = training.n_by_type.reindex(n_test.index, fill_value=0).sub(own, fill_value=0)
    distance, cell_type = (np.stack(each) for each in zip(*nearest, strict=True))
    part = distance.argmin(axis=0)
    is_training, neighbour = part > 0, cell_type[part, np.arange(len(part))]
    expected = (n_training / (n_training + n_test)).loc[neighbour].to_numpy()  # share of training cells
    numerator, denominator = (1 - expected)[is_training].sum(), expected[~is_training].sum()
    information = (expected * (1 - expected)).sum()  # about the log odds
    share = float(numerator / (numerator + denominator))
    return {"memorisation": share, "memorisation_chance": float(0.25 / np.sqrt(information))}


# ---- genes

N_VARIABLE = 100  # genes in the comparison of gene-gene correlations
MIN_CELLS_FOR_VARIANCES = 30  # with fewer, variances are mostly noise
MIN_MEAN_COUNT = 1  # of an expressed gene; variances of rarer genes are little more than their means


def gene_statistics(query: Cells, test: Cells) -> dict[str, Agreement]:
    """Compare mean, variance and zero fraction of each gene.

    Mean and variance are of ``log1p(CP10k)``.
    """
    mean_query, variance_query = mean_variance_axis(query.expression, axis=0)
    mean_test, variance_test = mean_variance_axis(test.expression, axis=0)
    return {
        "mean": Agreement(mean_query, mean_test),
        "variance": Agreement(variance_query, variance_test),
        "zero_fraction": Agreement(zero_fraction(query), zero_fraction(test)),
    }


def variance_ratios(query: Cells, test: Cells) -> dict[str, np.ndarray]:
    """Compute the ratios of variances of counts in query and test cells, by type.

    Query and test cells have equal numbers per type; types with fewer than 30 are left out. Each ratio is of a gene
    that varies in both sets and has a mean count above 1 over both. The mean of test cells alone would select genes
    with unusual test cells, and make the ratios of real cells too small.
    """
    ratios = {}
    for cell_type in query.types(fewest=MIN_CELLS_FOR_VARIANCES):
        (mean, variance), (mean_test, variance_test) = (
            mean_variance_axis(cells.counts[cells.cell_type == cell_type], axis=0) for cells in (query, test)
        )
        is_expressed = (mean + mean_test > 2 * MIN_MEAN_COUNT) & (variance > 0) & (variance_test > 0)
        ratios[cell_type] = variance[is_expressed] / variance_test[is_expressed]
    return ratios


def geometric_mean(values: np.ndarray) -> float:
    """Compute the geometric mean of positive values; NaN without values."""
    return float(np.exp(np.log(values).mean())) if len(values) else float("nan")


def zero_fraction(cells: Cells) -> np.ndarray:
    """Compute the share of cells without counts, by gene."""
    return 1 - np.asarray((cells.counts > 0).mean(axis=0)).ravel()


def variable_genes(cells: Cells) -> np.ndarray:
    """Select the genes with the largest variance, as column indices."""
    variance = mean_variance_axis(cells.expression, axis=0)[1]
    return np.argsort(-variance, kind="stable")[:N_VARIABLE]


def gene_pairs(query: Cells, test: Cells, genes: np.ndarray) -> Agreement:
    """Compare the gene-gene correlations of ``genes`` that vary in both sets."""
    query_r, test_r = (correlations(cells.expression[:, genes].toarray().T) for cells in (query, test))
    is_known = np.isfinite(query_r) & np.isfinite(test_r)
    return Agreement(query_r[is_known], test_r[is_known])


def correlations(rows: np.ndarray) -> np.ndarray:
    """Compute Pearson correlations of all pairs of rows; NaN for constant rows."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.corrcoef(rows)[np.triu_indices(len(rows), k=1)])


def kolmogorov_smirnov(query: np.ndarray, test: np.ndarray) -> float:
    """Compute the Kolmogorov-Smirnov distance of two samples, in [0, 1]."""
    return float(ks_2samp(query, test, method="asymp").statistic)  # its exact p-value would take longer


def marker_fold_changes(
    query: Cells, test: Cells, markers: dict[str, np.ndarray], *, fewest: int = MIN_CELLS_OF_TYPE
) -> dict[str, Agreement]:
    """Compare fold changes of markers, by type with at least ``fewest`` query cells."""
    cell_types = [cell_type for cell_type in query.types(fewest=fewest) if cell_type in markers]
    if not cell_types:
        return {}
    query_log2, test_log2 = log_fold_changes(query, cell_types), log_fold_changes(test, cell_types)
    return {
        cell_type: Agreement(query_log2[i, markers[cell_type]], test_log2[i, markers[cell_type]])
        for i, cell_type in enumerate(cell_types)
    }
