from collections import Counter

import numpy as np

from bdm.hierarchy.cluster import clades_of
from bdm.seeds import numpy_generator


def clade_support(
    x: np.ndarray, cell_type: np.ndarray, *, n_types: int, n_bootstrap: int, seed: int
) -> dict[frozenset[int], float] | None:
    """Share of bootstrap resamples of cells, within types, in whose clustering each set of types is a clade.

    Felsenstein 1985 (Evolution 39:783), with cells in the place of sites.

    Parameters
    ----------
    x
        Cells in whitened space, cells x dimensions.
    cell_type
        Index of each cell's type.

    Returns
    -------
    Support by set of types, as indices, of the clades seen at all; None without resamples.
    """
    if n_bootstrap == 0:
        return None
    generator = numpy_generator(seed, "support")
    by_type = [x[cell_type == code] for code in range(n_types)]
    resampled = np.stack([_resampled_means(cells, n_bootstrap, generator) for cells in by_type], axis=1)
    seen = Counter(clade for means in resampled for clade in clades_of(means))
    return {clade: n / n_bootstrap for clade, n in seen.items()}


def _resampled_means(cells: np.ndarray, n_bootstrap: int, generator: np.random.Generator) -> np.ndarray:
    """Means of resamples of cells with replacement, resamples x dimensions; one resample in memory at a time."""
    even = np.full(len(cells), 1 / len(cells))
    return np.stack([generator.multinomial(len(cells), even) @ cells / len(cells) for _ in range(n_bootstrap)])
