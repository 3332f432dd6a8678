"""Responses to conditions: measurement, prediction, cells, invalid input."""

import json
import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from r_readers import check_r_reads
from test_workflow import ROOT, snakemake, write_config

import bdm as package
from bdm import tl
from bdm._core.errors import InputError
from bdm.applications.relations.gaussian_process import Hypothesis, Prior
from bdm.applications.relations.measure_responses import measure
from bdm.applications.relations.predict import cells_to_change
from bdm.applications.relations.pseudobulk import PSEUDO
from bdm.applications.relations.respond import permutation_of
from bdm.applications.relations.responses import NO_ERRORS, Responses, responses_section
from bdm.settings import ResponseSettings

TYPES = ("a", "b", "c", "d", "e", "f", "g")
HEIGHT = np.ones((7, 7))  # of common ancestors in the tree (((a, b), c), ((d, e), (f, g)))
HEIGHT[:3, :3] = HEIGHT[3:, 3:] = 2 / 3
HEIGHT[:2, :2] = HEIGHT[3:5, 3:5] = HEIGHT[5:, 5:] = 1 / 3
np.fill_diagonal(HEIGHT, 0)
N_GENES = 150
SETTINGS = ResponseSettings(label_key="kind")


def simulated_cells(
    *, shared: float, seed: int, n_cells: int = 120, n_donors: int = 0, between: float = 0.0, response: float = 1.0
) -> ad.AnnData:
    """Simulate seven types in two conditions.

    ``shared`` is the share of response variance along the tree, ``response`` the factor of all responses, and
    ``between`` the standard deviation between donors, which is the same in all types of a condition.
    """
    rng = np.random.default_rng(seed)
    path = np.linalg.cholesky(1 - HEIGHT + 1e-9 * np.eye(7))
    profile = rng.normal(0, 1, N_GENES) + 0.7 * path @ rng.normal(size=(7, N_GENES))
    mean = rng.normal(0, 0.5, N_GENES) * (rng.random(N_GENES) < 0.5)
    evolved, independent = path @ rng.normal(size=(7, N_GENES)), rng.normal(size=(7, N_GENES))
    change = response * (mean + 0.6 * (np.sqrt(shared) * evolved + np.sqrt(1 - shared) * independent))
    donor = rng.normal(0, between, (max(n_donors, 1), 2, N_GENES))
    counts, obs = [], []
    for row, name in enumerate(TYPES):
        for condition in range(2):
            for cell in range(n_cells):
                who = cell % max(n_donors, 1)
                log = profile[row] + condition * change[row] + donor[who, condition] * (n_donors > 0)
                rate = np.exp(log) / np.exp(log).sum() * rng.lognormal(7, 0.3)
                counts.append(rng.poisson(rate * rng.gamma(5, 1 / 5, N_GENES)))
                obs.append((name, ("ctrl", "stim")[condition], f"donor {who}"))
    table = pd.DataFrame(obs, columns=["kind", "condition", "donor"], index=[f"cell {i}" for i in range(len(obs))])
    names = pd.DataFrame(index=[f"gene {i}" for i in range(N_GENES)])
    return ad.AnnData(sp.csr_matrix(np.array(counts, dtype=np.float32)), obs=table, var=names)


def without(cells: ad.AnnData, kind: str, condition: str = "stim") -> ad.AnnData:
    return cells[~((cells.obs["kind"] == kind) & (cells.obs["condition"] == condition)).to_numpy()].copy()


def select(cells: ad.AnnData, kind: str, condition: str) -> ad.AnnData:
    return cells[((cells.obs["kind"] == kind) & (cells.obs["condition"] == condition)).to_numpy()].copy()


def share(cells: ad.AnnData) -> np.ndarray:
    return cells.X.sum(axis=0).A1 / cells.X.sum()


def off(cells: ad.AnnData, real: ad.AnnData) -> float:
    """Mean error of log shares."""
    return np.abs(np.log(share(cells) / share(real))).mean()


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return simulated_cells(shared=0.95, seed=0)


@pytest.fixture(scope="module")
def responses(cells) -> Responses:
    """Responses without type ``b`` in the condition."""
    return tl.respond(without(cells, "b"), SETTINGS)


# ---- measurement


def test_effects_are_log_ratios_of_shares(cells):
    measured, halves = measure(cells, SETTINGS)
    before, after = (np.log(share(select(cells, "c", name)) + PSEUDO) for name in ("ctrl", "stim"))
    np.testing.assert_allclose(measured.effect[0, 2], after - measured.profile[2], rtol=1e-4, atol=1e-5)
    shrunk = np.abs(measured.profile[2] - before)
    assert 0 < np.median(shrunk) < 0.1 * np.std(before)
    assert measured.n_cells.loc["c"].tolist() == [120, 120]
    mean = (halves[0].effect + halves[1].effect) / 2
    assert np.corrcoef(mean[0, 2], measured.effect[0, 2])[0, 1] > 0.99


def test_variance_is_that_of_resampled_cells(cells):
    rng, measured = np.random.default_rng(0), measure(cells, SETTINGS)[0]
    counts = [select(cells, "d", name).X.toarray() for name in ("ctrl", "stim")]

    def effect() -> np.ndarray:
        sums = [of_condition[rng.integers(0, 120, 120)].sum(axis=0) for of_condition in counts]
        control, changed = (np.log(of_condition / of_condition.sum() + PSEUDO) for of_condition in sums)
        return changed - control

    resampled = np.var([effect() for _ in range(300)], axis=0)
    assert 0.9 < np.median(measured.variance[0, 3] / resampled) < 1.15


def test_donors_are_the_replicates():
    cells = simulated_cells(shared=0.5, seed=1, n_donors=6, between=0.5)
    of_donors = measure(cells, replace(SETTINGS, donor_key="donor"))[0]
    of_cells = measure(cells, SETTINGS)[0].sampling_variance(0)
    assert (of_donors.sampling_variance(0) >= of_cells).all()
    assert 0.5 < np.median(of_donors.sampling_variance(0)) / (2 * 0.5**2 / 6) < 2  # two conditions, six donors
    assert of_donors.donor_correlation[0].min() > 0.6  # donors differ in the same way in all types
    same = measure(simulated_cells(shared=0.5, seed=1, n_donors=6), replace(SETTINGS, donor_key="donor"))[0]
    assert np.median(same.sampling_variance(0) / same.variance[0]) < 1.5


def test_several_columns_are_crossed(cells):
    crossed = cells.copy()
    crossed.obs["dose"] = np.where(cells.obs["condition"] == "ctrl", "none", np.resize(["low", "high"], cells.n_obs))
    fitted = tl.respond(crossed, replace(SETTINGS, condition_key=("condition", "dose")))
    assert (fitted.control, fitted.conditions) == ("ctrl, none", ("stim, high", "stim, low"))
    predicted = tl.predict(fitted, select(crossed, "a", "ctrl"), "stim, low")
    assert predicted.obs[["condition", "dose"]].drop_duplicates().to_numpy().tolist() == [["stim", "low"]]


# ---- the Gaussian process


def test_places_that_are_left_out_together_do_not_predict_each_other(cells):
    measured, others = measure(cells, SETTINGS)[0], np.array([0, 2, 3, 5, 6])
    data = measured.gaussian_process("stim", measured.relate_types()).fit()
    data = replace(data, shared_errors=0.3 * torch.ones(N_GENES, 7, 1, dtype=torch.double))
    mean, variance = data.leave_out([np.array([1, 4]), others])
    by_place = {name: getattr(data, name)[:, others] for name in ("values", "variance", "covariate", "shared_errors")}
    within, cross, between = (
        [kernel.numpy()[np.ix_(*places)] for kernel in data.kernels]
        for places in ((others, others), ([1, 4], others), ([1, 4], [1, 4]))
    )
    alone = replace(data, **by_place, kernels=tuple(map(torch.from_numpy, within)))
    direct = alone.predict(cross, between, covariate=data.covariate[:, [1, 4]].numpy())
    np.testing.assert_allclose(mean[:, [1, 4]], direct.mean, atol=1e-8)
    np.testing.assert_allclose(variance[:, [1, 4]], direct.variance, rtol=1e-6)
    np.testing.assert_allclose(sum(direct.terms.values()), direct.mean, atol=1e-9)


def test_evidence_of_hypotheses_of_one_factor_is_that_of_each_alone(cells):
    measured = measure(cells, SETTINGS)[0]
    data = measured.gaussian_process("stim", measured.relate_types())
    strengths = [(0.0, 0.0), (0.3, 0.0), (0.0, 1.0), (1.0, 0.3)]  # of the constant and the level
    hypotheses = [Hypothesis(kernel, 0.9, 0.5, *pair) for kernel in (-1, 2) for pair in strengths]
    process = replace(data, prior=Prior(tuple(hypotheses), np.ones(len(hypotheses)), 0.2))
    each = torch.stack([posterior.evidence for *_, posterior in process.posteriors()], dim=1)
    torch.testing.assert_close(data.evidence(hypotheses, 0.2), each)


def test_related_types_predict_what_evolved_along_a_tree(cells):
    error = tl.respond(cells, SETTINGS).expected_error("stim")
    assert error["predicted"] < 0.85 * error["permuted"]  # permuted types have some true relations
    assert error["predicted"] < error["common"]
    assert error["halves"] < error["predicted"] < 1


def test_no_relation_is_found_where_there_is_none():
    fitted = tl.respond(simulated_cells(shared=0, seed=3), SETTINGS)
    error = fitted.expected_error("stim")
    assert error["predicted"] < 1.05 * error["permuted"]
    assert error["predicted"] < error["nearest"]
    assert fitted.warnings("stim") == [
        "In stim: predictions are no better than by the mean response of the other types or permuted relations."
    ]


def test_nothing_is_predicted_where_nothing_responds():
    """Control profiles and effects share sampling errors, but effects do not regress to the mean."""
    cells = simulated_cells(shared=0.5, seed=4, response=0.0)
    fitted = tl.respond(without(cells, "b"), SETTINGS)
    assert abs(fitted.priors[0].slope) < 0.03
    effects, (measured, _) = fitted.effects("stim"), measure(cells, SETTINGS)
    assert (effects["sign"] > 0.95).mean() < 0.07
    predicted = effects.loc[effects["cell_type"] == "b", "log2_fold_change"] * np.log(2)
    real = measured.effect[0, 1]
    assert np.mean((predicted - real) ** 2) < 1.02 * np.mean(real**2)
    assert "is predicted no better than by unchanged cells" in fitted.sentence("stim")
    assert "In stim: no response is seen beyond sampling error." in fitted.warnings("stim")


@pytest.mark.parametrize("between", [0.15, 0.3])
def test_differences_between_donors_are_no_response(between):
    """Four donors in each condition differ in the same way in all types."""
    cells = simulated_cells(shared=0.5, seed=5, n_donors=4, between=between, response=0.0)
    cells.obs["donor"] = cells.obs["donor"] + " of " + cells.obs["condition"]
    fitted = tl.respond(without(cells, "b"), replace(SETTINGS, donor_key="donor"))
    effects = fitted.effects("stim")
    assert (effects["sign"] > 0.95).mean() < 0.1
    assert (np.abs(effects["log2_fold_change"]) < 1.645 * effects["sd"]).mean() > 0.85
    assert re.search(r"no better than by unchanged cells, .* in the other half of the donors", fitted.sentence("stim"))
    if between == 0.3:
        careless = tl.respond(without(cells, "b"), SETTINGS).effects("stim")
        assert (careless["sign"] > 0.95).mean() > 0.25  # as the same donors are in both halves of the cells


@pytest.mark.parametrize("is_paired", [False, True])
def test_differences_between_single_donors_are_no_response(is_paired):
    """Three types have cells of one donor in each condition, or a second one with a few cells; all are measured."""
    cells = simulated_cells(shared=0.5, seed=5, n_donors=4, between=0.4, response=0.0)
    number = cells.obs["donor"].str[-1].astype(int)
    if not is_paired:
        cells.obs["donor"] += " of " + cells.obs["condition"]
    single = cells.obs["kind"].map({"e": 0, "f": 1, "g": 2})
    is_stray = (number == 3) & (np.arange(cells.n_obs) % 120 < 4)
    changed = (number - (cells.obs["condition"] == "stim") * is_paired) % 4  # another donor in each condition
    cells = cells[(single.isna() | (changed == single) | is_stray).to_numpy()].copy()
    settings = replace(SETTINGS, donor_key="donor")
    measured = measure(cells, settings)[0]
    ratio = np.median(measured.donor_error[0, 4:] ** 2, axis=1) / (2 * 0.4**2)  # one donor in each condition
    assert ((ratio > 0.4) & (ratio < 1.5)).all()
    effects = tl.respond(cells, settings).effects("stim")
    assert (effects["sign"] > 0.95).mean() < 0.05


@pytest.mark.parametrize("shared", [0, 0.5, 1])
def test_intervals_of_types_that_were_left_out_are_calibrated(shared):
    covered, of_large = [], []
    for seed, name in enumerate(TYPES):
        cells = simulated_cells(shared=shared, seed=10 + seed)
        table = tl.respond(without(cells, name), SETTINGS).effects("stim", [name]).set_index("gene")
        measured, row = measure(cells, SETTINGS)[0], TYPES.index(name)
        off = measured.effect[0, row] / np.log(2) - table.loc[measured.genes.index, "log2_fold_change"]
        sd = np.sqrt(table.loc[measured.genes.index, "sd"] ** 2 + measured.sampling_variance(0)[row] / np.log(2) ** 2)
        inside = np.abs(off) < 1.645 * sd
        covered.append(inside.mean())
        of_large.append(inside[np.abs(table.loc[measured.genes.index, "log2_fold_change"]) > 1])
    assert 0.85 <= np.mean(covered) <= 0.96
    assert 0.8 <= np.concatenate(of_large).mean() <= 0.97


def test_branches_name_genes_that_one_clade_alone_changes(cells):
    planted = cells.copy().X.toarray()
    planted[np.ix_((cells.obs["kind"].isin(["d", "e", "f", "g"]) & (cells.obs["condition"] == "stim")), [7])] += 200
    changed = ad.AnnData(sp.csr_matrix(planted), obs=cells.obs, var=cells.var)
    table = tl.respond(changed, SETTINGS).branches("stim")
    assert table["cell_types"].drop_duplicates().tolist()[:2] == ["a; b; c; d; e; f; g", "d; e; f; g"]
    first = table[table["cell_types"] == "d; e; f; g"].iloc[0]
    assert first["gene"] == "gene 7"
    assert first["change"] > 1


def test_changes_on_branches_have_the_standard_deviation_of_correlated_types(cells):
    """Errors of related types are correlated, and cancel in their differences."""
    fitted = tl.respond(cells, SETTINGS)
    prior = Prior((Hypothesis(0, 0.9, 0.5, 1.0, 0.0),), np.ones(1))
    table = replace(fitted, priors=(prior,)).branches("stim").set_index(["cell_types", "gene"])
    process, gene = replace(fitted, priors=(prior,)).gaussian_process("stim", fitted.relate_types()), 3
    covariance = 1 + 0.25 * (0.9 * process.kernels[0] + 0.1 * torch.eye(7)).numpy()
    sampling = process.sampling_covariance[gene].numpy()
    posterior = covariance - covariance @ np.linalg.solve(covariance + sampling, covariance)
    weight = np.array([0.5, 0.5, 0, 0, 0, 0, 0]) - np.array([1, 1, 1, 0, 0, 0, 0]) / 3
    row = table.loc[("a; b", f"gene {gene}")]
    assert row["change"] / row["z"] == pytest.approx(np.sqrt(weight @ posterior @ weight) / np.log(2), rel=1e-4)


def test_branches_without_measured_types_have_wider_intervals(cells):
    """They are calibrated as predictions of types that were left out."""
    fitted = tl.respond(cells[~(cells.obs["kind"].isin(["a", "b"]) & (cells.obs["condition"] == "stim"))], SETTINGS)
    [prior] = fitted.priors
    twice = replace(fitted, priors=(replace(prior, calibration=prior.calibration * [[2], [1]]),))
    z, half = (each.branches("stim").set_index(["cell_types", "gene"])["z"] for each in (fitted, twice))
    ratio = (z / half[z.index]).groupby("cell_types").mean()
    assert (ratio[["a", "b", "a; b"]] == 2).all()
    assert (ratio.drop(["a", "b", "a; b"]) == 1).all()


# ---- cells


def test_cells_of_an_unmeasured_type_have_the_predicted_means(cells, responses):
    control = select(cells, "b", "ctrl")[np.arange(2400) % 120].copy()
    control.obs_names_make_unique()
    predicted = tl.predict(responses, control, "stim", seed=0)
    assert predicted.obs_names.equals(control.obs_names)
    assert set(predicted.obs["condition"]) == {"stim"}
    assert set(predicted.obs["original_condition"]) == {"ctrl"}
    assert set(predicted.obs["response"]) == {"predicted"}
    assert (predicted.X.data == np.rint(predicted.X.data)).all()
    assert predicted.X.data.min() > 0
    change = responses.effects("stim", ["b"]).set_index("gene").loc[cells.var_names, "log2_fold_change"] * np.log(2)
    expected = (share(control) + PSEUDO) * np.exp(change) - PSEUDO
    assert expected.sum() < 0.95  # without the scale, libraries would be smaller
    assert predicted.X.sum() / control.X.sum() == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(share(predicted), expected / expected.sum(), atol=4e-3)
    real = select(cells, "b", "stim")
    assert off(predicted, real) < 0.7 * off(control, real)


def test_variance_of_predicted_cells_is_that_of_real_ones(cells, responses):
    predicted, real = tl.predict(responses, select(cells, "c", "ctrl"), "stim", seed=0), select(cells, "c", "stim")
    of_predicted, of_real = (np.log1p(x.X.toarray() / x.X.sum(axis=1).A1[:, None] * 1e3) for x in (predicted, real))
    ratio = of_predicted.var(axis=0) / of_real.var(axis=0)
    assert 0.8 < np.median(ratio) < 1.25


def test_same_seed_same_cells_whatever_else_is_predicted(cells, responses):
    first = tl.predict(responses, cells, "stim", cell_types="b", seed=3)
    second = tl.predict(responses, cells, "stim", cell_types=["a", "b"], seed=3)
    third = tl.predict(responses, cells, "stim", cell_types=["b"], seed=4)
    assert (first.X != second[first.obs_names].X).nnz == 0
    assert (first.X != third.X).nnz > 0
    assert set(second.obs["kind"]) == {"a", "b"}


def test_a_new_type_is_predicted_from_its_control_cells(cells, caplog):
    """Cells may have duplicate names, as in joined files."""
    lacking = cells[(cells.obs["kind"] != "e").to_numpy()].copy()
    fitted = tl.respond(lacking, SETTINGS)
    real, control = select(cells, "e", "stim"), select(cells, "e", "ctrl")
    control.obs_names = ["cell"] * control.n_obs
    predicted = tl.predict(fitted, control, "stim")
    assert re.search(
        r"have no control cells of 'e'; .* of its 120 cells here, .* nearest to that of 'd'\.", caplog.text
    )
    assert predicted.uns["bdm"]["expected_error"] == fitted.sentence("stim")
    assert off(predicted, real) < off(control, real)
    with pytest.raises(InputError, match=r"^The responses have too few control cells of 'e', or none, and"):
        tl.predict(fitted, select(cells, "e", "stim"), "ctrl")


def test_effects_are_those_by_which_the_given_cells_are_changed(cells):
    fitted = tl.respond(cells[(cells.obs["kind"] != "e").to_numpy()].copy(), SETTINGS)
    expected = cells_to_change(fitted, select(cells, "e", "ctrl"), "stim").effects()
    pd.testing.assert_frame_equal(cells_to_change(fitted, cells, "stim", "e").effects(), expected)
    back = cells_to_change(fitted, cells, "ctrl", "a").effects()
    assert set(back["condition"]) == {"stim"}
    expected = fitted.effects("stim", ["a"])
    pd.testing.assert_frame_equal(back.drop(columns="condition"), expected, check_column_type=False)


def test_a_type_without_control_cells_gets_its_control(cells):
    fitted = tl.respond(without(cells, "g", "ctrl"), SETTINGS)
    predicted, real = tl.predict(fitted, select(cells, "g", "stim"), "ctrl"), select(cells, "g", "ctrl")
    assert off(predicted, real) < 0.8 * off(select(cells, "g", "stim"), real)


def test_cells_that_lack_genes_change_as_with_all_genes(cells, caplog):
    """Log fold changes refer to shares of all counts."""
    fitted = tl.respond(cells[(cells.obs["kind"] != "e").to_numpy()].copy(), SETTINGS)
    control, rare = of_rare_genes(cells, "b")
    lacking = control[:, rare].copy()
    sets = lacking, tl.predict(fitted, lacking, "stim"), tl.predict(fitted, control, "stim")[:, rare]
    assert "The cells lack 120 genes of the responses; 30 are changed." in caplog.text
    before, after, expected = (np.log(adata.X.sum(axis=0).A1) for adata in sets)
    assert np.abs(after - expected).max() < 0.1
    assert np.corrcoef(after - before, expected - before)[0, 1] > 0.9
    assert set(cells_to_change(fitted, lacking, "stim").effects()["gene"]) == {*lacking.var_names}


def test_a_new_type_that_lacks_genes_is_related_by_the_others(cells):
    fitted = tl.respond(cells[(cells.obs["kind"] != "e").to_numpy()].copy(), SETTINGS)
    control, rare = of_rare_genes(cells, "e")
    lacking, real = control[:, rare].copy(), select(cells, "e", "stim")[:, rare]
    few, every = tl.predict(fitted, lacking, "stim"), tl.predict(fitted, control, "stim")[:, rare]
    assert off(every, real) < 0.8 * off(lacking, real)
    assert off(few, real) < 0.9 * off(lacking, real)


def of_rare_genes(cells: ad.AnnData, kind: str) -> tuple[ad.AnnData, np.ndarray]:
    """Return many control cells of a type, and the rows of its 30 rarest genes."""
    control = select(cells, kind, "ctrl")[np.arange(24000) % 120].copy()
    return control, np.argsort(share(control))[:30]


def test_cells_of_other_conditions_are_left_out(cells, caplog):
    """A condition changes control cells; the control changes all other cells."""
    several = cells.copy()
    several.obs["condition"] = np.where(np.arange(cells.n_obs) % 5 == 0, "other", cells.obs["condition"])
    caplog.set_level("INFO")
    fitted = tl.respond(several, SETTINGS)
    predicted = tl.predict(fitted, several, "stim", cell_types="a")
    assert set(predicted.obs["original_condition"]) == {"ctrl"}
    assert "Left out 96 cells in stim already." in caplog.text
    assert "Left out 48 cells in other; cells of the control ctrl are changed." in caplog.text
    others = several[(several.obs["condition"] == "other").to_numpy()].copy()
    with pytest.raises(InputError, match=r"^All of these cells are in 'other', but cells of the control 'ctrl'"):
        tl.predict(fitted, others, "stim")
    back = tl.predict(fitted, several, "ctrl")
    assert set(back.obs["original_condition"]) == {"stim", "other"}
    assert (tl.predict(fitted, tl.predict(fitted, others, "ctrl"), "stim").obs["condition"] == "stim").all()


def test_the_expected_error_is_that_of_measured_predicted_and_hardly_known_types(cells, caplog):
    few = cells[~((cells.obs["kind"] == "g") & (np.arange(cells.n_obs) % 120 > 0)).to_numpy()].copy()
    fitted = tl.respond(without(few, "b"), SETTINGS)

    def error(*names: str) -> str:
        return tl.predict(fitted, few, "stim", cell_types=names).uns["bdm"]["expected_error"]

    assert error("b") == fitted.sentence("stim")
    known = r"stim: measured in a, c \(half of it has \d+% of the error of unchanged cells\)"
    assert re.fullmatch(known, error("a", "c"))
    assert "have" not in caplog.text
    assert error("g") == "stim: the error of g is not known, with fewer than 10 control cells"
    assert "too few control cells (1) of 'g'; its response is predicted from the profile of its 1 cell" in caplog.text
    assert error("a", "b", "g").split("; ") == [error("b"), error("a"), error("g")]


def test_generated_cells_without_a_condition_are_of_the_control(cells, responses):
    generated = select(cells, "a", "ctrl")
    del generated.obs["condition"]
    assert set(tl.predict(responses, generated, "stim").obs["original_condition"]) == {"ctrl"}


def errors_of(condition: str, left_out: str, **values: float) -> dict:
    methods = {"predicted": 0.5, "permuted": 0.9, "common": 0.8, "nearest": 0.7, "halves": 0.3}
    return {"left_out": left_out, "condition": condition, "cell_type": "a", "size": 1.0} | methods | values


WARNINGS = {  # errors of predictions, and the warning that they cause
    "": {},
    "no response is seen beyond sampling error": {"halves": 1.1},
    "predictions are no better than unchanged cells; do not use them": {"predicted": 0.97, "common": 1.2, "nearest": 2},
    "predictions are no better than by the mean response of the other types": {"common": 0.51},
    "predictions are no better than by permuted relations": {"permuted": 0.5},
    "predictions are no better than by the nearest type": {"nearest": 0.45},
}


@pytest.mark.parametrize("reason", WARNINGS)
def test_warnings_are_in_python_the_command_and_predicted_cells(cells, responses, reason, caplog, bdm, tmp_path):
    error = errors_of("stim", "type", **{"permuted": 2} | WARNINGS[reason])
    warned = replace(responses, errors=pd.DataFrame([error]))
    expected = [f"In stim: {reason}."] * bool(reason)
    assert warned.warnings() == warned.warnings("stim") == expected
    assert [line for line in repr(warned).splitlines() if "Warning" in line] == [
        f"Warning: {each}" for each in expected
    ]
    warned.save(tmp_path / "responses")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    arguments = ("predict", tmp_path / "responses", tmp_path / "cells.h5ad", tmp_path / "predicted.h5ad")
    assert bdm(*arguments, "--condition", "stim", "--cell-type", "b") == (0, "")
    assert [log.getMessage() for log in caplog.records if log.levelname == "WARNING"] == expected
    assert json.loads(ad.read_h5ad(tmp_path / "predicted.h5ad").uns["bdm"]["warnings"]) == expected
    assert bdm(*arguments, "--condition", "stim", "--condition", "ctrl", "--cell-type", "b", "--force") == (0, "")
    both = ad.read_h5ad(tmp_path / "predicted.h5ad")
    assert json.loads(both.uns["bdm"]["warnings"]) == expected
    assert set(both.obs["condition"]) == {"stim", "ctrl"}
    caplog.clear()
    tl.predict(warned, cells, "stim", cell_types="a")  # which was measured
    measured = [each for each in expected if "no response is seen" in each]
    assert [log.getMessage() for log in caplog.records if log.levelname == "WARNING"] == measured


def test_respond_warns_in_python_and_equal_reasons_name_their_conditions(cells, caplog):
    few = cells[cells.obs["kind"].isin(["a", "b", "c"]).to_numpy()].copy()
    conditions = few.obs["condition"].astype(str)
    few.obs["condition"] = np.where((conditions == "stim") & (np.arange(few.n_obs) % 3 == 0), "stim 2", conditions)
    fitted = tl.respond(few, SETTINGS)
    assert "In 'stim', 'stim 2': only 3 types were measured, too few to say what others do." in fitted.warnings()
    assert [log.getMessage() for log in caplog.records if log.levelname == "WARNING"] == fitted.warnings()


# ---- files, commands, invalid input


def test_columns_may_have_slashes(cells, tmp_path):
    """Columns of predicted cells have names that files can hold."""
    slashed = cells.copy()
    slashed.obs.columns = [f"{name}/1" for name in slashed.obs]
    slashed.var["gene/id"] = slashed.var_names
    settings = ResponseSettings(label_key="kind/1", condition_key="condition/1", control="ctrl")
    fitted = tl.respond(slashed, settings)
    predicted = tl.predict(fitted, slashed, "stim", cell_types="a")
    predicted.write_h5ad(tmp_path / "predicted.h5ad")
    assert list(predicted.obs) == ["kind_1", "condition_1", "donor_1", "original_condition", "response", "synthetic"]
    back = tl.predict(fitted, ad.read_h5ad(tmp_path / "predicted.h5ad"), "ctrl")
    assert set(back.obs["original_condition"]) == {"stim"}
    assert set(back.obs["condition_1"]) == {"ctrl"}


def test_saved_responses_predict_the_same(cells, responses, tmp_path):
    responses.save(tmp_path / "responses")
    loaded = Responses.load(tmp_path / "responses")
    pd.testing.assert_frame_equal(loaded.effects("stim"), responses.effects("stim"), check_dtype=False)
    assert (tl.predict(loaded, cells, "stim").X != tl.predict(responses, cells, "stim").X).nnz == 0
    assert repr(loaded) == repr(responses)


def test_commands_write_figures_tables_and_cells(cells, tmp_path, bdm, caplog, monkeypatch):
    without(cells, "b").write_h5ad(tmp_path / "cells.h5ad")
    code, _ = bdm("respond", tmp_path / "cells.h5ad", tmp_path / "responses", "--label-key", "kind")
    assert code == 0
    assert "stim: a type that was not measured is predicted with" in caplog.text
    assert {path.name for path in (tmp_path / "responses").iterdir()} == {
        "errors.csv", "errors.png", "response.png", "responses.json", "responses.safetensors",
    }  # fmt: skip
    arguments = (tmp_path / "responses", tmp_path / "cells.h5ad", tmp_path / "out.h5ad", "--condition", "stim")
    code, _ = bdm("predict", *arguments, "--cell-type", "b", "--effects", tmp_path / "effects.csv")
    assert code == 0
    assert "120 in stim: response of their type measured in 0, predicted in 120" in caplog.text
    caplog.clear()
    bdm("predict", *arguments, "--cell-type", "a", "--effects", tmp_path / "effects.csv", "--force")
    assert caplog.text.count("Left out 120 cells in stim already.") == 1
    check_r_reads(tmp_path / "out.h5ad")
    assert ad.read_h5ad(tmp_path / "out.h5ad").uns["bdm"]["condition"] == "stim"
    assert set(pd.read_csv(tmp_path / "effects.csv")["cell_type"]) == {"a"}
    assert "did you mean" not in caplog.text
    renamed = select(cells, "b", "ctrl")
    renamed.obs["kind"] = "type b"
    ad.concat([without(cells, "b", "ctrl"), renamed]).write_h5ad(tmp_path / "renamed.h5ad")
    monkeypatch.setattr("bdm.commands.respond.N_SHOWN", 0)
    bdm("respond", tmp_path / "renamed.h5ad", tmp_path / "renamed", "--label-key", "kind")
    assert f"1 more condition: see {tmp_path / 'renamed' / 'errors.csv'}" in caplog.text
    renamed.obs["kind"] = "typ b"
    renamed.write_h5ad(tmp_path / "misspelt.h5ad")
    arguments = (tmp_path / "renamed", tmp_path / "misspelt.h5ad", tmp_path / "out.h5ad", "--condition", "stim")
    assert bdm("predict", *arguments, "--force")[0] == 0
    assert "The responses have no control cells of 'typ b' (did you mean 'type b'?); its response is" in caplog.text


def awkward_cells(cells: ad.AnnData) -> ad.AnnData:
    """Cells in three conditions, with incomplete types, and counts in a layer."""
    awkward = cells.copy()
    awkward.obs["condition"] = np.where(np.arange(awkward.n_obs) % 5 == 0, "0 other", awkward.obs["condition"])
    awkward = without(without(awkward, "g", "ctrl"), "g")
    awkward = awkward[~((awkward.obs["kind"] == "f") & (np.arange(awkward.n_obs) % 40 > 0)).to_numpy()]
    return ad.AnnData(awkward.X / 3, obs=awkward.obs, var=awkward.var, layers={"umi": awkward.X})


def test_the_printed_prediction_runs(cells, tmp_path, bdm_and_next):
    awkward = awkward_cells(cells)
    awkward.obs[["kind"]].to_csv(tmp_path / "labels.csv")
    awkward.obs = awkward.obs.drop(columns="kind")
    awkward.write_h5ad(tmp_path / "cells.h5ad")
    options = ("--labels", "labels.csv", "--label-key", "kind", "--counts", "umi")
    bdm_and_next("respond", "cells.h5ad", "responses", *options, "--control", "ctrl")
    assert ad.read_h5ad(tmp_path / "predicted.h5ad").n_obs > 0


@pytest.mark.slow
def test_generated_cells_of_a_type_that_was_not_measured_are_predicted(cells, tmp_path, bdm_and_next, bdm):
    """Commands lead from control cells to cells in a condition."""
    without(cells, "b").write_h5ad(tmp_path / "cells.h5ad")
    cells[(cells.obs["condition"] == "ctrl").to_numpy()].copy().write_h5ad(tmp_path / "control.h5ad")
    steps = ("--autoencoder-n-steps", 5, "--sub-populations", "none", "--n-genes", 60, "--keep-genes", "none")
    words = bdm_and_next("fit", "control.h5ad", "model", "--label-key", "kind", *steps)
    assert words[:3] == ["generate", "model", "generated.h5ad"]
    words = bdm_and_next("respond", "cells.h5ad", "responses", "--label-key", "kind")
    words[2] = "generated.h5ad"
    assert bdm(*words, "--force") == (0, "")
    predicted = ad.read_h5ad(tmp_path / "predicted.h5ad")
    assert predicted.shape == (100, 60)
    assert set(predicted.obs["cell_type"]) == {"b"}
    assert set(predicted.obs["response"]) == {"predicted"}


def test_outputs_of_another_ending_are_rejected(responses, cells, tmp_path, bdm):
    responses.save(tmp_path / "responses")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    inputs = (tmp_path / "responses", tmp_path / "cells.h5ad")
    for out, effects, sentence in (
        ("out.csv", "effects.csv", "out.csv does not end in .h5ad; name an output that does."),
        ("out.h5ad", "effects.xlsx", "effects.xlsx does not end in .csv; name an output that does."),
    ):
        outputs = (tmp_path / out, "--effects", tmp_path / effects)
        code, message = bdm("predict", *inputs, *outputs, "--condition", "stim")
        assert (code, message) == (2, f"bdm: {tmp_path / sentence}\n")
        assert not (tmp_path / out).exists()


@pytest.mark.slow
def test_workflow_measures_responses_and_predicts_cells(cells, tmp_path):
    without(cells, "b").write_h5ad(tmp_path / "cells.h5ad")
    predictions = {"b": {"condition": "stim", "cell_types": ["b"]}}
    dataset = {"path": "cells.h5ad", "label_key": "kind", "respond": {"run": True, "predictions": predictions}}
    write_config(tmp_path, {"datasets": {"mine": dataset}})
    targets = ("results/mine/responses/responses.json", "results/mine/predicted/b.h5ad")
    done = snakemake("--snakefile", ROOT / "Snakefile", "--cores", 1, *targets, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ad.read_h5ad(tmp_path / targets[1]).n_obs == 120


def test_the_figure_shows_which_types_are_predicted(responses):
    axes = package.pl.response(responses, "stim", show=False)
    assert [label.get_text() for label in axes[1].get_yticklabels()][:3] == ["a", "b (predicted)", "c"]


def test_errors_that_are_not_known_are_no_numbers(responses):
    """All donors of a type may be in one half of the data."""
    unknown = replace(responses, errors=NO_ERRORS)
    [axis] = package.pl.response_errors(unknown, show=False)
    assert axis.texts[0].get_text() == "No errors: no cell type could be left out."
    section = responses_section(unknown, TYPES)
    assert section["rows"] == [("type in stim", 0, *["not known"] * 5)]
    assert section["worst"] == "is not known, as no type could be left out"


def test_permutations_change_relations():
    chain = np.exp(-np.abs(np.subtract.outer(np.arange(4), np.arange(4))))
    order = permutation_of([np.ones((4, 4)), chain], "permuted conditions")  # the first draw is the identity
    assert not np.allclose(chain[order][:, order], chain)
    for kernels in ([], [chain[:2, :2]]):
        assert permutation_of(kernels, "permuted conditions") is None


def test_relations_are_permuted_in_a_sample_of_conditions(cells, monkeypatch):
    monkeypatch.setattr("bdm.applications.relations.respond.N_PERMUTED", 2)
    several = cells.copy()
    several.obs["condition"] = several.obs["condition"].astype(str) + (np.arange(cells.n_obs) % 3).astype(str)
    several.obs["condition"] = several.obs["condition"].str.replace(r"ctrl\d", "ctrl", regex=True)
    fitted = tl.respond(several, SETTINGS)
    permuted = fitted.errors.groupby("condition")["permuted"].count()
    assert permuted.gt(0).tolist() == [True, False, True]
    assert "permuted" in fitted.sentence("stim0")
    assert "permuted" not in fitted.sentence("stim1")


def test_long_names_of_genes_fit_to_the_branches_and_a_colour_bar_that_is_cut_has_arrows(responses):
    names = [f"a long name of {name}" for name in responses.genes.index]
    renamed = replace(responses, genes=responses.genes.set_axis(names))
    tree, heat = package.pl.response(renamed, show=False)
    texts = [text.get_text() for text in tree.texts]
    assert texts
    assert max(map(len, texts)) <= 36
    [bar] = [axis for axis in tree.figure.axes if axis.get_label() == "<colorbar>"]
    values, limit = heat.images[0].get_array(), heat.images[0].norm.vmax
    expected = {(True, True): "both", (True, False): "min", (False, True): "max"}
    assert bar._colorbar.extend == expected[bool(values.min() < -limit), bool(values.max() > limit)]


def single_donor(cells: ad.AnnData) -> ad.AnnData:
    cells.obs["donor"] = np.where(cells.obs["condition"] == "ctrl", cells.obs["donor"], "alone")
    cells.obs.loc[cells.obs_names[:5], "donor"] = "another"
    return cells


BAD = {  # change of the cells, settings, beginning of the message
    "column": (lambda cells: cells, {"condition_key": ("treatment",)}, "obs has no column 'treatment'; name one"),
    "control": (lambda cells: cells, {"control": "contrl"}, "There is no condition 'contrl'; did you mean 'ctrl'?"),
    "no control": (
        lambda cells: cells[(cells.obs["condition"] == "stim").to_numpy()].copy(),
        {},
        "Which condition is the control is not known; name it by `settings.control=` (there are: stim)",
    ),
    "control alone": (
        lambda cells: cells[(cells.obs["condition"] == "ctrl").to_numpy()].copy(),
        {},
        "All cells are of the control 'ctrl'; a response needs cells of another condition.",
    ),
    "one type": (
        lambda cells: cells[((cells.obs["kind"] == "a") | (cells.obs["condition"] == "ctrl")).to_numpy()].copy(),
        {},
        "The response to 'stim' was measured in 'a' only: enough cells (`settings.min_cells=`) of two types",
    ),
    "joined values": (
        lambda cells: ad.AnnData(cells.X, obs=cells.obs.assign(drug="a, b"), var=cells.var),
        {"condition_key": ("drug", "condition")},
        "obs['drug'] has the value 'a, b', but ', ' joins the values of several columns of conditions; rename it.",
    ),
    "one donor": (
        single_donor,
        {"donor_key": "donor"},
        "In condition 'stim' or in the control 'ctrl', each cell type is of one donor only (at least 90% of its cells)",
    ),
    "log values": (
        lambda cells: ad.AnnData(np.log1p(cells.X.toarray()), obs=cells.obs, var=cells.var),
        {},
        "no raw counts: X has 1.79176 for gene",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_rejected_in_one_sentence(cells, name):
    change, settings, sentence = BAD[name]
    with pytest.raises(InputError) as caught:
        tl.respond(change(cells.copy()), replace(SETTINGS, **settings))
    assert str(caught.value).startswith(sentence)


def test_unknown_names_and_genes_are_rejected(cells, responses):
    with pytest.raises(InputError, match=r"^There is no condition 'stm'; did you mean 'stim'\?"):
        tl.predict(responses, cells, "stm")
    with pytest.raises(InputError, match=r"^The cells have no type '3'; its types are"):
        tl.predict(responses, cells, "stim", cell_types=3)
    for method in (responses.expected_error, responses.sentence, responses.warnings, responses.branches):
        with pytest.raises(InputError, match=r"^There is no condition 'ctrl'; there are 'stim'\."):
            method("ctrl")
    renamed = ad.AnnData(cells.X, obs=cells.obs, var=pd.DataFrame(index=[f"ENSG{i}" for i in range(N_GENES)]))
    with pytest.raises(InputError, match=r"none of the genes of the responses: 'ENSG0' and others, but not 'gene 0'"):
        tl.predict(responses, renamed, "stim")
    with pytest.raises(InputError, match=r"^obs of the cells has no column 'kind', which the responses were made with"):
        tl.predict(responses, ad.AnnData(cells.X, obs=cells.obs[["condition"]], var=cells.var), "stim")
