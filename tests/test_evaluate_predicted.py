"""Evaluation of predicted cells: sets of cells whose scores are known, definitions of other packages, and bad input."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from sklearn.metrics import pairwise_distances

from bdm._core.errors import InputError
from bdm.evaluation.predicted import PredictedEvaluation, evaluate_predicted, score, top_genes
from bdm.settings import PredictedEvaluationSettings

N_GENES, N_CHANGED = 60, 15
QUICK = {"n_top_genes": N_CHANGED, "n_repeats": 2}
SETTINGS = PredictedEvaluationSettings(label_key="cell_type", **QUICK)
ONE_TYPE = PredictedEvaluationSettings(**QUICK)


def simulated(response: dict[str, float], *, seed: int, n_cells: int = 60) -> AnnData:
    """Counts of cells of some types, whose first genes the condition multiplies by ``1 + 4 * response``."""
    rng = np.random.default_rng(seed)
    genes, baseline = np.arange(N_GENES), np.random.default_rng(0).gamma(2, 3, N_GENES)
    counts, types = [], []
    for number, (cell_type, size) in enumerate(response.items()):
        mean = np.roll(baseline, 20 * number) * np.where(genes < N_CHANGED, 1 + 4 * size, 1)
        counts.append(rng.poisson(mean * rng.gamma(20, 1 / 20, (n_cells, 1))))
        types += [cell_type] * n_cells
    obs = pd.DataFrame({"cell_type": types}, index=[f"{seed}-{i}" for i in range(len(types))])
    values = sparse.csr_matrix(np.concatenate(counts), dtype=np.float32)
    return AnnData(values, obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in genes]))


def log_normalised(adata: AnnData) -> AnnData:
    counts = adata.X.toarray()
    return AnnData(np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)), obs=adata.obs, var=adata.var)


BOTH = {"A": 1.0, "B": 1.0}


@pytest.fixture(scope="module")
def control() -> AnnData:
    return simulated(dict.fromkeys(BOTH, 0), seed=1)


@pytest.fixture(scope="module")
def real() -> AnnData:
    return simulated(BOTH, seed=2)


# ---- known answers


def test_cells_of_the_same_distribution_are_at_the_floor_and_control_cells_are_not(control, real):
    evaluation = evaluate_predicted(control, real, simulated(BOTH, seed=3), SETTINGS)
    overall = evaluation.overall
    top = overall.loc["top"]
    assert top.loc["pearson_delta", ["floor", "predicted"]].min() > 0.9
    assert abs(top.loc["pearson_delta", "unchanged"]) < 0.6
    assert top.loc["common_degs", ["floor", "predicted"]].min() > 0.7
    assert top.loc["common_degs", "unchanged"] < 0.5
    assert (top.loc["direction_match", ["floor", "predicted"]] == 1).all()
    errors = ["edistance", "mmd", "mse", "mae"]
    for genes in ("top", "all"):
        scores = overall.loc[genes]
        assert (scores.loc[errors, "unchanged"] > 2 * scores.loc[errors, ["floor", "predicted"]].max(axis=1)).all()
        assert scores.loc["r2_mean", "predicted"] > 0.9 > scores.loc["r2_mean", "unchanged"]
    assert evaluation.positions["predicted"].abs().max() < 0.05
    assert evaluation.positions[["floor", "unchanged"]].to_numpy().tolist() == [[0, 1], [0, 1]]
    assert re.match(r"predicted cells are [0-5]% of the way from real cells", evaluation.verdict)


def test_a_floor_below_zero_is_a_position_of_zero(control, real):
    evaluation = evaluate_predicted(control, real, simulated(BOTH, seed=3), SETTINGS)
    scores = evaluation.scores.copy()
    scores.loc[(slice(None), "floor"), "edistance"] = -0.001
    below = replace(evaluation, scores=scores)
    assert below.positions[["floor", "unchanged"]].to_numpy().tolist() == [[0, 1], [0, 1]]
    assert re.match(r"predicted cells are [0-5]% of the way from real cells \(0.00\)", below.verdict)


@pytest.mark.parametrize(
    ("response", "low", "high"),
    [(0.4, 0.1, 0.9), (0.0, 0.9, 1.1), (-0.2, 1.2, 5)],
    ids=["weak", "none", "opposite"],
)
def test_the_verdict_places_the_prediction_between_real_and_unchanged_cells(control, real, response, low, high):
    evaluation = evaluate_predicted(control, real, simulated(dict.fromkeys(BOTH, response), seed=3), SETTINGS)
    assert evaluation.positions["predicted"].between(low, high).all()
    [place] = re.findall(r"^predicted cells are (\d+)% of the way", evaluation.verdict)
    assert low <= int(place) / 100 <= high


def test_types_without_a_response_are_named(control):
    predicted = simulated(BOTH, seed=3)
    in_none = evaluate_predicted(control, simulated(dict.fromkeys(BOTH, 0), seed=5), predicted, SETTINGS)
    assert in_none.verdict.startswith("there is no response to predict")
    in_one = evaluate_predicted(control, simulated({"A": 0, "B": 1}, seed=5), predicted, SETTINGS)
    assert in_one.without_response == ("A",)
    assert in_one.verdict.endswith("no response was seen in A")


def test_the_common_response_is_right_where_all_types_respond_alike_and_wrong_elsewhere(control):
    predicted = simulated(BOTH, seed=3)
    alike = evaluate_predicted(control, simulated(BOTH, seed=2), predicted, SETTINGS)
    unlike = evaluate_predicted(control, simulated({"A": 0.1, "B": 1.5}, seed=2), predicted, SETTINGS)
    assert alike.positions["common_response"].max() < 0.3
    assert unlike.positions.loc["A", "common_response"] > 1
    assert "the common response of the other types" in alike.verdict


def test_all_cells_are_of_one_type_without_a_label_key(control, real, caplog):
    [a_control, a_real] = [adata[adata.obs["cell_type"] == "A"] for adata in (control, real)]
    evaluation = evaluate_predicted(a_control, a_real, simulated({"A": 1}, seed=3), ONE_TYPE)
    assert list(evaluation.scores.index.unique("set")) == ["floor", "predicted", "unchanged"]
    assert list(evaluation.scores.index.unique("cell_type")) == ["cells of all types"]
    assert evaluation.verdict.endswith("no common response to compare with, as there are no other types")
    assert (
        "No column of cell types is named by `settings.label_key=`, so cells of all types are compared as one."
        in caplog.text
    )


def test_counts_and_their_log_normalised_values_have_the_same_scores(control, real, caplog):
    predicted = simulated(BOTH, seed=3)
    counts = evaluate_predicted(control, real, predicted, SETTINGS)
    logs = evaluate_predicted(control, real, log_normalised(predicted), SETTINGS)
    pd.testing.assert_frame_equal(counts.scores, logs.scores, rtol=1e-4)
    assert logs.values == {"control": "raw counts", "real": "raw counts", "predicted": "log-normalised values"}
    assert "log-normalised values (predicted)" in caplog.text
    assert "before log1p" not in caplog.text


def test_the_order_of_genes_does_not_matter_and_missing_genes_are_listed(control, real, caplog):
    predicted = simulated(BOTH, seed=3)
    kept = predicted[:, ::-1][:, :-2]
    scores = evaluate_predicted(control, real, kept, SETTINGS).scores
    expected = evaluate_predicted(control[:, 2:], real[:, 2:], predicted[:, 2:], SETTINGS).scores
    pd.testing.assert_frame_equal(scores, expected)
    assert "58 genes are compared; not all files have gene0, gene1." in caplog.text


def test_values_of_another_scale_give_a_warning(control, real, caplog):
    per_million = log_normalised(simulated(BOTH, seed=3))
    per_million.X = np.log1p(100 * np.expm1(per_million.X))
    evaluate_predicted(control, real, per_million, SETTINGS)
    assert "Cells of predicted have 1000000 counts before log1p, control cells 10000;" in caplog.text


def test_the_same_seed_gives_the_same_scores(control, real):
    predicted = simulated(BOTH, seed=3)
    one, again, other = (evaluate_predicted(control, real, predicted, SETTINGS, seed=seed) for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(one.scores, again.scores)
    assert not one.scores.equals(other.scores)


# ---- definitions


@pytest.mark.parametrize("n_cells", [5, 50])
def test_e_distances_of_cells_of_one_distribution_scatter_around_0(n_cells):
    rng = np.random.default_rng(0)
    distances = [score(*rng.normal(size=(2, n_cells, 8)), np.zeros(8))["edistance"] for _ in range(100)]
    assert np.mean(distances) == pytest.approx(0, abs=3 * np.std(distances) / 10)
    assert np.mean(np.array(distances) < 0) > 0.3


def test_scores_are_defined_as_in_the_packages_that_they_are_named_after():
    rng = np.random.default_rng(0)
    query, real, control = rng.gamma(1, 1, (30, 8)), rng.gamma(2, 1, (40, 8)), rng.gamma(1, 2, 8)
    scores = score(query, real, control)
    mean, real_mean = query.mean(axis=0), real.mean(axis=0)
    within = [pairwise_distances(cells).sum() / (len(cells) * (len(cells) - 1)) for cells in (query, real)]
    assert scores["edistance"] == pytest.approx(2 * pairwise_distances(query, real).mean() - sum(within))
    assert scores["pearson_delta"] == pytest.approx(np.corrcoef(mean - control, real_mean - control)[0, 1])
    assert scores["mse"] == pytest.approx(np.square(mean - real_mean).mean())
    assert scores["mae"] == pytest.approx(np.abs(mean - real_mean).mean())
    explained = 1 - np.square(mean - real_mean).sum() / np.square(real_mean - real_mean.mean()).sum()
    assert scores["r2_mean"] == pytest.approx(explained)


def test_top_genes_are_by_welchs_t_of_either_sign_and_constant_genes_are_last():
    rng = np.random.default_rng(0)
    control, cells = rng.normal(5, 1, (50, 4)), rng.normal(5, 1, (30, 4))
    cells[:, 1] -= 3
    cells[:, 3] += 2
    control[:, 0] = cells[:, 0] = 2
    assert top_genes(cells, control, 2).tolist() == [1, 3]
    assert top_genes(cells, control, 4).tolist() == [1, 3, 2, 0]


# ---- files


def test_the_command_writes_what_python_returns(control, real, tmp_path, bdm, caplog):
    predicted = simulated(BOTH, seed=3)
    for name, adata in (("control", control), ("real", real), ("predicted", predicted)):
        adata.write_h5ad(tmp_path / f"{name}.h5ad")
    files = [tmp_path / f"{name}.h5ad" for name in ("control", "real", "predicted")]
    options = ["--label-key", "cell_type", "--n-top-genes", N_CHANGED, "--n-repeats", 2, "--seed", 7]
    assert bdm("evaluate-predicted", *files, tmp_path / "out", *options)[0] == 0
    assert caplog.text.count("of the way from real cells") == 1
    loaded = PredictedEvaluation.load(tmp_path / "out")
    expected = evaluate_predicted(control, real, predicted, SETTINGS, seed=7)
    pd.testing.assert_frame_equal(loaded.scores, expected.scores)
    assert loaded.verdict == expected.verdict
    assert set(loaded.provenance["sha256"]) == {"control", "real", "predicted"}
    table = pd.read_csv(tmp_path / "out/scores.csv", index_col=[0, 1, 2]).astype(float)
    pd.testing.assert_frame_equal(table, expected.scores, rtol=1e-5)


# ---- bad input


def changed(adata: AnnData, **values) -> AnnData:
    copied = adata.copy()
    for name, value in values.items():
        setattr(copied, name, value)
    return copied


def with_value(adata: AnnData, value: float) -> AnnData:
    values = adata.X.toarray()
    values[3, 4] = value
    return changed(adata, X=values)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            lambda of: changed(of, var_names=[f"other{i}" for i in range(N_GENES)]),
            r"There are 0 common genes \(gene0 in control, gene0 in",
        ),
        (lambda of: of[:, :10], "There are 10 common genes .*, too few for `settings.n_top_genes=15`; name"),
        (lambda of: changed(of, var_names=["gene0"] * N_GENES), "predicted repeats the genes gene0"),
        (lambda of: with_value(of, -0.5), "predicted has -0.5 for gene gene4 in cell 3-3, which is neither"),
        (lambda of: with_value(of, 123.4), "predicted has .* which is neither a count nor log-normalised"),
        (lambda of: with_value(of, np.nan), "predicted has nan for gene gene4"),
        (lambda of: changed(of, obs=of.obs.replace("B", "C")), "predicted has cells of types that control lacks: C"),
        (lambda of: of[:4], "too few cells of A; a type needs 10 of control, 10 of real, 5 of predicted"),
        (lambda of: of[:0], "predicted has no cells with values in X"),
        (lambda of: AnnData(obs=of.obs, var=of.var), "predicted has no cells with values in X"),
        (lambda of: changed(of, obs=of.obs[[]]), "predicted has no column 'cell_type' in obs; name another"),
    ],
)
def test_bad_cells_are_rejected_in_one_sentence(control, real, change, sentence):
    with pytest.raises(InputError, match=sentence):
        evaluate_predicted(control, real, change(simulated(BOTH, seed=3)), SETTINGS)


def test_a_type_of_few_cells_is_left_out_with_a_warning(control, real, caplog):
    predicted = simulated(BOTH, seed=3)
    rows = (predicted.obs["cell_type"] == "A") | (np.arange(predicted.n_obs) < 63)
    evaluation = evaluate_predicted(control, real, predicted[rows], SETTINGS)
    assert list(evaluation.scores.index.unique("cell_type")) == ["A"]
    assert "Some types are not scored, as there are too few cells of B; a type needs 10 of control, " in caplog.text
