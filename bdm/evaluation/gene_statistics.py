from dataclasses import dataclass

import numpy as np
from scipy.stats import ks_2samp
from sklearn.utils.sparsefuncs import mean_variance_axis

from bdm.evaluation.agreement import Agreement
from bdm.evaluation.cells import Cells


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


def gene_statistics(judged: Cells, test: Cells) -> GeneStatistics:
    """Compare each gene by itself."""
    mean_judged, variance_judged = mean_variance_axis(judged.expression, axis=0)
    mean_test, variance_test = mean_variance_axis(test.expression, axis=0)
    return GeneStatistics(
        mean=Agreement(mean_judged, mean_test),
        variance=Agreement(variance_judged, variance_test),
        zero_fraction=Agreement(zero_fraction(judged), zero_fraction(test)),
    )


def zero_fraction(cells: Cells) -> np.ndarray:
    """Share of the cells without a count, by gene."""
    return 1 - np.asarray((cells.counts > 0).mean(axis=0)).ravel()


def variable_genes(cells: Cells, *, n_genes: int = 100) -> np.ndarray:
    """Column indices of the genes of largest variance."""
    variance = mean_variance_axis(cells.expression, axis=0)[1]
    return np.argsort(-variance, kind="stable")[:n_genes]


def gene_pairs(judged: Cells, test: Cells, genes: np.ndarray) -> Agreement:
    """Compare the Pearson correlations over cells of all pairs of ``genes`` that vary in both sets."""
    of_judged, of_test = pair_correlations(judged, genes), pair_correlations(test, genes)
    known = np.isfinite(of_judged) & np.isfinite(of_test)
    return Agreement(of_judged[known], of_test[known])


def pair_correlations(cells: Cells, genes: np.ndarray) -> np.ndarray:
    """Pearson correlation of each pair of ``genes`` over cells; NaN where a gene is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        correlations = np.corrcoef(cells.expression[:, genes].toarray(), rowvar=False)
    return correlations[np.triu_indices(len(genes), k=1)]


def kolmogorov_smirnov(judged: np.ndarray, test: np.ndarray) -> float:
    """Kolmogorov-Smirnov distance of two samples of numbers, in [0, 1]."""
    return float(ks_2samp(judged, test, method="asymp").statistic)
