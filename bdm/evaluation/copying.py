import numpy as np
from sklearn.neighbors import NearestNeighbors

from bdm.evaluation.cells import Cells
from bdm.evaluation.space import fitted_pca


def copying_share(judged: Cells, training: Cells, test: Cells, *, seed: int = 0) -> float:
    """Share of judged cells that are nearer to a training cell than to any test cell, numbers being equal.

    There are more training than test cells to be near to. So each neighbour counts by one over the number of cells
    of its kind, which uses every training cell and stays right for any numbers. The space is fitted on judged
    cells alone and favours neither kind.

    Parameters
    ----------
    training
        The cells that the generator learned from; without the judged ones, where those are real.

    Returns
    -------
    0.5 where nothing is copied (as far as types have the same shares in training and test), 1 where everything is.

    References
    ----------
    The nearest-neighbour view of memorisation, e.g. Meehan et al. 2020, https://arxiv.org/abs/2004.05675
    """
    pca = fitted_pca(judged.expression, seed=seed)
    cells = pca.transform(judged.expression)
    to_training = nearest_distance(cells, pca.transform(training.expression))
    to_test = nearest_distance(cells, pca.transform(test.expression))
    near_training = np.mean(to_training < to_test) / len(training)
    near_test = np.mean(to_training >= to_test) / len(test)
    return float(near_training / (near_training + near_test))


def nearest_distance(cells: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Euclidean distance of each cell to the nearest of others."""
    return NearestNeighbors(n_neighbors=1).fit(among).kneighbors(cells)[0].ravel()
