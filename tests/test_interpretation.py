import json
from dataclasses import fields, is_dataclass, replace
from itertools import cycle

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from same_tables import assert_same_table
from scipy import sparse
from scipy.stats import mannwhitneyu, norm

from bdm import pl
from bdm._core.errors import InputError
from bdm._core.files import sha256
from bdm._core.store import checksum_of
from bdm.autoencoder.adapters import Adapters
from bdm.autoencoder.moments import Normal
from bdm.cli import main
from bdm.data.cells import MIN_CELLS_FOR_MEANS, Cells
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.interpretation.ancestral_states import (
    AncestralStates,
    ancestral_states,
    branch_observation_model,
    commitment_along,
    compute_commitment,
    compute_markers,
    decode_to_counts,
    distinct_markers,
    gene_directions,
)
from bdm.interpretation.branch_genes import (
    ComparedCells,
    model_differences,
    model_expression,
    real_differences,
    real_expression,
)
from bdm.interpretation.contrasts import (
    Commitment,
    Contrast,
    ContrastGenes,
    Differences,
    Log2FoldChange,
    agreement,
    fewest_names,
    list_contrasts,
)
from bdm.interpretation.interpret import (
    Inputs,
    agreement_by_node,
    interpret,
    prepare_inputs,
    read_inputs,
)
from bdm.interpretation.interpretation import (
    Interpretation,
    agreement_summary,
    branch_gene_rows,
    branches_adata,
    commitment_rows,
    marker_rows,
    node_rows,
)
from bdm.model.match import fitted_cells
from bdm.model.model import generated_noise, log_expression, type_specific_genes
from bdm.pl import FIGURES
from bdm.plotting.branches import children_label, panels_by_branch
from bdm.plotting.style import clade_label, figure_of
from bdm.prior.mixture import HierarchicalSampler
from bdm.settings import InterpretationSettings

QUICK = InterpretationSettings(n_genes=10, n_cells=50)
TREE = Hierarchy(
    branches=(
        Branch("root", None, 3.0, 90),
        Branch("node", "root", 1.0, 60),
        Branch("a", "node", 0.0, 30),
        Branch("b", "node", 0.0, 30),
        Branch("c", "root", 0.0, 20),
        Branch("d", "root", 0.0, 10),
    ),
    sigma_max=10.0,
    threshold=0.9,
)


def cells_of(n_by_type: dict[str, int], *, n_genes: int = 12, seed: int = 0) -> Cells:
    """Cells with ten times the counts of gene k in type k."""
    generator = np.random.default_rng(seed)
    cell_type = np.repeat(list(n_by_type), list(n_by_type.values()))
    rates = np.full((len(cell_type), n_genes), 3.0)
    for k, name in enumerate(n_by_type):
        rates[cell_type == name, k] *= 10
    return Cells(sparse.csr_matrix(generator.poisson(rates), dtype=np.float32), cell_type)


def split_cells(adata: anndata.AnnData) -> anndata.AnnData:
    """Name a third of the cells test cells."""
    adata = adata.copy()
    adata.obs["split"] = np.where(np.arange(adata.n_obs) % 3 == 0, "test", "train")
    return adata


@pytest.fixture(scope="module")
def inputs(small_model) -> Inputs:
    return prepare_inputs(small_model.model, split_cells(small_model.prepared), small_model.generate(30), seed=0)


@pytest.fixture(scope="module")
def interpretation(inputs):
    return interpret(inputs, QUICK, seed=0)


@pytest.fixture(scope="module")
def files(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpretation")
    small_model.save(folder / "model")
    split_cells(small_model.prepared).write_h5ad(folder / "prepared.h5ad")
    small_model.generate(20).write_h5ad(folder / "generated.h5ad")
    return {"model": folder / "model", "prepared": folder / "prepared.h5ad", "generated": folder / "generated.h5ad"}


def test_a_column_of_the_user_is_no_population_of_the_model(small_model, inputs, caplog):
    cells = split_cells(small_model.prepared)
    cells.obs["sub_population"] = np.where(np.arange(cells.n_obs) % 2, "mine", "Dendritic/1")
    read = prepare_inputs(small_model.model, cells, small_model.generate(30), seed=0)
    for name in ("training", "test", "split_training", "split_test"):
        assert list(getattr(read, name).cell_type) == list(getattr(inputs, name).cell_type)
    fitted_cells(small_model.prepared[:, ::-1].copy(), small_model.model)
    with_column = small_model.prepared.copy()
    with_column.obs["sub_population"] = "mine"
    fitted_cells(with_column, small_model.model)
    assert "fitted on other cells" not in caplog.text


DIVIDED = Hierarchy(  # "b" has three sub-populations, and "new" joins one of "c"
    branches=(
        Branch("root", None, 3.0, 90),
        Branch("b", "root", 1.0, 60, cell_type="b"),
        Branch("node", "root", 1.5, 60),
        Branch("b/1", "b", 0.0, 30, cell_type="b"),
        Branch("below", "b", 0.7, 30, cell_type="b"),
        Branch("b/2", "below", 0.0, 30, cell_type="b"),
        Branch("b/3", "below", 0.0, 30, cell_type="b"),
        Branch("c/1", "node", 0.0, 20, cell_type="c"),
        Branch("joined", "node", 0.5, 20),
        Branch("c/2", "joined", 0.0, 20, cell_type="c"),
        Branch("new", "joined", 0.0, 10),
    ),
    sigma_max=10.0,
    threshold=0.9,
)


def test_contrasts_are_named_by_whole_types_and_divide_a_type_elsewhere():
    contrasts = {
        contrast.child: (contrast.names_inside, contrast.names_outside, contrast.divides_type)
        for contrast in list_contrasts(DIVIDED)
    }
    assert contrasts == {
        "b": (("b",), ("c", "new"), False),
        "node": (("c", "new"), ("b",), False),
        "b/1": (("b/1",), ("b/2", "b/3"), True),
        "below": (("b/2", "b/3"), ("b/1",), True),
        "b/2": (("b/2",), ("b/3",), True),
        "b/3": (("b/3",), ("b/2",), True),
        "c/1": (("c/1",), ("c/2", "new"), True),
        "joined": (("c/2", "new"), ("c/1",), True),
        "c/2": (("c/2",), ("new",), True),
        "new": (("new",), ("c/2",), True),
    }
    assert not any(contrast.divides_type for contrast in list_contrasts(TREE))


def differences_of(cells: Cells, node: str) -> dict[str, Differences]:
    contrasts = tuple(contrast for contrast in list_contrasts(TREE) if contrast.node == node)
    return real_differences(cells, real_expression(cells), contrasts)


def test_real_differences_are_the_test_of_mann_and_whitney():
    cells = cells_of({"a": 20, "b": 15, "c": 25})
    by_child = differences_of(cells, "node")
    of_a, of_b = (cells.expression[cells.cell_type == name].toarray() for name in "ab")
    expected = mannwhitneyu(of_a, of_b, use_continuity=False, method="asymptotic").pvalue
    np.testing.assert_allclose(by_child["a"].p, expected, rtol=1e-3)
    assert by_child["a"].rank[0] == 1
    assert by_child["b"].rank[1] == 1
    np.testing.assert_allclose(by_child["a"].fold_change.log2, -by_child["b"].fold_change.log2, atol=1e-5)
    mean = [cells.cp10k[cells.cell_type == name].mean(axis=0).A1 for name in "ab"]
    np.testing.assert_allclose(by_child["a"].fold_change.log2, np.log2((mean[0] + 1) / (mean[1] + 1)), atol=1e-5)
    assert list(np.flatnonzero(by_child["a"].significant)) == [0]


@pytest.mark.parametrize(("n_by_type", "tested"), [({"a": 2, "b": 30}, set()), ({"a": 3, "b": 30}, {"a", "b"})])
def test_contrasts_of_few_cells_are_left_out(n_by_type, tested):
    assert set(differences_of(cells_of(n_by_type), "node")) == tested


def test_contrast_is_of_the_types_that_have_cells():
    by_child = differences_of(cells_of({"a": 10, "c": 10}), "root")
    assert set(by_child) == {"node", "c"}
    assert by_child["node"].rank[0] == 1


def test_standard_error_is_how_fold_changes_vary_between_samples():
    contrast = Contrast("root", 3.0, "a", ("a", "b"), ("c",))
    changes = []
    for seed in range(300):
        expression = real_expression(cells_of({"a": 8, "b": 16, "c": 12}, seed=seed))
        changes.append(Log2FoldChange.from_expression(expression, contrast))
    spread = np.std([change.log2 for change in changes], axis=0)
    expected = np.sqrt(np.mean([change.standard_error**2 for change in changes], axis=0))
    np.testing.assert_allclose(expected, spread, rtol=0.2)


def test_genes_without_counts_are_not_known_to_be_silent():
    counts = np.zeros((4, 2))
    counts[:, 1] = 100
    counts[2:, 0] = 50
    cells = Cells(sparse.csr_matrix(counts, dtype=np.float32), np.array(["a", "a", "b", "b"]))
    expression = real_expression(cells)
    assert expression.by_population["a"].mean[0] == 0
    one_count = (1e4 / 200) ** 2
    assert expression.squared_error(("a",))[0] == pytest.approx(one_count)


def test_model_differences_of_two_children_mirror(inputs):
    expression = model_expression(inputs.model, n_cells=20, seed=0)
    for contrast in list_contrasts(inputs.model.hierarchy):
        here = model_differences(expression, contrast)
        there = model_differences(expression, replace(contrast, inside=contrast.outside, outside=contrast.inside))
        np.testing.assert_allclose(here.score, -there.score, atol=1e-9)
        np.testing.assert_allclose(here.fold_change.log2, -there.fold_change.log2, atol=1e-9)
        expected = np.nan if contrast.divides_type else 2 * norm.sf(np.abs(here.fold_change.z))
        np.testing.assert_allclose(here.p, expected)


def test_model_expression_follows_generated_counts(small_model):
    """Closed-form mean and variance agree with many generated cells."""
    populations = small_model.hierarchy.populations_of("Dendritic")
    assert len(populations) > 1
    expression = model_expression(small_model.model, n_cells=500, seed=0).mixture(populations)
    cells = Cells.from_anndata(small_model.generate({"Dendritic": 2000}, seed=1))
    frequent = expression.mean > 50
    assert frequent.sum() > 20
    real = cells.cp10k.toarray()[:, frequent]
    np.testing.assert_allclose(real.mean(axis=0), expression.mean[frequent], rtol=0.15)
    ratio = real.var(axis=0) / expression.variance[frequent]
    assert 0.7 < np.median(ratio) < 1.3


def differences(changes: np.ndarray, *, error: float = 0.1, p: np.ndarray | None = None) -> Differences:
    """Differences with fold changes as scores."""
    changes = np.asarray(changes, dtype=float)
    p = np.where(np.abs(changes) > 2, 1e-6, 0.9) if p is None else p
    return Differences(Log2FoldChange(changes, np.full(len(changes), error)), changes, p)


@pytest.mark.parametrize(("noise", "lowest", "highest"), [(0.0, 0.999, 1.0), (10.0, -0.3, 0.3)])
def test_agreement_separates_good_from_useless_scores(noise, lowest, highest):
    generator = np.random.default_rng(0)
    changes = 2 * generator.normal(size=500)
    query = changes * (noise == 0) + noise * generator.normal(size=500)
    scores = agreement(differences(query), differences(changes), n_genes=20)
    assert all(lowest <= scores[name] <= highest + 1e-9 for name in ("pearson", "spearman", "top_shared"))
    assert scores["auprc"] == pytest.approx(1.0) if noise == 0 else scores["auprc"] < 0.3
    assert scores["coverage"] == 1 if noise == 0 else scores["coverage"] < 0.1


def test_coverage_is_right_where_errors_are():
    generator = np.random.default_rng(0)
    changes = generator.normal(size=20000)
    query = changes + np.hypot(0.3, 0.4) * generator.normal(size=len(changes))
    scores = agreement(differences(query, error=0.3), differences(changes, error=0.4), n_genes=20)
    assert scores["coverage"] == pytest.approx(0.95, abs=0.01)


def test_agreement_without_significant_genes_has_no_precision():
    real = differences(np.arange(5.0), p=np.ones(5))
    assert np.isnan(agreement(real, real, n_genes=2)["auprc"])


def test_agreement_has_a_row_for_each_node_and_of_training_cells(inputs, interpretation):
    hierarchy = inputs.model.hierarchy
    nodes = [branch for branch in hierarchy.branches if hierarchy.children[branch.name]]
    table = interpretation.agreement
    assert list(table["node"]) == [branch.name for branch in nodes]
    assert list(table["level"]) == [branch.level for branch in nodes]
    assert table.loc[0, "n_types"] == len(hierarchy.cell_types)
    assert table.loc[0, "n_training"] == len(inputs.training)
    assert table.loc[0, "n_test"] == len(inputs.test)
    assert table.loc[0, "pearson_training"] > table.loc[0, "pearson_equal"] > 0.3
    assert table.filter(like="pearson").abs().max(axis=None) <= 1
    of_root = [of for of in interpretation.contrasts if of.contrast.node == hierarchy.root.name]
    for query, column in (("model", "slope"), ("training", "slope_training"), ("equal", "slope_equal")):
        slopes = [agreement(getattr(of, query), of.test, n_genes=10)["slope"] for of in of_root]
        assert table.loc[0, column] == pytest.approx(np.mean(slopes))


def test_significant_genes_of_several_children_count_once_and_of_untested_ones_not_at_all(inputs):
    of = differences(np.r_[3.0, np.zeros(len(inputs.genes) - 1)])
    contrasts = [Contrast("node", 1.0, name, (name,), tuple({*"abc"} - {name})) for name in "abc"]
    children = tuple(ContrastGenes(contrast, of, None, of, of, of) for contrast in contrasts)
    assert agreement_by_node(children, inputs, n_genes=5)["n_significant"].tolist() == [1]
    untested = tuple(replace(child, test=None) for child in children)
    assert agreement_by_node(untested, inputs, n_genes=5)["n_significant"].isna().all()


def test_as_many_training_cells_as_test_cells(inputs):
    of_training = ComparedCells(inputs.training, inputs.split_training, fitted=True)
    equal = of_training.matched(ComparedCells(inputs.test, inputs.split_test, fitted=False), seed=0).whole
    expected = np.minimum(inputs.training.n_by_type, inputs.test.n_by_type.reindex(inputs.training.n_by_type.index))
    pd.testing.assert_series_equal(equal.n_by_type, expected.astype(int), check_dtype=False, check_names=False)


def test_branch_genes_are_the_top_of_model_and_test_cells(interpretation):
    table = branch_gene_rows(interpretation)
    for of in interpretation.contrasts:
        rows = table[(table["node"] == of.contrast.node) & (table["child"] == of.contrast.child)]
        assert set(range(1, 11)) <= set(rows["model_rank"])
        best = np.argmax(of.model.score)
        first = rows.iloc[0]
        assert first["gene"] == interpretation.genes[best]
        assert first["node_cp10k"] == interpretation.ancestral_states.expression[of.contrast.node].iloc[best]
        assert first["child_cp10k"] == interpretation.ancestral_states.expression[of.contrast.child].iloc[best]
        assert first["model_standard_error"] == of.model.fold_change.standard_error[best]
        if of.test:
            assert set(range(1, 11)) <= set(rows["test_rank"])
            assert ((rows["model_rank"] <= 10) | (rows["test_rank"] <= 10)).all()
        else:
            assert rows["test_rank"].isna().all()
            assert rows["test_score"].isna().all()


# ---- ancestral states


@pytest.fixture(scope="module")
def walk(small_model) -> HierarchicalSampler:
    return small_model.model.sampler()


def test_ancestral_state_is_the_mean_of_its_population(small_model):
    """An exact denoiser keeps the population mean at all levels."""
    model = small_model.model
    states = ancestral_states(model, n_cells=400, seed=0)
    for row, branch in enumerate(model.hierarchy.branches):
        mean = model.moments.mixture_moments(tuple(model.hierarchy.leaves(branch.name))).mean.numpy()
        assert np.linalg.norm(states.x[row] - mean) < 0.15 * model.hierarchy.root.level


def test_ancestral_state_of_a_branch_without_length_is_that_of_a_mixture_of_normals(walk):
    name, level = walk.hierarchy.root.name, walk.hierarchy.root.level
    population = walk.mixture(walk.hierarchy.rows[name], level)
    x = 5 * torch.randn(5, population.mean.shape[1], generator=torch.Generator().manual_seed(0))
    short = replace(walk.hierarchy, sigma_max=level)
    denoised = replace(walk.prior, hierarchy=short).sampler().denoise_at_node(x, name)
    np.testing.assert_allclose(denoised, population.denoised(x, level), atol=1e-3)


def test_ancestral_states_are_decoded(small_model, batch_model):
    for model in (small_model.model, batch_model.model):
        states = ancestral_states(model, n_cells=20, seed=0)
        np.testing.assert_allclose(states.expression.sum(), 1e4, rtol=1e-6)
    walk = model.sampler()
    name = model.autoencoder.populations_of("CD19+ B")[0]
    x = walk.sample_shared([name], 20, 0)[name]
    expected = decode_to_counts(model, x, [name])
    expected = 1e4 * (expected / expected.sum(axis=1, keepdims=True)).mean(axis=0)
    np.testing.assert_allclose(states.expression[name], expected, rtol=1e-6)


def test_share_of_detected_genes_is_the_share_in_sampled_counts(small_model):
    model, name = small_model.model, "Dendritic/1"
    detected = ancestral_states(model, n_cells=300, seed=0).detected[name]
    walk = model.sampler()
    mean = decode_to_counts(model, walk.sample_shared([name], 300, 0)[name], [name]).astype(np.float32)
    generator = np.random.default_rng(0)
    shares = [(branch_observation_model(model, [name]).sample(mean, generator) > 0).mean(axis=0) for _ in range(20)]
    np.testing.assert_allclose(detected, np.mean(shares, axis=0).ravel(), atol=0.03)


def test_adapters_shift_the_sides_of_a_contrast(small_model):
    """A gene that only a type's own decoder raises commits to it."""
    shared = replace(small_model.model.autoencoder, adapters=small_model.model.autoencoder.adapters.subset(()))
    model = replace(small_model.model, autoencoder=shared)
    plain = ancestral_states(model, n_cells=20, seed=0)
    contrast = next(of for of in list_contrasts(model.hierarchy) if of.inside == ("CD56+ NK",))
    adapter = Adapters.from_shared(
        model.autoencoder.network, ["CD56+ NK"], [model.autoencoder.population_code("CD56+ NK")]
    )
    adapter.parameters["offset"][0, 7] += 3
    changed = replace(
        model, autoencoder=replace(model.autoencoder, adapters=model.autoencoder.adapters.updated(adapter))
    )
    before, after = (compute_commitment(of, plain, contrast) for of in (model, changed))
    share = np.exp(log_expression(model, "CD56+ NK")[0][7])
    normalised = np.log1p(share * np.expm1(3))
    np.testing.assert_allclose((after.shift - before.shift)[7], 3 - normalised, atol=1e-5)
    np.testing.assert_allclose(np.delete(after.shift - before.shift, 7), -normalised, atol=1e-5)
    assert list(type_specific_genes(changed, "CD56+ NK").index[:1]) == [model.autoencoder.genes.index[7]]
    with pytest.raises(InputError, match=r"its sub-populations do; name one: .*CD19\+ B/1"):
        type_specific_genes(model, "CD19+ B")


def test_dispersion_of_a_branch_is_weighted_by_its_cells(small_model):
    model, names = small_model.model, ["CD19+ B/1", "Dendritic/1"]
    first, second = (generated_noise(model, name).log_inverse_dispersion.numpy() for name in names)
    n_cells = model.composition.loc[names].sum(axis=1).to_numpy()
    expected = (n_cells[0] * first + n_cells[1] * second) / n_cells.sum()
    assert n_cells[0] != n_cells[1]
    weighted = branch_observation_model(model, names).log_inverse_dispersion
    np.testing.assert_allclose(weighted, expected, atol=1e-5)


# ---- commitment


def test_commitment_is_how_well_noised_cells_are_separated():
    generator = np.random.default_rng(0)
    directions = np.array([[1.0, 0.0, 2.0], [0.5, 3.0, 0.0]])
    covariances = [np.diag([1.0, 2.0, 0.5]), np.array([[1.0, 0.4, 0.0], [0.4, 0.7, 0.0], [0.0, 0.0, 2.0]])]
    means = np.array([[1.0, 0.0, 0.5], [-1.0, 1.0, 0.0]])
    sides = [Normal(torch.tensor(m), torch.tensor(c)) for m, c in zip(means, covariances, strict=True)]
    commitment = commitment_along(directions, *sides)
    for sigma in (0.0, 1.5):
        cells = [
            generator.multivariate_normal(m, c + sigma**2 * np.eye(3), 20000) @ directions.T
            for m, c in zip(means, covariances, strict=True)
        ]
        for gene in range(2):
            u = mannwhitneyu(cells[0][:, gene], cells[1][:, gene]).statistic / 20000**2
            assert commitment.auc(sigma)[gene] == pytest.approx(max(u, 1 - u), abs=0.01)
    assert commitment.shift[0] > 0 > commitment.shift[1]


def test_commitment_level_has_the_auc_of_the_threshold():
    commitment = Commitment(np.array([4.0, -6.0, 0.1]), np.array([1.0, 2.0, 5.0]), np.array([0.5, 2.0, 1.0]))
    levels = commitment.level(0.8)
    assert np.isnan(levels[2])  # apart by less than that without any noise
    assert commitment.auc(0)[2] < 0.8
    for gene in range(2):
        assert commitment.auc(levels[gene])[gene] == pytest.approx(0.8)
    assert (commitment.level(0.9)[:2] < levels[:2]).all()


def test_directions_are_gradients_of_log_expression(small_model):
    model = small_model.model
    x = model.moments.mean[:1].double()

    def log_expression(x):
        y = x @ model.whitening._colour.double() + model.whitening.centre.double()
        network = model.autoencoder.network.double()
        try:
            return network.decoder.decode(y[:, :-1], torch.zeros(len(x), dtype=torch.long)).detach().numpy()
        finally:
            network.float()

    directions = gene_directions(model, np.exp(log_expression(x))[0])
    for k in range(x.shape[1]):
        step = torch.zeros_like(x)
        step[0, k] = 1e-4
        numeric = (log_expression(x + step) - log_expression(x - step))[0] / 2e-4
        np.testing.assert_allclose(directions[:, k], numeric, atol=1e-4)


def test_genes_are_listed_from_early_to_late_with_the_child_that_they_are_higher_in(interpretation):
    table = commitment_rows(interpretation)
    assert table["commitment_level"].is_monotonic_decreasing
    assert table["commitment_level"].notna().all()
    assert (table["auc_without_noise"] >= interpretation.hierarchy.threshold - 1e-9).all()
    shifts = {
        of.contrast.child: pd.Series(of.commitment.shift, interpretation.genes) for of in interpretation.contrasts
    }
    for node, rows in table.groupby("node"):
        if len(interpretation.hierarchy.children[node]) == 2:
            assert not rows["gene"].duplicated().any()
            assert (rows["shift"] > 0).all()
        for row in rows.itertuples():
            assert row.shift == pytest.approx(shifts[row.child][row.gene] / np.log(2))
            below = interpretation.hierarchy.leaves(row.child)
            assert row.cell_types == "; ".join(fewest_names(tuple(below), interpretation.hierarchy))


# ---- nodes


def test_nodes_have_their_support_and_best_genes(inputs, interpretation):
    hierarchy, table = inputs.model.hierarchy, node_rows(interpretation).set_index("node")
    assert list(table.index) == list(interpretation.agreement["node"])
    for name in ("support", "n_cells"):
        assert list(table[name]) == [getattr(hierarchy.by_name[node], name) for node in table.index]
    best = interpretation.genes[np.argmax(interpretation.contrasts[0].model.score)]
    assert table["best_genes"].iloc[0].startswith(f"{best}, ")


# ---- markers and places


def test_markers_mark_their_type():
    cells = cells_of({"a": 20, "b": 20, "c": 20, "d": 20})
    genes = pd.Index([f"gene{k}" for k in range(12)])
    chosen = distinct_markers(cells, genes, TREE.cell_types, n_genes=2)
    assert [of_type[0] for of_type in chosen.values()] == ["gene0", "gene1", "gene2", "gene3"]
    assert all(len(of_type) == 2 for of_type in chosen.values())
    assert len({gene for of_type in chosen.values() for gene in of_type}) == 8


def test_markers_of_few_genes_are_higher_in_their_type():
    """Each protein is a candidate for each type, even without counts."""
    cells = cells_of({"a": 20, "b": 20, "c": 20, "d": 20}, n_genes=6)
    cells = replace(cells, counts=cells.counts @ sparse.diags([1.0] * 5 + [0.0], format="csr"))
    genes = pd.Index([f"gene{k}" for k in range(6)])
    chosen = distinct_markers(cells, genes, TREE.cell_types, n_genes=4)
    assert [of_type[0] for of_type in chosen.values()] == ["gene0", "gene1", "gene2", "gene3"]
    for cell_type, of_type in chosen.items():
        inside, outside = (
            cells.expression[rows].mean(axis=0).A1
            for rows in (cells.cell_type == cell_type, cells.cell_type != cell_type)
        )
        columns = genes.get_indexer(of_type)
        assert (inside[columns] > outside[columns]).all()


def test_given_markers_are_seen_down_the_tree():
    cells = cells_of({"a": 20, "b": 20, "c": 20, "d": 20})
    genes = pd.Index([f"gene{k}" for k in range(12)])
    chosen = {"mine": ("gene2", "gene0"), "yours": ("gene0", "gene1")}
    markers = compute_markers(chosen, cells, cells, genes, TREE)
    assert markers.genes == {"mine": ("gene2", "gene0"), "yours": ("gene1",)}
    assert markers.real.mean["gene0"].idxmax() == "a"
    table = marker_rows(markers)
    assert len(table) == 4 * 3
    assert (table["real_mean"] == table["generated_mean"]).all()
    assert table["real_fraction"].between(0, 1).all()
    assert set(table.loc[table["gene"] == "gene1", "marker_of"]) == {"yours"}
    below = cells.expression[np.isin(cells.cell_type, ["a", "b"])][:, 0]
    assert markers.clades.mean.loc["node", "gene0"] == pytest.approx(below.mean())
    assert markers.clades.fraction.loc["node", "gene0"] == pytest.approx((below > 0).mean())
    frame = pd.DataFrame(np.arange(72.0).reshape(6, 12).T, genes, [branch.name for branch in TREE.branches])
    dots = AncestralStates(np.zeros((6, 2)), frame, frame / 72).dots(["gene2"])
    assert dots.mean.loc["node", "gene2"] == pytest.approx(np.log1p(14))
    assert dots.fraction.loc["node", "gene2"] == pytest.approx(14 / 72)


# ---- scanpy


def test_scanpy_reads_and_plots_the_branches(inputs, interpretation, tmp_path, caplog):
    with caplog.at_level("INFO"):
        branches_adata(interpretation).write_h5ad(tmp_path / "branches.h5ad")
    assert not caplog.messages  # as of anndata, about columns that it converts
    adata = anndata.read_h5ad(tmp_path / "branches.h5ad")
    hierarchy = inputs.model.hierarchy
    assert list(adata.obs_names) == [branch.name for branch in hierarchy.branches]
    assert list(adata.obs["low"]) == [branch.level for branch in hierarchy.branches]
    np.testing.assert_allclose(adata.X, np.log1p(interpretation.ancestral_states.expression.T), rtol=1e-5)
    for of in interpretation.contrasts:
        child = of.contrast.child
        for key, expected in (("rank_genes_groups", of.model), ("rank_genes_groups_test", of.test)):
            if expected:
                table = sc.get.rank_genes_groups_df(adata, child, key=key).set_index("names").loc[interpretation.genes]
                np.testing.assert_allclose(table["scores"], expected.score)
                np.testing.assert_allclose(table["logfoldchanges"], expected.fold_change.log2)
                np.testing.assert_allclose(table["pvals"], expected.p)
                np.testing.assert_allclose(table["pvals_adj"], expected.p_adjusted)
        best = sc.get.rank_genes_groups_df(adata, child)["names"].iloc[0]
        assert best == interpretation.genes[np.argmax(of.model.score)]
        np.testing.assert_allclose(adata[child].layers["shift"][0], of.commitment.shift, rtol=1e-5)
        level = of.commitment.level(hierarchy.threshold)
        np.testing.assert_allclose(adata[child].layers["commitment_level"][0], level, rtol=1e-5)
    assert np.isnan(adata[hierarchy.root.name].layers["score"]).all()

    axes = sc.pl.rank_genes_groups(adata, n_genes=3, show=False)
    assert len(axes) == len(interpretation.contrasts)
    sc.pl.rank_genes_groups_dotplot(adata, n_genes=1, dendrogram=False, show=False)
    plt.close("all")


# ---- figures


def test_names_of_divided_types_leave_room_and_are_no_formulas(interpretation):
    name = "$\\frac{$ and a name as long as those of the cell ontology"
    node = next(iter(interpretation.nodes.values()))
    node = tuple(replace(of, contrast=replace(of.contrast, node=name)) for of in node)
    [panel, *_] = panels_by_branch(replace(interpretation, contrasts=node)).values()
    title, label = panel.title, children_label(node)
    for shown in (title.partition("  ·")[0], label.partition(":")[0]):
        assert len(shown) < 30
        assert shown.startswith(r"\$\frac{")


def test_figures_name_nodes_and_genes(interpretation):
    figure = figure_of(pl.branch_genes(interpretation))
    titles = {axis.get_title() for sub in figure.subfigs for axis in sub.axes}
    for row in interpretation.agreement.itertuples():
        assert any(title.startswith(row.node) for title in titles)
    words = [text.get_text() for text in figure.subfigs[0].axes[0].texts]
    for of in interpretation.contrasts:
        best = ", ".join(interpretation.genes[np.argsort(of.model.rank)[:3]])
        shorter = best.split(", ")[0] in words or ", ".join(best.split(", ")[:2]) in words  # where there is less room
        # sub-populations have no rows in the tree, and their genes are not named
        assert (best in words or shorter) != of.contrast.divides_type
    assert any(of.contrast.divides_type for of in interpretation.contrasts)
    left, right = pl.markers(interpretation)
    assert [text.get_text() for text in left.get_xticklabels()] == [text.get_text() for text in right.get_xticklabels()]


def test_figures_of_a_flat_tree_show_each_population(interpretation):
    tree = interpretation.hierarchy
    leaves = [replace(tree.by_name[name], parent=tree.root.name) for name in tree.populations]
    flat = replace(tree, branches=(tree.root, *leaves))
    assert len(leaves) > len(tree.cell_types)
    children = zip(cycle(interpretation.contrasts), list_contrasts(flat))
    contrasts = tuple(replace(of, contrast=contrast) for of, contrast in children)
    changed = replace(interpretation, hierarchy=flat, contrasts=contrasts)
    rows = figure_of(pl.branch_genes(changed)).subfigs[0].axes[0].get_yticklabels()
    assert [row.get_text().partition("  (")[0] for row in rows] == list(tree.populations)
    [right] = pl.commitment(changed).child_axes
    assert {label.get_text() for label in right.get_yticklabels()} == {
        clade_label(of.contrast.names_inside) for of in contrasts
    }


def test_heat_map_has_early_genes_first_and_dots_where_they_commit(interpretation):
    axis = pl.commitment(interpretation)
    names = [text.get_text() for text in axis.get_yticklabels()]
    [dots] = [line for line in axis.lines if line.get_marker() == "o"]
    levels = np.asarray(dots.get_xdata(), dtype=float)
    n_each = len(names) // len(interpretation.nodes)
    threshold = interpretation.hierarchy.threshold
    for start, node in zip(range(0, len(names), n_each), interpretation.nodes.values(), strict=True):
        of_node = levels[start : start + n_each]
        known = of_node[~np.isnan(of_node)]
        assert (np.diff(known) <= 0).all()
        assert np.isnan(of_node[len(known) :]).all()
        expected = pd.Series(node[0].commitment.level(threshold), interpretation.genes)
        np.testing.assert_allclose(of_node, expected[names[start : start + n_each]], rtol=1e-6)


# ---- on disk


def assert_same(actual, expected, name="interpretation"):
    """Check that two results are bitwise identical in all fields."""
    assert type(actual) is type(expected), name
    if is_dataclass(actual):
        for field in fields(actual):
            assert_same(getattr(actual, field.name), getattr(expected, field.name), f"{name}.{field.name}")
    elif isinstance(actual, pd.DataFrame):
        assert_same_table(actual, expected, check_exact=True, check_names=False, obj=name)
    elif isinstance(actual, np.ndarray):
        assert actual.dtype == expected.dtype, name
        np.testing.assert_array_equal(actual, expected, err_msg=name)
    elif isinstance(actual, tuple) and actual and is_dataclass(actual[0]):
        assert len(actual) == len(expected), name
        for number, (a, b) in enumerate(zip(actual, expected, strict=True)):
            assert_same(a, b, f"{name}[{number}]")
    else:
        assert actual == expected, name


def test_saved_interpretation_is_the_same(interpretation, tmp_path):
    interpretation.save(tmp_path / "interpretation")
    assert_same(Interpretation.load(tmp_path / "interpretation"), interpretation)


def test_interpretation_without_enough_test_cells_is_saved(interpretation, tmp_path):
    untested = tuple(replace(of, test=None, equal=None) for of in interpretation.contrasts)
    agreement = interpretation.agreement.assign(pearson=np.nan)
    few = replace(interpretation, contrasts=untested, agreement=agreement, held_out=False)
    few.save(tmp_path / "few")
    assert_same(Interpretation.load(tmp_path / "few"), few)
    assert agreement_summary(few).startswith("Agreement with half of the cells that the model was fitted to, mean over")


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["bdm", "interpret", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


TABLES = ("nodes", "branch_genes", "commitment", "agreement", "markers")


@pytest.mark.slow
def test_command_writes_everything(files, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert not run(monkeypatch, *files.values(), out, "--n-genes", 5)
    assert {path.name for path in out.iterdir()} == {
        "interpretation.json",
        "interpretation.safetensors",
        "branches.h5ad",
        *(f"{table}.csv" for table in TABLES),
        *(f"{figure}.png" for figure in FIGURES[Interpretation]),
    }
    content = json.loads((out / "interpretation.json").read_text())["interpretation"]
    assert content["held_out"] is True
    record = content["provenance"]
    assert record["settings"]["n_genes"] == 5
    expected = {name: sha256(path) for name, path in files.items() if name != "model"}
    assert record["sha256"] == expected | {"model": checksum_of(files["model"], "model")}
    table = pd.read_csv(out / "branch_genes.csv")
    assert (table[["model_rank", "test_rank"]].min(axis=1) <= 5).all()


def without_gene(adata):
    return adata[:, 1:].copy()


def without_type(adata):
    return adata[(adata.obs["cell_type"] != "Dendritic").to_numpy()].copy()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("generated", without_gene, "lacks the genes"),
        ("generated", without_type, "lacks cells of the types Dendritic"),
        ("prepared", without_type, "lacks cells of the types Dendritic"),
    ],
)
def test_unfit_files_are_rejected(files, tmp_path, small_model, file, change, message):
    adata = small_model.prepared if file == "prepared" else small_model.generate(20)
    changed = tmp_path / "changed.h5ad"
    change(adata.copy()).write_h5ad(changed)
    with pytest.raises(InputError, match=message):
        read_inputs(**{**files, file: changed})


def test_no_more_cells_are_read_than_the_statistics_of_genes_need(files, monkeypatch):
    all_cells = read_inputs(**files)
    monkeypatch.setattr("bdm.interpretation.interpret.MAX_CELLS", 100)
    some = read_inputs(**files)
    for read, whole in ((some.training, all_cells.training), (some.test, all_cells.test)):
        assert len(read) <= 100 < len(whole)
        assert read.n_by_type.index.equals(whole.n_by_type.index)
        few = whole.n_by_type <= MIN_CELLS_FOR_MEANS
        assert read.n_by_type[few].equals(whole.n_by_type[few])
    assert len(some.generated) <= max(100, MIN_CELLS_FOR_MEANS * len(some.model.cell_types))
    assert (read_inputs(**files).test.counts != some.test.counts).nnz == 0


def test_genes_are_compared_with_test_cells_or_else_with_one_half(small_model):
    prepared, generated = split_cells(small_model.prepared), small_model.generate(5)
    is_test = (prepared.obs["split"] == "test").to_numpy()
    read = prepare_inputs(small_model.model, prepared, generated, seed=0)
    assert read.held_out
    assert (read.test.counts != prepared.X[is_test]).nnz == 0
    assert (read.training.counts != prepared.X[~is_test]).nnz == 0
    halves = prepare_inputs(small_model.model, small_model.prepared, generated, seed=0)
    assert not halves.held_out
    assert len(halves.training) + len(halves.test) == small_model.prepared.n_obs
    assert abs(len(halves.training) - len(halves.test)) <= len(small_model.model.populations)
