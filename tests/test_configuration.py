"""Every key of the configuration makes a finished workflow run again what depends on it, and nothing else."""

import contextlib
import copy
import io
import os
import re
import shlex
import time
from pathlib import Path

import pytest
from snakemake.api import SnakemakeApi
from snakemake.exceptions import MissingInputException
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings
from test_workflow import ROOT, SCHEMA, SECTIONS, quick_plans, snakemake, write_config

# A data set, and the one that it grows to, which has its settings.
MINE, GROWN = "mine", "mine+more"
FILES = ["cells.h5ad", "more.h5ad", "other.h5ad", "labels.csv", "genes.txt", "tree.nwk", "lineage.nwk"]
FILES += ["design.yaml", "other.yaml", "features.csv"]
CONFIG = {
    "datasets": {
        MINE: {
            "path": "cells.h5ad",
            "donor_key": "person",
            "extend": {"additions": {"more": {"path": "more.h5ad"}}},
            "transmute": {"transmutations": {"there": {"to": "B", "from": ["A"]}, "back": {"to": "A"}}},
            "simulate": {"designs": {"here": {"path": "design.yaml"}}},
            "audit": {"run": True},
            "respond": {"run": True, "predictions": {"those": {"condition": "stim", "cell_types": ["A"]}}},
            "lineage": {"run": True, "reconstructions": {"mother": {"node": "A", "at": "3"}}},
        }
    },
    "train": {"prior": "diffusion"},
    "lineage": {"tree": "lineage.nwk"},
}

OWN = CONFIG["datasets"][MINE]

# Rules with all that depends on them
REPORT = {"report"}
CARD = {"card"}
EVALUATE = {"evaluate"} | CARD | REPORT
INTERPRET = {"interpret"} | REPORT
TRANSMUTATION = {"transmute there", "evaluate_transmuted there"} | REPORT
TRANSMUTATIONS = {"transmute back", "evaluate_transmuted back"} | TRANSMUTATION
NEW_TRANSMUTATION = {"transmute new", "evaluate_transmuted new"} | REPORT
SIMULATE = {"simulate here"}
AUDIT = {"audit"} | CARD | REPORT  # of fitted models, not of extended ones
PREDICTION = {"predict those"}  # of fitted models, likewise
RESPOND = {"respond"} | PREDICTION | CARD | REPORT
RECONSTRUCTION = {"reconstruct mother"}  # likewise
LINEAGE = {"lineage"} | RECONSTRUCTION | REPORT
GENERATE = {"generate"} | EVALUATE | INTERPRET
EXTEND = {"extend"} | GENERATE | TRANSMUTATIONS | SIMULATE
HIERARCHY = {"hierarchy", "train"} | GENERATE | TRANSMUTATIONS | SIMULATE | AUDIT
TRAIN = {"train"} | GENERATE | TRANSMUTATIONS | SIMULATE | AUDIT
AUTOENCODER = {"autoencoder", "hierarchy"} | TRAIN
PREPARE = {"prepare"} | AUTOENCODER


def both(rules: set[str], of_grown: set[str] | None = None) -> dict[str, set[str]]:
    return {MINE: rules, GROWN: of_grown or rules}


# Another value of keys, and the rules that it concerns: of some keys of each section, whose options are one text, and
# of all keys that are no options
CHANGES = {
    "seed": (3, both(PREPARE | PREDICTION | RECONSTRUCTION, EXTEND)),
    "datasets": (
        {**CONFIG["datasets"], "new": {"path": "other.h5ad"}},
        {"new": PREPARE - TRANSMUTATIONS - SIMULATE - AUDIT | CARD | REPORT},
    ),
    "dataset/path": ("other.h5ad", both(PREPARE | RESPOND | LINEAGE, EXTEND)),
    "dataset/label_key": ("auto", both(PREPARE | RESPOND | LINEAGE, EXTEND)),
    "dataset/labels": ("labels.csv", both(PREPARE | RESPOND | LINEAGE, EXTEND)),
    "prepare/genes": ("all", both(PREPARE, EXTEND)),
    "prepare/n_genes": (10, both(PREPARE, EXTEND)),
    "prepare/keep_genes": ("genes.txt", both(PREPARE, EXTEND)),
    "autoencoder/n_latent": (400, both(AUTOENCODER, EXTEND)),
    "hierarchy/threshold": (0.8, both(HIERARCHY, EXTEND)),
    "hierarchy/tree": ("tree.nwk", both(HIERARCHY, EXTEND)),
    "hierarchy/n_bootstrap": (0, both(HIERARCHY, EXTEND)),
    "train/width": (3000, both(TRAIN, EXTEND)),
    "extend/additions": ({"more": {"path": "more.h5ad"}, "new": {"path": "other.h5ad"}}, {"mine+new": EXTEND}),
    "addition/path": ("other.h5ad", {GROWN: EXTEND}),
    "addition/cell_types": (["C"], {GROWN: EXTEND}),
    "generate/n_cells": (12, both(GENERATE)),
    "generate/shared_ancestors": (True, both(GENERATE | AUDIT, GENERATE)),
    "transmute/transmutations": ({**OWN["transmute"]["transmutations"], "new": {"to": "C"}}, both(NEW_TRANSMUTATION)),
    "transmutation/to": ("C", both(TRANSMUTATION)),
    "respond/run": (False, {MINE: CARD | REPORT}),
    "respond/condition_key": (["treatment"], {MINE: RESPOND}),
    "respond/control": ("none", {MINE: RESPOND}),
    "respond/condition_features": ("features.csv", {MINE: RESPOND}),
    "respond/predictions": ({**OWN["respond"]["predictions"], "new": {"condition": "stim"}}, {MINE: {"predict new"}}),
    "prediction/extrapolate": (True, {MINE: PREDICTION}),
    "prediction/cell_types": (["B"], {MINE: PREDICTION}),
    "lineage/run": (False, {MINE: REPORT}),
    "lineage/tree": ("tree.nwk", {MINE: LINEAGE}),
    "lineage/time_key": ("cell_type", {MINE: LINEAGE}),
    "lineage/n_times": (3, {MINE: LINEAGE}),
    "lineage/reconstructions": (
        {**OWN["lineage"]["reconstructions"], "new": {"node": "B"}},
        {MINE: {"reconstruct new"}},
    ),
    "reconstruction/n_cells": (3, {MINE: RECONSTRUCTION}),
    "simulate/designs": ({**OWN["simulate"]["designs"], "new": {"path": "other.yaml"}}, both({"simulate new"})),
    "design/path": ("other.yaml", both(SIMULATE)),
    "evaluate/n_repeats": (500, both(EVALUATE)),
    "interpret/n_genes": (5, both(INTERPRET)),
    "audit/run": (False, {MINE: CARD | REPORT}),
    "audit/n_folds": (2, {MINE: AUDIT}),
    "card/source": ("cell_type", both(CARD)),
}

# Commands of sections of another name, and keys without an option of their name
COMMANDS = {"dataset": "prepare", "addition": "extend", "transmutation": "transmute"}
COMMANDS |= {"prediction": "predict", "reconstruction": "reconstruct"}
NO_OPTIONS = {"path", "run"}
OTHER_OPTIONS = {"n_cells": "cells", "cell_types": "cell_type"}


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
        "prediction": mine["respond"]["predictions"]["those"],
        "reconstruction": mine["lineage"]["reconstructions"]["mother"],
        "design": mine["simulate"]["designs"]["here"],
    }
    if section not in places:
        of_data_set = {"transmutations", "predictions", "reconstructions", "additions", "designs", "run"}
        places[section] = (mine if own or name in of_data_set else config).setdefault(section, {})
    places[section].update({name: value})
    return config


def planned_rules(config: dict, *, snakefile: Path = ROOT / "Snakefile") -> dict[str, set[str]]:
    """Plan the workflow in the working directory: rules that would run, by data set, and what they are of."""
    write_config(Path(), config)
    table = io.StringIO()
    with (
        quick_plans(),
        contextlib.redirect_stdout(table),
        SnakemakeApi(OutputSettings(dryrun=True, quiet={Quietness.ALL})) as api,
    ):
        api.workflow(
            resource_settings=ResourceSettings(), config_settings=ConfigSettings(), snakefile=snakefile
        ).dag().summary()
    planned: dict[str, set[str]] = {}
    for line in table.getvalue().splitlines()[1:]:
        file, _, rule, *_, plan = line.split("\t")
        result = re.search(
            r"results/([^/]+)/(?:(?:transmuted|transmutation|predicted|reconstructed|simulated)/([a-z]+))?", file
        )
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


def another(schema: dict) -> object:
    """Give a value that is not the default."""
    kind = schema.get("anyOf", [schema])[-1 if "enum" in str(schema) else 0]["type"]
    number = default if isinstance(default := schema.get("default"), int | float) and default else 7
    values = {"boolean": True, "integer": number + 1, "number": round(number * 1.01, 4), "array": ["x y"]}
    return values.get(kind, "x")


def test_every_key_is_an_option_of_its_command(in_finished):
    """Where a rule has the options of its section, each reaches the command, with no line for it in the rule."""
    config, expected = copy.deepcopy(CONFIG), set()
    for section, part in SCHEMA["$defs"].items():
        for key, schema in part["properties"].items():
            if key in NO_OPTIONS or "$ref" in schema or schema.get("type") == "object":
                continue
            name = f"{section}/{key}"
            value = CHANGES[name][0] if name in CHANGES else another(schema)
            value = {"dataset/batch_key": "y", "dataset/donor_key": "z"}.get(name, value)
            config = with_value(name, value, config=config)
            flag = f"--{OTHER_OPTIONS.get(key, key).replace('_', '-')}"
            values = [] if value is True else value if isinstance(value, list) else [value]
            expected.add((COMMANDS.get(section, section), " ".join([flag, *map(shlex.quote, map(str, values))])))
    write_config(Path(), config)
    done = snakemake("--dry-run", "--forceall", "--printshellcmds", "--snakefile", ROOT / "Snakefile", cwd=Path())
    commands = re.findall(r"^Shell command: bdm (\S+) (.*) > \S+ 2>&1$", done.stdout, flags=re.MULTILINE)
    missing = {each for each in expected if not any(each[0] == name and each[1] in text for name, text in commands)}
    assert not missing, done.stdout + done.stderr


@pytest.mark.parametrize("key", CHANGES)
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


@pytest.mark.parametrize("section", SECTIONS)
def test_another_value_for_one_data_set(in_finished, section):
    key = next(key for key in keys() if key.startswith(f"{section}/") and key in CHANGES)
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


# ---- as a module of another workflow


MODULE = """
configfile: "config/config.yaml"

module bdm:
    snakefile: "{root}/workflow/Snakefile"
    config: config["bdm"]
{prefix}

use rule * from bdm as bdm_*

rule all:
    default_target: True
    input: rules.bdm_all.input, "own.txt"

rule own:
    output: "own.txt"
    shell: "touch {{output}}"

rule other:
    output: temp("{folder}other.h5ad")
    shell: "touch {{output}}"
"""
OF_MODULE = with_value("addition/path", "other.h5ad")


@pytest.fixture(scope="module", params=["", "in here/"], ids=["itself", "prefix"])
def importer(request, tmp_path_factory) -> tuple[Path, str]:
    """Snakefile of a finished workflow that uses this one as a module, and the prefix of its files."""
    folder = tmp_path_factory.mktemp("importer")
    prefix = f'    prefix: "{request.param}"' if request.param else ""
    (folder / "Snakefile").write_text(MODULE.format(root=ROOT, folder=request.param, prefix=prefix))
    files = [folder / request.param / name for name in FILES if name != "other.h5ad"]
    finish(folder, {"bdm": OF_MODULE}, files=files)
    assert not (folder / request.param / "other.h5ad").exists()
    return folder / "Snakefile", request.param


@pytest.mark.parametrize("key", ["prepare/genes", "hierarchy/tree", "generate/n_cells"])
def test_another_value_runs_what_depends_on_it_in_the_module(importer, monkeypatch, key):
    monkeypatch.chdir(importer[0].parent)
    value, rules = CHANGES[key]
    assert planned_rules({"bdm": with_value(key, value, config=OF_MODULE)}, snakefile=importer[0]) == rules


@pytest.mark.parametrize("key", ["prepare/genes", "addition/path"])
def test_missing_file_of_the_module_is_reported(importer, monkeypatch, key):
    monkeypatch.chdir(importer[0].parent)
    with pytest.raises(MissingInputException, match=rf"(?m)^ +{importer[1]}no such file\.txt$"):
        planned_rules({"bdm": with_value(key, "no such file.txt", config=OF_MODULE)}, snakefile=importer[0])
