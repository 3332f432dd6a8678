"""The archive of ``snakemake --report``, as a browser shows it."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import jinja2
import pytest
from test_configuration import CONFIG, FILES, GROWN, MINE, OF_MODULE, finish, importer  # noqa: F401
from test_report import browser  # noqa: F401
from test_workflow import ROOT, snakemake

OTHER = "other"
CATEGORIES = {
    "Audit": {MINE},
    "Designed experiments": {MINE, GROWN},
    "Evaluation": {MINE, GROWN, OTHER},
    "Extension": {GROWN},
    "Hierarchy": {MINE, OTHER},
    "Interpretation": {MINE, GROWN, OTHER},
    "Lineage": {MINE},
    "Report": {MINE, GROWN, OTHER},
    "Responses": {MINE},
    "Transmutation": {MINE, GROWN},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Archive of results that are empty files, of two data sets and of one that grows, with captions that are valid.

    Snakemake writes nothing for a name that a caption uses and the rule does not have, and reports invalid
    reStructuredText in its log alone.
    """
    folder = tmp_path_factory.mktemp("archive")
    arguments = ["--snakefile", ROOT / "Snakefile"]
    config = CONFIG | {"datasets": CONFIG["datasets"] | {OTHER: {"path": "other.h5ad"}}}
    finish(folder, config, *arguments, files=[folder / name for name in FILES])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jinja2, "Environment", partial(jinja2.Environment, undefined=jinja2.StrictUndefined))
        done = snakemake("--report", "archive.html", *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r"^<string>:.*", done.stderr, flags=re.MULTILINE) == []
    return folder / "archive.html"


@pytest.mark.slow
def test_archive_names_the_data_sets(archive):
    page = archive.read_text()
    assert all(f"<li><strong>{name}</strong>: cells from" in page for name in (MINE, OTHER))


@pytest.mark.slow
@pytest.mark.parametrize("importer", ["in here/"], indirect=True)
def test_archive_of_another_workflow_names_the_data_sets(importer):  # noqa: F811
    done = snakemake("--report", "archive.html", cwd=importer[0].parent)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (importer[0].parent / "archive.html").read_text()
    assert "<strong>mine</strong>: cells from" in page


# ---- in a browser, last, as Snakemake does not run in a process that has one


@pytest.fixture
def page(archive, browser) -> Iterator[object]:  # noqa: F811
    faults = []
    page = browser.new_page()
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.goto(archive.as_uri())
    yield page
    assert faults == []
    page.close()


def test_archive_has_all_categories(page):
    shown = page.evaluate("categories")
    assert {category: set(of) for category, of in shown.items()} == CATEGORIES
    assert sum(len(results) for of in shown.values() for results in of.values()) == len(page.evaluate("results"))
