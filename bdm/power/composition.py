"""Tests of differential composition: whether the share of a cell type differs between conditions."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import stats
from scipy.optimize import minimize
from scipy.special import betaln, digamma, expit, logit

from bdm.power.experiment import Experiment, ExperimentSettings, design_matrix
from bdm.power.expression import DEFAULTS, adjusted

COLUMNS = ["cell_type", "log_odds", "p_value", "fdr"]
LOG_CONCENTRATION = (-3.0, 12.0)  # of the beta distribution of shares; samples with one share are at its upper end
LARGEST_LOG_ODDS = 15.0  # of a coefficient, where a type is absent in a condition
SMALLEST_SHARE = 1e-8


def composition_tests(adata: AnnData, settings: ExperimentSettings = DEFAULTS) -> pd.DataFrame:
    """Test the share of each cell type in the samples by the likelihood ratio of beta-binomial models.

    The number of cells of a type in a sample is binomial with a share that differs between samples by a beta
    distribution, whose mean depends on the condition (and on the pair). P-values are from the distribution that the
    likelihood ratio has in a linear model with as many samples, as the usual chi-squared distribution finds too many
    differences among few samples.

    Parameters
    ----------
    adata
        Real or simulated cells.
    settings
        Columns of samples, conditions and cell types.

    Returns
    -------
    A row for each ``cell_type``: ``log_odds``, the natural logarithm of the odds of the type in the condition over the
    odds in the reference, ``p_value``, and ``fdr``, adjusted for the number of cell types (Benjamini and Hochberg).

    Raises
    ------
    InputError
        As :meth:`bdm.power.experiment.Experiment.of`.
    """
    return composition_table(Experiment.of(adata, settings))


def composition_table(experiment: Experiment) -> pd.DataFrame:
    """Test the composition of an experiment, as :func:`composition_tests`."""
    samples = experiment.samples
    if "pair" in samples:
        samples = samples[samples.groupby("pair")["condition"].transform("nunique") == 2]
    n_cells = experiment.n_cells.loc[samples.index]
    design, total = design_matrix(samples), n_cells.sum(axis=1).to_numpy()
    tests = [likelihood_ratio(n_cells[name].to_numpy(), total, design) for name in n_cells]
    table = pd.DataFrame(tests, columns=["log_odds", "p_value"]).assign(cell_type=list(n_cells))
    return table.assign(fdr=adjusted(table["p_value"].to_numpy()))[COLUMNS]


def likelihood_ratio(numbers: np.ndarray, total: np.ndarray, design: np.ndarray) -> tuple[float, float]:
    """Test the last coefficient of a beta-binomial model.

    With ``n`` samples and ``k`` coefficients, ``F = (n - k) (exp(ratio / n) - 1)`` has the distribution F(1, n - k) in
    a linear model, where ``ratio`` is twice the difference of log likelihoods.

    Parameters
    ----------
    numbers, total
        Cells of the type, and all cells, of each sample.
    design
        Samples x coefficients.

    Returns
    -------
    The coefficient, a difference of log odds, and the p-value.
    """
    without, whole = BetaBinomial.fit(numbers, total, design[:, :-1]), BetaBinomial.fit(numbers, total, design)
    ratio = max(2 * (whole.log_likelihood - without.log_likelihood), 0.0)
    n_samples, freedom = len(design), len(design) - design.shape[1]
    p_value = stats.f.sf(freedom * np.expm1(ratio / n_samples), 1, freedom)
    return float(whole.coefficients[-1]), float(p_value)


@dataclass(frozen=True)
class BetaBinomial:
    """Beta-binomial model of numbers of cells, whose mean share is the inverse logit of a linear model."""

    coefficients: np.ndarray
    log_concentration: float
    log_likelihood: float

    @classmethod
    def fit(cls, numbers: np.ndarray, total: np.ndarray, design: np.ndarray) -> "BetaBinomial":
        """Fit by most likelihood, from shares without variation and from shares with much."""
        share = logit((numbers + 0.5) / (total + 1))
        start = np.linalg.lstsq(design, share, rcond=None)[0]
        bounds = [(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)] * design.shape[1] + [LOG_CONCENTRATION]
        fits = [
            minimize(
                negative_log_likelihood,
                np.append(start, log_concentration),
                args=(numbers, total, design),
                jac=True,
                method="L-BFGS-B",
                bounds=bounds,
                options={"ftol": 1e-12, "gtol": 1e-8},
            )
            for log_concentration in (3.0, 7.0)
        ]
        best = min(fits, key=lambda fit: fit.fun)
        return cls(best.x[:-1], float(best.x[-1]), -float(best.fun))


def negative_log_likelihood(
    parameters: np.ndarray, numbers: np.ndarray, total: np.ndarray, design: np.ndarray
) -> tuple[float, np.ndarray]:
    """Of coefficients and a log concentration, without binomial coefficients; and its gradient."""
    mean = np.clip(expit(design @ parameters[:-1]), SMALLEST_SHARE, 1 - SMALLEST_SHARE)
    concentration = np.exp(parameters[-1])
    a, b = mean * concentration, (1 - mean) * concentration
    value = (betaln(a, b) - betaln(a + numbers, b + total - numbers)).sum()
    of_all = digamma(a + b + total) - digamma(a + b)
    by_a = digamma(a) - digamma(a + numbers) + of_all
    by_b = digamma(b) - digamma(b + total - numbers) + of_all
    by_mean = (by_a - by_b) * concentration * mean * (1 - mean)
    return float(value), np.append(design.T @ by_mean, (by_a * a + by_b * b).sum())
