from pathlib import Path
from shlex import quote

from snakemake.exceptions import WorkflowError

if "data" not in config:
    raise WorkflowError("Name the folder with the data sets: --config data=FOLDER; see README.md.")

SCRIPTS = f"{workflow.basedir}/scripts"
SEEDS = [int(seed) for seed in config["seeds"]]
DATASETS = {name: dataset or {} for name, dataset in config["datasets"].items()}
TRANSMUTED = config["transmute"]["datasets"]
ANNOTATED = config["tree"]["datasets"]
COARSE = {name: dataset or {} for name, dataset in config["coarse"]["datasets"].items()}
UNLABELLED = config["populations"]["datasets"]
JUDGED = config["verdicts"]["datasets"]
BY_DONOR = config["designs"]["datasets"]
# Designs of donors that differ by chance alone, in words
MADE_DONORS = {"donors": "generated donors", "pairs": "generated pairs", "independent": "independent donors"}
WITH_DONORS = {name: dataset or {} for name, dataset in config["donors"]["datasets"].items()}
HALVED = config["artefacts"]["datasets"]
# Keys with which models are fitted to donors, and the model from which each set of new donors is drawn
FITTED_BY = {"donors": "--donor-key donor", "batches": "--batch-key donor"}
DRAWN_BY = {"learned": "donors", "batches": "batches", "alike": "donors"}
# Folds of the audit of all methods
FOLDS = range(1, config["audit"]["n_folds"] + 1)
# Options of the audits of bdm: with its defaults, the model is attacked, too
AUDITED_OWN = {"branched": ""} | {name: f"--cells-only {of}" for name, of in config["audit"]["settings"].items()}
MADE_RARE = config["augment"]["made_rare"]
FEW_DONORS = {name: dataset or {} for name, dataset in config["few_donors"]["datasets"].items()}
DESCRIBED = JUDGED | UNLABELLED | ANNOTATED | DATASETS | TRANSMUTED | HALVED | COARSE
HELD_OUT = {name: dataset for name, dataset in DESCRIBED.items() if "hold_out" in dataset}
METHODS = {name: {"model": name} | (method or {}) for name, method in config["methods"].items()}


def at_thresholds(values):
    """Give the methods that draw from hierarchies of other thresholds, with and without transport."""
    methods = {}
    for value in values:
        model, shared = f"threshold-{value}", {"generate": "--shared-ancestors"}
        methods[model] = shared | {"model": model, "hierarchy": f"--threshold {value}"}
        methods[f"{model}-no-transport"] = shared | {"model": model, "script": "no_transport"}
    return methods


THRESHOLDS = at_thresholds(config["threshold"]["values"])
KNOWN = METHODS | THRESHOLDS


def own_models(*, peer):
    """Name the methods that train a model of their own: bdm's, or the peers."""
    return [name for name, method in KNOWN.items() if method["model"] == name and method.get("peer", False) == peer]


def methods_with(data, seed):
    """Name the methods to be compared that run with a data set and a seed."""
    if data in COARSE:
        compared = {name: METHODS[name] for name in config["coarse"]["methods"]}
    else:
        compared = {name: method for name, method in METHODS.items() if data in method.get("datasets", DATASETS)}
    return [name for name, method in compared.items() if int(seed) == SEEDS[0] or not method.get("one_seed")]


def program(method):
    """Give what runs a method: bdm, or the method's own script with the same commands, in its environment."""
    of = KNOWN.get(method, {})  # nothing of bdm with other settings in an audit
    script = of.get("script")
    python = quote(config["peer_python"]) if "package" in of else "python"
    return f"{python} {workflow.basedir}/methods/{script}.py" if script else "bdm"


def options(command, own=None):
    """Give the options of a command: for all runs first, then of a method or data set."""
    return f"{config.get('options', {}).get(command, '')} {(own or {}).get(command, '')}".strip()


def autoencoder_of(model):
    """Name the model whose autoencoder a model uses: its own if it has options of it, or that of `branched`."""
    return model if "autoencoder" in KNOWN[model] else "branched"


def training_steps(method):
    """Name the steps that a method trains in, as the files of their times are named."""
    model = KNOWN[method]["model"]
    bdm_steps = [f"autoencoder-{autoencoder_of(model)}", f"hierarchy-{model}"]
    steps = [] if model in own_models(peer=True) else bdm_steps
    return [*steps, f"train-{model}"]


def compare(wildcards, input):
    """Name the cells to compare with the cells of `branched`."""
    return [f"--compare {Path(cells).stem}={cells}" for cells in input.compared]
