"""The workflow on a real Slurm of one node, where a job runs out of memory."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from slurm.cluster import Job, missing, running
from test_workflow import RULES
from test_workflow import snakemake as run_here

ROOT = Path(__file__).parents[1]
PROFILE = ROOT / "profiles/slurm"
SETTINGS = {
    "prepare": {"n_genes": 300, "keep_genes": "none"},
    "autoencoder": {"n_steps": 50},
    "hierarchy": {"n_bootstrap": 5},
    "train": {"n_steps": 500},
    "evaluate": {"n_repeats": 1},
}
# bdm generate needs more than 400 MB, and less than four times as much.
LITTLE_MEMORY = "  generate:\n    mem_mb: 400 * attempt ** 2\n"
# Ask early, and without the accounts of jobs that this cluster does not keep.
ASK = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "3", "--latency-wait", "5"]


def snakemake(*arguments: str | Path, cwd: Path, environment: dict[str, str] | None = None) -> subprocess.Popen:
    """Start the workflow in another folder."""
    environment = dict(environment or os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", *arguments]
    with (cwd / "snakemake.log").open("w") as log:
        return subprocess.Popen([*map(str, command)], cwd=cwd, env=environment, stdout=log, stderr=subprocess.STDOUT)


def write_config(folder: Path, **sections: dict) -> None:
    config = yaml.safe_load((ROOT / "config/config.yaml").read_text()) | sections
    (folder / "config").mkdir()
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def edited_profile(folder: Path, edits: dict[str, str]) -> Path:
    """Copy the profile with other text in some places."""
    text = (PROFILE / "config.yaml").read_text()
    for old, new in edits.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    folder.mkdir()
    (folder / "config.yaml").write_text(text)
    return folder


def resources(folder: Path, profile: Path) -> dict[str, dict[str, str]]:
    """Read what each rule would ask for, from a dry run."""
    done = run_here("--snakefile", ROOT / "Snakefile", "--profile", profile, "--dry-run", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    found, rule = {}, ""
    for line in (done.stdout + done.stderr).splitlines():
        if line.startswith("rule "):
            rule = line.removeprefix("rule ").removesuffix(":")
        if line.startswith("    resources: "):
            found[rule] = dict(part.split("=", 1) for part in line.removeprefix("    resources: ").split(", "))
    return found


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
def test_memory_and_time_grow_with_the_input(tmp_path, is_folder):
    cells = tmp_path / "cells"
    (cells / "part" if is_folder else tmp_path).mkdir(parents=True, exist_ok=True)
    with (cells / "part/data" if is_folder else cells).open("wb") as file:
        file.truncate(500 * 10**6)
    write_config(tmp_path, datasets={"mine": {"path": "cells", "label_key": "cell_type"}})
    asked = resources(tmp_path, PROFILE)
    assert int(asked["prepare"]["mem_mb"]) == pytest.approx(9000, rel=0.05)
    assert int(asked["prepare"]["runtime"]) == pytest.approx(170, rel=0.05)
    assert asked["train"]["mem_mb"] == "<TBD>"  # until its input is there
    assert not {"slurm_account", "slurm_partition", "gpu"} & asked["prepare"].keys()


def test_short_section_names_account_and_partitions(tmp_path):
    write_config(tmp_path)
    names = {"account": "lab", "partition": "short", "gpu_partition": "fast"}
    edits = {f"\n  {name}: null": f"\n  {name}: {value}" for name, value in names.items()}
    asked = resources(tmp_path, edited_profile(tmp_path / "profile", edits))
    assert {of["slurm_account"] for of in asked.values()} == {"lab"}
    on_gpu = {rule for rule, of in asked.items() if of.get("gpu") == "1"}
    assert on_gpu == {"autoencoder", "train"}
    assert all(of["slurm_partition"] == ("fast" if rule in on_gpu else "short") for rule, of in asked.items())


# ---- on a cluster


@dataclass(frozen=True)
class Finished:
    """A workflow that has run on a cluster."""

    folder: Path
    jobs: dict[str, list[Job]]  # by rule, oldest first


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Finished:
    """Workflow on the example with few steps and one GPU; one job has little memory."""
    if reason := missing():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    write_config(folder, **SETTINGS)
    edits = {
        "gpu_partition: null": "gpu_partition: gpu",
        "\nset-resources:\n": f"\nset-resources:\n{LITTLE_MEMORY}",
    }
    profile = edited_profile(folder / "profile", edits)
    with running(tmp_path_factory.mktemp("cluster")) as cluster:
        process = snakemake("--profile", profile, *ASK, cwd=folder, environment=cluster.environment)
        try:
            process.wait(timeout=900)
        finally:
            process.kill()
        jobs = cluster.jobs()
    assert process.returncode == 0, (folder / "snakemake.log").read_text()
    return Finished(folder, {rule: [job for job in jobs if job.rule == rule] for rule in RULES})


def states(jobs: list[Job]) -> list[str]:
    return [job.state for job in jobs]


@pytest.mark.nightly
def test_every_rule_ran_as_a_job(finished):
    once = {rule: states(jobs) for rule, jobs in finished.jobs.items() if rule != "generate"}
    assert once == {rule: ["COMPLETED"] for rule in once}
    assert (finished.folder / "results/pbmc68k/interpretation/interpretation.json").stat().st_size


@pytest.mark.nightly
def test_job_that_runs_out_of_memory_has_more_the_second_time(finished):
    jobs = finished.jobs["generate"]
    first, second = ([job for job in jobs if job.memory == memory] for memory in ("400M", "1600M"))
    assert set(states(first)) <= {"OUT_OF_MEMORY", "CANCELLED", "FAILED"}
    assert states(second) == ["COMPLETED"]
    assert len(first) == len(second) == 1


@pytest.mark.nightly
def test_jobs_that_train_have_a_gpu(finished):
    on_gpu = {rule for rule, jobs in finished.jobs.items() if all(job.partition == "gpu" for job in jobs)}
    assert on_gpu == {"autoencoder", "train"}
    assert {job.gpus for rule in on_gpu for job in finished.jobs[rule]} == {"gres/gpu:1"}
