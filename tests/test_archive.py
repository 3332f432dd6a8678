"""The archive of ``snakemake --report``, as a browser shows it."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_configuration import CONFIG, FILES, GROWN, MINE, OF_MODULE, finish, importer  # noqa: F401
from test_report import browser  # noqa: F401
from test_workflow import ROOT, snakemake

CATEGORIES = {
    "Audit": {MINE},
    "Designed experiments": {MINE, GROWN},
    "Evaluation": {MINE, GROWN},
    "Extension": {GROWN},
    "Hierarchy": {MINE},
    "Interpretation": {MINE, GROWN},
    "Report": {MINE, GROWN},
    "Transmutation": {MINE, GROWN},
}


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Archive of results that are empty files, of a data set and of one that it grows to."""
    folder = tmp_path_factory.mktemp("archive")
    arguments = ["--snakefile", ROOT / "Snakefile"]
    finish(folder, CONFIG, *arguments, files=[folder / name for name in FILES])
    done = snakemake("--report", "archive.html", *arguments, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "archive.html"


@pytest.fixture
def page(browser, archive) -> Iterator[object]:  # noqa: F811
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


@pytest.mark.parametrize("category", CATEGORIES)
def test_category_lists_its_results(page, category):
    shown = page.evaluate("categories")[category]
    for dataset, results in shown.items():
        page.reload()
        page.get_by_role("link", name=category, exact=True).click()
        if len(shown) > 1:
            page.get_by_role("link", name=dataset, exact=True).click()
        assert page.locator("tbody tr").count() == len(results), dataset


@pytest.mark.parametrize("term", ["re:.", "genes", "likelihood", "re:nodes|agreement.png", f"{MINE}/evaluation/umap"])
def test_search_lists_what_it_finds(page, term):
    found = [path for path in page.evaluate("results") if re.search(term.removeprefix("re:"), path)]
    assert found
    page.get_by_role("searchbox").or_(page.get_by_placeholder("Search")).fill(term)
    page.keyboard.press("Enter")
    assert page.locator("tbody tr").count() == len(found)


def test_archive_names_the_data_sets(archive):
    assert "<strong>mine</strong>: cells from" in archive.read_text()


@pytest.mark.parametrize("importer", ["in here/"], indirect=True)
def test_archive_of_another_workflow_names_the_data_sets(importer):  # noqa: F811
    done = snakemake("--report", "archive.html", cwd=importer[0].parent)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (importer[0].parent / "archive.html").read_text()
    assert "<strong>mine</strong>: cells from" in page
