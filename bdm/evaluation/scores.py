"""Scores of a set of query cells: overall, by type, and along covariates.

``docs/reading_results.md`` explains the scores of this package, and ``docs/mathematics.md`` lists formulas and sources.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from bdm.data.cells import MIN_CELLS_FOR_MEANS, MIN_CELLS_OF_TYPE, Cells, TypedCells
from bdm.data.gene_tests import Agreement
from bdm.evaluation.metrics import (
    classifier_f1,
    cross_validated_probabilities,
    energy_scores,
    forest,
    gene_pairs,
    gene_statistics,
    geometric_mean,
    joint_components,
    kolmogorov_smirnov,
    linear_classifier,
    marker_fold_changes,
    variance_ratios,
)
from bdm.evaluation.resamples import SIZE_LIMITS, SizeLimits, match, sample_at_most
from bdm.evaluation.table import ALL, EVERY, MANY_CELLS, OTHER_GENES, POPULATION, TYPE, Row, score_rows

# Effective share of independent fold changes among the markers of one type and of all types, measured on real cells
INDEPENDENT, INDEPENDENT_OF_ALL = 1 / 2, 1 / 4  # related types share markers

N_PAIRED_GENES = 150  # highest genes of a type, for gene-gene correlations
MIN_CELLS_FOR_PAIRS = 150  # with fewer, gene-gene correlations are mostly noise

# Scores of one type or sub-population against its test cells; NaN for too few cells. `_error` is a standard error;
# `_chance` and `_skewness` describe the null distribution. The relative energy distance is divided by the mean distance
# between two test cells; from a sample of m cells to its population, it is 1 / m.
GROUP_SCORES = (
    *("energy", "energy_error", "relative_energy", "relative_energy_error"),
    *("relative_energy_chance", "relative_energy_skewness", "mmd", "forest_auc", "library_size_ks"),
)
TYPE_SCORES = (
    *(*GROUP_SCORES, "slope", "fold_change_correlation", "fold_change_correlation_chance"),
    *("f1", "f1_chance", "gene_correlation", "variance_ratio"),
)
F1_VARIANCE = 0.35**2  # of the F1 of one cell, in real cells of types that are easy to tell apart


@dataclass(frozen=True)
class Reference:
    """Test cells, and genes and limits for comparisons with them.

    Genes are column indices.
    """

    test: Cells
    markers: dict[str, np.ndarray]  # by cell type
    variable_genes: np.ndarray
    size_limits: SizeLimits


@dataclass(frozen=True)
class Comparison:
    """Query cells and test cells, in equal numbers per type."""

    query: Cells
    test: Cells
    components: tuple[np.ndarray, np.ndarray]  # joint principal components of query cells and test cells
    probabilities: tuple[np.ndarray, np.ndarray]  # of being a query cell, by a random forest

    @classmethod
    def between(cls, query: Cells, test: Cells, *, most: int = SIZE_LIMITS.tree, seed: int) -> Comparison:
        """Sample cells to equal numbers per type, and compare them; each tree has at most ``most`` cells."""
        query, test = match(query, test, seed=seed)
        components = joint_components(query.expression, test.expression, seed=seed)
        n_fitted = 2 * len(test) * 4 // 5  # four of five folds
        classifier = forest(max_samples=None if n_fitted <= most else most, seed=seed)
        return cls(query, test, components, cross_validated_probabilities(classifier, *components, seed=seed))

    def scores(self, in_query: np.ndarray, in_test: np.ndarray) -> dict[str, float]:
        """Compute the :data:`GROUP_SCORES` of masked cells; each mask selects two cells or more."""
        library_sizes = self.query.library_size[in_query], self.test.library_size[in_test]
        return {
            **energy_scores(self.components[0][in_query], self.components[1][in_test]),
            "forest_auc": auc(self.probabilities[0][in_query], self.probabilities[1][in_test]),
            "library_size_ks": kolmogorov_smirnov(*library_sizes),
        }


def score_cells(query: Cells, reference: Reference, name: str, *, seed: int = 0) -> Iterator[Row]:
    """Yield the scores of the set ``name`` against equal numbers of test cells per type: all, by type and population.

    A sub-population also has its shares of the type's cells.
    """
    comparison = Comparison.between(query, reference.test, most=reference.size_limits.tree, seed=seed)
    query, test = comparison.query, comparison.test
    changes, ratios = marker_fold_changes(query, test, reference.markers), variance_ratios(query, test)
    by_type = {}
    for cell_type, f1 in classifier_f1(query, reference.test).items():
        scores = by_type[cell_type] = {"f1": f1}
        if (n_cells := query.n_by_type.get(cell_type, 0)) >= MIN_CELLS_OF_TYPE:
            scores["f1_chance"] = float(np.sqrt(max(f1 * (1 - f1), F1_VARIANCE) / n_cells))
            scores |= score_type(comparison, cell_type)
        if cell_type in ratios:
            scores["variance_ratio"] = geometric_mean(ratios[cell_type])
        if cell_type in changes:
            scores |= fold_change_scores(changes[cell_type], independent=INDEPENDENT)
    table = pd.DataFrame.from_dict(by_type, orient="index", columns=TYPE_SCORES, dtype=float)
    overall = score_all(comparison, mean_scores(table, reference.test), reference, seed=seed)
    yield from score_rows(overall, kind=ALL, group=EVERY, set=name, n_cells=len(query))
    for cell_type, of_type in table.iterrows():
        yield from score_rows(of_type, kind=TYPE, group=cell_type, set=name, n_cells=query.n_by_type.get(cell_type, 0))
    for population, n_cells, of_population in score_populations(comparison):
        yield from score_rows(of_population, kind=POPULATION, group=population, set=name, n_cells=n_cells)


def score_type(comparison: Comparison, cell_type: str) -> dict[str, float]:
    """Score the query cells of one type by their distribution, and gene-gene correlations of their highest genes."""
    in_query, in_test = comparison.query.cell_type == cell_type, comparison.test.cell_type == cell_type
    scores = comparison.scores(in_query, in_test)
    if in_test.sum() >= MIN_CELLS_FOR_PAIRS:
        query, test = comparison.query[in_query], comparison.test[in_test]
        expressed = np.argsort(-test.cp10k.mean(axis=0).A1, kind="stable")[:N_PAIRED_GENES]
        scores["gene_correlation"] = gene_pairs(query, test, expressed).correlation
    return scores


def fold_change_scores(changes: Agreement, *, independent: float) -> dict[str, float]:
    """Score the agreement of log fold changes of markers."""
    return {
        "slope": changes.slope,
        "fold_change_correlation": changes.correlation,
        "fold_change_correlation_chance": changes.correlation_chance(independent=independent),
    }


def score_populations(comparison: Comparison) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yield each sub-population with its number of cells, share of its type's cells, and :data:`GROUP_SCORES`.

    NaN for too few cells. Components and random forest are fitted to all cells.
    """
    query, test = comparison.query, comparison.test
    if query.population is None or test.population is None:
        return
    names = np.concatenate([test.population, query.population])
    cell_type_of = dict(zip(names, np.concatenate([test.cell_type, query.cell_type]), strict=True))
    for name, cell_type in sorted(pair for pair in cell_type_of.items() if pair[0] != pair[1]):
        in_query, in_test = query.population == name, test.population == name
        n_cells, n_test = int(in_query.sum()), int(in_test.sum())
        enough = min(n_cells, n_test) >= MIN_CELLS_FOR_MEANS
        scores = comparison.scores(in_query, in_test) if enough else dict.fromkeys(GROUP_SCORES, np.nan)
        n_of_type = max(int((test.cell_type == cell_type).sum()), 1)
        shares = {"share": n_cells / n_of_type, "share_test": n_test / n_of_type, "n_test": n_test}
        yield str(name), n_cells, shares | scores


def mean_scores(by_type: pd.DataFrame, test: Cells) -> pd.Series:
    """Average each score over types, weighted by their numbers of test cells.

    Rare types are left out. Standard errors assume independent types. The variance of the relative energy distance of n
    real cells is proportional to 1 / n², so types with fewer than ``MANY_CELLS`` test cells are weighted by n².
    """
    table = by_type.loc[test.types(fewest=MIN_CELLS_FOR_MEANS)]
    n_test = test.n_by_type[table.index]
    weights = table.notna().astype(float).mul(n_test, axis=0)
    relative = table.columns.str.startswith("relative_energy")
    weights.loc[:, relative] *= (n_test / MANY_CELLS).clip(upper=1).to_numpy()[:, None]
    weights /= weights.sum()
    means, deviations = (table * weights).sum(min_count=1), (table * weights).pow(2).sum(min_count=1).pow(0.5)
    means = means.where(~means.index.str.endswith(("_error", "_chance")), deviations)
    # Third cumulants of independent types add up
    share = table["relative_energy_chance"] * weights["relative_energy_chance"] / means["relative_energy_chance"]
    means["relative_energy_skewness"] = (table["relative_energy_skewness"] * share**3).sum(min_count=1)
    return means


def score_all(comparison: Comparison, means: pd.Series, reference: Reference, *, seed: int) -> dict[str, float]:
    """Score all query cells against the test cells; ``means`` is the result of :func:`mean_scores`."""
    query, test = comparison.query, comparison.test
    pairs = gene_pairs(query, test, reference.variable_genes)
    relative = [f"relative_energy{suffix}" for suffix in ("", "_error", "_chance", "_skewness")]
    return {
        **means[["energy", "energy_error", *relative, "mmd"]],
        "forest_auc": auc(*comparison.probabilities),
        **score_genes(
            *(query, test, reference.markers),
            classified=np.arange(query.counts.shape[1]),
            most=reference.size_limits.gene_auc,
            seed=seed,
        ),
        **means[["f1", "f1_chance"]],
        "pair_correlation": pairs.correlation,
        "pair_difference": pairs.mean_difference,
        "gene_correlation": means["gene_correlation"],
        "library_size_ks": kolmogorov_smirnov(query.library_size, test.library_size),
        "detected_genes_ks": kolmogorov_smirnov(query.n_detected, test.n_detected),
    }


def score_genes(
    query: Cells, test: Cells, markers: dict[str, np.ndarray], *, classified: np.ndarray, most: int, seed: int
) -> dict[str, float]:
    """Score the genes of query cells, one by one, against test cells in equal numbers per type.

    ``classified`` are the genes of the gene AUC. Fold changes are of ``markers``, without rare types. Scores named
    after statistics of genes are their Pearson correlation, and root mean squared difference.
    """
    values = [sample_at_most(cells, most=most, seed=seed).expression[:, classified] for cells in (query, test)]
    changes = marker_fold_changes(query, test, markers, fewest=MIN_CELLS_FOR_MEANS)
    statistics = {
        f"{name}_{measure}": getattr(agreement, measure)
        for name, agreement in gene_statistics(query, test).items()
        for measure in ("correlation", "rmse")
    }
    return {
        "gene_auc": auc(*cross_validated_probabilities(linear_classifier(), *values, seed=seed)),
        **fold_change_scores(Agreement.pooled(changes.values()), independent=INDEPENDENT_OF_ALL),
        **statistics,
        "variance_ratio": geometric_mean(np.concatenate([np.empty(0), *variance_ratios(query, test).values()])),
    }


def score_other_genes(
    query: Cells, test: Cells, markers: dict[str, np.ndarray], name: str, *, n_classified: int, most: int, seed: int
) -> Iterator[Row]:
    """Yield the scores of the set ``name`` by genes that are not highly variable, the only ones in these cells.

    The gene AUC is of ``n_classified`` genes, as it rises with their number: each has a mean that was estimated.
    """
    query, test = match(query, test, seed=seed)
    classified = np.random.default_rng(seed).permutation(query.counts.shape[1])[:n_classified]
    scores = score_genes(query, test, markers, classified=np.sort(classified), most=most, seed=seed)
    yield from score_rows(scores, kind=OTHER_GENES, group=EVERY, set=name, n_cells=len(query))


def auc(query_probabilities: np.ndarray, test_probabilities: np.ndarray) -> float:
    """Compute the AUC of query cells against test cells from their probabilities."""
    is_query = np.repeat([1, 0], [len(query_probabilities), len(test_probabilities)])
    return float(roc_auc_score(is_query, np.concatenate([query_probabilities, test_probabilities])))


# ---- along covariates

N_STEPS = 10  # bins with equal numbers of test cells
N_GENES = 12  # genes to tabulate; they vary most along the covariate
ALONG_COLUMNS = ["covariate", "gene", "value", "set", "mean", "error"]


def bin_edges(test: TypedCells, n: int) -> dict[str, np.ndarray]:
    """Divide each covariate into at most ``n`` bins, and return their edges.

    Up to ``n`` distinct values have a bin each; more are binned by quantiles of the test cells.
    """
    edges = {}
    for name, values in (pd.DataFrame() if test.covariates is None else test.covariates).items():
        distinct = np.unique(values)
        middles = (distinct[1:] + distinct[:-1]) / 2
        inner = middles if len(distinct) <= n else np.quantile(values, np.linspace(0, 1, n + 1))
        edges[str(name)] = np.unique([distinct[0], *inner, distinct[-1]])
    return {name: values for name, values in edges.items() if len(values) > 1}


def assign_bins(cells: TypedCells, name: str, edges: np.ndarray) -> np.ndarray:
    """Return the bin index of each cell; the outer bins are open-ended."""
    assert cells.covariates is not None
    return np.asarray(np.digitize(cells.covariates[name].to_numpy(), edges[1:-1]))


def expression_along(sets: Mapping[str, Cells], genes: pd.Index) -> pd.DataFrame:
    """Tabulate mean expression along each covariate, in all sets, one of which is ``test``.

    ``value`` is the mean covariate of the test cells in a bin; ``mean`` and ``error`` are the mean ``log1p(CP10k)`` and
    its standard error. The genes are chosen by their variation between bins of test cells, in standard errors.
    """
    rows, test = [], sets["test"]
    for covariate, edges in bin_edges(test, N_STEPS).items():
        means = {
            name: average_bins(cells, assign_bins(cells, covariate, edges), len(edges) - 1)
            for name, cells in sets.items()
            if cells.covariates is not None and covariate in cells.covariates
        }
        assert test.covariates is not None
        values = test.covariates[covariate].groupby(assign_bins(test, covariate, edges)).mean()
        mean, error = means["test"]
        variation = np.nan_to_num(np.nanvar(mean, axis=0) / np.nanmean(error**2 + 1e-6, axis=0))
        for gene in np.argsort(-variation, kind="stable")[:N_GENES]:
            for name, (mean, error) in means.items():
                for i, value in values.items():
                    rows.append((covariate, genes[gene], value, name, mean[i, gene], error[i, gene]))
    return pd.DataFrame(rows, columns=ALONG_COLUMNS).astype(dict.fromkeys(["value", "mean", "error"], float))


def average_bins(cells: Cells, bin_index: np.ndarray, n_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute mean expression and standard errors per bin, bins x genes.

    NaN in bins with fewer than two cells.
    """
    mean, error = np.full((2, n_bins, cells.counts.shape[1]), np.nan)
    for i in range(n_bins):
        expression = cells.expression[bin_index == i].toarray()
        if len(expression) > 1:
            mean[i], error[i] = expression.mean(axis=0), expression.std(axis=0, ddof=1) / np.sqrt(len(expression))
    return mean, error
