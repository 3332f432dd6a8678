import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scipy.stats import nbinom
from torch import nn

from bdm.autoencoder.fit import AutoencoderSettings, fit_autoencoder
from bdm.autoencoder.likelihood import negative_binomial_log_likelihood
from bdm.autoencoder.network import AutoencoderShape, CountAutoencoder
from bdm.autoencoder.storage import (
    GeneAutoencoder,
    load_autoencoder,
    save_autoencoder,
    table_from_json,
    table_to_json,
)
from bdm.data.prepare import PrepareSettings, prepare
from bdm.errors import InputError, TrainingError
from bdm.files import read_json, write_json
from bdm.training import Loop, fabric, train

# ---- likelihood


@pytest.mark.parametrize(("n_cells", "n_genes", "mean"), [(1, 1, 0.5), (5, 3, 0.01), (7, 40, 2.0), (3, 200, 80.0)])
def test_likelihood_is_scipys(n_cells, n_genes, mean):
    rng = np.random.default_rng(n_genes)
    means = mean * rng.lognormal(size=(n_cells, n_genes))
    r = rng.lognormal(size=n_genes)
    counts = rng.poisson(means)
    expected = nbinom.logpmf(counts, r, r / (r + means)).sum(axis=1)
    found = negative_binomial_log_likelihood(*(torch.from_numpy(a) for a in (counts * 1.0, np.log(means), np.log(r))))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_likelihood_without_any_counts():
    found = negative_binomial_log_likelihood(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(3))
    torch.testing.assert_close(found, torch.full((4,), 3 * np.log(0.5)), check_dtype=False)


def test_gradients_of_likelihood_are_those_of_its_values():
    counts = torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, 7.0]], dtype=torch.float64)
    log_mean = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    log_r = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m, r: negative_binomial_log_likelihood(counts, m, r), (log_mean, log_r))


# ---- network


@pytest.mark.parametrize("n_batches", [0, 2])
@pytest.mark.parametrize("n_cells", [1, 9])
def test_network_shapes(n_batches, n_cells):
    network = CountAutoencoder(AutoencoderShape(11, n_latent=4, n_hidden=8, n_batches=n_batches))
    counts = torch.poisson(torch.full((n_cells, 11), 2.0), generator=torch.Generator().manual_seed(0)) + 1
    batch = torch.zeros(n_cells, dtype=torch.long)
    posterior = network.encode(counts, batch)
    assert posterior.mean.shape == posterior.scale.shape == (n_cells, 4)
    assert (posterior.scale > 0).all()
    expression = network.decode(posterior.mean, batch).exp()
    torch.testing.assert_close(expression.sum(dim=1), torch.ones(n_cells))
    assert network(counts, batch, torch.zeros(n_cells, 4), 0.1).shape == (n_cells,)


def test_encoder_is_blind_to_depth_that_scales_all_counts():
    network = CountAutoencoder(AutoencoderShape(11, n_latent=4, n_hidden=8))
    counts = torch.arange(22.0).reshape(2, 11)
    batch = torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(network.encode(counts, batch).mean, network.encode(3 * counts, batch).mean)


def test_batch_enters_decoder():
    network = CountAutoencoder(AutoencoderShape(5, n_latent=2, n_hidden=8, n_batches=2))
    nn.init.normal_(network.batch_offset)
    latent = torch.zeros(2, 2)
    one, two = network.decode(latent, torch.tensor([0, 1]))
    assert not torch.allclose(one, two)


# ---- training of any network


def line(*, target: float = 3.0) -> tuple[nn.Module, callable]:
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)

    def loss(network, generator):
        x = torch.randn(32, 1, generator=generator)
        return ((network(x) - target * x) ** 2).mean()

    return network, loss


def loop(**changes) -> Loop:
    return Loop(
        **{"n_steps": 60, "learning_rate": 0.2, "seed": 0, "device": "cpu", "averaging": 0.0, "n_warmup": 5, **changes}
    )


def test_training_learns():
    network, loss = line()
    history = train(network, loss, loop(n_steps=200, validate_every=50))
    assert list(history["step"]) == [50, 100, 150, 200]
    assert history["loss"].iloc[-1] < 0.1 * history["loss"].iloc[0]
    assert float(network.weight) == pytest.approx(3, abs=0.1)
    assert "validation" not in history


def test_same_seed_same_weights():
    weights = []
    for seed in (1, 1, 2):
        network, loss = line()
        train(network, loss, loop(seed=seed, n_steps=15))
        weights.append(float(network.weight))
    assert weights[0] == weights[1] != weights[2]


def test_last_look_is_at_last_step():
    network, loss = line()
    assert list(train(network, loss, loop(n_steps=25, validate_every=10))["step"]) == [10, 20, 25]


def test_best_validation_is_kept():
    network, loss = line()
    seen = []

    def validation(network):
        seen.append(float(network.weight))
        return (network.weight - 1).abs().sum()

    history = train(network, loss, loop(validate_every=1), validation=validation)
    assert float(network.weight) == seen[history["validation"].argmin()] != seen[-1]


def test_averaged_weights_lie_behind_the_last():
    last, loss = line()
    train(last, loss, loop(n_steps=10))
    averaged, loss = line()
    train(averaged, loss, loop(n_steps=10, averaging=0.99))
    assert 0 < float(averaged.weight) < float(last.weight)


def test_loss_that_is_not_finite_ends_training():
    network, _ = line()
    with pytest.raises(TrainingError, match="step"):
        train(network, lambda network, generator: network.weight.sum() * torch.nan, loop())


@pytest.mark.parametrize("device", ["quantum", "", "cuda", "gpu"])
def test_device_that_is_not_there(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"[Dd]evice"):
        fabric(device)


# ---- training of the autoencoder


@pytest.fixture(scope="module")
def prepared(example_cells) -> AnnData:
    return prepare(example_cells, PrepareSettings(label_key="bulk_labels", n_genes=100))


def fitted(adata, **changes):
    settings = AutoencoderSettings(**{"n_latent": 4, "n_hidden": 16, "n_steps": 30, **changes})
    return fit_autoencoder(adata, settings, seed=0, device="cpu")


def test_autoencoder_learns(prepared):
    history = fitted(prepared, n_steps=300).history
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]
    assert history["validation"].notna().all()


def test_test_cells_are_not_learnt_from(prepared):
    changed = prepared.copy()
    test = (changed.obs["split"] == "test").to_numpy()
    changed.X = sparse.csr_matrix(np.where(test[:, None], 7, changed.X.toarray()).astype(np.float32))
    one, other = fitted(prepared).network.state_dict(), fitted(changed).network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_global_random_state_is_left_alone(prepared):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    fitted(prepared, n_steps=2)
    assert torch.equal(torch.randn(3), expected)


def test_no_validation_cells(prepared):
    cells = prepared[prepared.obs["split"] == "train"].copy()
    assert list(fitted(cells).history) == ["step", "loss"]


# ---- storage


@pytest.fixture
def saved(prepared, tmp_path):
    fit = fitted(prepared, n_steps=2)
    autoencoder = GeneAutoencoder(fit.network, prepared.var, fit.batches, {"seed": 0})
    save_autoencoder(tmp_path, autoencoder)
    return tmp_path, autoencoder


def test_autoencoder_comes_back(saved):
    folder, autoencoder = saved
    loaded = load_autoencoder(folder)
    counts, batch = torch.ones(3, 100), torch.zeros(3, dtype=torch.long)
    assert torch.equal(loaded.network.encode(counts, batch).mean, autoencoder.network.encode(counts, batch).mean)
    assert list(loaded.genes.index) == list(autoencoder.genes.index)
    assert loaded.provenance == {"seed": 0}


@pytest.mark.parametrize(
    "change", [{"shape": {"n_genes": 3}}, {"shape": {"size": 3}}, {"genes": []}, {"batches": None}]
)
def test_autoencoder_of_other_content(saved, change):
    folder, _ = saved
    write_json(folder / "autoencoder.json", {**read_json(folder / "autoencoder.json"), **change})
    with pytest.raises(InputError, match="damaged"):
        load_autoencoder(folder)


def test_table_comes_back_with_missing_values():
    table = pd.DataFrame(
        {
            "number": [1, 2, 3],
            "real": [0.5, np.nan, np.inf],
            "flag": [True, False, True],
            "text": ["a", None, "δ"],
            "group": pd.Categorical(["x", None, "y"]),
        },
        index=["g1", "g2", "g3"],
    )
    content = table_to_json(table)
    assert content["columns"] == {
        "number": [1, 2, 3],
        "real": [0.5, None, None],
        "flag": [True, False, True],
        "text": ["a", None, "δ"],
        "group": ["x", None, "y"],
    }
    back = table_from_json(content)
    assert list(back.index) == ["g1", "g2", "g3"]
    assert back["number"].dtype == int
    assert back["real"].iloc[0] == 0.5
