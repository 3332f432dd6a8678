import json
import math
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from urllib.parse import quote

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.sourcecache import HostingProviderFile, LocalGitFile
from snakemake.utils import validate


def source(folder):
    """Return the source from which pip installs bdm: the checkout, git repository or release of these rules."""
    if isinstance(folder, HostingProviderFile):
        return f"git+https://{folder.host}/{folder.repo}@{folder.ref}"
    if isinstance(folder, LocalGitFile):
        return f"git+file://{quote(folder.repo_path)}@{folder.ref}"
    root = Path(str(folder)).resolve().parents[1]
    return str(root) if (root / "pyproject.toml").is_file() else f"bdm=={version('bdm')}"


SOURCE = source(workflow.current_basedir)

# The conda environment of the rules installs bdm from this source (envs/bdm.post-deploy.sh), whose messages name keys.
os.environ.update(BDM_SOURCE=SOURCE, BDM_IN_WORKFLOW="1")

# An installed bdm contains the workflow in bdm/project
PACKAGE = "../../.." if SOURCE.startswith("bdm==") else "../../bdm"


# Messages for invalid settings: rejection(), split_rejection(), donors_rejection() and others
include: f"{PACKAGE}/_core/validation.py"
# Columns and values of cells, without reading their counts: obs_columns() and others
include: f"{PACKAGE}/data/header.py"


GENERATED = "results/{dataset}/generated.h5ad"

SCHEMA = json.loads(Path(workflow.source_path("../schemas/config.schema.json")).read_text(encoding="utf-8"))

PARTS = {name: part["properties"] for name, part in SCHEMA["$defs"].items()}
SECTIONS = [name for name, value in PARTS["dataset"].items() if "$ref" in value]
# Named objects in sections, such as the designs of `simulate`
NAMED = [(section, key) for section in SECTIONS for key, value in PARTS[section].items() if "propertyNames" in value]
# Settings that name files, and their values that are no files
FILES = {
    key if part == "dataset" else f"{part}/{key}": kind.get("words", [])
    for part, properties in PARTS.items()
    for key, value in properties.items()
    for kind in value.get("anyOf", [value])
    if kind.get("format") == "path"
}
# Keys without an option in any command, and keys with options of another name
OF_RULES = {"path", "parent", "run"}
IN_SPACE = ["spatial_key", "section_key"]  # options of prepare alone
FLAGS = {"n_cells": "cells", "cell_types": "cell_type"}


# Return the path of an input file as rules see it, with the prefix of a module.
in_place = partial(workflow.modifier.modify_path, property="input")


def path_with_bdm(path):
    """Return PATH with the ``bdm`` next to the Python that runs Snakemake, if installed there.

    Its folder comes last, so that other rules keep their programs, or first if PATH has another ``bdm``.
    """
    folder = os.path.dirname(sys.executable)
    if not shutil.which("bdm", path=folder):
        return path
    program = shutil.which("bdm", path=path)
    if program is None:
        return os.pathsep.join([path, folder])
    return path if os.path.samefile(os.path.dirname(program), folder) else os.pathsep.join([folder, path])


# The conda environment of a rule comes before this PATH.
os.environ.update(PATH=path_with_bdm(os.environ.get("PATH", os.defpath)))


def complete(config):
    """Complete the settings of each data set: its own, then those for all data sets, then the defaults."""
    check(config, set_default=False)
    datasets = {
        str(name): dataset | {section: config.get(section, {}) | dataset.get(section, {}) for section in SECTIONS}
        for name, dataset in config["datasets"].items()
    }
    completed = check(config | {"datasets": datasets}, set_default=True)
    for dataset in completed["datasets"].values():  # YAML reads some names as numbers
        for section, of in NAMED:
            dataset[section][of] = {str(name): content for name, content in dataset[section][of].items()}
    for name, dataset in completed["datasets"].items():
        check_beyond_schema(name, dataset)
    for name in list(completed["datasets"]):
        completed["datasets"].update(grown(name, completed["datasets"][name]))
    return completed


def grown(name, dataset):
    """Return data sets for the additions to a model, each with the settings of the first and its parent."""
    previous, datasets = name, {}
    for addition, content in dataset["extend"]["additions"].items():
        datasets[f"{name}+{addition}"] = dataset | {"addition": {**content, "parent": previous}}
        previous = f"{name}+{addition}"
    return datasets


def parent(dataset):
    """Return the data set with the model that is extended."""
    return settings["datasets"][dataset]["addition"]["parent"]


def one_of(names):
    """Return the constraint of a wildcard to these names; without names, nothing matches."""
    return "|".join(map(re.escape, names)) or "(?!)"


def names_in(path):
    """List the names that the data sets have at a path, such as ``simulate/designs``."""
    section, of = path.split("/")
    return sorted({name for dataset in settings["datasets"].values() for name in dataset[section][of]})


def check(config, *, set_default):
    """Reject a configuration that violates the schema, with a one-line error."""
    try:
        validate(config, "../schemas/config.schema.json", set_default=set_default)
    except WorkflowError as error:
        problem = error.__context__
        place = ".".join(map(str, problem.absolute_path)) or "top level"
        reject(place, sentence(problem))
    return config


def check_beyond_schema(name, dataset):
    """Reject infinite numbers, 3.0 for 3, and contradictory settings, which pass the JSON schema."""
    prepare, donor_key = dataset["prepare"], dataset["donor_key"]
    problems = [
        (f"{section}.{key}", rejection(key, value, PARTS[section][key]))
        for section in SECTIONS
        for key, value in dataset[section].items()
        if isinstance(value, float) and not is_finite_number(value, PARTS[section][key])
    ]
    problems += [
        ("batch_key", keys_rejection(*keys_of(dataset))),
        ("prepare", split_rejection(prepare["validation"], prepare["test"])),
        ("prepare", donors_rejection(prepare["min_donors"], donor_key)),
    ]
    files = [(path, lookup(path, within=dataset, default=None)) for path in FILES]
    for section, of in (("simulate", "designs"), ("extend", "additions")):
        files += [(f"{section}/{of}/{key}", content["path"]) for key, content in dataset[section][of].items()]
    problems += [
        (
            ".".join(Path(path).parts),
            f"Snakemake cannot read a file with braces in its path, {str(value)!r}; rename it.",
        )
        for path, value in files
        if has_braces(value)
    ]
    for place, problem in problems:
        reject(f"datasets.{name}.{place}", problem)


def keys_of(dataset):
    """List the arguments that name columns of obs, with their columns."""
    groups = [(key, dataset[key]) for key in ("label_key", "batch_key", "donor_key")]
    return groups + [("covariate_key", key) for key in dataset["covariate_key"]]


def is_finite_number(value, schema):
    """Return whether a number is finite and may have decimals."""
    return math.isfinite(value) and any(kind.get("type") == "number" for kind in schema.get("anyOf", [schema]))


def has_braces(file):
    """Return whether a path has braces, which Snakemake reads as a wildcard."""
    return bool(set("{}") & set(str(file or "")))


def reject(place, problem):
    """Reject a configuration with a problem at a place; arguments in Python become keys."""
    if problem:
        message = re.sub(r"`(\w+)=`", r"\1", problem).replace("=None`", ": null`")
        raise WorkflowError(f"Configuration, {place}: {message} All keys are described in config/README.md.")


def sentence(problem):
    """Return why a value violates the schema, in the words of bdm."""
    while problem.parent is not None:  # of several alternatives, report the setting itself
        problem = problem.parent
    out_of_bounds = any(fault.validator in BOUNDS for fault in (problem, *problem.context))
    schema, value = problem.schema, problem.instance
    if problem.validator == "additionalProperties":
        unknown = next(name for name in value if name not in schema["properties"])
        return unknown_setting(unknown, schema["properties"])
    if problem.validator == "required":
        return f"There is no {next(name for name in problem.validator_value if name not in value)}, which is required."
    if problem.validator == "pattern":
        return f"The name {value!r} is not allowed; use letters, digits, `_` and `-`."
    names = [name for name in problem.absolute_path if isinstance(name, str)]
    if problem.validator == "minProperties":
        return f"{names[-1]} is empty; name at least one."
    return rejection(names[-1] if names else "configuration", value, schema, out_of_bounds=out_of_bounds)


def in_archive(path, category, result, *, caption=None, of="{dataset}"):
    """Mark an output for the archive of ``snakemake --report``; the caption has its name by default."""
    text = f"../report/{caption or Path(path).stem}.rst"
    return report(path, caption=text, category=category, subcategory="{dataset}", labels={"result": f"{of}: {result}"})


def setting(path):
    """Return a params function for a setting, such as ``hierarchy/threshold``; ``path`` may have wildcards."""
    return lambda wildcards: setting_of(wildcards.dataset, path.format(**dict(wildcards.items())))


def setting_of(dataset, path):
    """Return a setting of a data set; faster than ``lookup``, which searches all data sets."""
    value = settings["datasets"][dataset]
    for key in path.split("/"):
        value = value[key]
    return value


def options(*paths, seed=True, without=()):
    """Return a params function for the command-line options of the settings at these paths, and the seed.

    The options are one text, sorted by name, because Snakemake reruns a rule only if one of its parameters has a new
    value, and would miss values that two parameters exchange. It also ignores values that are computed from input
    files, so files have options of their own; see :func:`file_options`.
    """

    def text(wildcards):
        items = [(path.split("/")[0], *item) for path in paths for item in values_at(path, wildcards).items()]
        number = Counter(key for _, key, _ in items)
        values = {key if number[key] == 1 else f"{section}_{key}": value for section, key, value in items}
        values |= {"seed": settings["seed"]} if seed else {}
        flags = (flag(key, values[key]) for key in sorted(values) if key not in without)
        return " ".join(filter(None, flags))

    return text


def values_at(path, wildcards):
    """Return the settings at a path without files, by key; the path ``dataset`` has the keys of the data set."""
    content = settings["datasets"][wildcards.dataset] if path == "dataset" else setting(path)(wildcards)
    content = content if isinstance(content, dict) else {Path(path).name: content}
    prefix = "" if path == "dataset" else f"{path}/"
    return {
        key: value
        for key, value in content.items()
        if key not in OF_RULES and not named_files(wildcards.dataset, prefix + key)
    }


def flag(key, value):
    """Return a setting as a command-line option, repeated for several values; empty if unset or a mapping."""
    name = f"--{FLAGS.get(key, key).replace('_', '-')}"
    if isinstance(value, bool):
        return name if value else ""
    values = value if isinstance(value, list) else [] if value is None or isinstance(value, dict) else [value]
    return " ".join(f"{name} {shlex.quote(str(value))}" for value in values)


def file_options(wildcards, input):
    """Return the command-line options for files of settings, which are named inputs of the rule."""
    names = sorted({Path(path).name for path in FILES} - {"path"})
    return " ".join(flag(name, str(input.get(name))) for name in names if input.get(name))


def optional_file(path):
    """Return an input function for the file that a setting names, if any."""
    return lambda wildcards: named_files(wildcards.dataset, path)


def files_in_folder(path):
    """Return an input function for the files in the folder that a setting names.

    Snakemake checks only the time of a folder, which stays the same when a file in it changes. Folders that a rule makes
    need no list of files.
    """

    def files(wildcards):
        folder = setting(path)(wildcards).rstrip("/")
        location = Path(in_place(folder))
        if is_made(in_place(folder)) or not location.is_dir():
            return []
        return sorted(f"{folder}/{file.name}" for file in location.iterdir() if file.is_file() and not has_braces(file))

    return files


def named_files(dataset, path):
    """List the file that a setting names, if any."""
    section, _, _ = path.partition("/")
    if path not in FILES or section not in settings["datasets"][dataset]:  # additions lack some sections
        return []
    value = setting_of(dataset, path)
    return [] if value is None or value in FILES[path] else [value]


def absent_files(wildcards):
    """List files of the configuration that neither exist nor are made by a rule.

    Snakemake keeps old results if their input is missing, so a mistyped path would go unnoticed. As input of the target
    ``all``, a missing file ends the run.
    """
    files = {file for dataset in settings["datasets"] for path in FILES for file in named_files(dataset, path)}
    files |= {design["path"] for of in settings["datasets"].values() for design in of["simulate"]["designs"].values()}
    return [file for file in map(in_place, sorted(files)) if not os.path.exists(file) and not is_made(file)]


def is_made(file):
    """Return whether a rule makes the file, in this workflow or in one that imports it."""
    return any(rule.is_producer(file) for rule in workflow.rules)


def cells_like(wildcards, input):
    """Return the option to generate as many cells of each type as the data have, unless a number is set."""
    return "" if setting("generate/n_cells")(wildcards) else f"--cells-like {input.cells}"


def evaluated_transmutations(wildcards):
    """List the evaluations of all transmutations of a data set."""
    folder = f"results/{wildcards.dataset}/transmutation"
    return [f"{folder}/{name}/transmutation.json" for name in setting("transmute/transmutations")(wildcards)]


def if_run(section, result):
    """Return an input function for a result of a section that runs on request; extended models have none."""

    def files(wildcards):
        runs = wildcards.dataset in FITTED and setting_of(wildcards.dataset, f"{section}/run")
        return [f"results/{wildcards.dataset}/{result}"] if runs else []

    return files


def named_cells(datasets, path, folder):
    """List the files of cells that data sets name at a path, such as ``simulate/designs``."""
    return [f"results/{name}/{folder}/{each}.h5ad" for name in datasets for each in setting_of(name, path)]


def design_file(wildcards):
    """Return the file of a design."""
    return setting("simulate/designs")(wildcards)[wildcards.design]["path"]


def extension_report(wildcards):
    """List the report of the extension, for extended models."""
    return [f"results/{wildcards.dataset}/extension/extension_report.json"] if wildcards.dataset in EXTENDED else []


settings = complete(config)
FITTED = [name for name, dataset in settings["datasets"].items() if "addition" not in dataset]
EXTENDED = [name for name, dataset in settings["datasets"].items() if "addition" in dataset]
