import numpy as np
from scipy import sparse
from sklearn.decomposition import PCA


def fitted_pca(expression: sparse.csr_matrix, *, n_components: int = 30, seed: int = 0) -> PCA:
    """Principal components of cells (cells x genes), unscaled.

    Cells that the components were fitted on spread wider along them than held-out cells do. So fit them on both
    sets to be compared, equal in number, or on neither of the two.
    """
    n_components = min(n_components, min(expression.shape) - 1)
    return PCA(n_components, svd_solver="arpack", random_state=seed).fit(expression)


def joint_components(
    judged: sparse.csr_matrix, test: sparse.csr_matrix, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of two sets of cells, fitted on both together."""
    pca = fitted_pca(sparse.vstack([judged, test]).tocsr(), seed=seed)
    return pca.transform(judged), pca.transform(test)
