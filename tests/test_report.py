import copy
import json
import os
import re
import shutil
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from simulated import LINEAGE, simulated_lineage
from test_hierarchy_figure import balanced
from test_responses import simulated_cells

from bdm import tl
from bdm._core.errors import InputError
from bdm.applications.relations.lineage_tree import read_lineage_tree
from bdm.cli import app
from bdm.data.cells import FLOOR, GENERATED
from bdm.data.prepare import read_prepared
from bdm.evaluation.table import JUDGED, MIN_CELLS, score_table
from bdm.evaluation.verdict import Grade, verdict
from bdm.hierarchy.tree import Hierarchy
from bdm.model.model import BranchedModel, load_model
from bdm.report.page import number, report_page
from bdm.report.summaries import (
    Results,
    cells_left_out,
    changed_settings,
    populations,
    read_cost,
    read_results,
)
from bdm.settings import LineageSettings, ResponseSettings

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
WIDTHS = {"desktop": (1280, 900), "phone": (390, 844)}
NAMES = {
    "CD14+ Monocyte": "<script>window.hacked = 1</script>",
    "CD19+ B": "../x",
    "Dendritic": "é 日本 🧬 with a name that goes on and on, as those of clusters in atlases do at times_0123456789",
    "CD56+ NK": "it's \"NK\" & {{ co }}<img src=x onerror='window.hacked = 2'>",
}
LEFT_OUT, SMALL = "<i>left & out", "CD4+/CD45RA+/CD25- Naive T"  # 13 cells that the user leaves out, and 8
MANY = 150


class Scripts(HTMLParser):
    """Counts scripts, and collects what is loaded from elsewhere, as a browser reads a page."""

    def __init__(self, page: str):
        super().__init__()
        self.n_scripts, self.loaded = 0, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loaded += [given[key] for key in ("src", "href", "xlink:href", "srcset", "data") if key in given]
        self.n_scripts += tag == "script"


def bdm(*arguments: str | Path) -> None:
    """Run a command in this process; errors are raised."""
    app([*map(str, arguments)], standalone_mode=False)


@pytest.fixture(scope="module")
def full(example_cells, tmp_path_factory) -> Path:
    """Results with all parts but an extension, of four types that have names of the worst kind."""
    folder = tmp_path_factory.mktemp("results") / "<b>four & co"
    folder.mkdir()
    labels = NAMES | {"CD34+": LEFT_OUT, SMALL: SMALL}
    cells = example_cells[example_cells.obs["bulk_labels"].isin(labels)].copy()
    cells.obs["label"] = cells.obs["bulk_labels"].astype(str).map(labels)
    cells.obs["donor"] = [f"donor {i % 6}" for i in range(cells.n_obs)]
    cells.write_h5ad(folder.parent / "my <i>cells.h5ad")
    prepared, generated, model = (folder / name for name in ("prepared.h5ad", "generated.h5ad", "model"))
    keys = ("--label-key", "label", "--leave-out", LEFT_OUT, "--donor-key", "donor")
    bdm(
        "prepare",
        folder.parent / "my <i>cells.h5ad",
        prepared,
        *keys,
        "--n-genes",
        100,
        "--keep-genes",
        "none",
        "--test",
        0.2,
    )
    bdm("autoencoder", prepared, folder / "autoencoder", "--n-latent", 4, "--n-steps", 10)
    bdm("hierarchy", folder / "autoencoder", folder / "hierarchy.json", "--n-bootstrap", 5)
    small = ("--width", 16, "--n-layers", 1, "--n-steps", 10)
    bdm("train", folder / "autoencoder", folder / "hierarchy.json", model, *small)
    bdm("generate", model, generated, "--cells-like", prepared)
    bdm("evaluate", prepared, generated, folder / "evaluation", "--model", model, "--n-repeats", 1)
    moved, to, of = folder / "transmuted/a.h5ad", NAMES["CD19+ B"], NAMES["CD14+ Monocyte"]
    bdm("transmute", model, prepared, moved, "--to", to, "--from", of, "--seed", 7)
    bdm("evaluate-transmuted", prepared, moved, folder / "transmutation/a")
    bdm("interpret", model, prepared, generated, folder / "interpretation")
    (folder / "benchmarks").mkdir()
    for name, seconds in {"train": 4000.0, "generate": 12.0}.items():
        text = f"s\th:m:s\tmax_rss\tcpu_time\n{seconds}\t0:00:01\t{1500 if name == 'train' else '-'}\t1\n"
        (folder / f"benchmarks/{name}.tsv").write_text(text)
    return folder


@pytest.fixture(scope="module")
def results(full) -> Results:
    return read_results(full)


@pytest.fixture(scope="module")
def page(full, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    bdm("report", full, path)
    return path


def with_hierarchy(model: BranchedModel, hierarchy: Hierarchy) -> BranchedModel:
    return replace(model, prior=replace(model.prior, hierarchy=hierarchy))


def with_branch(model: BranchedModel, name: str, **changes: object) -> BranchedModel:
    branches = tuple(replace(b, **changes) if b.name == name else b for b in model.hierarchy.branches)
    return with_hierarchy(model, replace(model.hierarchy, branches=branches))


@pytest.fixture(scope="module")
def many(results) -> Results:
    """Results of many types, whose scores are made up: the first is as the floor, and the last far from it."""
    names = [f"type {i:03}" for i in range(MANY)]
    rows = [
        {"kind": "type", "group": name, "set": set_name, "score": score, "n_cells": 100}
        | {
            "value": limit.ideal
            + share * (1 if limit.higher else -1) * (limit.near if not limit.relative else 1) * excess
        }
        for set_name, share in {"floor": 0, "generated": 1, "flat": 1}.items()
        for name, excess in zip(names, np.linspace(0, 3, MANY), strict=True)
        for score, limit in JUDGED.items()
    ]
    of_all = results.evaluation.scores_of("all")
    numbers = pd.DataFrame({"test": 100, "train": 400, "generated": 500, "floor": 100, "flat": 500}, index=names)
    table = pd.concat([of_all, score_table(rows, ["generated", "flat"])], ignore_index=True)
    evaluation = replace(results.evaluation, scores=table, n_cells=numbers, n_compared=numbers)
    obs = pd.DataFrame({"cell_type": np.repeat(names, 10), "split": np.tile(["train"] * 8 + ["test"] * 2, MANY)})
    hierarchy = balanced(names)
    rows = [
        {
            "node": branch.parent, "level": hierarchy.by_name[branch.parent].level, "child": branch.name,
            "cell_types": "; ".join(hierarchy.leaves(branch.name)), "gene": f"gene {i}-{rank}", "model_rank": rank,
            "model_log2_fold_change": 2.0, "model_standard_error": 0.2,
            "test_log2_fold_change": 1.5, "test_standard_error": 0.4,
        }
        for i, branch in enumerate(hierarchy.branches[1:])
        for rank in range(1, 6)
    ]  # fmt: skip
    model = replace(results.model, moments=replace(results.model.moments, populations=tuple(names)))
    changes = {"model": with_hierarchy(model, hierarchy), "evaluation": evaluation, "cells": obs}
    return replace(results, name="many", interpretation={"branch_genes": pd.DataFrame(rows)}, **changes)


# ---- content


def test_page_needs_no_network_and_is_small(page, full):
    text = page.read_text(encoding="utf-8")
    assert len(text) < 2_000_000
    loaded = [of for of in Scripts(text).loaded if not of.startswith(("#", "data:image/png"))]
    assert not loaded
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|import\(", text)
    assert report_page(read_results(full)) == text


def test_names_are_text(page):
    text = page.read_text(encoding="utf-8")
    assert Scripts(text).n_scripts == 1
    assert "<script>window.hacked" not in text
    assert "<img src=x" not in text
    assert "<b>four" not in text
    assert "&lt;b&gt;four &amp; co" in text


def words_of(page: str) -> str:
    """Text of a page's HTML, without marks."""
    text = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", text)))


def words_with(results: Results, **changes: object) -> str:
    """Text of the page of changed results."""
    return words_of(report_page(replace(results, **changes)))


@pytest.fixture(scope="module")
def text(page) -> str:
    return words_of(page.read_text(encoding="utf-8"))


def test_page_shows_the_input_data_and_how_to_reproduce_it(text, results):
    assert "my <i>cells.h5ad" in text
    assert f"{len(results.cells)} labelled cells" in text
    rows = ("label_key prepare label cell_type", "n_genes prepare 100 2000", "n_latent autoencoder 4", "width train 16")
    assert [row for row in rows if row not in text] == []
    assert not {"seed", "test"} & {setting["name"] for setting in changed_settings(results)}
    for digest in results.evaluation.provenance["sha256"].values():
        assert digest in text
    assert "train 1 h 7 min" in re.sub(r" +", " ", text)
    assert "generate 12 s \N{EN DASH}" in re.sub(r" +", " ", text)


def test_page_shows_what_was_chosen_and_left_out(page, text, results):
    n_cells, n_genes = len(results.cells), len(results.genes)
    facts = f"Cell types 4 of 6 Populations {len(results.model.populations)} Donors 6 Seed 0"
    assert f"Cells {n_cells} of {n_cells + 13 + 8} Genes {n_genes} of 765 {facts}" in text
    assert "2 cell types, 21 cells" in text
    assert re.search(rf"{re.escape(LEFT_OUT)} 13 [^.]*\(leave_out\)", text)
    assert re.search(rf"{re.escape(SMALL)} 8 [^.]*10 cells \(min_cells_per_type\)", text)
    assert LEFT_OUT not in page.read_text(encoding="utf-8")
    assert "Batches" not in text
    assert "The model has learned effects of donors (6 donors, standard deviation of log expression 0." in text


def test_page_shows_the_warnings_of_the_data(results, example_cells, tmp_path):
    cells = example_cells.copy()
    cells.obs["label"] = cells.obs["bulk_labels"].astype(str).replace("Dendritic", "Unknown <b>")
    cells.X = cells.X.toarray()
    cells.X[np.arange(100), np.arange(100)] = 10_000  # outliers
    cells.write_h5ad(tmp_path / "cells.h5ad")
    bdm("prepare", tmp_path / "cells.h5ad", tmp_path / "prepared.h5ad", "--label-key", "label")
    found = dict(read_prepared(tmp_path / "prepared.h5ad").uns["bdm"])["warnings"]
    text = words_with(results, record=results.record | {"warnings": found})
    assert "no cell types: 'Unknown <b>'; to leave them out, use leave_out ." in text
    assert "to lower them to the largest regular ones, use clip_outliers: true ." in text
    assert SMALL not in found  # which is in the table of cell types that were left out


def with_preparation(results: Results, **settings: object) -> Results:
    """Results of cells that were prepared with some other settings."""
    prepare = results.model.autoencoder.provenance["prepare"] | settings
    autoencoder = replace(results.model.autoencoder, provenance={"prepare": prepare})
    return replace(results, model=replace(results.model, autoencoder=autoencoder))


def test_cells_that_were_left_out_are_counted(results):
    facts = results.input | {"cells_left_out": {"drop_unlabelled": 2, "min_genes_per_cell": 4}}
    facts["n_cells"] += 9
    fewer = replace(results, record=results.record | {"input": json.dumps(facts)})
    (unlabelled, why), (few, reason), (uncounted, _) = cells_left_out(with_preparation(fewer, min_genes_per_cell=200))
    assert (unlabelled, few, uncounted) == (2, 4, 3)
    assert "(drop_unlabelled)" in why
    assert "200 genes (min_genes_per_cell)" in reason


def test_page_of_cells_whose_input_was_not_recorded(results):
    record = {name: value for name, value in results.record.items() if name != "input"}
    text = words_with(results, record=record)
    assert "Left out" not in text
    assert f"Cells {len(results.cells)} Genes" in text
    nothing = results.input | {"n_cells": len(results.cells), "types_left_out": []}
    text = words_with(results, record=record | {"input": json.dumps(nothing)})
    assert "Left out Nothing: all cell types and all cells were used." in text


def test_page_of_an_extended_model_shows_what_its_first_cells_left_out(full, results, tmp_path):
    known, joined = full / "prepared.h5ad", tmp_path / "joined.h5ad"
    options = ("--cell-type", LEFT_OUT, "--known", known, "--joined", joined, "--label-key", "label")
    bdm("extend", full / "model", full.parent / "my <i>cells.h5ad", tmp_path / "model", *options)
    cells = read_prepared(joined)
    grown = replace(results, model=load_model(tmp_path / "model"), cells=cells.obs, record=dict(cells.uns["bdm"]))
    text = words_of(report_page(grown))
    populations = f"Populations {len(grown.model.populations)}"
    assert f"Cells {len(results.cells) + 13} Genes 100 of 765 Cell types 5 {populations}" in text
    assert "Left out of the cells of the first model 2 cell types, 21 cells" in text


def test_page_lists_all_settings_and_seeds_that_differ(results):
    used = {**results.interpreted, "settings": {**results.interpreted["settings"], "n_genes": 3}, "seed": 7}
    evaluation = replace(results.evaluation, n_cells=results.evaluation.n_cells.assign(generated=7))
    text = words_with(results, evaluation=evaluation, interpreted=used)
    for row in ("n_cells generate 7 as in the data", "n_genes interpret 3 20", "seed interpret 7 0"):
        assert row in text
    assert "n_cells generate" not in words_of(report_page(results))


def test_no_difference_in_few_cells_is_not_shown_as_like_real_cells(results):
    where = {"kind": "all", "group": "all", "score": "f1", "value": 1.0, "n_cells": 20}
    found = verdict(score_table([{**where, "set": name} for name in ("floor", "generated")], ["generated"]))
    changed = copy.copy(results)
    vars(changed).update(verdict=found, verdicts=dict.fromkeys(results.verdicts, found))
    page = report_page(changed)
    badges = re.findall(r'class="badge (\w+)"><span[^>]*>.</span>([^<]+)</span>', page.partition('class="rule"')[0])
    assert {kind for kind, text in badges if text.endswith("no difference seen in few cells")} == {"few"}
    assert '<div class="answer few">' in page


def test_page_shows_the_figures_that_commands_drew(page, full, results):
    shown = re.findall(r'<img src="data:image/png;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    names = [f"evaluation/{name}.png" for name in ("by_type", "overall", "genes", "umap")]
    names += ["interpretation/branch_genes.png", "transmutation/a/scores.png"]
    assert [b64decode(one) for one in shown] == [(full / name).read_bytes() for name in names]
    assert "branch_genes.png" not in report_page(replace(results, figures={}))


def test_page_has_scores_in_space_if_cells_have_positions(results, text):
    assert "Positions" not in text
    where = {"kind": "space", "group": "all", "n_cells": 100}
    values = {"moran_correlation": (0.87, 0.98), "moran_within_correlation": (np.nan, np.nan)}
    rows = [
        {**where, "set": name, "score": score, "value": value}
        for score, pair in values.items()
        for name, value in zip((GENERATED, FLOOR), pair, strict=True)
    ]
    table = pd.concat([results.evaluation.scores, score_table(rows, [GENERATED])], ignore_index=True)
    drawn = results.figures | {"evaluation/space.png": b"maps"}
    page = report_page(replace(results, evaluation=replace(results.evaluation, scores=table), figures=drawn))
    placed = page.partition("Positions")[2]
    assert "Moran's I of a gene is near 1" in placed
    assert b64encode(b"maps").decode() in placed
    [row] = rows_of(placed, "groups")  # without the score that has no value
    assert row[1:3] == ["Moran's I: r", "0.87 floor 0.98"]


def test_page_shows_standard_errors_and_how_many_cells_a_verdict_needs(text, results):
    error = results.evaluation.scores_of("all").set_index(["set", "score"]).loc[(GENERATED, "relative_energy"), "error"]
    assert f"± {error:.3f}" in text
    assert "Not checked: batches, positions (not in the real cells); donors (not in this set)." in text
    assert f"needs {MIN_CELLS} test cells (about 50 cells of the type in the input)" in text


def test_page_names_test_cells_of_another_file(results):
    hashes = results.evaluation.provenance["sha256"] | {"test_cells": "0" * 64}
    elsewhere = replace(results.evaluation, provenance=results.evaluation.provenance | {"sha256": hashes})
    text = words_with(results, evaluation=elsewhere)
    assert f"{elsewhere.n_cells['test'].sum():,} test cells of another file" in text


def test_results_of_another_model_are_not_shown(full, tmp_path, caplog):
    folder = tmp_path / "results"
    folder.mkdir()
    for path in full.iterdir():
        (folder / path.name).symlink_to(path)
    assert set(read_results(folder).transmutations) == {"a"}
    (folder / "model").unlink()
    small = ("--width", 16, "--n-layers", 1, "--n-steps", 5, "--seed", 3)
    bdm("train", folder / "autoencoder", folder / "hierarchy.json", folder / "model", *small)
    found = read_results(folder)
    assert not found.transmutations
    assert caplog.text.count("has cells of another model than the one next to it; make them again") == 1


def rows_of(page: str, table: str) -> list[list[str]]:
    """Texts of the cells of a table's body, by row."""
    [body] = re.findall(rf'<table class="[^"]*\b{table}\b[^"]*">.*?</thead>(.*?)</table>', page, flags=re.DOTALL)
    rows = re.findall(r"<tr.*?</tr>", body, flags=re.DOTALL)
    return [[words_of(cell).strip() for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_page_lists_the_populations_of_each_cell_type(page, text, results):
    model, hierarchy = results.model, results.model.hierarchy
    fitted = (results.cells["split"] != "test").to_numpy()
    number = results.cells.loc[fitted, "cell_type"].value_counts()
    assert len(model.populations) > len(model.cell_types) == len(number)
    expected = []
    for cell_type in sorted(hierarchy.cell_types, key=lambda name: -number[name]):
        names = sorted(hierarchy.populations_of(cell_type), key=lambda name: -model.composition.loc[name].sum())
        if len(names) > 1:
            expected.append([cell_type, f"{number[cell_type]:,}", "", ""])
        for name in names:
            n_cells = int(model.composition.loc[name].sum())
            decoder = "type-specific" if name in model.autoencoder.adapters else "shared"
            expected.append([name, f"{n_cells:,}", f"{n_cells / number[cell_type]:.0%}", decoder])
    assert rows_of(page.read_text(encoding="utf-8"), "populations") == expected
    n_divided = sum(len(hierarchy.populations_of(name)) > 1 for name in hierarchy.cell_types)
    assert re.search(rf"{n_divided} of 4 cell types (has|have) sub-populations of 30 cells or more", text)
    assert "( sub_populations: auto )" in text
    assert f"{len(model.autoencoder.adapters)} of {len(model.populations)} populations" in text
    assert text.count("is nearer to") == sum(branch.nearer_to is not None for branch in hierarchy.branches)


def test_page_shows_scores_by_sub_population(page, results):
    table = results.evaluation.scores_of("sub_population").query("set == @GENERATED").set_index(["group", "score"])
    value, floor = table["value"].unstack(), table["floor"].unstack()
    expected = []
    for cell_type, of_type in populations(results)["by_type"].items():
        if len(of_type) > 1:
            expected.append([cell_type])
            for name in of_type["name"]:
                shares = [value.loc[name, "share_test"], floor.loc[name, "share"], value.loc[name, "share"]]
                expected.append([name, f"{value.loc[name, 'n_test']:.0f}", *(f"{share:.0%}" for share in shares)])
    found = rows_of(page.read_text(encoding="utf-8"), "population-scores")
    assert [row[:5] for row in found] == expected
    assert len(expected) > 2
    for name, *_, energy, auc in (row for row in found if len(row) > 1):
        for text, score in ((energy, "relative_energy"), (auc, "forest_auc")):
            assert text == f"{number(value.loc[name, score])} floor {number(floor.loc[name, score])}"


def test_page_names_sub_populations_that_are_nearer_to_another_type(results):
    hierarchy = results.model.hierarchy
    name = next(name for name in hierarchy.populations if name not in hierarchy.cell_types)
    text = words_with(results, model=with_branch(results.model, name, nearer_to="<i>other"))
    stray, name = hierarchy.by_name[name], re.escape(name)
    place = rf"{name} +\({stray.n_cells} cells\) is nearer to <i>other [^.]*{re.escape(stray.cell_type)}\."
    assert re.search(place, text)


def test_page_names_sub_populations_of_one_donor(text, results):
    assert "from one donor" not in text
    of_donor = replace(results.model.autoencoder, one_donor=("<b>T/1",))
    text = words_with(results, model=replace(results.model, autoencoder=of_donor))
    assert re.search(r"More than half of the cells are from one donor in +<b>T/1", text)


def test_page_names_types_of_few_cells_whose_place_is_uncertain(text, results):
    assert "place uncertain" not in text
    name = results.model.hierarchy.cell_types[0]
    text = words_with(results, model=with_branch(results.model, name, place=0.42))
    assert "place uncertain" in text
    assert re.search(rf"{re.escape(name)} \(\d+ cells\): 42%\.", text)


@pytest.mark.parametrize(("gain", "kept", "words"), [(3.44, True, "is kept"), (-0.72, False, "is not kept")])
def test_page_says_whether_the_network_is_kept(results, gain, kept, words):
    decision = {"n_cells": 40, "closed_form": 0.5, "network": 0.4004, "gain": gain, "kept": kept}
    text = words_of(report_page(replace(results, network=pd.DataFrame([decision]))))
    number = f"{gain:.1f}".replace("-", "\N{MINUS SIGN}")
    assert f"{words}: the loss of 40 held-out cells is 0.400 with it, and 0.500" in text
    assert f"a gain of {number} standard errors" in text
    assert "What the network adds" not in report_page(replace(results, network=None))


def test_cost_of_steps_is_in_the_order_in_which_they_ended(tmp_path):
    for when, name in ((2, "prepare"), (1, "generate")):
        (tmp_path / f"{name}.tsv").write_text(f"s\tmax_rss\n{when}\t{10 * when}\n")
        os.utime(tmp_path / f"{name}.tsv", (when, when))
    cost = {step: tuple(row) for step, row in read_cost(tmp_path).iterrows()}
    assert list(cost.items()) == [("generate", (1, 10)), ("prepare", (2, 20))]
    assert read_cost(tmp_path / "nothing").empty


def test_page_cites_as_the_repository_does(text):
    cited = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text())["preferred-citation"]
    assert cited["title"] in text
    assert cited["url"] in text
    assert all(author["family-names"] in text for author in cited["authors"])


def test_verdicts_are_next_to_their_types(text, results):
    for name, each in results.verdicts.items():
        assert re.search(rf"{re.escape(name)} {each.n_cells} \S {re.escape(each.label)}", text), name
        for finding in each.findings if each.grade != Grade.UNKNOWN else ():
            digits = 3 if finding.score == "relative_energy" else 2
            value, floor, same, near = (
                number(one, digits) for one in (finding.value, finding.floor, finding.first_limit, finding.second_limit)
            )
            limits = f"limit {near}" if same == near else f"limits {same} and {near}"
            assert f"{value} floor {floor} {limits}" in text
    assert {each.grade for each in results.verdicts.values()} != {0}
    labels = Counter(each.label for each in results.verdicts.values())
    headline = text.partition("By type: ")[2].partition("Input data")[0]
    assert all(f"{label} ({n} of 4)" in headline for label, n in labels.items())


def test_page_of_less_has_no_empty_sections(results):
    text = report_page(replace(results, transmutations={}, interpretation={}, cost=results.cost[:0]))
    sections = re.findall(r'<section id="(\w+)"', text)
    assert sections == ["given", "verdict", "hierarchy", "populations", "real", "cost", "cite", "again"]
    assert sorted(re.findall(r' href="#(\w+)"', text)) == sorted(["verdict", "verdict", *sections])


def test_page_shows_responses_and_how_far_to_trust_them(results):
    cells = simulated_cells(shared=0.9, seed=0, n_cells=20)
    responses = tl.respond(cells, ResponseSettings(label_key="kind"))
    figures = {f"responses/{name}.png": b"" for name in ("response", "errors")}
    text = report_page(replace(results, responses=responses, figures=results.figures | figures))
    assert 'href="#responses"' in text
    assert responses.sentence("stim") in text


def test_page_shows_a_lineage_and_how_far_to_trust_it(results):
    cells, _ = simulated_lineage(seed=0, n_cells=20)
    settings = LineageSettings(time_key="minutes", n_times=5)
    lineage = tl.lineage(cells, settings, tree=read_lineage_tree(LINEAGE))
    figures = results.figures | {"lineage/lineage.png": b""}
    text = report_page(replace(results, lineage=lineage, figures=figures))
    assert 'href="#lineage"' in text
    assert all(sentence in text for sentence in lineage.sentences())


def lose(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("model", lose, "has no model; make it"),
        ("evaluation/umap.png", lose, r"has no evaluation/umap\.png; make it"),
        ("evaluation/evaluation.json", halve, "evaluation"),
        ("interpretation/interpretation.safetensors", halve, "missing or damaged"),
        ("model/decision.csv", lambda path: path.write_bytes(b""), "some is damaged"),
        ("model/decision.csv", lambda path: path.write_bytes(b"n_cells,kept\n9,True\n"), "some is damaged"),
    ],
)
def test_results_that_lack_or_are_damaged_are_rejected(full, tmp_path, name, spoil, message):
    shutil.copytree(full, tmp_path / "some")
    spoil(tmp_path / "some" / name)
    with pytest.raises(InputError, match=message):
        bdm("report", tmp_path / "some", tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


# ---- in a browser


@dataclass
class Opened:
    """A page in the browser, and what went wrong in it."""

    page: object
    faults: list[str] = field(default_factory=list)

    def texts(self, selector: str) -> list[str]:
        return self.page.locator(selector).all_inner_texts()


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    sync_api = pytest.importorskip("playwright.sync_api", reason="there is no playwright")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Open a page as wide as a desktop's or a phone's window; at the end nothing may have gone wrong."""
    pages = []

    def open_page(path: Path, width: str) -> Opened:
        size = dict(zip(("width", "height"), WIDTHS[width], strict=True))
        found = Opened(browser.new_page(viewport=size, has_touch=width == "phone"))
        pages.append(found)

        def asked(request) -> None:
            if not request.url.startswith((path.as_uri(), "data:")):
                found.faults.append(f"request: {request.url}")

        found.page.on("console", lambda message: found.faults.append(f"console: {message.text}"))
        found.page.on("pageerror", lambda error: found.faults.append(f"error: {error}"))
        found.page.on("request", asked)
        found.page.goto(path.as_uri())
        return found

    yield open_page
    for found in pages:
        assert found.faults == []
        assert found.page.evaluate("window.hacked") is None
        found.page.close()


def check_fits(page) -> None:
    width = page.viewport_size["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    cut = page.evaluate(
        """(width) => [...document.querySelectorAll("main *, header *")]
          .filter((e) => !e.closest(".scroll, pre, .unseen, svg"))
          .filter((e) => e.getBoundingClientRect().right > width + 1 && e.getBoundingClientRect().width)
          .map((e) => e.outerHTML.slice(0, 100))""",
        width,
    )
    assert cut == []


@pytest.mark.parametrize("width", WIDTHS)
def test_browser_shows_all_sections(opened, page, tmp_path, width):
    found = opened(page, width)
    check_fits(found.page)
    links = found.page.locator("nav a")
    for i in range(links.count()):
        links.nth(i).click()
        place = found.page.locator(links.nth(i).get_attribute("href")).bounding_box()
        assert place["height"] > 100
        assert place["y"] < WIDTHS[width][1]
    for summary in found.page.locator("main summary").all():
        before = summary.evaluate("e => e.parentElement.open")
        summary.click()
        assert summary.evaluate("e => e.parentElement.open") != before
    check_fits(found.page)
    picture = found.page.screenshot(path=tmp_path / f"{width}.png", full_page=True)
    assert len(picture) > 100_000
    assert set(found.texts("#by-type tbody th")) == set(NAMES.values())


@pytest.mark.parametrize("width", WIDTHS)
def test_many_types_are_searched_and_shown(opened, many, tmp_path, width):
    path = tmp_path / "many.html"
    path.write_text(report_page(many), encoding="utf-8")
    assert path.stat().st_size < 5_000_000
    found = opened(path, width)
    check_fits(found.page)
    rows = found.page.locator("#by-type tbody tr:visible")
    assert rows.count() == 20
    found.page.locator("#find-type").fill("TYPE 14")
    assert rows.count() == 10
    assert found.texts("output[for='find-type']") == ["10 found"]
    found.page.locator("#find-type").fill("")
    found.page.locator("#by-type thead button", has_text="Verdict").click()
    found.page.locator("#by-type thead button", has_text="Verdict").click()
    worst = found.texts("#by-type tbody tr:visible td:nth-child(3)")
    assert all("differ from real cells" in text for text in worst)
    for listed, n_all in {"by-type": MANY, "by-node": MANY - 1}.items():
        button = found.page.locator(f"[data-shows={listed}]")
        assert found.page.locator(f"#{listed} [data-words]:visible").count() == 20
        button.click()
        assert found.page.locator(f"#{listed} [data-words]:visible").count() == n_all
        assert not button.is_visible()
    found.page.locator("#find-node").fill("gene 17-3")
    assert found.page.locator("#by-node tbody tr:visible").count() == 1
    check_fits(found.page)
    found.page.screenshot(path=tmp_path / f"many_{width}.png", full_page=True)
