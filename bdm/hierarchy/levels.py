import numpy as np
from scipy.stats import norm

from bdm.errors import InputError

MIN_LEVEL = 0.3  # of a node: types that overlap below the threshold still need a part of the way to themselves


def branch_level(distance: np.ndarray, *, threshold: float = 0.9) -> np.ndarray:
    """Noise level at which two cell types can be told apart with AUC ``threshold`` at best.

    Solves ``threshold = Phi(distance / sqrt(2 (1 + sigma**2)))`` for ``sigma``.

    Parameters
    ----------
    distance
        Mahalanobis distance between type means, any shape.
    threshold
        In (0.5, 1): smaller separates earlier in the denoising, and shares less.

    Returns
    -------
    Noise level in whitened units, the shape of ``distance``; 0 where types overlap below the threshold.

    Raises
    ------
    InputError
        If ``threshold`` is outside (0.5, 1).
    """
    check_threshold(threshold)
    variance = np.asarray(distance) ** 2 / (2 * norm.ppf(threshold) ** 2) - 1
    return np.sqrt(np.maximum(variance, 0))


def check_threshold(threshold: float) -> None:
    """Refuse a threshold that no noise level belongs to."""
    if not 0.5 < threshold < 1:
        raise InputError(f"threshold is {threshold}, but must lie between 0.5 and 1.")
