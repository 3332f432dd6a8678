"""Workflow, scripts and tables of the benchmarks."""

import importlib.metadata
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from itertools import product
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from anndata import AnnData
from packaging.requirements import Requirement
from scipy import sparse

from bdm.cli import app
from bdm.data.modalities import from_mudata
from bdm.data.prepare import prepare
from bdm.settings import PrepareSettings

pytestmark = pytest.mark.nightly

PROJECT = Path(__file__).parents[1]
ROOT = PROJECT / "benchmarks"
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
METHODS, SEEDS, DATASETS = (CONFIG[key] for key in ("methods", "seeds", "datasets"))
PEERS = {name: method for name, method in METHODS.items() if method and method.get("peer")}
MODULES = {"scdesigner": "scdesigner", "scvi-tools": "scvi"}  # by package
TARGETS = [*CONFIG["comparisons"], *CONFIG["studies"]]
TARGETS += ["responses", "relations", "time", "space", "space_cost", "audit", "power"]
COMMANDS = typer.main.get_command(app).commands
B, NK = "CD19+ B", "CD56+ NK"


def load(path: str) -> ModuleType:
    """Import a script of the benchmarks."""
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(f"benchmarks_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(file.parent)
        spec.loader.exec_module(module)
    return module


def run(path: str, *arguments: str | Path) -> None:
    """Run a script in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [path, *map(str, arguments)])
        patch.syspath_prepend((ROOT / path).parent)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / path), run_name="__main__")
    assert not ended.value.code


def bdm(*arguments: str | Path) -> None:
    app(list(map(str, arguments)), standalone_mode=False)


# ---- workflow


def plan(folder: Path, *arguments: str) -> str:
    """Plan the workflow in a new folder."""
    (folder / "config.yaml").write_text((ROOT / "config.yaml").read_text())
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("benchmarks")
    cells = folder / "my cells"
    cells.mkdir()
    for name, dataset in DATASETS.items():
        of = dataset or {}
        (cells / of.get("file", f"{of.get('of', name)}.h5ad")).touch()
    settings = [f"data={cells}", "peer_python=/my peers/bin/python"]
    return plan(folder, "--printshellcmds", "--config", *settings, "--", *TARGETS)


@pytest.fixture(scope="module")
def commands(planned) -> list[list[str]]:
    """Planned shell commands, without redirections."""
    shell_commands = re.findall(r"^Shell command: \(?(.*?)\)? > \S+ 2>&1$", planned, flags=re.MULTILINE)
    parts = [shlex.split(part) for command in shell_commands for part in command.split(" && ")]
    return [[word for word in part if not word.startswith("PYTHONPATH=")] for part in parts]


def test_dry_run_plans_all_runs(planned):
    jobs = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", planned, flags=re.MULTILINE)}
    n_seeds = {name: 1 if part.get("one_seed") else len(SEEDS) for name, part in CONFIG["comparisons"].items()}
    n_runs = {name: n_seeds[name] * len(part["datasets"]) for name, part in CONFIG["comparisons"].items()}
    assert jobs["evaluate"] == sum(n_runs.values()), planned
    assert jobs["study"] == len(SEEDS) * sum(len(study["datasets"]) for study in CONFIG["studies"].values())
    n_audits = len(CONFIG["audit"]["datasets"]) * len(SEEDS)
    assert (jobs["audit_own"], jobs["audit_peer"]) == (n_audits, n_audits * (len(CONFIG["audit"]["methods"]) - 1))
    assert jobs["collect"] == len(TARGETS) - 1


def test_commands_accept_the_arguments_of_rules(commands):
    """The plan runs each script with a command line."""
    parsed = {}
    for program, *arguments in commands:
        if program == "bdm":
            COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
        elif (path := arguments[0]).startswith(f"{ROOT}/scripts"):
            if path not in parsed:
                module = load(path)
                group = getattr(module, "app", None) or typer.Typer()
                if hasattr(module, "main"):
                    group.command()(module.main)
                parsed[path] = typer.main.get_command(group)
            parsed[path].make_context(path, arguments[1:])
    assert parsed.keys() == {str(path) for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text()}


def test_peers_with_a_package_are_pinned_and_run_in_their_environment(commands):
    with_package = {method["script"] for method in METHODS.values() if method and {"package", "code"} & set(method)}
    pythons = {Path(c[1]).stem: c[0] for c in commands if c[1].startswith(f"{ROOT}/methods")}
    assert with_package < pythons.keys()
    expected = {name: "/my peers/bin/python" if name in with_package else "python" for name in pythons}
    assert pythons == expected
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = dict(requirement.split("==") for requirement in extras.pop("peers"))
    assert set(pinned) == set(MODULES) == {peer["package"] for peer in PEERS.values() if "package" in peer}
    assert not pinned.keys() & {Requirement(line).name for lines in extras.values() for line in lines}
    assert all("==" in requirement for requirement in extras["diffusion-peers"])


# ---- cells


@pytest.fixture(scope="module")
def prepared(example_cells) -> AnnData:
    settings = PrepareSettings(label_key="bulk_labels", n_genes=100, keep_genes="none", min_cells_per_type=20, test=0.2)
    return prepare(example_cells, settings)


@pytest.fixture(scope="module")
def prepared_file(prepared, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "prepared.h5ad"
    prepared.write_h5ad(path)
    return path


# ---- methods and studies, on cells and models of few steps


@pytest.fixture(scope="module")
def trained(prepared_file, tmp_path_factory) -> Path:
    """Run with briefly trained models."""
    folder = tmp_path_factory.mktemp("trained")
    autoencoder, hierarchy = folder / "autoencoders/branched", folder / "hierarchies/branched.json"
    for path in (autoencoder, hierarchy, folder / "models/branched"):
        path.parent.mkdir()
    bdm("autoencoder", prepared_file, autoencoder, "--n-steps", 60)
    bdm("hierarchy", autoencoder, hierarchy, "--n-bootstrap", 2)
    steps = ("--n-steps", 20, "--width", 8)
    bdm("train", autoencoder, hierarchy, folder / "models/branched", "--prior", "diffusion", *steps)
    for name in ("resampled", "negative_binomial"):
        run(f"methods/{name}.py", "train", prepared_file, folder / f"models/{name}")
    return folder


@pytest.mark.parametrize(
    ("script", "model"),
    [
        ("gaussian", "branched"),
        ("resampled", "resampled"),
        ("thinned", "resampled"),
        ("negative_binomial", "negative_binomial"),
    ],
)
def test_methods_generate_as_many_cells_of_each_type(trained, prepared_file, prepared, tmp_path, script, model):
    model = trained / f"models/{model}"
    run(f"methods/{script}.py", "generate", model, tmp_path / "a.h5ad", "--cells-like", prepared_file)
    adata = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert list(adata.var_names) == list(prepared.var_names)
    assert adata.obs["cell_type"].value_counts().to_dict() == prepared.obs["cell_type"].value_counts().to_dict()
    real, made = (np.log1p(of[of.obs["cell_type"] == B].X.toarray().mean(axis=0)) for of in (prepared, adata))
    assert np.corrcoef(real, made)[0, 1] > 0.9


def with_other(cells: AnnData, modality: str, path: Path, *, n_features: int) -> Path:
    """Prepare cells with a second modality, copied from some genes."""
    features = cells[:, :n_features].copy()
    features.var_names = [f"F{number}" for number in range(n_features)]
    cells = from_mudata({"rna": cells, modality: features}, cells.obs[[]])
    prepare(cells, PrepareSettings(label_key="bulk_labels", n_genes=100, keep_genes="none", test=0.2)).write_h5ad(path)
    return path


@pytest.fixture(scope="module")
def proteins_file(example_cells, tmp_path_factory) -> Path:
    return with_other(example_cells, "prot", tmp_path_factory.mktemp("proteins") / "cells.h5ad", n_features=6)


@pytest.fixture(scope="module")
def peaks_file(example_cells, tmp_path_factory) -> Path:
    return with_other(example_cells, "atac", tmp_path_factory.mktemp("peaks") / "cells.h5ad", n_features=30)


WITH_PACKAGE = [name for name, peer in PEERS.items() if {"package", "code"} & set(peer)]
STEPS = {
    "cfgen": "--autoencoder-epochs 2 --epochs 2",
    "scdiffusion": "--autoencoder-steps 2 --steps 2 --classifier-steps 2",
}
CELLS_OF_PEERS = {"scvi-modalities": ["proteins_file", "peaks_file"]}


@pytest.mark.parametrize(
    ("name", "cells"), [(name, cells) for name in WITH_PACKAGE for cells in CELLS_OF_PEERS.get(name, ["prepared_file"])]
)
def test_peers_with_a_package(name, cells, request, tmp_path):
    peer = PEERS[name]
    module = MODULES[peer["package"]] if "package" in peer else {"scdiffusion": "cell_train"}.get(name, name)
    pytest.importorskip(module, reason="see the extras peers and diffusion-peers in pyproject.toml")
    cells, script = request.getfixturevalue(cells), f"methods/{peer['script']}.py"
    steps = STEPS.get(name, "--epochs 2")
    run(script, "train", cells, tmp_path / "model", *f"{steps} {peer.get('train', '')}".split())
    run(script, "generate", tmp_path / "model", tmp_path / "cells.h5ad", "--cells-like", cells)
    assert anndata.read_h5ad(tmp_path / "cells.h5ad").shape == anndata.read_h5ad(cells).shape


@pytest.fixture(scope="module")
def of_donors(tmp_path_factory) -> Path:
    """Folder of a model and its prepared cells, from twelve different donors."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("donors")
    donor = np.repeat(np.arange(12), 40)
    cell_type = np.where(rng.random(480) < rng.uniform(0.3, 0.7, 12)[donor], "A", "B")
    rates = np.exp(rng.normal(0, 0.4, (12, 60)))[donor] * np.where(cell_type == "A", 1, 1.5)[:, None]
    obs = pd.DataFrame({"donor": [f"d{i}" for i in donor], "cell_type": cell_type})
    counts = sparse.csr_matrix(rng.poisson(2 * rates).astype(np.float32))
    AnnData(counts, obs=obs.set_index(obs.index.astype(str))).write_h5ad(folder / "cells.h5ad")
    keys = ["--label-key", "cell_type", "--donor-key", "donor", "--genes", "all"]
    bdm("prepare", folder / "cells.h5ad", folder / "prepared.h5ad", *keys, "--test", 0.2)
    half = ["--column", "donor", "--fraction", "0.5"]
    run("scripts/cells.py", "hold-out", *half, folder / "prepared.h5ad", folder / "half.h5ad")
    bdm("autoencoder", folder / "half.h5ad", folder / "autoencoder", "--n-steps", 60, "--sub-populations", "none")
    bdm("hierarchy", folder / "autoencoder", folder / "hierarchy.json", "--n-bootstrap", 2)
    bdm("train", folder / "autoencoder", folder / "hierarchy.json", folder / "model", "--n-steps", 20, "--width", 8)
    return folder


@pytest.fixture(scope="module")
def inputs(trained, of_donors, example_cells, prepared, prepared_file, tmp_path_factory) -> dict[str, Path]:
    """Input files of studies by name."""
    folder = tmp_path_factory.mktemp("inputs")
    cells = prepared.copy()
    cells.obs["major"] = cells.obs["cell_type"].astype(str).str.contains("T|NK").map({True: "T or NK", False: "other"})
    cells.obs["condition"] = np.random.default_rng(0).choice(["CTRL", "STIM"], cells.n_obs)
    cells.write_h5ad(folder / "labelled.h5ad")
    few = prepared[prepared.obs["cell_type"].isin([B, NK, "Dendritic", "CD14+ Monocyte"])].copy()
    few.obs["cell_type"] = few.obs["cell_type"].cat.remove_unused_categories()
    few.write_h5ad(folder / "few.h5ad")
    prepared[prepared.obs["split"] != "test"].write_h5ad(folder / "training.h5ad")
    every = PrepareSettings(label_key="bulk_labels", n_genes=100, min_cells_per_type=60, test=0.2)
    prepare(example_cells, every).write_h5ad(folder / "every.h5ad")
    return {
        "prepared": prepared_file,
        "training": folder / "training.h5ad",
        "labelled": folder / "labelled.h5ad",
        "few": folder / "few.h5ad",
        "every": folder / "every.h5ad",
        "model": trained / "models/branched",
        "autoencoder": trained / "autoencoders/branched",
        "tree": trained / "hierarchies/branched.json",
        "half": of_donors / "half.h5ad",
        "of_donors": of_donors / "model",
    }


# Inputs, options, and a heading of the tables of each study
STUDIES = {
    "ambient": ("prepared model", "--share 0 --share 0.2", "| data | planted | real, known profile | real, empty"),
    "augment": ("prepared model", "", "## random forest\n\n| data | cell_type | n_train | n_test | plain |"),
    "designs": ("half of_donors", "--n-donors 3 --n-splits 1 --n-splits-composition 2", "| real donors | 3 | deseq2 |"),
    "donors": ("half of_donors", "", "| blood | learned |"),
    "extend": ("few few", "--every 4 --n-steps 40", "# By type\n\n## Energy distance"),
    "few_cells": (
        "prepared",
        f"--cell-type '{NK}' --n-cells 12",
        "## F1 of a linear classifier\n\n| data | n_train | balanced | branched |",
    ),
    "genes": ("every", "", "| blood | every gene |"),
    "network": ("prepared autoencoder", "--n-cells 300", "| blood | 300 | network |"),
    "paper": ("prepared autoencoder", "--n-steps 20 --every 9", "| blood | branched, shared ancestors |"),
    "pbmc3k_protocol": ("prepared training", "", "| method | RBF-MMD | W2 |"),
    "populations": (
        "prepared autoencoder",
        "--label bulk_labels --resolution 1",
        "## blood\n\n| method | groups | bulk",
    ),
    "predicted_output": ("labelled", "--min-cells 10 --n-top-genes 20", "| data | means | method | common_degs |"),
    "properties": ("prepared training", "--n-repeats 1", "over properties.\n\n| data | training |"),
    "recovered": ("prepared training", "", "## labels recovered\n\n| data | floor | training |"),
    "self_fit": ("prepared", "", "## Forest AUC\n\n| data | floor | self-fit | posterior samples | generated |"),
    "transmute": ("prepared model model", f"--pair '{B}={NK}'", f"| {B} | {NK} |"),
    "tree": ("labelled tree", "--label major", "| blood | all groups |"),
    "verdicts": ("prepared", "--n-splits 1 --n-faulty 1", "## Large differences\n\n| method |"),
}


@pytest.mark.parametrize("name", STUDIES)
def test_study_writes_rows_and_tables(inputs, tmp_path, name):
    needed, options, heading = STUDIES[name]
    if name == "populations":
        pytest.importorskip("igraph")
    out = tmp_path / f"blood/0/{name}.csv"
    out.parent.mkdir(parents=True)
    run(f"scripts/{name}.py", *(inputs[of] for of in needed.split()), out, *shlex.split(options))
    run("scripts/collect.py", name, tmp_path, out.parent)
    assert pd.read_csv(tmp_path / f"{name}.csv")["value"].notna().any()
    assert heading in (tmp_path / f"{name}.md").read_text()


def test_doublets_of_real_cells_are_sums_of_two_cells(example_cells):
    cells, script = example_cells.copy(), load("scripts/doublets.py")
    cells.obs["cell_type"] = cells.obs["bulk_labels"]
    droplets = script.real_droplets(cells, 0.2, np.random.default_rng(0))
    is_doublet = (droplets.obs["kind"] != "").to_numpy()
    added = droplets.X - cells[droplets.obs_names].X
    assert (added.sum(axis=1).A1 > 0).tolist() == is_doublet.tolist()
    assert script.score_doublets(droplets, 0.2)["auc"].between(0.4, 1).all()


def test_peers_are_audited_on_the_folds_of_an_audit(of_donors, tmp_path):
    folder, prepared = tmp_path / "blood/0", of_donors / "prepared.h5ad"
    bdm("audit", prepared, folder / "folds", "--folds-only", "--n-folds", 2)
    options = []
    for fold in (1, 2):
        members, model = folder / f"folds/fold-{fold}.h5ad", folder / f"folds/resampled-{fold}"
        run("methods/resampled.py", "train", members, model)
        run("methods/resampled.py", "generate", model, folder / f"{fold}.h5ad", "--cells-like", members)
        options += ["--cells", folder / f"{fold}.h5ad"]
    bdm("audit", prepared, folder / "audits/resampled", *options, "--n-folds", 2)
    run("scripts/collect.py", "audit", tmp_path, folder)
    rows = pd.read_csv(tmp_path / "audit.csv")
    nearest = rows[(rows["method"] == "resampled") & (rows["score"] == "nearest")]
    assert nearest["value"].tolist() == [1, 1]  # in both folds
    assert "| blood | resampled | 1.00 (1.00 to 1.00) |" in (tmp_path / "audit.md").read_text()


@pytest.mark.parametrize(
    ("score", "options", "baseline"),
    [
        ("nodes", "--node a", "nearest"),
        ("types", "--cell-type b", "splines"),
    ],
)
def test_generated_cells_at_left_out_times_beat_a_baseline(tmp_path, score, options, baseline):
    run("scripts/simulated.py", "lineage", tmp_path / "cells.h5ad")
    out = tmp_path / "simulated/0/time.csv"
    out.parent.mkdir(parents=True)
    run("scripts/times.py", tmp_path / "cells.h5ad", out, "--time-key", "minutes", *options.split())
    run("scripts/collect.py", "time", tmp_path, out.parent)
    rows = pd.read_csv(tmp_path / "time.csv")
    value = rows[rows["score"] == score].groupby("method")["value"].mean()
    assert value["bdm"] < value[baseline]
    assert f"## {score.title()}\n\n| data | left_out | halves | bdm |" in (tmp_path / "time.md").read_text()


def test_cells_in_space_beat_cells_without_coordinates(tmp_path):
    """Surfaces of simulated genes, Moran's I and a left-out block are nearer to the truth."""
    raw, prepared, out = tmp_path / "cells.h5ad", tmp_path / "prepared.h5ad", tmp_path / "simulated/0/space.csv"
    run("scripts/simulated.py", "fields", raw, "--n-cells=600", "--n-genes=40", "--n-types=2")
    prepare(anndata.read_h5ad(raw), PrepareSettings(genes="all", spatial_key="spatial", test=0.2)).write_h5ad(prepared)
    out.parent.mkdir(parents=True)
    run("scripts/space.py", prepared, out, "--n-blocks=1")
    run("scripts/collect.py", "space", tmp_path, out.parent)
    rows = pd.read_csv(tmp_path / "space.csv")
    values = rows.pivot_table("value", "score", "method")
    assert values.loc["moran_slope", "branched"] > 0.2 + values.loc["moran_slope", "without coordinates"]
    assert values.loc["r, long", "branched"] > 0.6
    assert values.loc["block_energy", "branched"] < values.loc["block_energy", "same types, anywhere"]
    assert "# Left-out blocks\n" in (tmp_path / "space.md").read_text()


def test_predicted_responses_beat_unchanged_cells(tmp_path):
    run("scripts/simulated.py", "conditions", tmp_path / "cells.h5ad", "--shared=1", "--n-types=4", "--n-cells=40")
    folder, script = tmp_path / "simulated/0/responses", "scripts/responses.py"
    folder.mkdir(parents=True)
    run(script, "select", tmp_path / "cells.h5ad", folder / "cells.h5ad")
    run(script, "predict", folder / "cells.h5ad", folder / "bdm.h5ad", "--method", "bdm")
    run(script, "score", folder / "cells.h5ad", folder / "bdm.h5ad", folder.parent / "responses.csv")
    run("scripts/collect.py", "responses", tmp_path, folder.parent)
    rows = pd.read_csv(tmp_path / "responses.csv").pivot_table(index="method", columns="score", values="value")
    assert rows.loc["unchanged", "position"] == 1 > 0.8 > rows.loc["bdm", "position"]
    assert "## E-distance\n\n| method | simulated |" in (tmp_path / "responses.md").read_text()


def test_predicted_pairs_beat_the_sum_of_their_parts(tmp_path):
    out = tmp_path / "simulated/0/relations.csv"
    out.parent.mkdir(parents=True)
    run("scripts/relations.py", "pairs", out)
    run("scripts/collect.py", "relations", tmp_path, out.parent)
    rows = pd.read_csv(tmp_path / "relations.csv")
    error = rows[rows["score"] == "error"].groupby("method")["value"].mean()
    assert error["bdm"] < error["sum of parts"] < error["mean of the others"] < 1
    assert "| data | score | bdm | mean of the others |" in (tmp_path / "relations.md").read_text()


def test_atlas_is_simulated_on_disk(tmp_path):
    run("scripts/simulated.py", "atlas", tmp_path / "cells.h5ad", "--n-types", 5, "--n-cells", 3000)
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert (cells.shape, cells.obs["cell_type"].nunique()) == ((3000, 2000), 5)


# ---- tables of comparisons


def write_run(folder: Path, *, energy: float, seconds: float) -> Path:
    """Write the results of a run with the methods `branched` and `scvi`."""
    for name in ("all", "times", "hierarchies", "models/branched"):
        (folder / name).mkdir(parents=True)
    scores = {
        "energy": (0.01, energy, 0.5),
        "f1": (1, 0.9, 0.8),
        "forest_auc": (0.5, 0.52, 0.9),
        "gene_auc": (0.5, 0.6, 0.5),
    }
    rows = [
        ("all", "all", method, score, value, floor)
        for score, (floor, *values) in scores.items()
        for method, value in zip(("branched", "scvi"), values, strict=True)
    ]
    by_type = {"B": (0.1, 0.8, 0.9), "NK": (0.1, 0.6, 0.9), "DC": (energy, -9, 0.4)}
    for name, method in product(by_type, ("branched", "scvi")):
        values = (np.nan, np.nan, 0.2) if (name, method) == ("DC", "scvi") else by_type[name]
        for score, value, floor in zip(("energy", "slope", "f1"), values, by_type[name], strict=True):
            rows.append(("type", name, method, score, value, floor))
    table = pd.DataFrame(rows, columns=["kind", "group", "set", "score", "value", "floor"])
    table.to_csv(folder / "all/scores.csv", index=False)
    (folder / "all/n_cells.csv").write_text("cell_type,test,train\nB,60,100\nNK,8,60\nDC,3,12\n")
    for step in ["autoencoder-branched", "train-branched", "train-scvi", "generate-branched", "generate-scvi"]:
        row = f"{seconds}\t0:00:01\t{len(step)}\t{seconds / 2}"
        (folder / f"times/{step}.tsv").write_text(f"s\th:m:s\tmax_rss\tcpu_time\n{row}\n")
    return folder


TRAINING = ["--training", "branched=autoencoder-branched,train-branched", "--training", "scvi=train-scvi"]


@pytest.fixture
def collected(trained, tmp_path) -> Path:
    """Folder with the tables of two runs."""
    hierarchy = (trained / "hierarchies/branched.json").read_text()
    decision = (trained / "models/branched/decision.csv").read_text()
    for seed, energy, seconds in ((0, 0.2, 10), (1, 0.4, 30)):
        folder = write_run(tmp_path / f"blood/{seed}", energy=energy, seconds=seconds)
        (folder / "hierarchies/branched.json").write_text(hierarchy)
        (folder / "models/branched/decision.csv").write_text(decision)
    run("scripts/collect.py", "all", tmp_path, tmp_path / "blood/0", tmp_path / "blood/1", *TRAINING)
    return tmp_path


def test_rows_are_the_scores_and_costs_of_all_runs(collected):
    rows = pd.read_csv(collected / "all.csv").set_index(["data", "method", "seed", "score"])["value"]
    assert rows["blood", "branched", 1, "energy"] == 0.4
    assert rows["blood", "scvi", 0, "slope_by_type"] == pytest.approx(0.7)
    assert rows["blood", "branched", 0, "energy_frequent"] == 0.1
    assert rows["blood", "branched", 1, "training_seconds"] == 60
    assert rows["blood", "scvi", 1, "training_cpu_seconds"] == 15
    assert rows["blood", "branched", 0, "memory_mb"] == len("autoencoder-branched")


def test_tables_show_means_over_seeds_and_their_range(collected):
    text = (collected / "all.md").read_text()
    assert "## Energy distance\n\n| data | floor | branched | scvi |" in text
    assert "| blood | 0.01 (0.01 to 0.01) | 0.30 (0.20 to 0.40) | 0.50 (0.50 to 0.50) |" in text
    assert "## Training, processor s\n\n| data | branched | scvi |" in text
    assert "| data | branched | scvi |\n| --- | --- | --- |\n| blood | 0/2/0 | 0/0/2 |" in text
    assert "| blood | DC | 12 | 3 | 0.30 (0.20 to 0.40) | 0.30 (0.20 to 0.40) |\n" in text
    assert "kept, branched" in text


# ---- pages


def test_pages_show_the_scores_of_the_benchmark():
    """Forest AUCs by data set in docs/benchmark.md, and their means in the README."""
    files = [PROJECT / "docs/_static" / name for name in ("benchmark.csv", "benchmark_coarse.csv")]
    scores = pd.concat([pd.read_csv(file) for file in files])
    means = scores[scores["score"] == "forest_auc"].groupby(["data", "method"])["value"].mean().unstack()
    methods = ["floor", "branched", "scanvi", "scvi", "scdesigner-library", "negative-binomial"]
    lines = (PROJECT / "docs/benchmark.md").read_text().splitlines()
    rows = [line for line in lines if re.match(r"\| (\w+) \|", line) and line.split()[1] in means.index]
    assert len(rows) == 16
    for row in rows:
        name, *values = (value.strip() for value in row.strip("|").split("|"))
        assert values == [f"{mean:.2f}" for mean in means.loc[name, methods]], name
    means = means.loc[pd.read_csv(files[0])["data"].unique(), methods]
    of_donors = means.index.str.endswith("_by_donor")
    for part in (means[~of_donors], means[of_donors]):
        assert " | ".join(f"{mean:.2f}" for mean in part.mean()) in (PROJECT / "README.md").read_text()
