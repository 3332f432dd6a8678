"""Made-up cells have the tree, the changes and the noise that tests and benchmarks take as the truth."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import nbinom
from synthetic_cells import (
    Population,
    SyntheticCells,
    SyntheticSettings,
    count_blocks,
    height,
    random_tree,
    synthesise,
    type_sizes,
)

from bdm._core.seeds import numpy_generator
from bdm.hierarchy.tree import Clade

SMALL = SyntheticSettings(n_types=6, n_genes=600, min_cells=20, max_cells=90)


@pytest.fixture(scope="module")
def synthetic() -> SyntheticCells:
    return synthesise(SMALL, seed=0)


def clades_below(tree: Clade) -> list[Clade]:
    """List all nodes of a tree but its root."""
    return [node for child in tree.children for node in [child, *clades_below(child)]]


def test_seed_decides_everything(synthetic):
    same, other = synthesise(SMALL, seed=0), synthesise(SMALL, seed=1)
    assert (same.adata.X != synthetic.adata.X).nnz == 0
    assert same.tree == synthetic.tree != other.tree
    assert not np.array_equal(same.adata.X[:20].toarray(), other.adata.X[:20].toarray())


def test_sizes_run_from_the_fewest_to_the_most():
    sizes = type_sizes(SMALL, seed=0)
    assert (sizes.min(), sizes.max()) == (20, 90)
    ratios = np.diff(np.log(np.sort(sizes)))
    np.testing.assert_allclose(ratios, ratios.mean(), atol=0.05)


@pytest.mark.parametrize("n_types", [2, 7, 64])
@pytest.mark.parametrize("balanced", [False, True])
def test_trees_are_binary_and_have_all_types(n_types, balanced):
    cell_types = [f"type {i}" for i in range(n_types)]
    tree = random_tree(cell_types, balanced=balanced, generator=numpy_generator(0))
    assert sorted(tree.leaves()) == sorted(cell_types)
    assert {len(node.children) for node in [tree, *clades_below(tree)]} == {0, 2}
    if balanced:
        assert height(tree) == np.ceil(np.log2(n_types))


def test_every_branch_changes_genes_of_its_own_by_the_same_sizes(synthetic):
    assert [programme.cell_types for programme in synthetic.programmes] == [
        node.leaves() for node in clades_below(synthetic.tree)
    ]
    genes = np.concatenate([programme.genes for programme in synthetic.programmes])
    assert len(np.unique(genes)) == len(genes)
    modules = [np.split(np.abs(p.log2_fold_change), p.n_modules) for p in synthetic.programmes]
    sizes = np.sort(np.concatenate(modules), axis=1)
    np.testing.assert_allclose(sizes, sizes[:1].repeat(len(sizes), axis=0))
    assert sizes.min() > SMALL.min_log2_fold_change


def test_as_many_genes_change_on_the_way_to_every_type(synthetic):
    for cell_type in synthetic.tree.leaves():
        n_genes = sum(len(p.genes) for p in synthetic.programmes if cell_type in p.cell_types)
        assert n_genes == height(synthetic.tree) * SMALL.module_size


def test_planted_changes_are_in_the_counts(synthetic):
    """But for one factor between two types, which all genes share."""
    population = replace(synthetic.population, loadings=np.zeros((0, SMALL.n_genes)))
    settings = replace(SMALL, library_size=20_000)
    cell_types = np.repeat(np.arange(SMALL.n_types), 500)
    counts = np.concatenate([b.toarray() for b in count_blocks(population, cell_types, settings, seed=0)])
    log2_total = {
        name: np.log2(counts[cell_types == i].sum(axis=0) + 1) for i, name in enumerate(population.cell_types)
    }
    changed = np.concatenate([programme.genes for programme in synthetic.programmes])
    unchanged = np.setdiff1d(np.arange(SMALL.n_genes), changed)
    expected = {name: np.zeros(SMALL.n_genes) for name in log2_total}
    for programme in synthetic.programmes:
        for name in programme.cell_types:
            expected[name][programme.genes] += programme.log2_fold_change
    first, *others = log2_total
    for other in others:
        found = log2_total[other] - log2_total[first]
        difference = found - np.median(found[unchanged]) - (expected[other] - expected[first])
        assert np.quantile(np.abs(difference), 0.95) < 0.3


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
