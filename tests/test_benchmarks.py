import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
import typer
import yaml
from anndata import AnnData
from packaging.requirements import Requirement
from scipy import sparse

from bdm.cli import app
from bdm.data.prepare import prepare
from bdm.evaluation.cells import Cells
from bdm.generation.generate import generated_cells
from bdm.generation.request import request_cells
from bdm.hierarchy.files import read_tree, save_hierarchy
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.model.model import load_model, save_model
from bdm.plotting.style import save_figure
from bdm.plotting.tree import plot_hierarchy
from bdm.power.analysis import PowerAnalysis
from bdm.settings import PrepareSettings
from bdm.transmutation.request import mean as mean_of

pytestmark = pytest.mark.nightly

PROJECT = Path(__file__).parents[1]
ROOT = PROJECT / "benchmarks"
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
METHODS, SEEDS, DATASETS = CONFIG["methods"], CONFIG["seeds"], CONFIG["datasets"]
TRANSMUTED = CONFIG["transmute"]["datasets"]
ANNOTATED = CONFIG["tree"]["datasets"]
COARSE = CONFIG["coarse"]["datasets"]
UNLABELLED = CONFIG["populations"]["datasets"]
JUDGED = CONFIG["verdicts"]["datasets"]
BY_DONOR = CONFIG["designs"]["datasets"]
WITH_DONORS = CONFIG["donors"]["datasets"]
HALVED = CONFIG["artefacts"]["datasets"]
EXTENDED = CONFIG["extend"]["datasets"]
MANY = CONFIG["many"]["runs"]
HELD_OUT = {name: dataset for name, dataset in DATASETS.items() if dataset and "hold_out" in dataset}
OF_ALL = {name: method for name, method in METHODS.items() if (method or {}).get("datasets", True)}  # target `all`
PEERS = {name: method for name, method in METHODS.items() if method and method.get("peer")}
MODULES = {"scdesigner": "scdesigner", "scvi-tools": "scvi"}  # by package
COMMANDS = typer.main.get_command(app).commands
B, NK = "CD19+ B", "CD56+ NK"


def load(path: str) -> ModuleType:
    """Import a script of the benchmarks, as if it were run in its folder."""
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


def command_of(path: str) -> typer.core.TyperCommand:
    """Give the command line of a script with a single command."""
    script = typer.Typer()
    script.command()(load(path).main)
    return typer.main.get_command(script)


def commands_of_peer(script: str) -> dict[str, typer.core.TyperCommand]:
    """Give the commands of a peer's script."""
    module = load(f"methods/{script}.py")
    return typer.main.get_command(module.peer.commands(train=module.train, draw=module.draw)).commands


def skip_without(package: str) -> None:
    """Skip a test of a peer where its package is not installed."""
    pytest.importorskip(MODULES[package], reason=f"{package} is not installed; see the extra peers in pyproject.toml")


# ---- workflow


def plan(folder: Path, *arguments: str) -> str:
    """Plan the workflow in another folder, with the configuration of this one."""
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG, sort_keys=False))
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--dry-run", *arguments]
    done = subprocess.run(command, cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def planned(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("benchmarks")
    cells = folder / "my cells"
    cells.mkdir()
    for name, dataset in {**JUDGED, **UNLABELLED, **DATASETS, **TRANSMUTED, **ANNOTATED, **HALVED, **COARSE}.items():
        (cells / f"{(dataset or {}).get('of', name)}.h5ad").touch()
    for name in {*BY_DONOR, *WITH_DONORS}:
        (cells / f"{name}.h5ad").touch()
    targets = [
        "all",
        "artefacts",
        "atlas",
        "audit",
        "audit_settings",
        "augment",
        "coarse",
        "designs",
        "donors",
        "donor_genes",
        "extend",
        "few_donors",
        "many",
        "network",
        "ontology",
        "peers",
        "populations",
        "power",
        "sharing",
        "threshold",
        "transmute",
        "tree",
        "verdicts",
    ]
    return plan(folder, "--printshellcmds", "--config", f"data={cells}", "--", *targets)


def shell_commands(output: str) -> list[list[str]]:
    """Read the planned shell commands, without where their messages go."""
    commands = re.findall(r"^Shell command: (.*?) > \S+ 2>&1$", output, flags=re.MULTILINE)
    return [shlex.split(command) for command in commands]


def test_dry_run_plans_all_runs(planned):
    jobs = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", planned, flags=re.MULTILINE)}
    n_runs = (len(DATASETS) + len(COARSE)) * len(SEEDS)
    n_transmuted = len(TRANSMUTED) * len(SEEDS)
    prepared = {*JUDGED, *UNLABELLED, *DATASETS, *TRANSMUTED, *ANNOTATED, *HALVED, *COARSE} - HELD_OUT.keys()
    prepared |= {dataset["of"] for dataset in HELD_OUT.values()}
    assert (jobs["evaluate"], jobs["prepare"]) == (n_runs, len(prepared) * len(SEEDS)), planned
    assert jobs["hold_out"] == len(HELD_OUT) * len(SEEDS)
    assert jobs["network_evaluate"] == len(CONFIG["network"]["datasets"]) * len(SEEDS)
    assert jobs["ontology_evaluate"] == len(CONFIG["ontology"]["datasets"]) * len(SEEDS)
    assert jobs["populations_run"] == len(UNLABELLED) * len(SEEDS)
    assert jobs["verdicts_run"] == len(JUDGED) * len(SEEDS)
    n_null = len(BY_DONOR) * len(SEEDS) * len(CONFIG["designs"]["n_donors"])
    assert (jobs["null_tests"], jobs["null_tests_generated"]) == (n_null, 3 * n_null)
    assert jobs["artefacts_doublets"] == jobs["artefacts_ambient"] == len(HALVED) * len(SEEDS)
    assert jobs["power_grid"] == len(CONFIG["power"]["grids"])
    assert jobs["artefacts_cost"] == 2
    assert jobs["artefacts_markers"] == len(HALVED) * len(SEEDS)
    of = CONFIG["audit"]
    n_audits = len(of["datasets"]) * len(SEEDS)
    n_peers = len(set(of["methods"]) & set(PEERS)) * n_audits
    n_own = (1 + len(of["settings"])) * n_audits
    assert (jobs["audit_own"], jobs["audit_peer"]) == (n_own, n_peers)
    assert jobs["audit_train"] == n_peers * of["n_folds"]
    assert jobs["audit_generate"] == (n_peers + n_own) * of["n_folds"]
    assert jobs["audit_scores"] == n_peers + n_own
    of = CONFIG["donor_genes"]
    assert jobs["donor_genes_audit"] == len(of["datasets"]) * len(of["shares"]) * len(SEEDS)
    of = CONFIG["few_donors"]
    n_few = len(of["datasets"]) * len(of["min_donors"]) * len(SEEDS)
    assert jobs["few_donors_scores"] == jobs["few_donors_audit"] == n_few
    assert jobs["donors_scores"] == len(WITH_DONORS) * len(SEEDS)
    assert jobs["donors_fit"] == 2 * jobs["donors_scores"]
    assert jobs["tree_run"] == len(ANNOTATED) * len(SEEDS)
    n_left_out = sum(dataset["n_types"] // dataset.get("every", 1) for dataset in EXTENDED.values())
    assert jobs["extend_one"] == n_left_out * len(SEEDS)
    assert jobs["extend_in_turn"] == jobs["extend_reference"] == len(EXTENDED) * len(SEEDS)
    assert jobs["many_cells"] == jobs["many_interpret"] == len(MANY)
    assert jobs["atlas_cells"] == len(CONFIG["atlas"]["n_cells"])
    assert jobs["many_evaluate"] == jobs["many_cells"] + jobs["atlas_cells"]
    assert jobs["transmute_run"] == n_transmuted
    assert jobs["unseen_run"] == sum("condition" in dataset for dataset in TRANSMUTED.values()) * len(SEEDS)
    assert jobs["train_peer"] == (len(DATASETS) + len(COARSE)) * len(PEERS) * len(SEEDS)
    n_augmented = len(CONFIG["augment"]["datasets"]) + len(CONFIG["augment"]["made_rare"])
    assert jobs["augment_run"] == n_augmented * len(SEEDS)
    assert jobs["sharing_evaluate"] == len(CONFIG["sharing"]["runs"])
    assert jobs["sharing_train"] == jobs["sharing_cost"] == 2 * jobs["sharing_evaluate"]
    threshold = CONFIG["threshold"]
    assert jobs["cost"] == len(threshold["datasets"]) * len(SEEDS) * (len(threshold["values"]) + 1)


def test_methods_of_one_seed_run_with_the_first_alone(planned):
    trained = {command[-1] for command in shell_commands(planned) if command[1].endswith("no_trunk.py")}
    assert trained == {str(SEEDS[0])}


def test_commands_take_what_rules_give(planned):
    commands = shell_commands(planned)
    assert commands
    scripts = {}
    own_peers = {name: commands_of_peer(name) for name in ("negative_binomial", "resampled", "thinned")}
    with_package = {method["script"] for method in METHODS.values() if method and "package" in method}
    for program, *arguments in commands:
        if program == "bdm":
            COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
        elif arguments[0].startswith(f"{ROOT}/scripts"):
            if (path := arguments[0]) not in scripts:
                scripts[path] = command_of(path)
            scripts[path].make_context(path, arguments[1:])
        elif (script := Path(arguments[0]).stem) in own_peers:
            own_peers[script][arguments[1]].make_context(arguments[1], arguments[2:])
        elif script not in with_package:
            COMMANDS[arguments[1]].make_context(arguments[1], arguments[2:])
    assert {Path(path).stem for path in scripts} >= {
        *("table", "peers_table", "thin", "make_rare", "augment", "threshold", "cost"),
        *("join_labels", "transmute", "transmute_table", "unseen"),
        *("leave_out", "hold_out", "tree", "tree_table"),
        *(
            "many_cells",
            "many_table",
            "sharing_table",
            "coarse_table",
            "populations",
            "populations_table",
            "verdicts",
            "verdicts_table",
        ),
        *("atlas", "atlas_table", "network_table", "ontology_table", "null_tests", "null_table", "power_table"),
        *("artefacts_doublets", "artefacts_ambient", "artefacts_markers", "artefacts_table"),
        "audit_scores",
        "audit_table",
        *("donors_split", "donors_generate", "donors_scdesigner", "donors_scores", "donors_table"),
        *("donor_genes", "donor_genes_table"),
        *("clones", "few_donors_scores", "few_donors_table"),
        *("extend_one", "extend_in_turn", "extend_reference", "extend_table"),
    }


def test_all_methods_are_evaluated_together(planned):
    folder = f"results/pbmc3k/{SEEDS[0]}"
    [command] = [c for c in shell_commands(planned) if c[1] == "evaluate" and c[3] == f"{folder}/evaluation"]
    beside = [item for flag, item in pairwise(command) if flag == "--compare"]
    assert command[4] == f"{folder}/cells/branched.h5ad"
    assert beside == [f"{name}={folder}/cells/{name}.h5ad" for name in OF_ALL if name != "branched"]


def test_labels_without_sub_populations_have_an_autoencoder_of_their_own(planned):
    folder = f"results/mop_by_major_type/{SEEDS[0]}"
    commands = [command for command in shell_commands(planned) if any(folder in part for part in command)]
    options = {c[3].rsplit("/", 1)[1]: c[4:6] for c in commands if c[1] == "autoencoder"}
    assert options == {"branched": ["--seed", str(SEEDS[0])], "branched-labels": ["--sub-populations", "none"]}
    used = {c[3].rsplit("/", 1)[1]: c[2].rsplit("/", 1)[1] for c in commands if c[1] == "hierarchy"}
    assert used == {"branched.json": "branched", "flat.json": "branched", "branched-labels.json": "branched-labels"}
    drawn = {c[4].rsplit("/", 1)[1]: c[3].rsplit("/", 1)[1] for c in commands if c[1].endswith("gaussian.py")}
    assert drawn == {"no-network.h5ad": "branched", "gaussian.h5ad": "branched-labels"}
    [evaluated] = [c for c in commands if c[1] == "evaluate"]
    compared = [item.split("=")[0] for flag, item in pairwise(evaluated) if flag == "--compare"]
    assert ["branched", *compared] == CONFIG["coarse"]["methods"]


def test_peers_run_in_the_environment_that_is_named(planned, tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/pbmc3k.h5ad").touch()
    python = "/my peers/bin/python"
    seed = SEEDS[0]
    target = f"results/pbmc3k/{seed}/evaluation/overall.csv"
    settings = ["--config", f"data={tmp_path / 'cells'}", f"peer_python={python}"]
    other = shell_commands(plan(tmp_path, "--printshellcmds", *settings, "--", target))
    default = shell_commands(planned)
    for name, method in OF_ALL.items():
        if not (method and "script" in method):
            continue
        script, cells = str(ROOT / f"methods/{method['script']}.py"), f"results/pbmc3k/{seed}/cells/{name}.h5ad"
        for commands, expected in ((other, python if "package" in method else "python"), (default, "python")):
            [program] = {
                command[0] for command in commands if command[1:3] == [script, "generate"] and cells in command
            }
            assert program == expected


def test_peers_are_pinned_outside_the_environment_of_bdm():
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pinned = dict(requirement.split("==") for requirement in extras.pop("peers"))
    assert set(pinned) == set(MODULES) == {peer["package"] for peer in PEERS.values() if "package" in peer}
    everywhere = [Requirement(line).name for lines in extras.values() for line in lines]
    assert not pinned.keys() & set(everywhere)
    for package, version in pinned.items():
        if importlib.util.find_spec(MODULES[package]):
            assert importlib.metadata.version(package) == version


@pytest.mark.parametrize(("options", "python"), [([], ".venv-peers/bin/python"), (["PEERS=/my/python"], "/my/python")])
def test_make_names_the_python_of_the_peers(options, python):
    command = ["make", "--dry-run", "benchmark", "DATA=cells", *options]
    planned = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True).stdout
    [given] = re.findall(r'peer_python="(.*?)"', planned)
    assert given == str(PROJECT / python)
    assert ("pip install --editable '.[peers]'" in planned) == (not options and not (PROJECT / python).exists())


def test_folder_of_data_sets_has_to_be_named(tmp_path):
    assert "Name the folder with the data sets: --config data=FOLDER" in plan(tmp_path)


def test_readme_explains_every_method():
    listed = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert set(METHODS) <= set(listed)
    scripts = {method["script"] for method in METHODS.values() if method and "script" in method}
    programs = [path for path in (ROOT / "methods").glob("*.py") if "__main__" in path.read_text()]
    assert scripts == {path.stem for path in programs}


# ---- cells


@pytest.fixture(scope="module")
def prepared(example_cells) -> AnnData:
    settings = PrepareSettings(label_key="bulk_labels", n_genes=100, min_cells_per_type=20)
    return prepare(example_cells, settings)


@pytest.fixture(scope="module")
def prepared_file(prepared, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "prepared.h5ad"
    prepared.write_h5ad(path)
    return path


def test_thinned_counts_are_binomial():
    x = sparse.csr_matrix(np.full((400, 50), 20, dtype=np.float32))
    thinned = load("scripts/thin.py").thinned(AnnData(x), 0.1, seed=0).X.toarray()
    assert thinned.mean() == pytest.approx(2, rel=0.02)
    assert thinned.var() == pytest.approx(20 * 0.1 * 0.9, rel=0.05)
    assert (x.data == 20).all()


def test_thinning_leaves_out_what_is_empty(example_cells):
    thin = load("scripts/thin.py")
    thinned, same, other = (thin.thinned(example_cells, 0.01, seed=seed) for seed in (1, 1, 2))
    assert 0 < thinned.n_obs < example_cells.n_obs
    assert (thinned.X.getnnz(axis=1) > 0).all()
    assert (thinned.X.getnnz(axis=0) > 0).all()
    assert (thinned.X.data == np.round(thinned.X.data)).all()
    assert thinned.obs["bulk_labels"].equals(example_cells.obs["bulk_labels"][thinned.obs_names])
    assert (thinned.X != same.X).nnz == 0
    assert list(thinned.obs_names) != list(other.obs_names)


def test_cells_along_a_curve_have_no_clusters_and_the_same_genes_in_any_number():
    continuous = load("scripts/continuous_cells.py")
    for shape in continuous.Shape:
        few, many = (continuous.simulate(shape, n, seed=0) for n in (300, 600))
        assert (many.X != continuous.simulate(shape, 600, seed=0).X).nnz == 0
        assert (many.X != continuous.simulate(shape, 600, seed=1).X).nnz > 0
        means = [np.log1p(np.asarray(cells.X.mean(axis=0)).ravel()) for cells in (few, many)]
        assert np.corrcoef(means)[0, 1] > 0.98
        assert (many.X.getnnz(axis=1) > 0).all()
    x = continuous.positions(continuous.Shape.branching, 3000, np.random.default_rng(0))
    assert np.mean(x[:, 1] == 0) == pytest.approx(continuous.BRANCH_POINT, abs=0.03)
    assert np.mean(x[:, 1] > 0) == pytest.approx(0.6 * continuous.SHARE_OF_FIRST, abs=0.03)
    neighbours = np.linalg.norm(x[:, None] - x, axis=2) + 9 * np.eye(len(x))
    assert neighbours.min(axis=1).max() < 0.2  # no gaps along the curve


def test_type_made_rare_keeps_its_test_cells(prepared):
    rare = load("scripts/make_rare.py").made_rare(prepared, B, 7, seed=0)
    numbers = [pd.crosstab(a.obs["cell_type"], a.obs["split"] == "test") for a in (prepared, rare)]
    assert numbers[1].loc[B].tolist() == [7, numbers[0].loc[B, True]]
    pd.testing.assert_frame_equal(numbers[1].drop(B), numbers[0].drop(B))


def donors(prepared: AnnData) -> AnnData:
    """Give the cells ten donors of two tissues, one of which alone has a cell type."""
    cells = prepared.copy()
    cells.obs["donor"] = [f"donor {i % 10}" for i in range(cells.n_obs)]
    cells.obs["tissue"] = np.where(np.arange(cells.n_obs) % 10 < 5, "blood", "tonsil")
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.add_categories("rare")
    cells.obs.loc[cells.obs["donor"] == "donor 3", "cell_type"] = "rare"
    return cells


def test_donors_are_held_out_whole_and_from_each_group(prepared):
    script, cells = load("scripts/hold_out.py"), donors(prepared)
    for seed in range(5):
        held_out = script.held_out(cells, "donor", "tissue", seed=seed)
        tested = held_out.obs["split"] == "test"
        numbers = pd.crosstab(held_out.obs["donor"], tested)
        assert ((numbers > 0).sum(axis=1) == 1).all()
        assert held_out.obs[tested].groupby("tissue")["donor"].nunique().to_dict() == {"blood": 1, "tonsil": 1}
        assert list(held_out.obs["cell_type"].cat.categories) == list(prepared.obs["cell_type"].cat.categories)
        assert "rare" not in set(held_out.obs["cell_type"])
        validation = held_out.obs_names[held_out.obs["split"] == "validation"]
        assert (cells.obs.loc[validation, "split"] == "validation").all()
        assert held_out.obs["split"].equals(script.held_out(cells, "donor", "tissue", seed=seed).obs["split"])
    assert len({tuple(script.donors_to_test(cells.obs, "donor", None, seed=seed)) for seed in range(5)}) > 1
    assert len(script.donors_to_test(cells.obs, "donor", None, seed=0)) == 2


def leaves(tree: list | str) -> list[str]:
    return [tree] if isinstance(tree, str) else [leaf for branch in tree for leaf in leaves(branch)]


def test_random_tree_is_binary_and_has_all_types():
    random_tree = load("scripts/random_tree.py").random_tree
    types = [f"type {i}" for i in range(12)]
    trees = [random_tree(types, seed=seed) for seed in (1, 1, 2)]
    assert all(sorted(leaves(tree)) == sorted(types) for tree in trees)
    assert trees[0] == trees[1] != trees[2]
    assert json.dumps(trees[0]).count("[") == len(types) - 1


# ---- methods


@pytest.fixture(scope="module")
def trained(prepared_file, tmp_path_factory) -> Path:
    """Folder with an autoencoder, a hierarchy and a model of few steps, with a network on all branches."""
    folder = tmp_path_factory.mktemp("trained")
    autoencoder, hierarchy = folder / "autoencoder", folder / "hierarchy.json"
    for arguments in [
        ["autoencoder", prepared_file, autoencoder, "--n-steps", 60],
        ["hierarchy", autoencoder, hierarchy, "--n-bootstrap", 2],
        ["train", autoencoder, hierarchy, folder / "model", "--n-steps", 60, "--width", 16],
    ]:
        app(list(map(str, arguments)), standalone_mode=False)
    model = load_model(folder / "model")
    model.denoiser.learned.fill_(True)
    save_model(folder / "model", model)
    return folder


def check_generated(path: Path, prepared: AnnData) -> AnnData:
    """Check that a file is what `bdm evaluate` takes, with as many cells of each type as the prepared ones."""
    adata = anndata.read_h5ad(path)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.sum() > 0
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert list(adata.var_names) == list(prepared.var_names)
    assert adata.obs["cell_type"].value_counts().to_dict() == prepared.obs["cell_type"].value_counts().to_dict()
    return adata


@pytest.mark.parametrize("method", ["gaussian", "no_transport"])
def test_methods_that_draw_otherwise(method, trained, prepared_file, prepared, tmp_path):
    arguments = ["generate", trained / "model", tmp_path / "cells.h5ad", "--cells-like", prepared_file]
    run(f"methods/{method}.py", *arguments)
    other = check_generated(tmp_path / "cells.h5ad", prepared)
    app(list(map(str, arguments)), standalone_mode=False)
    own = check_generated(tmp_path / "cells.h5ad", prepared)
    assert not np.allclose(other.obsm["latent"], own.obsm["latent"])


def test_gaussian_has_the_moments_of_the_type(small_model):
    model = small_model.model
    walk = load("methods/gaussian.py").NormalTypes(model.denoiser, model.hierarchy)
    cells = generated_cells(model, request_cells(model, {B: 4000}), walk.settings, seed=0, sampler=walk)
    latent = cells.in_memory().obsm["latent"]
    mean = model.whitening.inverse(mean_of(model, B)[None])[0, :-1]
    np.testing.assert_allclose(latent.mean(axis=0), mean, atol=0.1)


def test_denoisers_without_a_trunk(trained, prepared_file, prepared, tmp_path):
    script, model = "methods/no_trunk.py", tmp_path / "model"
    run(
        *[script, "train", trained / "autoencoder", trained / "hierarchy.json", model],
        *["--n-steps", 20, "--width", 8],
    )
    run(script, "generate", model, tmp_path / "cells.h5ad", "--cells-like", prepared_file)
    check_generated(tmp_path / "cells.h5ad", prepared)


def test_network_is_on_all_branches_of_a_model_that_is_trained_to_the_end(trained, prepared_file, prepared, tmp_path):
    script, model = "methods/everywhere.py", tmp_path / "model"
    run(
        *[script, "train", trained / "autoencoder", trained / "hierarchy.json", model],
        *["--n-steps", 20, "--width", 8],
    )
    assert load_model(model).denoiser.learned.all()
    assert {"closed_form", "network", "gain", "kept"} <= set(pd.read_csv(model / "branches.csv"))
    run(script, "generate", model, tmp_path / "cells.h5ad", "--cells-like", prepared_file)
    check_generated(tmp_path / "cells.h5ad", prepared)


def run_peer(script: str, prepared_file: Path, folder: Path, *options: str) -> AnnData:
    """Train a peer, generate cells twice, and read the cells."""
    run(f"methods/{script}.py", "train", prepared_file, folder / "model", *options)
    return drawn_again(script, folder / "model", prepared_file, folder)


def drawn_again(script: str, model: Path, prepared_file: Path, folder: Path) -> AnnData:
    """Generate cells with a peer twice, check that the cells are the same, and read them."""
    for name in ("a", "b"):
        run(f"methods/{script}.py", "generate", model, folder / f"{name}.h5ad", "--cells-like", prepared_file)
    one, same = (check_generated(folder / f"{name}.h5ad", anndata.read_h5ad(prepared_file)) for name in ("a", "b"))
    assert (one.X != same.X).nnz == 0
    return one


def rows_of(adata: AnnData, cell_type: str) -> np.ndarray:
    return adata[adata.obs["cell_type"] == cell_type].X.toarray()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if "package" in peer])
def test_peers_with_a_package(name, prepared_file, tmp_path):
    skip_without(PEERS[name]["package"])
    options = PEERS[name].get("train", "").split()
    generated = run_peer(PEERS[name]["script"], prepared_file, tmp_path, "--epochs", "150", *options)
    real = anndata.read_h5ad(prepared_file)
    mean = np.log1p(rows_of(generated, B).mean(axis=0))
    alike = {
        str(name): np.corrcoef(mean, np.log1p(rows_of(real, name).mean(axis=0)))[0, 1]
        for name in real.obs["cell_type"].cat.categories
    }
    assert max(alike, key=alike.get) == B
    assert alike[B] > 0.7
    assert rows_of(generated, B).sum(axis=1).mean() == pytest.approx(rows_of(real, B).sum(axis=1).mean(), rel=0.3)


def test_peers_are_not_trained_on_test_cells(prepared_file, prepared, tmp_path):
    run("methods/resampled.py", "train", prepared_file, tmp_path / "model")
    kept = anndata.read_h5ad(tmp_path / "model/cells.h5ad")
    assert set(kept.obs_names) == set(prepared.obs_names[prepared.obs["split"] != "test"])


def test_resampled_cells_are_training_cells_and_thinned_cells_are_parts_of_them(prepared_file, prepared, tmp_path):
    resampled = run_peer("resampled", prepared_file, tmp_path)
    (tmp_path / "thinned").mkdir()
    thinned = drawn_again("thinned", tmp_path / "model", prepared_file, tmp_path / "thinned")
    training = prepared[prepared.obs["split"] != "test"]
    for name in (B, NK):
        real = rows_of(training, name)
        assert (rows_of(resampled, name)[:, None] == real).all(axis=2).any(axis=1).all()
        parts = rows_of(thinned, name)
        assert (parts[:, None] <= real).all(axis=2).any(axis=1).all()
        assert set(parts.sum(axis=1)) <= set(real.sum(axis=1))
        copies = (parts[:, None] == real).all(axis=2).any(axis=1)
        assert copies.mean() < 0.5
    spread = [np.log(rows_of(cells, B).sum(axis=1)).std() for cells in (thinned, training)]
    assert spread[0] == pytest.approx(spread[1], rel=0.3)


def test_negative_binomials_have_the_moments_of_the_cells():
    rng = np.random.default_rng(0)
    negative_binomials = load("methods/negative_binomial.py").NegativeBinomials
    library = rng.lognormal(7, 0.5, size=(4000, 1))
    share, dispersion = rng.dirichlet(np.full(20, 5.0)), np.linspace(0.01, 2, 20)
    counts = rng.negative_binomial(1 / dispersion, 1 / (1 + dispersion * library * share))
    fitted = negative_binomials.fitted(sparse.csr_matrix(counts, dtype=float))
    np.testing.assert_allclose(fitted.share, share, rtol=0.1)
    np.testing.assert_allclose(fitted.dispersion[2:], dispersion[2:], rtol=0.35)
    drawn = fitted.draw(4000, rng)
    np.testing.assert_allclose(drawn.mean(axis=0), counts.mean(axis=0), rtol=0.1)
    np.testing.assert_allclose(drawn.std(axis=0), counts.std(axis=0), rtol=0.3)
    unseen = negative_binomials.fitted(sparse.csr_matrix(counts * (np.arange(20) > 0), dtype=float))
    assert (unseen.draw(50, rng)[:, 0] == 0).all()


def test_negative_binomials_of_each_type(prepared_file, prepared, tmp_path):
    generated = run_peer("negative_binomial", prepared_file, tmp_path)
    training = prepared[prepared.obs["split"] != "test"]
    for name in (B, NK):
        means = [rows_of(cells, name).mean(axis=0) for cells in (generated, training)]
        assert np.corrcoef(np.log1p(means))[0, 1] > 0.95


def test_cost_counts_each_branch_once(trained, tmp_path):
    cost = load("scripts/cost.py")
    cost.main(trained / "model", tmp_path / "cost.csv", cells=3)
    [row] = pd.read_csv(tmp_path / "cost.csv").to_dict("records")
    model = cost.load_model(trained / "model")
    assert row["evaluations"] * len(model.cell_types) == pytest.approx(cost.evaluations(model), rel=1e-4)
    assert 2 < row["evaluations"] < cost.SamplerSettings().n_levels
    assert row["milliseconds"] > 0


# ---- transmutation


def test_labels_are_joined(example_cells, tmp_path):
    cells = example_cells[:4].copy()
    cells.obs["cell_type"], cells.obs["donor"] = ["B", "B", "T", "T"], [1, 2, 1, 2]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    load("scripts/join_labels.py").main(tmp_path / "cells.h5ad", tmp_path / "joined.h5ad", column="donor")
    assert list(anndata.read_h5ad(tmp_path / "joined.h5ad").obs["cell_type"]) == ["B|1", "B|2", "T|1", "T|2"]


def test_pairs_of_a_condition_are_types_with_both():
    names = ["B|CTRL", "B|STIM", "T|STIM", "T|CTRL", "DC|CTRL", "NK|STIM"]
    pairs = load("scripts/transmute.py").pairs_of(names, "CTRL=STIM")
    assert pairs == [("B|CTRL", "B|STIM"), ("T|CTRL", "T|STIM")]


def test_strategies_have_the_moments_that_they_claim(small_model):
    model = small_model.model
    b, nk = (model.autoencoder.populations_of(name)[0] for name in (B, NK))
    here, there = (model.moments.mixture((name,)) for name in (b, nk))
    x = torch.distributions.MultivariateNormal(here.mean, here.covariance).sample((3000,))
    alike = [(B, NK), (B, "Dendritic")]
    found = load("scripts/transmutations.py").strategies(model, model, alike)
    strategies = {name: strategy for name, _, strategy in found}
    after = {name: strategy(x, b, nk, torch.Generator().manual_seed(0)) for name, strategy in strategies.items()}
    for name in set(after) - {"common shift"}:
        assert (after[name].mean(dim=0) - there.mean).norm() < 0.2 * (here.mean - there.mean).norm(), name
    middle = here.mean + (mean_of(model, NK) + mean_of(model, "Dendritic")) / 2 - mean_of(model, B)
    torch.testing.assert_close(after["common shift"].mean(dim=0), middle, atol=0.1, rtol=0)
    torch.testing.assert_close(after["linear map"].T.cov(), there.covariance, atol=0.2, rtol=0)
    torch.testing.assert_close(after["mean difference"].T.cov(), here.covariance, atol=0.2, rtol=0)
    kept = {name: float(torch.corrcoef(torch.stack([x[:, -1], y[:, -1]]))[0, 1]) for name, y in after.items()}
    assert abs(kept["sampled anew"]) < 0.1
    assert min(kept[name] for name in ("branched", "mean difference", "linear map")) > 0.8


def test_transmuted_cells_are_scored_and_reported(trained, prepared_file, tmp_path):
    (tmp_path / "blood/0").mkdir(parents=True)
    scores = tmp_path / "blood/0/transmute.csv"
    models = [trained / "model"] * 2
    run("scripts/transmute.py", prepared_file, *models, scores, "--pair", f"{B}={NK}", "--pair", f"{NK}={B}")
    table = pd.read_csv(scores)
    assert table.groupby(["original_type", "to"]).size().to_dict() == {(B, NK): 10, (NK, B): 10}
    of_b = table[table["original_type"] == B].set_index("set")
    assert of_b.loc["unchanged", "energy"] == of_b["energy"].max()
    assert of_b.loc["branched", "library_kept"] > 0.5 > abs(of_b.loc["sampled anew", "library_kept"])
    load("scripts/transmute_table.py").main(tmp_path, [scores])
    text = (tmp_path / "transmute.md").read_text()
    assert "## blood: transmuted to a type that was seen\n\nMeans over 2 pairs" in text
    assert f"{of_b.loc['branched', 'energy']:.2f}" in text
    assert (tmp_path / "transmute_blood.png").stat().st_size > 10_000


@pytest.mark.slow
def test_types_are_transmuted_to_a_condition_that_they_were_not_seen_in(prepared, tmp_path):
    cells = prepared[prepared.obs["cell_type"].isin([B, "CD14+ Monocyte", "Dendritic"])].copy()
    in_two = np.arange(cells.n_obs) % 2 == 0
    cells.obs["cell_type"] = pd.Categorical(cells.obs["cell_type"].astype(str) + np.where(in_two, "|NEW", "|OLD"))
    counts = cells.X.toarray()
    counts[in_two, :10] += 20  # the condition
    cells.X = sparse.csr_matrix(counts)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["--condition", "OLD=NEW", "--n-steps", "40"]
    run("scripts/unseen.py", tmp_path / "cells.h5ad", tmp_path / "unseen.csv", *arguments)
    table = pd.read_csv(tmp_path / "unseen.csv")
    assert set(table["to"]) == {f"{name}|NEW" for name in (B, "CD14+ Monocyte", "Dendritic")}
    energy = table.pivot(index="original_type", columns="set", values="energy")
    for way in ("like the nearest types", "like the nearest type", "common shift"):
        assert energy[way].mean() < 0.6 * energy["unchanged"].mean()
    r2 = table.pivot(index="original_type", columns="set", values="mean_r2")
    assert (r2["common, gene by gene"] > r2["unchanged"] + 0.3).all()


# ---- tables


def write_run(folder: Path, *, energy: float, seconds: float) -> Path:
    """Write what the workflow leaves of a run with the methods `branched` and `scvi`."""
    overall = folder / "evaluation/overall.csv"
    for name in ["evaluation", "times"]:
        (folder / name).mkdir(parents=True)
    scores = [f"energy,0.01,{energy},0.5", "f1_ratio,1,0.9,0.8", "forest_auc,0.5,0.52,0.9", "gene_auc,0.5,0.6,0.5"]
    overall.write_text("\n".join(["metric,floor,branched,scvi", *scores, ""]))
    frequent = [f"B,20,100,{name},0.1,0.8,0.9\nNK,8,60,{name},0.1,0.6,0.9\n" for name in ["floor", "branched", "scvi"]]
    rare = [*(f"DC,3,12,{name},{energy},-9,0.4\n" for name in ["floor", "branched"]), "DC,3,12,scvi,,,0.2\n"]
    columns = "cell_type,n_test,n_train,set,energy,slope,f1\n"
    overall.with_name("by_type.csv").write_text("".join([columns, *frequent, *rare]))
    for step in ["autoencoder", "train-branched", "train-scvi", "generate-branched", "generate-scvi"]:
        row = f"{seconds}\t0:00:01\t{len(step)}\t{seconds / 2}"
        (folder / f"times/{step}.tsv").write_text(f"s\th:m:s\tmax_rss\tcpu_time\n{row}\n")
    return overall


TRAINING = ["branched=autoencoder,train-branched", "scvi=train-scvi"]


@pytest.fixture
def table(tmp_path) -> Path:
    runs = [
        write_run(tmp_path / "blood/0", energy=0.2, seconds=10),
        write_run(tmp_path / "blood/1", energy=0.4, seconds=30),
    ]
    load("scripts/table.py").main(tmp_path, runs, training=TRAINING)
    return tmp_path


def test_table_has_a_row_for_every_score(table):
    scores = pd.read_csv(table / "table.csv").set_index(["data", "method", "seed", "score"])["value"]
    assert scores["blood", "branched", 1, "energy"] == 0.4
    assert scores["blood", "floor", 0, "energy"] == 0.01
    assert scores["blood", "branched", 0, "slope_by_type"] == pytest.approx(0.7)
    assert scores["blood", "branched", 1, "training_seconds"] == 60
    assert scores["blood", "scvi", 1, "training_seconds"] == 30
    assert scores["blood", "branched", 1, "training_cpu_seconds"] == 30
    assert scores["blood", "branched", 1, "generation_seconds"] == 30
    assert scores["blood", "branched", 1, "generation_cpu_seconds"] == 15
    assert scores["blood", "branched", 1, "memory_mb"] == len("generate-branched")
    assert ("blood", "floor", 0, "training_seconds") not in scores.index


def test_table_for_the_eye(table):
    rows = [line.strip("| ").split(" | ") for line in (table / "table.md").read_text().splitlines()]
    branched, rare = [row for row in rows if row[0] in ("branched", "blood")][:2]
    assert branched[1] == "0.30 (0.20 to 0.40)"
    assert rare == ["blood", "DC", "12", "3", "0.30 (0.20 to 0.40)", "0.30 (0.20 to 0.40)"]
    order = [row[0] for row in rows if row[0] in ("floor", "branched", "scvi")]
    assert order == ["floor", "branched", "scvi"]


def test_table_has_the_scores_of_earlier_runs_as_well(table, tmp_path):
    runs = [write_run(tmp_path / f"again/{path}", energy=0.6, seconds=10) for path in ("blood/1", "skin/0")]
    load("scripts/table.py").main(tmp_path / "again", runs, training=TRAINING, earlier=table / "table.csv")
    scores = pd.read_csv(tmp_path / "again/table.csv")
    energy = scores[(scores["score"] == "energy") & (scores["method"] == "branched")].set_index(["data", "seed"])[
        "value"
    ]
    assert energy.to_dict() == {("blood", 0): 0.2, ("blood", 1): 0.6, ("skin", 0): 0.6}
    assert "| branched | 0.40 (0.20 to 0.60) |" in (tmp_path / "again/table.md").read_text()


def write_properties(overall: Path, *, forest: float) -> Path:
    """Write properties beside other scores: of all cells, and of a type, which are not shown."""
    path = overall.with_name("properties.csv")
    rows = [
        f"{name},{kind},{method},{by},0.5,0.25\n{name},{kind},floor,{by},0.25,0.25"
        for name, kind in [("mean", "gene"), ("library_size", "cell")]
        for method in ("branched", "scvi")
        for by in ("all", "label")
    ]
    path.write_text("\n".join(["property,kind,set,by,value,floor", *rows, f"leiden,use,scvi,all,{forest},0", ""]))
    return path


def test_methods_are_compared_by_score_and_property(table, tmp_path):
    script = load("scripts/peers_table.py")
    paths = [write_properties(tmp_path / f"blood/{seed}/evaluation/overall.csv", forest=seed) for seed in (0, 1)]
    script.main(tmp_path, table / "table.csv", paths, method=["scvi", "branched", "scanvi"])
    text = (tmp_path / "peers.md").read_text()
    assert "## energy distance\n\n| data | floor | scvi | branched |" in text
    assert "| blood | 0.01 (0.01 to 0.01) | 0.50 (0.50 to 0.50) | 0.30 (0.20 to 0.40) |" in text
    assert "## training, processor s\n\n| data | scvi | branched |" in text
    assert "## runs by grade\n\n| data | scvi | branched |\n| --- | --- | --- |\n| blood | 0/0/2 | 0/2/0 |" in text
    assert "## distance of properties\n\n| data | scvi | branched |\n| --- | --- | --- |\n| blood | 0.333 (1) |" in text
    properties = pd.read_csv(tmp_path / "properties.csv")
    assert len(properties) == 2 * 2 * 2 + 2
    beyond = script.excesses(properties).set_index(["method", "property"])["excess"]
    assert beyond["scvi", "leiden"] == 0.5
    assert beyond["branched", "library_size"] == 0.25
    [panel] = [axes for axes in script.figure(properties, ["scvi", "branched"]).axes if axes.images]
    drawn = panel.images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(drawn, [[0.25, 0.25], [0.25, 0.25], [0.5, np.nan]])
    assert (tmp_path / "properties.png").is_file()
    again = tmp_path / "again"
    again.mkdir()
    script.main(again, table / "table.csv", paths[1:], method=["scvi"], earlier=tmp_path / "properties.csv")
    assert len(pd.read_csv(again / "properties.csv")) == len(properties)


def test_runs_are_graded_by_the_worse_score():
    floor = {"forest_auc": 0.45, "gene_auc": 0.55}
    of_methods = {
        ("floor", 0): floor,
        ("floor", 1): floor,
        ("near", 0): {"forest_auc": 0.55, "gene_auc": 0.65},
        ("near", 1): {"forest_auc": 0.63, "gene_auc": 0.5},
        ("mixed", 0): {"forest_auc": 0.55, "gene_auc": 0.6},  # a floor below 0.5 counts as 0.5
        ("mixed", 1): {"forest_auc": 0.55, "gene_auc": 0.7},
        ("once", 1): {"forest_auc": 0.65, "gene_auc": 0.5},
    }
    rows = [
        {"data": "blood", "method": method, "seed": seed, "score": score, "value": value}
        for (method, seed), scores in of_methods.items()
        for score, value in scores.items()
    ]
    found = load("scripts/peers_table.py").grades(pd.DataFrame(rows))
    assert found.loc["blood"].to_dict() == {"near": "0/2/0", "mixed": "1/0/1", "once": "0/0/1"}


def test_the_closest_method_of_each_property_is_counted():
    values = {"copies": [0.1, 0.1], "one": [0.2, 0.6], "other": [0.3, 0.3]}
    rows = [
        {"data": "blood", "method": method, "seed": 0, "property": name, "value": value, "floor": 0.1}
        for method, of in values.items()
        for name, value in zip(("mean", "library_size"), of, strict=True)
    ]
    found = load("scripts/peers_table.py").closeness(pd.DataFrame(rows), ["copies"])
    assert found.loc["blood"].to_dict() == {"copies": "0.000", "one": "0.300 (1)", "other": "0.200 (1)"}


def rows_of_data(page: Path, names: set[str]) -> list[str]:
    """Rows of the tables of a page that begin with the name of a data set."""
    return [
        line for line in page.read_text().splitlines() if re.match(r"\| (\w+) \|", line) and line.split()[1] in names
    ]


def test_pages_show_the_scores_of_the_benchmark():
    """The table of forest AUCs of README and docs/benchmark.md, which has coarse labels as well."""
    files = [PROJECT / "docs/_static" / name for name in ("benchmark.csv", "benchmark_coarse.csv")]
    scores = pd.concat([pd.read_csv(file) for file in files])
    means = scores[scores["score"] == "forest_auc"].groupby(["data", "method"])["value"].mean().unstack()
    methods = ["floor", "branched", "scanvi", "scvi", "scdesigner-library", "negative-binomial"]
    for page, n_rows in (("README.md", 10), ("docs/benchmark.md", 16)):
        rows = rows_of_data(PROJECT / page, {*means.index})
        assert len(rows) == n_rows
        for row in rows:
            name, *values = (value.strip() for value in row.strip("|").split("|"))
            assert values == [f"{mean:.2f}" for mean in means.loc[name, methods]], name


def copied(adata: AnnData) -> AnnData:
    return anndata.concat([adata] * 10, index_unique="-", keys=range(10))


def test_augmentation_scores_rare_types_by_all_strategies(prepared_file, prepared, tmp_path):
    """With ten copies of the training cells as generated ones."""
    training = prepared[prepared.obs["split"] != "test"]
    copied(training).write_h5ad(tmp_path / "copies.h5ad")
    copies, out = tmp_path / "copies.h5ad", tmp_path / "augment.csv"
    load("scripts/augment.py").main(prepared_file, out, [copies], whole=prepared_file)
    scores = pd.read_csv(out).set_index("cell_type")
    n_train = prepared.obs["cell_type"][prepared.obs["split"] != "test"].value_counts()
    n_test = prepared.obs["cell_type"][prepared.obs["split"] == "test"].value_counts()
    rare = n_train.index[n_train < 50]
    assert 0 < len(rare) < len(n_train)
    assert len(scores) == len(rare) * 2 * 5
    for cell_type in rare:
        assert (scores.loc[cell_type, "n_train"] == n_train[cell_type]).all()
        assert (scores.loc[cell_type, "n_test"] == n_test[cell_type]).all()
    assert scores["f1"].between(0, 1).all()
    assert scores["f1"].max() > 0.5
    plain, whole = (scores[scores["strategy"] == name]["f1"].tolist() for name in ("plain", "whole"))
    assert plain == whole


def test_strategies_train_on_the_cells_they_name(prepared):
    augment = load("scripts/augment.py")
    training, copies = augment.Cells.from_anndata(prepared), augment.Cells.from_anndata(copied(prepared))
    rare = training.n_by_type.nsmallest(2).index.tolist()
    strategies = augment.strategies(training, {"mine": copies}, rare, seed=0)
    assert list(strategies) == ["plain", "balanced", "oversampled", "mine"]
    assert strategies["balanced"].balanced
    assert strategies["plain"].training is strategies["balanced"].training is training
    size = int(training.n_by_type.median())
    for name in ("oversampled", "mine"):
        numbers = strategies[name].training.n_by_type
        assert (numbers[rare] == size).all()
        assert numbers.drop(rare).equals(training.n_by_type.drop(rare))


def test_augmentation_is_reported_by_type_and_strategy(tmp_path):
    rows = [("DC", 12, 3, "logistic regression", name, f1) for name, f1 in [("plain", 0.2), ("branched", 0.6)]]
    columns = ["cell_type", "n_train", "n_test", "classifier", "strategy", "f1"]
    files = []
    for seed in (0, 1):
        files.append(tmp_path / f"blood/{seed}/augment.csv")
        files[-1].parent.mkdir(parents=True)
        table = pd.DataFrame(rows, columns=columns)
        table["f1"] += seed / 10
        table.to_csv(files[-1], index=False)
    load("scripts/augment_table.py").main(tmp_path / "augment.csv", tmp_path / "augment.md", files)
    assert (
        "| blood | DC | 12 | 3 | 0.25 (0.20 to 0.30) | 0.65 (0.60 to 0.70) |" in (tmp_path / "augment.md").read_text()
    )
    assert pd.read_csv(tmp_path / "augment.csv")["seed"].tolist() == [0, 0, 1, 1]


def test_thresholds_are_reported_with_their_costs(tmp_path):
    overall = tmp_path / "blood/0/threshold/overall.csv"
    overall.parent.mkdir(parents=True)
    methods = ["floor", "branched", "flat", "threshold-0.8", "threshold-0.8-no-transport"]
    scores = pd.DataFrame([range(5), [0.5, 0.6, 0.6, 0.6, 0.9]], index=["energy", "forest_auc"], columns=methods)
    scores.to_csv(overall, index_label="metric")
    (tmp_path / "blood/0/costs").mkdir()
    for model, evaluations in [("flat", 39), ("threshold-0.8", 20)]:
        (tmp_path / f"blood/0/costs/{model}.csv").write_text(f"evaluations,milliseconds\n{evaluations},0.5\n")
    threshold = load("scripts/threshold.py")
    threshold.main(tmp_path / "threshold.csv", tmp_path / "threshold.png", [overall])
    table = pd.read_csv(tmp_path / "threshold.csv").set_index("method")
    assert table.loc["threshold-0.8", ["threshold", "sampling", "energy", "evaluations"]].tolist() == [
        *(0.8, threshold.WITH),
        *(3, 20),
    ]
    assert table.loc["threshold-0.8-no-transport", "sampling"] == threshold.WITHOUT
    assert table.loc["flat", "evaluations"] == 39
    assert (tmp_path / "threshold.png").stat().st_size > 10_000


def write_coarse_run(folder: Path, *, energy: float) -> Path:
    """Write what the workflow leaves of a run with two labels, one of which has two sub-populations."""
    overall = folder / "evaluation/overall.csv"
    for name in ["evaluation", "hierarchies", "models/branched", "models/branched-labels"]:
        (folder / name).mkdir(parents=True)
    overall.write_text(f"metric,branched,floor,gaussian\nforest_auc,0.55,0.5,0.7\nenergy,9,9,{energy}\nf1,1,1,1\n")
    rows = [
        f"T,100,{name},{value}\nB,50,{name},0.6\nDC,49,{name},7\n"
        for name, value in {"floor": 0, "branched": 0.3, "gaussian": energy}.items()
    ]
    overall.with_name("by_type.csv").write_text("".join(["cell_type,n_test,set,energy\n", *rows]))
    branches = [
        Branch("node 1", None, 3, 10),
        Branch("T", "node 1", 1, 7, cell_type="T"),
        *(Branch(f"T/{i}", "T", 0, 3, cell_type="T") for i in (1, 2)),
        Branch("B", "node 1", 0, 3),
    ]
    for model, kept in {"branched": "False", "branched-labels": "True"}.items():
        table = f"branch,n_cells,kept\nnode 1,9,{kept}\nT,0,False\nB,6,False\n"
        (folder / f"models/{model}/branches.csv").write_text(table)
    save_hierarchy(folder / "hierarchies/branched.json", Hierarchy(tuple(branches), sigma_max=20, threshold=0.9))
    return overall


def test_coarse_labels_are_reported_beside_the_floor(tmp_path):
    runs = [write_coarse_run(tmp_path / f"blood/{seed}", energy=energy) for seed, energy in [(0, 0.3), (1, 0.6)]]
    load("scripts/coarse_table.py").main(tmp_path / "coarse.csv", tmp_path / "coarse.md", runs)
    scores = pd.read_csv(tmp_path / "coarse.csv").set_index(["data", "method", "seed", "score"])["value"]
    assert scores["blood", "gaussian", 0, "energy_frequent"] == pytest.approx(0.4)  # without the type of 49 test cells
    assert scores["blood", "floor", 1, "energy_frequent"] == pytest.approx(0.2)
    assert scores["blood", "gaussian", 1, "forest_auc"] == 0.7
    assert scores["blood", "branched-labels", 1, "kept"] == 1
    assert "f1" not in scores.index.get_level_values("score")
    text = (tmp_path / "coarse.md").read_text()
    assert "| blood | 1 | 2 | 3 | 0 of 2 branches | 1 of 2 branches |" in text
    assert "## Forest AUC\n\n| data | floor | branched | gaussian |" in text
    assert "| blood | 0.20 (0.20 to 0.20) | 0.40 (0.40 to 0.40) | 0.50 (0.40 to 0.60) |" in text


def test_coarse_labels_of_earlier_runs_are_reported_as_well(tmp_path):
    script = load("scripts/coarse_table.py")
    script.main(tmp_path / "blood.csv", tmp_path / "blood.md", [write_coarse_run(tmp_path / "blood/0", energy=0.3)])
    skin = [write_coarse_run(tmp_path / "skin/2", energy=0.6)]
    script.main(tmp_path / "both.csv", tmp_path / "both.md", skin, earlier=tmp_path / "blood.csv")
    text = (tmp_path / "both.md").read_text()
    assert "| blood | 0 | 2 | 3 | 0 of 2 branches | 1 of 2 branches |" in text
    assert "| skin | 2 | 2 | 3 | 0 of 2 branches | 1 of 2 branches |" in text
    assert "| blood | 0.20 | 0.40 | 0.40 |" in text
    assert "| skin | 0.20 | 0.40 | 0.60 |" in text


def test_network_is_reported_by_losses_and_scores(tmp_path):
    overall = tmp_path / "curve/0/network/overall.csv"
    for name in ["network", "hierarchies", "models/branched", "models/everywhere"]:
        (tmp_path / "curve/0" / name).mkdir(parents=True)
    overall.write_text("metric,branched,floor,everywhere\nforest_auc,0.55,0.5,0.53\nenergy,0.2,0.1,0.15\nf1,1,1,1\n")
    columns = "branch,n_cells,closed_form,network,gain,kept"
    for model, kept in {"branched": "False", "everywhere": "True"}.items():
        rows = f"cell,30,0.5,0.4,3.5,{kept}\ncell/1,10,0.9,1,-1,False\ncell/2,0,,,,False\n"
        (tmp_path / f"curve/0/models/{model}/branches.csv").write_text(f"{columns}\n{rows}")
    branches = [Branch("cell", None, 1, 7, cell_type="cell")]
    branches += [Branch(f"cell/{i}", "cell", 0, 3, cell_type="cell") for i in (1, 2)]
    save_hierarchy(tmp_path / "curve/0/hierarchies/branched.json", Hierarchy(tuple(branches), 20, threshold=0.9))
    load("scripts/network_table.py").main(tmp_path / "network.csv", tmp_path / "network.md", [overall])
    scores = pd.read_csv(tmp_path / "network.csv").set_index(["data", "method", "seed", "score"])["value"]
    assert scores["curve", "everywhere", 0, "energy"] == 0.15
    assert len(scores) == 6
    text = (tmp_path / "network.md").read_text()
    assert "| curve | 0 | 2 | 0 of 2 branches | 1 of 2 branches | 0.6000 | 0.5500 |" in text
    assert "## Forest AUC\n\n| data | floor | branched | everywhere |\n| --- | --- | --- | --- |\n| curve |" in text


# ---- trees


def test_ontology_is_reported_by_nodes_and_scores(tmp_path):
    overall = tmp_path / "cortex/0/ontology/overall.csv"
    for name in ["ontology", "hierarchies"]:
        (tmp_path / "cortex/0" / name).mkdir(parents=True)
    rows = [f"{score},0.6,0.5,0.7" for score in ["forest_auc", "energy", "gene_auc", "slope", "f1_ratio"]]
    overall.write_text("\n".join(["metric,branched,floor,ontology", *rows]) + "\n")
    trees = {"branched": {"cde": "cde", "ab": "ab", "de": "de"}, "ontology": {"first": "ab", "second": "cd"}}
    for name, nodes in trees.items():
        containing = {leaf: [node for node in nodes if leaf in nodes[node]] for leaf in "abcde"}
        above = {leaf: min(found, key=len, default="root") for leaf, found in containing.items()}
        inner = [
            Branch(node, "cde" if node == "de" else "root", len(below), 2, support=0.9) for node, below in nodes.items()
        ]
        leaves = [Branch(leaf, parent, 0, 1, cell_type=leaf) for leaf, parent in above.items()]
        branches = (Branch("root", None, 9, 5), *inner, *leaves)
        save_hierarchy(tmp_path / f"cortex/0/hierarchies/{name}.json", Hierarchy(branches, 20, threshold=0.9))
    load("scripts/ontology_table.py").main(tmp_path, [overall])
    nodes = pd.read_csv(tmp_path / "ontology_nodes.csv").set_index("cell_types")
    assert nodes["in_clustering"].to_dict() == {"a; b": True, "c; d": False, "d; e": True, "d; e; c": True}
    text = (tmp_path / "ontology.md").read_text()
    assert "| data | seed | nodes | in_clustering | contradicted |" in text
    assert "| cortex | 0 | 2 | 1 | 1 |" in text
    assert "| cortex | first | 2 | 1.00 | 0.90 | 0.00 |" in text
    assert "## Forest AUC\n\n| data | floor | branched | ontology |" in text


ANNOTATION = pd.DataFrame(
    {
        "cell_type": list("aabcdef"),
        "fine": ["ab", "ab", "ab", "c", "de", "de", "f"],
        "coarse": ["abc", "abc", "abc", "abc", "de", "de", "f"],
        "all": "all",
    }
)


def test_populations_are_those_of_the_autoencoder_beside_the_labels(trained, prepared, tmp_path):
    pytest.importorskip("igraph")
    labelled = prepared.copy()
    labelled.obs["cell_type_input"] = labelled.obs["cell_type"].astype(str) + " before"
    labelled.write_h5ad(tmp_path / "prepared.h5ad")
    script = load("scripts/populations.py")
    script.main(
        tmp_path / "prepared.h5ad",
        trained / "autoencoder",
        tmp_path / "out.csv",
        label=["cell_type", "louvain"],
        resolution=[0.1, 2],
    )
    table = pd.read_csv(tmp_path / "out.csv", index_col="cell")
    assert list(table) == ["label: cell_type", "label: louvain", "bdm", "leiden 0.1", "leiden 2"]
    assert table["label: cell_type"].tolist() == labelled.obs["cell_type_input"].tolist()
    assert table["leiden 0.1"].nunique() < table["leiden 2"].nunique()
    latent = anndata.read_h5ad(trained / "autoencoder/latent.h5ad")
    assert table["bdm"].tolist() == latent.obs["sub_population"].astype(str).tolist()


def test_populations_are_compared_with_labels_and_between_seeds(tmp_path):
    label, cells = ["B", "B", "T", "T"], ["1", "2", "3", "4"]
    of_seeds = {0: ["a", "a", "b", "b"], 1: ["x", "x", "y", "y"], 2: ["x", "y", "x", "y"]}
    paths = []
    for seed, found in of_seeds.items():
        path = tmp_path / f"blood/{seed}/populations.csv"
        path.parent.mkdir(parents=True)
        table = pd.DataFrame({"label: cell_type": label, "bdm": found}, index=pd.Index(cells, name="cell"))
        table.sample(frac=1, random_state=seed).to_csv(path)
        paths.append(path)
    run("scripts/populations_table.py", tmp_path / "out.csv", tmp_path / "out.md", *paths)
    scores = pd.read_csv(tmp_path / "out.csv").set_index(["score", "seed"])["value"]
    assert scores["groups"].tolist() == [2, 2, 2]
    assert scores["cell_type"].tolist() == [1, 1, -0.5]
    assert scores["agreement of seeds"].to_dict() == {"0, 1": 1, "0, 2": -0.5, "1, 2": -0.5}
    text = (tmp_path / "out.md").read_text()
    assert "| bdm | 2 | 0.50 (-0.50 to 1.00) | 0.00 (-0.50 to 1.00) |" in text


def test_named_groups_are_of_several_types_but_not_all():
    groups = load("scripts/tree.py").named_groups(ANNOTATION, ["fine", "coarse", "all"])
    assert groups["cell_types"].tolist() == [frozenset("ab"), frozenset("de"), frozenset("abc")]
    assert groups["label"].tolist() == ["fine", "fine", "coarse"]


def test_label_that_parts_a_type_groups_nothing():
    obs = ANNOTATION.assign(fine=list("aqbcdef"))
    with pytest.raises(SystemExit, match="several values of fine"):
        load("scripts/tree.py").named_groups(obs, ["fine"])


def test_groups_are_found_as_clades():
    script = load("scripts/tree.py")
    groups = script.named_groups(ANNOTATION, ["fine", "coarse"])
    tree = {frozenset("ab"), frozenset("abd"), frozenset("abcd"), frozenset("ef")}
    random = [{frozenset("de"), frozenset("abc")}, {frozenset("abc"), frozenset("ab")}]
    table = script.compare_groups(tree, groups, random).set_index("group")
    assert table["found"].to_dict() == {"ab": True, "de": False, "abc": False}
    assert table["nearness"].to_dict() == pytest.approx({"ab": 1, "de": 1 / 3, "abc": 3 / 4})
    assert table["found_random"].to_dict() == {"ab": 0.5, "de": 0.5, "abc": 1}
    overall = script.compare_trees(tree, set(groups["cell_types"]), random)
    assert (overall["n_groups"], overall["found"], overall["missing"]) == (3, 1, pytest.approx(2 / 3))
    assert overall["contradicting"] == 3 / 4
    assert (overall["found_random"], overall["found_random_most"], overall["contradicting_random"]) == (2, 2, 0)


def test_random_trees_are_of_the_same_types():
    random = list(load("scripts/tree.py").random_clades(tuple("abcdef"), seed=0))
    assert {len(clades) for clades in random} == {4}
    assert len({frozenset(clades) for clades in random}) > 100


def test_tree_is_compared_with_an_annotation(trained, prepared, tmp_path):
    annotated = prepared.copy()
    lineages = {"CD": "lymphoid", "Da": "myeloid"}
    annotated.obs["lineage"] = annotated.obs["cell_type"].astype(str).str[:2].replace(lineages)
    annotated.write_h5ad(tmp_path / "prepared.h5ad")
    runs = [tmp_path / f"blood/{seed}/tree" for seed in (0, 1)]
    for run_folder in runs:
        run_folder.mkdir(parents=True)
        load("scripts/tree.py").main(
            tmp_path / "prepared.h5ad", trained / "hierarchy.json", run_folder, label=["lineage"]
        )
    assert (runs[0] / "tree.png").stat().st_size > 10_000
    load("scripts/tree_table.py").main(tmp_path, [run_folder / "overall.csv" for run_folder in runs])
    table = pd.read_csv(tmp_path / "tree.csv")
    assert table["seed"].tolist() == [0, 1]
    assert (table["n_types"] == annotated.obs["cell_type"].nunique()).all()
    n_groups = table.loc[0, "n_groups"]
    assert len(pd.read_csv(tmp_path / "tree_groups.csv")) == 2 * n_groups > 0
    assert (tmp_path / "tree.md").read_text().count("| blood |") == 1 + n_groups


def test_type_is_left_out(example_cells, tmp_path):
    cells = example_cells.copy()
    cells.obs["cell_type"] = cells.obs["bulk_labels"]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    load("scripts/leave_out.py").main(tmp_path / "cells.h5ad", tmp_path / "without.h5ad", cell_type=NK)
    left = anndata.read_h5ad(tmp_path / "without.h5ad")
    assert set(left.obs["cell_type"]) == set(cells.obs["cell_type"]) - {NK}
    assert left.n_obs == (cells.obs["cell_type"] != NK).sum()


# ---- extensions


@pytest.fixture(scope="module")
def extended(prepared, tmp_path_factory) -> Path:
    """Folder with the scores of a type that was left out, and of types that were added one after the other."""
    folder = tmp_path_factory.mktemp("extended")
    largest = prepared.obs["cell_type"].value_counts().index[:4]
    few = prepared[prepared.obs["cell_type"].isin(largest)].copy()
    few.obs["cell_type"] = few.obs["cell_type"].cat.remove_unused_categories()
    few.write_h5ad(folder / "prepared.h5ad")
    runs = folder / "blood/0/extend"
    (runs / "one").mkdir(parents=True)
    tables = [runs / name for name in ("one/2.csv", "in_turn.csv", "reference.csv")]
    quick = ["--autoencoder-steps", 40, "--denoiser-steps", 40, "--n-repeats", 1]
    run("scripts/extend_one.py", folder / "prepared.h5ad", tables[0], "--number", 2, "--with-flat", *quick)
    run("scripts/extend_in_turn.py", folder / "prepared.h5ad", folder / "prepared.h5ad", tables[1], *quick)
    run("scripts/extend_reference.py", folder / "prepared.h5ad", folder / "prepared.h5ad", tables[2], "--n-repeats", 1)
    load("scripts/extend_table.py").main(folder, tables)
    return folder


@pytest.mark.slow
def test_extension_changes_no_other_type_where_a_flat_model_does(extended):
    table = pd.read_csv(extended / "extend.csv")
    one = table[table["task"] == "one"]
    energy = one[one["cell_type"] != one["added"]].pivot(index="cell_type", columns="set", values="energy")
    assert (energy["extension"] == energy["before"]).all()
    assert (energy["flat, on the new type"] != energy["flat, before"]).all()
    assert energy["flat, on everything"].mean() < energy["flat, on the new type"].mean()


@pytest.mark.slow
def test_all_strategies_learn_the_types(extended):
    table = pd.read_csv(extended / "extend.csv")
    new = table[(table["task"] == "one") & (table["cell_type"] == table["added"])]
    assert set(new["set"]) == {"extension", "flat, on the new type", "flat, on everything"}
    assert new["cell_type"].nunique() == 1
    in_turn = table[table["task"] == "in_turn"]
    assert set(in_turn["set"]) == {"extension", "floor", "joint"}
    assert in_turn.groupby("step")["cell_type"].nunique().tolist() == [4]
    assert in_turn["forest_auc"].notna().all()


@pytest.mark.slow
def test_extensions_are_reported(extended):
    table, text = pd.read_csv(extended / "extend.csv"), (extended / "extend.md").read_text()
    new = table[(table["task"] == "one") & (table["cell_type"] == table["added"])].set_index("set")
    assert "## blood: each type left out in turn" in text
    assert f"{new.loc['extension', 'energy']:.2f}" in text
    for name in ("extend_one.png", "extend_in_turn.png"):
        assert (extended / name).stat().st_size > 10_000


# ---- many types


@pytest.fixture(scope="module")
def run_of_many(tmp_path_factory) -> Path:
    """Folder of a run as the workflow leaves it, in as far as the table reads it."""
    folder = tmp_path_factory.mktemp("many") / "4_types"
    folder.mkdir()
    run("scripts/many_cells.py", folder / "cells.h5ad", folder / "truth.json", "--n-types", 4, "--n-cells", 6)
    names = [f"type {i + 1}" for i in range(4)]
    nodes = [Branch("node 1", None, 4.0, 24), Branch("node 2", "node 1", 2.0, 12), Branch("node 3", "node 1", 1.0, 12)]
    leaves = [
        Branch(name, node, 0.0, 6) for name, node in zip(names, ["node 2", "node 2", "node 3", "node 3"], strict=True)
    ]
    hierarchy = Hierarchy((nodes[0], nodes[1], *leaves[:2], nodes[2], *leaves[2:]), 8.0, 0.9)
    save_hierarchy(folder / "hierarchy.json", hierarchy)
    for name in ("times", "evaluation", "interpretation", "model"):
        (folder / name).mkdir()
    (folder / "hierarchy.html").write_text("page")
    (folder / "model/model.json").write_text("{}")
    save_figure(plot_hierarchy(hierarchy).figure, folder / "hierarchy.png")
    scores = load("scripts/many_table.py").SCORES
    overall = pd.DataFrame({"floor": 0.1, "branched": 0.2}, index=pd.Index(scores, name="metric"))
    overall.to_csv(folder / "evaluation/overall.csv")
    for number, step in enumerate(load("scripts/many_table.py").STEPS):
        time = pd.DataFrame({"s": [10.0 + number], "max_rss": [100.0], "cpu_time": [5.0]})
        time.to_csv(folder / f"times/{step}.tsv", sep="\t", index=False)
    return folder


def test_simulated_cells_have_as_many_of_each_type(run_of_many):
    cells = anndata.read_h5ad(run_of_many / "cells.h5ad")
    assert cells.obs["cell_type"].value_counts().to_dict() == {f"type {i + 1}": 6 for i in range(4)}
    assert sorted(read_tree(run_of_many / "truth.json").leaves()) == [f"type {i + 1}" for i in range(4)]


def test_table_of_many_types_shows_costs_trees_and_sizes(run_of_many, tmp_path):
    run("scripts/many_table.py", tmp_path / "many.csv", tmp_path / "many.md", run_of_many)
    row = pd.read_csv(tmp_path / "many.csv", index_col="run").loc["4_types"]
    assert (row["types"], row["clades"]) == (4, 2)
    assert row["clades found"] + row["Robinson-Foulds distance"] / 2 == 2
    assert (row["prepare, seconds"], row["interpret, seconds"]) == (10, 16)
    assert row["tallest figure, pixels"] > 100
    text = (tmp_path / "many.md").read_text()
    assert "| autoencoder | 11 |" in text
    assert "| energy, floor | 0.1 |" in text


# ---- an atlas


def test_atlas_is_simulated_on_disk(tmp_path):
    run("scripts/atlas.py", tmp_path / "cells.h5ad", "--n-cells", 2500, "--n-types", 4, "--n-genes", 300)
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert cells.shape == (2500, 300)
    assert cells.obs["cell_type"].value_counts().min() > 500
    assert (cells.X.data == np.round(cells.X.data)).all()
    assert np.median(cells.X.sum(axis=1).A1) == pytest.approx(150, rel=0.1)
    run("scripts/atlas.py", tmp_path / "again.h5ad", "--n-cells", 2500, "--n-types", 4, "--n-genes", 300)
    assert (anndata.read_h5ad(tmp_path / "again.h5ad").X != cells.X).nnz == 0


def test_shared_ancestors_are_compared_with_a_flat_model(tmp_path):
    folder = tmp_path / "many/2_types/sharing"
    (folder / "evaluation").mkdir(parents=True)
    rows = "energy,0.2,0.01,0.1\nforest_auc,0.6,0.5,0.55\nf1,1,1,1\n"
    (folder / "evaluation/overall.csv").write_text(f"metric,branched,floor,flat\n{rows}")
    for name, evaluations in {"branched": 9, "flat": 12}.items():
        (folder / f"{name}_cost.csv").write_text(f"evaluations,milliseconds\n{evaluations},2\n")
    leaves = tuple(Branch(name, "node 1", 0, 3) for name in ("T", "B"))
    tree = Hierarchy((Branch("node 1", None, 3, 10), *leaves), sigma_max=20, threshold=0.9)
    save_hierarchy(folder / "branched.json", tree)
    load("scripts/sharing_table.py").main(tmp_path / "sharing.csv", tmp_path / "sharing.md", [folder])
    table = pd.read_csv(tmp_path / "sharing.csv").set_index("method")
    assert table["types"].unique().tolist() == [2]
    assert table["evaluations"].dropna().to_dict() == {"branched": 9, "flat": 12}
    text = (tmp_path / "sharing.md").read_text()
    assert "| evaluations per cell, ratio | 0.75 |" in text
    assert "| ms per cell, ratio | 1.00 |" in text
    assert "| forest AUC, flat | 0.55 |" in text


def test_costs_are_reported_by_number_of_cells(run_of_many, tmp_path):
    for n_cells in (10, 1000):
        shutil.copytree(run_of_many, tmp_path / f"atlas_{n_cells}")
    written = [tmp_path / f"atlas.{ending}" for ending in ("csv", "md", "png")]
    run("scripts/atlas_table.py", *written, tmp_path / "atlas_10", tmp_path / "atlas_1000")
    assert pd.read_csv(written[0]).groupby("n_cells")["seconds"].sum().to_dict() == {10: 75, 1000: 75}
    assert "| autoencoder | 11 | 11 |" in written[1].read_text()
    assert written[2].stat().st_size > 10_000


def test_verdicts_on_real_cells_and_on_faulty_ones_are_counted(prepared_file, tmp_path):
    found = tmp_path / "blood/0/verdicts.csv"
    found.parent.mkdir(parents=True)
    run("scripts/verdicts.py", prepared_file, found, "--n-splits", 1, "--n-faulty", 1, "--n-repeats", 1)
    run("scripts/verdicts_table.py", tmp_path / "out.csv", tmp_path / "out.md", found)
    verdicts = pd.read_csv(tmp_path / "out.csv")
    script = load("scripts/verdicts.py")
    assert set(verdicts["set"]) == {script.REAL, *script.FAULTS}
    of_all = verdicts[verdicts["cell_type"] == script.ALL].set_index("set")["verdict"]
    assert of_all[script.REAL] == "SAME"
    excess = pd.read_csv(found).query("cell_type == @script.ALL").pivot(index="set", columns="score", values="excess")
    assert excess["relative_energy"].idxmax() in ("shift by 0.8 SD", "sub-group missing", "overdispersed")
    assert excess["memorisation"].idxmax() == "half are copies"
    assert "| fault | 10 to 34 |" in (tmp_path / "out.md").read_text()


def test_random_splits_of_donors_are_tested(example_cells, tmp_path):
    cells = example_cells.copy()
    cells.obs["cell_type"], cells.obs["donor"] = "blood", [f"donor_{i % 9}" for i in range(cells.n_obs)]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    found = tmp_path / "real.csv"
    of_splits = ["--n-donors", 4, "--n-splits", 2, "--n-splits-composition", 3]
    run("scripts/null_tests.py", tmp_path / "cells.h5ad", found, *of_splits)
    tests = pd.read_csv(found)
    n_tests = tests.groupby(["method", "split"]).size().unstack()
    assert (n_tests.loc[["deseq2", "t_test", "wilcoxon"], [0, 1]] > 100).all(axis=None)
    assert n_tests.loc["composition"].tolist() == [1, 1, 1]
    # The cells of a donor are as other cells here, so that all tests are valid
    small = tests[tests["method"] != "composition"].groupby("method")["p_value"].agg(lambda p: (p < 0.05).mean())
    assert small.between(0.0, 0.1).all()
    written = [tmp_path / f"designs.{ending}" for ending in ("csv", "md", "png")]
    cells.obs["condition"] = [f"condition_{i % 2}" for i in range(cells.n_obs)]
    cells.obs["sample"] = [f"sample_{i % 18}" for i in range(cells.n_obs)]
    cells.write_h5ad(tmp_path / "pairs.h5ad")
    pairs = tmp_path / "pairs.csv"
    run("scripts/null_tests.py", tmp_path / "pairs.h5ad", pairs, *of_splits, "--paired", "--name", "pairs")
    assert (pd.read_csv(pairs)["donors"] == 4).all()
    run("scripts/null_table.py", *written, found, pairs)
    below = pd.read_csv(written[0], index_col=["cells", "donors", "method", "seed", "split"])
    assert (below.iloc[:, 0] == 1).all()
    for name in ("real", "pairs"):
        assert f"| {name} | 4 | deseq2 |" in written[1].read_text()
    assert written[2].stat().st_size > 10_000


@pytest.fixture(scope="module")
def cells_of_donors(tmp_path_factory) -> Path:
    """File of prepared cells of twelve donors, which differ in the expression of all genes."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("donors")
    donor, cell_type = np.repeat(np.arange(12), 40), np.tile(["A", "B"], 240)
    rates = np.exp(rng.normal(0, 0.4, (12, 60)))[donor] * np.where(cell_type == "A", 1, 1.5)[:, None]
    obs = pd.DataFrame({"donor": [f"d{i}" for i in donor], "cell_type": cell_type})
    counts = sparse.csr_matrix(rng.poisson(2 * rates).astype(np.float32))
    AnnData(counts, obs=obs.set_index(obs.index.astype(str))).write_h5ad(folder / "cells.h5ad")
    keys = ["--label-key", "cell_type", "--donor-key", "donor", "--genes", "all"]
    command = ["prepare", folder / "cells.h5ad", folder / "prepared.h5ad", *keys]
    app([*map(str, command)], standalone_mode=False)
    return folder / "prepared.h5ad"


def test_deviation_of_members_is_kept_in_copies_and_not_in_cells_of_others(cells_of_donors):
    script, rng = load("scripts/audit_scores.py"), np.random.default_rng(0)
    adata = anndata.read_h5ad(cells_of_donors)
    cells, donor = Cells.from_anndata(adata), adata.obs["donor"].astype(str).to_numpy()
    kept = []
    for _ in range(20):
        parts = np.split(rng.permutation(np.unique(donor)), [3, 6, 9])
        rows = [np.flatnonzero(np.isin(donor, part)) for part in parts]
        members, others, reference, further = (cells[of] for of in rows)
        beside = members, others, reference, pd.factorize(donor[rows[2]])[0]
        kept.append([script.kept_deviation(of, *beside) for of in (members, further)])
    assert np.mean(kept, axis=0) == pytest.approx([1, 0], abs=0.2)


def test_peers_are_audited_on_the_folds_of_an_audit(cells_of_donors, tmp_path):
    folder, folds = tmp_path / "blood/0", (1, 2)
    app(["audit-folds", str(cells_of_donors), str(folder / "folds"), "--n-folds", "2"], standalone_mode=False)
    audits = []
    for name in ("resampled", "negative_binomial"):
        cells = [folder / f"cells/{name}/fold-{fold}.h5ad" for fold in folds]
        for fold, path in zip(folds, cells, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            members, model = folder / f"folds/fold-{fold}.h5ad", folder / f"models/{name}/fold-{fold}"
            run(f"methods/{name}.py", "train", members, model)
            run(f"methods/{name}.py", "generate", model, path, "--cells-like", members)
        given = [item for path in cells for item in ("--cells", path)]
        audits.append(folder / f"audits/{name}")
        command = ["audit", cells_of_donors, audits[-1], *given, "--n-folds", 2]
        app([*map(str, command)], standalone_mode=False)
        (folder / "scores").mkdir(exist_ok=True)
        run("scripts/audit_scores.py", cells_of_donors, folder / f"scores/{name}.csv", *cells, "--n-folds", 2)
    run("scripts/audit_table.py", tmp_path, *audits)
    table = pd.read_csv(tmp_path / "audit.csv").set_index(["method", "fold"])
    assert (table.loc["resampled", "donor/nearest"] == 1).all()
    assert table.loc["copies", "donor/nearest"].tolist() == [1, 1]
    assert (table.loc["floor", "kept_deviation"] == 1).all()
    assert table.loc["negative_binomial", "kept_deviation"].between(0.7, 1.3).all()
    assert table.loc["chance", "forest_auc"].isna().all()
    text = (tmp_path / "audit.md").read_text()
    assert "| blood | resampled | 1.00 (1.00 to 1.00) |" in text
    assert "| blood | negative_binomial | 0 | " in text
    assert (tmp_path / "audit.png").stat().st_size > 10_000


def test_clones_are_the_donors_own_and_of_one_type(tmp_path):
    rng = np.random.default_rng(0)
    obs = pd.DataFrame({"donor": np.repeat(["x", "y"], 100), "cell_type": np.tile(["A", "B"], 100)})
    counts = sparse.csr_matrix(rng.poisson(10, (200, 50)).astype(np.float32))
    AnnData(counts, obs=obs.set_index(obs.index.astype(str))).write_h5ad(tmp_path / "cells.h5ad")
    run("scripts/clones.py", tmp_path / "cells.h5ad", tmp_path / "clones.h5ad", "--cell-type", "B")
    before, after = (anndata.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("cells", "clones"))
    of_b = (obs["cell_type"] == "B").to_numpy()
    assert (before[~of_b].X != after[~of_b].X).nnz == 0
    changed = []
    for donor in ("x", "y"):
        rows = of_b & (obs["donor"] == donor).to_numpy()
        ratio = after[rows].X.mean(axis=0).A1 / before[rows].X.mean(axis=0).A1
        assert ((ratio > 2.5).sum(), (ratio < 0.5).sum(), (ratio == 1).sum()) == (5, 5, 40)
        changed.append(frozenset(np.flatnonzero(ratio != 1)))
    assert len(set(changed)) == 2


def test_populations_of_one_donor_are_counted(cells_of_donors, tmp_path):
    """In models whose members differ so much that each is a population, unless several have to share one."""
    cells = anndata.read_h5ad(cells_of_donors)
    audits = [tmp_path / f"blood/0/audits/{fewest}" for fewest in (1, 3)]
    small = (
        "--n-latent 6 --autoencoder-n-steps 150 --sub-populations 4 --min-cells-per-sub-population 12 --n-bootstrap 0"
    )
    small += " --denoiser-n-steps 20 --width 8 --n-folds 2 --cells-only"
    for audit in audits:
        models, scores = (tmp_path / "blood/0" / kind / audit.name for kind in ("models", "scores"))
        record = json.loads(cells.uns["bdm"]["settings"]) | {"min_donors": int(audit.name)}
        cells.uns["bdm"]["settings"] = json.dumps(record)
        cells.write_h5ad(tmp_path / f"{audit.name}.h5ad")
        command = ["audit", tmp_path / f"{audit.name}.h5ad", audit, "--models", models, *small.split()]
        app([*map(str, command)], standalone_mode=False)
        scores.parent.mkdir(exist_ok=True)
        run("scripts/few_donors_scores.py", command[1], models, f"{scores}.csv", "--n-folds", 2)
    shutil.copytree(tmp_path / "blood/0", tmp_path / "blood/1")
    audits += [tmp_path / f"blood/1/audits/{fewest}" for fewest in (1, 3)]
    run("scripts/few_donors_table.py", tmp_path / "all.csv", tmp_path / "all.md", *audits)
    table = pd.read_csv(tmp_path / "all.csv")
    assert not table.duplicated(["seed", "min_donors", "set", "fold"]).any()
    of_models = table[(table["set"] == "generated") & (table["seed"] == 0)].set_index(["min_donors", "fold"])
    assert (of_models.loc[1, "n_of_one_donor"] > 0).all()
    assert (of_models.loc[3, "n_of_one_donor"] == 0).all()
    assert (of_models.loc[3, "fewest_donors"] >= 3).all()
    assert of_models["mean_shift"].between(0, 1).all()
    text = (tmp_path / "all.md").read_text()
    assert re.search(r"\| data \| min_donors \| A \| B \|.*\| blood \| 3 \| generated \|", text, re.DOTALL)


def test_genes_in_which_donors_differ_most_are_left_out(tmp_path):
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(8), 40)
    mean = np.full((len(donor), 20), 5.0)
    mean[:, [3, 11]] *= rng.lognormal(0, 0.7, size=(8, 2))[donor]
    obs = pd.DataFrame({"donor": [f"donor {i}" for i in donor], "cell_type": np.tile(["B", "T"], len(donor) // 2)})
    var = pd.DataFrame(index=[f"gene {i}" for i in range(20)])
    obs.index = obs.index.astype(str)
    anndata.AnnData(sparse.csr_matrix(rng.poisson(mean), dtype=float), obs, var).write_h5ad(tmp_path / "cells.h5ad")
    for share, left_out in {0.1: {"gene 3", "gene 11"}, 0: set()}.items():
        run("scripts/donor_genes.py", tmp_path / "cells.h5ad", tmp_path / "genes.txt", "--share", share)
        listed = (tmp_path / "genes.txt").read_text().splitlines()
        assert set(var.index) - set(listed) == left_out
        assert listed == [name for name in var.index if name in listed]


def test_audits_without_genes_are_a_table(tmp_path):
    sets = [
        ("generated", "donor", None),
        ("copies", "donor", None),
        ("generated", "cell", None),
        ("generated", "donor", 5),
    ]
    rows = [
        {"fold": fold, "set": of, "level": level, "attack": "mean_shift", "n_cells": n_cells, "auc": auc}
        for fold, auc in [(1, 0.9), (2, 0.8)]
        for of, level, n_cells in sets
    ]
    for share in ("0", "0.1"):
        (tmp_path / f"blood/0/audits/{share}").mkdir(parents=True)
        pd.DataFrame(rows).to_csv(tmp_path / f"blood/0/audits/{share}/by_fold.csv", index=False)
    audits = [tmp_path / f"blood/0/audits/{share}" for share in ("0", "0.1")]
    run("scripts/donor_genes_table.py", tmp_path / "all.csv", tmp_path / "all.md", *audits)
    assert len(pd.read_csv(tmp_path / "all.csv")) == 4
    assert "| blood | 0.1 | 0.85 (0.80 to 0.90) |" in (tmp_path / "all.md").read_text()


def test_power_of_a_grid_is_a_table(tmp_path):
    numbers = {"n_planted": 50, "n_discoveries": 30, "n_false": 1, "n_null": 100, "n_null_small": 5}
    rows = [
        {"number": i, "donors": donors, "cells": cells, "n_found": 10 * i, **numbers}
        for i, (donors, cells) in enumerate([(3, 100), (3, 200), (6, 100), (6, 200)])
    ]
    repeats = pd.DataFrame(rows).assign(
        **{"depth": np.nan, "log2_fold_change": np.nan, "log_odds": np.nan, "design": "a", "fdr": 0.05},
        **{"method": "deseq2", "cell_type": "B", "repeat": 0, "n_samples": 6, "n_cells": 600},
    )
    PowerAnalysis(repeats).save(tmp_path / "grid")
    run("scripts/power_table.py", tmp_path / "power.md", tmp_path / "grid")
    text = (tmp_path / "power.md").read_text()
    assert "| test | donors | cells of each sample 100 | cells of each sample 200 |" in text
    assert "| DESeq2 | 6 | 40% (28 to 54) | 60% (46 to 72) |" in text
    assert "nothing was planted: DESeq2 5%" in text


def test_donors_of_sets_are_compared_with_left_out_ones(tmp_path):
    rng = np.random.default_rng(0)
    donor, cell_type = np.repeat(np.arange(16), 40), np.tile(["A", "B"], 320)
    effect = np.exp(rng.normal(0, 0.5, (16, 50)))
    counts = sparse.csr_matrix(rng.poisson(3 * effect[donor]).astype(np.float32))
    obs = pd.DataFrame({"donor": [f"d{i}" for i in donor], "cell_type": cell_type})
    AnnData(counts, obs=obs.set_index(obs.index.astype(str))).write_h5ad(tmp_path / "cells.h5ad")
    folder = tmp_path / "blood" / "0"
    folder.mkdir(parents=True)
    training, left_out = folder / "training.h5ad", folder / "left_out.h5ad"
    run("scripts/donors_split.py", tmp_path / "cells.h5ad", training, left_out)
    halves = [set(anndata.read_h5ad(path).obs["donor"]) for path in (training, left_out)]
    assert [len(half) for half in halves] == [8, 8]
    assert not halves[0] & halves[1]
    for name, keys in {"donors": "--donor-key", "batches": "--batch-key"}.items():
        small = ["--genes", "all", "--autoencoder-n-steps", "20", "--n-latent", "4", "--denoiser-n-steps", "100"]
        app(["fit", str(training), str(folder / name), keys, "donor", *small], standalone_mode=False)
    sets = {"learned": "donors", "alike": "donors", "batches": "batches"}
    for drawn, model in sets.items():
        run("scripts/donors_generate.py", folder / model, left_out, folder / f"{drawn}.h5ad", drawn)
        assert anndata.read_h5ad(folder / f"{drawn}.h5ad").obs["donor"].nunique() <= 8
    cells = [folder / f"{drawn}.h5ad" for drawn in sets]
    run("scripts/donors_scores.py", folder / "scores.csv", left_out, training, *cells)
    scores = pd.read_csv(folder / "scores.csv", index_col="set")
    assert scores.loc["floor", "intraclass"] == pytest.approx(1, abs=0.4)
    assert scores.loc["learned", "intraclass"] == pytest.approx(1, abs=0.6)
    assert scores.loc["alike", "intraclass"] < 0.3
    run("scripts/donors_table.py", tmp_path / "donors.csv", tmp_path / "donors.md", folder / "scores.csv")
    assert "| blood | learned |" in (tmp_path / "donors.md").read_text()


def test_faulty_cells_have_the_fault_and_no_other():
    script, rng = load("scripts/verdicts.py"), np.random.default_rng(0)
    rates = np.exp(rng.normal(size=(3000, 1)) * np.linspace(-0.5, 0.5, 40))  # one axis of variation
    counts = rng.poisson(5 * rates).astype(np.float32)
    cells, training = (Cells(sparse.csr_matrix(part), np.repeat("a", len(part))) for part in np.split(counts, [1500]))
    axis = script.main_axis(training.counts.toarray())
    position = script.log_cp10k(cells.counts.toarray()) @ axis
    for size in (0.2, 0.5, 0.8):
        shifted = script.shift(size)(cells, training, np.random.default_rng(0))
        moved = script.log_cp10k(shifted.counts.toarray()) @ axis
        assert (moved.mean() - position.mean()) / position.std() == pytest.approx(size, abs=0.05)
        assert len(shifted) == 600
    noisy = script.FAULTS["overdispersed"](cells, training, np.random.default_rng(0)).counts.toarray()
    assert noisy.mean() == pytest.approx(cells.counts.mean(), rel=0.01)
    assert noisy.var() > 1.1 * cells.counts.toarray().var()
    copied = script.FAULTS["half are copies"](cells, training, np.random.default_rng(0)).counts.toarray()
    known = {row.tobytes() for row in training.counts.toarray()}
    assert np.mean([row.tobytes() in known for row in copied]) == pytest.approx(0.5, abs=0.01)


def test_decoders_gain_nothing_where_the_shared_one_is_true(trained, prepared_file, tmp_path):
    run("scripts/gains.py", prepared_file, trained / "autoencoder", tmp_path / "gains.csv", "--n-repeats", 1)
    gains = pd.read_csv(tmp_path / "gains.csv")
    assert set(gains["n_train"]) == {60, 300}
    assert gains["test"].mean() < 2 * gains["test_error"].mean()
    assert (gains["kept"] == (gains["validation"] >= 0)).all()


def test_posteriors_without_covariances_change_those_of_populations_little(trained, prepared_file, tmp_path):
    run("scripts/posterior.py", prepared_file, trained / "autoencoder", tmp_path / "posterior.csv")
    table = pd.read_csv(tmp_path / "posterior.csv")
    assert table["of_posterior"].between(0, 0.6).all()
    assert (table["of_population"] < table["of_posterior"]).all()
    assert (table["smallest_ratio"] <= 1).all()
    assert (table["largest_ratio"] >= 1).all()


def test_larger_shifts_are_detected_with_enough_cells():
    script, rng = load("scripts/shifts.py"), np.random.default_rng(0)
    profile = rng.gamma(1, 3, size=60)
    counts = rng.poisson(profile * np.exp(rng.normal(size=(220, 1)) * np.linspace(-0.6, 0.6, 60)))
    cells = Cells(sparse.csr_matrix(counts, dtype=np.float32), np.repeat("a", 220))
    table = script.grades(cells, "data", n_draws=6, seed=0)
    assert set(table["n_cells"]) == {35, 100}
    found = (table["grade"] != "SAME").groupby([table["shift"], table["n_cells"]]).mean().unstack()
    assert found.loc[0.0].max() <= 0.2
    assert found.loc[0.8, 100] == 1
    assert script.overview(table).loc[0.8, 100].startswith("100 (")


# ---- planted artefacts


def test_real_doublets_are_sums_of_two_cells_of_known_types(prepared):
    script = load("scripts/artefacts_doublets.py")
    cells = prepared[prepared.obs["split"] == "train"].copy()
    droplets = script.real_droplets(cells, 0.3, np.random.default_rng(0))
    kind = droplets.obs["kind"].to_numpy()
    assert np.mean(kind != "") == pytest.approx(0.3, abs=0.06)
    assert np.mean(kind[kind != ""] == "within a type") == pytest.approx(0.5, abs=0.12)
    assert droplets.obs["cell_type"].nunique() == cells.obs["cell_type"].nunique()
    single = cells[droplets.obs_names]
    assert (droplets.X[kind == ""] != single.X[kind == ""]).nnz == 0
    assert ((droplets.X - single.X)[kind != ""].sum(axis=1) > 0).all()
    assert (droplets.X - single.X).min() == 0


def test_ambient_rna_that_was_added_to_real_cells_is_found():
    script, rng = load("scripts/artefacts_ambient.py"), np.random.default_rng(0)
    counts = rng.poisson(np.kron(np.eye(2), np.full((150, 30), 5.0)) + np.full((300, 60), 0.05))
    obs = pd.DataFrame({"cell_type": np.repeat(["A", "B"], 150)}, index=[f"cell {i}" for i in range(300)])
    adata, types = AnnData(sparse.csr_matrix(counts, dtype=np.float32), obs=obs), pd.Index(["A", "B"])
    genes, reference = script.halves_of_training(adata, types, np.random.default_rng(1))
    np.testing.assert_array_equal(genes, np.kron(np.eye(2), np.ones(30))[::-1].astype(bool))
    for share in (0.0, 0.1):
        cells = script.real_cells(adata, types, share, np.random.default_rng(2))
        assert cells.counts.sum() == pytest.approx(counts.sum(), rel=0.02)
        table = script.estimates(cells, reference, genes, np.random.default_rng(3)).set_index("profile")
        assert table["before"].to_numpy() == pytest.approx(0.02, abs=0.005)
        assert table["found"].to_numpy() == pytest.approx(share, abs=0.01)
        assert (table["low"] < table["found"]).all()
        assert (table["found"] < table["high"]).all()


def test_artefacts_of_a_model_are_found_and_collected(trained, prepared_file, tmp_path):
    folder = tmp_path / "blood/0/artefacts"
    folder.mkdir(parents=True)
    model = load_model(trained / "model")
    n_below = {name: len(list(model.hierarchy.leaves(name))) for name in model.hierarchy.children}
    node = next(name for name in n_below if 1 < n_below[name] < len(model.populations) and name not in model.cell_types)
    types = sorted({model.cell_type_of[leaf] for leaf in model.hierarchy.leaves(node)})
    run("scripts/artefacts_ambient.py", prepared_file, trained / "model", folder / "ambient.csv", "--share", 0.2)
    sizes = ("--log2-fold-change", 0.5, "--log2-fold-change", 3)
    below = [item for name in types for item in ("--cell-type", name)]
    run("scripts/artefacts_markers.py", trained / "model", folder / "markers.csv", *below, *sizes)
    markers = pd.read_csv(folder / "markers.csv")
    assert set(markers["node"]) == {node}
    assert sorted(markers.loc[markers["below"], "cell_type"].unique()) == types
    large = markers[(markers["log2_fold_change"] == 3) & (markers["method"] == "deseq2")]
    assert large.loc[large["below"], "n_found"].sum() > 0.7 * large.loc[large["below"], "n_planted"].sum()
    assert large.loc[~large["below"], "n_found"].sum() == 0
    kinds = {"kind": ["within a type", "between types"], "auc": [0.6, 0.8], "recall": [0.1, 0.5], "n_doublets": [9, 9]}
    tables = [
        pd.DataFrame(kinds).assign(cells=name, rate=rate) for name in ("real", "generated") for rate in (0.1, 0.2)
    ]
    pd.concat(tables).to_csv(folder / "doublets.csv", index=False)
    run(
        "scripts/artefacts_table.py", tmp_path, *(folder / f"{name}.csv" for name in ("doublets", "ambient", "markers"))
    )
    text = (tmp_path / "artefacts.md").read_text()
    assert "| blood | between types | 0.1 | 0.80 | 0.80 | 0.50 | 0.50 |" in text
    assert "| blood | DESeq2 | 3.0 |" in text
    assert "| blood | 20 |" in text
    assert (tmp_path / "artefacts.png").stat().st_size > 20_000
    assert len(pd.read_csv(tmp_path / "artefacts_ambient.csv")) == 4
