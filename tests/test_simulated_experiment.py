"""Simulated experiments: changes, depth, composition, donors, artefacts."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse, stats

from bdm._core.errors import InputError
from bdm._core.parallel import using_threads
from bdm._core.seeds import numpy_generator
from bdm.applications.design.design import read_design
from bdm.applications.design.experiment import compile_design, draw_cells
from bdm.applications.design.samples import expected_proportions
from bdm.applications.design.simulate import simulated_cells
from bdm.autoencoder.observation import NegativeBinomial
from bdm.generation.generate import write_cells

MONO, B, NK, DENDRITIC = "CD14+ Monocyte", "CD19+ B", "CD56+ NK", "Dendritic"
TWO = {"donors": 2, "conditions": ["control", "treated"], "cells": {MONO: 40, B: 30}}
UP = {
    "name": "up",
    "condition": "treated",
    "in": [MONO],
    "genes": {"n": 20, "expression": [0.3, 1]},
    "log2_fold_change": {"distribution": "normal", "mean": 1, "sd": 0.5, "up": 0.5},
}


def experiment_of(model, **content):
    return compile_design(model.model, read_design({"samples": TWO, **content}))


def simulate(model, **content):
    return model.simulate({"samples": TWO, **content})


def dense(adata):
    return adata.X.toarray()


def fold_changes(adata, condition="treated", reference="control"):
    """Log2 fold change of the mean expected counts of each gene."""
    means = [adata.layers["expected"][adata.obs["condition"] == name].mean(axis=0) for name in (condition, reference)]
    return np.log2(means[0] / means[1])


@pytest.fixture(scope="module")
def planted(small_model):
    """Cells without and with a change."""
    return simulate(small_model, expected=True), simulate(small_model, changes=[UP], expected=True)


# ---- cells


def test_a_design_without_changes_has_generated_cells(small_model):
    simulated = small_model.simulate({"samples": {"cells": {MONO: 70, B: 10}}, "seed": 5})
    generated = small_model.generate({MONO: 70, B: 10}, seed=5)
    assert (simulated.X != generated.X).nnz == 0
    np.testing.assert_array_equal(simulated.obsm["latent"], generated.obsm["latent"])
    assert simulated.var.equals(generated.var)
    columns = ["cell_type", "bulk_labels", "sub_population"]
    assert simulated.obs[columns].equals(generated.obs[columns])


def test_cells_have_their_sample_donor_and_condition(planted):
    adata = planted[1]
    by_sample = adata.obs.groupby("sample", observed=True)
    assert (by_sample.size() == 70).all()
    assert by_sample["donor"].first().tolist() == ["donor-1", "donor-2", "donor-3", "donor-4"]
    assert by_sample["condition"].first().tolist() == ["control", "control", "treated", "treated"]
    assert (by_sample[["donor", "condition"]].nunique() == 1).all(axis=None)
    assert "batch" not in adata.obs
    assert not adata.obs["doublet"].any()
    assert adata.obs["doublet_partner"].isna().all()
    assert adata.X.dtype == np.float32
    assert sparse.issparse(adata.X)


def test_a_seed_makes_the_cells(small_model, planted):
    again, changed = (small_model.simulate({"samples": TWO, "changes": [UP], "expected": True}, seed=s) for s in (0, 1))
    assert (again.X != planted[1].X).nnz == 0
    assert (changed.X != planted[1].X).nnz > 0
    assert again.uns["bdm"]["seed"] == 0


ARTEFACTS = {
    "samples": {**TWO, "variation": 0.3, "cells": 400},
    "composition": {"concentration": 20},
    "changes": [{**UP, "share": 0.5}],
    "depth": {"factor": {"treated": 0.5}},
    "doublets": {"rate": 0.2, "within": 0.3},
    "ambient": {"share": 0.1},
    "expected": True,
}


def test_cells_do_not_depend_on_threads(small_model, tmp_path):
    experiment = compile_design(small_model.model, read_design(ARTEFACTS))
    cells = {}
    for n_threads in (1, 3):
        with using_threads(n_threads):
            cells[n_threads] = simulated_cells(experiment).in_memory()
    write_cells(tmp_path / "written.h5ad", simulated_cells(experiment), {})
    written = ad.read_h5ad(tmp_path / "written.h5ad")
    for compared in (cells[3], written):
        assert (cells[1].X != compared.X).nnz == 0
        np.testing.assert_array_equal(cells[1].layers["expected"], compared.layers["expected"])
        assert list(cells[1].obs_names) == list(compared.obs_names)
    pd.testing.assert_frame_equal(cells[1].obs, written.obs)
    for name, table in cells[1].uns["truth"].items():
        pd.testing.assert_frame_equal(table, written.uns["truth"][name], check_dtype=False, check_categorical=False)


def test_expected_counts_are_the_means_of_the_counts(small_model):
    adata = small_model.simulate({**ARTEFACTS, "samples": {**ARTEFACTS["samples"], "cells": 1000}})
    counts, expected = adata.X.sum(), adata.layers["expected"].sum()
    assert counts == pytest.approx(expected, rel=0.01)
    for column in ("condition", "doublet", "responds"):
        for value in adata.obs[column].unique():
            rows = (adata.obs[column] == value).to_numpy()
            assert adata.X[rows].sum() == pytest.approx(adata.layers["expected"][rows].sum(), rel=0.02)


# ---- changes


def test_null_genes_and_other_cells_stay_exactly_the_same(planted):
    null, changed = planted
    genes = changed.uns["truth"]["genes"]["gene"].unique()
    assert len(genes) == 20
    is_null = ~changed.var_names.isin(genes)
    np.testing.assert_array_equal(dense(null)[:, is_null], dense(changed)[:, is_null])
    np.testing.assert_array_equal(null.layers["expected"][:, is_null], changed.layers["expected"][:, is_null])
    others = ~((changed.obs["condition"] == "treated") & (changed.obs["cell_type"] == MONO)).to_numpy()
    assert (null.X[others] != changed.X[others]).nnz == 0
    assert (null.X[~others] != changed.X[~others]).nnz > 0


def test_expected_counts_have_the_planted_changes(planted):
    null, changed = planted
    truth = changed.uns["truth"]["genes"].set_index("gene")
    cells = ((changed.obs["condition"] == "treated") & (changed.obs["cell_type"] == MONO)).to_numpy()
    before, after = (adata[cells, truth.index].layers["expected"].mean(axis=0) for adata in (null, changed))
    np.testing.assert_allclose(after / before, 2 ** truth["log2_fold_change"], rtol=1e-4)
    np.testing.assert_allclose(truth["log2_fold_change"], truth["responding_log2_fold_change"], rtol=1e-12)
    assert 0 < (truth["log2_fold_change"] > 0).sum() < 20
    whole = pd.DataFrame(changed.varm["log2_fold_change_treated"], index=changed.var_names)
    np.testing.assert_array_equal(whole.loc[truth.index, MONO], truth["log2_fold_change"])
    assert not whole.drop(columns=MONO).any(axis=None)
    assert not whole.drop(index=truth.index).any(axis=None)


def test_normalised_fold_changes_are_those_of_expression(planted):
    null, changed = planted
    truth = changed.uns["truth"]["genes"].set_index("gene")
    cells = ((changed.obs["condition"] == "treated") & (changed.obs["cell_type"] == MONO)).to_numpy()
    before, after = (adata[cells].layers["expected"].sum(axis=0, dtype=float) for adata in (null, changed))
    measured = pd.Series(np.log2(after / after.sum()) - np.log2(before / before.sum()), index=changed.var_names)
    np.testing.assert_allclose(measured[truth.index], truth["normalised_log2_fold_change"], atol=0.015)


def test_a_change_of_a_clade_is_in_all_types_below_it(small_model):
    hierarchy = small_model.hierarchy
    clade = next(
        name
        for name, children in hierarchy.children.items()
        if children and 2 <= len(hierarchy.types_below(name)) < len(hierarchy.cell_types)
    )
    below = hierarchy.types_below(clade)
    marker = {"name": "marker", "in": clade, "genes": {"n": 1, "expression": [0.5, 0.9]}, "log2_fold_change": 3}
    samples = {"cells": dict.fromkeys(hierarchy.cell_types, 20)}
    null, changed = (simulate(small_model, samples=samples, changes=c, expected=True) for c in ([], [marker]))
    [gene] = changed.uns["truth"]["genes"]["gene"].unique()
    ratio = changed[:, gene].layers["expected"] / null[:, gene].layers["expected"]
    is_below = null.obs["sub_population"].isin(list(hierarchy.leaves(clade))).to_numpy()
    np.testing.assert_allclose(ratio[is_below], 8, rtol=1e-4)
    assert (ratio[~is_below] == 1).all()
    assert set(changed.uns["truth"]["genes"]["cell_type"]) == set(below)
    assert set(changed.uns["truth"]["genes"]["condition"]) == {""}
    assert changed.varm["log2_fold_change"].shape == (changed.n_vars, len(hierarchy.cell_types))


def test_a_share_of_the_cells_responds(small_model):
    samples = {**TWO, "donors": 1, "cells": {B: 1500}}
    change = {**UP, "in": B, "genes": ["HLA-DRA"], "log2_fold_change": 2, "share": 0.5}
    null, changed = (simulate(small_model, samples=samples, changes=c, expected=True) for c in ([], [change]))
    ratio = np.round(changed[:, "HLA-DRA"].layers["expected"] / null[:, "HLA-DRA"].layers["expected"], 3).ravel()
    assert set(ratio[(changed.obs["condition"] == "control").to_numpy()]) == {1}
    treated = (changed.obs["condition"] == "treated").to_numpy()
    assert set(ratio[treated]) == {1, 4}
    assert (ratio[treated] == 4).mean() == pytest.approx(0.5, abs=0.05)
    np.testing.assert_array_equal(changed.obs["responds"], ratio == 4)
    [row] = changed.uns["truth"]["genes"].itertuples()
    assert row.log2_fold_change == pytest.approx(np.log2(2.5), abs=1e-9)
    assert row.share == 0.5


def test_genes_are_sampled_by_expression_and_by_one_change_only(small_model):
    low, high = (
        {**UP, "name": n, "genes": {"n": 30, "expression": q}} for n, q in (("low", [0, 0.3]), ("high", [0.7, 1]))
    )
    more = {**UP, "name": "more", "genes": {"n": 100}}
    plants = experiment_of(small_model, changes=[low, high, more]).changes
    reference = experiment_of(small_model).reference
    expression = reference.expression(MONO, "")
    assert expression[plants[0].genes].max() < expression[plants[1].genes].min()
    assert len(np.unique(np.concatenate([plant.genes for plant in plants]))) == 160


# ---- depth


def test_thinned_cells_are_the_same_cells(small_model, planted):
    thin = simulate(small_model, changes=[UP], depth={"factor": 0.3}, expected=True)
    deep = simulate(small_model, changes=[UP], depth={"factor": 3}, expected=True)
    counts, whole = planted[1], dense(planted[1])
    assert (dense(thin) <= whole).all()
    assert (dense(deep) >= whole).all()
    for adata, factor in ((thin, 0.3), (deep, 3)):
        np.testing.assert_array_equal(adata.obsm["latent"], counts.obsm["latent"])
        np.testing.assert_allclose(adata.layers["expected"], factor * counts.layers["expected"], rtol=1e-5)
        assert adata.X.sum() == pytest.approx(factor * whole.sum(), rel=0.02)
        assert (adata.obs["depth_factor"] == factor).all()


@pytest.mark.parametrize("factor", [0.4, 1, 2.5])
def test_rescaled_counts_are_negative_binomial(factor):
    mean, r, n = 3.0, 1.5, 40_000
    model = NegativeBinomial(torch.tensor([np.log(r)], dtype=torch.float32))
    generator = np.random.default_rng(0)
    means = np.full((n, 1), mean, dtype=np.float32)
    counts = model.sample(means, generator).toarray()
    changed = model.rescale(counts, means, np.array(factor), generator)
    assert changed.mean() == pytest.approx(factor * mean, rel=0.03)
    assert changed.var() == pytest.approx(factor * mean + (factor * mean) ** 2 / r, rel=0.06)
    expected = stats.nbinom(r, r / (r + factor * mean)).pmf(np.arange(4)) * n
    observed = np.bincount(changed.astype(int).ravel(), minlength=4)[:4]
    np.testing.assert_allclose(observed, expected, atol=4.5 * np.sqrt(expected.max()))


# ---- composition


@pytest.mark.parametrize(
    "composition",
    [
        {"proportions": {"Dendritic/1": 0.9, "Dendritic/2": 0.1}},
        {"proportions": {"Dendritic/1": 1}},
        {"shifts": [{"condition": "treated", "in": ["Dendritic/2"], "log_odds": 2}]},
    ],
)
@pytest.mark.parametrize("changed", [True, False])
def test_the_truth_of_a_type_has_the_shares_of_the_design(small_model, composition, changed):
    samples = {**TWO, "cells": 3000}
    changes = [{**UP, "in": ["Dendritic/2"], "log2_fold_change": [2]}] if changed else []
    adata = simulate(small_model, samples=samples, changes=changes, composition=composition, expected=True)
    cells = adata[adata.obs["cell_type"] == DENDRITIC]
    expected = cells.varm["log2_fold_change_treated"][DENDRITIC].to_numpy()
    often = cells.layers["expected"].mean(axis=0) > 0.05
    np.testing.assert_allclose(fold_changes(cells)[often], expected[often], atol=0.25)
    planted = adata.uns["truth"]["genes"].set_index("gene")["log2_fold_change"]
    assert len(planted) == 20 * changed
    np.testing.assert_allclose(fold_changes(cells)[cells.var_names.get_indexer(planted.index)], planted, atol=0.25)


def test_composition_is_as_given_and_shifted(small_model):
    content = {
        "samples": {**TWO, "cells": 3000},
        "composition": {
            "proportions": {MONO: 0.5, B: 0.3, "Dendritic/1": 0.2},
            "shifts": [{"condition": "treated", "in": [B], "log_odds": 1}],
        },
    }
    experiment = experiment_of(small_model, **content)
    numbers = experiment.request.table.assign(condition=lambda t: t["sample"].map(experiment.samples["condition"]))
    share = numbers.groupby(["condition", "cell_type"])["n_cells"].sum().unstack() / 6000
    odds = 0.3 / 0.7 * np.e
    assert share.loc["control"].to_dict() == pytest.approx({MONO: 0.5, B: 0.3, DENDRITIC: 0.2}, abs=0.02)
    assert share.loc["treated", B] == pytest.approx(odds / (1 + odds), abs=0.02)
    assert share.loc["treated", MONO] / share.loc["treated", DENDRITIC] == pytest.approx(2.5, rel=0.1)
    assert "Dendritic/2" not in set(numbers["sub_population"])
    truth = simulated_cells(experiment).uns["truth"]["composition"].set_index(["condition", "cell_type"])
    assert truth.loc[("treated", B), "log_odds_ratio"] == pytest.approx(1)
    assert truth.loc[("control", B), "proportion"] == pytest.approx(0.3)


def test_donors_differ_in_composition_by_the_concentration(small_model):
    samples = {"donors": 300, "cells": 1000}
    content = {"samples": samples, "composition": {"proportions": {MONO: 0.4, NK: 0.6}}}
    variance = {}
    for concentration in ("none", 10):
        content["composition"]["concentration"] = concentration
        table = experiment_of(small_model, **content).request.table
        share = table[table["cell_type"] == MONO].groupby("sample")["n_cells"].sum() / 1000
        variance[concentration] = share.var()
    assert variance["none"] == pytest.approx(0.24 / 1000, rel=0.3)
    assert variance[10] == pytest.approx(0.24 / 11 + 0.24 / 1000, rel=0.3)


# ---- donors and batches


def test_donors_differ_in_expected_counts_by_the_variation(small_model):
    samples = {"donors": 40, "cells": {NK: 30}}
    null, varied = (
        small_model.simulate({"samples": {**samples, "variation": v}, "expected": True}) for v in ("none", 0.5)
    )
    ratio = np.log(varied.layers["expected"] / null.layers["expected"])
    by_donor = pd.DataFrame(ratio).groupby(varied.obs["donor"].to_numpy()).mean()
    assert by_donor.std().median() == pytest.approx(0.5, rel=0.1)
    np.testing.assert_allclose(
        varied.layers["expected"].sum(axis=1), null.layers["expected"].sum(axis=1), rtol=1e-4
    )  # library sizes do not differ


def test_paired_samples_are_of_the_same_donor(small_model):
    samples = {**TWO, "paired": True, "cells": {NK: 50}, "variation": 0.5}
    adata = small_model.simulate({"samples": samples, "expected": True})
    means = pd.DataFrame(np.log(adata.layers["expected"])).groupby(adata.obs["sample"].to_numpy()).mean()
    correlation = np.corrcoef(means - means.mean())
    assert correlation[0, 2] > 0.8  # samples of donor-1
    assert correlation[0, 1] < 0


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_conditions_have_the_same_batches_in_the_shares_of_the_training_cells(batch_model, paired, seed):
    samples = {"donors": 30, "conditions": ["control", "treated"], "paired": paired}
    table = experiment_of(batch_model, samples=samples, seed=seed).samples
    batches = [list(part) for _, part in table.groupby("condition")["batch"]]
    assert batches[0] == batches[1] != sorted(batches[0])
    n_cells = batch_model.model.composition.sum()
    assert batches[0].count("two") == pytest.approx(30 * n_cells["two"] / n_cells.sum(), abs=1)


@pytest.mark.parametrize(
    ("batches", "numbers"),
    [
        ("two", [{"two": 4}] * 3),
        (["one", "two"], [{"one": 2, "two": 2}] * 3),
        ({"control": ["one", "two"], "high": "two"}, [{"one": 2, "two": 2}, None, {"two": 4}]),
        ({"control": "one", "sample-1": "two", "low": "one"}, [{"one": 3, "two": 1}, {"one": 4}, None]),
        ({"control": "one", "low": ["two"]}, [{"one": 4}, {"two": 4}, None]),
    ],
)
def test_batches_are_as_designed(batches, numbers, batch_model, caplog):
    samples = {"donors": 4, "conditions": ["control", "low", "high"], "batches": batches}
    table = experiment_of(batch_model, samples=samples).samples
    for name, expected in zip(samples["conditions"], numbers, strict=True):
        drawn = table.loc[table["condition"] == name, "batch"].value_counts().to_dict()
        assert drawn == expected or (expected is None and set(drawn) == {"one", "two"})
    confounded = numbers[:2] == [{"one": 4}, {"two": 4}]
    sentence = (
        "Effects of batch and condition cannot be told apart, as conditions share no batch: control (one), low (two)"
    )
    assert [record.message for record in caplog.records] == [f"{sentence}."] * confounded


def test_batches_that_the_model_lacks_are_rejected(batch_model, small_model):
    with pytest.raises(InputError, match="samples: batches: the model has no batch 'three'; its batches are one, two"):
        experiment_of(batch_model, samples={"batches": {"control": ["one", "three"]}})
    with pytest.raises(InputError, match="samples: batches has no effect, as the model was fitted without batches"):
        experiment_of(small_model, samples={"batches": "one"})


# ---- artefacts


@pytest.mark.parametrize("within", [None, 0.3, 1])
def test_doublets_are_as_many_as_planted(within, small_model):
    doublets = {"rate": 0.1} | ({} if within is None else {"within": within})
    experiment = experiment_of(small_model, samples={**TWO, "cells": 3000}, doublets=doublets)
    cells = draw_cells(experiment)
    assert cells.doublet.mean() == pytest.approx(0.1, abs=0.01)
    names = np.array(experiment.model.populations)
    types = experiment.model.cell_type_of
    first = cells.population[cells.doublet].map(types)
    second = pd.Series(names[cells.partner_population[cells.doublet]]).map(types).to_numpy()
    share = experiment.model.composition_of_types.sum(axis=1)
    expected = ((share / share.sum()) ** 2).sum() if within is None else within
    assert (first == second).mean() == pytest.approx(expected, abs=0.05)


def test_doublets_have_the_counts_of_two_cells(small_model):
    null, doublets = (simulate(small_model, doublets={"rate": r}, expected=True) for r in (0, 0.3))
    is_doublet = doublets.obs["doublet"].to_numpy()
    assert (null.X[~is_doublet] != doublets.X[~is_doublet]).nnz == 0
    assert (dense(doublets) >= dense(null)).all()
    assert doublets.X[is_doublet].sum() > 1.5 * null.X[is_doublet].sum()
    assert doublets.obs["doublet_partner"].notna().to_numpy().tolist() == is_doublet.tolist()
    assert set(doublets.obs["doublet_partner"].dropna()) <= set(small_model.model.populations)


def test_the_share_of_ambient_counts_is_found_from_their_profile(small_model):
    samples = {**TWO, "cells": 1000}
    null, ambient = (simulate(small_model, samples=samples, ambient={"share": s}) for s in (0, 0.15))
    assert ambient.X.sum() == pytest.approx(null.X.sum(), rel=0.02)
    np.testing.assert_allclose(ambient.varm["ambient"].sum(), 1)
    for sample, names in ambient.obs.groupby("sample", observed=True).groups.items():
        for cell_type in (MONO, DENDRITIC, B):
            cells = names[(ambient.obs.loc[names, "cell_type"] == cell_type).to_numpy()]
            counts, own = (np.asarray(adata[cells].X.sum(axis=0)).ravel() for adata in (ambient, null))
            measured, own = counts / counts.sum(), own / own.sum()
            direction = ambient.varm["ambient"][sample].to_numpy() - own
            assert (measured - own) @ direction / (direction @ direction) == pytest.approx(0.15, abs=0.03)


def test_the_truth_describes_cells_without_ambient_rna(small_model):
    content = {"changes": [UP | {"log2_fold_change": 1}], "expected": True}
    null, ambient = (simulate(small_model, ambient={"share": share}, **content) for share in (0, 0.2))
    pd.testing.assert_frame_equal(null.uns["truth"]["genes"], ambient.uns["truth"]["genes"])
    changed = null.var_names.isin(null.uns["truth"]["genes"]["gene"])

    def realised(cells, cell_type):
        return fold_changes(cells[cells.obs["cell_type"] == cell_type])[changed].mean()

    assert realised(ambient, MONO) < realised(null, MONO) - 0.05
    assert realised(ambient, B) > realised(null, B) + 0.05


def test_ambient_rna_is_of_the_donors_of_the_sample(small_model):
    samples = {"donors": 3, "cells": 600, "variation": 0.6}
    adata = small_model.simulate({"samples": samples, "ambient": {"share": 0.2}, "expected": True})
    for sample, profile in adata.varm["ambient"].items():
        mean = adata.layers["expected"][adata.obs["sample"] == sample].mean(axis=0)
        often = mean > 0.02
        ratio = np.log(profile.to_numpy() / (mean / mean.sum()))[often]
        assert ratio.std() < 0.12  # 0.5 for the profile of a donor of average expression


def test_empty_droplets_have_the_ambient_profile(small_model):
    ambient = {"share": 0.1, "empty_counts": 4000}
    cells, again = (simulate(small_model, ambient=ambient) for _ in range(2))
    empty = cells.varm["empty_droplets"]
    assert empty.equals(again.varm["empty_droplets"])
    assert list(empty) == list(cells.varm["ambient"])
    assert (empty.sum() == 4000).all()
    np.testing.assert_allclose(empty / 4000, cells.varm["ambient"], atol=0.03)
    assert not empty["sample-1"].equals(empty["sample-2"])
    without = simulate(small_model, ambient=ambient | {"empty_counts": 0})
    assert "empty_droplets" not in without.varm
    assert (without.X != cells.X).nnz == 0


def test_empty_droplets_without_ambient_rna_in_the_cells(small_model, tmp_path):
    experiment = experiment_of(small_model, ambient={"empty_counts": 500})
    write_cells(tmp_path / "cells.h5ad", simulated_cells(experiment), {})
    cells = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert (cells.varm["empty_droplets"].sum() == 500).all()
    assert (cells.X != simulate(small_model).X).nnz == 0


# ---- donors that the model has learned


@pytest.fixture(scope="module")
def donor_model(small_settings):
    from test_donors import simulated_cells as cells_of_donors

    from bdm.api import BranchedDiffusion

    return BranchedDiffusion(cells_of_donors(6, library_sd=0.2), donor_key="donor", settings=small_settings).fit()


def test_donors_are_as_learned_unless_the_design_says_otherwise(donor_model):
    names = ("donor-1", "donor-2", "donor-3")
    samples = {"donors": 3, "cells": {"type0": 60}}
    variation = {
        name: donor_model.simulate({"samples": {**samples, **of}, "expected": True})
        for name, of in {"default": {}, "learned": {"variation": "learned"}, "none": {"variation": "none"}}.items()
    }
    np.testing.assert_array_equal(variation["default"].X.toarray(), variation["learned"].X.toarray())
    assert set(variation["learned"].obs["donor"]) == set(names)

    def spread(adata):
        means = pd.DataFrame(np.log(adata.layers["expected"])).groupby(adata.obs["donor"].to_numpy()).mean()
        return means.std().mean()

    assert spread(variation["learned"]) > 2 * spread(variation["none"])


def test_composition_and_numbers_of_cells_are_as_learned(donor_model):
    design = {"samples": {"donors": 5, "cells": "learned"}}
    experiment = compile_design(donor_model.model, read_design(design))
    donors = donor_model.model.donors.sample(5, numpy_generator(0, "donors"))
    numbers = experiment.request.table.groupby("sample")["n_cells"].sum()
    assert numbers.tolist() == donors.n_cells.tolist()
    shares = expected_proportions(donor_model.model, experiment.design)
    assert shares.sum(axis=1).to_numpy() == pytest.approx(1)
