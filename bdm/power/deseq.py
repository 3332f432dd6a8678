"""DESeq2 by pydeseq2, whose two longest steps by gene are computed for all genes at once."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
from pydeseq2.dds import DeseqDataSet
from pydeseq2.default_inference import DefaultInference
from pydeseq2.ds import DeseqStats
from pydeseq2.utils import irls_solver
from scipy.optimize import brentq
from scipy.optimize.elementwise import find_minimum
from scipy.special import gammaln, polygamma
from scipy.stats import t as student_t

N_GRID = 33  # dispersions that are tried, before the best is refined
FREEDOM = (1e-2, 1e6)  # degrees of freedom of a prior, for variances of 4e4 and 2e-6


def deseq2(counts: np.ndarray, design: np.ndarray, *, t_distribution: bool = False) -> pd.DataFrame:
    """Test the last coefficient of a linear model of log expression by DESeq2's Wald test.

    The steps are DESeq2's ([Love et al. 2014](https://doi.org/10.1186/s13059-014-0550-8)), with its defaults; p-values
    of genes with outliers by Cook's distance are missing, as there.

    ``counts``: samples x genes; ``design``: samples x coefficients; returns: ``log2_fold_change`` and ``p_value``,
    genes in their order.
    """
    samples = [f"sample_{number}" for number in range(len(counts))]
    model = pd.DataFrame(design, index=samples, columns=[f"coefficient_{number}" for number in range(design.shape[1])])
    table = pd.DataFrame(counts, index=samples, columns=[f"gene_{number}" for number in range(counts.shape[1])])
    how: dict[str, Any] = {"quiet": True, "inference": AllGenesInference(n_cpus=1)}
    with warnings.catch_warnings(action="ignore"):  # of dispersions without a trend, and of few samples
        fitted = DeseqDataSet(counts=table, metadata=pd.DataFrame(index=samples), design=model, **how)
        fitted.deseq2()
        contrast = np.eye(design.shape[1])[-1]
        tests = DeseqStats(fitted, contrast=contrast, independent_filter=False, **how)
        tests.summary()
    found = tests.results_df
    p_value = found["pvalue"].to_numpy(dtype=float)
    if t_distribution:
        freedom = len(counts) - design.shape[1] + freedom_of_prior(float(fitted.uns["prior_disp_var"]))
        of_t = 2 * student_t.sf(found["stat"].abs().to_numpy(dtype=float), freedom)
        p_value = np.where(np.isnan(p_value), np.nan, of_t)
    return pd.DataFrame({"log2_fold_change": found["log2FoldChange"].to_numpy(), "p_value": p_value})


def freedom_of_prior(variance: float) -> float:
    """Degrees of freedom with which a log variance is estimated with this variance; 0 if it is not known.

    It is not known of genes whose counts vary no more than by chance, as all of a few genes may.
    """
    if np.isnan(variance):
        return 0.0
    return float(brentq(lambda freedom: polygamma(1, freedom / 2) - variance, *FREEDOM))


class AllGenesInference(DefaultInference):  # type: ignore[misc]  # pydeseq2 has no types
    """Dispersions and models of all genes at once, in a quarter of the time; dispersions are globally the best."""

    def alpha_mle(
        self,
        counts: np.ndarray,
        design_matrix: np.ndarray,
        mu: np.ndarray,
        alpha_hat: np.ndarray,
        min_disp: float,
        max_disp: float,
        prior_disp_var: float | None = None,
        cr_reg: bool = True,
        prior_reg: bool = False,
        optimizer: str = "L-BFGS-B",
    ) -> tuple[np.ndarray, np.ndarray]:
        """Dispersions of most likelihood, refined from the best of a grid, and that each has converged."""

        def loss(log_alpha: np.ndarray, gene: np.ndarray) -> np.ndarray:
            alpha, m = np.exp(log_alpha), mu[:, gene]
            found = negative_log_likelihood(counts[:, gene], m, alpha)
            if cr_reg:
                found += 0.5 * np.linalg.slogdet(information(design_matrix, m / (1 + m * alpha)))[1]
            if prior_reg and prior_disp_var is not None:
                found += (log_alpha - np.log(alpha_hat[gene])) ** 2 / (2 * prior_disp_var)
            return found

        genes, grid = np.arange(counts.shape[1]), np.linspace(np.log(min_disp), np.log(max_disp), N_GRID)
        best = np.array([loss(np.full(len(genes), value), genes) for value in grid]).argmin(axis=0)
        middle = np.clip(best, 1, N_GRID - 2)
        refined = find_minimum(loss, (grid[middle - 1], grid[middle], grid[middle + 1]), args=(genes,)).x
        return np.exp(np.where(best == middle, refined, grid[best])), np.ones(len(genes), dtype=bool)

    def irls(
        self,
        counts: np.ndarray,
        size_factors: np.ndarray,
        design_matrix: np.ndarray,
        disp: np.ndarray,
        min_mu: float,
        beta_tol: float,
        min_beta: float = -30,
        max_beta: float = 30,
        optimizer: str = "L-BFGS-B",
        maxiter: int = 250,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Coefficients, means, leverages and convergence of negative binomial models with given dispersions."""
        size, ridge = size_factors[:, None], 1e-6 * np.eye(design_matrix.shape[1])
        beta = np.linalg.lstsq(design_matrix, np.log(counts / size + 0.1), rcond=None)[0]
        mu = np.maximum(size * np.exp(design_matrix @ beta), min_mu)
        deviance, active = np.full(counts.shape[1], 1000.0), np.ones(counts.shape[1], dtype=bool)
        diverged = np.zeros_like(active)
        for _ in range(maxiter):
            y, m, alpha = counts[:, active], mu[:, active], disp[active]
            weights = m / (1 + m * alpha)
            working = np.log(m / size) + (y - m) / m
            right = (design_matrix.T @ (weights * working)).T
            new = np.linalg.solve(information(design_matrix, weights) + ridge, right[..., None])[..., 0].T
            beta[:, active], mu[:, active] = new, np.maximum(size * np.exp(design_matrix @ new), min_mu)
            now = -2 * negative_log_likelihood(y, mu[:, active], alpha)
            change = np.abs(now - deviance[active]) / (np.abs(now) + 0.1)
            deviance[active] = now
            outside = (np.abs(new) > max_beta).any(axis=0) | ~np.isfinite(now)
            genes = np.flatnonzero(active)
            diverged[genes[outside]] = True
            active[genes[(change <= beta_tol) | outside]] = False
            if not active.any():
                break
        weights = mu / (1 + mu * disp)
        inverse = np.linalg.inv(information(design_matrix, weights) + ridge)
        leverage = weights * np.einsum("ij,gjk,ik->ig", design_matrix, inverse, design_matrix)
        converged, means = np.ones(counts.shape[1], dtype=bool), size * np.exp(design_matrix @ beta)
        for gene in np.flatnonzero(diverged | active):
            arguments = (min_mu, beta_tol, min_beta, max_beta, optimizer, maxiter)
            alone = irls_solver(counts[:, gene], size_factors, design_matrix, disp[gene], *arguments)
            beta[:, gene], means[:, gene], leverage[:, gene], converged[gene] = alone
        return beta.T, means, leverage, converged


def negative_log_likelihood(counts: np.ndarray, mu: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Of negative binomials with means (samples x genes) and a dispersion for each gene, summed over samples."""
    inverse = 1 / alpha
    binomial = gammaln(counts + inverse) - gammaln(counts + 1) - gammaln(inverse)
    terms = (counts + inverse) * np.log(mu + inverse) - counts * np.log(mu) - binomial
    total: np.ndarray = terms.sum(axis=0) + len(counts) * inverse * np.log(alpha)
    return total


def information(design: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Fisher information of the coefficients, genes x coefficients x coefficients, by weights (samples x genes)."""
    found: np.ndarray = np.einsum("ij,ig,ik->gjk", design, weights, design)
    return found
