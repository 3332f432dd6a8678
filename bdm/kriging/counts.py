"""Counts of cells whose expected shares change: thinned where they fall, added to where they rise."""

import numpy as np
from scipy import sparse

LEAST = 0.05  # of the counts of a gene that are left, as shares below the pseudo-count could become negative


def with_shares(
    counts: sparse.csr_matrix,
    column: np.ndarray,
    share: np.ndarray,
    new: np.ndarray,
    spread: list[np.ndarray],
    generator: np.random.Generator,
) -> sparse.csr_matrix:
    """Change the counts of some genes (``column``) of cells from their expected shares to new ones.

    Parameters
    ----------
    spread
        Dispersion of counts of each gene, before and after.
    """
    before, size = np.asarray(counts[:, column].todense()), np.asarray(counts.sum(axis=1), dtype=float).ravel()
    after = rescaled(before, size, share, np.maximum(new, LEAST * share), spread, generator)
    changed = np.flatnonzero((after != before).any(axis=0))
    difference = sparse.csr_matrix(after[:, changed] - before[:, changed])
    place = sparse.csr_matrix(
        (np.ones(len(changed), dtype=np.float32), (np.arange(len(changed)), column[changed])),
        (len(changed), counts.shape[1]),
    )
    found = sparse.csr_matrix(counts + difference @ place, dtype=np.float32)
    found.eliminate_zeros()
    return found


def rescaled(
    counts: np.ndarray,
    size: np.ndarray,
    share: np.ndarray,
    new: np.ndarray,
    spread: list[np.ndarray],
    generator: np.random.Generator,
) -> np.ndarray:
    """Thin counts, or add to them; cells x genes.

    With the mean m of a count and its dispersion d (variance m + d m**2), counts of the mean a are added whose
    dispersion is (d_new (m + a)**2 - d_old m**2) / a**2, so that the sum has the new dispersion.
    """
    old_spread, new_spread = spread
    for_thinning, for_rates, for_more = generator.spawn(3)
    changed = counts.copy()
    down = np.flatnonzero(new < share)
    changed[:, down] = for_thinning.binomial(counts[:, down].astype(np.int64), new[down] / share[down])
    up = np.flatnonzero(new > share)
    more = new[up] - share[up]
    dispersion = (new_spread[up] * new[up] ** 2 - old_spread[up] * share[up] ** 2) / more**2
    dispersion = np.clip(dispersion, 1e-3, 1e3)
    rate = for_rates.standard_gamma(1 / dispersion, size=(len(counts), len(up))) * dispersion
    changed[:, up] += for_more.poisson(rate * size[:, None] * more)
    return changed
