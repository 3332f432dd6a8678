from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

if "data" not in config:
    raise WorkflowError("Name the folder with the data sets: --config data=FOLDER; see README.md.")

SCRIPTS = f"{workflow.basedir}/scripts"
SEEDS = [int(seed) for seed in config["seeds"]]
RUN = "results/{data}/{seed}"
DATASETS = {name: dataset or {} for name, dataset in config["datasets"].items()}
METHODS = {name: {"model": name} | (method or {}) for name, method in config["methods"].items()}
COMPARISONS = config["comparisons"]
STUDIES = config["studies"]


def own_models(*, peer):
    """List methods with their own model: peers, or variants of bdm."""
    return [name for name, method in METHODS.items() if method["model"] == name and method.get("peer", False) == peer]


def program(method):
    """Return the program of a method: bdm, or a script with the same commands."""
    script, code = METHODS[method].get("script"), METHODS[method].get("code")
    python = quote(config["peer_python"]) if code or "package" in METHODS[method] else "python"
    path = f"PYTHONPATH={quote(config[code])} " if code else ""
    return f"{path}{python} {workflow.basedir}/methods/{script}.py" if script else "bdm"


def tree_program(method):
    """Return the program that makes the tree of a method."""
    script = METHODS[method].get("tree")
    return f"python {workflow.basedir}/methods/{script}.py" if script else "bdm hierarchy"


def options(command, *owners):
    """Join the options of a command: for all runs, then for its owners."""
    sections = [config.get("options", {}), *owners]
    return " ".join(section[command] for section in sections if command in section)


def autoencoder_of(model):
    """Name the model with the autoencoder of a model: named, its own, or `branched`."""
    return METHODS[model].get("latents", model if "autoencoder" in METHODS[model] else "branched")


def hierarchy_of(model):
    """Name the model with the tree of a model: its own, or that with its autoencoder."""
    return model if {"hierarchy", "tree"} & set(METHODS[model]) else autoencoder_of(model)


def training_steps(method):
    """Name the training steps of a method, as in `times/`."""
    model = METHODS[method]["model"]
    bdm_steps = [f"autoencoder-{autoencoder_of(model)}", f"hierarchy-{hierarchy_of(model)}"]
    steps = [] if model in own_models(peer=True) else bdm_steps
    return [*steps, f"train-{model}"]


def n_threads(wildcards):
    """Return the number of threads for a data set."""
    return DATASETS[wildcards.data].get("threads", 1)


def runs_of(part):
    """List the data sets and seeds of a comparison or study."""
    seeds = SEEDS[:1] if part.get("one_seed") else SEEDS
    return [{"data": data, "seed": seed} for data in part["datasets"] for seed in seeds]
