"""Intervals of predictions, calibrated by expression on measured places that were left out."""

from collections.abc import Sequence

import numpy as np

from bdm.kriging.law import Law, Measurements, left_out

BINS = (0.0, 0.5, 0.8, 0.95, 1.0)  # quantiles of expression between which intervals are calibrated
QUANTILE = 1.6449  # of the standard normal, between which and its negative 90% are
N_CALIBRATED = 2000  # genes, on which intervals are calibrated
MIN_GENES = 20  # of a bin whose intervals are calibrated


def calibration(
    law: Law,
    data: Measurements,
    kernels: list[np.ndarray],
    profile: np.ndarray,
    groups: Sequence[np.ndarray] | None = None,
) -> np.ndarray:
    """Factor of standard deviations by bin of expression, with which 90% intervals have 90% of left-out values.

    Parameters
    ----------
    profile
        Log expression at the measured places, places x genes.
    groups
        Places that are left out together; each alone, if not given.
    """
    genes = np.unique(np.linspace(0, len(data.effect) - 1, N_CALIBRATED).astype(int))
    mean, variance = left_out(law, data.genes(genes), kernels, groups)
    bins = np.stack([bins_of(of_place)[genes] for of_place in profile], axis=1)
    score = np.abs(data.effect[genes].numpy() - mean) / np.sqrt(variance)
    factors = []
    for number in range(len(BINS) - 1):
        of_bin = score[bins == number]
        factors.append(np.quantile(of_bin, 0.9) / QUANTILE if len(of_bin) >= MIN_GENES else 1.0)
    return np.array(factors)


def bins_of(profile: np.ndarray) -> np.ndarray:
    """Bin of each gene by its expression at a place."""
    edges = np.quantile(profile, BINS[1:-1])
    return np.searchsorted(edges, profile)
