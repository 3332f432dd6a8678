"""bdm as others have it: installed from a package, and as a module of another workflow, both outside its checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import anndata
import pytest
import yaml
from test_environment import stub_conda
from test_workflow import RULES, planned, shell_commands, write_config

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parents[1]
NAME = "github.com/lab/bdm"
SETTINGS = yaml.safe_load((ROOT / ".test/config/config.yaml").read_text())


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed, without the code of this checkout on its path; give what it prints."""
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"} | environment
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def files_of_project() -> list[str]:
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT)
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """Clean copy of the project, a separate repository, in a folder whose name has a space."""
    folder = tmp_path_factory.mktemp("a checkout")
    for name in files_of_project():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    for command in ("init", "add --all", "-c user.name=a -c user.email=a@b.c commit --message a", "tag v1"):
        run("git", *command.split(), cwd=folder)
    return folder


@pytest.fixture(scope="module")
def packages(checkout, tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and source distribution, the first built from the second."""
    folder = tmp_path_factory.mktemp("packages")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=checkout)
    [wheel], [source] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, source


def environment_with(folder: Path, *bdm: str | Path) -> Path:
    """Make a virtual environment with bdm, which takes what bdm depends on from the environment of the tests."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    [libraries] = folder.glob("lib/*/site-packages")
    (libraries / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python", "--disable-pip-version-check"]
    run(*pip, "install", "--no-deps", "--no-index", "--no-build-isolation", *bdm, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(packages, tmp_path_factory) -> Path:
    """Virtual environment with the wheel."""
    return environment_with(tmp_path_factory.mktemp("installed"), packages[0])


def test_wheel_has_every_file_of_the_package(packages):
    with zipfile.ZipFile(packages[0]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    package = {name for name in files_of_project() if name.startswith("bdm/")}
    workflow = {name for name in files_of_project() if name.startswith(("config/", "profiles/", "workflow/"))}
    assert names == package | {f"bdm/project/{name}" for name in workflow}


def test_readme_of_the_wheel_links_to_files_of_the_release(packages):
    with zipfile.ZipFile(packages[0]) as wheel:
        [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        text = wheel.read(metadata).decode()
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert all(link.startswith("https://") for link in links)
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert any(link.endswith(f"/bdm/blob/v{version}/docs/space.md") for link in links)


def test_source_distribution_is_the_repository(packages):
    """With the license and tests for packages of other systems, and what the tests need."""
    with tarfile.open(packages[1]) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    assert names == {*files_of_project(), "PKG-INFO"}


def test_installed_command_is_that_of_the_wheel(installed, tmp_path):
    version = run(installed / "bin/bdm", "--version", cwd=tmp_path)
    assert version == f"bdm {yaml.safe_load((ROOT / 'CITATION.cff').read_text())['version']}\n"
    place = run(installed / "bin/python", "-c", "import bdm; print(bdm.__file__)", cwd=tmp_path)
    assert Path(place.strip()).is_relative_to(installed)


def test_workflow_of_the_wheel_runs_without_a_checkout(installed, tmp_path):
    path = f"{stub_conda(tmp_path)}{os.pathsep}{installed / 'bin'}{os.pathsep}{os.environ['PATH']}"
    run(installed / "bin/bdm", "init", "project", cwd=tmp_path)
    project = tmp_path / "project"
    snakemake = (installed / "bin/python", "-m", "snakemake", "--cores", "1")
    run(*snakemake, "--sdm", "conda", "--conda-create-envs-only", cwd=project, PATH=path)
    version = yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]
    assert (tmp_path / "arguments").read_text().splitlines()[-1] == f"bdm=={version}"
    write_config(project, SETTINGS)
    run(*snakemake, "results/blood/generated.h5ad", cwd=project)
    cells = anndata.read_h5ad(project / "results/blood/generated.h5ad")
    assert cells.n_obs == 9 * SETTINGS["generate"]["n_cells"]  # types of 10 cells or more


def test_first_example_of_the_readme_needs_the_wheel_alone(installed, tmp_path):
    [example, *_] = re.findall(r"(?:^    bdm .*\n)+", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    output = run("bash", "-ec", example, cwd=tmp_path, PATH=f"{installed / 'bin'}{os.pathsep}{os.defpath}")
    assert output.count("took ") == len(example.splitlines())
    assert "verdict" in output
    assert {file.name for file in tmp_path.iterdir()} == {"cells.h5ad", "blood"}
    assert (tmp_path / "blood/report.html").is_file()


@dataclass(frozen=True)
class Importer:
    """Folder of a workflow that uses that of a checkout as a module, with a separate configuration."""

    folder: Path
    checkout: Path

    def write(self, snakefile: str, *lines: str, settings: dict = SETTINGS) -> None:
        """Say where the module's Snakefile is; ``{checkout}`` stands for the checkout."""
        write_config(self.folder, {"samples": "samples.tsv", "bdm": settings})
        place = snakefile.format(checkout=self.checkout)
        head = ['configfile: "config/config.yaml"', "module bdm:", f"    snakefile: {place}"]
        text = "\n".join([*head, '    config: config["bdm"]', *lines])
        (self.folder / "Snakefile").write_text(f"{text}\n")

    def snakemake(self, *arguments: str | Path, python: str | Path = sys.executable, **environment: str) -> str:
        """Run Snakemake; a repository of the name ``NAME`` is the checkout."""
        instead = {"COUNT": "1", "KEY_0": f"url.file://{self.checkout}.insteadOf", "VALUE_0": f"https://{NAME}"}
        git = {f"GIT_CONFIG_{name}": text for name, text in instead.items()}
        cache = {"XDG_CACHE_HOME": str(self.folder / "cache")}
        return run(python, "-m", "snakemake", *arguments, cwd=self.folder, **git, **cache, **environment)


@pytest.fixture
def importer(tmp_path, checkout) -> Importer:
    return Importer(tmp_path, checkout)


ALL = "use rule * from bdm as bdm_*"
BY_PATH = '"{checkout}/workflow/Snakefile"'
BY_REPOSITORY = 'github("lab/bdm", path="workflow/Snakefile", tag="v1")'
BY_LOCAL_REPOSITORY = '"git+file://{checkout}/workflow/Snakefile@v1"'


def test_module_generates_cells_with_the_installed_package(importer, installed):
    importer.write(BY_REPOSITORY, ALL)
    wanted = [f"results/blood/{name}" for name in ("generated.h5ad", "hierarchy.png")]
    other = Path(sys.executable).parent / "bdm"
    assert other.is_file()
    path = f"{other.parent}{os.pathsep}{os.environ['PATH']}"
    importer.snakemake("--cores", "1", "--", *wanted, python=installed / "bin/python", PATH=path)
    cells, figure = (importer.folder / name for name in wanted)
    counts = anndata.read_h5ad(cells).obs["cell_type"].value_counts()
    assert len(counts) == 9  # of 10 cells or more
    assert set(counts) == {SETTINGS["generate"]["n_cells"]}
    assert figure.stat().st_size > 5000
    importer.snakemake("--report", "report.html", "--", *wanted)
    assert "results/blood/hierarchy.png" in (importer.folder / "report.html").read_text()


def test_recipe_makes_all_results_of_the_module(importer):
    page = (importer.checkout / "docs/questions.md").read_text()
    [recipe] = re.findall(r"^```python\n(configfile.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    importer.write(BY_PATH)
    (importer.folder / "Snakefile").write_text(recipe.replace("path/to/bdm", str(importer.checkout)))
    jobs = planned(importer.snakemake("--dry-run"))
    assert {rule: jobs.get(f"bdm_{rule}") for rule in RULES} == dict.fromkeys(RULES, 1)
    assert (jobs["share"], jobs["all"]) == (1, 1)


@pytest.mark.parametrize(
    ("snakefile", "source"),
    [(BY_REPOSITORY, f"git+https://{NAME}@v1"), (BY_LOCAL_REPOSITORY, "git+file://{quoted}@v1")],
    ids=["repository", "local repository"],
)
def test_environment_of_rules_has_the_bdm_of_the_module(importer, tmp_path_factory, snakefile, source):
    importer.write(snakefile, ALL)
    folder = tmp_path_factory.mktemp("stubs")
    path = f"{stub_conda(folder)}{os.pathsep}{os.environ['PATH']}"
    importer.snakemake("--cores", "1", "--sdm", "conda", "--conda-create-envs-only", PATH=path)
    source = source.format(quoted=str(importer.checkout).replace(" ", "%20"))
    assert (folder / "arguments").read_text().splitlines()[-2:] == ["--no-build-isolation", source]


def test_profiles_are_used_from_elsewhere(importer):
    importer.write(BY_PATH, "use rule * from bdm")
    profiles = importer.checkout / "profiles"
    arguments = ("--profile", profiles / "slurm", "--workflow-profile", profiles / "default", "--executor", "local")
    output = importer.snakemake(*arguments, "--dry-run", "--cores", "1")
    assert planned(output)["generate"] == 1
    assert "mem_mb=<TBD>" in output
    assert shell_commands(output)  # printshellcmds
