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
    """Name the methods that train a model of their own: bdm's, or the peers."""
    return [name for name, method in METHODS.items() if method["model"] == name and method.get("peer", False) == peer]


def program(method):
    """Give what runs a method: bdm, or the method's own script with the same commands, in its environment."""
    script = METHODS[method].get("script")
    python = quote(config["peer_python"]) if "package" in METHODS[method] else "python"
    return f"{python} {workflow.basedir}/methods/{script}.py" if script else "bdm"


def options(command, *owners):
    """Give the options of a command: for all runs first, then of a method, study or data set."""
    given = [config.get("options", {}), *owners]
    return " ".join(of[command] for of in given if command in of)


def autoencoder_of(model):
    """Name the model whose autoencoder a model uses: the one it names, its own if it has options, or `branched`'s."""
    return METHODS[model].get("latents", model if "autoencoder" in METHODS[model] else "branched")


def hierarchy_of(model):
    """Name the model whose tree a model uses: its own if it has options of it, or that of its latents."""
    return model if "hierarchy" in METHODS[model] else autoencoder_of(model)


def training_steps(method):
    """Name the steps that a method trains in, as the files of their times are named."""
    model = METHODS[method]["model"]
    bdm_steps = [f"autoencoder-{autoencoder_of(model)}", f"hierarchy-{hierarchy_of(model)}"]
    steps = [] if model in own_models(peer=True) else bdm_steps
    return [*steps, f"train-{model}"]


def n_threads(wildcards):
    """Give the number of threads of the steps of a data set."""
    return DATASETS[wildcards.data].get("threads", 1)


def runs_of(part):
    """Give the data sets and seeds of a comparison or study."""
    seeds = SEEDS[:1] if part.get("one_seed") else SEEDS
    return [{"data": data, "seed": seed} for data in part["datasets"] for seed in seeds]
