"""What other sites read from this repository: the registry of scverse, PyPI, and the forms of GitHub."""

import re
import tomllib
from pathlib import Path

import yaml
from test_docs import anchors

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SITE = PROJECT["urls"]["Documentation"]


def test_registry_of_scverse_has_the_names_of_the_package():
    meta = yaml.safe_load((ROOT / ".github/scverse/meta.yaml").read_text())
    assert (meta["name"], meta["install"]["pypi"]) == (PROJECT["name"], PROJECT["name"])
    assert meta["license"] == PROJECT["license"]
    assert meta["project_home"] == PROJECT["urls"]["Source"]
    assert meta["documentation_home"].rstrip("/") == SITE
    assert len(meta["tags"]) <= 10


def test_links_to_the_site_lead_to_pages():
    paths = [
        ROOT / "README.md",
        ROOT / "pyproject.toml",
        *(ROOT / ".github").rglob("*.*ml"),
        *(ROOT / ".github").rglob("*.md"),
    ]
    link = re.compile(rf"{re.escape(SITE)}/page/(\w+)\.html(?:#([\w-]+))?")
    links = [found for path in paths for found in link.findall(path.read_text())]
    assert len(links) > 3
    for page, anchor in links:
        assert (ROOT / f"docs/{page}.md").is_file()
        assert not anchor or anchor in anchors(ROOT / f"docs/{page}.md")
