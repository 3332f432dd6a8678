import copy
import json
import shlex
import warnings
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData, read_h5ad
from safetensors.torch import load_file
from scipy.sparse import csr_matrix

from bdm._core.errors import InputError
from bdm._core.store import checksum_of
from bdm.applications.extension.extend import (
    ExtendSettings,
    ExtensionReport,
    FittedExtension,
    add_type,
    describe,
    extend,
    extension_row,
    held_out_rows,
)
from bdm.applications.extension.fit_extension import batch_offsets
from bdm.applications.extension.new_cells import join_known_cells, select_new_cells
from bdm.autoencoder.latent import populations_of_cells
from bdm.autoencoder.softmax import AdapterSettings
from bdm.data.prepare import has_donors, recorded_min_donors
from bdm.generation.generate import generate_cells
from bdm.generation.request import request_cells
from bdm.hierarchy.build import branch_level, node_names
from bdm.model.match import counts_of_genes, fitted_cells, model_counts
from bdm.model.model import BranchedModel, load_model, save_model
from bdm.settings import GenerationSettings, TrainSettings

QUICK = ExtendSettings(adapter=AdapterSettings(n_steps=20), branch=TrainSettings(n_steps=20), n_bootstrap=10)
NEW = ["CD56+ NK", "CD14+ Monocyte", "CD34+"]


@pytest.fixture(scope="module")
def base(example_cells, small_settings) -> BranchedModel:
    """Model without the new types, with a network."""
    from bdm.api import BranchedDiffusion

    cells = example_cells[~example_cells.obs["bulk_labels"].isin(NEW)].copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bdm.prior.diffusion.MIN_GAIN", -np.inf)  # so that the network is kept
        return BranchedDiffusion(cells, label_key="bulk_labels", prior="diffusion", settings=small_settings).fit().model


@pytest.fixture(scope="module")
def stages(base, example_cells) -> list[BranchedModel]:
    """The model before and after adding each new type."""
    models = [base]
    for cell_type, cells in select_new_cells(example_cells, base, cell_types=tuple(NEW), seed=0).by_type.items():
        models.append(add_type(models[-1], cells, cell_type, QUICK, seed=0, provenance={}).model)
    return models


def generated(model: BranchedModel, *, shared: bool = False) -> AnnData:
    settings = GenerationSettings(shared_ancestors=shared)
    return generate_cells(model, request_cells(model, 30), settings, seed=3)


# ---- other types


@pytest.mark.parametrize("shared", [False, True])
def test_cells_of_known_types_are_the_same_to_the_bit(stages, shared):
    cells = [generated(model, shared=shared) for model in stages]
    for before, after in pairwise(cells):
        known = after[after.obs["cell_type"].isin(before.obs["cell_type"].unique())]
        assert (known.X != before.X).nnz == 0
        assert (known.obsm["latent"] == before.obsm["latent"]).all()


def test_given_model_is_left_as_it_is(base, stages, tmp_path):
    for number, model in enumerate([base, stages[-1]]):
        save_model(tmp_path / str(number), model)
    before, after = (json.loads((tmp_path / f"{number}/model.json").read_text())["model"] for number in (0, 1))
    assert before["base"] == after["base"]
    assert (len(before["extensions"]), len(after["extensions"])) == (0, len(NEW))
    tensors, extended = (load_file(tmp_path / f"{number}/model.safetensors") for number in (0, 1))
    assert all(torch.equal(value, extended[name]) for name, value in tensors.items())


def test_extended_model_comes_back_from_its_folder(stages, tmp_path):
    save_model(tmp_path / "model", stages[-1])
    loaded = load_model(tmp_path / "model")
    assert loaded.hierarchy == stages[-1].hierarchy
    assert loaded.cell_types == (*stages[0].cell_types, *NEW)
    before, after = generated(stages[-1]), generated(loaded)
    assert (before.X != after.X).nnz == 0
    assert before.obs.equals(after.obs)
    (tmp_path / "model/model.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="damaged"):
        load_model(tmp_path / "model")


# ---- the new type


@pytest.fixture(scope="module")
def with_nk(base, example_cells) -> FittedExtension:
    """The model with NK cells, after longer training."""
    [cells] = select_new_cells(example_cells, base, cell_types=("CD56+ NK",), seed=0).by_type.values()
    settings = ExtendSettings(branch=TrainSettings(n_steps=100))
    return add_type(base, cells, "CD56+ NK", settings, seed=0, provenance={})


def profile(counts: np.ndarray) -> np.ndarray:
    return np.log1p(1e4 * counts / counts.sum(axis=1, keepdims=True)).mean(axis=0)


def test_new_cells_are_like_training_cells(with_nk, example_cells):
    genes = with_nk.model.autoencoder.genes.index
    real = example_cells[:, genes]
    real = {
        name: profile(real[real.obs["bulk_labels"] == name].X.toarray()) for name in ("CD56+ NK", "CD8+ Cytotoxic T")
    }
    cells = generated(with_nk.model)
    made = profile(cells[cells.obs["cell_type"] == "CD56+ NK"].X.toarray())
    apart = np.linalg.norm(real["CD56+ NK"] - real["CD8+ Cytotoxic T"])
    assert np.linalg.norm(made - real["CD56+ NK"]) < 0.4 * apart


def test_it_is_attached_next_to_its_nearest_type(with_nk):
    assert with_nk.distance.index[0] == "CD8+ Cytotoxic T"
    assert with_nk.distance.is_monotonic_increasing
    assert with_nk.extension.support > 0.5
    leaf = with_nk.model.hierarchy.by_name["CD56+ NK"]
    assert leaf.n_cells < 50
    assert leaf.place == with_nk.extension.support  # as of all types of few cells
    node = with_nk.model.hierarchy.by_name[leaf.parent]
    assert node.level == with_nk.extension.attachment.level
    assert "CD8+ Cytotoxic T" in with_nk.model.hierarchy.leaves(node.name)


def test_cells_are_transmuted_to_and_from_the_new_type(with_nk, example_cells):
    from bdm.applications.transmutation.transmute import select_sources, transmuted_cells

    for old, new in [("CD56+ NK", "Dendritic"), ("Dendritic", "CD56+ NK")]:
        sources = select_sources(example_cells, with_nk.model, new, cell_types=(old,))
        transmuted = transmuted_cells(with_nk.model, sources, seed=0).in_memory()
        real = example_cells[:, transmuted.var_names]
        here, there = (profile(real[real.obs["bulk_labels"] == name].X.toarray()) for name in (old, new))
        assert np.linalg.norm(profile(transmuted.X.toarray()) - there) < 0.5 * np.linalg.norm(here - there)


# ---- sub-populations of the new type

KINDS = ("CD14+ Monocyte", "CD8+/CD45RA+ Naive Cytotoxic")  # of 129 and 43 cells


@pytest.fixture(scope="module")
def mixed_cells(example_cells) -> AnnData:
    """Cells of a type that no model has, of two kinds."""
    cells = example_cells.copy()
    cells.obs["kind"] = cells.obs["bulk_labels"].astype(str)
    cells.obs["bulk_labels"] = np.where(cells.obs["kind"].isin(KINDS), "mixed", cells.obs["kind"])
    return cells


def with_settings(model: BranchedModel, **changes) -> BranchedModel:
    """The model as if its autoencoder had been fitted with other settings."""
    record = model.autoencoder.provenance
    provenance = record | {"settings": record["settings"] | changes}
    return replace(model, autoencoder=replace(model.autoencoder, provenance=provenance))


@pytest.fixture(scope="module")
def with_mixed(base, mixed_cells) -> FittedExtension:
    """The model with the type of two kinds, in two populations."""
    model = with_settings(base, sub_populations=2)
    [cells] = select_new_cells(mixed_cells, model, cell_types=("mixed",), seed=0).by_type.values()
    settings = ExtendSettings(branch=TrainSettings(n_steps=50), n_bootstrap=10)
    return add_type(model, cells, "mixed", settings, seed=0, provenance={})


def kinds_by_population(model: BranchedModel, cells: AnnData) -> pd.DataFrame:
    """Count cells of each kind by assigned population."""
    prepared = model_counts(cells[cells.obs["bulk_labels"] == "mixed"], model)
    prepared.obs = pd.DataFrame({"cell_type": "mixed"}, index=prepared.obs_names)
    prepared = prepared[prepared.X.getnnz(axis=1) > 0]
    population = populations_of_cells(prepared, model.autoencoder)
    return pd.crosstab(population, cells.obs.loc[prepared.obs_names, "kind"].to_numpy())


def test_populations_have_no_names_of_types_that_are_added_later(base, mixed_cells):
    cells = mixed_cells.copy()
    cells.obs["bulk_labels"] = cells.obs["bulk_labels"].replace("CD56+ NK", "mixed/2")
    new = select_new_cells(cells, base, cell_types=("mixed", "mixed/2"), seed=0)
    *_, last = extend(base, new, QUICK, seed=0)
    assert last.model.autoencoder.populations_of("mixed")[:2] == ("mixed//1", "mixed//2")
    assert last.model.cell_types[-2:] == ("mixed", "mixed/2")


def test_populations_of_a_new_type_do_not_mix_its_kinds_of_cells(base, mixed_cells):
    new = select_new_cells(mixed_cells, base, cell_types=("mixed",), seed=0)
    [extended] = extend(base, new, QUICK, seed=0)
    kinds = kinds_by_population(extended.model, mixed_cells)
    assert (kinds.max(axis=1) / kinds.sum(axis=1)).min() > 0.95
    assert kinds[KINDS[1]].max() >= 41


def test_populations_of_a_new_type_are_its_kinds_of_cells(with_mixed, mixed_cells):
    model = with_mixed.model
    assert model.autoencoder.populations_of("mixed") == ("mixed/1", "mixed/2")
    numbers = kinds_by_population(model, mixed_cells)
    assert list(numbers.index) == ["mixed/1", "mixed/2"]
    assert numbers.loc["mixed/1", KINDS[0]] >= 127
    assert numbers.loc["mixed/2", KINDS[1]] >= 41
    assert model.composition.loc[["mixed/1", "mixed/2"], "n_cells"].tolist() == numbers.sum(axis=1).tolist()
    assert extension_row(with_mixed)["n_populations"] == 2
    assert "mixed (172 cells, 2 sub-populations) leaves branch" in describe(extension_row(with_mixed))


def test_new_type_of_several_populations_is_a_clade(base, with_mixed):
    """Its populations separate at the level of their distance."""
    hierarchy, moments = with_mixed.model.hierarchy, with_mixed.extension.moments
    clade = hierarchy.by_name["mixed"]
    assert hierarchy.children["mixed"] == tuple(hierarchy.leaves("mixed")) == ("mixed/1", "mixed/2")
    assert {branch.cell_type for branch in hierarchy.branches if branch.name.startswith("mixed")} == {"mixed"}
    square = ((moments.mean[0] - moments.mean[1]) ** 2).sum() - moments.mean_variance.sum()
    assert clade.level == pytest.approx(float(branch_level(float(square) ** 0.5)), rel=1e-4)
    node = hierarchy.by_name[clade.parent]
    assert clade.level <= node.level == with_mixed.extension.attachment.level
    assert (clade.n_cells, node.added, clade.added) == (172, 1, 1)
    assert with_mixed.extension.prior_state["embeddings"].shape[0] == 3
    assert hierarchy.by_name["mixed/2"].nearer_to in base.cell_types  # the T cells that were put with monocytes
    assert hierarchy.by_name["mixed/1"].nearer_to != "mixed"


def test_generated_cells_of_each_population_are_like_its_cells(with_mixed, mixed_cells):
    cells = generate_cells(
        with_mixed.model, request_cells(with_mixed.model, {"mixed": 172}), GenerationSettings(), seed=0
    )
    numbers = with_mixed.model.composition["n_cells"]
    assert cells.obs["sub_population"].value_counts()["mixed/1"] == numbers["mixed/1"]
    assert set(cells.obs["cell_type"]) == {"mixed"}
    real = mixed_cells[:, cells.var_names]
    kinds = [profile(real[real.obs["kind"] == kind].X.toarray()) for kind in KINDS]
    apart = np.linalg.norm(kinds[0] - kinds[1])
    for kind, name in zip(kinds, ("mixed/1", "mixed/2"), strict=True):
        made = profile(cells[cells.obs["sub_population"] == name].X.toarray())
        assert np.linalg.norm(made - kind) < 0.3 * apart


@pytest.mark.parametrize(("value", "n_populations"), [("none", 1), (1, 1), (3, 3)])
def test_number_of_populations_is_set_as_for_the_model(base, mixed_cells, value, n_populations):
    model = with_settings(base, sub_populations=value, min_cells_per_sub_population=5)
    new = select_new_cells(mixed_cells, model, cell_types=("mixed",), seed=0)
    [extended] = extend(model, new, replace(QUICK, n_bootstrap=0), seed=0)
    assert extended.extension.support is None
    assert "(support" not in describe(extension_row(extended))
    populations = extended.model.autoencoder.populations_of("mixed")
    assert len(populations) == n_populations
    if n_populations == 1:
        assert populations == ("mixed",)
        assert extended.model.hierarchy.children["mixed"] == ()
        assert tuple(extended.extension.adapters) == ("mixed",)


def test_fewer_populations_of_a_new_type_than_set_are_named(base, mixed_cells, caplog):
    model = with_settings(base, sub_populations=2, min_cells_per_sub_population=100)
    new = select_new_cells(mixed_cells, model, cell_types=("mixed",), seed=0)
    extend(model, new, replace(QUICK, n_bootstrap=0), seed=0)
    assert "Fewer than 2 sub-populations, as each needs 100 cells to fit: 'mixed' (1)." in caplog.text


def test_no_populations_of_donors_that_are_not_known(base, mixed_cells):
    """The model requires a minimum number of donors per population."""
    record = base.autoencoder.provenance
    provenance = record | {"prepare": record["prepare"] | {"min_donors": 5}}
    counted = replace(base, autoencoder=replace(base.autoencoder, provenance=provenance))
    model = with_settings(counted, sub_populations=3)
    new = select_new_cells(mixed_cells, model, cell_types=("mixed",), seed=0)
    [extended] = extend(model, new, replace(QUICK, n_bootstrap=0), seed=0)
    assert extended.model.autoencoder.populations_of("mixed") == ("mixed",)


def test_type_with_the_name_of_a_population_is_rejected(with_mixed, example_cells):
    cells = example_cells.copy()
    cells.obs["bulk_labels"] = cells.obs["bulk_labels"].astype(str).replace("CD34+", "mixed/1")
    with pytest.raises(InputError, match="has a branch 'mixed/1', which is not a cell type; rename the type"):
        select_new_cells(cells, with_mixed.model, cell_types=("mixed/1",), seed=0)


@pytest.mark.parametrize("shared", [False, True])
def test_known_cells_stay_with_several_populations_of_a_new_type(base, with_mixed, shared):
    before, after = (generated(model, shared=shared) for model in (base, with_mixed.model))
    known = after[after.obs["cell_type"] != "mixed"]
    assert (known.X != before.X).nnz == 0
    assert (known.obsm["latent"] == before.obsm["latent"]).all()
    assert set(after.obs["sub_population"]) == set(with_mixed.model.populations)


# ---- batches


@pytest.fixture(scope="module")
def of_two_donors(example_cells) -> AnnData:
    """Cells of a known and a new donor, with a new type."""
    cells = example_cells.copy()
    n_cells = np.arange(cells.n_obs)
    cells.obs["bulk_labels"] = np.where(n_cells % 5 == 0, "new", cells.obs["bulk_labels"].astype(str))
    cells.obs["donor"] = np.where(n_cells % 2 == 0, "three", "one")
    return cells


def test_batches(of_two_donors, batch_model):
    cells = of_two_donors[of_two_donors.obs["donor"] == "one"]
    new = select_new_cells(cells, batch_model.model, cell_types=("new",), seed=0)
    assert new.batches == ()
    [extended] = extend(batch_model.model, new, QUICK, seed=0)
    assert extended.model.composition_of_types.loc["new"].to_dict() == {"one": 70, "two": 0}
    assert set(generated(extended.model).obs["donor"]) == {"one", "two"}


def test_new_batches(of_two_donors, batch_model, tmp_path):
    cells = of_two_donors.copy()
    names = batch_model.model.autoencoder.genes.index
    moved = np.arange(0, len(names), 2)  # genes that one batch has four times as much of
    dense = cells.X.toarray()
    dense[np.ix_(cells.obs["donor"] == "three", cells.var_names.get_indexer(names[moved]))] *= 4
    cells.X = csr_matrix(dense)
    before = generated(batch_model.model)
    new = select_new_cells(cells, batch_model.model, cell_types=("new",), seed=0)
    assert new.batches == ("three",)
    [extended] = extend(batch_model.model, new, QUICK, seed=0)
    offset = (
        extended.extension.batches["three"].numpy()
        - batch_model.model.autoencoder.network.decoder.batch_offset[0].detach().numpy()
    )
    change = np.median(offset[moved]) - np.median(np.delete(offset, moved))
    assert change == pytest.approx(np.log(4), abs=0.35)
    assert extended.model.composition_of_types.loc["new"].to_dict() == {"one": 70, "two": 0, "three": 70}
    after = generated(extended.model)
    known = after[after.obs["cell_type"] != "new"]
    assert (known.X != before.X).nnz == 0
    assert list(known.obs["donor"]) == list(before.obs["donor"])
    request = pd.DataFrame({"cell_type": ["CD19+ B"], "batch": ["three"], "n_cells": [200]})
    there = generate_cells(extended.model, request_cells(extended.model, request), GenerationSettings(), seed=0)
    request["batch"] = "one"
    here = generate_cells(extended.model, request_cells(extended.model, request), GenerationSettings(), seed=0)
    ratio = profile(there.X.toarray()) - profile(here.X.toarray())
    assert ratio[moved].mean() > 0.2
    save_model(tmp_path / "model", extended.model)
    again = generate_cells(
        load_model(tmp_path / "model"), request_cells(extended.model, 5), GenerationSettings(), seed=0
    )
    expected = generate_cells(extended.model, request_cells(extended.model, 5), GenerationSettings(), seed=0)
    assert (again.X != expected.X).nnz == 0


def test_few_cells_of_a_new_batch_hardly_move_genes(batch_model):
    """Relabelled cells of known batches have no batch effect."""
    cells = generated(batch_model.model)[::15].copy()
    cells.obs["batch"] = "three"
    autoencoder = batch_model.model.autoencoder
    change = batch_offsets(cells, autoencoder, ("three",))["three"] - autoencoder.network.decoder.mean_batch()
    assert change.abs().max() < 1.5


def test_batch_without_known_types_is_learned_with_the_new(of_two_donors, batch_model, caplog):
    cells = of_two_donors[of_two_donors.obs["bulk_labels"] == "new"]
    [extended] = extend(batch_model.model, select_new_cells(cells, batch_model.model, seed=0), QUICK, seed=0)
    assert "'three' has no cells of known types" in caplog.text
    mean = batch_model.model.autoencoder.network.decoder.batch_offset.mean(dim=0)
    assert torch.equal(extended.extension.batches["three"], mean)


# ---- many extensions


def test_interpretation_goes_across_old_and_new_types(example_cells, tiny_settings):
    from bdm.api import BranchedDiffusion

    cells = example_cells[~example_cells.obs["bulk_labels"].isin(NEW)].copy()
    model = BranchedDiffusion(cells, label_key="bulk_labels", settings=tiny_settings).fit()
    branches = model.extend(example_cells, cell_types=["CD56+ NK"]).interpret()
    node = model.hierarchy.by_name["CD56+ NK"].parent
    assert {"CD56+ NK", node} <= set(branches.obs_names)
    assert np.isfinite(branches["CD56+ NK"].X).all()


# ---- by command


@pytest.fixture(scope="module")
def folder(base, example_cells, tmp_path_factory):
    """Folder of a model, its cells, and cells of new types."""
    from bdm.data.prepare import prepare
    from bdm.settings import PrepareSettings

    folder = tmp_path_factory.mktemp("extend")
    save_model(folder / "model", base)
    example_cells.write_h5ad(folder / "cells.h5ad")
    settings = PrepareSettings(label_key="bulk_labels", leave_out=tuple(NEW), n_genes=200, keep_genes="none", test=0.0)
    prepare(example_cells, settings).write_h5ad(folder / "prepared.h5ad")
    return folder


def test_command_extends_reports_and_joins(folder, bdm):
    command = f"extend {folder}/model {folder}/cells.h5ad {folder}/extended --known {folder}/prepared.h5ad"
    command += " --cell-type 'CD56+ NK' --cell-type CD34+"
    assert bdm(*shlex.split(f"{command} --joined {folder}/joined.h5ad --report {folder}/report"))[0] == 0
    tables = {name: pd.read_csv(folder / f"report/{name}.csv") for name in ("extensions", "type_specific_genes")}
    assert list(tables["extensions"]["cell_type"]) == ["CD56+ NK", "CD34+"]
    assert tables["extensions"]["log_likelihood_after"].between(-2000, -10).all()
    assert set(tables["type_specific_genes"]["cell_type"]) >= {"CD56+ NK", "CD34+"}
    assert (folder / "report/hierarchy.png").stat().st_size > 5000
    report = ExtensionReport.load(folder / "report")
    np.testing.assert_allclose(report.extensions["gain"], tables["extensions"]["gain"], rtol=1e-5)
    assert report.hierarchy == load_model(folder / "extended").hierarchy
    assert checksum_of(folder / "extended", "model") in (folder / "extended/README.md").read_text()
    assert report.n_before == 0
    record = report.provenance
    assert (record["ancestor_sha256"], record["cells_name"]) == (checksum_of(folder / "model", "model"), "cells.h5ad")
    report.save(folder / "again")
    for name in ("extension_report.json", *(f"{name}.csv" for name in tables)):
        assert (folder / "again" / name).read_bytes() == (folder / "report" / name).read_bytes()
    prepared, joined = (read_h5ad(folder / f"{name}.h5ad") for name in ("prepared", "joined"))
    assert joined.uns["bdm"]["input"] == prepared.uns["bdm"]["input"]
    assert set(joined.obs["cell_type"]) - set(prepared.obs["cell_type"]) == {"CD56+ NK", "CD34+"}
    extension = json.loads((folder / "extended/model.json").read_text())["model"]["extensions"][1]
    assert extension["provenance"]["ancestor_sha256"] == checksum_of(folder / "model", "model")
    words = ("generate", folder / "extended", folder / "new.h5ad", "--cells-like", folder / "joined.h5ad")
    assert bdm(*words)[0] == 0
    assert read_h5ad(folder / "new.h5ad").n_obs == joined.n_obs


def test_model_and_its_cells_stay_where_an_extension_fails(small_model, example_cells):
    model, before = copy.copy(small_model), small_model.prepared.obs.copy()
    name = next(node_names(model.hierarchy.by_name))  # of the node that the first new type makes
    labels = example_cells.obs["bulk_labels"].astype(str)
    cells = example_cells[labels == "CD34+"].copy()
    cells.obs["bulk_labels"] = np.where(np.arange(cells.n_obs) % 2, "new", name)
    with pytest.raises(InputError, match=f"has a branch '{name}' already; give the new type another name"):
        model.extend(cells, cell_types=("new", name))
    assert vars(model) == vars(small_model)
    pd.testing.assert_frame_equal(model.prepared.obs, before)


TYPES = ["CD19+ B", "CD4+/CD25 T Reg", "Dendritic", "CD8+ Cytotoxic T"]


def test_known_cells_of_all_types_are_needed(base, example_cells):
    prepared = fitted_cells(example_cells[example_cells.obs["bulk_labels"] != "CD56+ NK"].copy(), base)
    new = select_new_cells(example_cells, base, cell_types=("CD56+ NK",), seed=0)
    repeated = prepared.copy()
    repeated.obs_names = [*new.by_type["CD56+ NK"].obs_names, *prepared.obs_names][: prepared.n_obs]
    with warnings.catch_warnings(action="error"):  # barcodes of two files, such as AAACCTGA-1, are often the same
        # From anndata with pandas 3
        warnings.filterwarnings("ignore", "The '(mode.chained_assignment|future.infer_string)' option")
        joined = join_known_cells(new, base, repeated)
    assert joined.obs_names.is_unique
    assert "CD56+ NK" in set(joined.obs["cell_type"])
    lacking = prepared[prepared.obs["cell_type"] != "Dendritic"].copy()
    with pytest.raises(InputError, match=r"^The cells lack the model's types 'Dendritic'; give the cells that it was"):
        join_known_cells(new, base, lacking)


def test_donors_are_joined_where_all_cells_have_them(example_cells, tiny_settings, caplog):
    from bdm.api import BranchedDiffusion

    cells = example_cells[example_cells.obs["bulk_labels"].isin([*TYPES, "CD56+ NK"])].copy()
    cells.obs["person"] = [f"p{number % 6}" for number in range(cells.n_obs)]
    known = cells[cells.obs["bulk_labels"] != "CD56+ NK"].copy()
    prepare = replace(tiny_settings.prepare, label_key="bulk_labels", donor_key="person", min_donors=2)
    fitted = BranchedDiffusion(known, label_key="bulk_labels", settings=replace(tiny_settings, prepare=prepare)).fit()
    new = select_new_cells(cells, fitted.model, cell_types=("CD56+ NK",), seed=0)
    joined = join_known_cells(new, fitted.model, fitted.prepared)
    assert joined.obs.loc[joined.obs["cell_type"] == "CD56+ NK", "donor"].nunique() == 6
    assert has_donors(joined)
    del cells.obs["person"]
    without = select_new_cells(cells, fitted.model, cell_types=("CD56+ NK",), seed=0)
    joined = join_known_cells(without, fitted.model, fitted.prepared)
    assert "The joined cells have no donors, as obs of the new cells has no column 'person'" in caplog.text
    assert not has_donors(joined)
    assert recorded_min_donors(joined) == 1


# ---- cells and genes


def test_all_new_types_are_taken_the_largest_first(example_cells, base):
    by_type = select_new_cells(example_cells, base, seed=0).by_type
    numbers = example_cells.obs["bulk_labels"].value_counts()
    assert list(by_type) == sorted([*NEW, "CD4+/CD45RA+/CD25- Naive T"], key=lambda name: -numbers[name])
    for name, cells in by_type.items():
        assert cells.n_obs == numbers[name]
        assert set(cells.obs["split"]) == {"train", "validation"}  # the model has no test cells
        assert list(cells.var_names) == list(base.autoencoder.genes.index)


@pytest.mark.parametrize("missing", [None, np.nan, "", "nan"])
def test_cells_without_a_type_are_no_new_type(example_cells, base, caplog, missing):
    cells = example_cells.copy()
    lacks = cells.obs["bulk_labels"].isin(base.cell_types[:2]).to_numpy()
    cells.obs["bulk_labels"] = np.where(lacks, missing, cells.obs["bulk_labels"].astype(object))
    assert set(select_new_cells(cells, base, seed=0).by_type) == set(
        select_new_cells(example_cells, base, seed=0).by_type
    )
    assert f"Ignored {lacks.sum()} cells without a cell type." in caplog.text


@pytest.mark.parametrize("name", ["B\r", "nul\0l", "half \ud800"])
def test_types_of_names_that_files_cannot_hold_are_rejected(example_cells, base, name):
    cells = example_cells.copy()
    cells.obs["bulk_labels"] = cells.obs["bulk_labels"].astype(object).replace(NEW[0], name)
    with pytest.raises(InputError, match="files cannot hold; rename it") as refusal:
        select_new_cells(cells, base, cell_types=(name,), seed=0)
    assert str(refusal.value).isprintable()


def test_cells_without_a_batch_are_rejected(example_cells, batch_model):
    cells = example_cells.copy()
    cells.obs["donor"] = ["one", None] * (cells.n_obs // 2)
    cells.obs["bulk_labels"] = "new"
    with pytest.raises(InputError, match=r"obs\['donor'\] has no value for 350 of 700 cells, .*; complete it"):
        select_new_cells(cells, batch_model.model, seed=0)


def test_genes_are_matched_by_identifier(example_cells, base):
    genes = base.autoencoder.genes.assign(gene_id=[f"ENSG{i}" for i in range(len(base.autoencoder.genes))])
    cells = example_cells[:, genes.index[::-1]].copy()
    expected = counts_of_genes(cells, genes)
    cells.var_names = [f"ENSG{i}" for i in reversed(range(len(genes)))]
    matched = counts_of_genes(cells, genes)
    assert (matched.X != expected.X).nnz == 0
    assert list(matched.var_names) == list(genes.index)


def test_missing_genes_are_zero_on_request_alone(example_cells, base, caplog):
    genes = base.autoencoder.genes
    cells = example_cells[:, genes.index[3:]].copy()
    with pytest.raises(InputError, match="lack 3 of the model's"):
        counts_of_genes(cells, genes)
    matched = counts_of_genes(cells, genes, missing_as_zero=True)
    assert matched.X[:, :3].nnz == 0
    assert (matched.X[:, 3:] != example_cells[:, genes.index[3:]].X).nnz == 0
    assert f"3 genes that the cells lack, such as {genes.index[0]}" in caplog.text
    with pytest.raises(InputError, match="none of the model's"):
        counts_of_genes(
            AnnData(cells.X, var=cells.var.set_axis([f"x{i}" for i in range(cells.n_vars)])),
            genes,
            missing_as_zero=True,
        )


@pytest.mark.parametrize(
    ("n_cells", "held_out"),
    [
        ({"train": 20, "validation": 6, "test": 5}, "test"),
        ({"train": 20, "validation": 6, "test": 4}, "validation"),
        ({"train": 20, "validation": 1}, "validation"),
        ({"train": 5}, "train"),
    ],
)
def test_a_decoder_is_scored_with_cells_that_did_not_choose_it_where_there_are_enough(n_cells, held_out):
    obs = pd.DataFrame({"split": np.repeat(list(n_cells), list(n_cells.values()))})
    split, rows = held_out_rows(obs)
    assert split == held_out
    assert set(obs["split"].iloc[rows]) == {held_out}
    assert len(rows) == n_cells[held_out]
