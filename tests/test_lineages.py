"""Lineages: trees, times, Gaussian process, cells, invalid input."""

import re
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from r_readers import check_r_reads
from simulated import BEGIN, END, simulated_lineage
from simulated import LINEAGE as NEWICK
from test_workflow import ROOT, snakemake, write_config

from bdm import pl, tl
from bdm._core.errors import InputError
from bdm.applications.relations.fit_lineage import measure, rows_by_value
from bdm.applications.relations.lineage import Lineage
from bdm.applications.relations.lineage_tree import LineageTree, Places, divisions, read_lineage_tree
from bdm.commands.reconstruct import parsed_time
from bdm.settings import LineageSettings

TREE = read_lineage_tree(NEWICK)
SETTINGS = LineageSettings(label_key="cell_type", time_key="minutes", n_times=10)


def without(cells: ad.AnnData, *kinds: str) -> ad.AnnData:
    return cells[(~cells.obs["cell_type"].isin(kinds)).to_numpy()].copy()


def select(cells: ad.AnnData, kind: str) -> ad.AnnData:
    return cells[(cells.obs["cell_type"] == kind).to_numpy()].copy()


def log_share(cells: ad.AnnData) -> np.ndarray:
    return np.log(cells.X.sum(axis=0).A1 / cells.X.sum() + 1e-4)


@pytest.fixture(scope="module")
def truth() -> tuple[ad.AnnData, dict[str, np.ndarray]]:
    return simulated_lineage(seed=0)


@pytest.fixture(scope="module")
def cells(truth) -> ad.AnnData:
    return truth[0]


@pytest.fixture(scope="module")
def lineage(cells) -> Lineage:
    """Lineage without cells of the inner node ``a`` and the leaf ``c2``."""
    return tl.lineage(without(cells, "a", "c2"), SETTINGS, tree=TREE)


# ---- trees and times


def test_newick_keeps_every_node_with_its_name_and_length():
    tree = read_lineage_tree("((leaf_1:2,leaf_2)inner_node:3,('a b')only:1);")
    assert tree.nodes == ("ancestor of leaf_1 and a b", "inner_node", "leaf_1", "leaf_2", "only", "a b")
    assert tree.mother.tolist() == [-1, 0, 1, 1, 0, 4]
    assert tree.depth.tolist() == [0, 3, 5, 4, 1, 2]
    assert tree.find("leaf 1") == 2
    with pytest.raises(InputError, match="branch length 'x'"):
        read_lineage_tree("(a:x,b)c;")
    with pytest.raises(InputError, match=r"^The lineage tree has two nodes 'a'"):
        read_lineage_tree("(a,a)c;")


def test_ancestors_are_beginnings_of_lineage_names():
    tree = LineageTree.from_names(["ABpl", "ABpra/ABala", "ABa"])
    assert tree.nodes == ("AB", "ABa", "ABp", "ABpl", "ABpr", "ABpra/ABala")
    assert [tree.nodes[mother] for mother in tree.mother[1:]] == ["AB", "AB", "ABp", "ABp", "ABpr"]
    assert LineageTree.from_names(["MSa", "Ea"]).nodes[0] == "root"
    with pytest.raises(InputError, match=r"^The lineage names 'ABa' and 'ABa/ABp' mean the same node"):
        LineageTree.from_names(["ABa", "ABa/ABp"])


def test_common_ancestors_are_those_of_the_lines_of_descent():
    for first, line in enumerate(TREE.paths_to_root):
        for second, second_line in enumerate(TREE.paths_to_root):
            assert TREE.common_ancestor[first, second] == next(node for node in line if node in second_line)


def test_divisions_are_where_cells_of_mothers_and_daughters_separate(cells):
    for chosen in (cells, without(cells, "a"), without(cells, "a", "ab")):
        node = np.array([TREE.find(name) for name in chosen.obs["cell_type"]])
        end = dict(zip(TREE.nodes, divisions(TREE, node, chosen.obs["minutes"].to_numpy()), strict=True))
        assert np.isinf(end["a1"])
        for name in ("root_cell", "ab", "a", "b", "c"):
            assert abs(end[name] - END[name]) <= 4, name


def test_places_share_time_until_their_ancestor_divides():
    end = np.array([float(END[name]) for name in TREE.nodes])
    node = np.array([TREE.find(name) for name in ("a1", "a2", "b1", "a", "a1")])
    places = Places(TREE, end, node, np.array([80.0, 70, 90, 50, 65]))
    shared = places.shared(places)
    assert shared[0].tolist() == [80, 60, 40, 50, 65]
    assert (np.linalg.eigvalsh(shared) > -1e-9).all()


# ---- the Gaussian process


def test_nodes_left_out_in_closed_form_are_as_predicted_without(cells, lineage):
    measured = measure(cells, SETTINGS, TREE)
    group = np.flatnonzero(measured.points["node"] == "a")
    groups = rows_by_value(measured.points["node"])
    process = replace(measured, prior=lineage.prior).gaussian_process()
    mean = process.leave_out(groups)[0][:, group]
    others = np.setdiff1d(np.arange(len(measured.points)), group)
    lacking = replace(
        lineage, **{name: getattr(measured, name)[others] for name in ("log_share", "variance")},
        points=measured.points.iloc[others], end=measured.end,
    )  # fmt: skip
    direct = lacking.log_shares(lacking.places_at(measured.places.node[group], measured.places.time[group]))[0]
    expected = mean + measured.log_share.mean(axis=0)[:, None]
    assert np.abs(direct - expected).max() < 0.1  # the means of points differ slightly
    assert np.corrcoef(direct.ravel(), expected.ravel())[0, 1] > 0.999


def test_an_ancestor_is_nearer_than_relatives_and_their_blend():
    errors = []
    for seed in range(3):
        cells, walk = simulated_lineage(seed=seed)
        fitted = tl.lineage(without(cells, "a"), SETTINGS, tree=TREE)
        at = 50
        real = np.exp(walk["a"][at - BEGIN["a"]])
        real = np.log(real / real.sum() + 1e-4)
        ends = log_share(select(cells, "ab")), (log_share(select(cells, "a1")) + log_share(select(cells, "a2"))) / 2
        predicted = fitted.expression("a", at)["log_expression"].to_numpy()
        guesses = predicted, ends[0], ends[1], (ends[0] + ends[1]) / 2, log_share(select(cells, "b"))
        errors.append([np.sqrt(np.mean((guess - real) ** 2)) for guess in guesses])
    error = np.mean(errors, axis=0)
    assert error[0] < 0.9 * error[1:].min()


def test_intervals_of_nodes_without_cells_are_calibrated():
    covered = []
    for seed in range(6):
        cells, walk = simulated_lineage(seed=20 + seed)
        name = ("a", "b", "c")[seed % 3]
        fitted = tl.lineage(without(cells, name), SETTINGS, tree=TREE)
        at = (BEGIN[name] + END[name]) // 2
        real = np.exp(walk[name][at - BEGIN[name]])
        table = fitted.expression(name, at)
        covered.append(np.mean((table["low"] <= real / real.sum()) & (real / real.sum() <= table["high"])))
    assert 0.84 <= np.mean(covered) <= 0.97


def test_all_standard_deviations_are_calibrated(lineage):
    prior = replace(lineage.prior, calibration=2 * lineage.prior.calibration)
    wider = replace(lineage, prior=prior)
    np.testing.assert_allclose(wider.expression("a", 50)["sd"], 2 * lineage.expression("a", 50)["sd"])
    for column in ("sd", "from_sisters_sd"):
        np.testing.assert_allclose(wider.changes[column], 2 * lineage.changes[column])


@pytest.mark.parametrize("kind", [None, "root_cell"], ids=["root with cells", "without"])
def test_predictions_do_not_depend_on_when_time_begins(cells, kind):
    observed = without(cells, *[kind] * (kind is not None), "a", "c2")
    later = obs(observed, minutes=observed.obs["minutes"] + 1000)
    first, second = (tl.lineage(data, SETTINGS, tree=TREE) for data in (observed, later))
    np.testing.assert_allclose(second.end, first.end + 1000)
    nodes, times = np.array([TREE.find(name) for name in ("root_cell", "a", "c2")]), np.array([-50.0, 50, 90])
    places, moved = first.places_at(nodes, times), second.places_at(nodes, times + 1000)
    for before, after in zip(first.log_shares(places), second.log_shares(moved), strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-6)
        assert np.isfinite(before).all()
    pd.testing.assert_frame_equal(*(lineage.errors[list(lineage.errors)[2:]] for lineage in (second, first)))
    for name in ("a", "b"):
        before, after = (tl.reconstruct(lineage, data, name) for lineage, data in ((first, observed), (second, later)))
        np.testing.assert_allclose(after.obs["minutes"], before.obs["minutes"] + 1000)
        assert (after.X != before.X).nnz == 0


def test_uncertainty_grows_away_from_samples(lineage):
    def sd(node: str, at: float) -> float:
        return float(lineage.expression(node, at)["sd"].mean())

    assert sd("a", 50) > sd("b", 50)
    assert sd("c2", 95) > sd("c2", 65) > sd("c1", 65)


def test_branches_name_the_gene_that_one_branch_gains_and_when(cells):
    planted = cells.copy().X.toarray()
    late = (cells.obs["cell_type"] == "b1") & (cells.obs["minutes"] >= 80)
    planted[np.ix_(late, [7])] += 300
    changed = ad.AnnData(sp.csr_matrix(planted), obs=cells.obs, var=cells.var)
    table = tl.lineage(changed, SETTINGS, tree=TREE).branches()
    first = table.loc[table["change"].idxmax()]
    assert (first["gene"], first["node"], first["mother"]) == ("gene 7", "b1", "b")
    assert 70 < first["when"] < 90
    assert first["low"] > 1
    assert first["from_sisters"] > 1
    others = table[(table["gene"] == "gene 7") & (table["node"] != "b1")]
    assert others["change"].abs().max() < first["change"] / 2


# ---- cells


def test_reconstructed_cells_of_an_ancestor_have_its_means_and_the_spread_of_real_cells(cells, lineage):
    real = select(cells, "a")
    reconstructed = tl.reconstruct(lineage, without(cells, "a", "c2"), "a", n_cells=200)
    assert set(reconstructed.obs["cell_type"]) == {"a"}
    assert reconstructed.obs["minutes"].between(36, 64).all()
    assert (reconstructed.X.data == np.rint(reconstructed.X.data)).all()
    assert reconstructed.X.data.min() > 0
    error = np.sqrt(np.mean((log_share(reconstructed) - log_share(real)) ** 2))
    for relative in ("ab", "a1", "a2", "b"):
        assert error < 0.8 * np.sqrt(np.mean((log_share(select(cells, relative)) - log_share(real)) ** 2))
    spread = [np.log1p(x.X.toarray() / x.X.sum(axis=1).A1[:, None] * 1e3).var(axis=0) for x in (reconstructed, real)]
    assert 0.8 < np.median(spread[0] / spread[1]) < 1.25
    assert 0.8 < np.median(reconstructed.X.sum(axis=1).A1) / np.median(real.X.sum(axis=1).A1) < 1.25


def test_times_of_cells_are_those_that_are_given(cells, lineage):
    observed = without(cells, "a", "c2")
    assert set(tl.reconstruct(lineage, observed, "a", at=50).obs["minutes"]) == {50}
    times = np.array([44.0, 45, 55])
    assert tl.reconstruct(lineage, observed, "a", at=times).obs["minutes"].tolist() == [44, 45, 55]
    for at in ((45, 50), [45, 50]):
        assert tl.reconstruct(lineage, observed, "a", at=at).obs["minutes"].between(45, 50).all()
    assert [parsed_time(text) for text in (None, "350", "3.5:4e2")] == [None, 350, (3.5, 400)]


def test_extrapolation_is_rejected_unless_it_is_wanted_and_then_warned_of(cells, lineage, caplog):
    observed = without(cells, "a", "c2")
    with pytest.raises(InputError, match=r"^'c2' at .* is extrapolation: no samples of its lineage are after it; "):
        tl.reconstruct(lineage, observed, "c2")
    with pytest.raises(InputError, match=r"^'a1' at 130 is extrapolation: .*own samples are from 62 to 99; a time"):
        tl.reconstruct(lineage, observed, "a1", at=130)
    reconstructed = tl.reconstruct(lineage, observed, "c2", n_cells=20, extrapolate=True)
    assert reconstructed.n_obs == 20
    assert "expected error of" in caplog.text
    assert "expected error of" in reconstructed.uns["bdm"]["expected_error"]


def test_lineages_without_times_go_by_the_lengths_of_branches(cells):
    settings = LineageSettings(label_key="cell_type")
    lineage = tl.lineage(without(cells, "a"), settings, tree=TREE)
    reconstructed = tl.reconstruct(lineage, without(cells, "a"), "a", n_cells=50)
    assert list(reconstructed.obs) == ["cell_type", "relative", "synthetic"]
    assert lineage.branches()["start"].min() == 0
    said = [
        lineage.expression("a"),
        lineage.branches(),
        repr(lineage),
        *reconstructed.uns["bdm"]["expected_error"].split("; "),
    ]
    said.append(tl.reconstruct(lineage, cells, "b").uns["bdm"]["expected_error"])
    assert "the node was sampled; here, the" in said[-1]
    for text in said:
        assert not re.search("time|when", " ".join(text) if isinstance(text, pd.DataFrame) else text), text
    with pytest.raises(InputError, match=r"^Only 0 nodes have 200 cells \(`settings.min_cells=`\), but 3 .* cells"):
        tl.lineage(cells, replace(settings, min_cells=200), tree=TREE)
    with pytest.raises(InputError, match=r"^The lineage has no times, so `at=` has no meaning"):
        tl.reconstruct(lineage, cells, "a", at=3)


@pytest.mark.parametrize("as_values", [list, pd.Categorical], ids=["text", "categories"])
def test_times_may_be_numbers_as_text(cells, lineage, as_values):
    observed = without(cells, "a", "c2")
    text = obs(observed, minutes=as_values([f"{time:g}" for time in observed.obs["minutes"]]))
    assert tl.lineage(text, SETTINGS, tree=TREE).points.equals(lineage.points)
    reconstructed = tl.reconstruct(lineage, text, "b", n_cells=20)
    assert (reconstructed.X != tl.reconstruct(lineage, observed, "b", n_cells=20).X).nnz == 0


def test_one_node_has_errors_of_times_and_no_branches(cells, tmp_path):
    lineage = tl.lineage(select(cells, "c"), SETTINGS, tree="((c)ab)root_cell;")
    assert set(lineage.errors["left_out"]) == {"time"}
    lineage.save(tmp_path / "lineage")
    assert list(pd.read_csv(tmp_path / "lineage" / "branches.csv"))[:3] == ["node", "mother", "gene"]
    pl.lineage(lineage, show=False)
    assert (tl.reconstruct(lineage, select(cells, "c"), "c", at=40).obs["minutes"] == 40).all()


def test_samples_of_one_time_have_errors_of_nodes(cells):
    late = cells[(cells.obs["minutes"] >= 60).to_numpy()].copy()
    late.obs["minutes"] = [61.0] + [60.0] * (late.n_obs - 1)
    assert set(tl.lineage(late, SETTINGS, tree=TREE).errors["left_out"]) == {"node"}


# ---- files, commands, invalid input


def test_saved_lineages_reconstruct_the_same_cells_by_seed(cells, lineage, tmp_path):
    observed = without(cells, "a", "c2")
    lineage.save(tmp_path / "lineage")
    loaded = Lineage.load(tmp_path / "lineage")
    first = tl.reconstruct(lineage, observed, "a", seed=3)
    assert (first.X != tl.reconstruct(loaded, observed, "a", seed=3).X).nnz == 0
    assert (first.X != tl.reconstruct(lineage, observed, "a", seed=4).X).nnz > 0
    assert repr(loaded) == repr(lineage)


def test_commands_write_tables_a_figure_and_cells(cells, tmp_path, bdm, caplog):
    without(cells, "a").write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "lineage.nwk").write_text(NEWICK)
    keys = ("--label-key", "cell_type", "--time-key", "minutes", "--n-times", "10")
    arguments = (tmp_path / "cells.h5ad", tmp_path / "lineage", "--tree", tmp_path / "lineage.nwk")
    code, _ = bdm("lineage", *arguments, *keys)
    assert code == 0
    assert "a node that was not sampled, between samples, is predicted with" in caplog.text
    assert {path.name for path in (tmp_path / "lineage").iterdir()} == {
        "branches.csv", "errors.csv", "lineage.png", "lineage.json", "lineage.safetensors",
    }  # fmt: skip
    arguments = (tmp_path / "lineage", tmp_path / "cells.h5ad", tmp_path / "out.h5ad", "--node", "a", "--at", "45:55")
    code, _ = bdm("reconstruct", *arguments, "--cells", 30, "--genes", tmp_path / "genes.csv")
    assert code == 0
    check_r_reads(tmp_path / "out.h5ad")
    reconstructed = ad.read_h5ad(tmp_path / "out.h5ad")
    assert reconstructed.n_obs == 30
    assert reconstructed.obs["minutes"].between(45, 55).all()
    assert "is predicted with" in reconstructed.uns["bdm"]["expected_error"]
    assert set(pd.read_csv(tmp_path / "genes.csv")["time"]) == {50}


@pytest.mark.parametrize("lacking", [("a",), ()], ids=["a node between samples", "none"])
def test_the_printed_reconstruction_runs(cells, tmp_path, bdm_and_next, lacking):
    observed = without(cells, *lacking)
    observed.obs[["cell_type"]].to_csv(tmp_path / "labels.csv")
    halved = ad.AnnData(observed.X / 2, obs=observed.obs[["minutes"]], var=observed.var, layers={"umi": observed.X})
    halved.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "lineage.nwk").write_text(NEWICK)
    options = ("--labels", "labels.csv", "--counts", "umi", "--tree", "lineage.nwk", "--time-key", "minutes")
    bdm_and_next("lineage", "cells.h5ad", "lineage", *options)
    assert set(ad.read_h5ad(tmp_path / "reconstructed.h5ad").obs["cell_type"]) == set(lacking or ["root_cell"])


@pytest.mark.slow
def test_workflow_measures_a_lineage_and_reconstructs_cells(cells, tmp_path):
    without(cells, "a").write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "lineage.nwk").write_text(NEWICK)
    section = {"run": True, "tree": "lineage.nwk", "time_key": "minutes", "n_times": 10}
    section["reconstructions"] = {"mother": {"node": "a", "at": "45:55", "n_cells": 30}}
    write_config(tmp_path, {"datasets": {"mine": {"path": "cells.h5ad", "label_key": "cell_type", "lineage": section}}})
    targets = ("results/mine/lineage/lineage.json", "results/mine/reconstructed/mother.h5ad")
    done = snakemake("--snakefile", ROOT / "Snakefile", "--cores", 1, *targets, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert ad.read_h5ad(tmp_path / targets[1]).n_obs == 30


BAD = {  # change of the cells, settings, tree, beginning of the message
    "no node": (
        lambda cells: cells, {}, "((a1,a2)a,b)c;",
        "The lineage has no node 'ab'; did you mean 'b' or 'a'? obs['cell_type'] has cells of it; add it to",
    ),
    "daughter before mother": (
        lambda cells: cells, {}, NEWICK.replace("root_cell", "x").replace("a2", "root_cell").replace("x", "a2"),
        "The times contradict the lineage tree: 'ab' (median 29.5) is before 'a2' (median 79.5)",
    ),
    "text": (
        lambda cells: obs(cells, minutes=["7", "early", *["8"] * (len(cells) - 2)]), {}, NEWICK,
        "obs['minutes'] holds values such as 'early', but times are numbers; name another by `settings.time_key=`.",
    ),
    "constant": (lambda cells: obs(cells, minutes=3.0), {}, NEWICK, "obs['minutes'] is 3 in all cells; name another"),
    "missing": (
        lambda cells: obs(cells, minutes=[np.nan, *cells.obs["minutes"][1:]]), {}, NEWICK,
        "obs['minutes'] has no finite number for 1 of 880 cells, for example cell 0; complete it, or leave these cells",
    ),
    "no column": (lambda cells: cells, {"time_key": "hours"}, NEWICK, "obs has no column 'hours'; name one by"),
    "log values": (
        lambda cells: ad.AnnData(np.log1p(cells.X.toarray()), obs=cells.obs, var=cells.var), {}, NEWICK,
        "no raw counts: X has",
    ),
    "no lineage": (lambda cells: cells, {}, None, "There is no lineage; give a tree by `tree=`, or lineage names by"),
    "two lineages": (
        lambda cells: cells, {"lineage_key": "cell_type"}, NEWICK, "`tree=` and `settings.lineage_key=` are both"
    ),
    "few cells": (lambda cells: cells, {"min_cells": 200}, NEWICK, "Only 0 nodes or times of nodes have 200 cells"),
    "no lengths": (
        lambda cells: cells, {"time_key": None}, re.sub(r"(\w+)", r"\1:0", NEWICK),
        "No branch of the lineage tree has a length above 0; give lengths or none, or times by `settings.time_key=`.",
    ),
    "nested lists": (
        lambda cells: cells, {}, [["a", "b"], "c"], "The lineage tree is a list, but must be in Newick, as a file or",
    ),
}  # fmt: skip


def obs(cells: ad.AnnData, **columns: object) -> ad.AnnData:
    return ad.AnnData(cells.X, obs=cells.obs.assign(**columns), var=cells.var)


@pytest.mark.parametrize("name", BAD)
def test_bad_data_are_rejected_in_one_sentence(cells, name):
    change, settings, tree, sentence = BAD[name]
    with pytest.raises(InputError) as caught:
        tl.lineage(change(cells.copy()), replace(SETTINGS, **settings), tree=tree)
    assert str(caught.value).startswith(sentence)


def test_unknown_nodes_times_and_genes_are_rejected(cells, lineage):
    with pytest.raises(InputError, match=r"^The lineage has no node 'a3'; did you mean 'a1' or 'a2' or 'a'\?|'a'"):
        tl.reconstruct(lineage, cells, "a3")
    with pytest.raises(InputError, match=r"^at is 'soon', but must be a time, such as 350, or a range"):
        parsed_time("soon")
    for at in ((50, 40), (40, 50, 60), "40:50", np.array([]), np.array([40, np.nan])):
        with pytest.raises(InputError, match=r"^at is .*, but must be a time, the beginning and the end of a range"):
            tl.reconstruct(lineage, cells, "a", at=at)
    with pytest.raises(InputError, match=r"^n_cells is 2\.5, but must be a whole number that is at least 1\."):
        tl.reconstruct(lineage, cells, "a", n_cells=2.5)
    with pytest.raises(InputError, match=r"^The cells lack 70 genes of the lineage, for example 'gene 50'"):
        tl.reconstruct(lineage, cells[:, :50].copy(), "a")


def test_python_takes_names_of_lineages(cells):
    names = {"root_cell": "P", "ab": "Pa", "c": "Pp", "a": "Paa", "b": "Pap", "a1": "Paaa", "a2": "Paap"}
    observed = without(cells, "b1", "b2", "c1", "c2", "a")
    observed.obs["name"] = observed.obs["cell_type"].map(names)
    observed.obs.loc[observed.obs_names[:3], "name"] = np.nan
    lineage = tl.lineage(observed, tl.LineageSettings(lineage_key="name", time_key="minutes"))
    assert lineage.tree.nodes == ("P", "Pa", "Pp", "Paa", "Pap", "Paaa", "Paap")
    assert lineage.sampled.tolist() == [True, True, True, False, True, True, True]
    assert set(tl.reconstruct(lineage, observed, "Paa").obs["name"]) == {"Paa"}
