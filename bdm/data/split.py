import numpy as np
import pandas as pd

SPLITS = ("train", "validation", "test")


def split_by_type(cell_type: pd.Series, *, validation: float, test: float, seed: int) -> pd.Series:
    """Assign cells at random to train, validation and test, each type in the same proportions.

    The cells of a type are split by ``seed`` and its name, so that other types make no difference to it.

    Returns
    -------
    Categories ``train``, ``validation`` and ``test``, of the index of ``cell_type``.
    """
    fractions = np.array([1 - validation - test, validation, test])
    split = pd.Series(pd.Categorical(["train"] * len(cell_type), categories=SPLITS), index=cell_type.index)
    for name, rows in cell_type.groupby(cell_type, observed=True).indices.items():
        rng = np.random.default_rng([seed, *name.encode()])
        split.iloc[rng.permutation(rows)] = np.repeat(SPLITS, split_sizes(len(rows), fractions))
    return split.cat.remove_unused_categories()


def split_sizes(n_cells: int, fractions: np.ndarray) -> np.ndarray:
    """Divide ``n_cells`` by largest remainder, with a cell at least for each fraction above 0."""
    share = n_cells * fractions
    sizes = np.floor(share).astype(int)
    sizes[np.argsort(sizes - share, kind="stable")[: n_cells - sizes.sum()]] += 1
    for empty in np.flatnonzero((sizes == 0) & (fractions > 0)):
        sizes[sizes.argmax()] -= 1
        sizes[empty] = 1
    return sizes
