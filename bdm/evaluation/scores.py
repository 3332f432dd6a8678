from dataclasses import dataclass

import numpy as np

# Names of the scores in figures, on the report and in verdicts
NAMES = {
    "energy": "energy distance",
    "relative_energy": "relative energy distance",
    "mmd": "MMD²",
    "forest_auc": "forest AUC",
    "gene_auc": "gene AUC",
    "slope": "slope of log fold changes",
    "fold_change_correlation": "correlation of log fold changes",
    "f1": "F1 of cell typing",
    "copying": "copying",
    "pair_correlation": "r of gene-gene correlations",
    "library_size_ks": "KS of library sizes",
}


@dataclass(frozen=True, kw_only=True)
class TypeScores:
    """How the judged cells of one type compare with its test cells; NaN where there are too few of either.

    Attributes
    ----------
    energy, mmd
        Energy distance and squared maximum mean discrepancy in principal components, both unbiased.
    relative_energy
        Energy distance over the mean distance between two test cells of the type, so that it has no unit.
    forest_auc
        How well the random forest of `OverallScores` tells them apart.
    slope, fold_change_correlation
        Of the log fold changes of the type's markers, judged on test.
    library_size_ks
        Kolmogorov-Smirnov distance of library sizes.
    f1
        Of the type in real cells, by a classifier trained on judged cells.
    """

    energy: float = np.nan
    relative_energy: float = np.nan
    mmd: float = np.nan
    forest_auc: float = np.nan
    slope: float = np.nan
    fold_change_correlation: float = np.nan
    library_size_ks: float = np.nan
    f1: float = np.nan


@dataclass(frozen=True, kw_only=True)
class OverallScores:
    """How all judged cells compare with the test cells.

    Attributes
    ----------
    energy, relative_energy, mmd, f1
        Plain means of `TypeScores` over types with five test cells or more.
    forest_auc, gene_auc
        Area under the ROC curve of telling judged from test cells, by a random forest on principal components and
        by logistic regression on all genes; 0.5 where they cannot be told apart.
    slope, fold_change_correlation
        Of the log fold changes of the markers of all these types, judged on test.
    mean_correlation, mean_rmse, variance_correlation, variance_rmse, zero_fraction_correlation, zero_fraction_rmse
        Agreement of statistics of genes, over genes.
    pair_correlation, pair_difference
        Agreement of the correlations of pairs of variable genes: their correlation, and mean absolute difference.
    library_size_ks, detected_genes_ks
        Kolmogorov-Smirnov distances of counts and of detected genes a cell.
    """

    energy: float
    relative_energy: float
    mmd: float
    forest_auc: float
    gene_auc: float
    slope: float
    fold_change_correlation: float
    f1: float
    mean_correlation: float
    mean_rmse: float
    variance_correlation: float
    variance_rmse: float
    zero_fraction_correlation: float
    zero_fraction_rmse: float
    pair_correlation: float
    pair_difference: float
    library_size_ks: float
    detected_genes_ks: float


@dataclass(frozen=True)
class Judgement:
    """Scores of one set of cells, overall and by type."""

    overall: OverallScores
    by_type: dict[str, TypeScores]
