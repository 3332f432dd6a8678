"""Levels and clades of cell types with few cells: the noise of their means does not separate them."""

import numpy as np
import pytest
import torch
from synthetic_cells import height, random_tree

from bdm.hierarchy.build import MIN_LEVEL, branch_level, build_hierarchy, clade_support
from bdm.hierarchy.comparison import TreeComparison
from bdm.hierarchy.grow import attachment_point
from bdm.hierarchy.means import MeasuredMeans, clades_of, cluster_means
from bdm.hierarchy.tree import Clade
from bdm.latent.cells import LatentCells
from bdm.latent.moments import Whitening, fit_whitening, population_moments, sampling_variance
from bdm.settings import HierarchySettings

N_DIMS = 31
IDENTITY = Whitening(torch.zeros(N_DIMS), torch.eye(N_DIMS))


def sampled(means: np.ndarray, n_cells: list[int], rng: np.random.Generator) -> LatentCells:
    """Cells of normal types of unit covariance, types as many as means (types x dimensions)."""
    cell_type = np.repeat(np.arange(len(means)), n_cells)
    x = means[cell_type] + rng.normal(size=(len(cell_type), means.shape[1]))
    return LatentCells(
        torch.tensor(x).float(),
        torch.zeros(x.shape),
        torch.tensor(cell_type),
        tuple(f"t{i}" for i in range(len(means))),
    )


def along_a_line(*places: float) -> np.ndarray:
    """Means at these places of the diagonal, types x dimensions."""
    return np.outer(places, np.full(N_DIMS, N_DIMS**-0.5))


def levels_between(distance: float, n_cells: list[int], *, times: int) -> np.ndarray:
    """Levels at which two populations separate, beside a distant population of 2,000 cells that whitens the space."""
    rng = np.random.default_rng(0)
    means = along_a_line(0.0, distance, 100.0)
    draws = (sampled(means, [*n_cells, 2000], rng) for _ in range(times))
    trees = (build_hierarchy(cells, HierarchySettings(n_bootstrap=0), seed=0) for cells in draws)
    return np.array([tree.common_ancestor("t0", "t1").level for tree in trees])


# ---- the variance of a mean


@pytest.mark.parametrize("n_cells", [(2, 30), (10, 10), (10, 1000)])
def test_variance_of_a_mean_is_its_squared_error(n_cells):
    rng = np.random.default_rng(0)
    means = along_a_line(0.0, 9.0)
    errors, estimates = [], []
    for _ in range(300):
        cells = sampled(means, list(n_cells), rng)
        errors.append(((population_moments(cells, IDENTITY).mean.numpy() - means) ** 2).sum(axis=1))
        estimates.append(sampling_variance(cells, IDENTITY).numpy())
    np.testing.assert_allclose(np.mean(errors, axis=0), N_DIMS / np.array(n_cells), rtol=0.06)
    np.testing.assert_allclose(np.mean(estimates, axis=0), N_DIMS / np.array(n_cells), rtol=0.03)


def test_variance_includes_that_prior_means_are_fitted():
    """Latents of normal cells that are observed with normal errors, by expectation maximisation of their prior mean."""
    rng = np.random.default_rng(0)
    error_variance = np.linspace(0.2, 3, N_DIMS)
    shrinkage = error_variance / (1 + error_variance)  # the posterior variance, and the weight of the prior mean
    errors, estimates = [], []
    for _ in range(300):
        observed = rng.normal(size=(10, N_DIMS)) * np.sqrt(1 + error_variance)
        prior_mean = np.zeros(N_DIMS)
        for _ in range(60):
            posterior_mean = shrinkage * prior_mean + (1 - shrinkage) * observed
            prior_mean = posterior_mean.mean(axis=0)
        scale = torch.tensor(np.sqrt(shrinkage)).float().expand(10, N_DIMS)
        cells = LatentCells(torch.tensor(posterior_mean).float(), scale, torch.zeros(10, dtype=torch.long), ("a",))
        errors.append((prior_mean**2).sum())
        estimates.append(float(sampling_variance(cells, IDENTITY)))
    expected = (1 + error_variance).sum() / 10
    assert np.mean(errors) == pytest.approx(expected, rel=0.05)
    # One degree of freedom of all types is that of the type itself here, where there is no other.
    assert np.mean(estimates) == pytest.approx(expected, rel=0.03)


def test_type_of_one_cell_has_the_variance_of_all_types():
    cells = sampled(along_a_line(0.0, 9.0), [1, 2000], np.random.default_rng(0))
    assert sampling_variance(cells, IDENTITY).tolist() == pytest.approx([N_DIMS, N_DIMS / 2000], rel=0.02)


def test_variance_is_in_whitened_units():
    rng = np.random.default_rng(0)
    cells = sampled(along_a_line(0.0, 9.0), [50, 500], rng)
    stretched = LatentCells(
        cells.mean * torch.linspace(0.1, 10, N_DIMS), cells.scale, cells.population, cells.populations
    )
    torch.testing.assert_close(
        sampling_variance(stretched, fit_whitening(stretched)),
        sampling_variance(cells, fit_whitening(cells)),
        rtol=1e-3,
        atol=0,
    )


# ---- levels


@pytest.mark.parametrize("n_cells", [[10, 10], [10, 1000]])
def test_the_same_population_twice_separates_at_the_least_level(n_cells):
    levels = levels_between(0.0, n_cells, times=100)
    assert (levels == MIN_LEVEL).mean() >= 0.95
    assert levels.max() < 1


@pytest.mark.parametrize("n_cells", [10, 30, 100])
def test_level_is_unbiased_in_the_number_of_cells(n_cells):
    levels = levels_between(6.0, [n_cells, n_cells], times=100)
    expected = float(branch_level(6.0))
    assert levels.mean() == pytest.approx(expected, abs=3 * levels.std() / np.sqrt(len(levels)) + 0.01 * expected)


def test_new_type_of_a_known_population_attaches_at_its_leaf():
    hierarchy = build_hierarchy(
        sampled(along_a_line(0.0, 8.0, 30.0), [500] * 3, np.random.default_rng(0)), HierarchySettings(), seed=0
    )
    place = attachment_point(hierarchy, {"t0": -1.0, "t1": 62.0, "t2": 890.0})
    assert (place.branch, place.level, place.distance) == ("t0", MIN_LEVEL, 0)


# ---- clades


def placed(clade: Clade, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Means of types after a random walk along the branches of a tree, by name."""

    def below(clade: Clade, start: np.ndarray) -> dict[str, np.ndarray]:
        if not clade.children:
            return {clade.leaves()[0]: start}
        found = {}
        for child in clade.children:
            spread = np.sqrt(5 * (height(clade) - height(child)) / N_DIMS)
            found |= below(child, start + spread * rng.normal(size=N_DIMS))
        return found

    return below(clade, np.zeros(N_DIMS))


def test_rare_types_are_found_in_their_clades_more_often():
    rng, names = np.random.default_rng(0), tuple(f"t{i}" for i in range(16))
    shares = []
    for _ in range(40):
        tree = random_tree(names, balanced=False, generator=rng)
        means = placed(tree, rng)
        n_cells = np.where(rng.random(16) < 0.5, rng.choice([2, 3, 5], 16), 300).tolist()
        cells = sampled(np.stack([means[name] for name in names]), n_cells, rng)
        moments = population_moments(cells, IDENTITY)
        measured = MeasuredMeans.of(moments)
        as_measured = MeasuredMeans(measured.mean, np.zeros(16))
        found = [TreeComparison.of(cluster_means(of, names), tree) for of in (measured, as_measured)]
        shares.append([1 - comparison.share_missing for comparison in found])
    corrected, uncorrected = np.mean(shares, axis=0)
    gain = np.subtract(*np.transpose(shares))
    assert corrected > 0.65
    assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))
    assert corrected > uncorrected + 0.03


def test_support_of_a_rare_type_is_how_often_samples_have_its_clade():
    """A rare type is somewhat nearer to one of two common types than these are to each other."""
    rng, means, clade = np.random.default_rng(0), along_a_line(-2.0, 2.0, 5.2), frozenset({1, 2})
    occurs, support = [], []
    for seed in range(80):
        cells = sampled(means, [300, 300, 5], rng)
        measured = MeasuredMeans.of(population_moments(cells, IDENTITY))
        occurs.append(clade in clades_of(measured))
        of_types = cells.mean.double().numpy(), cells.population.numpy()
        found = clade_support(*of_types, measured.variance, cells.labels, n_bootstrap=20, seed=seed)
        assert found is not None
        support.append(found.get(clade, 0.0))
    assert np.mean(support) == pytest.approx(np.mean(occurs), abs=0.12)
