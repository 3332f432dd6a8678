"""The estimate of a dry run is near the time that a fit takes."""

from dataclasses import replace

import pytest

from bdm.autoencoder.fit import fit_autoencoder
from bdm.autoencoder.storage import GeneAutoencoder
from bdm.commands.estimate import Seconds, estimate_autoencoder, estimate_fit, seconds_of, timed
from bdm.data.prepare import prepare
from bdm.latent.cells import encode
from bdm.settings import AutoencoderSettings, PrepareSettings
from bdm.threads import using_threads

FACTOR = 2  # beside other programs, the processor itself is slower


def near(estimate: float, taken: float) -> bool:
    return taken / FACTOR < estimate < taken * FACTOR


@pytest.mark.parametrize("sub_populations", ["none", "auto"])
@pytest.mark.parametrize("shared_decoder", [False, True])
def test_time_of_the_autoencoder_is_estimated(example_cells, shared_decoder, sub_populations):
    prepared = prepare(example_cells, PrepareSettings(label_key="bulk_labels", n_genes=200))
    settings = AutoencoderSettings(
        n_latent=5, n_steps=150, shared_decoder=shared_decoder, sub_populations=sub_populations
    )

    def learn() -> None:
        fitted = fit_autoencoder(prepared, settings, seed=0, device="cpu")
        encode(prepared, GeneAutoencoder.of(fitted, prepared.var, {}))

    with using_threads(1):
        estimate = estimate_autoencoder(prepared, settings, seed=0, device="cpu")
        processor, wall = timed(learn)
    if sub_populations == "none":
        assert near(estimate.least, processor)
    else:  # the second training, which only the most has, takes place if types have sub-populations
        assert estimate.least / FACTOR < processor < estimate.most * FACTOR
    assert estimate.most >= estimate.least > 0
    assert wall >= processor * 0.9


def test_time_of_the_denoiser_is_estimated(example_cells, small_model):
    settings = replace(small_model.settings, denoiser=replace(small_model.settings.denoiser, n_steps=400))
    model = type(small_model)(example_cells, label_key="bulk_labels", settings=settings, n_threads=1)
    with using_threads(1):
        estimate = estimate_fit(model, model.settings)
        processor, _ = timed(model.fit)
    assert list(estimate) == ["the autoencoder", "the denoiser"]
    assert near(sum(seconds.least for seconds in estimate.values()), processor)


def test_time_is_estimated_from_short_runs_without_what_is_done_once(monkeypatch):
    clock, runs = {"processor": 0.0, "wall": 0.0}, []

    def run(n_steps: int) -> None:
        once = 0 if runs else 50
        runs.append(n_steps)
        clock["processor"] += 2 + 0.1 * n_steps + once
        clock["wall"] += 6 + 0.4 * n_steps + once

    monkeypatch.setattr("time.process_time", lambda: clock["processor"])
    monkeypatch.setattr("time.monotonic", lambda: clock["wall"])
    estimate = seconds_of(run, 1000)
    assert estimate.least == pytest.approx(102)
    assert estimate.most == pytest.approx(406)
    assert max(runs) < 50


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (Seconds(20, 21), "20 s"),
        (Seconds(20, 60), "20 s to 1 min 0 s"),
        (Seconds(0.1, 0.4), "0 s"),
        (Seconds(300, 5400), "5 min 0 s to 1 h 30 min"),
    ],
)
def test_times_that_differ_are_shown_as_a_range(seconds, text):
    assert str(seconds) == text


def test_processor_of_several_threads_is_no_bound_of_time():
    with using_threads(4):
        assert Seconds.of(40, 12) == Seconds(12, 40)
        assert Seconds.of(40, 2) == Seconds(10, 40)
        assert Seconds.of(40, 90) == Seconds(40, 90)
