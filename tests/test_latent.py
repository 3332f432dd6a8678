import numpy as np
import pytest
import torch

from bdm._core.errors import InputError
from bdm.autoencoder import latent as latent_module
from bdm.autoencoder.latent import LatentCells, encode, latent_cells, populations_of_cells, read_latent
from bdm.autoencoder.moments import fit_whitening, matrix_power, population_moments, population_weight
from bdm.autoencoder.sub_populations import N_SHRINK
from bdm.data import matrix
from bdm.data.prepare import prepare
from bdm.prior.network import Minibatches
from bdm.settings import PrepareSettings


def random_cells(*, n_cells=(400, 150, 60), n_dims=5, seed=0) -> LatentCells:
    """Cells of types with means and covariances of their own; the last dimension is known exactly."""
    rng = np.random.default_rng(seed)
    parts = []
    for n in n_cells:
        parts.append(rng.normal(size=(n, n_dims)) @ rng.normal(size=(n_dims, n_dims)) + 3 * rng.normal(size=n_dims))
    scale = rng.uniform(0.1, 1, size=(sum(n_cells), n_dims))
    scale[:, -1] = 0
    return LatentCells(
        torch.tensor(np.concatenate(parts)).float(),
        torch.tensor(scale).float(),
        torch.repeat_interleave(torch.arange(len(n_cells)), torch.tensor(n_cells)),
        tuple("abcdefgh"[: len(n_cells)]),
    )


@pytest.mark.parametrize("power", [-1, -0.5, 0, 0.5, 1, 2])
def test_matrix_power(power):
    root = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    matrix = root @ root.T + torch.eye(6)
    half = matrix_power(matrix, power / 2)
    torch.testing.assert_close(half @ half, matrix_power(matrix, power))
    torch.testing.assert_close(matrix_power(matrix, power) @ matrix_power(matrix, -power), torch.eye(6).double())
    torch.testing.assert_close(matrix_power(matrix, 1), matrix)


def test_matrix_power_of_singular_matrix_is_finite():
    assert matrix_power(torch.ones(4, 4), -0.5).isfinite().all()


def test_whitened_cells_have_unit_covariance_within_types():
    cells = random_cells()
    whitening = fit_whitening(cells)
    x = whitening(cells.mean)
    within = torch.cat([x[cells.population == t] - x[cells.population == t].mean(dim=0) for t in range(3)])
    pooled = within.T @ within / len(within) + whitening.variance(cells.scale)
    torch.testing.assert_close(pooled, torch.eye(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(x.mean(dim=0), torch.zeros(5), atol=1e-4, rtol=0)


def test_constant_dimension_is_no_harm():
    cells = random_cells()
    cells.mean[:, -1] = 4.0
    whitening = fit_whitening(cells)
    x = whitening(cells.mean)
    assert x.isfinite().all()
    assert float(x.std(dim=0)[-1]) < 10
    torch.testing.assert_close(whitening.inverse(x), cells.mean, atol=1e-3, rtol=1e-3)


def test_moments_of_a_large_type_are_those_of_its_draws():
    cells = random_cells(n_cells=(30_000, 500))
    whitening = fit_whitening(cells)
    moments = population_moments(cells, whitening)
    x = whitening(cells.sample(torch.arange(30_000), torch.Generator().manual_seed(0)))
    torch.testing.assert_close(moments.mean[0], x.mean(dim=0), atol=0.03, rtol=0)
    torch.testing.assert_close(moments.covariance[0], torch.cov(x.T), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("n_cells", [1, 2, N_SHRINK, 200])
def test_small_types_shrink_to_the_identity(n_cells):
    cells = random_cells(n_cells=(500, n_cells))
    whitening = fit_whitening(cells)
    covariance = population_moments(cells, whitening).covariance[1]
    x = whitening(cells.mean[cells.population == 1])
    own = torch.cov(x.T, correction=0) + whitening.variance(cells.scale[cells.population == 1])
    trust = n_cells / (n_cells + N_SHRINK)
    torch.testing.assert_close(covariance, trust * own + (1 - trust) * torch.eye(5), atol=1e-4, rtol=1e-4)
    assert torch.linalg.eigvalsh(covariance).min() > 0


def test_mixture_has_the_moments_of_its_draws():
    cells = random_cells(n_cells=(5000, 2000, 800))
    moments = population_moments(cells, fit_whitening(cells))
    mixture = moments.mixture_moments(("a", "c"))
    generator = torch.Generator().manual_seed(0)
    chosen = torch.multinomial(moments.weight * torch.tensor([1, 0, 1]), 40_000, replacement=True, generator=generator)
    noise = torch.randn(40_000, 5, generator=generator)
    roots = torch.stack([matrix_power(covariance, 0.5) for covariance in moments.covariance])
    x = moments.mean[chosen] + torch.einsum("ci,cij->cj", noise, roots[chosen])
    torch.testing.assert_close(mixture.mean, x.mean(dim=0), atol=0.1, rtol=0.02)
    torch.testing.assert_close(mixture.covariance, torch.cov(x.T), atol=0.2, rtol=0.05)


def test_minibatches_hold_populations_by_weight_and_cells_of_a_population_alike():
    population = torch.tensor([0, 2, 0, 2, 2, 0, 2, 2, 2, 2, 2, 2])  # no cell of population 1
    index = Minibatches(torch.argsort(population, stable=True), torch.bincount(population)).draw(
        60_000, torch.Generator().manual_seed(0)
    )
    weight = population_weight(torch.bincount(population)).float()
    share = torch.bincount(population[index], minlength=3) / 60_000
    torch.testing.assert_close(share, weight / weight.sum(), atol=0.01, rtol=0)
    by_cell = torch.bincount(index, minlength=12) / 60_000
    expected = (weight / torch.bincount(population))[population] / weight.sum()
    torch.testing.assert_close(by_cell, expected, atol=0.01, rtol=0)


@pytest.fixture(scope="module")
def encoded(example_cells, small_model):
    prepared = prepare(example_cells, PrepareSettings(label_key="bulk_labels", genes="all", test=0.3))
    prepared = prepared[:, small_model.model.autoencoder.genes.index].copy()
    return prepared, encode(prepared, small_model.model.autoencoder)


def test_encoded_cells(encoded):
    prepared, latent = encoded
    assert latent.shape == (prepared.n_obs, 7)
    assert list(latent.obs_names) == list(prepared.obs_names)
    np.testing.assert_allclose(latent.X[:, -1], np.log(np.asarray(prepared.X.sum(axis=1)).ravel()), rtol=1e-6)
    assert (latent.layers["scale"][:, -1] == 0).all()
    assert (latent.layers["scale"][:, :-1] > 0).all()


def test_encoded_cells_are_the_posteriors_under_their_populations(encoded, small_model):
    prepared, latent = encoded
    autoencoder = small_model.model.autoencoder
    names = latent.obs["sub_population"].iloc[:50]
    assert {"CD14+ Monocyte", "Dendritic/1", "Dendritic/2"} < set(names)
    counts = torch.from_numpy(prepared.X[:50].toarray())
    for cell, name in enumerate(names):
        code, batch = torch.tensor([autoencoder.population_code(name)]), torch.zeros(1, dtype=torch.long)
        with torch.no_grad():
            posterior = autoencoder.network_of(name).encode(counts[cell : cell + 1], code, batch)
        np.testing.assert_allclose(latent.X[cell, :-1], posterior.mean[0], atol=1e-3)
        np.testing.assert_allclose(latent.layers["scale"][cell, :-1], posterior.scale[0], rtol=1e-2)


def test_populations_of_cells_are_the_most_probable_of_their_types(encoded, small_model):
    prepared, latent = encoded
    autoencoder = small_model.model.autoencoder
    population, cell_type = (latent.obs[name].astype(str).to_numpy() for name in ("sub_population", "cell_type"))
    assert set(population) == set(latent.obs["sub_population"].cat.categories) == set(autoencoder.populations)
    for name in autoencoder.cell_types:
        of_type = np.flatnonzero(cell_type == name)
        assert set(population[of_type]) == set(autoencoder.populations_of(name))
    assert autoencoder.populations_of("CD34+") == ("CD34+",)
    of_type = np.flatnonzero(cell_type == "Dendritic")
    codes = torch.full((len(of_type),), autoencoder.cell_types.index("Dendritic"))
    with torch.no_grad():
        counts = torch.from_numpy(prepared.X[of_type].toarray())
        of_label = autoencoder.network.encode(counts, codes, torch.zeros_like(codes)).mean
    chosen = autoencoder.sub_populations.assign("Dendritic", of_label).numpy()
    assert list(population[of_type]) == [f"Dendritic/{number + 1}" for number in chosen]
    assert (population[of_type] == populations_of_cells(prepared[of_type], autoencoder)).all()


def test_type_codes_are_of_the_autoencoders_types(encoded, small_model):
    prepared, latent = encoded
    other = prepared.copy()
    other.obs["cell_type"] = other.obs["cell_type"].cat.reorder_categories(other.obs["cell_type"].cat.categories[::-1])
    np.testing.assert_allclose(encode(other, small_model.model.autoencoder).X, latent.X, atol=1e-5)


@pytest.mark.parametrize(("module", "size"), [(latent_module, 100), (matrix, 1000)])
def test_encoding_does_not_depend_on_blocks(encoded, small_model, module, size, monkeypatch):
    prepared, latent = encoded
    monkeypatch.setattr(module, "BLOCK", size)
    found = encode(prepared, small_model.model.autoencoder)
    np.testing.assert_allclose(found.X, latent.X, atol=1e-3)


def test_test_cells_are_held_out(encoded):
    _, latent = encoded
    learned, every = latent_cells(latent), latent_cells(latent, with_test=True)
    assert len(every.mean) - len(learned.mean) == (latent.obs["split"] == "test").sum() > 0
    assert len(every.mean) == latent.n_obs
    assert int(learned.n_cells.sum()) == len(learned.mean)
    obs = latent.obs[latent.obs["split"] != "test"]
    assert [learned.populations[code] for code in learned.population] == list(obs["sub_population"])
    assert [learned.labels[code] for code in learned.population] == list(obs["cell_type"])


def test_file_of_other_cells_is_no_latent(example_cells, tmp_path):
    example_cells.write_h5ad(tmp_path / "latent.h5ad")
    with pytest.raises(InputError, match="not made by bdm autoencoder"):
        read_latent(tmp_path)
    with pytest.raises(InputError, match="No such file"):
        read_latent(tmp_path / "none")
