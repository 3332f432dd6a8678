import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import mannwhitneyu, norm

from bdm.cli import main
from bdm.errors import InputError
from bdm.evaluation.cells import Cells
from bdm.files import sha256
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.interpretation.agreement import BranchAgreement
from bdm.interpretation.contrasts import contrasts_of
from bdm.interpretation.differences import Differences
from bdm.interpretation.inputs import Inputs, read_inputs
from bdm.interpretation.interpret import InterpretationSettings, interpret
from bdm.interpretation.markers import markers_of
from bdm.interpretation.model_genes import Expression, ModelExpression, model_differences, model_expression
from bdm.interpretation.real_genes import halves_of, real_differences
from bdm.interpretation.report import branch_genes, marker_rows
from bdm.plotting.branch_agreement import agreement_figure
from bdm.plotting.branch_genes import branch_genes_figure
from bdm.plotting.clades import clade_label
from bdm.plotting.markers import markers_figure

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
    """Cells whose type number k has ten times the counts of gene k."""
    generator = np.random.default_rng(seed)
    cell_type = np.repeat(list(n_by_type), list(n_by_type.values()))
    rates = np.full((len(cell_type), n_genes), 3.0)
    for k, name in enumerate(n_by_type):
        rates[cell_type == name, k] *= 10
    return Cells(sparse.csr_matrix(generator.poisson(rates), dtype=np.float32), cell_type)


@pytest.fixture(scope="module")
def inputs(small_model) -> Inputs:
    training, generated = small_model.prepared, small_model.generate(30)
    return Inputs(small_model.model, Cells.of(training), Cells.of(generated), generated.var_names)


@pytest.fixture(scope="module")
def interpretation(inputs):
    return interpret(inputs, QUICK, seed=0)


@pytest.fixture(scope="module")
def files(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("interpretation")
    small_model.save(folder / "model")
    small_model.prepared.write_h5ad(folder / "prepared.h5ad")
    small_model.generate(20).write_h5ad(folder / "generated.h5ad")
    return {"model": folder / "model", "prepared": folder / "prepared.h5ad", "generated": folder / "generated.h5ad"}


def test_contrasts_set_each_child_against_its_siblings():
    sides = {contrast.child: (contrast.node, contrast.inside, contrast.outside) for contrast in contrasts_of(TREE)}
    assert sides == {
        "node": ("root", ("a", "b"), ("c", "d")),
        "c": ("root", ("c",), ("a", "b", "d")),
        "d": ("root", ("d",), ("a", "b", "c")),
        "a": ("node", ("a",), ("b",)),
        "b": ("node", ("b",), ("a",)),
    }


def test_real_differences_are_the_test_of_mann_and_whitney():
    cells = cells_of({"a": 20, "b": 15, "c": 25})
    node = tuple(contrast for contrast in contrasts_of(TREE) if contrast.node == "node")
    found = real_differences(cells, node)
    of_a, of_b = (cells.expression[cells.cell_type == name].toarray() for name in "ab")
    expected = mannwhitneyu(of_a, of_b, use_continuity=False, method="asymptotic").pvalue
    p = 2 * norm.sf(np.abs(found["a"].score))
    np.testing.assert_allclose(p, expected, rtol=1e-3)
    assert found["a"].rank[0] == 1
    assert found["b"].rank[1] == 1
    np.testing.assert_allclose(found["a"].log2_fold_change, -found["b"].log2_fold_change, atol=1e-5)
    assert list(np.flatnonzero(found["a"].significant)) == [0]


@pytest.mark.parametrize(("n_by_type", "tested"), [({"a": 2, "b": 30}, set()), ({"a": 3, "b": 30}, {"a", "b"})])
def test_contrasts_of_few_cells_are_left_out(n_by_type, tested):
    node = tuple(contrast for contrast in contrasts_of(TREE) if contrast.node == "node")
    assert set(real_differences(cells_of(n_by_type), node)) == tested


def test_halves_are_disjoint_and_of_the_same_types():
    cells = cells_of({"a": 20, "b": 7})
    marked = Cells(cells.counts, cells.cell_type)
    first, second = halves_of(marked, seed=1)
    assert first.n_by_type.to_dict() == {"a": 10, "b": 3}
    assert second.n_by_type.to_dict() == {"a": 10, "b": 4}
    assert first.counts.sum() + second.counts.sum() == cells.counts.sum()


def test_mixture_is_weighted_and_has_the_variance_between_types():
    by_type = {"a": Expression(np.array([0.0]), np.array([1.0])), "b": Expression(np.array([4.0]), np.array([5.0]))}
    mixture = ModelExpression(by_type, {"a": 3.0, "b": 1.0}).mixture(("a", "b"))
    assert mixture.mean == pytest.approx([1.0])
    assert mixture.variance == pytest.approx([2.0 + 3.0])  # within, 0.75 * 1 + 0.25 * 9 between


def test_model_differences_of_two_children_mirror(inputs):
    expression = model_expression(inputs.model, n_cells=20, seed=0)
    for contrast in contrasts_of(inputs.model.hierarchy):
        here = model_differences(expression, contrast)
        there = model_differences(expression, replace(contrast, inside=contrast.outside, outside=contrast.inside))
        np.testing.assert_allclose(here.score, -there.score, atol=1e-9)
        np.testing.assert_allclose(here.log2_fold_change, -there.log2_fold_change, atol=1e-9)


def test_model_expression_follows_generated_counts(small_model):
    """Mean and variance in closed form are those of many generated cells."""
    expression = model_expression(small_model.model, n_cells=500, seed=0).by_type["Dendritic"]
    cells = Cells.of(small_model.generate({"Dendritic": 2000}, seed=1))
    frequent = expression.mean > 50
    assert frequent.sum() > 20
    real = cells.cp10k.toarray()[:, frequent]
    np.testing.assert_allclose(real.mean(axis=0), expression.mean[frequent], rtol=0.15)
    ratio = real.var(axis=0) / expression.variance[frequent]
    assert 0.7 < np.median(ratio) < 1.3


def test_model_with_batches_is_read(batch_model):
    expression = model_expression(batch_model.model, n_cells=15, seed=0)
    for of_type in expression.by_type.values():
        assert of_type.mean.sum() == pytest.approx(1e4, rel=1e-6)


@pytest.mark.parametrize(("noise", "lowest", "highest"), [(0.0, 0.999, 1.0), (10.0, -0.3, 0.3)])
def test_agreement_tells_good_from_useless(noise, lowest, highest):
    generator = np.random.default_rng(0)
    changes = 2 * generator.normal(size=500)
    real = Differences(changes, changes, np.where(np.abs(changes) > 2, 0.001, 0.9))
    judged = changes * (noise == 0) + noise * generator.normal(size=500)
    agreement = BranchAgreement.of(Differences(judged, judged), real, n_genes=20)
    assert lowest <= agreement.pearson <= highest + 1e-9
    assert lowest <= agreement.spearman <= highest + 1e-9
    assert lowest <= agreement.top_shared <= highest
    assert agreement.auprc == pytest.approx(1.0) if noise == 0 else agreement.auprc < 0.3


def test_agreement_without_significant_genes_has_no_precision():
    real = Differences(np.arange(5.0), np.arange(5.0), np.ones(5))
    assert np.isnan(BranchAgreement.of(real, real, n_genes=2).auprc)


def test_agreement_has_a_row_for_each_node_beside_real_halves(inputs, interpretation):
    hierarchy = inputs.model.hierarchy
    nodes = [branch for branch in hierarchy.branches if hierarchy.children[branch.name]]
    table = interpretation.agreement
    assert list(table["node"]) == [branch.name for branch in nodes]
    assert list(table["level"]) == [branch.level for branch in nodes]
    assert table.loc[0, "n_types"] == len(hierarchy.cell_types)
    assert table.loc[0, "n_cells"] == len(inputs.training)
    assert table.loc[0, "pearson_real_half"] > 0.5
    assert table.filter(like="pearson").abs().max(axis=None) <= 1


def test_branch_genes_are_the_top_of_model_and_real_cells(interpretation):
    table = branch_genes(interpretation)
    for of in interpretation.contrasts:
        rows = table[(table["node"] == of.contrast.node) & (table["child"] == of.contrast.child)]
        assert set(range(1, 11)) <= set(rows["model_rank"])
        best = interpretation.genes[np.argmax(of.model.score)]
        assert rows.iloc[0]["gene"] == best
        if of.real:
            assert set(range(1, 11)) <= set(rows["real_rank"])
            assert ((rows["model_rank"] <= 10) | (rows["real_rank"] <= 10)).all()
        else:
            assert rows["real_rank"].isna().all()
            assert rows["real_score"].isna().all()


def test_too_few_real_cells_leave_gaps_not_errors(inputs):
    rare = inputs.model.cell_types[0]
    first = np.flatnonzero(inputs.training.cell_type == rare)[:2]
    kept = np.sort(np.append(np.flatnonzero(inputs.training.cell_type != rare), first))
    found = interpret(replace(inputs, training=inputs.training[kept]), QUICK, seed=0)
    of_rare = next(of for of in found.contrasts if of.contrast.inside == (rare,))
    assert of_rare.real is None
    assert of_rare.halves is None
    branch_genes_figure(inputs.model.hierarchy, found)
    agreement_figure(found)


def test_interpretation_depends_on_the_seed_alone(inputs, interpretation):
    again, other = (interpret(inputs, QUICK, seed=seed) for seed in (0, 1))
    pd.testing.assert_frame_equal(again.agreement, interpretation.agreement)
    assert not again.agreement.equals(other.agreement)


def test_markers_mark_their_type():
    cells = cells_of({"a": 20, "b": 20, "c": 20})
    genes = pd.Index([f"gene{k}" for k in range(12)])
    markers = markers_of(cells, cells, genes, ("a", "b", "c"), n_genes=2)
    assert [chosen[0] for chosen in markers.genes.values()] == ["gene0", "gene1", "gene2"]
    assert markers.real.mean["gene0"].idxmax() == "a"
    table = marker_rows(markers)
    assert len(table) == 3 * 6
    assert (table["real_mean"] == table["generated_mean"]).all()
    assert table["real_fraction"].between(0, 1).all()


@pytest.mark.parametrize(
    ("cell_types", "label"),
    [
        (("B",), "B"),
        (("B", "NK"), "B, NK"),
        (("CD4 T cell", "CD8 T cell", "B cell", "NK cell"), "CD4 T cell, CD8 T cell +2"),
        (("a very long name of a cell type",), "a very l…me of a cell type"),
        (("a very long name of a cell type", "B"), "a very … of a cell type +1"),
    ],
)
def test_clade_label_fits(cell_types, label):
    assert clade_label(cell_types) == label
    assert len(label) <= 26


def test_figures_name_nodes_and_genes(inputs, interpretation):
    figure = branch_genes_figure(inputs.model.hierarchy, interpretation)
    titles = {axis.get_title() for sub in figure.subfigs for axis in sub.axes}
    for row in interpretation.agreement.itertuples():
        assert any(title.startswith(row.node) for title in titles)
    left, right = markers_figure(interpretation.markers).axes[:2]
    assert [text.get_text() for text in left.get_xticklabels()] == [text.get_text() for text in right.get_xticklabels()]


def run(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["bdm", "interpret", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_command_writes_everything(files, tmp_path, monkeypatch):
    out = tmp_path / "out"
    assert not run(monkeypatch, *files.values(), out, "--n-genes", 5)
    assert {path.name for path in out.iterdir()} == {
        "interpretation.json",
        "branch_genes.csv",
        "agreement.csv",
        "markers.csv",
        "branch_genes.png",
        "agreement.png",
        "markers.png",
    }
    record = json.loads((out / "interpretation.json").read_text())["provenance"]
    assert record["settings"]["n_genes"] == 5
    assert record["sha256"] == {name: sha256(path) for name, path in files.items()}
    table = pd.read_csv(out / "branch_genes.csv")
    assert (table[["model_rank", "real_rank"]].min(axis=1) <= 5).all()


def without_gene(adata):
    return adata[:, 1:].copy()


def without_type(adata):
    return adata[(adata.obs["cell_type"] != "Dendritic").to_numpy()].copy()


def with_other_type(adata):
    adata.obs["cell_type"] = adata.obs["cell_type"].cat.rename_categories({"Dendritic": "DC"})
    return adata


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("generated", without_gene, "lacks the genes"),
        ("prepared", without_gene, "has, beyond the prepared data, the genes"),
        ("generated", without_type, "lacks cells of the types Dendritic"),
        ("prepared", without_type, "lacks cells of the types Dendritic"),
        ("generated", with_other_type, "lacks cells of the types Dendritic"),
    ],
)
def test_unfit_files_are_refused(files, tmp_path, small_model, file, change, message):
    adata = small_model.prepared if file == "prepared" else small_model.generate(20)
    changed = tmp_path / "changed.h5ad"
    change(adata.copy()).write_h5ad(changed)
    with pytest.raises(InputError, match=message):
        read_inputs(**{**files, file: changed})


def test_genes_may_come_in_another_order(files, tmp_path, small_model):
    changed = tmp_path / "changed.h5ad"
    small_model.prepared[:, ::-1].copy().write_h5ad(changed)
    read = read_inputs(**{**files, "prepared": changed})
    as_given = read_inputs(**files)
    assert (read.training.counts != as_given.training.counts).nnz == 0


def test_bad_input_leaves_nothing_behind(files, tmp_path, monkeypatch, capsys):
    assert run(monkeypatch, files["model"], files["model"] / "model.json", files["generated"], tmp_path / "out") == 2
    assert capsys.readouterr().err.startswith("bdm: ")
    assert not list(tmp_path.iterdir())
