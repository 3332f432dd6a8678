"""Levels and clades of cell types with few cells: the noise of their means does not separate them."""

import numpy as np
import pytest
import torch
from synthetic_cells import height, random_tree
from tree_comparison import TreeComparison

from bdm.api import BranchedDiffusion
from bdm.autoencoder.latent import LatentCells
from bdm.autoencoder.moments import Whitening, population_moments, sampling_variance, without_prior
from bdm.commands.hierarchy import summary_of_tree
from bdm.hierarchy.build import FEW_CELLS, MIN_LEVEL, attachment_point, branch_level, build_hierarchy
from bdm.hierarchy.clustering import (
    MeasuredMeans,
    clade_support,
    cluster_means,
    nearer_types,
    population_clades,
    resample_means,
)
from bdm.hierarchy.files import branch_table
from bdm.hierarchy.tree import MIN_PLACE, Clade, Hierarchy, from_nested
from bdm.plotting.hierarchy_figure import hierarchy as plot_hierarchy
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


def resamples_of(cells: LatentCells, *, n_bootstrap: int, seed: int) -> list[MeasuredMeans]:
    """Means of resamples of cells in whitened space."""
    measured = MeasuredMeans.from_moments(population_moments(cells, IDENTITY))
    suggested, rng = without_prior(cells, IDENTITY).double().numpy(), np.random.default_rng(seed)
    return resample_means(suggested, cells.population.numpy(), measured, n_bootstrap=n_bootstrap, generator=rng)


@pytest.mark.parametrize("n_cells", [[10, 1000], pytest.param([10, 10], marks=pytest.mark.nightly)])
def test_the_same_population_twice_separates_at_the_least_level(n_cells):
    levels = levels_between(0.0, n_cells, times=100)
    assert (levels == MIN_LEVEL).mean() >= 0.95
    assert levels.max() < 1


@pytest.mark.parametrize("n_cells", [10, *(pytest.param(n, marks=pytest.mark.nightly) for n in (30, 100))])
def test_level_is_unbiased_in_the_number_of_cells(n_cells):
    levels = levels_between(6.0, [n_cells, n_cells], times=100)
    expected = float(branch_level(6.0))
    assert levels.mean() == pytest.approx(expected, abs=3 * levels.std() / np.sqrt(len(levels)) + 0.01 * expected)


def test_new_type_of_a_known_population_attaches_at_its_leaf():
    cells = sampled(along_a_line(0.0, 8.0, 30.0), [500] * 3, np.random.default_rng(0))
    hierarchy = build_hierarchy(cells, HierarchySettings(), seed=0)
    place = attachment_point(hierarchy, {"t0": -1.0, "t1": 62.0, "t2": 890.0})
    assert (place.branch, place.level, place.distance) == ("t0", MIN_LEVEL, 0)


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
        measured = MeasuredMeans.from_moments(moments)
        as_measured = MeasuredMeans(measured.mean, np.zeros(16))
        found = [TreeComparison.from_trees(cluster_means(of, names), tree) for of in (measured, as_measured)]
        shares.append([1 - comparison.share_missing for comparison in found])
    corrected, uncorrected = np.mean(shares, axis=0)
    gain = np.subtract(*np.transpose(shares))
    assert corrected > 0.65
    assert gain.mean() > 2 * gain.std() / np.sqrt(len(gain))
    assert corrected > uncorrected + 0.03


def encoded(cells: LatentCells, error_variance: float, rng: np.random.Generator) -> LatentCells:
    """Posteriors of cells that are observed with normal errors, where the prior means equal the observed means."""
    observed = cells.mean.numpy() + np.sqrt(error_variance) * rng.normal(size=cells.mean.shape)
    code, weight = cells.population.numpy(), error_variance / (1 + error_variance)
    prior_mean = np.stack([observed[code == number].mean(axis=0) for number in range(len(cells.populations))])
    mean = torch.tensor(weight * prior_mean[code] + (1 - weight) * observed).float()
    return LatentCells(mean, torch.full(mean.shape, weight**0.5), cells.population, cells.populations)


@pytest.mark.parametrize(("error_variance", "n_rare"), [(3.0, 8), pytest.param(0.0, 5, marks=pytest.mark.nightly)])
def test_support_of_a_rare_type_is_how_often_samples_have_its_clade(error_variance, n_rare):
    """A rare type is somewhat nearer to one of two common types than these are to each other.

    Posterior means of shallow cells vary less than what their counts suggest, which a resample has to restore.
    """
    rng, means, clade = np.random.default_rng(0), along_a_line(-2.0, 2.0, 5.2), frozenset({1, 2})
    occurs, support = [], []
    for seed in range(60):
        cells = encoded(sampled(means, [300, 300, n_rare], rng), error_variance, rng)
        measured = MeasuredMeans.from_moments(population_moments(cells, IDENTITY))
        occurs.append(clade in population_clades(measured, cells.labels))
        found = clade_support(resamples_of(cells, n_bootstrap=20, seed=seed), cells.labels)
        assert found is not None
        support.append(found.get(clade, 0.0))
    assert np.mean(support) == pytest.approx(np.mean(occurs), abs=0.12)
    assert np.std(support) < 0.27  # not nearly 0 or 1 in each sample


def test_types_of_few_cells_are_named_at_the_fit_and_where_they_are_requested(example_cells, tiny_settings, caplog):
    cells = example_cells[example_cells.obs["bulk_labels"].isin(["CD34+", "CD19+ B", "CD56+ NK"])].copy()
    model = BranchedDiffusion(cells, label_key="bulk_labels", settings=tiny_settings).fit()
    model.generate({"CD19+ B": 2})
    model.generate({"CD19+ B": 2, "CD34+": 2})
    warned = "Types of fewer than 50 training cells, too few for realistic cells: "
    named = [message.removeprefix(warned) for message in caplog.messages if message.startswith(warned)]
    assert named == ["CD34+ (13), CD56+ NK (31).", "CD34+ (13)."]


def tree_with_rare_type(place: float, n_cells: int) -> Hierarchy:
    """Tree of four common types on a line, in pairs, and of a type ``t4`` of few cells."""
    means = along_a_line(-12.0, -6.0, 6.0, 12.0, place)
    cells = sampled(means, [300] * 4 + [n_cells], np.random.default_rng(1))
    return build_hierarchy(cells, HierarchySettings(), seed=0)


def test_place_that_few_cells_cannot_support_is_marked():
    """In the middle between two pairs, a type is next to either; next to one type, or with enough cells, it is not."""
    middle = tree_with_rare_type(0.2, 5)
    assert middle.by_name["t4"].place < MIN_PLACE
    assert [branch.name for branch in middle.branches if branch.place_uncertain] == ["t4"]
    beside = tree_with_rare_type(13.0, 5)
    assert beside.by_name["t4"].place == 1
    assert not any(branch.place_uncertain for branch in beside.branches)
    assert tree_with_rare_type(0.2, FEW_CELLS).by_name["t4"].place is None


def test_place_at_the_centre_of_all_cells_is_marked_however_stable_it_is():
    """All resamples have the rare type next to the same type, from which the centre is 2 away, and the next one 8."""
    for place, is_uncertain in ((0.0, True), (5.0, False)):
        cells = sampled(along_a_line(-12.0, 2.0, 10.0, place), [1000] * 3 + [15], np.random.default_rng(0))
        hierarchy = build_hierarchy(cells, HierarchySettings(), seed=0)
        assert hierarchy.common_ancestor("t1", "t3").support == 1
        assert hierarchy.by_name["t3"].place_uncertain == is_uncertain


def test_mark_is_in_figure_and_table():
    hierarchy = tree_with_rare_type(0.2, 5)
    axes = plot_hierarchy(hierarchy)
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label for label in labels if "uncertain" in label] == ["t4  (5, few cells: place uncertain)"]
    meaning = "place uncertain: few cells, elsewhere in the tree in more than 30% of resamples"
    assert axes.get_title(loc="left").endswith(meaning)
    assert meaning not in plot_hierarchy(tree_with_rare_type(13.0, 5)).get_title(loc="left")
    notes = branch_table(hierarchy).set_index("branch")["note"].dropna()
    assert notes.to_dict() == {"t4": "few cells: place uncertain"}
    assert summary_of_tree(hierarchy)["few cells: place uncertain"] == "1 (t4)"


def test_tree_of_the_user_has_no_uncertain_places():
    cells = sampled(along_a_line(-6.0, 6.0, 0.2), [300, 300, 5], np.random.default_rng(1))
    hierarchy = build_hierarchy(cells, HierarchySettings(), seed=0, tree=from_nested([["t0", "t2"], "t1"]))
    assert {branch.place for branch in hierarchy.branches} == {None}


def found_nearer(places: list[float], n_cells: list[int], seed: int, **options: object) -> tuple[str | None, ...]:
    """Find types that are nearer to the sub-populations of ``a``, the first two populations; the others are types."""
    rng, labels = np.random.default_rng(seed), ("a", "a", *"bcdefgh"[: len(places) - 2])
    cells = sampled(along_a_line(*places), n_cells, rng)
    measured = MeasuredMeans.from_moments(population_moments(cells, IDENTITY))
    return nearer_types(measured, resamples_of(cells, n_bootstrap=50, seed=seed), labels, **options)


def test_type_that_is_nearer_by_chance_is_not_reported():
    """One sub-population is as far from the other as from another type; by chance, either is nearer."""
    found = [found_nearer([0.0, -3.0, 3.0, 30.0], [20, 100, 100, 100], seed) for seed in range(100)]
    assert sum(any(of) for of in found) <= 0.05 * 100 + 4  # two standard errors


def test_type_that_is_nearer_is_reported_unless_its_own_place_is_uncertain():
    places = [0.0, -6.0, 2.0, 3.5], [50, 100, 100, 100]
    assert found_nearer(*places, 0) == ("b", None, None, None)
    assert found_nearer(*places, 0, uncertain={"b"}) == ("c", None, None, None)
    assert found_nearer(*places, 0, uncertain={"b", "c"}) == (None,) * 4


def test_nothing_is_nearer_without_resamples():
    cells = sampled(along_a_line(0.0, -6.0, 2.0), [50] * 3, np.random.default_rng(0))
    measured = MeasuredMeans.from_moments(population_moments(cells, IDENTITY))
    assert nearer_types(measured, [], ("a", "a", "b")) == (None,) * 3
