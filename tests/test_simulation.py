from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse
from scipy.stats import nbinom

from bdm.data.prepare import prepare
from bdm.errors import InputError
from bdm.hierarchy.tree import Clade
from bdm.seeds import numpy_generator
from bdm.settings import PrepareSettings
from bdm.simulation.programmes import ProgrammeSettings, height, plant, random_tree
from bdm.simulation.simulate import Population, Simulation, SimulationSettings, shares, simulate, type_sizes

SMALL = SimulationSettings(n_types=6, n_genes=600, fewest_cells=20, most_cells=90)


@pytest.fixture(scope="module")
def simulation() -> Simulation:
    return simulate(SMALL, seed=0)


def clades_below(tree: Clade) -> list[Clade]:
    """List all nodes of a tree but its root."""
    return [node for child in tree.children for node in [child, *clades_below(child)]]


# ---- cells


def test_cells_are_raw_counts_that_can_be_prepared(simulation):
    adata = simulation.adata
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert adata.X.data.min() > 0
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    prepared = prepare(adata, PrepareSettings(genes="all"))
    assert set(prepared.obs["cell_type"].cat.categories) == set(simulation.tree.leaves())


def test_seed_decides_everything(simulation):
    same, other = simulate(SMALL, seed=0), simulate(SMALL, seed=1)
    assert (same.adata.X != simulation.adata.X).nnz == 0
    assert same.tree == simulation.tree != other.tree
    assert [p.genes.tolist() for p in same.programmes] == [p.genes.tolist() for p in simulation.programmes]
    assert not np.array_equal(same.adata.X[:20].toarray(), other.adata.X[:20].toarray())


def test_depth_does_not_change_what_is_planted(simulation):
    deeper = simulate(replace(SMALL, library_size=9000), seed=0)
    np.testing.assert_array_equal(deeper.population.log_expression, simulation.population.log_expression)
    assert deeper.adata.obs.equals(simulation.adata.obs)


def test_sizes_run_from_the_fewest_to_the_most(simulation):
    sizes = simulation.adata.obs["cell_type"].value_counts()
    assert (sizes.min(), sizes.max()) == (20, 90)
    ratios = np.diff(np.log(np.sort(sizes)))
    np.testing.assert_allclose(ratios, ratios.mean(), atol=0.05)
    orders = {tuple(type_sizes(SMALL, seed=seed)) for seed in range(5)}
    assert len(orders) > 1


def test_library_sizes_are_lognormal():
    settings = SimulationSettings(n_types=2, fewest_cells=800, most_cells=800)
    log_size = np.log(simulate(settings, seed=0).adata.X.sum(axis=1).A1)
    assert np.median(log_size) == pytest.approx(np.log(3000), abs=0.05)
    assert log_size.std() == pytest.approx(0.4, abs=0.03)


# ---- trees


@pytest.mark.parametrize("n_types", [2, 7, 8, 64])
@pytest.mark.parametrize("balanced", [False, True])
def test_trees_are_binary_and_have_all_types(n_types, balanced):
    cell_types = [f"type {i}" for i in range(n_types)]
    trees = [random_tree(cell_types, balanced=balanced, generator=numpy_generator(seed)) for seed in (0, 0, 1)]
    assert trees[0] == trees[1]
    assert trees[0] != trees[2] or n_types == 2
    for tree in trees:
        assert sorted(tree.leaves()) == sorted(cell_types)
        assert {len(node.children) for node in [tree, *clades_below(tree)]} == {0, 2}
        if balanced:
            assert height(tree) == np.ceil(np.log2(n_types))


def test_first_division_is_uniform():
    trees = [random_tree(list("abcd"), balanced=False, generator=numpy_generator(seed)) for seed in range(900)]
    sizes = np.bincount([len(tree.children[0].leaves()) for tree in trees])
    np.testing.assert_allclose(sizes[1:] / 900, 1 / 3, atol=0.05)


# ---- programmes


def test_every_branch_has_genes_of_its_own(simulation):
    below = [node.leaves() for node in clades_below(simulation.tree)]
    assert [programme.cell_types for programme in simulation.programmes] == below
    genes = np.concatenate([programme.genes for programme in simulation.programmes])
    assert len(np.unique(genes)) == len(genes)


def test_as_many_genes_change_on_the_way_to_every_type(simulation):
    for cell_type in simulation.tree.leaves():
        n_genes = sum(len(p.genes) for p in simulation.programmes if cell_type in p.cell_types)
        assert n_genes == height(simulation.tree) * SMALL.programmes.n_genes


def test_changes_are_as_large_as_set():
    settings = ProgrammeSettings(n_genes=2000, least_log2_fold_change=0.5, mean_excess=0.7, share_up=0.9)
    tree = Clade(children=(Clade("a"), Clade("b")))
    programmes = plant(tree, settings, n_genes=4000, generator=numpy_generator(0))
    change = np.concatenate([programme.log2_fold_change for programme in programmes])
    assert np.abs(change).min() >= 0.5
    assert np.abs(change).mean() == pytest.approx(1.2, abs=0.03)
    assert (change > 0).mean() == pytest.approx(0.9, abs=0.02)


def test_modules_have_the_same_sizes_of_changes(simulation):
    longest = max(simulation.programmes, key=lambda programme: programme.n_modules)
    assert longest.n_modules > 1
    modules = np.sort(np.abs(np.split(longest.log2_fold_change, longest.n_modules)), axis=1)
    np.testing.assert_allclose(modules, modules[:1].repeat(longest.n_modules, axis=0))


def test_modules_vary_in_activity(simulation):
    loadings = simulation.population.loadings[SMALL.n_factors :]
    assert len(loadings) == sum(programme.n_modules for programme in simulation.programmes)
    planted = np.zeros(SMALL.n_genes)
    for programme in simulation.programmes:
        planted[programme.genes] = programme.log2_fold_change
    assert (np.count_nonzero(loadings, axis=1) == SMALL.programmes.n_genes).all()
    np.testing.assert_allclose(loadings.sum(axis=0), SMALL.programmes.activity_spread * np.log(2) * planted)


def test_expression_changes_by_the_programmes_above_a_type(simulation):
    """But for one constant a type, which keeps the shares' sum at 1."""
    population = simulation.population
    planted = np.zeros_like(population.log_expression)
    for programme in simulation.programmes:
        rows = [population.cell_types.index(cell_type) for cell_type in programme.cell_types]
        planted[np.ix_(rows, programme.genes)] += programme.log2_fold_change
    found = (population.log_expression - population.log_expression[0]) / np.log(2)
    difference = found - (planted - planted[0])
    np.testing.assert_allclose(difference, difference[:, :1].repeat(SMALL.n_genes, axis=1), atol=1e-12)
    np.testing.assert_allclose(np.exp(population.log_expression).sum(axis=1), 1)


def test_planted_changes_are_in_the_counts():
    """But for one factor between two types, which all genes share."""
    settings = SimulationSettings(
        n_types=4,
        n_genes=400,
        fewest_cells=500,
        most_cells=500,
        n_factors=0,
        library_size=20_000,
        programmes=ProgrammeSettings(activity_spread=0),
    )
    simulation = simulate(settings, seed=0)
    counts, cell_type = simulation.adata.X, simulation.adata.obs["cell_type"].to_numpy()
    log2_total = {t: np.log2(counts[cell_type == t].sum(axis=0).A1 + 1) for t in simulation.tree.leaves()}
    unchanged = np.setdiff1d(np.arange(400), np.concatenate([p.genes for p in simulation.programmes]))
    for programme in simulation.programmes:
        outside = next(t for t in log2_total if t not in programme.cell_types)
        found = log2_total[programme.cell_types[0]] - log2_total[outside]
        found = found[programme.genes] - np.median(found[unchanged])
        np.testing.assert_allclose(found, programme.log2_fold_change, atol=0.3)


# ---- noise


def test_counts_are_negative_binomial():
    mean, inverse_dispersion, n_cells = np.array([0.5, 3.0, 40.0]), np.array([0.8, 2.0, 10.0]), 200_000
    population = Population(("a",), np.log(mean / mean.sum())[None], np.zeros((0, 3)), inverse_dispersion)
    library = np.full(n_cells, mean.sum())
    counts = population.sample(np.zeros(n_cells, dtype=int), library, numpy_generator(0))
    np.testing.assert_allclose(counts.mean(axis=0), mean, rtol=0.02)
    np.testing.assert_allclose(counts.var(axis=0), mean + mean**2 / inverse_dispersion, rtol=0.03)
    zeros = nbinom.pmf(0, inverse_dispersion, inverse_dispersion / (inverse_dispersion + mean))
    np.testing.assert_allclose((counts == 0).mean(axis=0), zeros, atol=0.01)


def test_factors_vary_expression_within_a_type():
    log_share, n_cells = np.log(np.array([0.5, 0.25, 0.25])), 100_000
    loadings = np.array([[0.5, 0.0, 0.0]])
    population = Population(("a",), log_share[None], loadings, np.full(3, 1e6))
    counts = population.sample(np.zeros(n_cells, dtype=int), np.full(n_cells, 1e5), numpy_generator(0))
    log_ratio = np.log(counts[:, 0] / counts[:, 1])
    assert log_ratio.std() == pytest.approx(0.5, abs=0.01)
    assert np.log(counts[:, 2] / counts[:, 1]).std() < 0.02


def test_shares_of_large_logits():
    np.testing.assert_allclose(shares(np.array([[1000.0, 1000.0], [-1000.0, -1000.0]])), 0.5)


# ---- refusals


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("n_types", 1),
        ("n_genes", 0),
        ("fewest_cells", 0),
        ("most_cells", 10),
        ("n_factors", -1),
        ("library_size", 0),
        ("library_spread", -0.1),
        ("expression_spread", float("nan")),
        ("inverse_dispersion", 0),
        ("dispersion_spread", float("inf")),
    ],
)
def test_settings_out_of_range(setting, value):
    with pytest.raises(InputError, match=setting):
        SimulationSettings(**{setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [("n_genes", 0), ("least_log2_fold_change", -1), ("mean_excess", -1), ("share_up", 1.1), ("activity_spread", -1)],
)
def test_programme_settings_out_of_range(setting, value):
    with pytest.raises(InputError, match=setting):
        ProgrammeSettings(**{setting: value})


def test_more_genes_planted_than_there_are():
    with pytest.raises(InputError, match="there are 100"):
        simulate(replace(SMALL, n_genes=100), seed=0)
