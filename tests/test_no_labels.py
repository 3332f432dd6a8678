"""Cells without labels: all are of one type with sub-populations; what compares types is left out."""

import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import adjusted_rand_score
from test_workflow import demo_config, dry_run, shell_commands

import bdm as package
from bdm._core.errors import InputError
from bdm.autoencoder.latent import encode, populations_of_cells
from bdm.cli import app
from bdm.data.cells import FLOOR, GENERATED
from bdm.data.prepare import prepare, read_prepared
from bdm.evaluation.evaluate import Evaluation, verdict_lines
from bdm.interpretation.branch_genes import model_expression
from bdm.interpretation.interpret import interpret, prepare_inputs
from bdm.interpretation.interpretation import Interpretation
from bdm.pl import FIGURES
from bdm.plotting.style import figure_of
from bdm.report.page import report_page
from bdm.report.summaries import read_results
from bdm.settings import WITHOUT_LABELS, InterpretationSettings, PrepareSettings, Settings

COMPARE_TYPES = ["slope", "fold_change_correlation", "f1"]


@pytest.fixture(scope="module")
def cells(example_cells) -> ad.AnnData:
    """Cells with a column ``cell_type`` that nothing may read."""
    cells = example_cells.copy()
    cells.obs = pd.DataFrame({"cell_type": cells.obs["bulk_labels"].astype(str)}, index=cells.obs_names)
    return cells


@pytest.fixture(scope="module")
def settings(small_settings) -> Settings:
    """Settings of a model of one population."""
    return replace(
        small_settings,
        prepare=PrepareSettings(n_genes=100, keep_genes="none", label_key=None, test=0.2),
        autoencoder=replace(small_settings.autoencoder, n_steps=30, sub_populations="none"),
        train=replace(small_settings.train, n_steps=30),
    )


@pytest.fixture(scope="module")
def model(cells, settings) -> package.BranchedDiffusion:
    return package.BranchedDiffusion(cells, settings=settings).fit()


@pytest.fixture(scope="module")
def evaluation(model) -> Evaluation:
    return model.evaluate(n_repeats=1)


@pytest.fixture(scope="module")
def interpretation(model) -> Interpretation:
    model.interpret()
    return model.interpretation


# ---- settings


def test_none_means_no_labels_and_the_default_is_a_column(cells, settings):
    assert PrepareSettings().label_key == "cell_type"
    quick = Settings(prepare=PrepareSettings(n_genes=50, keep_genes="none", test=0.0))
    assert package.BranchedDiffusion(cells, label_key=None, settings=quick).cell_types == (WITHOUT_LABELS,)
    assert package.BranchedDiffusion(cells, settings=settings).cell_types == (WITHOUT_LABELS,)
    assert len(package.BranchedDiffusion(cells, settings=quick).cell_types) == 9
    named = replace(quick, prepare=replace(quick.prepare, label_key="annotation"))
    with pytest.raises(InputError, match=r"^label_key is None, and 'annotation' in settings\.prepare"):
        package.BranchedDiffusion(cells, label_key=None, settings=named)
    with pytest.raises(InputError, match=r"^label_key is '', but must be non-empty\.$"):
        PrepareSettings(label_key="", test=0.2)


def test_cells_are_split_as_one_type_and_keep_their_columns(cells):
    prepared = prepare(cells, PrepareSettings(n_genes=50, keep_genes="none", label_key=None, test=0.2))
    assert prepared.obs["cell_type"].tolist() == [WITHOUT_LABELS] * 700
    assert prepared.obs["split"].value_counts().to_dict() == {"train": 490, "validation": 70, "test": 140}
    assert prepared.obs["cell_type_input"].astype(str).tolist() == cells.obs["cell_type"].tolist()
    again = prepare(cells, PrepareSettings(n_genes=50, keep_genes="none", label_key=None, seed=1, test=0.2))
    assert (again.obs["split"] != prepared.obs["split"]).any()


def test_messages_on_labels_name_the_way_without(cells, tmp_path, bdm):
    cells[:60].copy().write_h5ad(tmp_path / "cells.h5ad")
    given = [tmp_path / "cells.h5ad", tmp_path / "out.h5ad"]
    for options, words in {
        "--label-key kind": "'kind'; .* `--label-key`, .* `--no-labels`",
        "--min-cells-per-type 50": "`--min-cells-per-type`, .* `--no-labels`",
        "--label-key kind --no-labels": "`--label-key` and `--no-labels` contradict each other",
        "--no-labels --min-cells-per-type 100": r"fewer than 100 cells \(60\); .* `--min-cells-per-type`",
    }.items():
        code, message = bdm("prepare", *given, *options.split())
        assert code == 2
        assert re.search(words, message)
        assert list(tmp_path.iterdir()) == [tmp_path / "cells.h5ad"]
    assert bdm("prepare", *given, "--no-labels", "--n-genes", 20, "--keep-genes", "none")[0] == 0
    assert set(read_prepared(tmp_path / "out.h5ad").obs["cell_type"]) == {WITHOUT_LABELS}


def test_null_in_the_configuration_is_the_option(tmp_path):
    config = demo_config(datasets={"mine": {"path": "cells.h5ad", "label_key": None}})
    (tmp_path / "cells.h5ad").touch()
    [command] = [words for words in shell_commands(dry_run(tmp_path, config)) if words[1] == "prepare"]
    assert "--no-labels" in command
    assert "--label-key" not in command


# ---- the model


def test_generated_cells_have_the_one_type_and_no_other_column(model, cells):
    generated = model.generate(20)
    assert set(generated.obs) == {"cell_type", "sub_population", "synthetic"}
    assert set(generated.obs["cell_type"]) == {WITHOUT_LABELS}
    assert model.generate({WITHOUT_LABELS: 20}).X.toarray().tolist() == generated.X.toarray().tolist()
    assert model.get_latent_representation(cells).shape == (700, 6)
    assert "columns: counts='auto'" in repr(model)


def test_a_saved_model_takes_the_cells_again(model, cells, tmp_path, caplog):
    model.save(tmp_path / "model")
    loaded = package.BranchedDiffusion.load(tmp_path / "model", adata=cells)
    assert loaded.prepared.obs["split"].tolist() == model.prepared.obs["split"].tolist()
    assert (loaded.prepared.X != model.prepared.X).nnz == 0
    assert "fitted on other cells" not in caplog.text
    assert loaded.model.label_key is None


def test_scores_that_compare_types_are_unknown(evaluation):
    overall, by_type = evaluation.overall, evaluation.by_type
    for table in (overall.T, by_type):
        assert table[COMPARE_TYPES].isna().all(axis=None)
        assert np.isfinite(table[["energy", "relative_energy", "mmd", "forest_auc", "library_size_ks"]]).all(axis=None)
    unknown = {*COMPARE_TYPES, "gene_correlation"}  # the last: 140 cells
    known = set(overall.index) - unknown
    assert np.isfinite(overall.loc[sorted(known)]).all(axis=None)
    assert by_type.index.tolist() == [(FLOOR, WITHOUT_LABELS), (GENERATED, WITHOUT_LABELS)]
    graded = {finding.score for finding in evaluation.verdict().findings}
    assert graded == {"relative_energy", "forest_auc", "gene_auc", "memorisation"}
    assert evaluation.verdicts_by_type() == {WITHOUT_LABELS: evaluation.verdict()}
    missing = "batches, donors, positions (not in the real cells)"
    not_checked = f"correlation of log fold changes, F1 of cell typing (needs two cell types); {missing}"
    assert verdict_lines(evaluation, GENERATED) == [evaluation.verdict().text, f"not checked: {not_checked}"]
    assert evaluation.markers == {}
    assert evaluation.fold_changes.empty


def test_figures_leave_out_what_is_unknown(evaluation):
    titles = {name: [axis.get_title() for axis in draw(evaluation)] for name, draw in FIGURES[type(evaluation)].items()}
    assert titles["by_type"] == ["energy distance", "forest AUC"]
    assert len(titles["genes"]) == 3
    assert len(titles["overall"]) == 9
    assert not re.search("F1|fold change", str(titles))


def test_interpretation_of_one_population_is_empty(interpretation, tmp_path):
    assert interpretation.contrasts == ()
    assert repr(interpretation).startswith("Interpretation of 0 nodes, 1 cell type x 100 genes")
    interpretation.save(tmp_path / "interpretation")
    loaded = Interpretation.load(tmp_path / "interpretation")
    assert loaded.nodes == {}
    assert loaded.ancestral_states.expression.columns.tolist() == [WITHOUT_LABELS]
    for name in ("nodes", "branch_genes", "commitment", "agreement", "markers"):
        table = pd.read_csv(tmp_path / f"interpretation/{name}.csv")
        assert len(table) == 0
        assert {"node", "cell_type"} & set(table), name
    for name, draw in FIGURES[Interpretation].items():
        figure = figure_of(draw(loaded))
        texts = [text.get_text() for text in figure.texts + [text for axis in figure.axes for text in axis.texts]]
        assert any(re.search("one (cell type|population)", text) for text in texts), name


# ---- sub-populations


@pytest.fixture(scope="module")
def divided(cells, settings) -> package.BranchedDiffusion:
    autoencoder = replace(settings.autoencoder, sub_populations="auto")
    return package.BranchedDiffusion(cells, settings=replace(settings, autoencoder=autoencoder)).fit()


def test_the_tree_starts_at_the_one_type_and_ends_at_sub_populations(divided):
    hierarchy = divided.hierarchy
    names = hierarchy.populations
    assert hierarchy.root.name == WITHOUT_LABELS
    assert divided.cell_types == (WITHOUT_LABELS,)
    assert set(names) == {f"{WITHOUT_LABELS}/{number}" for number in range(1, len(names) + 1)}
    assert len(names) > 1


def test_sub_populations_follow_the_cell_types_that_nobody_gave(divided, cells):
    encoded = encode(divided.prepared, divided.model.autoencoder)
    found = encoded.obs["sub_population"].astype(str)
    annotation = cells.obs["cell_type"].loc[found.index]
    assert adjusted_rand_score(annotation, found) > 0.2  # 0 by chance


def test_umap_of_one_type_has_the_colours_of_its_sub_populations(divided):
    axes = package.pl.umap(divided.evaluate(n_repeats=1), show=False)
    [legend] = axes[0].figure.legends
    assert {text.get_text().split()[1] for text in legend.texts} == set(divided.hierarchy.populations)


def test_rare_sub_populations_have_as_many_cells_in_the_model(divided):
    """What the model expresses in a population does not depend on how many of the training cells are of it."""
    model, composition = divided.model, divided.model.composition.copy()
    composition.loc[:] = 1
    composition.loc[model.populations[0]] = 10**6
    rare = replace(model, composition=composition)
    found, expected = (model_expression(of, n_cells=20, seed=0) for of in (rare, model))
    for name in model.populations:
        np.testing.assert_array_equal(found.by_population[name].mean, expected.by_population[name].mean)


def test_populations_without_cells_are_left_blank(divided, tmp_path):
    """In generated cells, and in those that the model is said to be of."""
    first, *_, last = divided.model.populations
    cells, generated = divided.prepared, divided.generate(100)
    rest = cells[populations_of_cells(cells, divided.model.autoencoder) != first].copy()
    of_rest = prepare_inputs(divided.model, rest, generated[generated.obs["sub_population"] != last].copy(), seed=0)
    found = interpret(of_rest, InterpretationSettings(n_cells=20), seed=0)
    markers = found.markers
    assert markers.real.mean.index[markers.real.mean.isna().all(axis=1)].tolist() == [first]
    assert markers.generated.fraction.index[markers.generated.fraction.isna().all(axis=1)].tolist() == [last]
    found.save(tmp_path / "interpretation")
    assert Interpretation.load(tmp_path / "interpretation").markers.real.mean.loc[first].isna().all()
    for name, draw in FIGURES[Interpretation].items():
        assert any(axis.has_data() for axis in figure_of(draw(found)).axes), name


def test_cells_of_another_model_are_not_interpreted(divided):
    generated = divided.generate(20)
    generated.obs["sub_population"] = "cell/99"
    with pytest.raises(InputError, match=r"sub-populations that this model lacks \(cell/99\)"):
        prepare_inputs(divided.model, divided.prepared, generated, seed=0)


# ---- what needs labels


def test_transmutation_needs_another_type(model, divided, cells):
    with pytest.raises(InputError, match="The model has a single cell type, 'cell'"):
        model.transmute(cells, to=WITHOUT_LABELS)
    names = ", ".join(divided.model.populations)
    with pytest.raises(InputError) as caught:
        divided.transmute(cells, to=WITHOUT_LABELS)
    assert str(caught.value).endswith(f"name one of its sub-populations: {names}.")


def test_tree_needs_labels(cells, settings):
    with pytest.raises(InputError, match=r"^A tree needs two cell types or more, but 'cell'"):
        package.BranchedDiffusion(cells, settings=settings, tree=["B", "T"])


def test_extension_needs_labels(model, cells, tmp_path):
    model.save(tmp_path / "model")
    extended = package.BranchedDiffusion.load(tmp_path / "model")
    new = cells[cells.obs["cell_type"] == "Dendritic"].copy()
    new.obs = new.obs.rename(columns={"cell_type": "kind"})
    with pytest.raises(InputError, match=r"no column 'cell_type' .*`keys\.label_key=`"):
        extended.extend(new)
    extended.extend(new, keys=package.InputKeys(label_key="kind"))
    assert set(extended.cell_types) == {WITHOUT_LABELS, "Dendritic"}
    assert set(extended.generate(5).obs["cell_type"]) == {WITHOUT_LABELS, "Dendritic"}
    with pytest.raises(InputError, match=r"name it by `keys\.label_key=`"):
        extended.get_latent_representation(new)
    assert extended.get_latent_representation(new, keys=package.InputKeys(label_key="kind")).shape == (new.n_obs, 6)


# ---- commands


@pytest.mark.slow
def test_all_commands_from_cells_to_report(cells, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    ad.AnnData(cells.X, obs=cells.obs[[]], var=cells.var).write_h5ad("cells.h5ad")
    for line in [
        "prepare cells.h5ad prepared.h5ad --no-labels --n-genes 100 --keep-genes none --test 0.2",
        "autoencoder prepared.h5ad autoencoder --n-latent 4 --n-steps 20 --sub-populations none",
        "hierarchy autoencoder hierarchy.json --newick tree.nwk --figure tree.png --table tree.csv",
        "train autoencoder hierarchy.json model --width 16 --n-layers 1 --n-steps 20",
        "generate model generated.h5ad --cells-like cells.h5ad",
        "evaluate prepared.h5ad generated.h5ad evaluation --n-repeats 1",
        "interpret model cells.h5ad generated.h5ad interpretation",
    ]:
        app(line.split(), standalone_mode=False)
    assert ad.read_h5ad("generated.h5ad").n_obs == 700
    assert "need two cell types; they are not computed" in caplog.text
    results = read_results(tmp_path)
    page = " ".join(re.sub("<[^>]+>", " ", report_page(results)).split())
    for words in ("700 cells without labels. 140 of them", "fold changes compare cell types", "the tree has no nodes"):
        assert words in page
    assert "label_key prepare none cell_type" in page
