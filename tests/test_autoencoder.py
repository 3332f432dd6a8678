from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scipy.stats import nbinom
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from bdm._core.errors import InputError
from bdm._core.parallel import using_threads
from bdm._core.seeds import to_tensor
from bdm._core.training import TrainingPlan, device_of, train
from bdm.autoencoder import adapters, rare_types, softmax
from bdm.autoencoder import fit_autoencoder as fitting
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.autoencoder import GeneAutoencoder
from bdm.autoencoder.decoder import BATCH_OFFSET_SCALE, TYPE_DISPERSION_SCALE, AutoencoderShape
from bdm.autoencoder.fit_autoencoder import fit_autoencoder
from bdm.autoencoder.inputs import population_codes, sample_rows
from bdm.autoencoder.latent import encode, populations_of_cells
from bdm.autoencoder.network import CountAutoencoder, Posterior, laplace_posterior, log_normalise
from bdm.autoencoder.observation import NegativeBinomial
from bdm.autoencoder.rare_types import fit_rare_types
from bdm.autoencoder.softmax import Loadings, SoftmaxEvidence
from bdm.data import matrix
from bdm.data.matrix import take_rows
from bdm.data.prepare import prepare, read_prepared
from bdm.settings import AutoencoderSettings, PrepareSettings


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- likelihood


def log_likelihood(counts: Tensor, log_mean: Tensor, log_inverse_dispersion: Tensor) -> Tensor:
    return NegativeBinomial(log_inverse_dispersion).log_likelihood(counts, log_mean)


@pytest.mark.parametrize("dispersion_by", ["gene", "cell and gene"])
@pytest.mark.parametrize(("n_cells", "n_genes", "mean"), [(1, 1, 0.5), (5, 3, 0.01), (7, 40, 2.0), (3, 200, 80.0)])
def test_likelihood_is_scipys(n_cells, n_genes, mean, dispersion_by):
    rng = np.random.default_rng(n_genes)
    means = mean * rng.lognormal(size=(n_cells, n_genes))
    r = rng.lognormal(size=n_genes if dispersion_by == "gene" else (n_cells, n_genes))
    counts = rng.poisson(means)
    expected = nbinom.logpmf(counts, r, r / (r + means)).sum(axis=1)
    found = log_likelihood(*(torch.from_numpy(a) for a in (counts * 1.0, np.log(means), np.log(r))))
    np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(3,), (2, 3)])
def test_derivatives_are_those_of_the_likelihood(shape):
    log_mean = torch.randn(2, 3, dtype=torch.float64, generator=seeded(), requires_grad=True)
    log_r = torch.randn(shape, dtype=torch.float64, generator=seeded(1), requires_grad=True)
    counts = torch.tensor([[0.0, 3.0, 1.0], [0.0, 0.0, 7.0]], dtype=torch.float64)
    of_values = NegativeBinomial(log_r).log_likelihood(counts, log_mean).sum()
    expected, by_dispersion = torch.autograd.grad(of_values, (log_mean, log_r))
    observation = NegativeBinomial(log_r.detach())
    found, information = observation.derivatives(counts, log_mean.detach().exp())
    torch.testing.assert_close(found, expected)
    gradient = observation.parameter_gradients(counts, log_mean.detach().exp())["log_inverse_dispersion"]
    torch.testing.assert_close(gradient.sum_to_size(shape), by_dispersion)
    # Fisher's information is the variance of the derivative
    mean = log_mean.detach().exp().numpy()
    variance = torch.from_numpy(observation.variance(mean))
    q = information / log_mean.detach().exp()
    torch.testing.assert_close(information, q**2 * variance)


def test_variance_and_detection_are_scipys():
    mean, r = np.array([[0.01, 2.0, 50.0]]), np.array([0.3, 1.0, 7.0])
    observation, expected = NegativeBinomial(torch.from_numpy(np.log(r))), nbinom(r, r / (r + mean))
    np.testing.assert_allclose(observation.variance(mean), expected.var())
    np.testing.assert_allclose(observation.detection(mean), 1 - expected.pmf(0))


# ---- posterior


def problem(*, n_cells=6, n_genes=40, n_latent=3, n_counts=500.0, loading=0.3) -> dict[str, Tensor]:
    """Counts drawn from a model, and what else ``laplace_posterior`` takes."""
    loadings = loading * torch.randn(n_genes, n_latent, generator=seeded(1))
    offset = torch.randn(n_cells, n_genes, generator=seeded(2))
    inverse_dispersion = 0.5 + torch.rand(n_cells, n_genes, generator=seeded(3)) * 5
    prior_mean = torch.randn(n_cells, n_latent, generator=seeded(4))
    latent = prior_mean + torch.randn(n_cells, n_latent, generator=seeded(5))
    mean = n_counts * torch.softmax(latent @ loadings.T + offset, dim=1)
    return {
        "counts": torch.poisson(mean, generator=seeded(6)),
        "loadings": loadings,
        "offset": offset,
        "inverse_dispersion": inverse_dispersion,
        "prior_mean": prior_mean,
    }


def evidence_of(given: dict[str, Tensor]) -> SoftmaxEvidence:
    observation, loadings = NegativeBinomial(given["inverse_dispersion"].log()), Loadings.from_weight(given["loadings"])
    counts = given["counts"]
    return SoftmaxEvidence(counts, counts.sum(dim=1, keepdim=True), given["offset"], observation, loadings)


def posterior_given(given: dict[str, Tensor], *, n_iterations: int) -> Posterior:
    return laplace_posterior([evidence_of(given)], given["prior_mean"], n_iterations=n_iterations)


def log_mean(latent: Tensor, given: dict[str, Tensor]) -> Tensor:
    log_expression = torch.log_softmax(latent @ given["loadings"].T + given["offset"], dim=1)
    return log_expression + given["counts"].sum(dim=1, keepdim=True).log()


@pytest.mark.parametrize("n_counts", [3.0, 500.0, 1e5])
@pytest.mark.parametrize("n_latent", [1, 3, 10])
def test_mode_is_where_the_gradient_vanishes(n_counts, n_latent):
    given = problem(n_latent=n_latent, n_counts=n_counts)
    posterior = posterior_given(given, n_iterations=30)
    given = {name: value.double() for name, value in given.items()}
    latent = posterior.mean.double().requires_grad_()
    likelihood = log_likelihood(given["counts"], log_mean(latent, given), given["inverse_dispersion"].log())
    prior = -((latent - given["prior_mean"]) ** 2).sum() / 2
    (gradient,) = torch.autograd.grad(likelihood.sum() + prior, latent)
    in_scales = gradient * posterior.scale
    torch.testing.assert_close(in_scales, torch.zeros_like(in_scales), atol=1e-3, rtol=0)


def test_matrices_of_a_cell_are_evidence_together():
    given, other = problem(), problem(n_genes=7) | {"prior_mean": problem()["prior_mean"]}
    pieces = [evidence_of(given), evidence_of(other)]
    posterior = laplace_posterior(pieces, given["prior_mean"], n_iterations=30)
    z = posterior.mean
    gradients, information = zip(*(piece.derivatives(z) for piece in pieces), strict=True)
    in_scales = (sum(gradients) - (z - given["prior_mean"])) * posterior.scale
    torch.testing.assert_close(in_scales, torch.zeros_like(in_scales), atol=1e-3, rtol=0)
    torch.testing.assert_close(posterior.precision, sum(information) + torch.eye(3), atol=1e-3, rtol=1e-4)


def test_precision_is_fishers_information_and_the_priors():
    given = problem()
    posterior = posterior_given(given, n_iterations=30)
    jacobian = torch.autograd.functional.jacobian(lambda z: log_mean(z, given), posterior.mean)
    for cell, latent in enumerate(posterior.mean):
        mean, r = log_mean(latent[None].expand(6, -1), given)[cell].exp(), given["inverse_dispersion"][cell]
        of_log_mean = jacobian[cell, :, cell]
        information = of_log_mean.T @ torch.diag(mean * r / (r + mean)) @ of_log_mean
        torch.testing.assert_close(posterior.precision[cell], information + torch.eye(3), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("n_counts", [50.0, 1e5])
def test_few_iterations_of_newtons_method_are_enough(n_counts):
    given = problem(n_cells=50, n_counts=n_counts)
    few, many = (posterior_given(given, n_iterations=n) for n in (12, 50))
    assert ((few.mean - many.mean).abs() < 0.02 * many.scale).all()


@pytest.mark.parametrize("n_iterations", [2, 12])
def test_posterior_of_a_cell_does_not_depend_on_others(n_iterations):
    given = problem(n_cells=20)
    given["prior_mean"] = given["prior_mean"] + 5
    every = posterior_given(given, n_iterations=n_iterations)
    part = {name: value if name == "loadings" else value[5:8] for name, value in given.items()}
    some = posterior_given(part, n_iterations=n_iterations)
    torch.testing.assert_close(some.mean, every.mean[5:8], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(some.precision, every.precision[5:8], atol=1e-4, rtol=1e-5)


def posterior_of(*, n_cells=4, n_latent=3) -> tuple[Posterior, MultivariateNormal]:
    root = torch.randn(n_cells, n_latent, n_latent, generator=seeded(1))
    precision = root @ root.transpose(1, 2) + torch.eye(n_latent)
    mean = torch.randn(n_cells, n_latent, generator=seeded(2))
    return Posterior(mean, torch.linalg.cholesky(precision)), MultivariateNormal(mean, precision_matrix=precision)


def test_draws_have_the_moments_of_the_posterior():
    posterior, normal = posterior_of()
    draws = torch.stack([posterior.sample(noise) for noise in torch.randn(40_000, 4, 3, generator=seeded())])
    torch.testing.assert_close(draws.mean(dim=0), posterior.mean, atol=0.02, rtol=0)
    covariance = torch.stack([torch.cov(draws[:, cell].T) for cell in range(4)])
    torch.testing.assert_close(covariance, normal.covariance_matrix, atol=0.02, rtol=0)


# ---- network


def network_of(*, n_genes=11, n_types=3, n_latent=4, n_batches=0) -> CountAutoencoder:
    """Network of random parameters."""
    network = CountAutoencoder(AutoencoderShape(n_genes, n_types, n_latent, n_batches))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
        network.prior_sum.copy_(torch.randn(network.prior_sum.shape, generator=seeded(1)))
    return network


def counts_of(n_cells: int, n_genes: int = 11) -> Tensor:
    return torch.poisson(torch.full((n_cells, n_genes), 2.0), generator=seeded()) + 1


def types_of(n_cells: int) -> Tensor:
    return torch.arange(n_cells) % 3


def test_batch_enters_both_ways():
    network = network_of(n_batches=2)
    counts, types, batch = counts_of(1).expand(2, -1), torch.zeros(2, dtype=torch.long), torch.tensor([0, 1])
    one, two = network.decoder.decode(torch.zeros(2, 4), batch)
    assert not torch.allclose(one, two)
    one, two = network.encode(counts, types, batch).mean
    assert not torch.allclose(one, two)


def test_bound_is_just_below_the_likelihood():
    network = network_of(n_latent=1)
    counts, types, batch = counts_of(40), types_of(40), torch.zeros(40, dtype=torch.long)
    noise = torch.randn(500, 40, 1, generator=seeded())
    with torch.no_grad():
        bound = -torch.stack([network(counts, types, batch, n, n_iterations=12)[0] for n in noise]).mean(dim=0)
        grid = torch.linspace(-8, 8, 801)
        latent = network.prior_mean[types] + grid
        prior = torch.distributions.Normal(0, 1).log_prob(grid)
        joint = [network.decoder.log_likelihood(counts, z[:, None], types, batch) for z in latent.T]
    likelihood = torch.logsumexp(torch.stack(joint, dim=1) + prior + np.log(0.02), dim=1)
    gap = (likelihood - bound).mean()
    assert -0.01 < gap < 0.05


def test_initialise_from_cells():
    types = types_of(300)
    latent = torch.randn(300, 2, generator=seeded()) + torch.tensor([[6.0, 0.0], [0.0, 2.0], [0.0, 0.0]])[types]
    rates = 1e6 * torch.softmax(latent @ torch.randn(2, 40, generator=seeded(1)) / 2, dim=1)
    counts = torch.poisson(rates, generator=seeded(2))
    network = network_of(n_genes=40, n_latent=2)
    network.initialise(counts, types)
    expression = torch.softmax(network.decoder.loadings.bias, dim=0)
    torch.testing.assert_close(expression, counts.sum(dim=0) / counts.sum(), atol=1e-5, rtol=0)
    normalised = log_normalise(counts)
    normalised = normalised - normalised.mean(dim=0)
    axes = torch.linalg.svd(normalised, full_matrices=False)[2][:2]
    means = torch.stack([normalised[types == t].mean(dim=0) for t in range(3)])
    loadings = network.decoder.loadings.weight.detach()
    decoded = 2 * network.prior_mean @ loadings.T
    torch.testing.assert_close(decoded, means @ axes.T @ axes, atol=0.05, rtol=0)
    within = ((normalised - means[types]) @ axes.T).std(dim=0)
    torch.testing.assert_close(2 * loadings.norm(dim=0), within, atol=0.05, rtol=0)


@pytest.mark.parametrize(("n_cells", "n_genes"), [(3, 11), (200, 2), (2, 2)])
def test_initialise_from_fewer_cells_or_genes_than_latent_dimensions(n_cells, n_genes):
    network = network_of(n_genes=n_genes)
    counts, types, batch = counts_of(n_cells, n_genes), types_of(n_cells), torch.zeros(n_cells, dtype=torch.long)
    network.initialise(counts, types)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    bound, latent = network(counts, types, batch, torch.zeros(n_cells, 4), n_iterations=3)
    assert bound.isfinite().all()
    assert latent.isfinite().all()


def test_initialise_from_cells_without_a_type():
    network = network_of()
    network.initialise(counts_of(30), torch.zeros(30, dtype=torch.long))
    assert torch.equal(network.prior_mean[1:], torch.zeros(2, 4))


@pytest.mark.parametrize("n_batches", [0, 1, 4])
@pytest.mark.parametrize("loading_scale", [0.1, 2.0])
def test_penalty_is_the_prior_of_the_parameters(loading_scale, n_batches):
    network = network_of(n_batches=n_batches)
    zero, expected = torch.zeros(()), 0.0
    with torch.no_grad():
        for scale, values in (
            (loading_scale, network.decoder.loadings.weight),
            (TYPE_DISPERSION_SCALE, network.decoder.type_dispersion),
            *([(BATCH_OFFSET_SCALE, network.decoder.batch_offset)] if n_batches else []),
        ):
            prior = torch.distributions.Normal(0, scale)
            expected += (prior.log_prob(zero) - prior.log_prob(values)).sum()
        torch.testing.assert_close(network.decoder.penalty(loading_scale=loading_scale), expected)


# ---- training of any network


def line(*, target: float = 3.0) -> tuple[nn.Module, callable]:
    network = nn.Linear(1, 1)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)

    def loss(network, generator):
        x = torch.randn(32, 1, generator=generator)
        return ((network(x) - target * x) ** 2).mean()

    return network, loss


def plan(**changes) -> TrainingPlan:
    return TrainingPlan(
        **{"n_steps": 60, "learning_rate": 0.2, "seed": 0, "device": "cpu", "averaging": 0.0, "n_warmup": 5, **changes}
    )


def test_training_learns():
    network, loss = line()
    history = train(network, loss, plan(n_steps=210, validate_every=50))
    assert list(history["step"]) == [50, 100, 150, 200, 210]
    assert history["loss"].iloc[-1] < 0.1 * history["loss"].iloc[0]
    assert network.weight.item() == pytest.approx(3, abs=0.1)
    assert "validation" not in history


@pytest.mark.parametrize(
    ("losses", "n_looks"),
    [([5, 4, 3, 4, 3, 2, 3, 2, 2, 1], 9), ([5, 5, 5, 1], 4), ([5, 4, 3, 2, 1, 0.5], 6)],
)
def test_training_ends_where_validation_gains_nothing(losses, n_looks):
    network, loss = line()
    given = iter([*losses, *[9] * 6])
    how = plan(n_steps=len(losses), validate_every=1, patience=3)
    history = train(network, loss, how, validation=lambda network: next(given))
    assert list(history["validation"]) == losses[:n_looks]


def test_weights_of_the_best_validation_are_kept_with_their_buffers():
    network, loss = line()
    network.register_buffer("n_seen", torch.zeros(()))
    seen = []

    def counted(network, generator):
        network.n_seen += 1
        return loss(network, generator)

    def validation(network):
        seen.append((float(network.weight), int(network.n_seen)))
        return (network.weight - 1).abs().sum()

    history = train(network, counted, plan(validate_every=1), validation=validation)
    assert [n_seen for _, n_seen in seen] == list(range(1, 61))
    assert (float(network.weight), int(network.n_seen)) == seen[history["validation"].argmin()] != seen[-1]


def test_averaged_weights_lie_behind_the_last():
    last, loss = line()
    train(last, loss, plan(n_steps=10))
    averaged, loss = line()
    train(averaged, loss, plan(n_steps=10, averaging=0.99))
    assert 0 < float(averaged.weight) < float(last.weight)


@pytest.mark.parametrize("device", ["quantum", "", "cuda", "gpu"])
def test_device_that_is_not_there(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"[Dd]evice"):
        device_of(device)


# ---- training of the autoencoder


@pytest.fixture(scope="module")
def prepared(example_cells) -> AnnData:
    return prepare(example_cells, PrepareSettings(label_key="bulk_labels", n_genes=100, keep_genes="none", test=0.2))


def fitted_with_history(adata, **changes) -> tuple[GeneAutoencoder, pd.DataFrame]:
    settings = AutoencoderSettings(**{"n_latent": 4, "n_steps": 30, **changes})
    return fit_autoencoder(adata, settings, seed=0, device="cpu", provenance={"seed": 0})


def fitted(adata, **changes) -> GeneAutoencoder:
    return fitted_with_history(adata, **changes)[0]


@pytest.fixture(scope="module")
def autoencoder(prepared) -> GeneAutoencoder:
    """Autoencoder of two batches, after two steps."""
    cells = prepared.copy()
    cells.obs["batch"] = pd.Categorical(np.where(np.arange(cells.n_obs) % 2, "one", "two"))
    found = fitted(cells, n_steps=2)
    assert len(found.adapters) > 0
    return found


def simulated(n_cells: int, n_genes: int = 200) -> tuple[CountAutoencoder, AnnData]:
    """A network of random parameters, and cells drawn from it; the last quarter are test cells."""
    truth = network_of(n_genes=n_genes, n_types=3, n_latent=2)
    with torch.no_grad():
        truth.prior_sum.mul_(2)
        truth.decoder.paced_dispersion.mul_(0.3).add_(0.2)
        types = torch.randint(3, (n_cells,), generator=seeded(1))
        latent = truth.prior_mean[types] + torch.randn(n_cells, 2, generator=seeded(2))
        expression = truth.decoder.decode(latent, torch.zeros(n_cells, dtype=torch.long)).exp()
        r = truth.decoder.observation(types).log_inverse_dispersion.exp()
        library = 500 + 1000 * torch.rand(n_cells, 1, generator=seeded(3))
        rate = torch._standard_gamma(r, generator=seeded(4)) / r * expression * library
        counts = torch.poisson(rate, generator=seeded(5))
    split = np.repeat(["train", "validation", "test"], [n_cells * 5 // 8, n_cells // 8, n_cells // 4])
    obs = pd.DataFrame({"cell_type": pd.Categorical(np.array(list("abc"))[types]), "split": split})
    return truth, AnnData(sparse.csr_matrix(counts.numpy()), obs=obs.set_axis(obs.index.astype(str)))


@pytest.mark.slow
def test_model_that_cells_are_sampled_from_is_recovered():
    truth, adata = simulated(4000)
    found = fitted(adata, n_latent=2, loading_scale=0.6, n_steps=400).network
    test = adata[adata.obs["split"] == "test"]
    counts, types = to_tensor(test.X.toarray()), population_codes(test, ("a", "b", "c"))
    batch, noise = torch.zeros(test.n_obs, dtype=torch.long), torch.randn(test.n_obs, 2, generator=seeded())
    start = CountAutoencoder(truth.shape)
    start.initialise(counts, types)
    with torch.no_grad():
        bounds = [float(n(counts, types, batch, noise, n_iterations=12)[0].mean()) for n in (start, found, truth)]
        weights = [n.decoder.loadings.weight for n in (found, truth)]
        axes = [torch.linalg.qr(weight - weight.mean(dim=0))[0] for weight in weights]
        distances = [torch.cdist(n.prior_mean, n.prior_mean) for n in (found, truth)]
        dispersions = [n.decoder.observation(torch.arange(3)).log_inverse_dispersion for n in (found, truth)]
    assert bounds[1] < bounds[2] + 1 < bounds[0] - 5
    assert torch.linalg.svdvals(axes[0].T @ axes[1]).min() > 0.99
    torch.testing.assert_close(*distances, atol=0, rtol=0.2)
    by_type = [d - d.mean(dim=0) for d in dispersions]
    for one, other in (dispersions, by_type):
        assert torch.corrcoef(torch.stack([one.ravel(), other.ravel()]))[0, 1] > 0.9


def test_test_cells_are_not_trained_on(prepared):
    changed = prepared.copy()
    test = (changed.obs["split"] == "test").to_numpy()
    changed.X = sparse.csr_matrix(np.where(test[:, None], 7, changed.X.toarray()).astype(np.float32))
    found = [fitted_with_history(adata, n_steps=5, sub_populations="none") for adata in (prepared, changed)]
    one, other = (autoencoder.network.state_dict() for autoencoder, _ in found)
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert found[0][1].equals(found[1][1])


def test_prior_means_are_updated_and_latents_rotated(prepared):
    cells = prepared[prepared.obs["split"] == "train"].copy()
    found = fitted(cells, n_steps=200, sub_populations="none")
    types = population_codes(cells, found.cell_types)
    posterior = found.network.encode(to_tensor(cells.X.toarray()), types, torch.zeros(cells.n_obs, dtype=torch.long))
    common = types.bincount().argsort()[-3:]
    means = torch.stack([posterior.mean[types == t].mean(dim=0) for t in common])
    torch.testing.assert_close(found.network.prior_mean[common], means, atol=0.15, rtol=0)
    precision = posterior.precision.mean(dim=0)
    torch.testing.assert_close(precision, torch.diag(precision.diagonal()), atol=1e-3, rtol=0)
    assert (precision.diagonal().diff() < 0).all()
    loadings = found.network.decoder.loadings.weight
    assert (loadings.amax(dim=0) == loadings.abs().amax(dim=0)).all()


def test_global_random_state_is_left_alone(prepared):
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    fitted(prepared, n_steps=2)
    assert torch.equal(torch.randn(3), expected)


def test_sampled_rows_are_of_all_cells_and_of_each_type():
    cell_type = pd.Series(pd.Categorical(["common"] * 50_000 + ["rare"] * 900 + ["rarest"] * 30))
    training = np.arange(0, 50_930)[np.arange(50_930) % 10 != 9]
    chosen = sample_rows(cell_type, training, "train", n_cells=1000, seed=0)
    assert set(chosen) <= set(training)
    assert len(set(chosen)) == len(chosen)
    numbers = cell_type.iloc[chosen].value_counts()
    assert 960 <= numbers["common"] <= 1000
    assert numbers["rare"] == 500
    assert numbers["rarest"] == 27
    assert np.array_equal(chosen, sample_rows(cell_type, training, "train", n_cells=1000, seed=0))
    assert not np.array_equal(chosen, sample_rows(cell_type, training, "train", n_cells=1000, seed=1))
    held_out = sample_rows(cell_type, np.arange(9, 50_930, 10), "validation", n_cells=20, seed=0)
    assert cell_type.iloc[held_out].value_counts().to_dict() == {"common": 150, "rare": 90, "rarest": 3}
    assert not np.array_equal(chosen, sample_rows(cell_type, training, "validation", n_cells=1000, seed=0))


@pytest.fixture(scope="module")
def planted(prepared) -> AnnData:
    """Cells of which B cells alone have counts that a few dimensions of all cells cannot explain."""
    cells = prepared.copy()
    counts = cells.X.toarray()
    is_b = (cells.obs["cell_type"] == "CD19+ B").to_numpy()
    counts[is_b, :10] = np.random.default_rng(0).poisson(20, size=(is_b.sum(), 10))
    cells.X = sparse.csr_matrix(counts.astype(np.float32))
    return cells


@pytest.fixture(scope="module")
def adapted(planted) -> GeneAutoencoder:
    """Autoencoder of one dimension, which gives some populations adapters."""
    return fitted(planted, n_latent=1)


def same_adapters(one: Adapters, other: Adapters) -> bool:
    equal = all(torch.equal(value, other.parameters[name]) for name, value in one.parameters.items())
    return one.names == other.names and equal and torch.equal(one.prior_mean, other.prior_mean)


def test_populations_have_adapters_where_held_out_cells_gain(planted, adapted):
    one, shared = adapted, fitted(planted, n_latent=1, shared_decoder=True)
    populations = one.populations
    assert "CD19+ B" in one.adapters
    assert set(one.adapters) <= set(populations) > set(one.sub_populations.names) > set()
    assert len(shared.adapters) == 0
    gain = (one.bounds - shared.bounds)["log_likelihood"]
    cell_type_of = dict(zip(one.sub_populations.names, one.sub_populations.cell_type, strict=True))
    adapted = sorted({cell_type_of.get(name, name) for name in one.adapters})
    assert gain["CD19+ B"] > 10
    assert (gain[adapted] > 0).all()
    assert (gain.drop(adapted) == 0).all()
    network, other = one.network.state_dict(), shared.network.state_dict()
    assert all(torch.equal(network[name], other[name]) for name in network)


def test_adapters_and_latents_depend_on_the_seed_and_not_on_the_number_of_threads(planted, adapted):
    cells = planted.copy()
    cells.obs["sub_population"] = populations_of_cells(cells, adapted)
    made = []
    for n_threads in (1, 3):
        with using_threads(n_threads):
            own = adapters.fit_adapters(adapted.network, adapted.network_types, cells, seed=0)
            own = fit_rare_types(adapted.network, adapted.network_types, cells, own, seed=0)
            made.append((own, encode(planted, replace(adapted, adapters=own)).X))
    (one, latent), (other, again) = made
    assert same_adapters(one, other)
    assert same_adapters(one, adapted.adapters)
    assert np.array_equal(latent, again)


def test_without_validation_cells_none_is_measured_and_only_rare_types_have_an_adapter(planted, monkeypatch):
    monkeypatch.setattr(rare_types, "MAX_CELLS", 60)
    found, history = fitted_with_history(planted[planted.obs["split"] == "train"].copy(), n_latent=1)
    assert list(history) == ["round", "step", "loss"]
    assert history["round"].unique().tolist() == [1, 2]
    n_cells = planted.obs.loc[planted.obs["split"] == "train", "cell_type"].value_counts()
    undivided = set(n_cells.index) - set(found.sub_populations.cell_type)
    assert set(found.adapters) == {name for name in undivided if n_cells[name] < 60}


def test_adapter_that_diverges_is_not_kept(planted, monkeypatch, caplog):
    monkeypatch.setattr(rare_types, "MAX_CELLS", 0)
    monkeypatch.setattr(adapters, "KNOWN_POPULATIONS", replace(adapters.KNOWN_POPULATIONS, loading_scale=np.inf))
    monkeypatch.setattr(softmax, "CURVATURE", -1.0)
    assert len(fitted(planted, n_latent=1).adapters) == 0
    assert "CD19+ B keeps the shared decoder" in caplog.text


def test_decoders_of_rare_types_change_and_their_mean_latents_do_not(planted, adapted, monkeypatch):
    monkeypatch.setattr(rare_types, "MAX_CELLS", 60)
    cells = planted[planted.obs["split"] == "train"].copy()
    cells.obs["sub_population"] = populations_of_cells(cells, adapted)
    before = adapters.fit_adapters(
        adapted.network, adapted.network_types, planted_populations(planted, adapted), seed=0
    )
    after = fit_rare_types(adapted.network, adapted.network_types, cells, before, seed=0)
    n_cells = cells.obs["sub_population"].value_counts()
    rare = {name for name in adapted.cell_types if 0 < n_cells.get(name, 0) < 60}
    assert rare
    assert set(after) == set(before) | rare
    latents = [
        pd.DataFrame(encode(cells, replace(adapted, adapters=used)).X[:, :-1]).groupby(
            cells.obs["sub_population"].values
        )
        for used in (before, after)
    ]
    means = [latent.mean() for latent in latents]
    np.testing.assert_allclose(*means, atol=0.02)
    for name in after:
        kept = name in before and same_adapters(after.subset([name]), before.subset([name]))
        assert kept == (name not in rare)


def planted_populations(planted, autoencoder) -> AnnData:
    cells = planted.copy()
    cells.obs["sub_population"] = populations_of_cells(cells, autoencoder)
    return cells


@pytest.fixture
def on_disk(planted, tmp_path):
    planted.write_h5ad(tmp_path / "prepared.h5ad")
    return read_prepared(tmp_path / "prepared.h5ad", on_disk=True)


def test_cells_on_disk_give_the_same_autoencoder(planted, on_disk):
    assert not sparse.issparse(on_disk.X)
    one, other = (fitted(cells, n_steps=5, sub_populations="none") for cells in (planted, on_disk))
    assert same_adapters(one.adapters, other.adapters)
    state = other.network.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in one.network.state_dict().items())
    latent, again = (encode(cells, one) for cells in (planted, on_disk))
    assert np.array_equal(latent.X, again.X)


def test_no_more_cells_are_read_than_are_trained_on(on_disk, monkeypatch):
    monkeypatch.setattr(fitting, "N_TRAINING", 100)
    monkeypatch.setattr(fitting, "N_HELD_OUT", 20)
    few = {"train": 20, "validation": 20, "start": 20}
    monkeypatch.setattr("bdm.autoencoder.inputs.N_SAMPLED_PER_TYPE", few)
    read = []

    def counted(matrix, rows, columns=None):
        read.append(rows)
        return take_rows(matrix, rows, columns)

    monkeypatch.setattr(matrix, "take_rows", counted)
    fitted(on_disk)
    n_of_types = on_disk.obs["split"].groupby(on_disk.obs["cell_type"], observed=True).value_counts().unstack(0)
    assert len(read[0]) < 100 + few["train"] * n_of_types.shape[1] < n_of_types.loc["train"].sum()
    assert len(read[1]) < n_of_types.loc["validation"].sum()
    assert not (on_disk.obs["split"].to_numpy()[np.concatenate(read[:2])] == "test").any()
