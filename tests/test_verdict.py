import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bdm.data.cells import Cells, RealCells
from bdm.data.genes import GeneNames
from bdm.evaluation.evaluate import evaluate
from bdm.evaluation.metrics import energy_scores
from bdm.evaluation.scores import TYPE_SCORES, mean_scores
from bdm.evaluation.table import JUDGED, LEVEL, MANY_CELLS, OTHER_GENES, score_rows, score_table
from bdm.evaluation.verdict import Grade, Verdict, grade, verdict
from bdm.settings import EvaluationSettings

IDEAL = {name: score.ideal for name, score in JUDGED.items()}
MANY = 10**6


def judge(scores: dict[str, float], floor: dict[str, float], *, n_cells: int) -> Verdict:
    """Judge all cells of a set by its scores and the floor's."""
    where = {"kind": "all", "group": "all", "n_cells": n_cells}
    rows = [*score_rows(scores, **where, set="generated"), *score_rows(floor, **where, set="floor")]
    return verdict(score_table(rows, ["generated"]))


def worse(name: str, excess: float, *, than: dict[str, float] = IDEAL) -> dict[str, float]:
    """Scores as those given, but one that is worse by some excess."""
    return than | {name: than[name] + (excess if JUDGED[name].higher else -excess)}


@pytest.mark.parametrize("name", JUDGED)
def test_the_worst_score_decides(name):
    limit = JUDGED[name]
    for excess, expected in {
        0.99 * limit.same: 0,
        1.01 * limit.same: 1,
        0.99 * limit.near: 1,
        1.01 * limit.near: 2,
    }.items():
        found = judge(worse(name, excess), IDEAL, n_cells=MANY)
        assert found.grade == expected
        assert found.worst_scores == ((JUDGED[name].name,) if expected else ())


@pytest.mark.parametrize("name", [name for name, score in JUDGED.items() if not score.relative])
def test_only_what_is_worse_than_the_floor_counts(name):
    limit = JUDGED[name]
    poor = worse(name, 1.5 * limit.near)
    assert judge(poor, poor, n_cells=MANY).grade == Grade.SAME
    assert judge(worse(name, 1.5 * limit.same, than=poor), poor, n_cells=MANY).grade == Grade.NEAR
    # a floor that is better than ideal is so by chance, and is no goal
    lucky = worse(name, -limit.near)
    assert judge(IDEAL, lucky, n_cells=MANY).grade == Grade.SAME


def test_few_cells_give_no_verdict():
    poor, bad = worse("relative_energy", 0.015), worse("relative_energy", 5.0)
    grades = {n: judge(IDEAL, IDEAL, n_cells=n).grade for n in (4, 9, 10, 59, 60)}
    assert grades == {4: Grade.UNKNOWN, 9: Grade.UNKNOWN, 10: Grade.SAME, 59: Grade.SAME, 60: Grade.SAME}
    assert judge(IDEAL, IDEAL, n_cells=59).text == "no difference seen in few cells"
    assert judge(IDEAL, IDEAL, n_cells=60).text == "cannot be distinguished from real cells"
    small = [judge(poor, IDEAL, n_cells=n).grade for n in (5, 9, 10, 100)]
    assert small == [Grade.UNKNOWN] * 2 + [Grade.SAME, Grade.NEAR]  # chance gives as much to ten cells
    assert [judge(bad, IDEAL, n_cells=n).grade for n in (0, 5, 9, 10)] == [Grade.UNKNOWN] * 3 + [Grade.DIFFERS]
    assert judge(bad, IDEAL, n_cells=9).text == "too few cells to compare"
    # chance gives such an AUC to ten cells, not to a thousand
    assert judge(worse("forest_auc", 0.2), IDEAL, n_cells=10).grade == Grade.SAME
    assert judge(worse("forest_auc", 0.2), IDEAL, n_cells=1000).grade == Grade.DIFFERS


@pytest.mark.parametrize("name", ["relative_energy", "forest_auc", "gene_auc"])
def test_many_cells_are_enough_to_see_a_medium_difference(name):
    limit = JUDGED[name]
    unknown = (np.nan, np.nan, np.nan)
    of_many, of_few = (limit.null(n, *unknown) for n in (MANY_CELLS, MANY_CELLS // 2))
    assert of_many.largest(LEVEL) <= 1.05 * limit.near < of_few.largest(LEVEL)


@pytest.mark.parametrize("name", JUDGED)
def test_more_cells_never_make_the_verdict_on_the_same_scores_better(name):
    numbers, rows = [0, 2, 5, 7, 9, *range(10, 80, 4), 100, 1000, MANY], []
    excesses = np.linspace(0, 1.2, 31)
    for i, excess in enumerate(excesses):
        for n in numbers:
            where = {"kind": "type", "group": f"{i} {n}", "n_cells": n}
            rows += score_rows({name: worse(name, excess)[name]}, **where, set="generated")
            rows += score_rows({name: IDEAL[name]}, **where, set="floor")
    table = score_table(rows, ["generated"])
    by_excess = np.reshape([grade(row) for row in table.to_dict("records")], (len(excesses), len(numbers))).tolist()
    for grades in by_excess:
        assert set(grades[:5]) == {Grade.UNKNOWN}  # whatever the scores: no verdict on 5 cells, and none on 7
        assert Grade.UNKNOWN not in grades[5:]
        assert grades[5:] == sorted(grades[5:])


def test_scores_that_are_not_known_are_passed_over():
    assert judge({}, {}, n_cells=MANY).grade == Grade.UNKNOWN
    some = {"relative_energy": 0.01, "f1": float("nan"), "forest_auc": float("nan")}
    found = judge(some, {name: IDEAL[name] for name in some}, n_cells=MANY)
    assert [finding.score for finding in found.findings] == ["relative_energy"]
    assert found.not_checked == "F1 of cell typing (needs two cell types); forest AUC (needs two cells)"


def test_groups_name_single_scores_that_they_lack():
    where = {"kind": OTHER_GENES, "group": "all", "n_cells": MANY}
    rows = []
    for name in ("generated", "floor"):
        rows += score_rows({"gene_auc": 0.5, "fold_change_correlation": np.nan}, **where, set=name)
        rows += score_rows({"group_slope": np.nan, "forest_auc": np.nan}, **where | {"kind": "batch"}, set=name)
    table = score_table(rows, ["generated"])
    missing = verdict(table[table["kind"] == OTHER_GENES]).not_checked
    assert missing.startswith("correlation of log fold changes of other genes (")
    assert "forest AUC" not in verdict(table).not_checked  # nothing is known of batches


def test_many_groups_share_the_probability_of_chance():
    """An AUC that one group exceeds by chance in 0.2% of cases is no difference where there are ten groups."""
    where = {"kind": "batch", "n_cells": 80, "score": "forest_auc"}
    for n_groups, expected in ((1, Grade.DIFFERS), (10, Grade.SAME)):
        groups = [f"b{i}" for i in range(n_groups)]
        rows = [{**where, "group": group, "set": "floor", "value": 0.5} for group in groups]
        values = dict.fromkeys(groups, 0.5) | {"b0": 0.665}
        rows += [{**where, "group": group, "set": "generated", "value": value} for group, value in values.items()]
        found = verdict(score_table(rows, ["generated"]))
        assert found.grade == expected
        assert found.worst_scores == (("forest AUC (batch b0)",) if expected else ())


def test_limits_of_a_slope_are_shares_of_the_floor():
    for floor in (1.0, 0.5):
        for share, expected in ((0.85, Grade.SAME), (0.75, Grade.NEAR), (0.45, Grade.DIFFERS)):
            found = judge({"group_slope": share * floor, "group_slope_chance": 0}, {"group_slope": floor}, n_cells=MANY)
            assert found.grade == expected


def thirty_components(n_cells: int, *, seed: int) -> np.ndarray:
    """Cells of one type, whose variance decreases from component to component as in real cells."""
    return np.random.default_rng(seed).normal(size=(n_cells, 30)) / np.sqrt(np.arange(1, 31))


def energies(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    return {name: value for name, value in energy_scores(x, y).items() if name.startswith("relative_energy")}


FLOOR_OF_ENERGY = {"relative_energy": 0.0, "relative_energy_chance": 0.0}


def test_shift_along_one_of_thirty_components_is_seen_by_the_energy_distance():
    """By half a standard deviation, as a classifier would; by a tenth, not."""
    grades = {}
    for shift in (0, 0.1, 0.6):
        x, y = thirty_components(500, seed=0), thirty_components(500, seed=1)
        x[:, 0] += shift
        grades[shift] = judge(energies(x, y), FLOOR_OF_ENERGY, n_cells=500).grade
    assert grades == {0: Grade.SAME, 0.1: Grade.SAME, 0.6: Grade.DIFFERS}


def test_few_real_cells_are_not_further_than_chance_from_others():
    """Chance is derived in the space of the cells, however many of its dimensions vary."""
    for n_dimensions in (2, 30):
        found = []
        for seed in range(200):
            x, y = (thirty_components(12, seed=2 * seed + i)[:, :n_dimensions] for i in (0, 1))
            found.append(judge(energies(x, y), FLOOR_OF_ENERGY, n_cells=12).grade)
        assert 0 < np.mean(np.array(found) == Grade.DIFFERS) < 0.1


def average(of_types: dict[str, tuple[int, float]]) -> pd.Series:
    """Means of the scores of types with some number of test cells, and relative energy distance."""
    numbers, energies = zip(*of_types.values(), strict=True)
    table = pd.DataFrame({"relative_energy": energies, "relative_energy_chance": 0.4 / np.array(numbers)}, of_types)
    scores = table.reindex(columns=TYPE_SCORES).assign(energy=energies, relative_energy_skewness=0.0)
    return mean_scores(scores, Cells(sparse.csr_matrix((sum(numbers), 1)), np.repeat(list(of_types), numbers)))


def test_types_of_few_cells_hardly_decide_on_all_cells():
    """They are compared as surely as their number of cells allows; many cells weigh as they are."""
    few = {f"type {k}": (n, 0.6 / n) for k, n in enumerate([6, 9, 11, 14])}
    scores = average({"common": (48, 0.005), **few})
    assert scores["energy"] > JUDGED["relative_energy"].near > scores["relative_energy"]
    assert judge(scores, FLOOR_OF_ENERGY, n_cells=88).grade == Grade.SAME
    worse = average({"common": (48, 0.05), **few})
    assert judge(worse, FLOOR_OF_ENERGY, n_cells=88).grade == Grade.DIFFERS
    rare = average({"common": (48, 0.005), **few, "wrong": (14, 1.0)})
    assert judge(rare, FLOOR_OF_ENERGY, n_cells=102).grade == Grade.DIFFERS
    assert average({"a": (60, 0.02), "b": (180, 0.04)})["relative_energy"] == pytest.approx(0.035)


def test_verdict_prints_as_words_and_scores():
    shown = repr(judge(worse("forest_auc", 0.1), IDEAL, n_cells=MANY))
    assert shown.startswith("nearly like real cells; small differences in forest AUC\n")
    assert ["forest", "AUC", "0.600", "0.500", "0.560", "0.640"] in [line.split() for line in shown.splitlines()]
    assert repr(judge({}, {}, n_cells=5)) == "too few cells to compare"


@pytest.mark.slow
def test_real_cells_pass_and_cells_of_other_types_do_not(example_cells):
    cells = Cells(example_cells.X, example_cells.obs["bulk_labels"].to_numpy(dtype=str))
    names, by_type = GeneNames(example_cells.var[[]]), []
    for seed in range(4):
        order = np.random.default_rng(seed).permutation(len(cells))
        test, real, training = (cells[np.sort(part)] for part in np.split(order, [200, 450]))
        mixed = Cells(real.counts, np.random.default_rng(1).permutation(real.cell_type))
        sets = {"real": real, "mixed": mixed} if seed == 0 else {"real": real}
        found = evaluate(RealCells(training, test, names), sets, EvaluationSettings(n_repeats=1))
        assert found.verdict("real").grade == Grade.SAME
        if seed == 0:
            assert found.verdict("mixed").grade == Grade.DIFFERS
            assert found.verdicts_by_type("mixed")["CD19+ B"].grade == Grade.DIFFERS
        assert set(found.verdicts_by_type("real")) == set(cells.cell_type)
        by_type += [verdict.grade for verdict in found.verdicts_by_type("real").values()]
    assert np.mean([grade == Grade.DIFFERS for grade in by_type]) < 0.1  # 5% by chance, as in the documentation
