import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from bdm.data.cells import Cells, RealCells
from bdm.data.genes import GeneNames
from bdm.evaluation.evaluate import evaluate
from bdm.evaluation.metrics import PairDistances
from bdm.evaluation.scores import SCORE_NAMES, TYPE_SCORES, mean_scores
from bdm.evaluation.verdict import LIMITS, Grade, null_distribution, verdict
from bdm.settings import EvaluationSettings

IDEAL = {name: limit.ideal for name, limit in LIMITS.by_score.items()}
MANY = 10**6


def worse(name: str, excess: float, *, than: dict[str, float] = IDEAL) -> dict[str, float]:
    """Scores as those given, but one that is worse by some excess."""
    return than | {name: than[name] + (excess if LIMITS.by_score[name].higher else -excess)}


@pytest.mark.parametrize("name", LIMITS.by_score)
def test_the_worst_score_decides(name):
    limit = LIMITS.by_score[name]
    for excess, grade in {
        0.99 * limit.same: 0,
        1.01 * limit.same: 1,
        0.99 * limit.near: 1,
        1.01 * limit.near: 2,
    }.items():
        found = verdict(worse(name, excess), IDEAL, n_cells=MANY)
        assert found.grade == grade
        assert found.worst_scores == ((SCORE_NAMES[name],) if grade else ())


@pytest.mark.parametrize("name", LIMITS.by_score)
def test_only_what_is_worse_than_the_floor_counts(name):
    limit = LIMITS.by_score[name]
    poor = worse(name, 1.5 * limit.near)
    assert verdict(poor, poor, n_cells=MANY).grade == Grade.SAME
    assert verdict(worse(name, 1.5 * limit.same, than=poor), poor, n_cells=MANY).grade == Grade.NEAR
    # a floor that is better than ideal is so by chance, and is no goal
    lucky = worse(name, -limit.near)
    assert verdict(IDEAL, lucky, n_cells=MANY).grade == Grade.SAME


def test_few_cells_give_no_verdict():
    poor, bad = worse("relative_energy", 0.015), worse("relative_energy", 5.0)
    grades = {n: verdict(IDEAL, IDEAL, n_cells=n).grade for n in (4, 9, 10, 59, 60)}
    assert grades == {4: Grade.UNKNOWN, 9: Grade.UNKNOWN, 10: Grade.SAME, 59: Grade.SAME, 60: Grade.SAME}
    assert verdict(IDEAL, IDEAL, n_cells=59).text == "no difference seen in few cells"
    assert verdict(IDEAL, IDEAL, n_cells=60).text == "cannot be distinguished from real cells"
    small = [verdict(poor, IDEAL, n_cells=n).grade for n in (5, 9, 10, 100)]
    assert small == [Grade.UNKNOWN] * 2 + [Grade.SAME, Grade.NEAR]  # chance gives as much to ten cells
    assert [verdict(bad, IDEAL, n_cells=n).grade for n in (0, 5, 9, 10)] == [Grade.UNKNOWN] * 3 + [Grade.DIFFERS]
    assert verdict(bad, IDEAL, n_cells=9).text == "too few cells to compare"
    # chance gives such an AUC to ten cells, not to a thousand
    assert verdict(worse("forest_auc", 0.2), IDEAL, n_cells=10).grade == Grade.SAME
    assert verdict(worse("forest_auc", 0.2), IDEAL, n_cells=1000).grade == Grade.DIFFERS


@pytest.mark.parametrize("name", ["relative_energy", "forest_auc", "gene_auc"])
def test_many_cells_are_enough_to_see_a_medium_difference(name):
    limit = LIMITS.by_score[name]
    of_many, of_few = (null_distribution(name, {}, {}, n_cells=n) for n in (LIMITS.many_cells, LIMITS.many_cells // 2))
    assert of_many.largest(LIMITS.level) <= 1.05 * limit.near < of_few.largest(LIMITS.level)


@pytest.mark.parametrize("name", LIMITS.by_score)
def test_more_cells_never_make_the_verdict_on_the_same_scores_better(name):
    numbers = [0, 2, 5, 7, 9, *range(10, 80, 4), 100, 1000, MANY]
    for excess in np.linspace(0, 1.2, 31):
        poor = worse(name, float(excess))
        grades = [verdict(poor, IDEAL, n_cells=n).grade for n in numbers]
        assert set(grades[:5]) == {Grade.UNKNOWN}  # whatever the scores: no verdict on 5 cells, and none on 7
        assert Grade.UNKNOWN not in grades[5:]
        assert grades[5:] == sorted(grades[5:])


def test_scores_that_are_not_known_are_passed_over():
    assert verdict({}, {}, n_cells=MANY).grade == Grade.UNKNOWN
    some = {"relative_energy": 0.01, "f1": None, "forest_auc": float("nan")}
    assert [found.score for found in verdict(some, IDEAL, n_cells=MANY).findings] == ["relative_energy"]


def thirty_components(n_cells: int, *, seed: int) -> np.ndarray:
    """Cells of one type, whose variance decreases from component to component as in real cells."""
    return np.random.default_rng(seed).normal(size=(n_cells, 30)) / np.sqrt(np.arange(1, 31))


def energy_scores(x: np.ndarray, y: np.ndarray) -> dict[str, float]:
    pairs = PairDistances.between(x, y)
    return {
        "relative_energy": pairs.energy / pairs.spread,
        "relative_energy_chance": pairs.energy_chance.deviation / pairs.spread,
        "relative_energy_skewness": pairs.energy_chance.skewness,
    }


FLOOR_OF_ENERGY = {"relative_energy": 0.0, "relative_energy_chance": 0.0}


def test_shift_along_one_of_thirty_components_is_seen_by_the_energy_distance():
    """By half a standard deviation, as a classifier would; by a tenth, not."""
    grades = {}
    for shift in (0, 0.1, 0.6):
        x, y = thirty_components(500, seed=0), thirty_components(500, seed=1)
        x[:, 0] += shift
        grades[shift] = verdict(energy_scores(x, y), FLOOR_OF_ENERGY, n_cells=500).grade
    assert grades == {0: Grade.SAME, 0.1: Grade.SAME, 0.6: Grade.DIFFERS}


def test_few_real_cells_are_not_further_than_chance_from_others():
    """Chance is derived in the space of the cells, however many of its dimensions vary."""
    for n_dimensions in (2, 30):
        found = []
        for seed in range(200):
            x, y = (thirty_components(12, seed=2 * seed + i)[:, :n_dimensions] for i in (0, 1))
            found.append(verdict(energy_scores(x, y), FLOOR_OF_ENERGY, n_cells=12).grade)
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
    assert scores["energy"] > LIMITS.relative_energy.near > scores["relative_energy"]
    assert verdict(scores, FLOOR_OF_ENERGY, n_cells=88).grade == Grade.SAME
    worse = average({"common": (48, 0.05), **few})
    assert verdict(worse, FLOOR_OF_ENERGY, n_cells=88).grade == Grade.DIFFERS
    rare = average({"common": (48, 0.005), **few, "wrong": (14, 1.0)})
    assert verdict(rare, FLOOR_OF_ENERGY, n_cells=102).grade == Grade.DIFFERS
    assert average({"a": (60, 0.02), "b": (180, 0.04)})["relative_energy"] == pytest.approx(0.035)


def test_verdict_prints_as_words_and_scores():
    shown = repr(verdict(worse("forest_auc", 0.1), IDEAL, n_cells=MANY))
    assert shown.startswith("nearly like real cells; small differences in forest AUC\n")
    assert ["forest", "AUC", "0.600", "0.500", "0.560", "0.640"] in [line.split() for line in shown.splitlines()]
    assert repr(verdict({}, {}, n_cells=5)) == "too few cells to compare"


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
