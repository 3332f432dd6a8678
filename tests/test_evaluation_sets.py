"""Evaluation of sets with known faults."""

from dataclasses import fields, is_dataclass, replace

import numpy as np
import pandas as pd
import pytest
from same_tables import assert_same_table
from scipy import sparse

from bdm._core.errors import InputError
from bdm.data.cells import Cells, RealCells
from bdm.data.gene_tests import marker_genes
from bdm.data.genes import GeneNames
from bdm.data.prepare import prepare
from bdm.evaluation.evaluate import Evaluation, evaluate
from bdm.evaluation.metrics import variable_genes
from bdm.evaluation.resamples import SizeLimits, draw_resamples
from bdm.evaluation.scores import Reference, assign_bins, bin_edges, score_cells
from bdm.evaluation.table import MANY_CELLS
from bdm.settings import EvaluationSettings, PrepareSettings


@pytest.fixture(scope="module")
def prepared(example_cells):
    return prepare(example_cells, PrepareSettings(label_key="bulk_labels", test=0.2))


@pytest.fixture(scope="module")
def training(prepared) -> Cells:
    return Cells.from_anndata(prepared[prepared.obs["split"] != "test"])


@pytest.fixture(scope="module")
def test_cells(prepared) -> Cells:
    return Cells.from_anndata(prepared[prepared.obs["split"] == "test"])


@pytest.fixture(scope="module")
def real(prepared, training, test_cells) -> RealCells:
    """Real cells with a symbol for each gene."""
    var = pd.DataFrame({"symbol": [f"symbol {name}" for name in prepared.var_names]}, index=prepared.var_names)
    return RealCells(training, test_cells, GeneNames(var, "symbol"))


def independent_genes(cells: Cells) -> Cells:
    """Poisson counts of the mean profile of each type."""
    rng = np.random.default_rng(0)
    profiles = {name: cells.counts[cells.cell_type == name].mean(axis=0) for name in cells.n_by_type.index}
    rates = np.concatenate([np.asarray(profiles[name]) for name in cells.cell_type])
    return Cells(sparse.csr_matrix(rng.poisson(rates), dtype=np.float32), cells.cell_type)


@pytest.fixture(scope="module")
def evaluation(training, real) -> Evaluation:
    shuffled = np.random.default_rng(0).permutation(training.cell_type)
    sets = {
        "copies": training,
        "independent": independent_genes(training),
        "shuffled": replace(training, cell_type=shuffled),
        "lacking": training[training.cell_type != "Dendritic"],
    }
    return evaluate(real, sets, EvaluationSettings(n_repeats=1))


def test_floor_is_the_first_and_as_good_as_test_cells(evaluation):
    floor = evaluation.overall["floor"]
    assert evaluation.overall.columns[0] == "floor"
    assert abs(floor["energy"]) < 0.7
    assert abs(floor["mmd"]) < 0.02
    assert abs(floor["forest_auc"] - 0.5) < 0.1
    assert abs(floor["gene_auc"] - 0.5) < 0.1
    assert abs(floor["memorisation"] - 0.5) < 0.12
    assert floor["slope"] > 0.6
    assert floor["mean_correlation"] > 0.97


def test_copies_are_as_good_as_the_floor_but_for_memorisation(evaluation):
    copies, floor = evaluation.overall["copies"], evaluation.overall["floor"]
    assert copies["memorisation"] > 0.99
    assert abs(copies["energy"] - floor["energy"]) < 0.5
    assert abs(copies["gene_auc"] - 0.5) < 0.1


def test_scores_detect_missing_structure_within_types(evaluation):
    independent, floor = evaluation.overall["independent"], evaluation.overall["floor"]
    assert independent["forest_auc"] > floor["forest_auc"] + 0.2
    assert independent["gene_auc"] > floor["gene_auc"] + 0.15
    assert independent["energy"] > floor["energy"] + 1
    assert independent["mmd"] > floor["mmd"] + 0.02
    assert independent["detected_genes_ks"] > floor["detected_genes_ks"]
    assert independent["pair_difference"] > floor["pair_difference"]
    assert independent["variance_ratio"] < 0.8 * floor["variance_ratio"]


def test_scores_by_type_detect_shuffled_labels(evaluation):
    shuffled, floor = evaluation.overall["shuffled"], evaluation.overall["floor"]
    assert shuffled["f1"] < 0.4 * floor["f1"]
    assert shuffled["slope"] < 0.3
    assert shuffled["energy"] > floor["energy"] + 4
    assert shuffled["mean_correlation"] > 0.97


def test_a_lacking_type_has_no_scores_but_an_f1_of_zero(evaluation):
    scores = evaluation.by_type.loc[("lacking", "Dendritic")]
    assert scores.drop("f1").isna().all()
    assert scores["f1"] == 0
    others = evaluation.by_type.loc["lacking"].drop("Dendritic").drop(columns=["gene_correlation", "variance_ratio"])
    assert others.notna().all(axis=None)


def test_correlations_of_genes_are_compared_within_types():
    """Independent genes correlate between types, but not within types."""
    rng = np.random.default_rng(0)

    def drawn(*, joint: bool) -> Cells:
        factor = rng.normal(size=(600, 1 if joint else 40)) * np.linspace(-1, 1, 40)
        cell_type = np.repeat(["a", "b", "c"], [280, 280, 40])
        rates = 8 * np.exp(factor + 0.5 * (cell_type == "a")[:, None] * rng.permutation(2).repeat(20))
        return Cells(sparse.csr_matrix(rng.poisson(rates), dtype=np.float32), cell_type)

    real_cells = drawn(joint=True)
    reference = Reference(drawn(joint=True), marker_genes(real_cells), variable_genes(real_cells), SMALL)
    sets = {"real": drawn(joint=True), "independent": drawn(joint=False)}
    rows = [row for name, cells in sets.items() for row in score_cells(cells, reference, name)]
    values = pd.DataFrame(rows).query("score == 'gene_correlation'").set_index(["set", "kind", "group"])["value"]
    for name in ("a", "b"):
        assert values["real", "type", name] > 0.9
        assert abs(values["independent", "type", name]) < 0.3
    assert np.isnan(values["real", "type", "c"])
    assert values["real", "all", "all"] > 0.9


def test_means_are_over_test_cells_without_types_of_few(evaluation):
    n_test = evaluation.n_compared["test"]
    enough = n_test.index[n_test >= 5]
    assert 2 < len(enough) < len(evaluation.n_cells)
    of_types = evaluation.by_type.loc["independent"].loc[enough]
    by_number = n_test[enough]
    by_number_squared = by_number * (by_number / MANY_CELLS).clip(upper=1)
    assert (by_number < MANY_CELLS).any()
    for score in ("energy", "relative_energy", "mmd", "f1"):
        weights = by_number_squared if score == "relative_energy" else by_number
        expected = of_types[score] @ weights / weights.sum()
        assert evaluation.overall.loc[score, "independent"] == pytest.approx(expected)
    of_all = evaluation.scores_of("all").set_index(["set", "score"])["error"]
    errors = evaluation.scores_of("type").set_index(["set", "score", "group"])["error"]
    for score in ("energy", "relative_energy"):  # of independent types
        weights = by_number if score == "energy" else by_number_squared
        expected = np.sqrt(((errors["independent", score][enough] * weights / weights.sum()) ** 2).sum())
        assert of_all["independent", score] == pytest.approx(expected)


def test_resamples_have_equal_numbers_of_each_type(real):
    first, second = draw_resamples(real, {}, EvaluationSettings(n_repeats=2, max_cells_per_type=20), seed=0)
    assert first.query["floor"].n_by_type.equals(first.test.n_by_type)
    assert first.test.n_by_type.max() == 20
    assert (first.query["floor"].counts != real.training.counts[first.floor_rows["floor"]]).nnz == 0
    assert not np.array_equal(first.floor_rows["floor"], second.floor_rows["floor"])


def test_test_cells_alone_choose_genes(evaluation, real, test_cells):
    markers = {name: real.genes[genes].tolist() for name, genes in marker_genes(test_cells).items()}
    assert evaluation.markers == markers


def test_genes_chosen_by_chance_are_no_markers_of_the_floor():
    """Without differences, selected log fold changes have random signs elsewhere."""
    rng = np.random.default_rng(0)
    cells = Cells(sparse.csr_matrix(rng.poisson(1.0, size=(400, 300)), dtype=np.float32), np.repeat(["a", "b"], 200))
    training, test = (
        cells[np.r_[start : start + n, 200 + start : 200 + start + n]] for start, n in ((0, 160), (160, 40))
    )
    real = RealCells(training, test, GeneNames(pd.DataFrame(index=[f"gene {i}" for i in range(300)])))
    changes = evaluate(real, {}, EvaluationSettings(n_repeats=3)).fold_changes["log2_fold_change"]
    assert abs(changes.mean()) < 3 * changes.std() / np.sqrt(len(changes))


@pytest.mark.parametrize(("times", "numbers"), [((0, 24, 48), [20] * 3), ((0, 1), [20] * 2), (range(16), [80] * 4)])
def test_each_of_few_values_of_a_covariate_has_a_bin(times, numbers):
    covariates = pd.DataFrame({"time": np.repeat(times, 20)})
    cells = Cells(sparse.csr_matrix((len(covariates), 5)), np.full(len(covariates), "a"), covariates=covariates)
    ends = bin_edges(cells, 4)
    assert np.bincount(assign_bins(cells, "time", ends["time"])).tolist() == numbers


SMALL = SizeLimits(compared=80, gene_auc=40, tree=20, pairs=1, markers=60, umap=60)


@pytest.fixture(scope="module")
def bounded_evaluation(training, real) -> Evaluation:
    return evaluate(real, {"copies": training}, EvaluationSettings(n_repeats=1), size_limits=SMALL)


def test_bounds_are_kept_by_all_sets_alike(bounded_evaluation, test_cells):
    compared = bounded_evaluation.n_compared
    assert 80 - len(compared) < compared["test"].sum() <= 80
    assert compared["floor"].equals(compared["test"])
    assert compared["copies"].equals(compared["test"])
    assert bounded_evaluation.n_cells["test"].sum() == len(test_cells)


def test_scores_depend_on_neither_compared_sets_nor_loose_bounds(evaluation, training, real):
    wide = SizeLimits(compared=10**6, gene_auc=10**6, tree=10**6, pairs=10**12, markers=10**6, umap=10**6)
    again = evaluate(real, {"copies": training}, EvaluationSettings(n_repeats=1), size_limits=wide)
    pd.testing.assert_frame_equal(again.overall, evaluation.overall[["floor", "copies"]], check_exact=True)
    pd.testing.assert_frame_equal(again.by_type, evaluation.by_type.loc[["floor", "copies"]], check_exact=True)


def test_a_set_of_few_cells_has_a_floor_of_as_many(real, training):
    few = training[training.cell_type != "Dendritic"][::8]
    [resample] = draw_resamples(real, {"few": few, "all": training}, EvaluationSettings(n_repeats=1), seed=0)
    assert list(resample.query) == ["floor", "floor of few", "few", "all"]
    assert resample.query["floor of few"].n_by_type.equals(resample.query["few"].n_by_type)


def test_floor_is_half_of_few_training_cells(real, training, test_cells):
    swapped = replace(real, training=test_cells, test=training)
    [resample] = draw_resamples(swapped, {}, EvaluationSettings(n_repeats=1), seed=0)
    expected = {name: n // 2 for name, n in test_cells.n_by_type.items() if n > 1}
    assert resample.query["floor"].n_by_type.to_dict() == expected
    assert resample.test.n_by_type[list(expected)].to_dict() == {
        name: n if n > 1 else min(training.n_by_type[name], 500) for name, n in expected.items()
    }


# ---- saved and loaded


def assert_same(loaded: object, expected: object) -> None:
    """Check that all fields of two evaluations, or of parts of them, are bitwise identical."""
    for name in (field.name.removeprefix("compute_") for field in fields(expected)):
        value, expected_value = getattr(loaded, name), getattr(expected, name)
        if isinstance(expected_value, pd.DataFrame):
            assert_same_table(value, expected_value, check_exact=True, check_names=True, obj=name)
        elif is_dataclass(expected_value):
            assert_same(value, expected_value)
        elif isinstance(expected_value, np.ndarray):
            np.testing.assert_array_equal(value, expected_value)
        else:
            assert value == expected_value, name


def test_loaded_evaluation_is_the_one_that_was_saved(evaluation, tmp_path):
    evaluation.save(tmp_path / "evaluation")
    assert_same(Evaluation.load(tmp_path / "evaluation"), evaluation)
    _, *verdicts, not_checked = repr(evaluation).splitlines()[: len(evaluation.sets) + 1]
    assert verdicts == [f"{name}: {evaluation.verdict(name).text}" for name in evaluation.sets[1:]]
    assert not_checked == "Not checked: batches, donors, positions (not in the real cells)."
    rows = repr(evaluation).splitlines()[len(evaluation.sets) + 2 :]
    assert [line.split()[0] for line in rows] == list(evaluation.overall["independent"].dropna().index)


def test_saving_replaces_an_evaluation_and_nothing_else(bounded_evaluation, tmp_path):
    bounded_evaluation.save(tmp_path / "evaluation")
    with pytest.raises(InputError, match="evaluation exists; name another output, or replace it by `overwrite=True`"):
        bounded_evaluation.save(tmp_path / "evaluation")
    bounded_evaluation.save(tmp_path / "evaluation", overwrite=True)
    assert_same(Evaluation.load(tmp_path / "evaluation"), bounded_evaluation)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("")
    with pytest.raises(InputError, match="name another output"):
        bounded_evaluation.save(tmp_path / "mine", overwrite=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]
