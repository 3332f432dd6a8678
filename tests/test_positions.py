"""Commands on a model with positions: transmutation, extension, card and designed experiments."""

import json
import logging
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from r_readers import check_r_reads
from zoo import kept_model

from bdm._core.errors import InputError
from bdm.api import BranchedDiffusion
from bdm.applications.design.design import read_design
from bdm.applications.design.experiment import compile_design
from bdm.data.read import read_cells
from bdm.report.page import audit_tables, environment
from bdm.settings import AuditSettings, AutoencoderSettings, HierarchySettings, PrepareSettings, Settings

N_GENES, GRADIENT = 40, 0  # the expression of gene 0 rises along x
WIDTH = 1000.0  # of a section
ADDED = "added"


def simulated(n: int = 300, seed: int = 0) -> ad.AnnData:
    """Simulate cells of two sections: ``left`` and ``right`` lie in halves of the tissue, ``added`` anywhere."""
    rng = np.random.default_rng(seed)
    base = np.random.default_rng(7).normal(0, 0.7, (3, N_GENES))
    positions = rng.random((2 * n, 2)) * WIDTH
    is_right = rng.random(2 * n) < 1 / (1 + np.exp(-(positions[:, 0] - WIDTH / 2) / 50))
    code = np.where(rng.random(2 * n) < 0.15, 2, is_right.astype(int))
    log_mean = base[code]
    log_mean[:, GRADIENT] += 3 * positions[:, 0] / WIDTH - 1.5
    expression = np.exp(log_mean) / np.exp(log_mean).sum(axis=1, keepdims=True)
    counts = rng.poisson(rng.lognormal(6.5, 0.2, 2 * n)[:, None] * expression).astype(np.float32)
    obs = pd.DataFrame({"cell_type": np.array(["left", "right", ADDED])[code], "slide": np.repeat(["a", "b"], n)})
    obs.index = [f"cell-{number}" for number in range(2 * n)]
    var = pd.DataFrame(index=[f"g{number}" for number in range(N_GENES)])
    return ad.AnnData(counts, obs=obs, var=var, obsm={"xy": positions})


def cells_of_fit() -> ad.AnnData:
    cells = simulated()
    return cells[cells.obs["cell_type"] != ADDED].copy()


def fit_with_positions():
    settings = Settings(
        prepare=PrepareSettings(genes="all", test=0.1),
        autoencoder=AutoencoderSettings(n_latent=4, n_steps=120, sub_populations="none"),
        hierarchy=HierarchySettings(n_bootstrap=3),
    )
    return BranchedDiffusion(cells_of_fit(), spatial_key="xy", section_key="slide", settings=settings).fit()


@pytest.fixture(scope="module")
def model():
    return kept_model(fit_with_positions)


@pytest.fixture(scope="module")
def saved(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("positions") / "model"
    model.save(path)
    return path


# ---- transmutation


@pytest.mark.parametrize("prepared", [False, True])
def test_transmuted_cells_keep_their_positions(model, prepared):
    cells = model.prepared if prepared else cells_of_fit()
    key = "spatial" if prepared else "xy"
    transmuted = model.transmute(cells, "right")
    source = cells[transmuted.obs_names]
    assert set(transmuted.obs["original_type"]) == {"left"}
    np.testing.assert_array_equal(transmuted.obsm[key], source.obsm[key])
    assert list(transmuted.obs["slide"]) == list(source.obs["slide"])
    without = cells.copy()
    del without.obsm[key]
    assert (model.transmute(without, "right").X != transmuted.X).nnz == 0


def test_file_of_transmuted_cells_has_their_positions(bdm, saved, tmp_path):
    cells = cells_of_fit()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    code, _ = bdm("transmute", saved, tmp_path / "cells.h5ad", tmp_path / "out.h5ad", "--to", "right")
    transmuted = ad.read_h5ad(tmp_path / "out.h5ad")
    assert code == 0
    np.testing.assert_array_equal(transmuted.obsm["xy"], cells[transmuted.obs_names].obsm["xy"])
    assert list(transmuted.obs["slide"]) == list(cells[transmuted.obs_names].obs["slide"])


# ---- extension


@pytest.fixture(scope="module")
def extended(saved):
    model = BranchedDiffusion.load(saved, device="cpu")
    return model.extend(simulated())


def test_extension_warns_that_added_types_have_no_positions(saved, caplog):
    model = BranchedDiffusion.load(saved, device="cpu")
    with caplog.at_level(logging.WARNING, logger="bdm"):
        model.extend(simulated())
    assert caplog.text.count("do not depend on their positions") == 1


def test_cells_of_known_types_stay_the_same_at_their_positions(model, extended):
    locations = pd.DataFrame(simulated(100, seed=1).obsm["xy"], columns=["x", "y"]).assign(section="b")
    before, after = (each.generate(locations, seed=2) for each in (model, extended))
    assert (before.X != after.X).nnz == 0
    np.testing.assert_array_equal(before.obsm["xy"], after.obsm["xy"])


def test_cells_of_an_added_type_follow_the_surfaces_of_genes_alone(model, extended):
    locations = pd.DataFrame({"x": np.repeat([100, 900], 300), "y": 500, "section": "a", "cell_type": ADDED})
    cells = extended.generate(locations)
    assert set(cells.obs["cell_type"]) == {ADDED}
    left, right = (cells[cells.obsm["xy"][:, 0] == x] for x in (100, 900))
    anywhere = extended.generate({ADDED: 600})
    np.testing.assert_array_equal(cells.obsm["latent"], anywhere.obsm["latent"])
    assert model.model.space.genes.shared[GRADIENT].any()
    assert right.X[:, GRADIENT].mean() > 2 * left.X[:, GRADIENT].mean()


def joined_cells(saved, new):
    from bdm.applications.extension.new_cells import join_known_cells, select_new_cells

    loaded = BranchedDiffusion.load(saved, device="cpu", adata=cells_of_fit())
    return join_known_cells(select_new_cells(new, loaded.model, seed=0), loaded.model, loaded.prepared)


def test_joined_cells_keep_positions(saved, caplog):
    joined = joined_cells(saved, simulated())
    np.testing.assert_array_equal(joined.obsm["spatial"], simulated()[joined.obs_names].obsm["xy"])
    assert list(joined.obs["section"]) == list(simulated()[joined.obs_names].obs["slide"])
    without = simulated()
    del without.obs["slide"]
    joined = joined_cells(saved, without)
    assert "spatial" not in joined.obsm
    assert json.loads(joined.uns["bdm"]["settings"])["spatial_key"] is None
    assert "The joined cells have no positions" in caplog.text


# ---- card and audit


def test_card_describes_positions(model):
    card, tissue = model.card(), model.model.space.tissue
    assert f"| effects of positions | {model.model.space.summary} |" in card
    assert f"in each bin of the tissue ({tissue.width * model.model.space.unit:.3g} wide" in card
    assert model.model.learned == {"positions": model.model.space.summary}


@pytest.mark.slow
def test_audit_names_positions_as_not_attacked(model):
    settings = AuditSettings(n_folds=1, cells_only=True)
    audit = BranchedDiffusion(cells_of_fit(), settings=model.settings).audit(settings)
    page = environment().get_template("audit.html").render(audit=audit, **audit_tables(audit), figure=lambda *words: "")
    assert "Positions were not attacked" in page
    assert "Positions of cells, which the audited models lack" in model.card(audit=audit)


# ---- designed experiments

PLACED = {"donors": 2, "conditions": ["control", "treated"], "cells": 300, "positions": True}
UP = {
    "name": "up",
    "condition": "treated",
    "in": ["left"],
    "genes": ["g5", "g9"],
    "log2_fold_change": 2,
    "region": {"y": [0, 400]},
}


@pytest.fixture(scope="module")
def experiments(model):
    """Cells without and with a change in a region."""
    design = {"samples": {**PLACED, "section": {"control": "a"}}, "expected": True, "seed": 3}
    return model.simulate(design), model.simulate({**design, "changes": [UP]})


def test_cells_of_each_population_lie_where_the_map_has_them(model, experiments):
    adata = experiments[0]
    positions = pd.DataFrame(adata.obsm["xy"], adata.obs_names, ["x", "y"]).join(adata.obs)
    new = model.generate(new_locations=1200, seed=1)
    for name, cells in positions.groupby("cell_type", observed=True):
        expected = new.obsm["xy"][(new.obs["cell_type"] == name).to_numpy(), 0]
        assert cells["x"].mean() == pytest.approx(expected.mean(), abs=0.04 * WIDTH)
        assert cells["x"].std() == pytest.approx(expected.std(), rel=0.15)
    assert not positions.duplicated(["x", "y"]).any()
    samples = adata.uns["truth"]["samples"].set_index("sample")
    assert (samples["section"][["sample-1", "sample-2"]] == "a").all()
    assert list(adata.obs["slide"]) == list(samples["section"][adata.obs["sample"]])


def test_counts_follow_the_surfaces_with_local_variation_of_each_sample(model, experiments):
    adata, space = experiments[0], model.model.space
    expected, x = adata.layers["expected"][:, GRADIENT], adata.obsm["xy"][:, 0]
    for name in ("left", "right"):
        is_type = (adata.obs["cell_type"] == name).to_numpy()
        assert np.corrcoef(np.log(expected[is_type]), x[is_type])[0, 1] > 0.4
    experiment = compile_design(model.model, read_design({"samples": PLACED}))
    seeds, places = experiment.request.table["local_seed"].unique()[:2], space.places(np.full((1, 2), 500.0), ["a"])
    first, second = (space.local_fields(2, 1.0, "latent", int(seed))(places) for seed in seeds)
    assert (first != second).all()


def test_a_change_reaches_the_cells_inside_its_region(experiments):
    before, after = experiments
    inside = (after.obsm["xy"][:, 1] <= 400) & (after.obs["cell_type"] == "left").to_numpy()
    changed = inside & (after.obs["condition"] == "treated").to_numpy()
    np.testing.assert_array_equal(after.obs["responds"], changed)
    genes = after.var_names.get_indexer(UP["genes"])
    ratio = after.layers["expected"] / before.layers["expected"]
    np.testing.assert_allclose(ratio[np.ix_(changed, genes)], 4, rtol=1e-5)
    assert (after.X[~changed] != before.X[~changed]).nnz == 0
    np.testing.assert_array_equal(after.obsm["xy"], before.obsm["xy"])


def test_the_truth_names_the_region_and_counts_its_cells(experiments):
    adata = experiments[1]
    genes, regions = adata.uns["truth"]["genes"], adata.uns["truth"]["regions"]
    assert set(genes["region"]) == set(regions["region"]) == {"y 0 to 400"}
    cells = adata.obs.assign(inside=adata.obsm["xy"][:, 1] <= 400)
    cells = cells[cells["cell_type"] == "left"]
    numbers = cells.groupby("sample", observed=True)["inside"].agg(["size", "sum"])
    assert regions.set_index("sample")[["n_cells", "n_inside"]].to_numpy().tolist() == numbers.to_numpy().tolist()
    treated = cells[cells["condition"] == "treated"]
    expected = np.log2(1 + 3 * treated["inside"].mean())
    np.testing.assert_allclose(genes["log2_fold_change"], expected, rtol=1e-6)
    assert (genes["responding_log2_fold_change"] == 2).all()


def test_second_cells_of_doublets_are_at_the_place_of_the_droplet(model):
    design = {"samples": PLACED, "changes": [UP], "doublets": {"rate": 0.5}, "expected": True}
    without, adata = model.simulate({**design, "changes": []}), model.simulate(design)
    outside = adata.obsm["xy"][:, 1] > 400
    assert (adata.obs["doublet"] & outside).any()
    np.testing.assert_array_equal(adata.layers["expected"][outside], without.layers["expected"][outside])


def test_batches_that_are_sections_follow_the_section(model):
    settings = replace(model.settings, autoencoder=replace(model.settings.autoencoder, n_steps=5))
    keys = {"spatial_key": "xy", "section_key": "slide", "batch_key": "slide"}
    fitted = BranchedDiffusion(cells_of_fit(), **keys, settings=settings).fit()
    adata = fitted.simulate({"samples": {**PLACED, "cells": 20, "section": {"sample-2": "b", "treated": "a"}}})
    samples = adata.uns["truth"]["samples"]
    assert (samples["batch"] == samples["section"]).all()
    assert samples["section"].tolist()[1:] == ["b", "a", "a"]
    assert (adata.obs["slide"].astype(str) == adata.obs["batch"].astype(str)).all()


def test_an_added_type_lies_anywhere(extended):
    adata = extended.simulate({"samples": {"cells": {ADDED: 400, "left": 100}, "positions": True}})
    x = adata.obsm["xy"][(adata.obs["cell_type"] == ADDED).to_numpy(), 0]
    assert x.mean() == pytest.approx(WIDTH / 2, abs=0.08 * WIDTH)


def test_command_writes_positions_of_experiments(bdm, saved, tmp_path):
    (tmp_path / "design.yaml").write_text("samples: {cells: 50, positions: true, section: b}\n")
    code, _ = bdm("simulate", saved, tmp_path / "design.yaml", tmp_path / "out.h5ad")
    adata = ad.read_h5ad(tmp_path / "out.h5ad")
    assert code == 0
    check_r_reads(tmp_path / "out.h5ad")
    assert adata.obsm["xy"].shape == (50, 2)
    assert set(adata.obs["slide"]) == {"b"}


def changed(**keys) -> dict:
    return {"samples": PLACED, "changes": [{**UP, **keys}]}


INVALID = {
    "a region without positions": ({**changed(), "samples": {**PLACED, "positions": False}}, "changes.up.region needs"),
    "a section without positions": ({"samples": {"section": "a"}}, "section has no effect without positions"),
    "a section of no condition": (
        {"samples": {**PLACED, "section": {"x": "a"}}},
        "section: there is no condition or sample 'x'",
    ),
    "an unknown section": ({"samples": {**PLACED, "section": "c"}}, "section: the model has no section 'c'"),
    "reversed ends": (
        changed(region={"x": [5, 1]}),
        "region.x is [5.0, 1.0], but must be two numbers",
    ),
    "no tissue": (changed(region={"x": [2000, 3000]}), "changes.up: region: the samples have no tissue at x 2000 to"),
    "a coordinate too many": (changed(region={"z": [0, 1]}), "region: the model has no coordinate z; it has x and y."),
    "no coordinate": (changed(region={"w": [0, 1]}), "region: the model has no coordinate w; it has x and y."),
    "one end": (changed(region={"x": [0]}), "region.x is [0.0], but must be two numbers"),
}


@pytest.mark.parametrize("case", INVALID)
def test_invalid_regions_and_sections_are_rejected_in_one_sentence(case, model):
    design, sentence = INVALID[case]
    with pytest.raises(InputError) as error:
        model.simulate(design)
    assert sentence in str(error.value)


def test_positions_need_a_model_with_positions(small_model):
    with pytest.raises(InputError, match="samples: The model has no positions"):
        small_model.simulate({"samples": {"positions": True}})


# ---- other commands, and other forms of cells


@pytest.mark.slow
def test_other_commands_ignore_positions(bdm, saved, tmp_path):
    rng = np.random.default_rng(0)
    cells = simulated()
    cells.obs["condition"] = rng.choice(["ctrl", "stim"], cells.n_obs)
    without = ad.AnnData(cells.X, obs=cells.obs, var=cells.var)
    (tmp_path / "tree.nwk").write_text("((left,right)stem,added)root;")
    (tmp_path / "design.yaml").write_text(
        "{samples: {donors: 3, conditions: [a, b], cells: 50, variation: 0.1}, power: {n_repeats: 1, methods: t_test},"
        "changes: [{name: up, condition: b, genes: [g5], log2_fold_change: 2}]}"
    )
    for folder, adata in (("with", cells), ("without", without)):
        (path := tmp_path / folder).mkdir()
        adata.write_h5ad(path / "cells.h5ad")
        conditions = ["--condition-key", "condition", "--control", "ctrl"]
        for words in (
            ["respond", path / "cells.h5ad", path / "responses", *conditions],
            ["predict", path / "responses", path / "cells.h5ad", path / "predicted.h5ad", "--condition", "stim"],
            ["lineage", path / "cells.h5ad", path / "lineage", "--tree", tmp_path / "tree.nwk"],
            ["power", saved, tmp_path / "design.yaml", path / "power"],
        ):
            code, said = bdm(*words)
            assert code == 0, said
    after, before = (ad.read_h5ad(tmp_path / name / "predicted.h5ad") for name in ("with", "without"))
    assert (after.X != before.X).nnz == 0


def multimodal(form: str):
    """Cells with proteins: positions are in ``obsm`` of the MuData, of its RNA, or of an AnnData."""
    mudata, cells = pytest.importorskip("mudata"), cells_of_fit()
    names = [f"protein-{number}" for number in range(5)]
    levels = np.random.default_rng(0).poisson(20, (cells.n_obs, len(names))).astype(np.float32)
    if form == "AnnData":
        cells.obsm["protein_expression"] = pd.DataFrame(levels, index=cells.obs_names, columns=names)
        return cells
    proteins = ad.AnnData(levels, obs=cells.obs[[]], var=pd.DataFrame(index=names))
    if form == "RNA":
        return mudata.MuData({"rna": cells, "prot": proteins})
    positions = cells.obsm.pop("xy")
    cells = mudata.MuData({"rna": cells, "prot": proteins[::-1].copy()})
    cells.obsm["xy"] = pd.DataFrame(positions, proteins.obs_names).loc[cells.obs_names].to_numpy()
    return cells


@pytest.mark.parametrize("form", ["MuData", "RNA", "AnnData"])
@pytest.mark.parametrize("on_disk", [False, True])
def test_cells_of_several_modalities_have_positions(form, on_disk, model, tmp_path):
    cells = multimodal(form)
    if on_disk:
        cells.write(path := tmp_path / ("cells.h5ad" if form == "AnnData" else "cells.h5mu"))
        cells = read_cells(path)
    prepared = BranchedDiffusion(cells, spatial_key="xy", section_key="slide", settings=model.settings).prepared
    np.testing.assert_array_equal(prepared.obsm["spatial"], cells_of_fit()[prepared.obs_names].obsm["xy"])


def by_symbol(cells: ad.AnnData) -> None:
    cells.var["symbol"] = cells.var_names
    cells.var_names = [f"ENSG{number}" for number in range(cells.n_vars)]


@pytest.mark.parametrize("change", [lambda cells: None, by_symbol])
def test_cells_of_a_loaded_model_keep_positions(saved, change):
    change(cells := cells_of_fit())
    prepared = BranchedDiffusion.load(saved, device="cpu", adata=cells).prepared
    np.testing.assert_array_equal(prepared.obsm["spatial"], cells[prepared.obs_names].obsm["xy"])
    assert list(prepared.obs["section"]) == list(cells[prepared.obs_names].obs["slide"])


def test_cells_of_a_loaded_model_may_lack_sections(saved):
    cells = cells_of_fit()
    del cells.obs["slide"]
    assert "spatial" not in BranchedDiffusion.load(saved, device="cpu", adata=cells).prepared.obsm
