"""Observation model: the likelihood of counts given a cell's expression."""

import torch
from torch import Tensor


def negative_binomial_log_likelihood(counts: Tensor, log_mean: Tensor, log_inverse_dispersion: Tensor) -> Tensor:
    """Log-likelihood of each cell's counts under a negative binomial of mean m and variance m + m**2 / r.

    Most counts are zeros, where the log-gamma terms vanish, so these are computed for the others alone.

    Parameters
    ----------
    counts
        Raw counts, cells x genes.
    log_mean
        Natural logarithm of the mean m, cells x genes.
    log_inverse_dispersion
        Natural logarithm of the inverse dispersion r, cells x genes, or one a gene.

    Returns
    -------
    Sum over genes, one a cell.
    """
    log_r = log_inverse_dispersion.expand_as(log_mean)
    log_total = torch.logaddexp(log_r, log_mean)
    at_zero = log_r.exp() * (log_r - log_total)
    cell, gene = torch.nonzero(counts, as_tuple=True)
    x, r = counts[cell, gene], log_r[cell, gene].exp()
    above_zero = (
        torch.lgamma(x + r) - torch.lgamma(r) - torch.lgamma(x + 1) + x * (log_mean[cell, gene] - log_total[cell, gene])
    )
    return at_zero.sum(dim=1).index_add(0, cell, above_zero)
