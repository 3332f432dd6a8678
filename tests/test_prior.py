from dataclasses import replace
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bdm._core.errors import InputError, TrainingError
from bdm.autoencoder.latent import LatentCells
from bdm.autoencoder.moments import (
    Mixture,
    Normal,
    PopulationMoments,
    fit_whitening,
    matrix_power,
    population_moments,
    sample_components,
)
from bdm.hierarchy.build import branch_level, build_hierarchy
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.prior.base import FittedPrior, PriorData
from bdm.prior.diffusion import DiffusionPrior
from bdm.prior.mixture import GaussianMixturePrior, HierarchicalSampler, dpm_solver, noise_levels
from bdm.prior.network import BranchNetwork, NetworkShape, held_out_mask
from bdm.prior.populations import MERGING_FACTOR, BranchPopulations
from bdm.prior.transport import (
    MixtureMap,
    gaussian_transport,
    gaussian_trend,
    normal_flow,
)
from bdm.settings import HierarchySettings, TrainSettings


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_covariance(n_dims: int, seed: int) -> Tensor:
    root = torch.randn(n_dims, n_dims, generator=generator(seed), dtype=torch.float64)
    return root @ root.T / n_dims + 0.2 * torch.eye(n_dims)


# ---- denoised cells


def moments_of(mean: Tensor, covariance: Tensor) -> PopulationMoments:
    n = len(mean)
    return PopulationMoments(tuple("abcd"[:n]), mean, covariance, torch.ones(n), torch.zeros(n))


def apart(n: int) -> Hierarchy:
    """Tree of a root without length, and n populations."""
    leaves = (Branch(name, "root", 0.0, 10) for name in "abcd"[:n])
    return Hierarchy((Branch("root", None, 400.0, 10 * n), *leaves), 400.0, 0.9)


def diffusion(moments: PopulationMoments, *, width: int = 16) -> DiffusionPrior:
    """Prior of distant populations, with an untrained network without zeros."""
    hierarchy, n_dims = apart(len(moments.mean)), moments.mean.shape[1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = BranchNetwork(NetworkShape(n_dims, len(hierarchy.branches), width=width, n_layers=2))
        for layer in (network.leave, *(block.out for block in network.blocks)):
            nn.init.normal_(layer.weight, std=0.3)
    return DiffusionPrior(hierarchy, BranchPopulations.from_moments(moments, hierarchy), network)


THREE = moments_of(torch.zeros(3, 3), torch.eye(3).repeat(3, 1, 1))


def test_network_sees_standardised_cells():
    covariance = 9 * random_covariance(3, 1).float()
    moments = moments_of(torch.full((3, 3), 5.0), covariance.repeat(3, 1, 1))
    populations = BranchPopulations.from_moments(moments, apart(3))
    x = 5 + torch.randn(4000, 3, generator=generator()) @ matrix_power(covariance + 4 * torch.eye(3), 0.5)
    standardised = populations.standardise(x, torch.tensor([2.0]), torch.tensor([1]))
    torch.testing.assert_close(torch.cov(standardised.T), torch.eye(3), atol=0.1, rtol=0)
    torch.testing.assert_close(standardised.mean(dim=0), torch.zeros(3), atol=0.1, rtol=0)


def test_cells_without_noise_stay_as_they_are():
    x, prior = torch.randn(5, 3, generator=generator()), diffusion(THREE)
    errors = [
        float((prior.denoise(x, torch.tensor([s]), torch.tensor([1])) - x).detach().abs().max())
        for s in (1.0, 1e-2, 1e-5)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-4


# ---- noise levels


def test_noise_levels_go_down_from_high_to_low():
    rng = np.random.default_rng(0)
    intervals = [(50.0, 0.0), (1e-3, 0.0), (0.02, 0.0), (3.0, 2.999999), (50.0, 49.0), (0.31, 0.3), (0.02, 0.01)]
    intervals += [tuple(sorted(rng.uniform(0, 50, size=2), reverse=True)) for _ in range(200)]
    intervals += [(high, high * rng.uniform()) for high in 10 ** rng.uniform(-3, 1.6, size=200)]
    for high, low in intervals:
        for n_levels in (2, 3, 20):
            sigmas = noise_levels(high, low, sigma_max=50.0, n_levels=n_levels)
            assert sigmas[0] == high
            assert sigmas[-1] == low
            assert all(above > below for above, below in pairwise(sigmas))
            assert len(sigmas) <= n_levels + 2


def test_noise_levels_of_the_whole_way_are_karras():
    sigmas = noise_levels(80.0, 0.0, sigma_max=80.0, n_levels=18, sigma_min=0.002)
    i = np.arange(18)
    expected = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigmas, [*expected, 0])


# ---- sampler, on a normal population, whose denoiser is known


def normal_denoiser(mean: Tensor, covariance: Tensor):
    def denoise(x: Tensor, sigma: float) -> Tensor:
        gain = covariance @ torch.linalg.inv(covariance + sigma**2 * torch.eye(len(mean)))
        return mean + (x - mean) @ gain.T

    return denoise


MEAN, COVARIANCE = torch.tensor([3.0, -1.0, 0.0]).double(), random_covariance(3, 1)


def start(n_cells: int, sigma: float) -> Tensor:
    noise = torch.randn(n_cells, 3, generator=generator(), dtype=torch.float64)
    return MEAN + noise @ matrix_power(COVARIANCE + sigma**2 * torch.eye(3), 0.5)


def assert_moments(x: Tensor, mean: Tensor, covariance: Tensor, *, tolerance: float = 0.06) -> None:
    torch.testing.assert_close(x.mean(dim=0), mean, atol=tolerance, rtol=0, check_dtype=False)
    torch.testing.assert_close(torch.cov(x.T), covariance, atol=tolerance, rtol=0.03, check_dtype=False)


def test_solver_is_of_second_order():
    exact = matrix_power(COVARIANCE + 4 * torch.eye(3), 0.5) @ matrix_power(COVARIANCE + 900 * torch.eye(3), -0.5)
    x = start(50, 30.0)
    expected = MEAN + (x - MEAN) @ exact
    errors = []
    for n_steps in (20, 40, 80):
        sigmas = np.geomspace(30, 2, n_steps + 1).tolist()
        errors.append(float((dpm_solver(normal_denoiser(MEAN, COVARIANCE), x, sigmas) - expected).norm()))
    assert errors[0] / errors[1] > 3.5
    assert errors[1] / errors[2] > 3.5


@pytest.mark.parametrize("sigmas", [[9.0, 2.0, 0.1, 0.0], [0.1, 2.0, 9.0]], ids=["down", "up"])
def test_solver_is_exact_for_a_point(sigmas):
    x = dpm_solver(lambda x, sigma: MEAN.expand_as(x), start(5, sigmas[0]), sigmas)
    torch.testing.assert_close(x, MEAN + (start(5, sigmas[0]) - MEAN) * sigmas[-1] / sigmas[0])


def test_trend_at_the_start_saves_steps():
    denoise = normal_denoiser(MEAN, COVARIANCE)
    x, near = start(50, 9.0), 9.0 * (1 - 1e-4)
    trend = gaussian_trend(Normal(MEAN, COVARIANCE), 9.0)(x)
    x_near = dpm_solver(denoise, x, [9.0, near])
    measured = (denoise(x_near, near) - denoise(x, 9.0)) / np.log(near / 9.0)
    torch.testing.assert_close(trend, measured, rtol=1e-2, atol=1e-3)

    to = matrix_power(COVARIANCE + 4 * torch.eye(3), 0.5) @ matrix_power(COVARIANCE + 81 * torch.eye(3), -0.5)
    expected = MEAN + (x - MEAN) @ to
    with_trend, without = (dpm_solver(denoise, x, [9.0, 4.0, 2.0], trend=t) for t in (trend, None))
    assert (with_trend - expected).norm() < 0.75 * (without - expected).norm()


def test_up_and_down_again_returns_the_same_cells():
    denoise = normal_denoiser(MEAN, COVARIANCE)
    x = start(100, 0.02)
    sigmas = noise_levels(30.0, 0.02, sigma_max=30.0, n_levels=150, sigma_min=0.02)
    up = dpm_solver(denoise, x, sigmas[::-1])
    assert float((up - x).norm(dim=1).min()) > 1
    torch.testing.assert_close(dpm_solver(denoise, up, sigmas), x, atol=5e-3, rtol=0)


# ---- transport


@pytest.mark.parametrize("sigma", [0.0, 0.3, 5.0])
def test_transport_gives_the_childs_noised_moments(sigma):
    parent = Normal(MEAN, random_covariance(3, 2) * 4)
    child = Normal(MEAN + 1, random_covariance(3, 3))
    over = gaussian_transport(parent, child, sigma)
    noise = sigma**2 * torch.eye(3)
    mapped = over.matrix.T @ (parent.covariance + noise) @ over.matrix
    torch.testing.assert_close(mapped, child.covariance + noise)
    torch.testing.assert_close(over(parent.mean[None]), child.mean[None])
    assert torch.linalg.eigvalsh(over.matrix).min() > 0  # optimal transport: the gradient of a convex function
    torch.testing.assert_close(over.matrix, over.matrix.T)


# ---- mixtures


def mixture(seed: int, n_components: int, *, apart: float) -> Mixture:
    mean = apart * torch.randn(n_components, 3, generator=generator(seed))
    covariance = [random_covariance(3, 10 * seed + k) for k in range(n_components)]
    weight = 0.1 + torch.rand(n_components, generator=generator(seed))
    return Mixture.from_normals([Normal(*normal) for normal in zip(mean, covariance, strict=True)], weight)


def log_density(of: Mixture, x: Tensor) -> Tensor:
    """Log density of each weighted component, cells x components, by the library."""
    normals = torch.distributions.MultivariateNormal(of.mean, of.covariance)
    return normals.log_prob(x[:, None]) + of.weight.log()


def test_mixture_has_the_moments_and_responsibilities_of_its_components():
    of = mixture(1, 4, apart=2)
    x = of.sample(40_000, generator())
    assert_moments(x, of.moments.mean, of.moments.covariance)
    torch.testing.assert_close(of.responsibilities(x[:9]), log_density(of, x[:9]).softmax(dim=1))


@pytest.mark.parametrize("sigma", [0.05, 1.0, 20.0])
def test_denoised_cells_of_a_mixture_follow_its_score(sigma):
    """Tweedie's formula: ``x + sigma**2 * grad(log p)``."""
    of = mixture(1, 4, apart=2)
    x = of.noised(sigma).sample(9, generator()).requires_grad_(True)
    log_density(of.noised(sigma), x).logsumexp(dim=1).sum().backward()
    torch.testing.assert_close(of.denoised(x.detach(), sigma), x.detach() + sigma**2 * x.grad)


def test_choice_has_the_probabilities():
    probability = torch.tensor([0.0, 0.2, 0.0, 0.8, 0.0]).double()
    chosen = sample_components(probability.expand(20_000, -1), generator())
    share = torch.bincount(chosen, minlength=5) / 20_000
    torch.testing.assert_close(share.double(), probability, atol=0.01, rtol=0)
    assert share[[0, 2, 4]].sum() == 0


def energy(first: Tensor, second: Tensor) -> float:
    """Energy distance of two samples."""
    within = [torch.cdist(x, x).sum() / (len(x) * (len(x) - 1)) for x in (first, second)]
    return float(2 * torch.cdist(first, second).mean() - sum(within))


@pytest.mark.parametrize("apart", [0.5, 4.0])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
def test_mixture_transport_gives_the_target(sigma, apart):
    source, target = mixture(1, 5, apart=apart), mixture(2, 3, apart=apart)
    x = source.noised(sigma).sample(2000, generator(1))
    mapped = MixtureMap(source.noised(sigma), target.noised(sigma))(x, generator(2))
    expected, resampled = (target.noised(sigma).sample(2000, generator(seed)) for seed in (3, 4))
    chance = abs(energy(expected, resampled))
    assert energy(mapped, expected) < 0.003 + 5 * chance
    assert energy(x, expected) > energy(mapped, expected) + 0.01


def test_components_of_both_mixtures_stay_in_place():
    source = mixture(1, 5, apart=9)
    below = Mixture(source.weight[:3] / source.weight[:3].sum(), source.mean[:3], source.covariance[:3])
    x = source.noised(0.5).sample(500, generator())
    mapped = MixtureMap(source.noised(0.5), below.noised(0.5))(x, generator(1))
    same = (mapped == x).all(dim=1)
    assert torch.equal(same, source.responsibilities(x).argmax(dim=1) < 3)


def test_flow_of_a_normal_is_what_the_solver_finds():
    sigmas = np.geomspace(20.0, 0.5, 400).tolist()
    x = start(3000, 20.0)
    flowed = normal_flow(Normal(MEAN, COVARIANCE), 20.0, 0.5)(x)
    solved = dpm_solver(normal_denoiser(MEAN, COVARIANCE), x, sigmas)
    torch.testing.assert_close(flowed, solved, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(normal_flow(Normal(MEAN, COVARIANCE), 0.5, 20.0)(flowed), x)
    assert_moments(flowed, MEAN, COVARIANCE + 0.25 * torch.eye(3), tolerance=0.1)


# ---- sampling down a tree, with the exact denoiser of a mixture of normals

POPULATIONS = {"a": 1000, "b": 400, "c": 100, "d": 700}
MEANS = torch.tensor([[4.0, 0.0], [-4.0, 1.0], [0.0, 30.0], [1.0, 36.0]])
COVARIANCES = torch.stack([torch.tensor([[1.0, c], [c, v]]) for c, v in ((0, 1), (0.5, 1), (-0.3, 0.5), (0.2, 2))])
MOMENTS = PopulationMoments(
    tuple(POPULATIONS), MEANS, COVARIANCES, torch.tensor(list(POPULATIONS.values())).float(), torch.zeros(4)
)


def tree_of(*branches):
    return Hierarchy(tuple(Branch(*branch) for branch in branches), 400.0, 0.9)


TREE = tree_of(
    ("root", None, 14.0, 2200),
    ("ab", "root", 3.5, 1400),
    ("a", "ab", 0.0, 1000),
    ("b", "ab", 0.0, 400),
    ("cd", "root", 2.5, 800),
    ("d", "cd", 0.0, 700),
    ("c", "cd", 0.0, 100),
)
FLAT = tree_of(("root", None, 400.0, 2200), *((t, "root", 0.0, n) for t, n in POPULATIONS.items()))
STEEP = tree_of(  # one inner branch has no length
    ("root", None, 14.0, 2200),
    ("abc", "root", 14.0, 1500),
    ("ab", "abc", 3.5, 1400),
    ("a", "ab", 0.0, 1000),
    ("b", "ab", 0.0, 400),
    ("c", "abc", 0.0, 100),
    ("d", "root", 0.0, 700),
)


class Counting:
    """Counts cells per evaluation of the denoiser."""

    def denoise(self, x: Tensor, sigma: Tensor, branch: Tensor) -> Tensor:
        vars(self).setdefault("calls", []).append(len(x))
        return super().denoise(x, sigma, branch)


class CountedMixture(Counting, GaussianMixturePrior):
    """Mixture that counts."""


class CountedDiffusion(Counting, DiffusionPrior):
    """Diffusion that counts."""


def exact_prior(
    hierarchy: Hierarchy, moments: PopulationMoments = MOMENTS, *, learned: bool = False
) -> GaussianMixturePrior:
    """Prior of the mixtures below each branch; ``learned`` adds a zero network."""
    populations = BranchPopulations.from_moments(moments, hierarchy)
    if not learned:
        return CountedMixture(hierarchy, populations)
    network = BranchNetwork(NetworkShape(2, len(hierarchy.branches), width=4, n_layers=1))
    return CountedDiffusion(hierarchy, populations, network.eval().requires_grad_(False))


def walk(
    hierarchy: Hierarchy = TREE, moments: PopulationMoments = MOMENTS, *, learned: bool = False
) -> HierarchicalSampler:
    return HierarchicalSampler(exact_prior(hierarchy, moments, learned=learned), n_levels=80)


def n_evaluations(tree: HierarchicalSampler) -> list[int]:
    """Number of cells of each evaluation of the denoiser so far."""
    return vars(tree.prior).get("calls", [])


def test_denoiser_is_exact_for_mixtures():
    x = 20 * torch.randn(8, 2, generator=generator())
    prior = GaussianMixturePrior(TREE, BranchPopulations.from_moments(MOMENTS, TREE, merging_factor=1e9))
    for sigma in (0.1, 3.0, 14.0):
        normals = [Normal(mean, covariance) for mean, covariance in zip(MEANS, COVARIANCES, strict=True)]
        expected = Mixture.from_normals(normals, MOMENTS.weight).denoised(x, sigma).float()
        denoised = prior.denoise(x, torch.tensor([sigma]), torch.tensor([0]))
        torch.testing.assert_close(denoised, expected, atol=1e-3, rtol=1e-4)
        each = prior.denoise(x, torch.full((8,), sigma), torch.tensor([0, 1] * 4))
        torch.testing.assert_close(each[::2], expected[::2], atol=1e-3, rtol=1e-4)
        alone = Mixture.from_normals(normals[:2], MOMENTS.weight[:2]).denoised(x, sigma).float()  # of those below `ab`
        torch.testing.assert_close(each[1::2], alone[1::2], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("sigma", [0.0, 3.5, 14.0, 41.0, 43.0])
def test_components_of_a_branch_have_its_populations_once_each(sigma):
    populations = BranchPopulations.from_moments(MOMENTS, TREE)
    components = populations.components(torch.tensor([sigma]), torch.arange(len(TREE.branches)))
    is_leaf = torch.tensor([branch.level == 0 for branch in TREE.branches])
    times = components.long() @ (populations.below & is_leaf).long()
    assert torch.equal(times, (populations.below & is_leaf).long())
    n_of_root = {0.0: 4, 3.5: 4, 14.0: 2, 41.0: 2, 43.0: 1}
    assert int(components[0].sum()) == n_of_root[sigma]


def test_merged_clade_is_nearly_exact():
    """Merging a clade to a normal changes denoised cells little."""
    level = float(branch_level(float((MEANS[0] - MEANS[1]).norm())))
    tree = replace(TREE, branches=(TREE.root, replace(TREE.branches[1], level=level), *TREE.branches[2:]))
    apart, populations = (
        BranchPopulations.from_moments(MOMENTS, tree, **options) for options in ({"merging_factor": 1e9}, {})
    )
    for factor, expected_components in ((0.999, 2), (1.001, 1)):
        sigma = factor * MERGING_FACTOR * float(np.hypot(1, level))
        assert populations.mixture(1, sigma).n_components == expected_components
    x = apart.mixture(1, sigma).noised(sigma).sample(4000, generator()).float()
    expected, merged = (of.denoised(x, torch.tensor([sigma]), torch.tensor([1])) for of in (apart, populations))
    error = float((merged - expected).square().mean().sqrt())
    assert 0.01 < error < 0.15  # spread of denoised cells is 1


every_tree = pytest.mark.parametrize("hierarchy", [TREE, FLAT, STEEP], ids=["tree", "flat", "steep"])


def assert_population(x: Tensor, population: str) -> None:
    code = MOMENTS.populations.index(population)
    assert_moments(x, MEANS[code], COVARIANCES[code], tolerance=0.16)


@every_tree
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("population", POPULATIONS)
def test_independent_samples_have_each_populations_moments(hierarchy, learned, population):
    x = walk(hierarchy, learned=learned).sample(population, 3000, generator())
    assert_population(x, population)


@every_tree
def test_shared_samples_have_each_populations_moments(hierarchy):
    samples = walk(hierarchy).sample_shared(POPULATIONS, 3000, 0)
    assert list(samples) == list(POPULATIONS)
    for population, x in samples.items():
        assert_population(x, population)


@every_tree
def test_rows_of_shared_samples_have_the_same_ancestor(hierarchy):
    alike = replace(MOMENTS, covariance=torch.eye(2).expand(4, 2, 2))
    samples = walk(hierarchy, moments=alike).sample_shared(POPULATIONS, 50, 0)
    within = {t: x - MEANS[code] for code, (t, x) in enumerate(samples.items())}
    torch.testing.assert_close(within["a"], within["b"], atol=1e-3, rtol=0)
    torch.testing.assert_close(within["c"], within["d"], atol=1e-3, rtol=0)
    alone = [
        walk(moments=alike).sample(t, 50, generator(seed)) - MEANS[code] for seed, code, t in [(0, 0, "a"), (1, 1, "b")]
    ]
    assert float((alone[0] - alone[1]).abs().mean()) > 0.5


def test_shared_samples_do_not_depend_on_other_populations():
    every = walk().sample_shared(POPULATIONS, 12, 3)
    some = walk().sample_shared(["d", "a"], 12, 3)
    assert list(some) == ["d", "a"]
    assert all(torch.equal(x, every[population]) for population, x in some.items())
    assert not torch.equal(walk().sample_shared(["a"], 12, 4)["a"], every["a"])


def test_sharing_costs_less():
    independent, shared = walk(learned=True), walk(learned=True)
    for population in POPULATIONS:
        independent.sample(population, 20, generator())
    shared.sample_shared(POPULATIONS, 20, 0)
    assert sum(n_evaluations(shared)) < 0.7 * sum(n_evaluations(independent))


def test_mixtures_need_no_solver():
    closed = walk()
    for population in POPULATIONS:
        assert_population(closed.sample(population, 3000, generator()), population)
    assert not n_evaluations(closed)


# ---- training


def planted(*, n_each: int = 200, seed: int = 0) -> LatentCells:
    means = torch.tensor([[0.0, 0.0], [6.0, 0.0], [0.0, 5.0]])
    population = torch.repeat_interleave(torch.arange(3), n_each)
    mean = means[population] + torch.randn(3 * n_each, 2, generator=generator(seed)) * torch.tensor([1.0, 0.5])
    return LatentCells(mean, torch.full_like(mean, 0.1), population, ("a", "b", "c"))


def data_of(cells: LatentCells, *, validation: Tensor | None = None) -> PriorData:
    whitening = fit_whitening(cells)
    hierarchy = build_hierarchy(cells, HierarchySettings(n_bootstrap=0), seed=0)
    return PriorData(cells, whitening, population_moments(cells, whitening), hierarchy, validation)


def fitted(*, n_steps: int, seed: int = 0, cells: LatentCells | None = None) -> FittedPrior:
    settings = TrainSettings(width=32, n_layers=2, n_steps=n_steps)
    return DiffusionPrior.fit(data_of(cells or planted()), settings, seed=seed, device="cpu")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))])
def test_diffusion_starts_from_the_mixture_and_is_the_mixture_for_normal_populations(seed):
    cells, x = planted(n_each=500, seed=seed), torch.randn(6, 2, generator=generator())
    data = data_of(cells)
    mixture = GaussianMixturePrior.from_moments(data.moments, data.hierarchy)
    network = BranchNetwork.initial(data, TrainSettings(width=8, n_layers=1), seed=0)
    noised = x, torch.linspace(0.1, 3.0, 6), torch.arange(6) % 5
    untrained = DiffusionPrior(data.hierarchy, mixture.populations, network)
    assert torch.equal(untrained.denoise(*noised), mixture.denoise(*noised))
    fit = fitted(n_steps=2000, seed=seed, cells=cells)
    training, decision = fit.history["training"], fit.history["decision"]
    assert list(training) == ["step", "loss", "validation"]
    assert training["step"].iloc[-1] < 2000  # as held-out cells gain nothing
    assert list(decision) == ["n_cells", "closed_form", "network", "gain", "kept"]
    assert not decision["kept"].any()
    assert fit.prior.name == "mixture"
    assert torch.equal(fit.prior.populations.mean, mixture.populations.mean)  # of all cells


@pytest.mark.parametrize("has_validation", [True, False])
def test_held_out_cells_are_not_trained_on(has_validation):
    cells = planted()
    validation = torch.zeros(600, dtype=torch.bool)
    if has_validation:
        validation[::7] = True
    chosen = held_out_mask(cells, validation, seed=0)
    assert torch.equal(chosen, validation) if has_validation else int(chosen.sum()) == 60
    assert torch.equal(chosen, held_out_mask(cells, validation, seed=0))
    poisoned = replace(cells, mean=torch.where(chosen[:, None], torch.nan, cells.mean))
    data = replace(data_of(cells, validation=validation if has_validation else None), cells=poisoned)
    settings = TrainSettings(width=8, n_layers=1, n_steps=3)
    with pytest.raises(TrainingError, match="loss of validation cells became nan"):  # not the loss of training
        DiffusionPrior.fit(data, settings, seed=0, device="cpu")


def test_type_of_validation_cells_alone_is_trained_on():
    cells = planted()
    validation = cells.population == 1
    validation[held_out := int((cells.population == 0).nonzero()[0])] = True
    assert held_out_mask(cells, validation, seed=0).nonzero().flatten().tolist() == [held_out]


def test_of_few_cells_one_is_held_out():
    cells = planted().subset(torch.arange(8))
    assert held_out_mask(cells, None, seed=0).sum() == 1
    with pytest.raises(InputError, match="No population"):
        held_out_mask(cells.subset(torch.arange(1)), None, seed=0)


def test_same_seed_same_network(monkeypatch):
    monkeypatch.setattr("bdm.prior.diffusion.MIN_GAIN", -np.inf)  # so that the network is kept
    first, same, third = (fitted(n_steps=5, seed=seed).prior.network.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["enter.weight"], third["enter.weight"])


def two_sided() -> LatentCells:
    """Cells of two populations, each of two parts, which no normal resembles."""
    side = torch.randint(2, (1500,), generator=generator()) * 4.0 - 2
    mean = torch.stack([side, torch.randn(1500, generator=generator())], dim=1)
    population = torch.repeat_interleave(torch.arange(2), 750)
    mean[:, 1] += 9 * population
    return LatentCells(mean, torch.full_like(mean, 0.2), population, ("a", "b"))


@cache
def fitted_to_two_sided(*, seed: int = 0) -> FittedPrior:
    """Prior shared by tests."""
    return fitted(n_steps=300, seed=seed, cells=two_sided())


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in (1, 2))])
def test_network_learns_what_is_not_normal(seed):
    fit, data = fitted_to_two_sided(seed=seed), data_of(two_sided())
    assert fit.prior.name == "diffusion"
    assert fit.history["decision"]["gain"][0] > 10
    of_all_cells = GaussianMixturePrior.from_moments(data.moments, data.hierarchy)
    assert torch.equal(fit.prior.populations.mean, of_all_cells.populations.mean)
    x = fit.prior.sampler().sample("a", 1000, generator())
    side = fit_whitening(two_sided()).inverse(x)[:, 0]
    assert float((side.abs() < 1).float().mean()) < 0.1  # 0.38 in the normal population
    assert float((side > 0).float().mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.slow
def test_embeddings_of_added_branches_denoise_their_cells():
    known, settings = data_of(two_sided()), TrainSettings(n_steps=300)
    prior = fitted_to_two_sided().prior
    turned = replace(known.cells, mean=known.cells.mean.flip(1))  # in two parts along another axis
    data = replace(known, cells=turned, moments=population_moments(turned, known.whitening))
    embeddings = prior.fit_added(data, "a", settings, seed=0)["embeddings"]
    start = prior.network.branch.weight[prior.hierarchy.rows["a"]].expand_as(embeddings)
    population = data.cells.populations.index("b")
    x = data.whitening(data.cells.mean[data.cells.population == population])
    sigma = torch.ones(len(x))
    noised = x + sigma[:, None] * torch.randn(x.shape, generator=generator())
    row = torch.full((len(x),), prior.n_rows + data.hierarchy.rows["b"])
    errors = []
    for added in (embeddings, start):
        populations = prior.populations.joined(BranchPopulations.from_moments(data.moments, data.hierarchy))
        extended = replace(prior, populations=populations, network=prior.network.with_branches(added))
        errors.append(float(((extended.denoise(noised, sigma, row) - x) ** 2).mean()))
    assert errors[0] < 0.98 * errors[1]


# ---- density and conditioning


def test_density_is_that_of_the_library():
    of = mixture(1, 4, apart=2)
    x = of.sample(9, generator())
    torch.testing.assert_close(of.log_prob(x), log_density(of, x).logsumexp(dim=1))
    prior = GaussianMixturePrior.from_moments(MOMENTS, TREE)
    of_d = torch.distributions.MultivariateNormal(MEANS[3], COVARIANCES[3])
    torch.testing.assert_close(prior.log_prob(MEANS[:2], "d").float(), of_d.log_prob(MEANS[:2]))


def test_conditioning_is_that_of_cells_with_the_value():
    """Cells of a mixture near the value have the conditional moments."""
    target, direction, value = mixture(1, 3, apart=1.5), torch.tensor([0.6, 0.0, -0.8]), 0.4
    x = target.sample(2_000_000, generator())
    near = x[((x @ direction.double()) - value).abs() < 0.02]
    conditioned = target.conditioned(direction, value)
    assert_moments(near, conditioned.moments.mean, conditioned.moments.covariance, tolerance=0.03)
    sampled = conditioned.sample(20, generator())
    torch.testing.assert_close(sampled @ direction.double(), torch.full((20,), value).double(), atol=1e-4, rtol=0)


def test_conditioned_prior_has_the_conditional_normals_of_its_populations():
    prior = GaussianMixturePrior.from_moments(MOMENTS, TREE)
    direction, value = torch.tensor([0.0, 1.0]), 1.0
    conditioned = prior.condition(direction, value)
    x = conditioned.sampler().sample("b", 4000, generator())
    code = MOMENTS.populations.index("b")
    covariance = COVARIANCES[code]
    expected = MEANS[code, 0] + covariance[0, 1] / covariance[1, 1] * (value - MEANS[code, 1])
    assert float(x[:, 0].mean()) == pytest.approx(float(expected), abs=0.06)
    assert float(x[:, 0].var()) == pytest.approx(float(torch.linalg.det(covariance) / covariance[1, 1]), abs=0.06)
    torch.testing.assert_close(x[:, 1], torch.full((4000,), value), atol=1e-3, rtol=0)
    # c and d are far from the value, so cells below the root come from a and b
    root = conditioned.populations.mixture(0, 0.0)
    assert float(root.weight[[i for i, m in enumerate(root.mean) if abs(float(m[0])) > 2]].sum()) > 0.999
    assert {
        name: x.shape for name, x in conditioned.sampler().sample_shared(POPULATIONS, 5, 0).items()
    } == dict.fromkeys(POPULATIONS, (5, 2))


def test_prior_with_a_network_says_what_it_cannot():
    prior = exact_prior(TREE, learned=True)
    with pytest.raises(InputError, match="The prior 'diffusion' cannot be conditioned"):
        prior.condition(torch.tensor([1.0, 0.0]), 0.0)
    with pytest.raises(InputError, match="cannot give the density of cells"):
        prior.log_prob(MEANS, "a")


# ---- from one population to another


@pytest.mark.parametrize(
    ("first", "second", "expected"), [("a", "b", "ab"), ("b", "a", "ab"), ("a", "d", "root"), ("c", "c", "c")]
)
def test_common_ancestor(first, second, expected):
    assert TREE.common_ancestor(first, second).name == expected


def cells_of(population: str, n_cells: int = 2000) -> torch.Tensor:
    code = MOMENTS.populations.index(population)
    noise = torch.randn(n_cells, 2, generator=generator())
    return MEANS[code] + noise @ torch.linalg.cholesky(COVARIANCES[code]).T


@every_tree
@pytest.mark.parametrize(("from_", "to"), [("a", "b"), ("a", "d"), ("c", "a")])
@pytest.mark.parametrize("learned", [False, True])
def test_transmuted_cells_have_the_moments_of_the_other_population(hierarchy, from_, to, learned):
    tree = walk(hierarchy, learned=learned)
    assert_population(tree.transmute(cells_of(from_), from_, to, generator(1)), to)


@every_tree
@pytest.mark.parametrize(("from_", "to"), [("a", "b"), ("a", "d"), ("a", "a")])
def test_cells_that_are_transmuted_back_are_as_they_were(hierarchy, from_, to):
    tree, x = walk(hierarchy), cells_of(from_, 200)
    there = tree.transmute(x, from_, to, generator())
    back = tree.transmute(there, to, from_, generator())
    assert from_ == to or float((there - x).abs().mean()) > 1
    torch.testing.assert_close(back, x, atol=1e-4, rtol=1e-4)


def test_transmuted_cells_keep_their_place():
    x = cells_of("a")
    there = walk().transmute(x, "a", "d", generator(1))
    assert float(torch.corrcoef(torch.stack([x[:, 0], there[:, 0]]))[0, 1]) > 0.9
