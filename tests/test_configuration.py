"""Every key of the configuration makes a finished workflow run again what depends on it, and nothing else."""

import contextlib
import copy
import io
import os
import re
import time
from pathlib import Path

import pytest
from snakemake.api import SnakemakeApi
from snakemake.exceptions import MissingInputException
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings
from test_workflow import ROOT, SCHEMA, SECTIONS, snakemake, write_config

# A data set, and the one that it grows to, which has its settings.
MINE, GROWN = "mine", "mine+more"
FILES = ["cells.h5ad", "more.h5ad", "other.h5ad", "labels.csv", "genes.txt", "tree.nwk", "markers.csv", "sets.gmt"]
FILES += ["design.yaml", "other.yaml"]
CONFIG = {
    "datasets": {
        MINE: {
            "path": "cells.h5ad",
            "donor_key": "person",
            "extend": {"additions": {"more": {"path": "more.h5ad"}}},
            "transmute": {"transmutations": {"there": {"to": "B", "from": ["A"]}, "back": {"to": "A"}}},
            "simulate": {"designs": {"here": {"path": "design.yaml"}}},
            "audit": {"run": True},
        }
    },
    "evaluate": {"flat": True},
}

# Rules with all that depends on them
REPORT = {"report"}
CARD = {"card"}
EVALUATE = {"evaluate"} | CARD | REPORT
INTERPRET = {"interpret"} | REPORT
TRANSMUTATION = {"transmute there", "evaluate_transmuted there"} | REPORT
TRANSMUTATIONS = {"transmute back", "evaluate_transmuted back"} | TRANSMUTATION
NEW_TRANSMUTATION = {"transmute new", "evaluate_transmuted new"} | REPORT
SIMULATE = {"simulate here"} | REPORT
AUDIT = {"audit", "merge_audit"} | CARD | REPORT  # of fitted models, not of extended ones
GENERATE = {"generate"} | EVALUATE | INTERPRET
GENERATE_BOTH = {"generate_flat"} | GENERATE
EXTEND = {"extend"} | GENERATE | TRANSMUTATIONS | SIMULATE
HIERARCHY = {"hierarchy", "train"} | GENERATE | TRANSMUTATIONS | SIMULATE | AUDIT
TRAIN = {"train", "train_flat"} | GENERATE_BOTH | TRANSMUTATIONS | SIMULATE | AUDIT
AUTOENCODER = {"autoencoder", "hierarchy", "hierarchy_flat"} | TRAIN
PREPARE = {"prepare"} | AUTOENCODER


def both(rules: set[str], of_grown: set[str] | None = None) -> dict[str, set[str]]:
    return {MINE: rules, GROWN: of_grown or rules}


# For each key another value, and the rules that it concerns. Values that other parameters of the rule have already are
# chosen where there are any.
CHANGES = {
    "seed": (3, both(PREPARE, EXTEND)),
    "datasets": (
        {**CONFIG["datasets"], "new": {"path": "other.h5ad"}},
        {"new": PREPARE - TRANSMUTATIONS - SIMULATE - AUDIT | CARD | REPORT},
    ),
    "dataset/path": ("other.h5ad", both(PREPARE, EXTEND)),
    "dataset/label_key": ("auto", both(PREPARE, EXTEND)),
    "dataset/batch_key": ("donor", both(PREPARE, EXTEND)),
    "dataset/donor_key": ("donor", both(PREPARE, EXTEND)),
    "dataset/labels": ("labels.csv", both(PREPARE, EXTEND)),
    "dataset/counts": ("cell_type", both(PREPARE, EXTEND)),
    "dataset/license": ("cc-by-4.0", both(PREPARE, EXTEND)),
    "prepare/genes": ("all", both(PREPARE, EXTEND)),
    "prepare/n_genes": (10, both(PREPARE, EXTEND)),
    "prepare/keep_genes": ("genes.txt", both(PREPARE, EXTEND)),
    "prepare/gene_symbols": ("symbol", both(PREPARE, EXTEND)),
    "prepare/drop_unlabelled": (True, both(PREPARE, EXTEND)),
    "prepare/leave_out": (["A"], both(PREPARE, EXTEND)),
    "prepare/clip_outliers": (True, both(PREPARE, EXTEND)),
    "prepare/min_genes_per_cell": (3, both(PREPARE, EXTEND)),
    "prepare/min_cells_per_gene": (0, both(PREPARE, EXTEND)),
    "prepare/min_cells_per_type": (3, both(PREPARE, EXTEND)),
    "prepare/min_donors": (5, both(PREPARE, EXTEND)),
    "prepare/validation": (0.2, both(PREPARE, EXTEND)),
    "prepare/test": (0.1, both(PREPARE, EXTEND)),
    "autoencoder/n_latent": (400, both(AUTOENCODER, EXTEND)),
    "autoencoder/likelihood": ("poisson", both(AUTOENCODER, EXTEND)),
    "autoencoder/loading_scale": (0.01, both(AUTOENCODER, EXTEND)),
    "autoencoder/n_steps": (30, both(AUTOENCODER, EXTEND)),
    "autoencoder/learning_rate": (0.1, both(AUTOENCODER, EXTEND)),
    "autoencoder/sub_populations": ("none", both(AUTOENCODER, EXTEND)),
    "autoencoder/min_cells_per_sub_population": (20, both(AUTOENCODER, EXTEND)),
    "autoencoder/shared_decoder": (True, both(AUTOENCODER, EXTEND)),
    "hierarchy/threshold": (0.8, both({"hierarchy_flat"} | HIERARCHY | TRAIN, EXTEND)),
    "hierarchy/tree": ("tree.nwk", both(HIERARCHY, EXTEND)),
    "hierarchy/ontology_key": ("cell_type", both(HIERARCHY, EXTEND)),
    "hierarchy/n_bootstrap": (0, both(HIERARCHY, EXTEND)),
    "train/n_steps": (128, both(TRAIN, EXTEND)),
    "train/width": (3000, both(TRAIN, EXTEND)),
    "train/n_layers": (128, both(TRAIN, EXTEND)),
    "train/learning_rate": (3, both(TRAIN, EXTEND)),
    "extend/additions": ({"more": {"path": "more.h5ad"}, "new": {"path": "other.h5ad"}}, {"mine+new": EXTEND}),
    "addition/path": ("other.h5ad", {GROWN: EXTEND}),
    "addition/cell_types": (["C"], {GROWN: EXTEND}),
    "addition/update": (["A"], {GROWN: EXTEND}),
    "addition/label_key": ("auto", {GROWN: EXTEND}),
    "addition/counts": ("X", {GROWN: EXTEND}),
    "addition/missing_as_zero": (True, {GROWN: EXTEND}),
    "generate/n_cells": (12, both(GENERATE_BOTH, GENERATE)),
    "generate/n_levels": (2, both(GENERATE_BOTH | AUDIT, GENERATE)),
    "generate/shared_ancestors": (True, both(GENERATE_BOTH | AUDIT, GENERATE)),
    "generate/stochastic": (True, both(GENERATE_BOTH | AUDIT, GENERATE)),
    "transmute/transmutations": (
        {**CONFIG["datasets"][MINE]["transmute"]["transmutations"], "new": {"to": "C"}},
        both(NEW_TRANSMUTATION),
    ),
    "transmute/stochastic": (True, both(TRANSMUTATIONS)),
    "transmute/n_levels": (2, both(TRANSMUTATIONS)),
    "transmutation/to": ("C", both(TRANSMUTATION)),
    "transmutation/from": (["C"], both(TRANSMUTATION)),
    "simulate/designs": (
        {**CONFIG["datasets"][MINE]["simulate"]["designs"], "new": {"path": "other.yaml"}},
        both({"simulate new"} | REPORT),
    ),
    "design/path": ("other.yaml", both(SIMULATE)),
    "evaluate/n_repeats": (500, both(EVALUATE)),
    "evaluate/max_cells_per_type": (5, both(EVALUATE)),
    "evaluate/flat": (False, both(EVALUATE)),
    "interpret/n_genes": (5, both(INTERPRET)),
    "interpret/markers": ("markers.csv", both(INTERPRET)),
    "interpret/gene_sets": ("sets.gmt", both(INTERPRET)),
    "audit/run": (False, {MINE: CARD | REPORT}),
    "audit/n_folds": (2, {MINE: AUDIT}),
    "audit/cells_only": (True, {MINE: AUDIT}),
    "audit/cells_per_training_cell": (0.1, {MINE: AUDIT}),
    "card/source": ("cell_type", both(CARD)),
    "card/contact": ("it's A. Miller", both(CARD)),
}

BESIDE = {"hierarchy/ontology_key": {"tree": "cell-ontology"}}  # keys that another one needs


def keys() -> list[str]:
    """List the schema's keys, as SECTION/KEY where they are in one."""
    parts = {name: part["properties"] for name, part in SCHEMA["$defs"].items()}
    sections = {name for name in parts if name in SCHEMA["properties"]}
    whole = [key for key in SCHEMA["properties"] if key not in sections]
    return whole + [f"{part}/{key}" for part, found in parts.items() for key in found if key not in sections]


def with_value(key: str, value: object, *, own: bool = False, config: dict = CONFIG) -> dict:
    """Copy a configuration, with another value of a key: for all data sets, or for the data set's ``own``."""
    config = copy.deepcopy(config)
    section, _, name = key.rpartition("/")
    mine = config["datasets"][MINE]
    places = {
        "": config,
        "dataset": mine,
        "addition": mine["extend"]["additions"]["more"],
        "transmutation": mine["transmute"]["transmutations"]["there"],
        "design": mine["simulate"]["designs"]["here"],
    }
    if section not in places:
        places[section] = (
            mine if own or name in ("transmutations", "additions", "designs", "run") else config
        ).setdefault(section, {})
    places[section].update({name: value, **BESIDE.get(key, {})})
    return config


def planned_rules(config: dict, *, snakefile: Path = ROOT / "Snakefile", n_jobs: int = 1) -> dict[str, set[str]]:
    """Plan the workflow in the working directory: rules that would run, by data set, and what they are of."""
    write_config(Path(), config)
    settings = ResourceSettings(overwrite_scatter={"generate": n_jobs})
    table = io.StringIO()
    with (
        contextlib.redirect_stdout(table),
        SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api,
    ):
        api.workflow(resource_settings=settings, config_settings=ConfigSettings(), snakefile=snakefile).dag().summary()
    planned: dict[str, set[str]] = {}
    for line in table.getvalue().splitlines()[1:]:
        file, _, rule, *_, plan = line.split("\t")
        result = re.search(r"results/([^/]+)/(?:(?:transmuted|transmutation|simulated)/([a-z]+))?", file)
        if result and plan != "no update":
            dataset, of = result.groups()
            name = rule.removeprefix("bdm_")
            planned.setdefault(dataset, set()).add(f"{name} {of}" if of else name)
    return planned


def finish(folder: Path, config: dict, *arguments: str | Path, files: list[Path]) -> None:
    """Have Snakemake take empty files for the input and the results of a run, and keep a record as of any run."""
    write_config(folder, config)
    for path in files:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    table = snakemake("--summary", *arguments, cwd=folder)
    assert table.returncode == 0, table.stderr
    for line in table.stdout.splitlines()[1:]:
        path = folder / line.partition("\t")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch() if path.suffix else path.mkdir()
    done = snakemake("--touch", "--forceall", "--cores", "1", *arguments, cwd=folder)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    finish(folder, CONFIG, "--snakefile", ROOT / "Snakefile", files=[folder / name for name in FILES])
    return folder


@pytest.fixture
def in_finished(finished, monkeypatch):
    monkeypatch.chdir(finished)


@pytest.mark.parametrize("key", keys())
def test_another_value_runs_what_depends_on_it(in_finished, key):
    value, rules = CHANGES[key]
    assert planned_rules(with_value(key, value)) == rules


def test_a_changed_file_in_a_folder_of_cells_runs_what_depends_on_it(tmp_path, monkeypatch):
    config = {"datasets": {MINE: {"path": "tenx"}}}
    matrix = tmp_path / "tenx/matrix.mtx"
    finish(tmp_path, config, "--snakefile", ROOT / "Snakefile", files=[matrix])
    monkeypatch.chdir(tmp_path)
    assert planned_rules(config) == {}
    matrix.write_text("other counts")
    later = time.time() + 10
    os.utime(matrix, (later, later))
    assert "prepare" in planned_rules(config)[MINE]


def test_other_names_of_folders_and_files_that_are_not_read(tmp_path):
    write_config(tmp_path, {"datasets": {MINE: {"path": "tenx/"}}})
    for name in ("matrix.mtx", "notes {x}.txt"):
        (tmp_path / "tenx" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "tenx" / name).touch()
    done = snakemake("--dry-run", "--snakefile", ROOT / "Snakefile", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "contains double" not in done.stdout + done.stderr


def test_a_folder_of_cells_that_a_rule_makes_is_input_as_a_whole(tmp_path):
    """Its files are there from the second run on, and would be other input than that of the first."""
    (tmp_path / "Snakefile").write_text(
        f"module bdm:\n    snakefile: {str(ROOT / 'workflow/Snakefile')!r}\n"
        f"    config: {{'datasets': {{'{MINE}': {{'path': 'tenx'}}}}}}\n\n\n"
        "use rule * from bdm as bdm_*\n\n\n"
        "rule count:\n    output: directory('tenx')\n    shell: 'mkdir {output}'\n"
    )
    (tmp_path / "tenx").mkdir()
    (tmp_path / "tenx/matrix.mtx").touch()
    done = snakemake("--dry-run", f"results/{MINE}/prepared.h5ad", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "    input: tenx\n" in done.stdout + done.stderr


def test_no_labels_run_what_depends_on_labels(in_finished):
    assert planned_rules(with_value("dataset/label_key", None)) == both(PREPARE, EXTEND)


@pytest.mark.parametrize("section", SECTIONS)
def test_another_value_for_one_data_set(in_finished, section):
    key = next(key for key in keys() if key.startswith(f"{section}/"))
    value, rules = CHANGES[key]
    assert planned_rules(with_value(key, value, own=True)) == rules


def test_values_that_change_places_run_what_depends_on_them(in_finished):
    config = with_value("prepare/validation", SCHEMA["$defs"]["prepare"]["properties"]["test"]["default"])
    config["prepare"]["test"] = SCHEMA["$defs"]["prepare"]["properties"]["validation"]["default"]
    assert planned_rules(config) == both(PREPARE, EXTEND)


def test_defaults_that_are_written_out_in_any_order_run_nothing(in_finished):
    config = copy.deepcopy(CONFIG)
    for section in SECTIONS:
        defaults = {key: value["default"] for key, value in SCHEMA["$defs"][section]["properties"].items()}
        of_data_set = config["datasets"][MINE].pop(section, {})
        config["datasets"][MINE][section] = dict(reversed((defaults | config.get(section, {}) | of_data_set).items()))
    assert planned_rules(config) == {}


FILE_KEYS = [key for key, (value, _) in CHANGES.items() if value in FILES] + ["prepare/genes"]


@pytest.mark.parametrize("key", FILE_KEYS)
def test_missing_file_is_reported_where_old_results_exist(in_finished, key):
    with pytest.raises(MissingInputException, match=r"no such file\.txt"):
        planned_rules(with_value(key, "no such file.txt"))


def test_another_number_of_cells_where_jobs_generate_together(tmp_path, monkeypatch):
    arguments = ["--snakefile", ROOT / "Snakefile", "--set-scatter", "generate=3"]
    finish(tmp_path, CONFIG, *arguments, files=[tmp_path / name for name in FILES])
    assert not list(tmp_path.rglob("*-of-3.h5ad"))
    monkeypatch.chdir(tmp_path)
    assert planned_rules(CONFIG, n_jobs=3) == {}
    gathered = both(GENERATE_BOTH | {"merge", "merge_flat"}, GENERATE | {"merge"})
    assert planned_rules(with_value("generate/n_cells", 12), n_jobs=3) == gathered


# ---- as a module of another workflow


MODULE = """
configfile: "config/config.yaml"


module bdm:
    snakefile:
        "{root}/workflow/Snakefile"
    config:
        config["bdm"]
{prefix}

use rule * from bdm as bdm_*


rule all:
    default_target: True
    input:
        rules.bdm_all.input,
        "own.txt",


rule own:
    output:
        "own.txt",
    shell:
        "touch {{output}}"


rule other:
    output:
        temp("{folder}other.h5ad"),
    shell:
        "touch {{output}}"
"""


OF_MODULE = with_value("addition/path", "other.h5ad")


@pytest.fixture(scope="module", params=["", "in here/"], ids=["itself", "prefix"])
def importer(request, tmp_path_factory) -> tuple[Path, str]:
    """Snakefile of a finished workflow that uses this one as a module, and the prefix of its files."""
    folder = tmp_path_factory.mktemp("importer")
    prefix = f'    prefix:\n        "{request.param}"' if request.param else ""
    (folder / "Snakefile").write_text(MODULE.format(root=ROOT, folder=request.param, prefix=prefix))
    files = [folder / request.param / name for name in FILES if name != "other.h5ad"]
    finish(folder, {"bdm": OF_MODULE}, files=files)
    assert not (folder / request.param / "other.h5ad").exists()
    return folder / "Snakefile", request.param


def test_finished_module_has_nothing_to_do(importer, monkeypatch):
    monkeypatch.chdir(importer[0].parent)
    assert planned_rules({"bdm": OF_MODULE}, snakefile=importer[0]) == {}


@pytest.mark.parametrize("key", ["prepare/genes", "hierarchy/tree", "generate/n_cells"])
def test_another_value_runs_what_depends_on_it_in_the_module(importer, monkeypatch, key):
    monkeypatch.chdir(importer[0].parent)
    value, rules = CHANGES[key]
    assert planned_rules({"bdm": with_value(key, value, config=OF_MODULE)}, snakefile=importer[0]) == rules


@pytest.mark.parametrize("key", FILE_KEYS)
def test_missing_file_of_the_module_is_reported(importer, monkeypatch, key):
    monkeypatch.chdir(importer[0].parent)
    with pytest.raises(MissingInputException, match=rf"(?m)^ +{importer[1]}no such file\.txt$"):
        planned_rules({"bdm": with_value(key, "no such file.txt", config=OF_MODULE)}, snakefile=importer[0])
