"""Cells that keep counts, types and batches where other data do not, through Python and the command line."""

import shutil
import subprocess
import sys
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

import bdm
from bdm._core.errors import InputError
from bdm.cli import app
from bdm.evaluation.table import wide
from bdm.model.match import fitted_cells, known_cells, real_cells_for
from bdm.settings import InputKeys

B, NK = "CD19+ B", "CD56+ NK"


@pytest.fixture(scope="module")
def awkward(example_cells) -> AnnData:
    """Counts in a layer beside normalised values, types and donors in columns of odd names, batches that repeat."""
    cells = AnnData(example_cells.X.copy(), var=example_cells.var[[]].copy())
    cells.obs_names = example_cells.obs_names
    cells.layers["raw_counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    cells.obs["annotation"] = example_cells.obs["bulk_labels"].to_numpy()
    cells.obs["person"] = np.where(np.arange(cells.n_obs) % 2, "one", "two")
    return cells


@pytest.fixture(scope="module")
def quick(small_settings):
    """Few steps, and a fifth of the cells held out."""
    return replace(
        small_settings,
        prepare=bdm.PrepareSettings(
            label_key="annotation",
            batch_key="person",
            counts="raw_counts",
            n_genes=150,
            keep_genes="none",
            test=0.2,
            seed=7,
        ),
        autoencoder=replace(small_settings.autoencoder, n_steps=20),
        train=replace(small_settings.train, n_steps=20),
    )


@pytest.fixture(scope="module")
def fitted(awkward, quick):
    return bdm.BranchedDiffusion(awkward, settings=quick).fit()


@pytest.fixture(scope="module")
def folder(awkward, fitted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    fitted.save(folder / "model")
    awkward.copy().write_h5ad(folder / "cells.h5ad")
    return folder


def test_settings_are_used_and_not_contradicted(fitted, awkward, quick):
    assert fitted.model.preparation["label_key"] == "annotation"
    assert fitted.model.preparation["batch_key"] == "person"
    assert fitted.seed == fitted.model.preparation["seed"] == fitted.model.provenance["seed"] == 7
    for given in ({"label_key": "person"}, {"label_key": "cell_type"}, {"batch_key": "annotation"}, {"seed": 3}):
        with pytest.raises(InputError, match=f"{next(iter(given))} is .* in settings.prepare"):
            bdm.BranchedDiffusion(awkward, settings=quick, **given)
    with pytest.raises(InputError, match=r"`settings=` .* Settings, not PrepareSettings"):
        bdm.BranchedDiffusion(awkward, settings=quick.prepare)


def test_arguments_complete_settings(awkward, small_settings):
    prepare = replace(small_settings.prepare, counts="raw_counts")
    given = {"label_key": "annotation", "batch_key": "person", "seed": 5}
    model = bdm.BranchedDiffusion(awkward, settings=replace(small_settings, prepare=prepare), **given)
    assert {name: getattr(model.settings.prepare, name) for name in given} == given
    assert model.seed == 5


def test_cells_may_keep_things_elsewhere(fitted, awkward):
    cells = awkward[:200].copy()
    expected = fitted.transmute(cells, to=NK)
    cells.obs = cells.obs.rename(columns={"annotation": "kind", "person": "patient"})
    cells.layers["umi"] = cells.layers.pop("raw_counts")
    keys = bdm.InputKeys(label_key="kind", batch_key="patient", counts="umi")
    assert (fitted.transmute(cells, to=NK, keys=keys).X != expected.X).nnz == 0
    for name, message in {
        "label_key": r"name it by `keys\.label_key=`",
        "batch_key": r"name it by `keys\.batch_key=`",
        "counts": r"give `keys\.counts='umi'`",
    }.items():
        with pytest.raises(InputError, match=message):
            fitted.transmute(cells, to=NK, keys=replace(keys, **{name: None}))


def test_one_type_is_named_by_text_or_number(fitted, awkward, tiny_settings):
    transmuted = fitted.transmute(awkward, to=NK, from_=B)
    assert (awkward.obs.loc[transmuted.obs_names, "annotation"] == B).all()
    numbered = awkward.copy()
    codes = awkward.obs["annotation"].astype("category").cat.codes.astype(int)
    numbered.obs["annotation"] = codes
    prepare = bdm.PrepareSettings(label_key="annotation", counts="raw_counts", n_genes=50, keep_genes="none")
    model = bdm.BranchedDiffusion(numbered, settings=replace(tiny_settings, prepare=prepare)).fit()
    two, three = (int(name) for name in model.cell_types[:2])
    transmuted = model.transmute(numbered, to=two, from_=three)
    assert set(codes[transmuted.obs_names]) == {three}
    assert model.generate({two: 3}).n_obs == 3


@pytest.mark.parametrize("given", ["object", "file", "prepared"])
def test_loaded_model_has_its_cells_and_interprets_as_before(fitted, awkward, folder, given):
    adata = {"object": awkward, "file": folder / "cells.h5ad", "prepared": fitted.prepared}[given]
    loaded = bdm.BranchedDiffusion.load(folder / "model", adata=adata)
    columns = ["cell_type", "batch", "split"]
    pd.testing.assert_frame_equal(loaded.prepared.obs[columns], fitted.prepared.obs[columns])
    assert (loaded.prepared.X != fitted.prepared.X).nnz == 0
    if given == "object":
        assert (loaded.interpret().X == fitted.interpret().X).all()


def test_loaded_model_reports_what_is_missing(fitted, awkward, folder, caplog):
    loaded = bdm.BranchedDiffusion.load(folder / "model")
    for use in (loaded.evaluate, loaded.interpret):
        with pytest.raises(InputError, match=r"holds no cells; .*load\(path, adata=adata\)"):
            use()
    with pytest.raises(InputError, match="lack the model's types 'CD19"):
        bdm.BranchedDiffusion.load(folder / "model", adata=awkward[awkward.obs["annotation"] != B].copy())
    for cells in (awkward, fitted.prepared):
        with pytest.raises(InputError, match="genes"):
            bdm.BranchedDiffusion.load(folder / "model", adata=cells[:, :20].copy())
    with pytest.raises(InputError, match="not DataFrame"):
        bdm.BranchedDiffusion.load(folder / "model", adata=awkward.obs)
    assert "fitted on other cells" not in caplog.text
    bdm.BranchedDiffusion.load(folder / "model", adata=awkward[3:].copy())
    assert "fitted on other cells" in caplog.text


def test_cells_whose_genes_are_known_by_identifier(fitted, awkward):
    cells, autoencoder = awkward.copy(), fitted.model.autoencoder
    cells.var_names = [f"ENSG{i}" for i in range(cells.n_vars)]
    known = pd.Series(cells.var_names, awkward.var_names)[autoencoder.genes.index]
    genes = autoencoder.genes.assign(gene_ids=known.to_numpy())
    found = fitted_cells(cells, replace(fitted.model, autoencoder=replace(autoencoder, genes=genes)))
    assert list(found.var_names) == list(fitted.prepared.var_names)
    assert (found.X != fitted.prepared.X).nnz == 0


def test_training_cells_are_no_test_cells(fitted, awkward, caplog):
    renamed = awkward.copy()
    renamed.obs_names = [f"other-{i}" for i in range(renamed.n_obs)]
    for cells in (awkward, renamed):
        with pytest.raises(InputError, match="test cells have the counts of training cells"):
            fitted.evaluate(adata_test=cells)
    split = fitted.prepared.obs["split"]
    held_out, few = split.index[split == "test"], split.index[split == "train"][:5]
    caplog.clear()
    real_cells_for(fitted.model, fitted.prepared, awkward[held_out].copy(), InputKeys())
    assert "training cells" not in caplog.text
    real_cells_for(fitted.model, fitted.prepared, awkward[held_out.append(few)].copy(), InputKeys())
    assert f"5 of {len(held_out) + 5} test cells have the counts of training cells" in caplog.text


def test_cells_may_be_a_file(folder, quick, fitted):
    for path in (folder / "cells.h5ad", str(folder / "cells.h5ad")):
        model = bdm.BranchedDiffusion(path, settings=quick)
        assert (model.prepared.X != fitted.prepared.X).nnz == 0
    with pytest.raises(InputError, match="No such file"):
        bdm.BranchedDiffusion("none.h5ad", settings=quick)
    with pytest.raises(InputError, match="not ndarray"):
        bdm.BranchedDiffusion(np.ones(3), settings=quick)


def test_trees_in_all_forms(awkward, quick, fitted, tmp_path):
    first, second, *others = sorted(fitted.cell_types)
    newick = f"(('{first}',\"{second}\"),{','.join(map(repr, others))});"
    (tmp_path / "t.nwk").write_text(newick)
    nested = [[first, second], *others]
    expected = bdm.BranchedDiffusion(awkward, settings=quick, tree=nested).tree
    for tree in (newick, tmp_path / "t.nwk", str(tmp_path / "t.nwk"), bdm.read_tree(tmp_path / "t.nwk")):
        assert bdm.BranchedDiffusion(awkward, settings=quick, tree=tree).tree == expected
    with pytest.raises(InputError, match="No such file"):
        bdm.BranchedDiffusion(awkward, settings=quick, tree="none.nwk")


def test_data_are_not_changed_by_any_method(awkward, fitted, folder):
    cells = awkward.copy()
    fitted.transmute(cells, to=NK)
    bdm.BranchedDiffusion.load(folder / "model", adata=cells)
    assert list(cells.obs) == list(awkward.obs)
    assert (cells.X != awkward.X).nnz == 0
    assert [name for name in cells.layers if name is not None] == ["raw_counts"]  # anndata 0.13 lists X there
    assert list(cells.var_names) == list(awkward.var_names)


def test_model_shows_what_it_is(awkward, quick, fitted, folder):
    shown = repr(bdm.BranchedDiffusion(awkward, settings=quick))
    assert shown.startswith("BranchedDiffusion, not fitted\n    cell types: 9 (")
    shown = repr(fitted)
    assert f"fitted on {(fitted.prepared.obs['split'] != 'test').sum()} cells" in shown
    for part in ("genes: 150", "batches: 2 (one, two)", "'annotation', batch_key='person', counts='raw_counts'"):
        assert part in shown
    assert "cells in memory" in shown
    assert "cells in memory" not in repr(bdm.BranchedDiffusion.load(folder / "model"))


def test_figures_name_what_they_are_of(fitted):
    of_results = (bdm.pl.scores, bdm.pl.umap, bdm.pl.transmutation, bdm.pl.audit, bdm.pl.power)
    for draw, value in [*((draw, fitted) for draw in of_results), (bdm.pl.hierarchy, 3)]:
        with pytest.raises(InputError, match=type(value).__name__):
            draw(value)


@pytest.mark.parametrize(
    ("before", "after", "times"),
    [
        ("", "", 1),
        ("", "logging.getLogger('bdm').setLevel('WARNING')", 0),
        ("logging.basicConfig(level=logging.INFO)", "", 1),
    ],
    ids=["default", "level", "once"],
)
def test_python_shows_messages_once_by_default(before, after, times):
    code = f"import logging\n{before}\nimport bdm\n{after}\nlogging.getLogger('bdm.data.counts').info('A message.')"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("A message.") == times


@pytest.fixture
def command(folder, tmp_path, monkeypatch):
    """Run a command in a folder with the model, the cells, and cells that it generated."""
    for name in ("model", "cells.h5ad"):
        (shutil.copytree if (folder / name).is_dir() else shutil.copy)(folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> None:
        app([str(argument) for argument in arguments], standalone_mode=False)

    run("generate", "model", "generated.h5ad", "--cells-like", "cells.h5ad")
    return run


@pytest.mark.slow
def test_commands_take_the_cells_that_a_model_was_fitted_on(command, fitted, tmp_path):
    command("evaluate", "cells.h5ad", "generated.h5ad", "evaluation", "--model", "model", "--n-repeats", 1)
    scores = pd.read_csv(tmp_path / "evaluation/scores.csv")
    overall = wide(scores[scores["kind"] == "all"], "score")
    expected = fitted.evaluate(adata_new=anndata.read_h5ad("generated.h5ad"), n_repeats=1).overall
    np.testing.assert_allclose(overall, expected.loc[overall.index], rtol=1e-5)
    command("interpret", "model", "cells.h5ad", "generated.h5ad", "interpretation")
    command("transmute", "model", "cells.h5ad", "transmuted.h5ad", "--to", NK, "--from", B)
    command("evaluate-transmuted", "cells.h5ad", "transmuted.h5ad", "transmutation", "--model", "model")
    assert list(pd.read_csv(tmp_path / "transmutation/scores.csv")["group"].unique()) == [B]
    assert (tmp_path / "interpretation/branches.h5ad").is_file()


def test_batches_of_test_cells_are_named_as_in_the_fit(fitted, awkward):
    cells = awkward.copy()
    cells.obs["person"] = np.where(cells.obs["person"] == "one", 1.0, 2.0)
    assert set(known_cells(cells, fitted.model).batch) == {"1", "2"}
    cells.obs.loc[cells.obs_names[3], "person"] = np.nan
    with pytest.raises(InputError, match=r"obs\['person'\] has no value for 1 of"):
        known_cells(cells, fitted.model)


@pytest.mark.slow
def test_fit_holds_out_cells_to_evaluate_by(command, tmp_path):
    keys = ("--label-key", "annotation", "--batch-key", "person", "--counts", "raw_counts")
    steps = (
        "--n-genes",
        50,
        "--keep-genes",
        "none",
        "--n-latent",
        4,
        "--autoencoder-n-steps",
        2,
        "--train-n-steps",
        20,
    )
    command("fit", "cells.h5ad", "own", *keys, *steps, "--test", 0.3)
    command("generate", "own", "generated_own.h5ad", "--cells", 20)
    command("evaluate", "cells.h5ad", "generated_own.h5ad", "evaluation", "--model", "own", "--n-repeats", 1)
    command("fit", "cells.h5ad", "all", *keys, *steps)
    with pytest.raises(InputError, match=r"fit again with `test=0\.2`"):
        command("evaluate", "cells.h5ad", "generated_own.h5ad", "other", "--model", "all")
    split = bdm.BranchedDiffusion.load("own", adata="cells.h5ad").prepared.obs["split"]
    anndata.read_h5ad("cells.h5ad")[split.index[split == "test"]].copy().write_h5ad("held_out.h5ad")
    options = ("--model", "own", "--test-cells", "held_out.h5ad", "--n-repeats", 1)
    command("evaluate", "cells.h5ad", "generated_own.h5ad", "held_out", *options)
    for name in ("evaluation", "held_out"):
        scores = pd.read_csv(tmp_path / name / "scores.csv").set_index("score")
        assert scores.loc["gene_auc", ["value", "floor"]].notna().all(axis=None)
    for option in (("--test-cells", "held_out.h5ad"), ("--label-key", "annotation"), ("--counts", "X")):
        with pytest.raises(InputError, match="is used with a model only; give `model=` too"):
            command("evaluate-transmuted", "cells.h5ad", "generated_own.h5ad", "other", *option)


def test_latent_representation_of_any_cells(fitted, awkward):
    found = fitted.get_latent_representation()
    assert found.shape == (fitted.prepared.n_obs, 6)
    chosen = fitted.prepared.obs_names[::7][::-1]
    here = fitted.prepared.obs_names.get_indexer(chosen)
    np.testing.assert_allclose(fitted.get_latent_representation(awkward[chosen]), found[here], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match=r"8 of 700 cells .*Naive T"):
        fitted.get_latent_representation(awkward)
    empty = awkward[chosen].copy()
    empty.layers["raw_counts"] = empty.layers["raw_counts"] * 0
    with pytest.raises(InputError, match="no counts of the model's genes"):
        fitted.get_latent_representation(empty)


def test_history_has_the_losses_of_the_training(fitted, awkward, quick, folder):
    assert list(fitted.history) == ["autoencoder"]
    assert all(len(table) for table in fitted.history.values())
    assert {"step", "loss", "validation"} <= set(fitted.history["autoencoder"])
    assert dict(bdm.BranchedDiffusion(awkward, settings=quick).history) == {}
    assert dict(bdm.BranchedDiffusion.load(folder / "model").history) == {}
