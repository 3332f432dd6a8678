import copy
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from test_evaluation_sets import assert_same

import bdm
from bdm import pl
from bdm._core.errors import InputError
from bdm.evaluation.table import SCORES
from bdm.plotting.evaluation import DRAWN
from bdm.plotting.style import figure_of

B, NK = "CD19+ B", "CD56+ NK"


@pytest.fixture(scope="module")
def model(small_model):
    """The small model, interpreted."""
    model = copy.copy(small_model)
    model.interpret()
    return model


@pytest.fixture(scope="module")
def held_out(example_cells):
    """Half of the cells, with a tenth of their counts lost, as if they had been held out."""
    cells = example_cells[::2].copy()
    cells.X.data = np.random.default_rng(0).binomial(cells.X.data.astype(int), 0.9).astype(np.float32)
    return cells


@pytest.fixture(scope="module")
def evaluation(small_model, held_out):
    return small_model.evaluate(adata_test=held_out, n_repeats=1)


@pytest.fixture(scope="module")
def transmutation(small_model, held_out):
    transmuted = small_model.transmute(held_out, to=NK, from_=[B, "Dendritic"])
    return small_model.evaluate_transmuted(held_out, transmuted, adata_test=held_out)


def texts(axis: Axes) -> list[str]:
    """Names of the rows."""
    return [label.get_text() for label in axis.get_yticklabels()]


# ---- what is drawn


def test_hierarchy_has_a_row_for_each_type_of_any_model(model, tmp_path):
    types = {text.rpartition("  (")[0] for text in texts(pl.hierarchy(model))}
    assert types == set(model.hierarchy.cell_types)
    model.save(tmp_path / "model")
    loaded = bdm.BranchedDiffusion.load(tmp_path / "model", device="cpu")
    assert texts(pl.hierarchy(loaded)) == texts(pl.hierarchy(model))
    assert len(texts(pl.hierarchy(loaded, max_rows=3))) == 3


def test_scores_are_those_of_the_tables(evaluation):
    axes = pl.scores(evaluation)
    assert [axis.get_title() for axis in axes] == [SCORES[score].name for score in DRAWN]
    for axis, score in zip(axes, DRAWN, strict=True):
        points = [line.get_xdata()[0] for line in axis.lines if line.get_marker() not in ("None", "", None)]
        np.testing.assert_allclose(points, evaluation.overall.loc[score])
    assert texts(axes[0]) == ["floor", "generated"]


def test_genes_of_a_branch_are_those_that_mark_it(model):
    found = next(of for of in model.interpretation.contrasts if of.contrast.child == B)
    best = model.interpretation.genes[np.argsort(found.model.rank)[0]]
    assert best in texts(pl.branch_genes(model, B))
    titles = [axis.get_title() for axis in pl.branch_genes(model)]
    assert sum(title.startswith(found.contrast.node) for title in titles) == 1


def test_commitment_has_as_many_rows_as_requested(model):
    n_nodes = len(model.interpretation.nodes)
    assert len(texts(pl.commitment(model))) > 2 * n_nodes
    assert len(texts(pl.commitment(model, max_genes=2 * n_nodes))) == 2 * n_nodes
    assert len(texts(pl.commitment(model, max_genes=4))) == 4


def test_all_other_figures(model, evaluation):
    assert [axis.get_title().partition(",")[0] for axis in pl.umap(evaluation)] == ["test", "floor", "generated"]
    assert len(pl.genes(evaluation)) == 4
    assert [axis.get_title() for axis in pl.ancestral_states(model)[1:]] == [
        "ancestral states of the model",
        "real training cells below the branch",
    ]
    assert [axis.get_title() for axis in pl.markers(model)] == ["real cells (training)", "generated cells"]
    assert any(title.startswith("r of log fold changes") for title in (a.get_title() for a in pl.agreement(model)))


def test_whole_figure_is_the_current_one_to_save(model, tmp_path):
    for name, draw in {"agreement": pl.agreement, "tree": pl.hierarchy}.items():
        axes = draw(model)
        plt.savefig(tmp_path / f"{name}.svg")
        drawn = (tmp_path / f"{name}.svg").read_text().count('<g id="axes_')
        assert drawn == (len(axes) if name == "agreement" else 1)


def test_transmutation_shows_each_type_that_was_transmuted(transmutation):
    assert set(transmutation.original_types) == {"Dendritic", B}
    assert [
        text.partition(" (before")[0] for text in texts(pl.transmutation(transmutation)[0])
    ] == transmutation.original_types
    assert [
        axis.get_title().partition(" → ")[0] for axis in pl.transmutation_genes(transmutation)
    ] == transmutation.original_types
    energy = transmutation.scores[transmutation.scores["score"] == "energy"].pivot(
        index="group", columns="set", values="value"
    )
    assert (energy["transmuted"] < energy["unchanged"]).all()


def test_extension_is_plotted(small_model, example_cells, tmp_path):
    model = copy.copy(small_model)
    new = example_cells[example_cells.obs["bulk_labels"] == "Dendritic"].copy()
    new.obs["bulk_labels"] = "new"
    model.extend(new)
    populations = model.hierarchy.populations_of("new")
    expected = [f"+ new  ({len(populations)} sub-populations, {new.n_obs})"]
    assert [text for text in texts(pl.hierarchy(model)) if text.startswith("+ ")] == expected
    in_memory = bdm.ExtensionReport.from_extensions(model.last_extension)
    in_memory.save(tmp_path / "report")
    report = bdm.ExtensionReport.load(tmp_path / "report")
    for name in ("extensions", "genes"):
        pd.testing.assert_frame_equal(getattr(report, name), getattr(in_memory, name), check_exact=True)
    assert texts(pl.hierarchy(report)) == texts(pl.hierarchy(model))


# ---- as scanpy


@pytest.mark.parametrize("draw", [pl.hierarchy, lambda model, **how: pl.branch_genes(model, B, **how), pl.commitment])
def test_plotted_into_the_given_axes(model, draw):
    figure, axes = plt.subplots(1, 2)
    assert draw(model, ax=axes[1]) is axes[1]
    assert not axes[0].has_data()
    assert axes[1].has_data()
    assert plt.get_fignums() == [figure.number]


def test_shown_where_there_is_a_screen(model, monkeypatch):
    seen = []
    monkeypatch.setattr(plt, "show", lambda: seen.append(plt.get_fignums()))
    assert isinstance(pl.hierarchy(model), Axes)  # the tests have none
    assert isinstance(pl.hierarchy(model, show=False), Axes)
    assert not seen
    assert pl.hierarchy(model, show=True) is None
    assert seen
    monkeypatch.setattr(plt, "get_backend", lambda: "inline")
    assert pl.hierarchy(model) is None
    assert isinstance(pl.hierarchy(model, ax=plt.figure().add_subplot()), Axes)
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("draw", "expected"),
    [
        (lambda model: pl.branch_genes(model, "T-800"), "T-800"),
        (lambda model: pl.branch_genes(model, model.hierarchy.root.name), "root"),
        (lambda model: pl.branch_genes(model, ax=plt.figure().add_subplot()), "several panels"),
        (lambda model: pl.commitment(model, max_genes=1), "max_genes"),
        (lambda model: pl.hierarchy(model, root="nowhere"), "nowhere"),
    ],
)
def test_rejects_what_it_cannot_plot(model, draw, expected):
    with pytest.raises(InputError, match=expected):
        draw(model)


def test_needs_an_interpretation(small_model, tmp_path):
    small_model.save(tmp_path / "model")
    with pytest.raises(InputError, match="call interpret"):
        pl.markers(bdm.BranchedDiffusion.load(tmp_path / "model"))


@pytest.mark.slow
def test_figures_choose_no_backend_and_a_tree_needs_matplotlib_alone():
    code = (
        "import sys, matplotlib; before = dict.__getitem__(matplotlib.rcParams, 'backend')\n"
        "import bdm.plotting.hierarchy_figure\n"
        "assert not {'torch', 'scanpy', 'anndata'} & set(sys.modules)\n"
        "import bdm; bdm.pl\n"
        "assert dict.__getitem__(matplotlib.rcParams, 'backend') is before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- from disk


def test_loaded_evaluation_of_transmuted_cells_is_the_one_that_was_saved(transmutation, tmp_path):
    transmutation.save(tmp_path / "transmutation")
    assert_same(bdm.TransmutationEvaluation.load(tmp_path / "transmutation"), transmutation)


# ---- evaluated in Python


def test_evaluation_takes_kept_cells_and_compared_sets(small_model, evaluation, held_out):
    assert list(evaluation.overall) == ["floor", "generated"]
    assert evaluation.overall.loc["energy", "floor"] < evaluation.overall.loc["energy", "generated"]
    known = held_out.obs["bulk_labels"].astype(str).isin(small_model.hierarchy.cell_types)
    assert evaluation.n_cells["test"].sum() == known.sum()
    model = copy.copy(small_model)
    model.prepared = model.prepared.copy()
    model.prepared.obs["split"] = np.where(np.arange(model.prepared.n_obs) % 2, "train", "test")
    kept = model.evaluate(compare={"real": held_out}, n_repeats=1)
    assert list(kept.overall) == ["floor", "generated", "real"]
    assert kept.overall.loc["energy", "real"] < kept.overall.loc["energy", "generated"]


def test_evaluation_refuses_what_it_cannot_evaluate(small_model, held_out):
    with pytest.raises(InputError, match="give `adata_test=`"):
        small_model.evaluate()
    with pytest.raises(InputError, match="floor is taken"):
        small_model.evaluate(adata_test=held_out, compare={"floor": held_out})
    with pytest.raises(InputError, match="no column"):
        small_model.evaluate(adata_test=held_out, keys=bdm.InputKeys(label_key="none"))
    with pytest.raises(InputError, match="generated cannot be evaluated"):
        small_model.evaluate(held_out[:2].copy(), adata_test=held_out)
    others = held_out.copy()
    others.obs["bulk_labels"] = "T-800"
    with pytest.raises(InputError, match="no cells of the model's types, but of 'T-800'"):
        small_model.evaluate(adata_test=others)


def test_evaluation_refuses_what_was_not_transmuted(small_model, held_out):
    transmuted = small_model.transmute(held_out, to=NK, from_=[B])
    logs = transmuted.copy()
    logs.X = logs.X.log1p()
    for given, before, sentence in (
        (transmuted, held_out[:5].copy(), "adata_transmuted cannot be matched"),
        (transmuted[:, 1:].copy(), held_out, "adata_transmuted lacks the genes HES4; it needs the genes of the real"),
        (logs, held_out, "adata_transmuted has .* raw counts are needed in X"),
        (held_out, held_out, "adata_transmuted has no column 'cell_type' in obs"),
    ):
        with pytest.raises(InputError, match=sentence):
            small_model.evaluate_transmuted(before, given, adata_test=held_out)


def test_names_of_sets_are_no_formulas(evaluation):
    other = evaluation.scores.assign(set="$\\frac{$")
    axes = pl.scores(replace(evaluation, scores=pd.concat([evaluation.scores, other], ignore_index=True)))
    figure_of(axes).draw_without_rendering()
    assert texts(axes[0])[-1] == r"\$\frac{\$"
