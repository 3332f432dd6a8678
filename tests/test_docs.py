import importlib.util
import json
import re
import runpy
import shlex
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import typer
import yaml
from r_readers import check_r_reads
from test_modalities import joined

from bdm.api import BranchedDiffusion
from bdm.applications.design.design import read_design
from bdm.cli import app
from bdm.data.modalities import write_h5mu
from bdm.data.prepare import prepare
from bdm.evaluation.table import JUDGED
from bdm.settings import PrepareSettings

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "config/README.md", "benchmarks/README.md")
]
PAGES += [ROOT / "benchmarks/finished/README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob(".github/*.md"))]
COMMANDS = typer.main.get_command(app).commands
Found = TypeVar("Found")
FENCE = re.compile(r"^( *)(`{3,})(\S*)[^\n]*\n(.*?)^\1\2 *$", flags=re.MULTILINE | re.DOTALL)


def on_pages(find: Callable[[Path], Iterable[Found]]) -> list[tuple[str, Found]]:
    """What all pages have, with the names of the pages; at least one page has something."""
    found = [(page.relative_to(ROOT).as_posix(), each) for page in PAGES for each in find(page)]
    assert found, "no page has what is checked"
    return found


def fenced(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block of a page."""
    return [(language, content) for _, _, language, content in FENCE.findall(page.read_text())]


def code_lines(page: Path) -> list[str]:
    """All lines of code on a page, fenced or indented by four or more."""
    text = FENCE.sub("", page.read_text())
    indented = re.findall(r"^ {4,}(\S.*)$", text, flags=re.MULTILINE)
    blocks = [line for language, content in fenced(page) for line in content.splitlines() if language != "python"]
    return [line.strip().removeprefix("$ ") for line in [*indented, *blocks]]


def prose(page: Path) -> str:
    """Text of a page without lines of code."""
    return re.sub(r"^ {4,}\S.*$", "", FENCE.sub("", page.read_text()), flags=re.MULTILINE)


def inline_code(page: Path) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(page))


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


# ---- links


def test_links_lead_somewhere():
    link = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
    links = on_pages(lambda page: link.findall(re.sub(r"`[^`\n]*`", "", prose(page))))
    places = [(page, ROOT / page, name, anchor) for page, (name, anchor) in links]
    targets = [(page, path.parent / name if name else path, anchor) for page, path, name, anchor in places]
    assert [(page, target) for page, target, _ in targets if not target.exists()] == []
    at_titles = [(page, target, anchor) for page, target, anchor in targets if anchor]
    assert at_titles
    assert [(page, target, anchor) for page, target, anchor in at_titles if anchor not in anchors(target)] == []


def test_links_to_the_site_lead_to_pages():
    project = ROOT / "pyproject.toml"
    site = tomllib.loads(project.read_text())["project"]["urls"]["Documentation"]
    forms = (path for pattern in ("*.*ml", "*.md") for path in (ROOT / ".github").rglob(pattern))
    link = re.compile(rf"{re.escape(site)}/page/(\w+)\.html(?:#([\w-]+))?")
    links = [found for path in (ROOT / "README.md", project, *forms) for found in link.findall(path.read_text())]
    assert len(links) > 3
    for page, anchor in links:
        assert (ROOT / f"docs/{page}.md").is_file()
        assert not anchor or anchor in anchors(ROOT / f"docs/{page}.md")


def test_every_page_is_in_the_table_of_contents():
    index = ROOT / "docs/index.md"
    listed = " ".join(content for language, content in fenced(index) if language == "{toctree}").split()
    assert {page.stem for page in PAGES if page.parent == index.parent} - {"index"} <= set(listed)


# ---- commands


def test_commands_are_as_bdm_takes_them():
    for _, command in on_pages(lambda page: [line for line in code_lines(page) if line.startswith("bdm ")]):
        _, name, *words = shlex.split(command, comments=True)
        if name in COMMANDS and words != ["--help"]:
            COMMANDS[name].make_context(name, words)
        else:
            assert name in {*COMMANDS, "--help", "--version"}


def test_commands_named_in_the_text_have_these_options():
    pattern = re.compile(r"^bdm ([a-z][a-z-]*)(| .*)$", flags=re.MULTILINE)
    named = on_pages(lambda page: pattern.findall("\n".join(inline_code(page))))
    assert any("--" in words for _, (_, words) in named)
    for page, (command, words) in named:
        options = {option for each in COMMANDS[command].params for option in (*each.opts, *each.secondary_opts)}
        assert set(re.findall(r"(?<!\S)--\S+", words)) <= options | {"--help"}, (page, command, words)


def test_make_targets_are_there():
    targets = set(re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split())
    code = on_pages(lambda page: [*code_lines(page), *inline_code(page)])
    named = [(page, match[1]) for page, line in code if (match := re.match(r"make (?:PYTHON=\S+ ?)?([a-z-]+)", line))]
    assert len(named) > 10
    assert [(page, name) for page, name in named if name not in targets] == []


# ---- Python


def test_python_compiles():
    for page, (language, content) in on_pages(fenced):
        if language in ("python", "{code-cell}") and "use rule" not in content:  # which is a Snakefile
            compile(re.sub(r"^:tags:.*$", "", content, flags=re.MULTILINE), page, "exec")


@pytest.mark.slow
def test_python_of_the_readme_runs(example_cells, small_settings, tmp_path, monkeypatch):
    [code] = [text for language, text in fenced(ROOT / "README.md") if language == "python" and "import bdm" in text]
    monkeypatch.chdir(tmp_path)
    cells = example_cells.copy()
    cells.obs["cell_type"] = cells.obs["bulk_labels"].astype(str).replace("CD56+ NK", "NK")
    known = cells.obs["cell_type"].isin(["CD19+ B", "NK", "Dendritic"])
    held_out = cells[known].copy()
    held_out.X.data[::2] += 1  # so that they are none of the cells that the model is fitted on
    given = {
        "adata": cells[known].copy(),
        "adata_other": cells[cells.obs["cell_type"] == "CD14+ Monocyte"].copy(),
        "adata_test": held_out,
        "settings": small_settings,
    }
    quick = code.replace('label_key="cell_type")', 'label_key="cell_type", settings=settings)')
    assert quick != code
    exec(compile(quick.replace("generate(1000)", "generate(10)"), "README.md", "exec"), given)
    assert (tmp_path / "model/model.json").is_file()
    assert set(given["model"].model.cell_types) == {"CD19+ B", "NK", "Dendritic", "CD14+ Monocyte"}


def test_counts_are_recovered_as_documented(example_cells):
    [code] = [content for language, content in fenced(ROOT / "docs/own_data.md") if "expm1" in content]
    found: dict = {}
    exec(compile(code, "own_data.md", "exec"), found)
    assert (found["adata_counts"].X != example_cells.X).nnz == 0
    assert prepare(found["adata_counts"], PrepareSettings(label_key="bulk_labels")).n_obs > 600


def run_blocks(page: str, title: str, found: dict, *, replacing: tuple[str, str] = ("", "")) -> None:
    """Run the Python of a section, block by block, except what needs packages that the tests lack."""
    text = (ROOT / "docs" / page).read_text()
    section = re.split(r"\n##+ ", text.split(f"# {title}\n")[1])[0]
    for language, content in [(m[2], m[3]) for m in FENCE.findall(section) if m[2] == "python"]:
        lines = [line for line in content.splitlines() if "leiden" not in line]
        exec(compile("\n".join(lines).replace(*replacing), language, "exec"), found)


def test_generated_and_real_cells_are_joined(example_cells, tiny_settings, caplog):
    adata = example_cells.copy()
    adata.obs["Plate / run"] = np.where(np.arange(700) % 2, "one", "two")
    model = BranchedDiffusion(adata, "bulk_labels", batch_key="Plate / run", settings=tiny_settings).fit()
    assert "obs['Plate / run'] is named 'Plate _ run' in files and in generated cells" in caplog.text
    found = {"model": model, "adata": adata}
    few = ("generate(100)", "generate(2)")
    run_blocks("questions.md", "How do I join generated and real cells?", found, replacing=few)
    cells = found["cells"]
    assert cells.X.dtype == np.float32
    assert cells.obs[["bulk_labels", "Plate _ run"]].notna().all(axis=None)
    assert cells.obs["source"].value_counts().to_dict() == {"real": 700, "generated": found["generated"].n_obs}


@pytest.mark.slow
def test_clusters_are_labels(example_cells, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = {"adata": example_cells.copy()}
    run_blocks("own_data.md", "Without labels", found, replacing=("n_top_genes=2000", "n_top_genes=200"))
    prepared = prepare(found["adata"], PrepareSettings(label_key="cluster", counts="counts", test=0.2))
    assert prepared.obs["cell_type"].nunique() > 2


@pytest.mark.slow
def test_page_on_any_simulator_runs(example_cells, tmp_path, monkeypatch, bdm):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/any_simulator.md"
    first, *commands = [line.removeprefix("bdm ") for line in code_lines(page) if line.startswith("bdm ")]
    assert first == "example cells.h5ad"
    example_cells.write_h5ad("cells.h5ad")
    divide, simulate, show = [content for language, content in fenced(page) if language == "python"]
    found: dict = {}
    for content in (divide, simulate):
        exec(compile(content, page.name, "exec"), found)
    [command] = commands
    assert bdm(*shlex.split(command), "--n-repeats=1", "--max-cells-per-type=20")[0] == 0
    exec(compile(show, page.name, "exec"), found)
    evaluation = found["evaluation"]
    assert evaluation.overall.loc["memorisation", "copies"] > 0.9
    [script] = [line.removeprefix("python ") for line in code_lines(page) if line.startswith("python ")]
    path, *arguments = shlex.split(script)
    monkeypatch.setattr("sys.argv", [path, *arguments, "--n-repeats=1"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert Path("properties.png").stat().st_size > 10_000
    table = pd.read_csv("properties.csv").query("by == 'all'").set_index(["method", "property"])
    excess = (table["value"] - table["floor"])["simulated"]
    assert excess[["mean", "variance", "zero_fraction"]].max() < 0.05
    assert excess[["library_size", "cell_zero_fraction", "clustering"]].min() > 0.05


@pytest.mark.slow
def test_page_on_modalities_runs(tmp_path, monkeypatch, small_settings):
    """By mudata, where muon, which reads files of Cell Ranger, is not installed."""
    pytest.importorskip("mudata")
    monkeypatch.chdir(tmp_path)
    write_h5mu(tmp_path / "cells.h5mu", joined())
    section = (ROOT / "docs/modalities.md").read_text().partition("## In a notebook")[2]
    code = FENCE.search(section)[4]
    for old, new in (
        ("import muon\n", "import mudata\n"),
        ('muon.read_10x_h5("filtered_feature_bc_matrix.h5")', 'mudata.read_h5mu("cells.h5mu")'),
        ("settings = bdm.Settings(prepare=bdm.PrepareSettings(test=0.2))", ""),
        ("generate(2000)", "generate(20)"),
    ):
        assert old in code
        code = code.replace(old, new)
    settings = replace(small_settings, prepare=replace(small_settings.prepare, test=0.2))
    given = {"settings": settings}
    exec(compile(code, "modalities.md", "exec"), given)
    assert list(given["mdata_new"].mod) == ["rna", "prot", "atac"]


def test_page_on_designed_experiments_runs(small_model, tmp_path, monkeypatch, bdm):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs/designed_experiments.md"
    blocks = fenced(page)
    (design, with_covariates, with_region), [code] = (
        [text for kind, text in blocks if kind == of] for of in ("yaml", "python")
    )
    assert read_design(yaml.safe_load(with_covariates)).samples.covariates
    assert read_design(yaml.safe_load(with_region)).changes[0].region
    assert yaml.safe_load(design) == yaml.safe_load((ROOT / "config/example-experiment.yaml").read_text())
    Path("design.yaml").write_text(design.replace("cells: 500", "cells: 100"))
    small_model.save("model")
    [command] = [line for line in code_lines(page) if line.startswith("bdm simulate")]
    assert bdm(*shlex.split(command)[1:])[0] == 0
    check_r_reads(Path("experiment.h5ad"))
    found: dict = {}
    exec(compile(code, page.name, "exec"), found)
    assert set(pd.read_csv("truth.csv")["gene"]) == set(found["truth"]["gene"])
    is_planted = found["found"]["gene"].isin(found["truth"]["gene"])
    assert is_planted.sum() >= 5
    assert (~is_planted).sum() <= 1


def test_page_on_conditions_runs(example_cells, tmp_path, monkeypatch, bdm):
    """With identifiers as gene names, counts in a layer, and cells without a label."""
    monkeypatch.chdir(tmp_path)
    cells = example_cells.copy()
    number = np.arange(cells.n_obs)
    cells.var = pd.DataFrame({"feature_name": cells.var_names}, index=[f"ENSG{i:011d}" for i in range(cells.n_vars)])
    cells.layers["raw_counts"] = cells.X.copy()
    cells.X = cells.X.log1p()
    types = cells.obs["bulk_labels"].astype(object).where(number % 50 > 0)
    cells.obs = pd.DataFrame({"cell_type": types, "donor": np.where(number % 3, "one", "two")}, cells.obs_names)
    cells.obs["condition"] = np.where(number % 2, "control", "stimulated")
    cells.write_h5ad("cells.h5ad")
    page = ROOT / "docs/conditions.md"
    first, *others = [content for language, content in fenced(page) if language == "python"]
    exec(compile(first, "first", "exec"), {})
    [mine] = [yaml.safe_load(content)["datasets"]["blood"] for language, content in fenced(page) if language == "yaml"]
    fit, generate, _ = [line for line in code_lines(page) if line.startswith("bdm ")]
    keys = {f"--{key.replace('_', '-')}" for key in [*mine, *mine["prepare"]]}
    assert keys - set(fit.split()) == {"--path", "--prepare"}
    few = ("--n-genes=60", "--keep-genes=none", "--n-latent=4", "--autoencoder-n-steps=5", "--train-n-steps=5")
    assert bdm(*shlex.split(fit)[1:], *few)[0] == 0
    assert bdm(*shlex.split(generate.replace("100", "3"))[1:])[0] == 0
    found: dict = {}
    for content in others:
        exec(compile(content, page.name, "exec"), found)
    assert {"label", "donor", "original_type", "condition"} <= set(found["transmuted"].obs)
    assert "feature_name" in found["generated"].var


# ---- the pages agree with the messages of bdm


def test_messages_are_those_that_bdm_prints(example_cells, tmp_path, monkeypatch, bdm):
    """In a folder with the files of docs/own_data.md."""
    monkeypatch.chdir(tmp_path)
    cells = example_cells.copy()
    cells.obs = cells.obs[["bulk_labels", "louvain"]].rename(columns={"bulk_labels": "cell_type"})
    cells.write_h5ad("cells.h5ad")
    normalised = cells.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)
    sc.pp.log1p(normalised)
    normalised.write_h5ad("lognormalised.h5ad")
    normalised.layers["umis"] = cells.X
    normalised.write_h5ad("layered.h5ad")
    unlabelled = cells.copy()
    unlabelled.obs.iloc[3:9, 0] = np.nan
    unlabelled.write_h5ad("unlabelled.h5ad")
    names = cells.obs_names[:690]
    pd.DataFrame({"subclass": "T"}, index=names.rename("cell")).to_csv("labels.csv")
    repeated = cells.copy()
    repeated.var_names = ["CD74" if i < 2 else name for i, name in enumerate(cells.var_names)]
    repeated.write_h5ad("repeated.h5ad")
    Path("ensembl.txt").write_text("ENSG00000019582\nENSG00000101439\n")
    empty = cells.copy()
    empty.X = empty.X.toarray()
    empty.X[5] = 0
    empty.write_h5ad("empty.h5ad")
    shown = [content.splitlines() for language, content in fenced(ROOT / "docs/own_data.md") if language == "console"]
    assert len(shown) > 5
    for command, message in shown:
        code, err = bdm(*shlex.split(command)[2:])
        assert (code, err.splitlines()[-1]) == (2, message)


def test_limits_of_the_verdict_are_those_of_the_code():
    row = re.compile(r"^\| ([^|]+) \| `(\w+)` \| ([\d.]+)(% of the floor|) \| ([\d.]+)\4 \|$", flags=re.MULTILINE)
    table = row.findall((ROOT / "docs/reading_results.md").read_text())
    limits = {key: (score.name, score.same, score.near, score.relative) for key, score in JUDGED.items()}
    written = {
        key: (name, *(float(value) / (100 if share else 1) for value in (same, near)), bool(share))
        for name, key, same, share, near in table
    }
    assert written == limits


def test_reference_of_the_configuration_is_that_of_the_schema():
    spec = importlib.util.spec_from_file_location("config_reference", ROOT / "docs/config_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for page in (module.DESIGNS, module.README):
        written = page.read_text()
        assert module.with_tables(written, module.schema()) == written, "run make config"
    assert module.SCHEMA.read_text() == module.schema_file(module.schema()), "run make config"
    schema = json.loads(module.SCHEMA.read_text())
    for part in [schema, *schema["$defs"].values()]:
        for key, value in part["properties"].items():
            assert "$ref" in value or f"| `{key}` | " in written
