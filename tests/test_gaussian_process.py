"""The Gaussian process of gene values, as users build it from arrays and a kernel of their own."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from bdm import tl
from bdm._core.errors import InputError
from bdm.applications.relations.gaussian_process import Hypothesis, Prediction, Prior

POSITIONS = np.linspace(0, 1, 12)
MEASURED = [0, 1, 3, 4, 6, 7, 9, 11]
N_GENES = 300


def smooth(places: list[int], others: list[int] | None = None) -> np.ndarray:
    """Covariance of smooth curves between places, or with others."""
    difference = np.subtract.outer(POSITIONS[places], POSITIONS[places if others is None else others])
    return np.exp(-(difference**2) / 0.1)


def predict(process: tl.GaussianProcess, places: list[int], measured: list[int] = MEASURED) -> Prediction:
    return process.predict([smooth(places, measured)], [smooth(places)])


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    """Half of the genes vary smoothly, and the others do not vary."""
    rng = np.random.default_rng(0)
    root = np.linalg.cholesky(smooth([*range(12)]) + 1e-9 * np.eye(12))
    varies = np.arange(N_GENES) < N_GENES / 2
    return varies[:, None] * (rng.normal(size=(N_GENES, 12)) @ root.T)


def measured_process(truth: np.ndarray, *, seed: int = 1, shared: float = 0.0) -> tl.GaussianProcess:
    rng = np.random.default_rng(seed)
    errors = np.full((N_GENES, len(MEASURED), 1), shared)
    noise = rng.normal(0, 0.2, (N_GENES, len(MEASURED))) + rng.normal(size=(N_GENES, 1)) * errors[:, :, 0]
    return tl.GaussianProcess.from_arrays(
        truth[:, MEASURED] + noise,
        np.full((N_GENES, len(MEASURED)), 0.04),
        [smooth(MEASURED)],
        shared_errors=errors,
    )


def test_a_kernel_of_ones_own_predicts_places_between_measured_ones(truth, tmp_path):
    process = measured_process(truth).fit().calibrate()
    predicted = predict(process, [2, 5, 8, 10])
    error = predicted.mean - truth[:, [2, 5, 8, 10]]
    assert np.sqrt(np.mean(error**2)) < 0.15
    half = 1.645 * np.sqrt(predicted.variance) * process.prior.sd_factors(predicted.mean)
    assert 0.85 < np.mean(np.abs(error[: N_GENES // 2]) < half[: N_GENES // 2]) < 0.97
    process.save(tmp_path / "process")
    loaded = tl.GaussianProcess.load(tmp_path / "process")
    np.testing.assert_array_equal(predict(loaded, [2]).mean, predict(process, [2]).mean)
    table = pd.read_csv(tmp_path / "process" / "hypotheses.csv")
    assert table["share"].sum() == pytest.approx(1, abs=0.01)
    assert table.loc[table["kernel"] == 0, "share"].sum() > 0.4


def test_an_error_that_all_measurements_share_is_not_a_value_that_all_places_share(truth):
    process = measured_process(truth, shared=0.5)
    careless = replace(process, shared_errors=torch.zeros(N_GENES, len(MEASURED), 0, dtype=torch.double))
    error, without = (predict(each.fit(), MEASURED).mean - truth[:, MEASURED] for each in (process, careless))
    assert np.mean(error**2) < 0.5 * np.mean(without**2)


@pytest.mark.parametrize("shared", [0.0, 0.5])
def test_values_that_are_left_out_are_predicted_without_their_measurement(truth, shared):
    process = measured_process(truth, shared=shared).fit()
    mean, variance = process.leave_out()
    others = np.delete(np.arange(len(MEASURED)), 2)
    known = [MEASURED[number] for number in others]
    alone = tl.GaussianProcess.from_arrays(
        process.values.numpy()[:, others],
        process.variance.numpy()[:, others],
        [smooth(known)],
        shared_errors=process.shared_errors.numpy()[:, others],
        prior=process.prior,
    )
    predicted = predict(alone, [MEASURED[2]], known)
    np.testing.assert_allclose(mean[:, 2], predicted.mean[:, 0], atol=1e-9)
    np.testing.assert_allclose(variance[:, 2], predicted.variance[:, 0], atol=1e-9)


def test_a_measured_place_keeps_what_it_has_of_its_own(truth):
    """Only a place that is known to be a measured one has the value that is independent of other places."""
    process = replace(measured_process(truth), prior=Prior((Hypothesis(0, 0.5, 1.0, 0.0, 0.0),), np.ones(1)))
    own = process.predict([smooth(MEASURED)], [smooth(MEASURED)], measured=np.arange(len(MEASURED)))
    near = predict(process, MEASURED)
    real = process.values.numpy()
    assert np.mean((own.mean - real) ** 2) < 0.1 * np.mean((near.mean - real) ** 2)
    assert (own.variance < near.variance).all()
    assert np.abs(own.terms["own"]).min() > 0
    assert not near.terms["own"].any()


def test_shapes_must_agree(truth):
    with pytest.raises(InputError, match=r"^kernel 1 has the shape \(3, 3\), but must have \(12, 12\)"):
        tl.GaussianProcess.from_arrays(truth, truth**2, [smooth([*range(12)]), np.eye(3)])
    with pytest.raises(InputError, match=r"^variance has the shape"):
        tl.GaussianProcess.from_arrays(truth, truth[:, 1:])
    with pytest.raises(InputError, match=r"^cross kernel 0 has the shape \(1, 3\), but must have \(1, 8\)"):
        measured_process(truth).fit().predict([smooth([2], [0, 1, 3])], [smooth([2])])
