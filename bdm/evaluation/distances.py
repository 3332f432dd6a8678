import numpy as np
from scipy.spatial.distance import cdist


def energy_distance(x: np.ndarray, y: np.ndarray) -> float:
    """Energy distance between two samples, ``2 E|x - y| - E|x - x'| - E|y - y'|``.

    Unbiased: 0 on average for samples of one distribution, so it may be slightly negative.

    Parameters
    ----------
    x, y
        Samples x dimensions; the numbers of samples may differ.

    Returns
    -------
    The distance in units of the space; NaN with fewer than two samples of either.

    References
    ----------
    Székely and Rizzo 2013, Journal of Statistical Planning and Inference, https://doi.org/10.1016/j.jspi.2013.03.018
    """
    return 2 * cdist(x, y).mean() - mean_of_pairs(cdist(x, x)) - mean_of_pairs(cdist(y, y))


def maximum_mean_discrepancy(x: np.ndarray, y: np.ndarray) -> float:
    """Squared maximum mean discrepancy with a Gaussian kernel as wide as the median distance; unbiased.

    Parameters
    ----------
    x, y
        Samples x dimensions; the numbers of samples may differ.

    Returns
    -------
    A number without unit, slightly negative at times; NaN with fewer than two samples of either.

    References
    ----------
    Gretton et al. 2012, Journal of Machine Learning Research 13:723-773
    """
    pooled = np.concatenate([x, y])
    squared = cdist(pooled, pooled, "sqeuclidean")
    width = max(np.median(squared[np.triu_indices(len(pooled), k=1)]), np.finfo(float).tiny)
    kernel = np.exp(-squared / (2 * width))
    n = len(x)
    return mean_of_pairs(kernel[:n, :n]) + mean_of_pairs(kernel[n:, n:]) - 2 * kernel[:n, n:].mean()


def spread(x: np.ndarray) -> float:
    """Mean distance between two samples of one set, in units of the space; NaN with fewer than two."""
    return mean_of_pairs(cdist(x, x))


def mean_of_pairs(matrix: np.ndarray) -> float:
    """Mean of a square matrix without its diagonal: over pairs of different samples."""
    n = len(matrix)
    return (matrix.sum() - np.trace(matrix)) / (n * (n - 1)) if n > 1 else float("nan")
