"""Tests of genes between sub-populations, which were found in the same counts."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scipy.stats import kstest

from bdm.api import BranchedDiffusion
from bdm.autoencoder.observation import NegativeBinomial
from bdm.data.cells import Cells
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.interpretation.branch_genes import ComparedCells, even_depth, real_differences, real_expression, split_counts
from bdm.interpretation.contrasts import Contrast, Differences, list_contrasts
from bdm.interpretation.interpret import Inputs, interpret, prepare_inputs
from bdm.interpretation.interpretation import branch_gene_rows, branches_adata
from bdm.settings import (
    AutoencoderSettings,
    HierarchySettings,
    InterpretationSettings,
    PrepareSettings,
    Settings,
    TrainSettings,
)

N_CELLS, N_GENES = 600, 300  # of each type
STANDARD_ERROR = np.sqrt(0.05 * 0.95 / N_GENES)  # of the share of p-values below 0.05, if they are uniform
PLANTED = np.arange(40, 60)  # genes that differ within the type "several"


def negative_binomial(mean: np.ndarray, r: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return generator.poisson(mean * generator.gamma(r, 1 / r, size=mean.shape))


def simulated_cells(seed: int) -> AnnData:
    """One population, "one", and two of one type, "several"; library sizes vary, as between real cells."""
    generator = np.random.default_rng(seed)
    share, r = generator.lognormal(size=N_GENES), generator.lognormal(0.7, 0.5, N_GENES)
    share[PLANTED] = 2 * np.median(share)
    change = np.ones((2, N_CELLS, N_GENES))
    change[0, :, :20] = generator.choice([1 / 3, 3], 20)
    change[1, : N_CELLS // 3, PLANTED[::2]], change[1, : N_CELLS // 3, PLANTED[1::2]] = 3, 1 / 3
    library_size = generator.lognormal(np.log(1500), 0.5, (2, N_CELLS, 1))
    mean = library_size * share * change / (share * change).sum(axis=2, keepdims=True)
    return AnnData(
        sparse.csr_matrix(negative_binomial(mean, r, generator).reshape(-1, N_GENES), dtype=np.float32),
        obs=pd.DataFrame({"label": np.repeat(["one", "several"], N_CELLS)}, index=map(str, range(2 * N_CELLS))),
        var=pd.DataFrame(index=[f"gene{number}" for number in range(N_GENES)]),
    )


@pytest.fixture(scope="module")
def fitted() -> BranchedDiffusion:
    settings = Settings(
        prepare=PrepareSettings(genes="all", test=0.5),
        autoencoder=AutoencoderSettings(n_latent=6, n_steps=200, sub_populations=2),
        hierarchy=HierarchySettings(n_bootstrap=0),
        train=TrainSettings(width=16, n_layers=1, n_steps=5),
    )
    return BranchedDiffusion(simulated_cells(0), label_key="label", settings=settings).fit()


@pytest.fixture(scope="module")
def inputs(fitted) -> Inputs:
    return prepare_inputs(fitted.model, fitted.prepared, fitted.generate(20), seed=0)


def contrast_within(inputs: Inputs, cell_type: str) -> Contrast:
    [contrast, _] = [of for of in list_contrasts(inputs.model.hierarchy) if of.node == cell_type]
    assert contrast.divides_type
    return contrast


def differences_in_half(inputs: Inputs, cell_type: str) -> Differences:
    contrast = contrast_within(inputs, cell_type)
    return ComparedCells(inputs.test, inputs.split_test, fitted=False).differences((contrast,), seed=0)[contrast.child]


@pytest.mark.slow
def test_p_values_within_one_population_are_uniform(inputs):
    """In the counts that the sub-populations were not assigned by; elsewhere they are not."""
    contrast = contrast_within(inputs, "one")
    naive = real_differences(inputs.test, real_expression(inputs.test), (contrast,))[contrast.child].p
    assert (naive < 0.05).mean() > 0.05 + 5 * STANDARD_ERROR
    assert kstest(naive, "uniform").pvalue < 0.01
    p = differences_in_half(inputs, "one").p
    assert (p < 0.05).mean() == pytest.approx(0.05, abs=3 * STANDARD_ERROR)
    assert kstest(p, "uniform").pvalue > 0.01
    assert not differences_in_half(inputs, "one").significant.any()


@pytest.mark.slow
def test_planted_differences_between_sub_populations_are_found(inputs):
    found = differences_in_half(inputs, "several")
    significant = found.p_adjusted < 0.05
    assert significant[PLANTED].mean() >= 0.8
    assert np.delete(significant, PLANTED).mean() < 0.01
    changes = found.fold_change.log2[PLANTED]
    assert len({*np.sign(changes[::2])}) == len({*np.sign(changes[1::2])}) == 1
    assert changes[0] * changes[1] < 0


@pytest.mark.slow
def test_halves_are_of_the_cells_and_their_types(inputs, fitted):
    model, prepared = inputs.model, fitted.prepared
    test = prepared[prepared.obs["split"] == "test"]
    split = split_counts(test, {"one"}, model, seed=0)
    of_type = test.X[(test.obs["cell_type"] == "one").to_numpy()]
    assert set(split.cell_type) == {"one/1", "one/2"}
    assert split.counts.shape == of_type.shape
    assert (of_type - split.counts).min() >= 0
    assert split.counts.sum() == pytest.approx(of_type.sum() / 2, rel=0.01)
    again, other = (split_counts(test, {"one"}, model, seed=seed) for seed in (0, 1))
    assert (again.counts != split.counts).nnz == 0
    assert (other.counts != split.counts).nnz > 0
    nothing = split_counts(test, set(), model, seed=0)
    assert nothing.counts.shape == (0, N_GENES)
    no_counts = test.copy()
    no_counts.X = sparse.csr_matrix(np.vstack([np.zeros((1, N_GENES)), test.X[1:].toarray()]), dtype=np.float32)
    assert len(split_counts(no_counts, {"one", "several"}, model, seed=0)) == test.n_obs - 1


@pytest.mark.parametrize("r", [0.3, 2.0, 1e6])
def test_halves_of_negative_binomial_counts_are_independent(r):
    generator, mean, n_cells = np.random.default_rng(0), 4.0, 200_000
    counts = negative_binomial(np.full((n_cells, 1), mean), np.array([r]), generator)
    whole = sparse.csr_matrix(counts, dtype=np.float32)
    half = NegativeBinomial(torch.tensor([np.log(r)])).half(whole, generator)
    assert half.data.min() > 0
    first = half.toarray().ravel()
    second = counts.ravel() - first
    variance = mean / 2 + (mean / 2) ** 2 / (r / 2)
    for part in (first, second):
        assert part.min() >= 0
        assert part.mean() == pytest.approx(mean / 2, rel=0.02)
        assert part.var() == pytest.approx(variance, rel=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.01
    if r == 2:  # as they would not be if each count went to either half by chance alone
        by_chance = generator.binomial(counts.ravel(), 0.5)
        assert np.corrcoef(by_chance, counts.ravel() - by_chance)[0, 1] > 0.3


def test_library_sizes_are_no_difference():
    """Of cells of one population that are divided by their library sizes."""
    generator = np.random.default_rng(0)
    library_size = generator.lognormal(np.log(1000), 0.7, 800)
    share = generator.lognormal(size=N_GENES)
    mean = library_size[:, None] * share / share.sum()
    counts = sparse.csr_matrix(negative_binomial(mean, np.full(N_GENES, 2.0), generator), dtype=np.float32)
    deep = library_size + generator.normal(0, 300, 800) > 1000
    cells = Cells(counts, np.where(deep, "a", "b"))
    contrast = Contrast("node", 1.0, "a", ("a",), ("b",))
    expression = real_expression(cells)
    before = real_differences(cells, expression, (contrast,))["a"]
    after = real_differences(cells, expression, (contrast,), transform=lambda of: even_depth(of, generator))["a"]
    assert (before.p < 0.05).mean() > 0.3
    assert (after.p < 0.05).mean() == pytest.approx(0.05, abs=3 * STANDARD_ERROR)
    np.testing.assert_array_equal(after.fold_change.log2, before.fold_change.log2)
    even = even_depth(cells, generator)
    depth = min(np.quantile(cells.library_size[cells.cell_type == side], 0.25) for side in "ab")
    assert len(even) == (cells.library_size >= depth).sum()
    assert even.library_size.mean() == pytest.approx(depth, rel=0.01)


def test_children_beside_a_divided_type_are_tested_in_all_counts():
    """Below one node, as in a flat tree, a type has all of its counts, and a sub-population the half."""
    flat = Hierarchy(
        (
            Branch("root", None, 3.0, 90),
            Branch("a/1", "root", 0.0, 30, cell_type="a"),
            Branch("a/2", "root", 0.0, 30, cell_type="a"),
            Branch("b", "root", 0.0, 30, cell_type="b"),
        ),
        sigma_max=5.0,
        threshold=0.9,
    )
    node = list_contrasts(flat)
    assert [of.divides_type for of in node] == [True, True, False]
    generator = np.random.default_rng(0)
    names = np.repeat(["a/1", "a/2", "b"], 40)
    whole, split = (Cells(sparse.csr_matrix(generator.poisson(3.0, (120, 9)), dtype=np.float32), names) for _ in "ws")
    found = ComparedCells(whole, split, fitted=True).differences(node, seed=0)
    np.testing.assert_array_equal(found["b"].p, real_differences(whole, real_expression(whole), node)["b"].p)
    assert np.isnan(found["a/1"].p).all()
    changes = real_differences(split, real_expression(split), node)["a/1"].fold_change
    np.testing.assert_array_equal(found["a/1"].fold_change.log2, changes.log2)


@pytest.mark.slow
def test_p_values_are_given_where_they_are_valid(inputs, fitted):
    settings = InterpretationSettings(n_genes=10, n_cells=20)
    found = interpret(inputs, settings, seed=0)
    for of in found.contrasts:
        assert of.test.has_p
        assert of.model.has_p == of.training.has_p == of.equal.has_p == (not of.contrast.divides_type)
    table = branch_gene_rows(found)
    within = table["node"].isin(["one", "several"])
    assert within.any()
    assert table["model_p_adjusted"].isna().equals(within)
    assert table["test_p_adjusted"].notna().all()
    assert found.agreement["n_significant"].notna().all()
    adata = branches_adata(found)
    p = adata.uns["rank_genes_groups"]["pvals"]
    assert {name for name in p.dtype.names if np.isnan(p[name]).all()} == {*inputs.model.populations}

    all_fitted = fitted.prepared.copy()
    all_fitted.obs["split"] = "train"
    again = interpret(prepare_inputs(inputs.model, all_fitted, fitted.generate(20), seed=0), settings, seed=0)
    assert [of.test.has_p for of in again.contrasts] == [not of.contrast.divides_type for of in again.contrasts]
    n_significant = again.agreement.set_index("node")["n_significant"]
    assert n_significant.isna().to_dict() == {node: node in ("one", "several") for node in n_significant.index}
    for of in again.contrasts:
        assert np.isfinite(of.test.score).all()
        assert not (of.contrast.divides_type and of.test.significant.any())


@pytest.mark.slow
def test_too_few_cells_of_a_sub_population_leave_gaps(inputs):
    few = inputs.split_test[np.flatnonzero(inputs.split_test.cell_type != "one/2")]
    found = interpret(replace(inputs, split_test=few), InterpretationSettings(n_genes=10, n_cells=20), seed=0)
    untested = {of.contrast.child for of in found.contrasts if of.test is None}
    assert untested == {"one/1", "one/2"}
