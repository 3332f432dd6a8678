"""Audits: folds, attacks on copies and on fresh cells, verdicts, files."""

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from bdm import pl
from bdm._core.errors import InputError
from bdm.api import BranchedDiffusion
from bdm.applications.audit.attacks import ATTACKS, ON_CELLS, attack
from bdm.applications.audit.audit import TABLES, Audit, audit_section, describe_division
from bdm.applications.audit.audit_verdict import (
    HIGH_LIMIT,
    auc_spread,
    average_units,
    permuted_areas,
    reach_verdict,
    roc_areas,
    standardise,
)
from bdm.applications.audit.folds import MEMBERS, NON_MEMBERS, PARTS, REFERENCE, Fold, divide, training_cells
from bdm.applications.audit.limits import LEVEL, equal_sides, explain_inconclusive, smallest_p
from bdm.applications.audit.run import AuditedModels, audit_folds, audit_models, fold_reader, prune_tree
from bdm.cli import app
from bdm.data.cells import Cells
from bdm.generation.generate import GeneratedFile
from bdm.hierarchy.files import from_newick
from bdm.hierarchy.tree import from_nested, match_leaves, without_leaves
from bdm.model.model import load_model
from bdm.report.page import audit_tables, environment
from bdm.settings import (
    AuditSettings,
    AutoencoderSettings,
    FitSettings,
    HierarchySettings,
    PrepareSettings,
    Settings,
    TrainSettings,
)

ROOT = Path(__file__).parents[1]
TYPES = ("B cell", "T cell")
TWO_FOLDS = AuditSettings(n_folds=2)
SMALL = FitSettings(
    autoencoder=AutoencoderSettings(n_latent=4, n_steps=10, sub_populations="none"),
    hierarchy=HierarchySettings(n_bootstrap=0),
    train=TrainSettings(width=16, n_layers=1, n_steps=5),
)
FLAGS = ["--n-latent=4", "--autoencoder-n-steps=10", "--sub-populations=none", "--n-bootstrap=0"]
FLAGS += ["--width=16", "--n-layers=1", "--train-n-steps=5"]


def simulated(*, n_donors: int = 15, n_cells: int = 12, n_genes: int = 50, seed: int = 0) -> ad.AnnData:
    """Simulate prepared cells of two types, from donors with differences in all genes."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(0).normal(size=(len(TYPES), n_genes))  # the same for any seed
    rows = []
    for _ in range(n_donors):
        own = rng.normal(scale=0.5, size=n_genes)
        for of_type in base:
            expression = np.exp(of_type + own + rng.normal(scale=0.2, size=(n_cells, n_genes)))
            rows.append(rng.poisson(500 * expression / expression.sum(axis=1, keepdims=True)))
    counts = sp.csr_matrix(np.concatenate(rows).astype(np.float32))
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.tile(np.repeat(TYPES, n_cells), n_donors)),
            "donor": pd.Categorical(np.repeat([f"donor {i}" for i in range(n_donors)], n_cells * len(TYPES))),
            "split": pd.Categorical(["train"] * counts.shape[0]),
        },
        index=[f"cell {i}" for i in range(counts.shape[0])],
    )
    settings = {"label_key": "cell_type", "donor_key": "donor", "batch_key": None, "validation": 0.2}
    var = pd.DataFrame(index=[f"gene {i}" for i in range(n_genes)])
    uns = {"bdm": {"version": "1", "seed": 0, "settings": json.dumps({**settings, "gene_symbols": None})}}
    return ad.AnnData(counts, obs=obs, var=var, uns=uns)


@pytest.fixture(scope="module")
def prepared() -> ad.AnnData:
    return simulated()


PREPARED = {"bdm": {"settings": json.dumps({"donor_key": "donor"})}}


def folds_of(obs: pd.DataFrame, *, seed: int = 0) -> tuple[Fold, ...]:
    return divide(ad.AnnData(obs=obs, uns=PREPARED), TWO_FOLDS, seed=seed).folds


def copies(prepared: ad.AnnData):
    """A generator of copies of its training cells."""
    return lambda fold: (Cells.from_anndata(prepared)[fold.rows(MEMBERS)], None)


def fresh(seed: int):
    """A generator of cells of other donors, independent of the fold."""
    return lambda fold: (Cells.from_anndata(simulated(n_donors=5, seed=100 * seed + fold.number)), None)


@pytest.fixture(scope="module")
def of_copies(prepared) -> Audit:
    return audit_folds(divide(prepared, TWO_FOLDS, seed=0), TWO_FOLDS, copies(prepared), seed=0, generator="files")


def run(*words: object) -> None:
    app([*map(str, words)], standalone_mode=False)


@pytest.fixture(scope="module")
def of_six_donors() -> Audit:
    """Audit of copies with too few donors to differ from chance."""
    cells, settings = simulated(n_donors=6), AuditSettings(n_folds=1)
    return audit_folds(divide(cells, settings, seed=0), settings, copies(cells), seed=0, generator="files")


# ---- folds


def test_folds_divide_donors_by_cell_types(prepared):
    rare = prepared.copy()  # a type of three donors, whose cells are in each part
    rows = np.flatnonzero(
        rare.obs["donor"].isin(["donor 3", "donor 7", "donor 9"]) & (rare.obs["cell_type"] == "T cell")
    )
    rare.obs["cell_type"] = rare.obs["cell_type"].cat.add_categories("rare")
    rare.obs.iloc[rows, rare.obs.columns.get_loc("cell_type")] = "rare"
    for seed in range(5):
        first, second = folds_of(rare.obs, seed=seed)
        assert (first.part != second.part).any()
        for fold in (first, second):
            part = pd.Series(fold.part, index=rare.obs.index)
            assert (part.groupby(rare.obs["donor"], observed=True).nunique() == 1).all()
            assert set(part[rare.obs["cell_type"] == "rare"]) == set(PARTS)
            n_donors = rare.obs.groupby(fold.part)["donor"].nunique()
            assert n_donors.sum() == 15
            assert n_donors.max() - n_donors.min() <= 1
        again = folds_of(rare.obs, seed=seed)[1]
        assert (again.part == second.part).all()


def test_types_that_are_too_rare_are_not_audited(prepared, caplog, tmp_path):
    cells, obs = prepared.copy(), prepared.obs
    cell_type = obs["cell_type"].astype(str).mask(obs["donor"].isin(["donor 3", "donor 7"]), "rare")
    cells.obs["cell_type"] = cell_type.astype("category")
    division = divide(cells, TWO_FOLDS, seed=0)
    assert division.left_out == ("rare",)
    assert set(division.cells.obs["cell_type"].cat.categories) == set(division.cells.obs["cell_type"]) == set(TYPES)
    assert all(len(fold.part) == division.cells.n_obs for fold in division.folds)
    assert "Not audited, as they have too few cells or donors for three parts: rare." in caplog.text
    audit = audit_folds(division, TWO_FOLDS, copies(division.cells), seed=0, generator="files")
    audit.save(tmp_path)
    assert Audit.load(tmp_path).record["left_out"] == ["rare"]
    assert audit_tables(audit)["not_audited"] == "rare"


def test_cells_are_not_divided_if_all_types_are_too_rare(prepared):
    few = prepared[prepared.obs.groupby(["donor", "cell_type"], observed=True).cumcount().to_numpy() == 0].copy()
    few.obs["cell_type"] = pd.Categorical([f"type {row // 6}" for row in range(few.n_obs)])
    with pytest.raises(InputError, match="no cell type has 3 cells or more in each of the three parts of a fold"):
        divide(few, TWO_FOLDS, seed=0)


def test_cells_are_divided_where_no_donors_were_named(prepared):
    division = divide(ad.AnnData(obs=prepared.obs, uns={"bdm": {"settings": "{}"}}), TWO_FOLDS, seed=0)
    assert division.units.noun == "cell"
    assert (pd.crosstab(division.folds[0].part, prepared.obs["cell_type"]) == 60).all(axis=None)


def test_cells_are_audited_in_place_of_too_few_donors_and_the_verdict_says_so(caplog):
    cells = simulated(n_donors=5, n_cells=4, n_genes=5)
    audit = audit_folds(divide(cells, TWO_FOLDS, seed=0), TWO_FOLDS, copies(cells), seed=0, generator="files")
    assert audit.unit == "cell"
    instead = "Cells are audited in place of donors, because an audit of donors needs 6 or more (here 5); it shows"
    assert audit.verdict.text.startswith(f"{instead} nothing about donors. ")
    assert instead in caplog.text


def test_training_cells_are_members_with_a_new_split(prepared):
    fold = folds_of(prepared.obs)[0]
    cells = training_cells(prepared, fold, seed=0)
    assert list(cells.obs_names) == list(prepared.obs_names[fold.rows(MEMBERS)])
    assert set(cells.obs["split"]) == {"train", "validation"}
    assert cells.obs["donor"].cat.categories.size == 5
    assert "settings" in cells.uns["bdm"]


def test_tested_donors_are_counted_once(of_copies, prepared, tmp_path):
    folds = folds_of(prepared.obs)
    tested = {donor for fold in folds for donor in prepared.obs["donor"].iloc[fold.rows(MEMBERS)]}
    assert 5 < len(tested) < 10  # some are members in both folds
    assert of_copies.record["n_tested"] == len(tested)
    of_copies.save(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["n_tested"] == len(tested)


def one_donor_twice(obs: pd.DataFrame) -> None:
    obs["donor"] = obs["donor"].cat.rename_categories({"donor 1": "Donor 0 "})


def missing_donor(obs: pd.DataFrame) -> None:
    obs["donor"] = obs["donor"].where(obs.index != "cell 3")


INVALID = {
    "a donor under two names": (one_donor_twice, "differ only in case or blanks"),
    "a cell without a donor": (missing_donor, "obs['donor'] has no value for 1 of 360 cells"),
}


@pytest.mark.parametrize(("change", "message"), INVALID.values(), ids=INVALID)
def test_invalid_cells_are_rejected_in_one_sentence(prepared, change, message):
    obs = prepared.obs.copy()
    change(obs)
    with pytest.raises(InputError) as error:
        folds_of(obs)
    assert message in str(error.value)


# ---- attacks


def test_copies_are_found_by_all_attacks(of_copies):
    assert {finding.attack for finding in of_copies.verdict.successful} == set(ON_CELLS)
    auc = of_copies.attacks.set_index(["set", "attack"])["auc"]
    assert auc["generated", "nearest"] == 1
    assert auc["generated", "mean_shift"] > 0.95
    assert of_copies.verdict.text.startswith("3 of 3 attacks found donors that were in the training data. Found by")
    assert (auc["generated"] == auc["copies"]).all()
    assert of_copies.by_label.query("set == 'generated' and attack == 'nearest'")["auc"].eq(1).all()


DISGUISES = {
    "noise": lambda counts, rng: rng.poisson(counts),
    "averages": lambda counts, rng: rng.poisson((counts + np.roll(counts, 1, axis=0) + np.roll(counts, 2, axis=0)) / 3),
    "few": lambda counts, rng: np.where(rng.random((len(counts), 1)) < 0.2, counts, rng.permuted(counts, axis=0)),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_disguised_copies_are_found_by_the_nearest_cell(prepared, disguise):
    unnamed = ad.AnnData(prepared.X, prepared.obs, prepared.var, uns={"bdm": {"settings": "{}"}})
    division, settings, rng = divide(unnamed, TWO_FOLDS, seed=0), TWO_FOLDS, np.random.default_rng(0)

    def generate(fold: Fold) -> tuple[Cells, None]:
        cells = unnamed[fold.rows(MEMBERS)].copy()
        cells.X = sp.csr_matrix(DISGUISES[disguise](cells.X.toarray(), rng).astype(np.float32))
        return Cells.from_anndata(cells), None

    verdict = audit_folds(division, settings, generate, seed=0, generator="files").verdict
    assert "nearest" in {finding.attack for finding in verdict.successful}


def test_fresh_cells_are_not_found_more_often_than_chance_allows(prepared):
    audits = [
        audit_folds(divide(prepared, TWO_FOLDS, seed=seed), TWO_FOLDS, fresh(seed), seed=seed, generator="files")
        for seed in range(6)
    ]
    areas = pd.concat(audit.attacks for audit in audits).query("set == 'generated'")
    spread = auc_spread(5, 5) / np.sqrt(2 * len(audits))
    assert (abs(areas.groupby("attack")["auc"].mean() - 0.5) < 4 * spread).all()
    assert sum(bool(audit.verdict.successful) for audit in audits) <= 2  # of 6, each with probability 0.05
    quiet = next(audit.verdict for audit in audits if not audit.verdict.successful)
    assert quiet.text.startswith("None of 3 attacks found donors that were in the training data. The highest AUC is")
    assert "Other attacks may find more." in quiet.text


def test_scores_do_not_depend_on_other_attacked_cells(prepared):
    cells = Cells.from_anndata(prepared)
    fold = folds_of(prepared.obs)[0]
    others = cells[fold.rows(MEMBERS)], cells[fold.rows(REFERENCE)], fold.unit[fold.rows(REFERENCE)]
    attacked = fold.rows(NON_MEMBERS)
    whole = attack(cells[attacked], *others, seed=0)
    half = attack(cells[attacked[::2]], *others, seed=0)
    np.testing.assert_allclose(whole.iloc[::2], half, rtol=1e-3, atol=1e-3)


def test_types_without_enough_cells_are_not_scored(prepared):
    cells = Cells.from_anndata(prepared)
    rows = np.flatnonzero(cells.cell_type == TYPES[0])[:40]
    scores = attack(cells, cells[rows], cells, np.arange(len(cells)), seed=0)
    assert scores[cells.cell_type == TYPES[1]].isna().all(axis=None)
    assert scores[cells.cell_type == TYPES[0]].notna().all(axis=None)


@pytest.mark.filterwarnings("ignore:divide by zero")
def test_same_cells_everywhere_have_finite_scores(prepared):
    cells = Cells.from_anndata(prepared)
    same = cells[np.zeros(40, dtype=int)]
    assert np.isfinite(attack(cells[np.arange(24)], same, same, np.arange(40), seed=0).iloc[:12]).all(axis=None)


# ---- verdicts


def test_permutations_have_the_spread_of_the_rank_sum():
    rng = np.random.default_rng(0)
    units = pd.DataFrame({"fold": np.repeat([1, 2], 20), "member": np.tile([0, 1], 20), "x": rng.normal(size=40)})
    units["unit"] = np.arange(40)
    null = permuted_areas(units, ["x"], n_permutations=2000, seed=0)
    assert null.mean() == pytest.approx(0.5, abs=0.01)
    assert null.std() == pytest.approx(auc_spread(10, 10) / np.sqrt(2), rel=0.06)


ATTACKED = ["generated/nearest", "generated/mean_shift"]


def attacked_units(*, n_units: int, n_folds: int, shift: float, seed: int) -> pd.DataFrame:
    """Scores of two correlated attacks; members differ by ``shift``."""
    rng = np.random.default_rng(seed)
    own, tables = rng.normal(size=(n_units, 1)), []
    for fold in range(n_folds):
        unit = rng.permutation(n_units)[: 2 * (n_units // 3)]
        member = np.arange(len(unit)) % 2
        values = 0.6 * own[unit] + 0.8 * rng.normal(size=(len(unit), 2)) + shift * member[:, None]
        table = pd.DataFrame(values, columns=ATTACKED)
        tables.append(table.assign(fold=fold, unit=unit, cell_type="T cell", member=member))
    return pd.concat(tables, ignore_index=True)


@pytest.mark.parametrize(
    ("shift", "power"),
    [pytest.param(0, 0, marks=pytest.mark.slow), (0.7, 0.4), pytest.param(2, 0.95, marks=pytest.mark.slow)],
)
def test_chance_finds_members_as_rarely_as_the_verdict_says(shift, power):
    sides, n_audits = [(4, 4)] * 3, 200
    succeeded = np.zeros(n_audits)
    for seed in range(n_audits):
        units = attacked_units(n_units=12, n_folds=3, shift=shift, seed=seed)
        null = permuted_areas(units, ATTACKED, n_permutations=99, seed=seed)
        auc = roc_areas(units, ["fold"]).groupby("attack")["auc"].mean().to_dict()
        verdict = reach_verdict(auc, null, sides=sides, unit="donor")
        succeeded[seed] = bool(verdict.successful)
        assert [finding.p_value < LEVEL for finding in verdict.findings] == [
            finding.succeeded for finding in verdict.findings
        ]
    assert succeeded.mean() >= power
    assert shift or succeeded.mean() < LEVEL + 2.5 * np.sqrt(LEVEL * (1 - LEVEL) / n_audits)


def test_an_attack_on_some_folds_only_leaves_the_others_as_they_are(prepared):
    settings = AuditSettings(n_folds=3)
    whole = audit_folds(divide(prepared, settings, seed=0), settings, fresh(seed=3), seed=0)
    rng = np.random.default_rng(0)
    scores = whole.scores.assign(**{"generated/bound": rng.normal(size=len(whole.scores)).astype(np.float32)})
    complete = Audit(scores, whole.record).verdict
    of_one_fold = Audit(scores.assign(**{"generated/bound": scores["generated/bound"].where(scores["fold"] == 2)}), {})
    partial = replace(of_one_fold, record=whole.record)
    p_values = [
        {finding.attack: finding.p_value for finding in audit.findings} for audit in (complete, partial.verdict)
    ]
    assert p_values[1].keys() == p_values[0].keys()
    assert p_values[1]["nearest"] == pytest.approx(p_values[0]["nearest"], abs=0.15)
    assert not partial.verdict.successful
    assert complete.limit < partial.verdict.limit < 1


def test_verdict_counts_the_best_of_all_attacks():
    null = np.random.default_rng(0).normal(0.5, 0.1, size=(1000, 2))
    verdict = reach_verdict({"nearest": 0.69, "bound": 0.9}, null, sides=[(9, 10)] * 3, unit="donor")
    assert [finding.attack for finding in verdict.findings] == ["bound", "nearest"]
    assert [finding.succeeded for finding in verdict.findings] == [True, False]
    assert verdict.findings[0].p_value == pytest.approx(1 / 1001)
    assert verdict.limit == pytest.approx(0.695, abs=0.02)
    assert "1 of 2 attacks found donors" in verdict.label
    assert f"chance alone reaches an AUC of {verdict.limit:.2f} with any of the attacks in 5% of audits" in verdict.text
    assert repr(verdict) == verdict.text


def test_limits_of_cell_types_are_areas(of_six_donors, of_copies):
    assert of_six_donors.by_label["limit"].eq(1).all()
    assert of_copies.by_label["limit"].between(0.5, 1).all()


def test_verdict_of_few_donors_shows_no_safety(of_copies):
    few = "So few donors hide all but the largest leaks: this audit cannot show that cells are safe to share."
    verdict = of_copies.verdict
    assert few in replace(verdict, limit=HIGH_LIMIT).text
    for limit in (HIGH_LIMIT - 0.01, np.nan):
        assert few not in replace(verdict, limit=limit).text
    assert "So few cells hide" in replace(verdict, limit=HIGH_LIMIT, unit="cell").text


def test_an_audit_that_cannot_differ_from_chance_is_inconclusive(of_six_donors, caplog):
    """With two members, chance finds both in a sixth of audits, or more."""
    verdict = of_six_donors.verdict
    assert verdict.limit == 1
    assert verdict.findings[0].auc == 1
    assert verdict.label == "inconclusive: too few donors"
    assert verdict.text.startswith("Inconclusive: 2 donors in the training data and 2 others in 1 fold are too few")
    assert f"The highest AUC is 1.00 ({ATTACKS[verdict.findings[0].attack]})." in verdict.text
    assert not verdict.summary()["conclusive"]
    assert {row["members_found"] for row in of_six_donors.by_attack()} == {"inconclusive"}
    divide(simulated(n_donors=9), AuditSettings(n_folds=1), seed=0)
    assert "inconclusive: 3 donors in the training data and 3 others in 1 fold are too few, as chance" in caplog.text
    assert "in 5% of audits, so that no attack can show anything; give 11 donors, or 2 folds." in caplog.text


@pytest.mark.parametrize("sides", [[(4, 3)], [(2, 2), (2, 2)], [(3, 3)] * 3])
def test_more_donors_or_folds_can_differ_from_chance(sides):
    assert smallest_p(sides) < LEVEL
    assert explain_inconclusive(sides, "donor") is None
    assert explain_inconclusive(sides, "donor", p_value=0.06) is not None  # chance with several attacks


@pytest.mark.parametrize("n_folds", [1, 2, 3])
def test_the_number_of_donors_that_is_named_suffices(n_folds):
    enough = next(n for n in range(6, 20) if smallest_p(equal_sides(n, n_folds)) < LEVEL)
    cells, settings = simulated(n_donors=enough, n_cells=4, n_genes=5), AuditSettings(n_folds=n_folds)
    assert smallest_p(divide(cells, settings, seed=0).sides) < LEVEL


def test_scores_are_standardised_by_type_without_membership():
    scores = pd.DataFrame(
        {"fold": 1, "unit": [0, 0, 1, 1], "cell_type": ["a", "b", "a", "b"], "member": [1, 1, 0, 0]}
    ).assign(**{"generated/x": [1.0, 50.0, 3.0, 50.0]})
    standardised = standardise(scores)["generated/x"]
    np.testing.assert_allclose(standardised, [-np.sqrt(0.5), 0, np.sqrt(0.5), 0])
    units = average_units(standardise(scores))
    np.testing.assert_allclose(units["generated/x"], [-np.sqrt(0.5) / 2, np.sqrt(0.5) / 2])


# ---- models, files and commands


def test_models_are_fitted_once_and_give_one_result(prepared, tmp_path, caplog):
    models = AuditedModels(fit=SMALL, folder=tmp_path / "models", seed=3)
    settings = AuditSettings(n_folds=1)
    division = divide(prepared, settings, seed=3)
    first = audit_models(division, settings, models)
    assert {path.name for path in (tmp_path / "models/fold-1").iterdir()} == {MEMBERS, REFERENCE}
    caplog.set_level(logging.INFO, logger="bdm")
    again = audit_models(division, settings, models)
    assert not [record for record in caplog.records if "training" in record.getMessage()]
    pd.testing.assert_frame_equal(first.scores, again.scores)
    assert {finding.attack for finding in first.verdict.findings} == set(ATTACKS)
    assert first.attacks.set_index(["set", "attack"])["auc"]["generated", "bound"] > 0.65
    assert first.record["n_generated"] == {"1": 120}
    cells_only = audit_models(division, AuditSettings(n_folds=1, cells_only=True), models)
    assert {finding.attack for finding in cells_only.verdict.findings} == set(ON_CELLS)
    for share, number in ((0.5, 60), (2, 240), (1e-3, 4)):  # at least two of each type, as one has no covariance
        some = AuditSettings(n_folds=1, cells_only=True, cells_per_training_cell=share)
        assert audit_models(division, some, models).record["n_generated"] == {"1": number}
    reversed_cells = prepared.copy()
    reversed_cells.X = reversed_cells.X[::-1].copy()
    for cells, seed in ((prepared, 4), (reversed_cells, 3)):
        with pytest.raises(InputError, match="was fitted to other cells, or with other settings"):
            audit_models(divide(cells, settings, seed=3), settings, replace(models, seed=seed))


@pytest.mark.parametrize("part", [MEMBERS, REFERENCE])
def test_models_are_not_attacked_by_cells_of_batches_that_a_part_lacks(prepared, part, caplog):
    cells, settings = prepared.copy(), AuditSettings(n_folds=1)
    lacking = divide(cells, settings, seed=0).folds[0].rows(part)
    batch = np.array(["one", "two"] * (cells.n_obs // 2), dtype=object)
    batch[lacking] = "one"
    cells.obs["batch"] = pd.Categorical(batch)
    audit = audit_models(divide(cells, settings, seed=0), settings, AuditedModels(fit=SMALL))
    assert {finding.attack for finding in audit.verdict.findings} == set(ON_CELLS)
    assert f"The model is not attacked, only its cells: the {part} lack batches of attacked cells." in caplog.text


def test_a_tree_loses_the_types_that_are_too_rare(prepared, tmp_path):
    cells = prepared.copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.add_categories(["NK_cell", "rare"])
    cells.obs.loc[cells.obs_names[::3], "cell_type"] = "NK_cell"
    cells.obs.loc[cells.obs_names[:4], "cell_type"] = "rare"
    settings = AuditSettings(n_folds=1, cells_only=True)
    division = divide(cells, settings, seed=0)
    assert division.left_out == ("rare",)
    tree = from_newick("((rare,B cell),(NK cell,T cell));")
    left = without_leaves(match_leaves(tree, ["B cell", "NK_cell", "T cell", "rare"]), ["rare"])
    assert left == prune_tree(division, tree) == from_nested(["B cell", ["NK_cell", "T cell"]])
    models = AuditedModels(fit=SMALL, tree=tree, folder=tmp_path)
    audit = audit_models(division, settings, models)
    assert audit.record["tree_given"]
    assert load_model(tmp_path / "fold-1" / MEMBERS).hierarchy.from_user
    with pytest.raises(InputError, match=r"^The tree lacks 'rare'"):
        audit_models(division, settings, replace(models, tree=left))


@pytest.mark.slow
def test_python_audits_as_the_command_does(prepared, tmp_path):
    cells = ad.AnnData(prepared.X, obs=prepared.obs[["cell_type", "donor"]], var=prepared.var)
    settings = Settings(**vars(SMALL), prepare=PrepareSettings(genes="all", min_cells_per_gene=0, test=0.2))
    model = BranchedDiffusion(cells, donor_key="donor", settings=settings, n_threads=1)
    audit = model.audit(
        AuditSettings(n_folds=1, cells_only=True, cells_per_training_cell=0.5), models=tmp_path / "models"
    )
    model.prepared.write_h5ad(tmp_path / "prepared.h5ad")
    few = "--cells-per-training-cell=0.5"
    options = ["--models", tmp_path / "models", "--n-folds=1", "--cells-only", few, *FLAGS]
    run("audit", tmp_path / "prepared.h5ad", tmp_path / "audit", *options)
    pd.testing.assert_frame_equal(Audit.load(tmp_path / "audit").scores, audit.scores, check_dtype=False)
    assert repr(audit).startswith("Audit of donors in 1 fold")
    model.fit().save(tmp_path / "model")
    run("card", tmp_path / "model", "--audit", tmp_path / "audit", "--out", tmp_path / "card.md")
    card = (tmp_path / "card.md").read_text()
    assert audit.verdict.text in card
    assert "The privacy of the donors has not been audited" not in card
    verdict = audit.verdict
    found = bool(verdict.successful or verdict.inconclusive)
    assert ("**Not anonymous: treat" in card, "No attack on generated cells found a donor, but" in card) == (
        found,
        not found,
    )
    first = audit.verdict.findings[0]
    assert f"| {ATTACKS[first.attack]} | cells | {first.auc:.2f} | " in card
    share = audit.attacks.set_index(["set", "attack"])["true_positives"]["generated", first.attack]
    assert f" | {share:.0%} | {'yes' if first.succeeded else 'no'} |" in card
    assert "15 donors were divided" in card
    tested = f"{audit.record['n_tested']} donors were members in at least one fold, the others in none."
    number = "The attacks had 60 generated cells in each fold, 0.5 for each training cell. More cells disclose more."
    assert f"{tested} {number}" in card
    of_type = audit.by_label[(audit.by_label["set"] == "generated") & (audit.by_label["cell_type"] == "T cell")]
    best = of_type.loc[of_type["auc"].idxmax()]
    row = f"{ATTACKS[best['attack']]} | {best['auc']:.2f} | {best['limit']:.2f} |"
    assert f"| T cell | 10 | {row}" in card
    assert "* The model: only generated cells were attacked." in card
    assert "* Donors: an audit of single cells" not in card
    for record, message in (
        ({"generator": "files"}, "of another generator"),
        ({"fit": {**audit.record["fit"], "train": {"width": 5}}}, "width is 5, and 16 in this model"),
        ({"prepare": {**audit.record["prepare"], "n_genes": 3}}, "n_genes is 3, and 2000 in this model"),
        ({"prepare": {**audit.record["prepare"], "min_donors": 3}}, "min_donors is 3, and 1 in this model"),
        ({"prepare": {**audit.record["prepare"], "batch_key": "lane"}}, "batch_key is lane, and None in this model"),
        ({"fit": {**audit.record["fit"], "hierarchy": {"threshold": 0.6}}}, "threshold is 0.6, and 0.9 in this model"),
        ({"tree_given": True}, r"tree is given, and not given in this model"),
    ):
        with pytest.raises(InputError, match=message):
            model.card(audit=Audit(audit.scores, {**audit.record, **record}))
    fitted = model.model.autoencoder
    of_file = replace(fitted, provenance=fitted.provenance | {"data_sha256": "a" * 64})
    with pytest.raises(InputError, match=r"of other data .* begins with bbbbbbbb, .* aaaaaaaa"):
        audit_section(
            Audit(audit.scores, {**audit.record, "data_sha256": "b" * 64}), replace(model.model, autoencoder=of_file)
        )
    with pytest.raises(InputError, match="different cell types"):
        model.card(audit=Audit(audit.scores.assign(cell_type="other"), audit.record))
    with pytest.raises(InputError, match="A loaded model cannot be audited"):
        BranchedDiffusion.load(tmp_path / "model").audit()


@pytest.fixture(scope="module")
def written_folds(prepared, tmp_path_factory) -> Path:
    """Prepared cells, and the training cells of each fold as generated cells."""
    folder = tmp_path_factory.mktemp("folds")
    prepared.write_h5ad(folder / "prepared.h5ad")
    run("audit", folder / "prepared.h5ad", folder / "folds", "--folds-only", "--n-folds=2")
    return folder


@pytest.fixture
def by_fold(written_folds, tmp_path) -> list[Path]:
    """Copies of the files of each fold, which tests may change."""
    shutil.copytree(written_folds, tmp_path, dirs_exist_ok=True)
    return [tmp_path / f"folds/fold-{number}.h5ad" for number in (1, 2)]


def test_command_writes_an_audit_of_files(by_fold, of_copies, tmp_path):
    options = [word for path in by_fold for word in ("--cells", path)]
    run("audit", tmp_path / "prepared.h5ad", tmp_path / "audit", *options, "--n-folds=2")
    of_copies.save(tmp_path / "whole")
    names = {"audit.json", "audit.safetensors", "summary.json", "audit.png", *TABLES.values()}
    assert {path.name for path in (tmp_path / "audit").iterdir()} == names
    for name in names - {"audit.png"}:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "audit" / name).read_bytes()
    read = Audit.load(tmp_path / "audit")
    assert read.verdict == of_copies.verdict
    assert read.record["n_generated"] == {"1": 120, "2": 120}
    assert not (tmp_path / "whole/audit.json").read_text().count("donor ")  # units are numbered
    with pytest.raises(InputError, match=r"it has no audit\.json"):
        Audit.load(tmp_path)


@pytest.mark.parametrize(("n_cells", "ratio"), [(90, "0.45"), (24000, "120")])
def test_numbers_of_cells_are_compared_with_those_of_a_file(of_copies, n_cells, ratio):
    file = GeneratedFile("new.h5ad", "0", pd.Series({"T cell": n_cells}), pd.DataFrame(), 0, (), {})
    words = describe_division(of_copies, file, 200)
    assert f"; the file described above has {n_cells:,}, {ratio} for each. More cells disclose more." in words


def test_files_that_do_not_match_the_folds_are_rejected(by_fold, prepared, tmp_path):
    division = divide(prepared, TWO_FOLDS, seed=0)
    with pytest.raises(InputError, match="gives 1 file, and there are 2 folds"):
        fold_reader(by_fold[:1], division, TWO_FOLDS)
    with pytest.raises(InputError, match="gives a file for two folds"):
        fold_reader(by_fold[:1] * 2, division, TWO_FOLDS)
    cells = ad.read_h5ad(by_fold[0])

    def reading(changed: ad.AnnData):
        changed.write_h5ad(tmp_path / "changed.h5ad")
        return fold_reader([tmp_path / "changed.h5ad", by_fold[1]], division, TWO_FOLDS)

    with pytest.raises(InputError, match="has 0 cells of type 'T cell', of which fold 1 has 60"):
        reading(cells[cells.obs["cell_type"] == "B cell"].copy())
    with pytest.raises(InputError, match="lacks the genes gene 0"):
        reading(cells[:, 1:].copy())
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.rename_categories({"T cell": "T"})
    with pytest.raises(InputError, match="has cells of type 'T', which fold 1 lacks"):
        reading(cells)


BEFORE_ATTACKS = {
    "No such file or folder": lambda cells, path: path.unlink(),
    "which is not whole, as in normalised data": lambda cells, path: ad.AnnData(
        cells.X / 2, cells.obs, cells.var
    ).write_h5ad(path),
    r"has no counts in 'X'; put raw counts there\.$": lambda cells, path: ad.AnnData(
        obs=cells.obs, var=cells.var, layers={"counts": cells.X}
    ).write_h5ad(path),  # names no options, which audits lack
}


@pytest.mark.parametrize("message", BEFORE_ATTACKS)
def test_files_are_checked_before_the_first_attack(by_fold, prepared, message):
    BEFORE_ATTACKS[message](ad.read_h5ad(by_fold[1]), by_fold[1])
    division = divide(prepared, TWO_FOLDS, seed=0)
    with pytest.raises(InputError, match=message) as error:
        fold_reader(by_fold, division, TWO_FOLDS)
    assert str(by_fold[1]) in str(error.value)


def test_files_of_few_cells_are_reported_with_their_numbers(by_fold, prepared, caplog):
    cells = ad.read_h5ad(by_fold[1])
    number = cells.obs.groupby("cell_type", observed=True).cumcount().to_numpy()
    cells[number < np.where(cells.obs["cell_type"] == "B cell", 29, 30)].write_h5ad(by_fold[1])
    division = divide(prepared, TWO_FOLDS, seed=0)
    fold_reader(by_fold, division, TWO_FOLDS)
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warning == (
        f"{by_fold[1]} has fewer than half of the cells that are expected of fold 2: B cell (29 of 60); "
        "attacks find less in fewer cells, so give as many of each type, or, if you will share few, say so by "
        "`settings.cells_per_training_cell=`."
    )
    caplog.clear()
    fold_reader(by_fold, division, replace(TWO_FOLDS, cells_per_training_cell=0.9))
    assert not caplog.records


def test_command_rejects_what_does_not_fit_together(by_fold, tmp_path):
    arguments = ["audit", tmp_path / "prepared.h5ad", tmp_path / "audit", "--n-folds=2"]
    files = [word for path in by_fold for word in ("--cells", path)]
    for options, message in (
        ([*files, "--models", tmp_path / "models"], "are for models of bdm"),
        ([*files, "--width=16"], "are for models of bdm"),
        ([*files, "--folds-only"], "give only one of these"),
        (["--models", tmp_path / "audit/models"], "audit/models is in .*audit, which is replaced as a whole"),
    ):
        with pytest.raises(InputError, match=message):
            run(*arguments, *options)
        assert not (tmp_path / "audit").exists()


def test_figure_has_each_attack_on_cells_and_copies(of_copies):
    axis = pl.audit(of_copies, show=False)
    assert axis.get_xlabel() == "AUC of members against other donors"
    assert [label.get_text() for label in axis.get_yticklabels()] == [ATTACKS[name] for name in ON_CELLS]
    order = {line.get_label().partition(" ")[0]: line.get_zorder() for line in axis.lines}
    assert order["generated"] > order["copies"]  # which are at the same place where an attack finds all members


# ---- report and workflow


def test_report_has_a_section_on_the_audit(of_copies):
    template = environment().get_template("audit.html")
    page = template.render(audit=of_copies, **audit_tables(of_copies), figure=lambda *words: "")
    assert of_copies.verdict.text in page
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", page))
    assert "nearest generated cell 1.00 1.00" in text
    assert all(f"{name} " in text for name in TYPES)
    assert "b'" not in page
