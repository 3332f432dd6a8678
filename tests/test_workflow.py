import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import typer
import yaml
from snakemake.cli import main
from snakemake.parser import parse
from test_modalities import joined
from warm import warm_bdm
from zoo import kept

from bdm._core.files import sha256
from bdm.cli import app
from bdm.data.modalities import block_sizes, write_h5mu

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "config/config.yaml"
SCHEMA = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
COMMANDS = typer.main.get_command(app).commands
RULES = ["example", "prepare", "autoencoder", "hierarchy", "train", "generate", "transmute", "evaluate"]
RULES += ["evaluate_transmuted", "interpret", "card", "report"]
SECTIONS = ["prepare", "autoencoder", "hierarchy", "train", "extend", "generate", "transmute", "respond", "lineage"]
SECTIONS += ["simulate", "evaluate", "interpret", "audit", "card"]


PARSED: dict[tuple[str, int, int], tuple[tuple[str, int], dict[int, int]]] = {}


def parse_once(path, workflow, linemap, rulecount):
    """Parse a Snakefile as Snakemake does, which takes half of the time of a plan, unless it was parsed before."""
    file = path.get_path_or_uri(secret_free=True)
    key = (file, Path(file).stat().st_mtime_ns, rulecount)
    if key not in PARSED:
        PARSED[key] = parse(path, workflow, lines := {}, rulecount=rulecount), lines
    result, lines = PARSED[key]
    linemap.update(lines)
    return result


@contextlib.contextmanager
def quick_plans() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BDM_IN_WORKFLOW", "")  # which the workflow sets
        patch.setattr("snakemake.workflow.parse", parse_once)
        patch.setattr("snakemake.executors.touch.Executor.SLEEPING_TIME", 0.01)  # seconds between files, of 0.1
        yield


def snakemake(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run Snakemake in this process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    command = [str(argument) for argument in arguments]
    with quick_plans(), contextlib.chdir(cwd), contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            main(command)
        except SystemExit as stop:
            return subprocess.CompletedProcess(command, stop.code or 0, stdout.getvalue(), stderr.getvalue())
    raise AssertionError("Snakemake ends by an exit code")


def dry_run(folder: Path, config: dict, *arguments: str) -> str:
    """Plan the workflow in another folder with its own configuration."""
    write_config(folder, config)
    done = snakemake("--snakefile", ROOT / "Snakefile", "--dry-run", *arguments, cwd=folder)
    return done.stdout + done.stderr


def test_a_new_folder_has_the_workflow_of_the_demo(tmp_path, bdm, caplog):
    caplog.set_level("INFO")
    folder = tmp_path / "my project"
    assert bdm("init", folder)[0] == 0
    assert f"cd '{folder}' && snakemake --cores all" in caplog.text
    done = snakemake("--dry-run", cwd=folder)
    assert planned(done.stdout + done.stderr) == dict.fromkeys([*RULES, "everything"], 1) | {"total": len(RULES) + 1}
    assert "train" not in yaml.safe_load((folder / "config/config.yaml").read_text())  # the mixture has no network
    (folder / "config/config.yaml").write_text("datasets: {}")
    code, message = bdm("init", folder)
    assert (code, (folder / "config/config.yaml").read_text()) == (2, "datasets: {}")
    assert message == f"bdm: {folder} exists already; name a new folder.\n"


def write_config(folder: Path, config: dict) -> None:
    (folder / "config").mkdir(exist_ok=True)
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def demo_config(**sections: dict) -> dict:
    return yaml.safe_load(CONFIG.read_text()) | sections


def planned(output: str) -> dict[str, int]:
    """Read the number of jobs by rule from what Snakemake prints."""
    return {rule: int(number) for rule, number in re.findall(r"^(\w+) +(\d+)$", output, flags=re.MULTILINE)}


def shell_commands(output: str) -> list[list[str]]:
    """Read the planned shell commands, without where their messages go."""
    commands = re.findall(r"^Shell command: (bdm .*?) > \S+ 2>&1$", output, flags=re.MULTILINE)
    return [shlex.split(command) for command in commands]


def values_of_commands(output: str) -> list[tuple[str, dict]]:
    """Parse the planned shell commands as bdm does: their names and the values of their parameters."""
    commands = shell_commands(output)
    return [(name, COMMANDS[name].make_context(name, arguments).params) for _, name, *arguments in commands]


@pytest.mark.parametrize(
    "arguments",
    [[], ["--snakefile", "workflow/Snakefile"], ["--snakefile", "workflow/Snakefile", "--directory", ".test"]],
    ids=["root", "workflow", "test of the catalog"],
)
def test_dry_run_plans_every_rule(arguments):
    done = snakemake("--dry-run", "--forceall", *arguments, cwd=ROOT)
    jobs = planned(done.stdout)
    assert {rule: jobs.get(rule) for rule in RULES} == dict.fromkeys(RULES, 1), done.stderr


@pytest.mark.slow
def test_rules_run_the_command_of_the_environment_of_snakemake(tmp_path):
    write_config(tmp_path, demo_config())
    (tmp_path / "bdm").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "bdm").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.defpath}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1"]
    command.append("resources/pbmc68k_reduced.h5ad")
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert ad.read_h5ad(tmp_path / "resources/pbmc68k_reduced.h5ad").n_obs == 700


def test_rule_files_name_an_environment_that_exists():
    for path in (ROOT / "workflow/rules").glob("*.smk"):
        text = path.read_text()
        named = re.findall(r'^    conda:\n +"(.*)"$', text, flags=re.MULTILINE)
        assert len(named) == len(re.findall(r"^rule ", text, flags=re.MULTILINE)), path
        assert all((path.parent / name).is_file() for name in named), path


HACK = "$(touch hacked) `touch hacked`; touch hacked & 'it''s' \"é\" \\ * ~ | %s"
ENDINGS = {"path": "h5ad", "labels": "csv", "genes": "txt", "keep_genes": "txt"}
ENDINGS |= {"tree": "nwk", "addition": "h5ad", "design": "yaml"}
ODD_NAMES = {key: f"{key} {HACK}.{ending}" for key, ending in ENDINGS.items()}


def odd_config() -> dict:
    """Configuration in which all that is free to choose is odd."""
    addition = {"path": ODD_NAMES["addition"], "cell_types": [HACK, "--x"], "label_key": HACK}
    mine = {
        "path": ODD_NAMES["path"],
        "label_key": f"type {HACK}",
        "batch_key": f"--batch {HACK}",
        "labels": ODD_NAMES["labels"],
        "counts": f"counts {HACK}",
        "prepare": {"genes": ODD_NAMES["genes"], "keep_genes": ODD_NAMES["keep_genes"], "leave_out": [HACK, "--help"]},
        "hierarchy": {"tree": ODD_NAMES["tree"]},
        "transmute": {"transmutations": {"odd": {"to": HACK, "from": ["--to", "-", " ", HACK]}}},
        "simulate": {"designs": {"odd": {"path": ODD_NAMES["design"]}}},
        "extend": {"additions": {"more": addition}},
    }
    return demo_config(datasets={"mine": mine})


def test_commands_get_odd_values_as_they_are(tmp_path):
    for name in ODD_NAMES.values():
        (tmp_path / name).touch()
    write_config(tmp_path, odd_config())
    plan = ("--snakefile", ROOT / "Snakefile", "--dry-run", "--printshellcmds")
    done = snakemake(*plan, "all", "results/mine/power/odd", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    values = dict(values_of_commands(done.stdout))
    mine = odd_config()["datasets"]["mine"]
    found = values["prepare"]
    assert str(found["data"]) == ODD_NAMES["path"]
    for key in ("label_key", "batch_key", "labels", "counts"):
        assert str(found[key]) == mine[key]
    assert list(found["leave_out"]) == mine["prepare"]["leave_out"]
    assert found["genes"] == ODD_NAMES["genes"]
    assert str(found["keep_genes"]) == ODD_NAMES["keep_genes"]
    assert str(values["hierarchy"]["tree"]) == ODD_NAMES["tree"]
    moved, added = values["transmute"], values["extend"]
    assert {"to": moved["to"], "from": list(moved["from_"])} == mine["transmute"]["transmutations"]["odd"]
    assert str(values["simulate"]["design"]) == str(values["power"]["design"]) == ODD_NAMES["design"]
    assert str(added["cells"]) == ODD_NAMES["addition"]
    assert (list(added["cell_type"]), added["label_key"]) == ([HACK, "--x"], HACK)
    assert not (tmp_path / "hacked").exists()


def test_names_may_be_numbers(tmp_path):
    for name in ("cells.h5ad", "more.h5ad", "mine.yaml"):
        (tmp_path / name).touch()
    sections = {
        "transmute": {"transmutations": {7: {"to": "x"}}},
        "simulate": {"designs": {8: {"path": "mine.yaml"}}},
        "extend": {"additions": {9: {"path": "more.h5ad"}}},
    }
    values = values_of_commands(dry_run(tmp_path, demo_config(datasets={5: {"path": "cells.h5ad"} | sections})))
    written = {str(of["out"]): of for _, of in values if "out" in of}
    assert {"results/5/transmuted/7.h5ad", "results/5/simulated/8.h5ad", "results/5+9/model"} <= set(written)
    assert not written["results/5/transmuted/7.h5ad"]["from_"]


def test_model_grows_by_one_addition_after_the_other(tmp_path):
    for name in ["mine.h5ad", "first.h5ad", "it's second.h5ad"]:
        (tmp_path / name).touch()
    additions = {
        "zz": {"path": "first.h5ad", "cell_types": ["a b", "it's"]},
        "aa": {"path": "it's second.h5ad", "cell_types": ["c d"], "label_key": "cell type", "missing_as_zero": True},
    }
    transmutations = {"there": {"to": "a b"}}
    mine = {"path": "mine.h5ad", "extend": {"additions": additions}, "transmute": {"transmutations": transmutations}}
    output = dry_run(tmp_path, {"datasets": {"mine": mine, "other": {"path": "mine.h5ad"}}})
    jobs = planned(output)
    assert jobs["extend"] == 2
    assert jobs["generate"] == jobs["evaluate"] == jobs["interpret"] == 4
    assert jobs["transmute"] == 3
    assert jobs["train"] == jobs["prepare"] == jobs["evaluate"] / 2
    extensions = {str(of["out"]): of for name, of in values_of_commands(output) if name == "extend"}
    first, second = extensions["results/mine+zz/model"], extensions["results/mine+aa/model"]
    inputs = ["results/mine/model", "results/mine/prepared.h5ad", "results/mine+zz/prepared.h5ad"]
    assert [str(first[key]) for key in ("model", "known", "joined")] == inputs
    assert list(first["cell_type"]) == additions["zz"]["cell_types"]
    assert str(second["model"]) == "results/mine+zz/model"
    assert (list(second["cell_type"]), second["label_key"], second["missing_as_zero"]) == (["c d"], "cell type", True)


def test_own_settings_of_a_data_set_come_before_those_of_all(tmp_path):
    (tmp_path / "mine.h5ad").touch()
    config = demo_config(prepare={"n_genes": 70, "test": 0.3})
    config["datasets"]["mine"] = {"path": "mine.h5ad", "prepare": {"n_genes": 7}}
    values = values_of_commands(dry_run(tmp_path, config))
    prepared = {Path(of["data"]).name: of for name, of in values if name == "prepare"}
    mine, demo = prepared["mine.h5ad"], prepared["pbmc68k_reduced.h5ad"]
    keys = ("n_genes", "test", "min_cells_per_gene", "label_key")
    assert [mine[key] for key in keys] == ["7", "0.3", "3", "cell_type"]
    assert (demo["n_genes"], demo["test"]) == ("70", "0.3")


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"prepair": {}}, r"top level: There is no setting prepair; did you mean prepare\?"),
        ({"prepare": {"test": 0}}, "prepare.test: test is 0, but must be above 0 and below 1."),
        ({"prepare": {"validation": 0.5, "test": 0.5}}, "datasets.pbmc68k.prepare: validation and test sum to 1"),
        ({"prepare": {"min_donors": 5}}, "datasets.pbmc68k.prepare: min_donors is 5, .*donors"),
        ({"train": {"learning_rate": float("nan")}}, "datasets.pbmc68k.train.learning_rate: .* is nan, .* finite"),
        ({"seed": 1.5}, "seed: seed is 1.5, but must be a whole number."),
        ({"hierarchy": {"tree": "a{b}.nwk"}}, "datasets.pbmc68k.hierarchy.tree: .* 'a{b}.nwk'"),
        ({"hierarchy": {"tree": ""}}, "hierarchy.tree: tree is '', but must be non-empty."),
        ({"prepare": {"leave_out": ["a", 1]}}, "prepare.leave_out.1: leave_out is 1, but must be text."),
        ({"datasets": {"a": {"path": "a.h5ad", "label": "x"}}}, r"datasets.a: .* label; did you mean labels\?"),
        ({"datasets": {"a": {"label_key": "x"}}}, "datasets.a: There is no path, which is required."),
        ({"datasets": {"a/b": {"path": "a.h5ad"}}}, "datasets: The name 'a/b' is not allowed"),
        ({"datasets": {}}, "datasets: datasets is empty"),
        ({"datasets": {"a": {"path": "a{x}.h5ad"}}}, "datasets.a.path: .*braces"),
        ({"extend": {"additions": {"more": {"path": "{x}.h5ad"}}}}, "datasets.pbmc68k.extend.additions.more: .*braces"),
    ],
)
def test_mistake_in_configuration_is_reported_in_one_sentence(tmp_path, sections, expected):
    output = dry_run(tmp_path, demo_config(**sections))
    [message] = re.findall("^Configuration.*$", output, flags=re.MULTILINE)
    assert re.match(f"Configuration, {expected}", message)
    assert message.endswith("config/README.md.")


@pytest.mark.parametrize("name", ["own-data", "extend"])
def test_example_configuration_is_allowed(tmp_path, name):
    config = yaml.safe_load((ROOT / f"config/example-{name}.yaml").read_text())
    for file in ["blood.h5ad", "cortex_labels.csv", "cortex.nwk", "cortex_10x/matrix.mtx"]:
        (tmp_path / "data" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / file).touch()
    jobs = planned(dry_run(tmp_path, config))
    numbers = {"own-data": [None, None, 2], "extend": [1, 2, 3]}[name]
    assert [jobs.get(rule) for rule in ("example", "extend", "evaluate")] == numbers


def run_workflow(folder: Path) -> None:
    """Run the workflow with all its rules but those of power: on five types, with few genes and steps."""
    left_out = ["CD34+", "CD4+/CD45RO+ Memory", "CD8+ Cytotoxic T", "CD8+/CD45RA+ Naive Cytotoxic"]
    config = demo_config(
        prepare={"n_genes": 100, "keep_genes": "none", "leave_out": left_out, "min_cells_per_type": 12},
        autoencoder={"n_latent": 6, "n_steps": 30},
        hierarchy={"n_bootstrap": 5},
        train={"prior": "diffusion", "width": 16, "n_steps": 30},
        evaluate={"n_repeats": 1},
    )
    config["datasets"]["pbmc68k"] |= {
        "audit": {"run": True, "n_folds": 1},
        "extend": {"additions": {"more": {"path": "resources/pbmc68k_reduced.h5ad", "cell_types": ["CD34+"]}}},
        "simulate": {"designs": {"response": {"path": "design.yaml"}}},
    }
    shutil.copy(ROOT / "config/example-experiment.yaml", folder / "design.yaml")
    write_config(folder, config)
    done = snakemake("--snakefile", ROOT / "Snakefile", "--cores", "2", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def warm(tmp_path_factory) -> Iterator[None]:
    """Have commands of the workflow start at once."""
    with warm_bdm(tmp_path_factory.mktemp("warm")):
        yield


@pytest.mark.slow
def test_messages_of_jobs_name_keys(warm, tmp_path):
    cells = ad.AnnData(np.ones((4, 3)), obs=pd.DataFrame({"cell_type": ["A", "A", "B", None]}, index=list("abcd")))
    cells.write_h5ad(tmp_path / "cells.h5ad")
    write_config(tmp_path, {"datasets": {"mine": {"path": "cells.h5ad"}}})
    snakemake("--snakefile", ROOT / "Snakefile", "--cores", "1", "results/mine/prepared.h5ad", cwd=tmp_path)
    assert "leave them out by `drop_unlabelled: true`" in (tmp_path / "results/mine/logs/prepare.log").read_text()


@pytest.fixture(scope="module")
def finished(warm, tmp_path_factory) -> Path:
    """Copy of the folder in which the workflow has run."""
    return shutil.copytree(kept(run_workflow), tmp_path_factory.mktemp("finished") / "run", symlinks=True)


def outputs(finished: Path) -> list[Path]:
    """List what the rules declare as their output, without temporary files."""
    table = snakemake("--snakefile", ROOT / "Snakefile", "--summary", cwd=finished).stdout.splitlines()[1:]
    return [finished / line.partition("\t")[0] for line in table if "removed temp file" not in line]


@pytest.mark.slow
def test_run_makes_all_results(finished):
    declared = outputs(finished)
    assert {path.name for path in (finished / "results").iterdir()} == {"pbmc68k", "pbmc68k+more"}
    assert not [path for path in declared if not path.stat().st_size]
    for part in ("audit", "evaluation", "interpretation", "transmutation/b_to_nk", "extension"):
        folders = [path for path in (finished / "results").glob(f"*/{part}") if path not in declared]
        assert len(folders) == (1 if part in ("audit", "extension") else 2)
        for folder in folders:
            assert set(folder.iterdir()) == {path for path in declared if path.parent == folder}
    results = finished / "results/pbmc68k"
    assert sha256(results / "generated.h5ad") in (results / "report.html").read_text()


@pytest.mark.slow
def test_extended_model_has_all_results(finished):
    results = finished / "results"
    of_extended = results / "pbmc68k+more"
    assert pd.read_csv(of_extended / "extension/extensions.csv")["cell_type"].tolist() == ["CD34+"]
    assert "CD34+" in set(pd.read_csv(of_extended / "evaluation/scores.csv")["group"])
    assert '<section id="added">' in (of_extended / "report.html").read_text()
    old, new = (ad.read_h5ad(results / name / "generated.h5ad") for name in ["pbmc68k", "pbmc68k+more"])
    kept = new[new.obs["cell_type"].isin(old.obs["cell_type"].unique())]
    assert (kept.X != old.X).nnz == 0


@pytest.mark.slow
def test_second_run_has_nothing_to_do(finished):
    done = snakemake("--snakefile", ROOT / "Snakefile", "--dry-run", cwd=finished)
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.slow
def test_archive_is_one_page_that_needs_no_network(finished):
    done = snakemake("--snakefile", ROOT / "Snakefile", "--report", "archive.html", cwd=finished)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (finished / "archive.html").read_text()
    shown = [path.relative_to(finished).as_posix() for path in outputs(finished) if path.suffix in (".png", ".html")]
    assert [name for name in shown if name not in page] == []
    assert len(shown) > 20
    loaded = re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?https?:[^>]*>", page)
    assert not loaded
    assert not re.search(r"@import|url\([\"']?https?:", page)


@pytest.mark.slow
def test_cells_with_proteins_and_peaks_have_a_report(warm, tmp_path):
    write_h5mu(tmp_path / "cells.h5mu", joined())
    config = {
        "datasets": {"blood": {"path": "cells.h5mu", "label_key": "bulk_labels"}},
        "prepare": {"n_genes": 100, "keep_genes": "none", "n_peaks": 30},
        "autoencoder": {"n_latent": 6, "n_steps": 30},
        "hierarchy": {"n_bootstrap": 5},
        "transmute": {"transmutations": {"b_to_nk": {"to": "CD56+ NK", "from": ["CD19+ B"]}}},
        "evaluate": {"n_repeats": 1},
        "interpret": {"n_genes": 5},
    }
    write_config(tmp_path, config)
    done = snakemake("--snakefile", ROOT / "Snakefile", "--cores", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    results = tmp_path / "results/blood"
    assert set(pd.read_csv(results / "interpretation/branch_genes.csv")["modality"]) == {"rna", "prot", "atac"}
    groups = set(pd.read_csv(results / "transmutation/b_to_nk/scores.csv")["group"])
    assert {name.rpartition(", ")[2] for name in groups if ", " in name} == {"prot", "atac"}
    assert "prot" in set(pd.read_csv(results / "evaluation/scores.csv")["group"])
    assert block_sizes(ad.read_h5ad(results / "transmuted/b_to_nk.h5ad").var) == (100, 6, 30)
    assert (results / "card.md").read_text().count("| genes | 100 |\n| proteins | 6 |\n| peaks | 30 |") == 2
    page = (results / "report.html").read_text()
    assert "100 genes + 6 proteins + 30 peaks" in page
    assert re.search(r'id="modalities".*<th scope="row">prot</th>', page, flags=re.DOTALL)
