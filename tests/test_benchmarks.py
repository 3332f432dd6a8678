"""The workflow of the benchmarks plans all runs, and scripts write the rows of their tables, which pages show."""

import importlib.metadata
import importlib.util
import os
import re
import runpy
import shlex
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
from bdm.model.model import load_model, save_model
from bdm.settings import PrepareSettings
from bdm.transmutation.transmute import mean as mean_of

pytestmark = pytest.mark.nightly

PROJECT = Path(__file__).parents[1]
ROOT = PROJECT / "benchmarks"
CONFIG = yaml.safe_load((ROOT / "config.yaml").read_text())
METHODS, SEEDS, DATASETS = (CONFIG[key] for key in ("methods", "seeds", "datasets"))
PEERS = {name: method for name, method in METHODS.items() if method and method.get("peer")}
MODULES = {"scdesigner": "scdesigner", "scvi-tools": "scvi"}  # by package
TARGETS = [*CONFIG["comparisons"], *CONFIG["studies"], "responses", "lineages", "time", "audit", "power"]
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


def bdm(*arguments: str | Path) -> None:
    app(list(map(str, arguments)), standalone_mode=False)


# ---- workflow


def plan(folder: Path, *arguments: str) -> str:
    """Plan the workflow in another folder, with the configuration of this one."""
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
        (cells / f"{(dataset or {}).get('of', name)}.h5ad").touch()
    settings = [f"data={cells}", "peer_python=/my peers/bin/python"]
    return plan(folder, "--printshellcmds", "--config", *settings, "--", *TARGETS)


@pytest.fixture(scope="module")
def commands(planned) -> list[list[str]]:
    """Planned shell commands, without where their messages go."""
    found = re.findall(r"^Shell command: \(?(.*?)\)? > \S+ 2>&1$", planned, flags=re.MULTILINE)
    return [shlex.split(part) for command in found for part in command.split(" && ")]


def test_dry_run_plans_all_runs(planned):
    jobs = {rule: int(n) for rule, n in re.findall(r"^(\w+) +(\d+)$", planned, flags=re.MULTILINE)}
    n_seeds = {name: 1 if part.get("one_seed") else len(SEEDS) for name, part in CONFIG["comparisons"].items()}
    n_runs = {name: n_seeds[name] * len(part["datasets"]) for name, part in CONFIG["comparisons"].items()}
    assert jobs["evaluate"] == sum(n_runs.values()), planned
    trained = {
        (data, seed, METHODS[method].get("model", method))
        for name, part in CONFIG["comparisons"].items()
        for data in part["datasets"]
        for seed in SEEDS[: n_seeds[name]]
        for method in part["methods"]
        if METHODS[method]
    }
    assert jobs["train_peer"] == sum(model in PEERS for _, _, model in trained)
    assert jobs["study"] == len(SEEDS) * sum(len(study["datasets"]) for study in CONFIG["studies"].values())
    n_audits = len(CONFIG["audit"]["datasets"]) * len(SEEDS)
    assert (jobs["audit_own"], jobs["audit_peer"]) == (n_audits, n_audits * (len(CONFIG["audit"]["methods"]) - 1))
    assert jobs["interpret"] == len(CONFIG["comparisons"]["many"]["datasets"])
    assert jobs["power_grid"] == len(CONFIG["power"]["grids"])
    assert jobs["collect"] == len(TARGETS) - 1


def test_commands_take_what_rules_give(commands):
    """All scripts are run, but modules that they import."""
    parsed = {}
    for program, *arguments in commands:
        if program == "bdm":
            COMMANDS[arguments[0]].make_context(arguments[0], arguments[1:])
        elif (path := arguments[0]).startswith(f"{ROOT}/scripts"):
            if path not in parsed:
                module = load(path)
                parsed[path] = typer.main.get_command(module.app) if hasattr(module, "app") else command_of(module)
            parsed[path].make_context(path, arguments[1:])
    scripts = {str(path) for path in (ROOT / "scripts").glob("*.py") if "__main__" in path.read_text()}
    assert parsed.keys() == scripts


def command_of(module: ModuleType) -> typer.core.TyperCommand:
    one = typer.Typer()
    one.command()(module.main)
    return typer.main.get_command(one)


def test_all_methods_are_evaluated_together(commands):
    folder = f"results/pbmc3k/{SEEDS[0]}"
    [command] = [c for c in commands if c[1] == "evaluate" and c[3] == f"{folder}/all"]
    compared = [value for flag, value in pairwise(command) if flag == "--compare"]
    methods = CONFIG["comparisons"]["all"]["methods"]
    assert command[4] == f"{folder}/cells/branched.h5ad"
    assert compared == [f"{name}={folder}/cells/{name}.h5ad" for name in methods if name != "branched"]


def test_methods_with_other_settings_of_the_autoencoder_have_one_of_their_own(commands):
    folder = f"results/mop_by_major_type/{SEEDS[0]}"
    of_data = [command for command in commands if any(folder in part for part in command)]
    used = {Path(c[3]).name: Path(c[2]).name for c in of_data if c[1] == "hierarchy"}
    assert used == {"branched.json": "branched", "branched-labels.json": "branched-labels"}
    drawn = {Path(c[4]).name: Path(c[3]).name for c in of_data if c[1].endswith("gaussian.py")}
    assert drawn == {"gaussian.h5ad": "branched-labels"}


def test_peers_with_a_package_run_in_the_environment_that_is_named(commands):
    pythons = {(Path(c[1]).stem, c[0]) for c in commands if c[1].startswith(f"{ROOT}/methods")}
    with_package = {method["script"] for method in PEERS.values() if "package" in method}
    own = {method["script"] for method in METHODS.values() if method and "script" in method} - with_package
    assert pythons == {(name, "/my peers/bin/python") for name in with_package} | {(name, "python") for name in own}


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


def test_folder_of_data_sets_has_to_be_named(tmp_path):
    assert "Name the folder with the data sets: --config data=FOLDER" in plan(tmp_path)


def test_readme_explains_every_method_and_target():
    listed = re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert {*METHODS, *TARGETS} <= set(listed)
    scripts = {method["script"] for method in METHODS.values() if method and "script" in method}
    assert scripts == {path.stem for path in (ROOT / "methods").glob("*.py") if "__main__" in path.read_text()}


# ---- cells


@pytest.fixture(scope="module")
def prepared(example_cells) -> AnnData:
    settings = PrepareSettings(label_key="bulk_labels", n_genes=100, min_cells_per_type=20, test=0.2)
    return prepare(example_cells, settings)


@pytest.fixture(scope="module")
def prepared_file(prepared, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prepared") / "prepared.h5ad"
    prepared.write_h5ad(path)
    return path


def test_thinned_counts_are_binomial():
    x = sparse.csr_matrix(np.full((400, 50), 20, dtype=np.float32))
    thinned = load("scripts/cells.py").thinned(AnnData(x), 0.1, seed=0).X.toarray()
    assert thinned.mean() == pytest.approx(2, rel=0.02)
    assert thinned.var() == pytest.approx(20 * 0.1 * 0.9, rel=0.05)
    assert (x.data == 20).all()


def test_type_made_rare_keeps_its_test_cells(prepared):
    rare = load("scripts/cells.py").made_rare(prepared, B, 7, seed=0)
    numbers = [pd.crosstab(a.obs["cell_type"], a.obs["split"] == "test") for a in (prepared, rare)]
    assert numbers[1].loc[B].tolist() == [7, numbers[0].loc[B, True]]
    pd.testing.assert_frame_equal(numbers[1].drop(B), numbers[0].drop(B))


def test_donors_are_held_out_whole_and_from_each_group(prepared):
    """Of ten donors of two tissues, one of which alone has a cell type."""
    cells, script = prepared.copy(), load("scripts/cells.py")
    cells.obs["donor"] = [f"donor {i % 10}" for i in range(cells.n_obs)]
    cells.obs["tissue"] = np.where(np.arange(cells.n_obs) % 10 < 5, "blood", "tonsil")
    half = script.held_out(cells, "donor", fraction=0.5, seed=0).obs
    assert half["donor"][half["split"] == "test"].nunique() == 5
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.add_categories("rare")
    cells.obs.loc[cells.obs["donor"] == "donor 3", "cell_type"] = "rare"
    tested = set()
    for seed in range(5):
        held_out = script.held_out(cells, "donor", "tissue", seed=seed)
        is_test = held_out.obs["split"] == "test"
        assert ((pd.crosstab(held_out.obs["donor"], is_test) > 0).sum(axis=1) == 1).all()
        assert held_out.obs[is_test].groupby("tissue")["donor"].nunique().to_dict() == {"blood": 1, "tonsil": 1}
        assert "rare" not in set(held_out.obs["cell_type"].cat.categories)
        validation = held_out.obs_names[held_out.obs["split"] == "validation"]
        assert (cells.obs.loc[validation, "split"] == "validation").all()
        tested |= set(held_out.obs["donor"][is_test])
    assert len(tested) > 2


def test_labels_are_joined(example_cells, tmp_path):
    cells = example_cells[:4].copy()
    cells.obs["cell_type"], cells.obs["donor"] = ["B", "B", "T", "T"], [1, 2, 1, 2]
    cells.write_h5ad(tmp_path / "cells.h5ad")
    run("scripts/cells.py", "join-labels", "--column", "donor", tmp_path / "cells.h5ad", tmp_path / "joined.h5ad")
    assert list(anndata.read_h5ad(tmp_path / "joined.h5ad").obs["cell_type"]) == ["B|1", "B|2", "T|1", "T|2"]


def test_cells_along_a_curve_have_no_clusters_and_the_same_genes_in_any_number():
    simulated = load("scripts/simulated.py")
    few, many = (simulated.continuous("branching", n, seed=0) for n in (300, 600))
    means = [np.log1p(np.asarray(cells.X.mean(axis=0)).ravel()) for cells in (few, many)]
    assert np.corrcoef(means)[0, 1] > 0.98
    x = simulated.positions("branching", 3000, np.random.default_rng(0))
    assert np.mean(x[:, 1] == 0) == pytest.approx(simulated.BRANCH_POINT, abs=0.03)
    neighbours = np.linalg.norm(x[:, None] - x, axis=2) + 9 * np.eye(len(x))
    assert neighbours.min(axis=1).max() < 0.2  # no gaps along the curve


def test_atlas_is_simulated_on_disk(tmp_path):
    run("scripts/simulated.py", "atlas", tmp_path / "cells.h5ad", "--n-types", 5, "--n-cells", 3000)
    cells = anndata.read_h5ad(tmp_path / "cells.h5ad")
    assert (cells.shape, cells.obs["cell_type"].nunique()) == ((3000, 2000), 5)
    assert cells.X.nnz / (3000 * 2000) == pytest.approx(0.06, abs=0.02)


# ---- methods


@pytest.fixture(scope="module")
def trained(prepared_file, tmp_path_factory) -> Path:
    """Folder of a run with an autoencoder, a hierarchy and a model of few steps, with a network on all branches."""
    folder = tmp_path_factory.mktemp("trained")
    autoencoder, hierarchy = folder / "autoencoders/branched", folder / "hierarchies/branched.json"
    for path in (autoencoder, hierarchy, folder / "models/branched"):
        path.parent.mkdir()
    bdm("autoencoder", prepared_file, autoencoder, "--n-steps", 60)
    bdm("hierarchy", autoencoder, hierarchy, "--n-bootstrap", 2)
    model = folder / "models/branched"
    bdm("train", autoencoder, hierarchy, model, "--prior=diffusion", "--n-steps", 60, "--width", 16)
    model = load_model(model)
    model.prior.kept.fill_(True)
    save_model(folder / "models/branched", model)
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


def test_gaussian_draws_otherwise_than_the_model(trained, prepared_file, prepared, tmp_path):
    arguments = ["generate", trained / "models/branched", tmp_path / "cells.h5ad", "--cells-like", prepared_file]
    run("methods/gaussian.py", *arguments)
    other = check_generated(tmp_path / "cells.h5ad", prepared)
    bdm(*arguments)
    own = check_generated(tmp_path / "cells.h5ad", prepared)
    assert not np.allclose(other.obsm["latent"], own.obsm["latent"])


def test_network_is_on_all_branches_of_a_model_that_is_trained_to_the_end(trained, prepared_file, prepared, tmp_path):
    script, model = "methods/everywhere.py", tmp_path / "model"
    fitted = [trained / "autoencoders/branched", trained / "hierarchies/branched.json"]
    run(script, "train", *fitted, model, "--n-steps", 20, "--width", 8)
    assert load_model(model).prior.kept.all()
    assert {"closed_form", "network", "gain", "kept"} <= set(pd.read_csv(model / "branches.csv"))
    run(script, "generate", model, tmp_path / "cells.h5ad", "--cells-like", prepared_file)
    check_generated(tmp_path / "cells.h5ad", prepared)


def rows_of(adata: AnnData, cell_type: str) -> np.ndarray:
    return adata[adata.obs["cell_type"] == cell_type].X.toarray()


def generated_by(script: str, model: Path, prepared_file: Path, folder: Path) -> AnnData:
    """Generate cells with a peer twice, check that the cells are the same, and read them."""
    for name in ("a", "b"):
        run(f"methods/{script}.py", "generate", model, folder / f"{name}.h5ad", "--cells-like", prepared_file)
    one, same = (check_generated(folder / f"{name}.h5ad", anndata.read_h5ad(prepared_file)) for name in ("a", "b"))
    assert (one.X != same.X).nnz == 0
    return one


@pytest.mark.parametrize("name", [name for name, peer in PEERS.items() if "package" in peer])
def test_peers_with_a_package(name, prepared_file, tmp_path):
    pytest.importorskip(MODULES[PEERS[name]["package"]], reason="see the extra peers in pyproject.toml")
    script, options = PEERS[name]["script"], PEERS[name].get("train", "").split()
    run(f"methods/{script}.py", "train", prepared_file, tmp_path / "model", "--epochs", "150", *options)
    generated = generated_by(script, tmp_path / "model", prepared_file, tmp_path)
    real = anndata.read_h5ad(prepared_file)
    mean = np.log1p(rows_of(generated, B).mean(axis=0))
    similar = {
        str(name): np.corrcoef(mean, np.log1p(rows_of(real, name).mean(axis=0)))[0, 1]
        for name in real.obs["cell_type"].cat.categories
    }
    assert max(similar, key=similar.get) == B
    assert rows_of(generated, B).sum(axis=1).mean() == pytest.approx(rows_of(real, B).sum(axis=1).mean(), rel=0.3)


def test_resampled_cells_are_training_cells_and_thinned_cells_are_parts_of_them(prepared_file, prepared, tmp_path):
    run("methods/resampled.py", "train", prepared_file, tmp_path / "model")
    resampled, thinned = (
        generated_by(name, tmp_path / "model", prepared_file, tmp_path) for name in ("resampled", "thinned")
    )
    training = prepared[prepared.obs["split"] != "test"]
    for name in (B, NK):
        real, parts = rows_of(training, name), rows_of(thinned, name)
        assert (rows_of(resampled, name)[:, None] == real).all(axis=2).any(axis=1).all()
        assert (parts[:, None] <= real).all(axis=2).any(axis=1).all()
        assert set(parts.sum(axis=1)) <= set(real.sum(axis=1))
        assert (parts[:, None] == real).all(axis=2).any(axis=1).mean() < 0.5


def test_negative_binomials_have_the_moments_of_the_cells(prepared_file, prepared, tmp_path):
    rng = np.random.default_rng(0)
    negative_binomials = load("methods/negative_binomial.py").NegativeBinomials
    library = rng.lognormal(7, 0.5, size=(4000, 1))
    share, dispersion = rng.dirichlet(np.full(20, 5.0)), np.linspace(0.01, 2, 20)
    counts = rng.negative_binomial(1 / dispersion, 1 / (1 + dispersion * library * share))
    fitted = negative_binomials.fitted(sparse.csr_matrix(counts, dtype=float))
    np.testing.assert_allclose(fitted.share, share, rtol=0.1)
    np.testing.assert_allclose(fitted.dispersion[2:], dispersion[2:], rtol=0.35)
    drawn = fitted.draw(4000, rng)
    np.testing.assert_allclose(drawn.std(axis=0), counts.std(axis=0), rtol=0.3)
    run("methods/negative_binomial.py", "train", prepared_file, tmp_path / "model")
    generated = generated_by("negative_binomial", tmp_path / "model", prepared_file, tmp_path)
    training = prepared[prepared.obs["split"] != "test"]
    for name in (B, NK):
        means = [rows_of(cells, name).mean(axis=0) for cells in (generated, training)]
        assert np.corrcoef(np.log1p(means))[0, 1] > 0.95


# ---- studies, each with its tables


@pytest.fixture(scope="module")
def studied(trained, prepared_file, tmp_path_factory):
    """Run a study on the example cells, collect its rows, and return them with the tables as text."""

    def study(name: str, *inputs: Path, options: tuple[str | int, ...] = (), cells: Path = prepared_file):
        folder = tmp_path_factory.mktemp("study")
        out = folder / f"blood/0/{name}.csv"
        out.parent.mkdir(parents=True)
        run(f"scripts/{name}.py", cells, *inputs, out, *options)
        run("scripts/collect.py", name, folder, folder / "blood/0")
        return pd.read_csv(folder / f"{name}.csv"), (folder / f"{name}.md").read_text()

    return study


def test_rare_types_are_recognised_by_all_strategies(studied, trained, prepared):
    rows, text = studied("augment", trained / "models/branched")
    n_train = prepared.obs["cell_type"][prepared.obs["split"] != "test"].value_counts()
    assert set(rows["cell_type"]) == set(n_train.index[n_train < 50])
    assert set(rows["method"]) == {"plain", "balanced", "oversampled", "branched"}
    assert rows["value"].between(0, 1).all()
    assert "## random forest\n\n| data | cell_type | n_train | n_test | plain |" in text


def test_predicted_means_are_the_same_in_all_forms_of_cells(studied, prepared, tmp_path):
    cells = prepared[prepared.obs["cell_type"].isin([B, NK])].copy()
    condition = np.random.default_rng(0).choice(["CTRL", "STIM"], cells.n_obs)
    counts = cells.X.toarray()
    counts[condition == "STIM", :20] *= 3
    cells.X, cells.obs["condition"] = sparse.csr_matrix(counts), condition
    cells.write_h5ad(tmp_path / "cells.h5ad")
    rows, text = studied(
        "predicted_output", cells=tmp_path / "cells.h5ad", options=("--min-cells", 10, "--n-top-genes", 20)
    )
    script = load("scripts/predicted_output.py")
    assert set(rows["method"]) == {*script.FORMS, "floor", "unchanged", "common_response"}
    assert "| data | means | method | common_degs |" in text
    mean = script.log_cp10k(counts[condition == "STIM"]).mean(axis=0)
    for emitted in script.FORMS.values():
        values = emitted(np.tile(counts[condition == "CTRL"], (20, 1)), mean, np.random.default_rng(0))
        found = script.log_cp10k(values) if emitted is script.as_counts else values
        assert np.corrcoef(found.mean(axis=0), mean)[0, 1] > 0.98


def test_populations_are_compared_with_labels_and_between_seeds(tmp_path):
    for seed, groups in ((0, "xxyy"), (1, "xyyy")):
        (tmp_path / f"blood/{seed}").mkdir(parents=True)
        cells = pd.DataFrame({"cell": list("abcd"), "label: type": list("ppqq"), "bdm": list(groups)})
        cells.to_csv(tmp_path / f"blood/{seed}/populations.csv", index=False)
    run("scripts/collect.py", "populations", tmp_path, tmp_path / "blood/0", tmp_path / "blood/1")
    text = (tmp_path / "populations.md").read_text()
    assert "| method | groups | type | agreement of seeds |" in text
    assert "| bdm | 2.00 (2.00 to 2.00) | 0.50 (0.00 to 1.00) | 0.00 |" in text


def test_populations_are_those_of_the_autoencoder_and_clusters(studied, trained):
    pytest.importorskip("igraph")
    options = ("--label", "bulk_labels", "--resolution", 1)
    rows, text = studied("populations", trained / "autoencoders/branched", options=options)
    found = rows.set_index(["method", "score"])["value"]
    assert found["bdm", "bulk_labels"] > 0.5
    assert found["leiden 1", "groups"] > 1
    assert "## blood\n\n| method | groups | bulk_labels |" in text


def test_tree_is_compared_with_an_annotation(studied, trained, prepared, tmp_path):
    cells = prepared.copy()
    cells.obs["major"] = cells.obs["cell_type"].astype(str).str.contains("T|NK").map({True: "T or NK", False: "other"})
    cells.write_h5ad(tmp_path / "cells.h5ad")
    hierarchy = trained / "hierarchies/branched.json"
    rows, text = studied("tree", hierarchy, options=("--label", "major"), cells=tmp_path / "cells.h5ad")
    found = rows.set_index(["group", "score"])["value"]
    assert found["all groups", "groups"] == 2
    assert 0 <= found["major: T or NK", "found by chance"] < 0.2
    assert "| blood | all groups |" in text
    script = load("scripts/tree.py")
    clades = {frozenset("ab"), frozenset("cde"), frozenset("de")}
    assert script.nearness(frozenset("ab"), clades) == 1
    assert script.nearness(frozenset("abc"), clades) == pytest.approx(2 / 3)
    with pytest.raises(SystemExit, match="several values of label"):
        script.named_groups(pd.DataFrame({"cell_type": ["a", "a", "b"], "label": ["x", "y", "x"]}), ["label"])


def test_transmuted_cells_are_scored(studied, trained):
    models = [trained / "models/branched"] * 2
    rows, text = studied("transmute", *models, options=("--pair", f"{B}={NK}"))
    found = rows.set_index(["method", "score"])["value"]
    assert found["unchanged", "energy"] == rows[rows["score"] == "energy"]["value"].max()
    assert found["branched", "library_kept"] > 0.5 > abs(found["sampled anew", "library_kept"])
    assert f"| {B} | {NK} |" in text


def test_strategies_have_the_moments_that_they_claim(small_model):
    model, script = small_model.model, load("scripts/transmute.py")
    assert script.pairs_of(["B|C", "B|S", "T|S", "DC|C"], "C=S") == [("B|C", "B|S")]
    b, nk = (model.autoencoder.populations_of(name)[0] for name in (B, NK))
    here, there = (model.moments.mixture((name,)) for name in (b, nk))
    x = torch.distributions.MultivariateNormal(here.mean, here.covariance).sample((3000,))
    found = script.strategies(model, model, [(B, NK), (B, "Dendritic")])
    after = {name: strategy(x, b, nk, torch.Generator().manual_seed(0)) for name, _, strategy in found}
    for name in set(after) - {"common shift"}:
        assert (after[name].mean(dim=0) - there.mean).norm() < 0.2 * (here.mean - there.mean).norm(), name
    middle = here.mean + (mean_of(model, NK) + mean_of(model, "Dendritic")) / 2 - mean_of(model, B)
    torch.testing.assert_close(after["common shift"].mean(dim=0), middle, atol=0.1, rtol=0)
    torch.testing.assert_close(after["linear map"].T.cov(), there.covariance, atol=0.2, rtol=0)


def test_verdicts_on_real_cells_and_on_faulty_ones_are_counted(studied):
    rows, text = studied("verdicts", options=("--n-splits", 1, "--n-faulty", 1))
    of_all = rows[(rows["group"] == "all cells") & (rows["score"] == "found")].set_index("method")["value"]
    assert of_all["real cells"] == 0
    assert of_all["shift by 0.8 SD"] == of_all["half are copies"] == 100
    assert "| blood | 1: 0.0% |" in text.replace(" |  |", " |")
    assert "## Large differences\n\n| method |" in text


def test_doublets_of_real_cells_are_sums_of_two_cells(example_cells):
    cells, script = example_cells.copy(), load("scripts/doublets.py")
    cells.obs["cell_type"] = cells.obs["bulk_labels"]
    droplets = script.real_droplets(cells, 0.2, np.random.default_rng(0))
    is_doublet = (droplets.obs["kind"] != "").to_numpy()
    assert is_doublet.mean() == pytest.approx(0.2, abs=0.05)
    added = droplets.X - cells[droplets.obs_names].X
    assert (added.sum(axis=1).A1 > 0).tolist() == is_doublet.tolist()
    found = script.found(droplets, 0.2).set_index("kind")
    assert found["auc"].between(0.4, 1).all()


def test_ambient_rna_is_found(studied, trained):
    options = ("--share", 0, "--share", 0.2)
    rows, text = studied("ambient", trained / "models/branched", options=options)
    found = rows[rows["score"] == "found"].set_index(["method", "planted"])["value"]
    assert found["real, known profile", 0.2] == pytest.approx(0.2, abs=0.1)
    assert found["real, known profile", 0.2] > found["real, known profile", 0]
    assert "| data | planted | real, known profile | real, empty profile |" in text


@pytest.fixture(scope="module")
def of_donors(tmp_path_factory) -> Path:
    """Folder of prepared cells of twelve donors, which differ in the expression of all genes, and a model of them."""
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


def test_new_donors_differ_as_left_out_ones(studied, of_donors):
    rows, text = studied("donors", of_donors / "model", cells=of_donors / "half.h5ad")
    found = rows.set_index(["method", "score"])["value"]
    assert found["alike", "intraclass"] < 0.3 < 0.4 < found["learned", "intraclass"] < 2
    assert found["floor", "pseudobulk"] == pytest.approx(1, abs=0.5)
    assert "| blood | learned |" in text


def test_random_splits_of_donors_are_tested(studied, of_donors):
    options = ("--n-donors", 3, "--n-splits", 1, "--n-splits-composition", 2)
    rows, text = studied("designs", of_donors / "model", options=options, cells=of_donors / "half.h5ad")
    assert set(rows["cells"]) == {"real donors", "generated donors", "generated pairs", "independent donors"}
    shown = rows[rows["level"].isna()].set_index(["cells", "method", "score"])["value"]
    assert shown["real donors", "composition", "tests"] >= 1
    curve = rows[(rows["cells"] == "real donors") & (rows["level"] == 1)]
    assert (curve["value"] == 1).all()
    assert "| real donors | 3 | deseq2 |" in text


def test_added_types_are_compared_with_joint_training(studied, prepared, tmp_path):
    cells = prepared[prepared.obs["cell_type"].isin([B, NK, "Dendritic", "CD14+ Monocyte"])].copy()
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.remove_unused_categories()
    cells.write_h5ad(tmp_path / "prepared.h5ad")
    cells.write_h5ad(tmp_path / "joint.h5ad")
    options = ("--every", 4, "--n-steps", 40)
    rows, text = studied("extend", tmp_path / "joint.h5ad", options=options, cells=tmp_path / "prepared.h5ad")
    assert set(rows["method"]) == {"floor", "joint", "extension"}
    assert rows["cell_type"].nunique() == 1
    found = rows.set_index(["method", "score"])["value"]
    assert 0 < found["extension", "extension_seconds"] < found["extension", "training_seconds"]
    assert "# By type\n\n## Energy distance" in text


def test_peers_are_audited_on_the_folds_of_an_audit(of_donors, tmp_path):
    folder, prepared = tmp_path / "blood/0", of_donors / "prepared.h5ad"
    bdm("audit-folds", prepared, folder / "folds", "--n-folds", 2)
    for name in ("resampled", "negative_binomial"):
        cells = [folder / f"folds/{name}-{fold}.h5ad" for fold in (1, 2)]
        for fold, path in enumerate(cells, start=1):
            members, model = folder / f"folds/fold-{fold}.h5ad", folder / f"folds/{name}-{fold}"
            run(f"methods/{name}.py", "train", members, model)
            run(f"methods/{name}.py", "generate", model, path, "--cells-like", members)
        given = [item for path in cells for item in ("--cells", path)]
        bdm("audit", prepared, folder / f"audits/{name}", *given, "--n-folds", 2)
    run("scripts/collect.py", "audit", tmp_path, folder)
    rows = pd.read_csv(tmp_path / "audit.csv")
    of_donors = rows[rows["level"] == "donor"].set_index(["method", "score"])["value"]
    assert (of_donors["resampled", "nearest"] == 1).all()
    assert (of_donors["copies", "nearest"] == 1).all()
    assert len(of_donors["chance", "nearest"]) == 2
    assert "| blood | resampled | 1.00 (1.00 to 1.00) |" in (tmp_path / "audit.md").read_text()
    assert (tmp_path / "audit.png").stat().st_size > 10_000


# ---- tables of comparisons


def write_run(folder: Path, *, energy: float, seconds: float) -> Path:
    """Write what the workflow leaves of a run with the methods `branched` and `scvi`."""
    for name in ("all", "times", "hierarchies", "models/branched"):
        (folder / name).mkdir(parents=True)
    scores = [f"energy,0.01,{energy},0.5", "f1_ratio,1,0.9,0.8", "forest_auc,0.5,0.52,0.9", "gene_auc,0.5,0.6,0.5"]
    (folder / "all/overall.csv").write_text("\n".join(["metric,floor,branched,scvi", *scores, ""]))
    frequent = [f"B,60,100,{name},0.1,0.8,0.9\nNK,8,60,{name},0.1,0.6,0.9\n" for name in ["floor", "branched", "scvi"]]
    rare = [*(f"DC,3,12,{name},{energy},-9,0.4\n" for name in ["floor", "branched"]), "DC,3,12,scvi,,,0.2\n"]
    columns = "cell_type,n_test,n_train,set,energy,slope,f1\n"
    (folder / "all/by_type.csv").write_text("".join([columns, *frequent, *rare]))
    properties = [
        f"{name},{kind},{method},{by},{value},0.25"
        for name, kind in [("mean", "gene"), ("library_size", "cell")]
        for method, value in [("floor", 0.25), ("branched", 0.5), ("scvi", 0.75)]
        for by in ("all", "label")
    ]
    (folder / "all/properties.csv").write_text("\n".join(["property,kind,set,by,value,floor", *properties, ""]))
    for step in ["autoencoder-branched", "train-branched", "train-scvi", "generate-branched", "generate-scvi"]:
        row = f"{seconds}\t0:00:01\t{len(step)}\t{seconds / 2}"
        (folder / f"times/{step}.tsv").write_text(f"s\th:m:s\tmax_rss\tcpu_time\n{row}\n")
    return folder


TRAINING = ["--training", "branched=autoencoder-branched,train-branched", "--training", "scvi=train-scvi"]


@pytest.fixture
def collected(trained, tmp_path) -> Path:
    """Folder with the tables of two runs."""
    hierarchy = (trained / "hierarchies/branched.json").read_text()
    branches = (trained / "models/branched/branches.csv").read_text()
    for seed, energy, seconds in ((0, 0.2, 10), (1, 0.4, 30)):
        folder = write_run(tmp_path / f"blood/{seed}", energy=energy, seconds=seconds)
        (folder / "hierarchies/branched.json").write_text(hierarchy)
        (folder / "models/branched/branches.csv").write_text(branches)
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
    properties = pd.read_csv(collected / "all_properties.csv")
    assert list(properties) == ["data", "method", "seed", "property", "value", "floor"]
    assert len(properties) == 8
    assert (collected / "all_properties.png").stat().st_size > 10_000


def test_tables_show_means_over_seeds_and_their_range(collected):
    text = (collected / "all.md").read_text()
    assert "## Energy distance\n\n| data | floor | branched | scvi |" in text
    assert "| blood | 0.01 (0.01 to 0.01) | 0.30 (0.20 to 0.40) | 0.50 (0.50 to 0.50) |" in text
    assert "## Training, processor s\n\n| data | branched | scvi |" in text
    assert "| data | branched | scvi |\n| --- | --- | --- |\n| blood | 0/2/0 | 0/0/2 |" in text
    assert "beyond the floor.\n\n| data | branched | scvi |\n| --- | --- | --- |\n| blood | 0.250 | 0.500 |" in text
    assert "| blood | DC | 12 | 3 | 0.30 (0.20 to 0.40) | 0.30 (0.20 to 0.40) |\n" in text
    assert "with network, branched" in text


def test_earlier_runs_are_shown_unless_they_ran_again(collected, tmp_path):
    again = tmp_path / "again"
    again.mkdir()
    run("scripts/collect.py", "all", again, collected / "blood/1", *TRAINING, "--earlier", collected)
    both = [pd.read_csv(folder / "all.csv").sort_values(["seed", "method", "score"]) for folder in (collected, again)]
    pd.testing.assert_frame_equal(*(rows.reset_index(drop=True) for rows in both))


def test_values_of_a_seed_are_averaged_first():
    tables = load("scripts/tables.py")
    rows = pd.DataFrame({"data": "x", "seed": [0, 0, 1], "method": "a", "score": "s", "value": [0.0, 1.0, 0.6]})
    [text] = tables.Table("").as_text(rows)
    assert "| x | 0.55 (0.50 to 0.60) |" in text
    [text] = tables.Table("", by_seed=False, shown=tables.number_and_mean).as_text(rows)
    assert "| x | 3: 0.5% |" in text


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
    tables = load("scripts/tables.py")
    [text] = tables.GRADES.as_text(pd.DataFrame(rows))
    assert "| data | near | mixed | once |\n| --- | --- | --- | --- |\n| blood | 0/2/0 | 1/0/1 | 0/0/1 |" in text


def test_time_and_memory_of_steps_are_drawn_by_number_of_cells(tmp_path):
    tables = load("scripts/tables.py")
    for name, seconds in (("1000_cells", 10), ("20000_cells", 200)):
        folder = write_run(tmp_path / f"{name}/0", energy=0.1, seconds=seconds)
        (folder / "all").rename(folder / "atlas")
    runs = [tmp_path / f"{name}/0" for name in ("1000_cells", "20000_cells")]
    text = load("scripts/collect.py").collect("atlas", tables.targets({})["atlas"], tmp_path, runs)
    assert "## Seconds\n\n| step | 1000_cells | 20000_cells |" in text
    assert "| autoencoder | 10 | 200 |" in text
    assert (tmp_path / "atlas.png").stat().st_size > 10_000


# ---- pages


def test_pages_show_the_scores_of_the_benchmark():
    """The table of forest AUCs of README and docs/benchmark.md, which has coarse labels as well."""
    files = [PROJECT / "docs/_static" / name for name in ("benchmark.csv", "benchmark_coarse.csv")]
    scores = pd.concat([pd.read_csv(file) for file in files])
    means = scores[scores["score"] == "forest_auc"].groupby(["data", "method"])["value"].mean().unstack()
    methods = ["floor", "branched", "scanvi", "scvi", "scdesigner-library", "negative-binomial"]
    for page, n_rows in (("README.md", 10), ("docs/benchmark.md", 16)):
        lines = (PROJECT / page).read_text().splitlines()
        rows = [line for line in lines if re.match(r"\| (\w+) \|", line) and line.split()[1] in means.index]
        assert len(rows) == n_rows
        for row in rows:
            name, *values = (value.strip() for value in row.strip("|").split("|"))
            assert values == [f"{mean:.2f}" for mean in means.loc[name, methods]], name


def test_cells_of_responses_that_were_left_out_are_nearer_to_real_cells_than_unchanged_ones(tmp_path):
    run("scripts/simulated.py", "conditions", tmp_path / "cells.h5ad", "--shared=1", "--n-types=4", "--n-cells=40")
    folder, script = tmp_path / "simulated/0/responses", "scripts/responses.py"
    folder.mkdir(parents=True)
    run(script, "select", tmp_path / "cells.h5ad", folder / "cells.h5ad")
    predicted = [folder / f"{name}.h5ad" for name in ("common", "bdm")]
    for path in predicted:
        run(script, "predict", folder / "cells.h5ad", path, "--method", path.stem)
    run(script, "score", folder / "cells.h5ad", *predicted, folder.parent / "responses.csv")
    run("scripts/collect.py", "responses", tmp_path, folder.parent)
    rows = pd.read_csv(tmp_path / "responses.csv").pivot_table(index="method", columns="score", values="value")
    assert rows.loc["floor", "position"] == 0
    assert rows.loc["unchanged", "position"] == 1
    assert rows.loc["bdm", "position"] < 0.8
    assert rows.loc["bdm", "edistance"] < rows.loc["common", "edistance"]
    assert rows.loc["bdm", "covered_50%"] > 0.75
    assert "## E-distance\n\n| method | simulated |" in (tmp_path / "responses.md").read_text()


def test_cells_of_a_lineage_that_were_left_out_are_nearer_to_real_cells_than_others(tmp_path):
    run("scripts/simulated.py", "lineage", tmp_path / "cells.h5ad")
    folder = tmp_path / "simulated/0"
    folder.mkdir(parents=True)
    run(
        "scripts/lineages.py",
        tmp_path / "cells.h5ad",
        folder / "lineages.csv",
        "--leave",
        "a",
        "--progenitors",
        "a=a1,a2",
    )
    run("scripts/collect.py", "lineages", tmp_path, folder)
    rows = pd.read_csv(tmp_path / "lineages.csv").set_index("method")
    value, share = (rows.loc[rows["score"] == score, "value"] for score in ("edistance", "fates"))
    assert share["bdm"] > 0.8 > share["frequency"]
    assert value["bdm"] < value.drop(["bdm", "bdm-lineage", "halves"]).min()
    assert "## Energy distance\n\n| data | method | a |" in (tmp_path / "lineages.md").read_text()


def test_cells_at_times_that_were_left_out_are_nearer_to_real_cells_than_neighbours(tmp_path):
    run("scripts/simulated.py", "lineage", tmp_path / "cells.h5ad")
    folder = tmp_path / "simulated/0"
    folder.mkdir(parents=True)
    options = ("--covariate-key", "minutes", "--leave", "b")
    run("scripts/covariates.py", tmp_path / "cells.h5ad", folder / "time.csv", *options)
    run("scripts/collect.py", "time", tmp_path, folder)
    value = pd.read_csv(tmp_path / "time.csv").set_index("method")["value"]
    assert list(value.index) == ["halves", "bdm", "nearest", "mixture", "splines"]
    assert value["bdm"] < value["nearest"]
    assert "| method | b |" in (tmp_path / "time.md").read_text()
