import shutil
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from bdm._core.errors import InputError
from bdm.api import BranchedDiffusion
from bdm.hierarchy.tree import from_nested

PARTS = ("model.safetensors", "model.json")


@pytest.fixture(scope="module")
def saved(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "model"
    small_model.save(folder)
    return folder


@pytest.fixture
def few_types(example_cells):
    """Cells of four of the types."""
    return example_cells[example_cells.obs["bulk_labels"].isin(["CD19+ B", "CD34+", "CD56+ NK", "Dendritic"])].copy()


# ---- the public interface


def test_batches(batch_model):
    model = batch_model.model
    assert model.autoencoder.batches == ("one", "two")
    assert list(model.composition) == ["one", "two"]
    assert (model.composition.loc[["CD19+ B/1", "CD19+ B/2"], "two"] == 0).all()
    assert set(model.composition.index) == set(model.populations)
    assert model.composition_of_types.loc["CD19+ B", "two"] == 0
    assert set(model.composition_of_types.index) == set(model.cell_types)
    assert model.composition.to_numpy().sum() == batch_model.prepared.n_obs


def test_populations_are_the_leaves_of_the_hierarchy(small_model):
    model = small_model.model
    assert set(model.hierarchy.populations) == set(model.populations)
    assert set(model.populations) - set(model.cell_types) == {
        "CD19+ B/1",
        "CD19+ B/2",
        "Dendritic/1",
        "Dendritic/2",
    }
    for cell_type in model.cell_types:
        populations = model.autoencoder.populations_of(cell_type)
        assert set(model.hierarchy.leaves(cell_type)) == set(populations)
        assert {model.cell_type_of[name] for name in populations} == {cell_type}


def test_label_that_has_the_name_of_a_sub_population(few_types, small_settings, tiny_settings, tmp_path):
    """A user's `Dendritic/1` beside `Dendritic` keeps its name, and sub-populations have others."""
    quick = replace(tiny_settings, autoencoder=replace(small_settings.autoencoder, n_steps=20))
    cells = few_types
    cells.obs["bulk_labels"] = cells.obs["bulk_labels"].cat.rename_categories({"CD56+ NK": "Dendritic/1"})
    model = BranchedDiffusion(cells, label_key="bulk_labels", settings=quick).fit()
    assert model.model.autoencoder.populations_of("Dendritic") == ("Dendritic//1", "Dendritic//2")
    assert model.model.autoencoder.populations_of("Dendritic/1") == ("Dendritic/1",)
    generated = model.generate({"Dendritic": 8, "Dendritic/1": 3}).obs
    assert generated["cell_type"].value_counts()[["Dendritic", "Dendritic/1"]].tolist() == [8, 3]
    assert set(generated["sub_population"]) == {"Dendritic//1", "Dendritic//2", "Dendritic/1"}
    transmuted = model.transmute(cells, "Dendritic//2", from_="Dendritic/1").obs
    assert set(transmuted["original_type"]) == {"Dendritic/1"}
    assert set(transmuted["cell_type"]) == {"Dendritic"}
    model.save(tmp_path / "model")
    loaded = BranchedDiffusion.load(tmp_path / "model").generate({"Dendritic": 8, "Dendritic/1": 3})
    pd.testing.assert_frame_equal(loaded.obs, generated)


def test_same_seed_same_model(few_types, tiny_settings):
    def cells(seed: int) -> np.ndarray:
        model = BranchedDiffusion(few_types, label_key="bulk_labels", settings=tiny_settings, seed=seed).fit()
        return model.generate(2).X.toarray()

    first = cells(1)
    assert (first == cells(1)).all()
    assert first.shape != (other := cells(2)).shape or (first != other).any()


def test_users_tree(example_cells, tiny_settings, small_model):
    first, *others = small_model.model.cell_types
    tree = from_nested([first, others])
    model = BranchedDiffusion(example_cells, label_key="bulk_labels", tree=tree, settings=tiny_settings).fit()
    top, rest = model.hierarchy.children[model.hierarchy.root.name]
    assert {top, rest} - {first} <= set(model.hierarchy.by_name)
    assert len(model.generate(1)) == len(others) + 1


def test_tree_of_other_types_is_rejected_before_any_training(example_cells, small_settings):
    with pytest.raises(InputError, match="unknown types"):
        BranchedDiffusion(example_cells, label_key="bulk_labels", tree=from_nested(["a", "b"]), settings=small_settings)


def test_nothing_comes_from_a_model_that_is_not_fitted(example_cells, small_settings, tmp_path):
    model = BranchedDiffusion(example_cells, label_key="bulk_labels", settings=small_settings)
    for use in (lambda: model.generate(1), lambda: model.hierarchy, lambda: model.save(tmp_path / "model")):
        with pytest.raises(InputError, match="not fitted"):
            use()
    assert list(tmp_path.iterdir()) == []


def test_loaded_model_cannot_be_fitted(saved):
    with pytest.raises(InputError, match="cannot be fitted again"):
        BranchedDiffusion.load(saved).fit()


# ---- saved and loaded


@pytest.mark.parametrize(("fitted", "shared"), [("small_model", False), ("small_model", True), ("batch_model", False)])
def test_loaded_model_generates_the_same_cells(fitted, shared, request, tmp_path):
    model = request.getfixturevalue(fitted)
    model.save(tmp_path / "model")
    loaded = BranchedDiffusion.load(tmp_path / "model")
    expected, found = (of.generate(3, seed=4, shared_ancestors=shared) for of in (model, loaded))
    assert (found.X.toarray() == expected.X.toarray()).all()
    assert (found.obsm["latent"] == expected.obsm["latent"]).all()
    assert found.obs.equals(expected.obs)
    assert list(found.var_names) == list(expected.var_names)
    assert loaded.hierarchy == model.hierarchy


def test_columns_of_genes_are_kept_with_what_is_missing(example_cells, tiny_settings, tmp_path):
    cells = example_cells[:, :60].copy()
    cells.var["name"] = pd.Categorical([None, *(f"gene {i % 7}" for i in range(59))])
    cells.var["score"] = [np.nan, np.inf, *range(58)]
    cells.var["flag"] = pd.array([None, True] * 30, dtype="boolean")
    cells.var["nothing"] = np.nan
    cells.var["text"] = [None, *"a" * 59]
    model = BranchedDiffusion(cells, label_key="bulk_labels", settings=tiny_settings).fit()
    model.save(tmp_path / "model")
    generated = BranchedDiffusion.load(tmp_path / "model").generate(1)
    for adata in (generated, model.generate(1)):
        adata.write_h5ad(tmp_path / "cells.h5ad")
        var = anndata.read_h5ad(tmp_path / "cells.h5ad").var
        assert var.loc[cells.var_names, "name"].tolist()[1:] == cells.var["name"].tolist()[1:]
        missing = {column: int(var[column].isna().sum()) for column in ("name", "flag", "nothing", "text")}
        assert missing == {"name": 1, "flag": 30, "nothing": 60, "text": 1}


def test_model_saved_again_is_the_same(saved, tmp_path):
    BranchedDiffusion.load(saved).save(tmp_path / "again")
    assert {p.name for p in saved.iterdir()} == {*PARTS, "README.md"}  # the card
    for name in PARTS:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes()


def test_save_replaces_a_model_if_told_to(small_model, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "model")
    with pytest.raises(InputError, match="model exists; name another output, or replace it by `overwrite=True`"):
        small_model.save(tmp_path / "model")
    small_model.save(tmp_path / "model", overwrite=True)
    assert {path.name for path in (tmp_path / "model").iterdir()} == {*PARTS, "README.md"}  # the card


# ---- damaged models


def test_no_model_folder(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match=r"no model\.json"):
            BranchedDiffusion.load(path)
