import json
import math
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from functools import partial
from itertools import product
from pathlib import Path
from urllib.parse import quote

import yaml
from snakemake.exceptions import WorkflowError
from snakemake.logging import logger
from snakemake.sourcecache import HostingProviderFile, LocalGitFile
from snakemake.utils import validate


# The sentences in which settings are rejected: rejection(), split_rejection(), donors_rejection() and others
include: "../../bdm/_core/validation.py"
# What is found in cells before they are read: obs_columns() and others
include: "../../bdm/data/header.py"


GENERATED = "results/{dataset}/generated.h5ad"
GENERATED_FLAT = "results/{dataset}/flat/generated.h5ad"

SCHEMA = json.loads(Path(workflow.source_path("../schemas/config.schema.json")).read_text(encoding="utf-8"))

# Settings that name files, and the values with which they name none
FILES = {
    "path": [],
    "addition/path": [],
    "labels": [],
    "prepare/genes": ["seurat_v3", "all"],
    "prepare/keep_genes": ["markers"],
    "hierarchy/tree": [],
    "lineage/tree": [],
}
# Keys that no command has as an option, and those that are options of another name
OF_RULES = {"path", "parent", "run", "flat"}
FLAGS = {"n_cells": "cells", "cell_types": "cell_type"}
SECTIONS = [
    "prepare",
    "autoencoder",
    "hierarchy",
    "train",
    "extend",
    "generate",
    "transmute",
    "respond",
    "lineage",
    "simulate",
    "evaluate",
    "interpret",
    "audit",
    "card",
]


def source(folder):
    """Name what pip installs bdm from: the checkout or the git repository that has the folder of these rules."""
    if isinstance(folder, HostingProviderFile):
        return f"git+https://{folder.host}/{folder.repo}@{folder.ref}"
    if isinstance(folder, LocalGitFile):
        return f"git+file://{quote(folder.repo_path)}@{folder.ref}"
    return str(Path(str(folder)).resolve().parents[1])


# Gives the path of an input file as rules have it: behind the prefix of a module.
in_place = partial(workflow.modifier.modify_path, property="input")

# The conda environment of the rules installs bdm from there, see envs/bdm.post-deploy.sh.
os.environ.update(BDM_SOURCE=source(workflow.current_basedir))


def path_with_bdm(path):
    """Give PATH with the ``bdm`` that is installed next to the Python that runs Snakemake, if there is one.

    Its folder comes last, so that other rules keep their programs, or first where another ``bdm`` comes before it.
    """
    folder = os.path.dirname(sys.executable)
    if not shutil.which("bdm", path=folder):
        return path
    found = shutil.which("bdm", path=path)
    if found is None:
        return os.pathsep.join([path, folder])
    return path if os.path.samefile(os.path.dirname(found), folder) else os.pathsep.join([folder, path])


# The conda environment of a rule comes before all of it.
os.environ.update(PATH=path_with_bdm(os.environ.get("PATH", os.defpath)))


def complete(config):
    """Give each data set all settings: its own, else those for all data sets, else the defaults."""
    check(config, set_default=False)
    datasets = {
        str(name): dataset | {section: config.get(section, {}) | dataset.get(section, {}) for section in SECTIONS}
        for name, dataset in config["datasets"].items()
    }
    completed = check(config | {"datasets": datasets}, set_default=True)
    for dataset in completed["datasets"].values():  # names may be numbers in YAML, and are texts in the names of files
        for section, of in (
            ("extend", "additions"),
            ("simulate", "designs"),
            ("transmute", "transmutations"),
            ("respond", "predictions"),
            ("lineage", "reconstructions"),
        ):
            dataset[section][of] = {str(name): content for name, content in dataset[section][of].items()}
    for name, dataset in completed["datasets"].items():
        check_beyond_schema(name, dataset)
    for name in list(completed["datasets"]):
        completed["datasets"].update(grown(name, completed["datasets"][name]))
    return completed


def grown(name, dataset):
    """Give the data sets that a data set's model grows by, one addition after the other, with its settings."""
    parents, found = name, {}
    for addition, of in dataset["extend"]["additions"].items():
        found[f"{name}+{addition}"] = dataset | {"addition": {**of, "parent": parents}}
        parents = f"{name}+{addition}"
    return found


def parent(dataset):
    """Name the data set whose model is extended."""
    return settings["datasets"][dataset]["addition"]["parent"]


def one_of(names):
    """Give the constraint for a wildcard to be one of some names; of none if there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def names_in(path):
    """List the names that the data sets have at a path, such as ``simulate/designs``."""
    section, of = path.split("/")
    return sorted({name for dataset in settings["datasets"].values() for name in dataset[section][of]})


def check(config, *, set_default):
    """Reject a configuration that the schema does not allow, in one sentence."""
    try:
        validate(config, "../schemas/config.schema.json", set_default=set_default)
    except WorkflowError as error:
        problem = error.__context__
        place = ".".join(map(str, problem.absolute_path)) or "top level"
        reject(place, sentence(problem))
    return config


def check_beyond_schema(name, dataset):
    """Reject what a JSON schema allows: infinite numbers, 3.0 for 3, and settings that contradict each other."""
    prepare, hierarchy, donor_key = dataset["prepare"], dataset["hierarchy"], dataset["donor_key"]
    problems = [
        (f"{section}.{key}", rejection(key, value, SCHEMA["$defs"][section]["properties"][key]))
        for section in SECTIONS
        for key, value in dataset[section].items()
        if isinstance(value, float) and not is_finite_number(value, SCHEMA["$defs"][section]["properties"][key])
    ]
    problems += [
        ("batch_key", keys_rejection(*keys_of(dataset))),
        ("prepare", split_rejection(prepare["validation"], prepare["test"])),
        ("prepare", donors_rejection(prepare["min_donors"], donor_key)),
        ("evaluate.flat", flat_rejection(dataset)),
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


def flat_rejection(dataset):
    """Phrase why there is nothing to compare with a flat model; None if there is."""
    if dataset["evaluate"]["flat"] and dataset["train"]["prior"] == "mixture":
        same = "flat is true, but with the prior mixture, a model without a hierarchy generates the same cells"
        return f"{same}; leave out flat, or name another prior in the section train."
    return None


def keys_of(dataset):
    """List the arguments that name columns of obs, with the column of each."""
    groups = [(key, dataset[key]) for key in ("label_key", "batch_key", "donor_key")]
    return groups + [("covariate_key", key) for key in dataset["covariate_key"]]


def is_finite_number(value, schema):
    """Return whether a number is finite, and may be other than a whole one."""
    return math.isfinite(value) and any(kind.get("type") == "number" for kind in schema.get("anyOf", [schema]))


def has_braces(file):
    """Return whether a path, if there is one, has braces, which Snakemake takes for a wildcard."""
    return bool(set("{}") & set(str(file or "")))


def reject(place, problem):
    """Reject a configuration if there is a problem at a place; what is an argument in Python is a key here."""
    if problem:
        said = re.sub(r"`(\w+)=`", r"\1", problem).replace("=None`", ": null`")
        raise WorkflowError(f"Configuration, {place}: {said} All keys are described in config/README.md.")


def sentence(problem):
    """Phrase why the schema does not allow a value, as bdm does."""
    while problem.parent is not None:  # of one alternative of several
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
    """Mark an output for the archive of ``snakemake --report``, with a caption that has its name or another."""
    text = f"../report/{caption or Path(path).stem}.rst"
    return report(path, caption=text, category=category, subcategory="{dataset}", labels={"result": f"{of}: {result}"})


def setting(path):
    """Give a params function: the data set's setting at ``path``, such as ``hierarchy/threshold``, or with wildcards."""
    return lambda wildcards: setting_of(wildcards.dataset, path.format(**dict(wildcards.items())))


def setting_of(dataset, path):
    """Give a setting of a data set, without a search through all others, as ``lookup`` makes."""
    found = settings["datasets"][dataset]
    for key in path.split("/"):
        found = found[key]
    return found


def options(*paths, seed=True, without=()):
    """Give a params function: the settings at the paths as options of a command, which have their names, and the seed.

    They are one text, in the order of the names: Snakemake runs a rule again if its parameters take values that none of
    them had before, but ignores values that pass from one parameter to another. It ignores values that are computed
    from input files, too, so files are not among these options; see :func:`file_options`.
    """

    def text(wildcards):
        found = [(path.split("/")[0], *each) for path in paths for each in values_at(path, wildcards).items()]
        number = Counter(key for _, key, _ in found)
        named = {key if number[key] == 1 else f"{section}_{key}": value for section, key, value in found}
        named |= {"seed": settings["seed"]} if seed else {}
        flags = (flag(key, named[key]) for key in sorted(named) if key not in without)
        return " ".join(filter(None, flags))

    return text


def values_at(path, wildcards):
    """Give the settings of the data set at a path that are no files, by their keys; ``dataset`` for its own keys."""
    found = settings["datasets"][wildcards.dataset] if path == "dataset" else setting(path)(wildcards)
    found = found if isinstance(found, dict) else {Path(path).name: found}
    own = "" if path == "dataset" else f"{path}/"
    return {
        key: value
        for key, value in found.items()
        if key not in OF_RULES and not named_files(wildcards.dataset, own + key)
    }


def flag(key, value):
    """Write a setting as an option of a command, once for each of several values; nothing if it is unset, or objects."""
    name = f"--{FLAGS.get(key, key).replace('_', '-')}"
    if isinstance(value, bool):
        return name if value else ""
    values = value if isinstance(value, list) else [] if value is None or isinstance(value, dict) else [value]
    return " ".join(f"{name} {shlex.quote(str(one))}" for one in values)


def file_options(wildcards, input):
    """Give the options of a command that name files of settings, which are inputs of their names."""
    names = sorted({Path(path).name for path in FILES} - {"path"})
    return " ".join(flag(name, str(input.get(name))) for name in names if input.get(name))


def optional_file(path):
    """Give an input function: the file that the data set's setting names, if it names one."""
    return lambda wildcards: named_files(wildcards.dataset, path)


def files_in_folder(path):
    """Give an input function: the files in the folder that the data set's setting names, if it names one.

    Snakemake looks at the time of a folder alone, which stays the same when a file in it changes. It knows the time of a
    folder that a rule makes, whose files may not be there yet.
    """

    def files(wildcards):
        folder = setting(path)(wildcards).rstrip("/")
        found = Path(in_place(folder))
        if is_made(in_place(folder)) or not found.is_dir():
            return []
        return sorted(f"{folder}/{file.name}" for file in found.iterdir() if file.is_file() and not has_braces(file))

    return files


def named_files(dataset, path):
    """List the file that a setting of the data set names, or nothing if it names none."""
    section, _, _ = path.partition("/")
    if path not in FILES or section not in settings["datasets"][dataset]:  # an addition has some sections alone
        return []
    value = setting_of(dataset, path)
    return [] if value is None or value in FILES[path] else [value]


def absent_files(wildcards):
    """List the files in the configuration that do not exist and that no rule makes.

    Snakemake keeps results whose input is missing, and reports that nothing is to be done where a path is mistyped
    next to old results. Missing input of the target ``all`` ends the run.
    """
    files = {file for dataset in settings["datasets"] for path in FILES for file in named_files(dataset, path)}
    files |= {design["path"] for of in settings["datasets"].values() for design in of["simulate"]["designs"].values()}
    return [file for file in map(in_place, sorted(files)) if not os.path.exists(file) and not is_made(file)]


def is_made(file):
    """Whether this workflow, or the workflow that uses it as a module, has a rule for the file."""
    return any(rule.is_producer(file) for rule in workflow.rules)


def cells_like(wildcards, input):
    """Give the flag to generate as many cells of each type as the data have, unless there is a number."""
    return "" if setting("generate/n_cells")(wildcards) else f"--cells-like {input.cells}"


def flat_cells(wildcards):
    """Name the cells of the flat model, where there is to be one; there is none that has been extended."""
    fits = wildcards.dataset in FITTED and setting("evaluate/flat")(wildcards)
    return [GENERATED_FLAT.format(dataset=wildcards.dataset)] if fits else []


def evaluated_transmutations(wildcards):
    """Name the evaluations of all transmutations of a data set."""
    folder = f"results/{wildcards.dataset}/transmutation"
    return [f"{folder}/{name}/transmutation.json" for name in setting("transmute/transmutations")(wildcards)]


def measured_responses(wildcards):
    """Name the responses of a data set to conditions, where they are to be measured; extended models have none."""
    runs = wildcards.dataset in FITTED and setting("respond/run")(wildcards)
    return [f"results/{wildcards.dataset}/responses/responses.json"] if runs else []


def predicted_cells(wildcards):
    """Name the cells of all data sets that are predicted in another condition."""
    return [
        f"results/{name}/predicted/{prediction}.h5ad"
        for name in FITTED
        for prediction in settings["datasets"][name]["respond"]["predictions"]
    ]


def measured_lineage(wildcards):
    """Name the lineage of a data set, where it is to be measured; extended models have none."""
    runs = wildcards.dataset in FITTED and setting("lineage/run")(wildcards)
    return [f"results/{wildcards.dataset}/lineage/lineage.json"] if runs else []


def reconstructed_cells(wildcards):
    """Name the cells of all data sets that are reconstructed along their lineage."""
    return [
        f"results/{name}/reconstructed/{reconstruction}.h5ad"
        for name in FITTED
        for reconstruction in settings["datasets"][name]["lineage"]["reconstructions"]
    ]


def simulated_cells(wildcards):
    """Name the cells of the designs of all data sets."""
    return [
        f"results/{name}/simulated/{design}.h5ad"
        for name, dataset in settings["datasets"].items()
        for design in dataset["simulate"]["designs"]
    ]


def design_file(wildcards):
    """Name the file of a design."""
    return setting("simulate/designs")(wildcards)[wildcards.design]["path"]


def audit_result(wildcards):
    """Name the audit of a data set, where one is to run; extended models have none."""
    runs = wildcards.dataset in FITTED and setting("audit/run")(wildcards)
    return [f"results/{wildcards.dataset}/audit/summary.json"] if runs else []


def extension_report(wildcards):
    """Name the report of the extension, which extended models have."""
    return [f"results/{wildcards.dataset}/extension/extension_report.json"] if wildcards.dataset in EXTENDED else []


settings = complete(config)
FITTED = [name for name, dataset in settings["datasets"].items() if "addition" not in dataset]
EXTENDED = [name for name, dataset in settings["datasets"].items() if "addition" in dataset]
