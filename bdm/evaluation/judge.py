from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from bdm.evaluation.agreement import Agreement
from bdm.evaluation.bounds import Bounds
from bdm.evaluation.cells import FEWEST_FOR_MEANS, FEWEST_OF_TYPE, Cells, Matched, match, thinned
from bdm.evaluation.classifiers import chances_of_being_judged, forest, linear_classifier, typing_f1
from bdm.evaluation.distances import energy_distance, maximum_mean_discrepancy, spread
from bdm.evaluation.fold_changes import marker_fold_changes, pooled_fold_changes
from bdm.evaluation.gene_statistics import gene_pairs, gene_statistics, kolmogorov_smirnov
from bdm.evaluation.scores import Judgement, OverallScores, TypeScores
from bdm.evaluation.space import joint_components


@dataclass(frozen=True)
class Reference:
    """What cells are judged by.

    Attributes
    ----------
    test
        Held-out real cells.
    markers
        Marker genes by type, as column indices.
    variable_genes
        Genes whose correlations are compared, as column indices.
    bounds
        Most cells that classifiers learn from.
    """

    test: Cells
    markers: dict[str, np.ndarray]
    variable_genes: np.ndarray
    bounds: Bounds


@dataclass(frozen=True)
class Comparison:
    """Judged cells beside test cells, of each type as many of the one as of the other."""

    judged: Cells
    test: Cells
    reference: Reference
    seed: int

    @cached_property
    def components(self) -> tuple[np.ndarray, np.ndarray]:
        """Joint principal components of judged and of test cells."""
        return joint_components(self.judged.expression, self.test.expression, seed=self.seed)

    @cached_property
    def chances(self) -> tuple[np.ndarray, np.ndarray]:
        """Chances of being a judged cell, that a random forest gives to judged and to test cells."""
        by_tree = self.reference.bounds.by_tree
        few = 2 * len(self.test) * 4 // 5 <= by_tree  # of five folds, four are learned from
        trees = forest(by_tree=None if few else by_tree, seed=self.seed)
        return chances_of_being_judged(trees, *self.components, seed=self.seed)

    @cached_property
    def fold_changes(self) -> dict[str, Agreement]:
        """Log fold changes of each type's markers."""
        return marker_fold_changes(self.judged, self.test, self.reference.markers)

    @cached_property
    def f1(self) -> dict[str, float]:
        """F1 of each type in all test cells, learned from the judged ones."""
        return typing_f1(self.judged, self.reference.test)


def judge(judged: Cells, reference: Reference, *, seed: int = 0) -> Judgement:
    """Compare cells with as many test cells of each type."""
    matched = match(judged, reference.test, seed=seed)
    comparison = Comparison(matched.judged, matched.test, reference, seed)
    by_type = {cell_type: score_type(comparison, cell_type) for cell_type in comparison.f1}
    return Judgement(score_all(comparison, mean_scores(by_type, reference.test)), by_type)


def score_type(comparison: Comparison, cell_type: str) -> TypeScores:
    """Score the cells of one type."""
    of_judged = comparison.judged.cell_type == cell_type
    of_test = comparison.test.cell_type == cell_type
    f1 = comparison.f1[cell_type]
    if of_judged.sum() < FEWEST_OF_TYPE:
        return TypeScores(f1=f1)
    changes = comparison.fold_changes.get(cell_type)
    components = comparison.components[0][of_judged], comparison.components[1][of_test]
    energy = energy_distance(*components)
    return TypeScores(
        energy=energy,
        relative_energy=energy / max(spread(components[1]), np.finfo(float).tiny),
        mmd=maximum_mean_discrepancy(*components),
        forest_auc=auc(comparison.chances[0][of_judged], comparison.chances[1][of_test]),
        slope=changes.slope if changes else np.nan,
        fold_change_correlation=changes.correlation if changes else np.nan,
        library_size_ks=kolmogorov_smirnov(
            comparison.judged.library_size[of_judged], comparison.test.library_size[of_test]
        ),
        f1=f1,
    )


def mean_scores(by_type: dict[str, TypeScores], test: Cells) -> pd.Series:
    """Average each score over types, but rare ones; the same types for every judged set."""
    return pd.DataFrame([asdict(by_type[cell_type]) for cell_type in test.types(fewest=FEWEST_FOR_MEANS)]).mean()


def score_all(comparison: Comparison, means: pd.Series) -> OverallScores:
    """Score all cells together; ``means`` are those over types."""
    judged, test, reference = comparison.judged, comparison.test, comparison.reference
    few = thinned(Matched(judged, test), most=reference.bounds.gene_auc, seed=comparison.seed)
    by_genes = chances_of_being_judged(
        linear_classifier(), few.judged.expression, few.test.expression, seed=comparison.seed
    )
    genes = gene_statistics(judged, test)
    pairs = gene_pairs(judged, test, reference.variable_genes)
    changes = pooled_fold_changes(judged, test, reference.markers)
    return OverallScores(
        energy=means["energy"],
        relative_energy=means["relative_energy"],
        mmd=means["mmd"],
        forest_auc=auc(*comparison.chances),
        gene_auc=auc(*by_genes),
        slope=changes.slope,
        fold_change_correlation=changes.correlation,
        f1=means["f1"],
        mean_correlation=genes.mean.correlation,
        mean_rmse=genes.mean.rmse,
        variance_correlation=genes.variance.correlation,
        variance_rmse=genes.variance.rmse,
        zero_fraction_correlation=genes.zero_fraction.correlation,
        zero_fraction_rmse=genes.zero_fraction.rmse,
        pair_correlation=pairs.correlation,
        pair_difference=pairs.mean_difference,
        library_size_ks=kolmogorov_smirnov(judged.library_size, test.library_size),
        detected_genes_ks=kolmogorov_smirnov(judged.n_detected, test.n_detected),
    )


def auc(chances_judged: np.ndarray, chances_test: np.ndarray) -> float:
    """Area under the ROC curve, of telling judged from test cells."""
    is_judged = np.repeat([1, 0], [len(chances_judged), len(chances_test)])
    return float(roc_auc_score(is_judged, np.concatenate([chances_judged, chances_test])))
