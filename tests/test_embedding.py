from pathlib import Path

import numpy as np
import pytest

from bdm.evaluation.metrics import compute_umap


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)


def test_functions_that_are_compiled_are_kept_on_disk(x):
    from umap.umap_ import compute_membership_strengths, smooth_knn_dist  # late, as it takes seconds

    compute_umap(x, seed=0)
    for function in (smooth_knn_dist, compute_membership_strengths):
        name = f"{function.py_func.__module__.removeprefix('umap.')}.{function.py_func.__name__}-*.nbc"
        assert function.signatures
        assert list(Path(function.stats.cache_path).glob(name)), name


def test_seed_decides_the_embedding(x):
    one, same, other = (compute_umap(x, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
