import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from rattler import MatchSpec

ROOT = Path(__file__).parents[1]
ENVIRONMENT = ROOT / "environment.yml"
RECIPE = ROOT / ".github/conda/recipe.yaml"
RULE_ENVIRONMENT = ROOT / "workflow/envs/bdm.yaml"
POST_DEPLOY = RULE_ENVIRONMENT.with_suffix(".post-deploy.sh")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
BUILD = {needed.name: str(needed.specifier) for needed in map(Requirement, PROJECT["build-system"]["requires"])}
CONDA_NAMES = {"matplotlib": "matplotlib-base", "torch": "pytorch"}
EXTRAS = ("loom", "multi", "power")  # that commands use


def read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def conda_ranges(path: Path) -> dict[str, str]:
    """Give the version range of each package of an environment file, all parsed strictly."""
    content = read(path)
    assert content["channels"][0] == "conda-forge"
    assert set(content) <= {"name", "channels", "dependencies"}
    return ranges_of([spec for spec in content["dependencies"] if isinstance(spec, str)])


def ranges_of(specs: list[str]) -> dict[str, str]:
    """Give the version range of each package."""
    parsed = [MatchSpec(spec, strict=True) for spec in specs]
    ranges = {spec.name.normalized: str(spec.version or "") for spec in parsed}
    assert len(ranges) == len(parsed), "a package is named twice"
    return ranges


def project_ranges(*extras: str) -> dict[str, str]:
    """Give the version range of each dependency, and of the dependencies of extras, by its conda name."""
    lists = [
        PROJECT["project"]["dependencies"],
        *(PROJECT["project"]["optional-dependencies"][name] for name in extras),
    ]
    requirements = [Requirement(text) for needed in lists for text in needed]
    ranges = {CONDA_NAMES.get(needed.name, needed.name): str(needed.specifier) for needed in requirements}
    return ranges | {"python": PROJECT["project"]["requires-python"]}


def same_ranges(left: dict[str, str], right: dict[str, str]) -> bool:
    return {*left} == {*right} and all({*left[name].split(",")} == {*right[name].split(",")} for name in left)


def test_environment_has_the_dependencies_of_the_project():
    ranges = conda_ranges(ENVIRONMENT)
    ranges.pop("pip")
    assert same_ranges(ranges, project_ranges(*EXTRAS, "workflow"))


def test_environment_of_rules_has_the_dependencies_of_the_project():
    ranges = conda_ranges(RULE_ENVIRONMENT)
    ranges.pop("pip")
    for name, versions in BUILD.items():
        assert ranges.pop(name) == versions
    assert same_ranges(ranges, project_ranges(*EXTRAS))


def test_recipe_has_what_the_project_has():
    recipe = read(RECIPE)
    lowest = recipe["context"]["python_min"]
    host, run = (
        ranges_of([spec.replace("${{ python_min }}", lowest) for spec in recipe["requirements"][name]])
        for name in ("host", "run")
    )
    assert same_ranges(run, project_ranges())
    assert run["python"].startswith(f">={lowest},")
    assert host.items() >= BUILD.items()
    assert recipe["context"]["version"] == PROJECT["project"]["version"]
    scripts = [f"{name} = {function}" for name, function in PROJECT["project"]["scripts"].items()]
    assert recipe["build"]["python"]["entry_points"] == scripts
    about = {name: PROJECT["project"][key] for name, key in (("summary", "description"), ("license", "license"))}
    assert recipe["about"].items() >= about.items()


@pytest.mark.nightly
def test_recipe_is_rendered():
    from rattler_build import Stage0Recipe

    [rendered] = Stage0Recipe.from_yaml(RECIPE.read_text()).render()
    recipe = rendered.recipe.to_dict()
    assert recipe["build"]["noarch"] == "python"
    assert recipe["source"][0]["url"].endswith(f"/bdm-{PROJECT['project']['version']}.tar.gz")


def test_environment_installs_the_checkout():
    [pip] = [entry["pip"] for entry in read(ENVIRONMENT)["dependencies"] if isinstance(entry, dict)]
    assert pip == ["--editable ."]
    assert (ENVIRONMENT.parent / "pyproject.toml").is_file()


def test_rule_environment_is_not_made_without_the_checkout():
    done = subprocess.run(["sh", POST_DEPLOY], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)
    assert done.returncode != 0
    assert "BDM_SOURCE" in done.stderr


STUB_CONDA = """#!/bin/sh
case "$1" in
    info) echo '{{"conda_prefix": "{folder}", "platform": "linux-64"}}' ;;
    config) echo '{{"get": {{"channel_priority": "strict"}}}}' ;;
    --version) echo "conda 25.1.0" ;;
    env) for last; do :; done; mkdir -p "$last" ;;
esac
"""


def stub_conda(folder: Path) -> Path:
    """Write a conda that makes empty environments, and a Python that writes what it is given in ``arguments``."""
    stubs = {
        "conda": STUB_CONDA.format(folder=folder),
        "activate": f"export PATH={folder}/bin:$PATH\n",
        "python": f"#!/bin/sh\nprintf '%s\\n' \"$@\" >> {folder}/arguments\n",
    }
    (folder / "bin").mkdir()
    for name, text in stubs.items():
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder / "bin"


def test_rules_run_the_command_of_their_environment_in_which_snakemake_installs_the_checkout(tmp_path):
    folder = stub_conda(tmp_path)
    (folder / "bdm").write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/given\ntouch "$2"\n')
    (folder / "bdm").chmod(0o755)
    command = [sys.executable, "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--cores", "1"]
    command += ["--configfile", ROOT / "config/config.yaml", "--sdm", "conda", "--", "resources/pbmc68k_reduced.h5ad"]
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    installed = ["-m", "pip", "install", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    assert (tmp_path / "arguments").read_text().splitlines()[-len(installed) :] == installed
    assert (tmp_path / "given").read_text() == "example resources/pbmc68k_reduced.h5ad\n"


def test_version_is_named_alike():
    version = PROJECT["project"]["version"]
    [latest, *_] = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert latest == read(ROOT / "CITATION.cff")["version"] == version
    pages = (ROOT / "docs").glob("*.md")
    tags = {tag for page in pages for tag in re.findall(r"\b(?:v|bdm[-:])(\d+\.\d+\.\d+)\b", page.read_text())}
    assert tags == {version}
