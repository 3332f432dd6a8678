import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import roc_auc_score

from bdm.data.cells import MIN_CELLS_FOR_MEANS, Cells, sample_by_type
from bdm.data.filters import capped
from bdm.data.gene_tests import Agreement, log_fold_changes, marker_genes
from bdm.evaluation import metrics
from bdm.evaluation.metrics import (
    QueryCells,
    classifier_f1,
    compare_with_training,
    cross_validated_probabilities,
    energy_chance,
    energy_distance,
    energy_scores,
    forest,
    gene_pairs,
    gene_statistics,
    geometric_mean,
    linear_classifier,
    mean_of_pairs,
    outlying_counts,
    pair_distances,
    variance_ratios,
)
from bdm.evaluation.modality_scores import compute_umap
from bdm.evaluation.resamples import match


def cells(counts, cell_type) -> Cells:
    return Cells(sparse.csr_matrix(np.asarray(counts, dtype=np.float32)), np.asarray(cell_type, dtype=str))


@pytest.fixture
def three_types() -> Cells:
    return cells(np.arange(20)[:, None] + np.ones((20, 3)), ["a"] * 10 + ["b"] * 7 + ["c"] * 3)


def poisson_cells(n_cells: int, *, seed: int) -> Cells:
    rng = np.random.default_rng(seed)
    return cells(rng.poisson(rng.gamma(2, 1, size=30), size=(n_cells, 30)), ["a"] * n_cells)


@pytest.mark.parametrize("name", ["energy", "mmd"])
def test_distance_is_unbiased_and_grows_with_a_shift(name):
    rng = np.random.default_rng(0)
    same = [energy_scores(rng.normal(size=(12, 4)), rng.normal(size=(20, 4)))[name] for _ in range(300)]
    shifts = [
        energy_scores(rng.normal(size=(200, 4)), rng.normal(size=(200, 4)) + shift)[name] for shift in (0.5, 1.0, 2.0)
    ]
    assert abs(np.mean(same)) < 3 * np.std(same) / np.sqrt(300)
    assert min(same) < 0
    assert 0.01 < shifts[0] < shifts[1] < shifts[2]


def test_energy_distance_of_points_is_that_of_the_formula():
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]])
    assert energy_distance(pair_distances(x, y), 2) == pytest.approx(2 * (1 + 5 + 1 + 3) / 4 - 2 - 4)


def test_distance_of_a_single_cell_is_not_known():
    distances = pair_distances(np.zeros((1, 3)), np.ones((5, 3)))
    assert np.isnan(energy_distance(distances, 1))


def test_normalisation_is_to_ten_thousand_and_keeps_empty_cells_empty():
    some = cells([[1, 3, 0], [0, 0, 0]], ["a", "b"])
    assert some.cp10k.toarray() == pytest.approx(np.array([[2500, 7500, 0], [0, 0, 0]]))
    assert some.expression.toarray() == pytest.approx(np.log1p([[2500, 7500, 0], [0, 0, 0]]))


def test_sample_has_the_requested_numbers_without_repeats(three_types):
    index = sample_by_type(three_types, pd.Series({"a": 4, "b": 9, "d": 2}), seed=1)
    sampled = three_types.cell_type[index]
    assert len(set(index)) == len(index)
    assert [(sampled == name).sum() for name in "abc"] == [4, 7, 0]
    assert np.array_equal(index, sample_by_type(three_types, pd.Series({"a": 4, "b": 9}), seed=1))
    assert not np.array_equal(index, sample_by_type(three_types, pd.Series({"a": 4, "b": 9}), seed=2))


def test_match_takes_the_smaller_number_of_each_type(three_types):
    larger = cells(np.ones((9, 3)), ["a"] * 3 + ["b"] * 2 + ["c"] * 4)
    query, test = match(three_types, larger, seed=0)
    assert query.n_by_type.to_dict() == test.n_by_type.to_dict() == {"a": 3, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("most", "numbers"), [(20, [10, 7, 3]), (19, [9, 7, 3]), (15, [6, 6, 3]), (14, [5, 5, 3]), (3, [5, 5, 3])]
)
def test_bound_cuts_the_commonest_types_but_never_below_what_can_be_scored(three_types, most, numbers):
    assert capped(three_types.n_by_type, most=most, fewest=MIN_CELLS_FOR_MEANS).tolist() == numbers


def test_agreement_of_a_line():
    agreement = Agreement(query=np.array([1.0, 2.0, 3.0]), test=np.array([0.0, 2.0, 4.0]))
    assert agreement.slope == pytest.approx(0.5)
    assert agreement.correlation == pytest.approx(1)
    assert agreement.rmse == pytest.approx(np.sqrt(2 / 3))
    assert agreement.mean_difference == pytest.approx(2 / 3)


def test_fold_change_is_of_a_type_against_all_others():
    two = cells([[10, 30, 60], [10, 30, 60], [40, 30, 30]], ["a", "a", "b"])
    changes = log_fold_changes(two, ["a", "b"])
    assert changes[0] == pytest.approx(np.log2([1001 / 4001, 1, 6001 / 3001]))
    assert changes[1] == pytest.approx(-changes[0])


def test_markers_are_the_genes_raised_in_a_type():
    rng = np.random.default_rng(0)
    rate = np.full((60, 20), 3.0)
    rate[:30, :5] *= 4
    rate[30:, 5:10] *= 4
    markers = marker_genes(cells(rng.poisson(rate), ["a"] * 30 + ["b"] * 30), n_genes=5)
    assert {name: sorted(genes) for name, genes in markers.items()} == {"a": [0, 1, 2, 3, 4], "b": [5, 6, 7, 8, 9]}


def test_gene_statistics_are_those_of_dense_arrays():
    query, test = poisson_cells(50, seed=0), poisson_cells(50, seed=1)
    statistics = gene_statistics(query, test)
    assert statistics["mean"].query == pytest.approx(query.expression.toarray().mean(axis=0), rel=1e-4)
    assert statistics["variance"].test == pytest.approx(test.expression.toarray().var(axis=0), rel=1e-3)
    assert statistics["zero_fraction"].test == pytest.approx((test.counts.toarray() == 0).mean(axis=0))


def test_gene_pairs_leave_out_constant_genes():
    query = cells([[1, 2, 0, 4], [2, 1, 0, 9], [3, 3, 0, 1]], ["a"] * 3)
    assert gene_pairs(query, query, np.arange(4)).correlation == pytest.approx(1)
    assert len(gene_pairs(query, query, np.arange(4)).test) == 3


def test_variances_of_expressed_genes_are_divided_by_those_of_test_cells():
    """Of five genes, the third is rare, and the fourth does not vary in query cells."""
    query, test = (
        cells(np.tile(pair, (45, 1))[:89], ["a"] * 60 + ["b"] * 29)
        for pair in ([[1, 8, 2, 6, 1], [3, 12, 0, 6, 9]], [[0, 9, 0, 7, 0], [4, 11, 1, 9, 1]])
    )
    ratios = variance_ratios(query, test)
    assert list(ratios) == ["a"]
    assert ratios["a"] == pytest.approx([1 / 4, 4 / 1, 16 / 0.25])
    assert geometric_mean(ratios["a"]) == pytest.approx(4)
    assert np.isnan(geometric_mean(np.empty(0)))


def test_variance_ratios_of_real_cells_are_centred_at_one():
    """Outlying cells raise both the mean and the variance of a gene."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(0.8, size=(80, 2000)) + 30 * (rng.random((80, 2000)) < 0.01)
    ratios = variance_ratios(*(cells(half, ["a"] * 40) for half in np.split(counts, 2)))
    assert abs(np.log(geometric_mean(ratios["a"]))) < 0.1


def test_outlying_counts_are_ten_or_more_and_exceed_twice_the_largest_count():
    query = cells([[10, 9, 21, 20], [11, 0, 0, 100]], ["a", "a"])
    assert outlying_counts(query.counts, np.array([4.0, 4.0, 10.0, 10.0])) == 1000 * 4 / 2
    assert outlying_counts(query.counts, np.array([5.0, 4.0, 10.5, 50.0])) == 1000 * 1 / 2


@pytest.mark.parametrize("classifier", [forest(seed=0), linear_classifier()])
def test_classifier_detects_a_shift_but_not_equal_cells(classifier):
    rng = np.random.default_rng(0)
    test = rng.normal(size=(200, 5))
    auc = []
    for shift in (0, 1.5):
        query = rng.normal(size=(200, 5)) + shift
        auc.append(
            roc_auc_score([1] * 200 + [0] * 200, np.r_[cross_validated_probabilities(classifier, query, test, seed=0)])
        )
    assert abs(auc[0] - 0.5) < 0.08
    assert auc[1] > 0.9


def test_types_are_predicted_in_blocks_as_at_once(three_types, monkeypatch):
    at_once = classifier_f1(three_types, three_types)
    assert set(at_once) == {"a", "b", "c"}
    monkeypatch.setattr(metrics, "CLASSIFIER_BLOCK", 7)
    assert classifier_f1(three_types, three_types) == at_once


NONE = np.empty(0, dtype=int)  # of the query cells are training cells


def memorisation_share(query: Cells, training: Cells, test: Cells, **bounds) -> float:
    return compare_with_training([QueryCells.project(query, test, NONE, **bounds)], training)["memorisation"][0]


@pytest.mark.parametrize(("n_training", "n_test"), [(600, 150), (150, 600)])
def test_memorisation_share_is_half_without_copies_and_one_of_copies(n_training, n_test):
    shares = []
    for seed in range(4):
        known = poisson_cells(n_training + n_test + 200, seed=seed)
        query, training, test = np.split(np.arange(len(known)), [200, 200 + n_training])
        shares.append(memorisation_share(known[query], known[training], known[test]))
    assert abs(np.mean(shares) - 0.5) < 0.06
    assert memorisation_share(known[training[:100]], known[training], known[test]) == 1
    assert memorisation_share(known[training[:100]], known[training], known[test], most=10) == 1


def test_copies_are_found_in_whatever_block_they_are_and_cells_are_no_copies_of_themselves(monkeypatch):
    cells = poisson_cells(400, seed=0)
    floor, training, test = np.arange(60), np.arange(300), np.arange(300, 400)
    queries = [QueryCells.project(cells[floor], cells[test], own) for own in (NONE, floor)]
    at_once = compare_with_training(queries, cells[training])
    assert at_once["memorisation"][0] == 1
    assert abs(at_once["memorisation"][1] - 0.5) < 0.2
    assert at_once.iloc[1].equals(compare_with_training(queries[1:], cells[training]).iloc[0].rename(1))
    monkeypatch.setattr(metrics, "BLOCK", 7)
    pd.testing.assert_frame_equal(compare_with_training(queries, cells[training]), at_once, check_exact=True)


def test_counts_are_outlying_if_they_exceed_the_largest_of_any_block_of_training_cells(monkeypatch):
    """Test cells take the place of the floor, which are training cells."""
    monkeypatch.setattr(metrics, "BLOCK", 7)
    counts = poisson_cells(60, seed=0).counts.toarray()
    counts[[3, 38], [5, 6]] = 20
    counts[[45, 46, 47], [5, 6, 6]] = 40, 41, 50
    known = cells(counts, ["a"] * 60)
    floor, training, test = np.arange(20), np.arange(40), np.arange(40, 60)
    queries = [QueryCells.project(known[rows], known[test], own) for rows, own in ((floor, NONE), (floor, floor))]
    assert compare_with_training(queries, known[training])["outlying_counts"].tolist() == [0, 1000 * 2 / 20]


def test_copies_are_seen_where_test_cells_of_a_common_type_are_sampled():
    """Ratios of training and test cells differ between types."""
    cell_type = np.repeat(["common", *(f"rare {i}" for i in range(20))], [2100, *[60] * 20])
    known = Cells(poisson_cells(len(cell_type), seed=0).counts, cell_type)
    test_rows = sample_by_type(known, known.n_by_type.clip(upper=50).where(known.n_by_type > 60, 10), seed=0)
    others = np.setdiff1d(np.arange(len(known)), test_rows)
    numbers = known[test_rows].n_by_type
    query_rows = others[sample_by_type(known[others], numbers, seed=1)]
    test, query, training = known[test_rows], known[query_rows], known[np.setdiff1d(others, query_rows)]
    copied = training[sample_by_type(training, numbers // 2, seed=2)]
    rest = query[sample_by_type(query, numbers - numbers // 2, seed=3)]
    half = Cells(sparse.vstack([copied.counts, rest.counts]).tocsr(), np.r_[copied.cell_type, rest.cell_type])
    assert memorisation_share(query, training, test) == pytest.approx(0.5, abs=0.06)
    assert memorisation_share(half, training, test) > 0.64


@pytest.mark.parametrize(("n_cells", "n_dimensions"), [(10, 30), (60, 30), (60, 3)])
def test_chance_of_energy_distance_is_the_scatter_between_samples_of_one_distribution(n_cells, n_dimensions):
    rng = np.random.default_rng(0)
    scale = np.linspace(3, 1, n_dimensions)
    pairs = [pair_distances(*(rng.normal(size=(2, n_cells, n_dimensions)) * scale)) for _ in range(400)]
    energy = np.array([energy_distance(pair, n_cells) for pair in pairs])
    chances = [energy_chance(pair, n_cells) for pair in pairs]
    assert np.mean([chance.deviation for chance in chances]) == pytest.approx(energy.std(), rel=0.2)
    beyond = energy > [chance.largest(0.05) for chance in chances]
    assert beyond.mean() == pytest.approx(0.05, abs=0.03)


def test_chance_of_energy_distance_is_skewed_where_cells_are_of_two_groups():
    """Random shares of the groups vary in a single dimension."""
    rng, values = np.random.default_rng(0), []
    for _ in range(400):
        x, y = (rng.normal(size=(40, 20)) + 8 * rng.integers(2, size=40)[:, None] for _ in range(2))
        chance = energy_chance(pairs := pair_distances(x, y), 40)
        values.append((energy_distance(pairs, 40), chance.largest(0.02), 2.05 * chance.deviation))
    energy, largest, normal = np.array(values).T
    assert np.mean(energy > largest) < 0.035 < np.mean(energy > normal)


def test_error_of_energy_distance_is_its_scatter_where_samples_differ():
    rng = np.random.default_rng(0)
    scores = pd.DataFrame(energy_scores(rng.normal(size=(40, 30)) + 0.2, rng.normal(size=(60, 30))) for _ in range(300))
    assert scores["energy_error"].mean() == pytest.approx(scores["energy"].std(ddof=0), rel=0.2)


@pytest.mark.parametrize("n_dimensions", [1, 30])
def test_relative_energy_distance_of_some_cells_to_their_population_is_one_over_their_number(n_dimensions):
    """In any number of dimensions: by this the limits of verdicts are stated."""
    rng = np.random.default_rng(0)
    population, distances = rng.normal(size=(200, n_dimensions)), []
    for _ in range(400):
        pairs = pair_distances(population[rng.integers(200, size=20)], population)
        distances.append(2 * pairs[:20, 20:].mean() - pairs[:20, :20].mean() - pairs[20:, 20:].mean())
    assert np.mean(distances) / mean_of_pairs(pairs[20:, 20:]) == pytest.approx(1 / 20, rel=0.12)


def test_chance_of_memorisation_is_its_scatter_without_copies():
    tables = []
    for seed in range(40):
        known = poisson_cells(400, seed=seed)
        query, training, test = np.split(np.arange(400), [60, 300])
        tables.append(compare_with_training([QueryCells.project(known[query], known[test], NONE)], known[training]))
    tables = pd.concat(tables)
    assert tables["memorisation"].std() == pytest.approx(tables["memorisation_chance"].mean(), rel=0.5)


def test_seed_decides_the_embedding():
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    one, same, other = (compute_umap(x, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
