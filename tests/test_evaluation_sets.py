"""Sets of cells with known faults, judged beside real ones."""

from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bdm.data.prepare import prepare
from bdm.errors import InputError
from bdm.evaluation.cells import Cells, sample_by_type
from bdm.evaluation.evaluate import Evaluation, evaluate, seeds_of_draws
from bdm.evaluation.genes import marker_genes, variable_genes
from bdm.evaluation.resampling import SizeLimits, draw_resample
from bdm.evaluation.scores import Reference, score_cells
from bdm.settings import EvaluationSettings, PrepareSettings


@pytest.fixture(scope="module")
def prepared(example_cells):
    return prepare(example_cells, PrepareSettings(label_key="bulk_labels"))


@pytest.fixture(scope="module")
def training(prepared) -> Cells:
    return Cells.of(prepared[prepared.obs["split"] != "test"])


@pytest.fixture(scope="module")
def test_cells(prepared) -> Cells:
    return Cells.of(prepared[prepared.obs["split"] == "test"])


def independent_genes(cells: Cells) -> Cells:
    """Poisson counts about the mean profile of each type: right means, no structure within types."""
    rng = np.random.default_rng(0)
    profiles = {name: cells.counts[cells.cell_type == name].mean(axis=0) for name in cells.n_by_type.index}
    rates = np.concatenate([np.asarray(profiles[name]) for name in cells.cell_type])
    return Cells(sparse.csr_matrix(rng.poisson(rates), dtype=np.float32), cells.cell_type)


@pytest.fixture(scope="module")
def evaluation(training, test_cells) -> Evaluation:
    shuffled = np.random.default_rng(0).permutation(training.cell_type)
    sets = {
        "copies": training,
        "independent": independent_genes(training),
        "shuffled": replace(training, cell_type=shuffled),
        "lacking": training[training.cell_type != "Dendritic"],
    }
    return evaluate(training, test_cells, sets, EvaluationSettings(n_repeats=1))


def test_floor_is_the_first_and_cannot_be_told_from_test_cells(evaluation):
    floor = evaluation.overall["floor"]
    assert evaluation.overall.columns[0] == "floor"
    assert abs(floor["energy"]) < 0.7
    assert abs(floor["mmd"]) < 0.02
    assert abs(floor["forest_auc"] - 0.5) < 0.1
    assert abs(floor["gene_auc"] - 0.5) < 0.1
    assert abs(floor["copying"] - 0.5) < 0.12
    assert floor["f1_ratio"] == 1
    assert floor["slope"] > 0.6
    assert floor["mean_correlation"] > 0.97


def test_copies_are_as_good_as_the_floor_but_for_copying(evaluation):
    copies, floor = evaluation.overall["copies"], evaluation.overall["floor"]
    assert copies["copying"] > 0.99
    assert abs(copies["energy"] - floor["energy"]) < 0.5
    assert abs(copies["gene_auc"] - 0.5) < 0.1


def test_cells_without_structure_within_types_are_found_out(evaluation):
    independent, floor = evaluation.overall["independent"], evaluation.overall["floor"]
    assert independent["forest_auc"] > floor["forest_auc"] + 0.2
    assert independent["gene_auc"] > floor["gene_auc"] + 0.15
    assert independent["energy"] > floor["energy"] + 1
    assert independent["mmd"] > floor["mmd"] + 0.02
    assert independent["detected_genes_ks"] > floor["detected_genes_ks"]
    assert independent["pair_difference"] > floor["pair_difference"]


def test_shuffled_labels_are_found_out_by_what_looks_at_types(evaluation):
    shuffled, floor = evaluation.overall["shuffled"], evaluation.overall["floor"]
    assert shuffled["f1"] < 0.4 * floor["f1"]
    assert shuffled["f1_ratio"] == pytest.approx(shuffled["f1"] / floor["f1"])
    assert shuffled["slope"] < 0.3
    assert shuffled["energy"] > floor["energy"] + 4
    assert shuffled["mean_correlation"] > 0.97


def test_a_lacking_type_has_no_scores_but_an_f1_of_zero(evaluation):
    scores = evaluation.by_type.loc[("lacking", "Dendritic")]
    assert scores.drop("f1").isna().all()
    assert scores["f1"] == 0
    assert evaluation.by_type.loc["lacking"].drop("Dendritic").notna().all(axis=None)


def test_means_leave_out_types_of_few_test_cells(evaluation):
    enough = evaluation.n_cells.index[evaluation.n_cells["test"] >= 5]
    assert 2 < len(enough) < len(evaluation.n_cells)
    means = evaluation.by_type.loc["independent"].loc[enough].mean()
    for score in ("energy", "mmd", "f1"):
        assert evaluation.overall.loc[score, "independent"] == pytest.approx(means[score])


def test_same_seed_same_scores_whatever_is_judged_beside(evaluation, training, test_cells):
    again = evaluate(training, test_cells, {"copies": training}, EvaluationSettings(n_repeats=1))
    pd.testing.assert_frame_equal(again.overall, evaluation.overall[["floor", "copies"]], check_exact=True)


def test_trial_draws_equal_numbers_and_keeps_floor_and_rest_apart(training, test_cells):
    trial = draw_resample(training, test_cells, max_cells_per_type=20, seed=0)
    assert trial.floor.n_by_type.equals(trial.test.n_by_type)
    assert trial.test.n_by_type.max() == 20
    assert len(trial.floor) + len(trial.rest) == len(training)
    other = draw_resample(training, test_cells, max_cells_per_type=20, seed=1)
    assert (trial.floor.library_size != other.floor.library_size).any()


SMALL = SizeLimits(compared=80, gene_auc=40, by_tree=20, pairs=1, marking=200, mapped=60)


@pytest.fixture(scope="module")
def bounded_evaluation(training, test_cells) -> Evaluation:
    return evaluate(training, test_cells, {"copies": training}, EvaluationSettings(n_repeats=1), bounds=SMALL)


def test_bounds_are_kept_by_all_sets_alike(bounded_evaluation, test_cells):
    compared = bounded_evaluation.n_compared
    assert 80 - len(compared) < compared["test"].sum() <= 80
    assert compared["floor"].equals(compared["test"])
    assert compared["copies"].equals(compared["test"])
    assert bounded_evaluation.n_cells["test"].sum() == len(test_cells)


def test_bounded_scores_are_those_of_judging_the_cells_drawn(bounded_evaluation, training, test_cells):
    seed = seeds_of_draws(1, seed=0)[0]
    trial = draw_resample(training, test_cells, max_cells_per_type=500, max_cells=80, seed=seed)
    marking = training[sample_by_type(training, training.n_by_type.clip(upper=most_by_type(training, 200)), seed=0)]
    reference = Reference(trial.test, marker_genes(marking), variable_genes(marking), SMALL)
    copies = training[sample_by_type(training, trial.test.n_by_type, seed=seed)]
    for name, cells in {"floor": trial.floor, "copies": copies}.items():
        judgement = score_cells(cells, reference, seed=seed)
        assert bounded_evaluation.overall.loc["gene_auc", name] == judgement.overall.gene_auc
        assert bounded_evaluation.overall.loc["slope", name] == judgement.overall.slope
        for cell_type, scores in judgement.by_type.items():
            assert bounded_evaluation.by_type.loc[(name, cell_type)].to_dict() == pytest.approx(
                asdict(scores), nan_ok=True
            )


def most_by_type(cells: Cells, most: int) -> int:
    return max(n for n in range(1, len(cells)) if cells.n_by_type.clip(upper=n).sum() <= most)


def test_bounded_scores_are_as_honest(bounded_evaluation, training, test_cells):
    floor, copies = bounded_evaluation.overall["floor"], bounded_evaluation.overall["copies"]
    assert abs(floor["forest_auc"] - 0.5) < 0.15
    assert abs(floor["copying"] - 0.5) < 0.2
    assert copies["copying"] > 0.99
    again = evaluate(training, test_cells, {"copies": training}, EvaluationSettings(n_repeats=1), bounds=SMALL)
    pd.testing.assert_frame_equal(again.overall, bounded_evaluation.overall, check_exact=True)
    pd.testing.assert_frame_equal(again.by_type, bounded_evaluation.by_type, check_exact=True)


def test_bounds_that_do_not_bind_change_nothing(evaluation, training, test_cells):
    wide = SizeLimits(compared=10**6, gene_auc=10**6, by_tree=10**6, pairs=10**12, marking=10**6, mapped=10**6)
    again = evaluate(training, test_cells, {"copies": training}, EvaluationSettings(n_repeats=1), bounds=wide)
    pd.testing.assert_frame_equal(again.overall, evaluation.overall[["floor", "copies"]], check_exact=True)


def test_floor_is_half_of_few_training_cells(training, test_cells):
    trial = draw_resample(test_cells, training, max_cells_per_type=500, seed=0)
    assert trial.floor.n_by_type.to_dict() == {name: n // 2 for name, n in test_cells.n_by_type.items() if n > 1}


@pytest.mark.parametrize("wrong", [{"n_repeats": 0}, {"max_cells_per_type": 4}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        EvaluationSettings(**wrong)
