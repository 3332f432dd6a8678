"""The Gaussian process of gene values, as users build it from arrays and a kernel of their own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bdm import tl
from bdm._core.errors import InputError

POSITIONS = np.linspace(0, 1, 12)
MEASURED = [0, 1, 3, 4, 6, 7, 9, 11]
N_GENES = 300


def smooth(positions: np.ndarray) -> np.ndarray:
    """Covariance of smooth curves."""
    return np.exp(-(np.subtract.outer(positions, positions) ** 2) / 0.1)


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Half of the genes vary smoothly, and the others do not vary."""
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(smooth(POSITIONS) + 1e-9 * np.eye(12))
    varies = np.arange(N_GENES) < N_GENES / 2
    return varies[:, None] * (rng.normal(size=(N_GENES, 12)) @ root.T)


def measured_process(truth: np.ndarray, *, seed: int = 1, shared: float = 0.0) -> tl.GaussianProcess:
    rng = np.random.default_rng(seed)
    errors = np.full((N_GENES, len(MEASURED), 1), shared)
    noise = rng.normal(0, 0.2, (N_GENES, len(MEASURED))) + rng.normal(size=(N_GENES, 1)) * errors[:, :, 0]
    return tl.GaussianProcess.from_arrays(
        truth[:, MEASURED] + noise,
        np.full((N_GENES, len(MEASURED)), 0.04),
        [smooth(POSITIONS)],
        measured=MEASURED,
        shared_errors=errors,
    )


def test_a_kernel_of_ones_own_predicts_places_between_measured_ones(truth, tmp_path):
    process = measured_process(truth).fit().calibrate()
    predicted = process.predict([2, 5, 8, 10])
    error = predicted.mean - truth[:, [2, 5, 8, 10]]
    assert np.sqrt(np.mean(error**2)) < 0.15
    half = 1.645 * np.sqrt(predicted.variance) * process.prior.sd_factors(predicted.mean)
    assert 0.85 < np.mean(np.abs(error[: N_GENES // 2]) < half[: N_GENES // 2]) < 0.97
    process.save(tmp_path / "process")
    loaded = tl.GaussianProcess.load(tmp_path / "process")
    np.testing.assert_array_equal(loaded.predict([2]).mean, process.predict([2]).mean)
    table = pd.read_csv(tmp_path / "process" / "hypotheses.csv")
    assert table["share"].sum() == pytest.approx(1, abs=0.01)
    assert table.loc[table["kernel"] == 0, "share"].sum() > 0.4


def test_an_error_that_all_measurements_share_is_not_a_value_that_all_places_share(truth):
    process = measured_process(truth, shared=0.5)
    careless = replace(process, shared_errors=torch.zeros(N_GENES, len(MEASURED), 0, dtype=torch.double))
    error, without = (each.fit().predict(MEASURED).mean - truth[:, MEASURED] for each in (process, careless))
    assert np.mean(error**2) < 0.5 * np.mean(without**2)


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_values_that_are_left_out_are_predicted_without_their_measurement(truth, shared):
    process = measured_process(truth, shared=shared).fit()
    mean, variance = process.leave_out()
    others = np.delete(np.arange(len(MEASURED)), 2)
    alone = tl.GaussianProcess.from_arrays(
        process.values.numpy()[:, others],
        process.variance.numpy()[:, others],
        [smooth(POSITIONS)],
        measured=np.array(MEASURED)[others],
        shared_errors=process.shared_errors.numpy()[:, others],
        prior=process.prior,
    ).predict([MEASURED[2]])
    np.testing.assert_allclose(mean[:, 2], alone.mean[:, 0], atol=1e-9)
    np.testing.assert_allclose(variance[:, 2], alone.variance[:, 0], atol=1e-9)


def test_shapes_must_agree(truth):
    with pytest.raises(InputError, match=r"^kernel 1 has the shape \(3, 3\), but must have \(12, 12\)"):
        tl.GaussianProcess.from_arrays(truth, truth**2, [smooth(POSITIONS), np.eye(3)])
    with pytest.raises(InputError, match=r"^variance has the shape"):
        tl.GaussianProcess.from_arrays(truth, truth[:, 1:])
