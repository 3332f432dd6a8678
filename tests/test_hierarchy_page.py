import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from test_hierarchy_figure import divided

from bdm.hierarchy.files import branch_table
from bdm.hierarchy.tree import Branch, Hierarchy
from bdm.plotting.hierarchy_figure import view_of
from bdm.plotting.hierarchy_page import tree_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NAMES = [
    "B", "CD4+ T", "</script><script>alert(1)</script>", "<!-- x", 'it\'s "T" & co', "é 日本 🧬", "a\\b\u2028c", "${x}",
]  # fmt: skip


def balanced(names: list[str], *, level: float = 8.0) -> Hierarchy:
    """Tree that halves the names at every node."""
    branches: list[Branch] = []

    def add(part: list[str], parent: str | None, level: float) -> None:
        name = part[0] if len(part) == 1 else f"node {len(branches) + 1}"
        inner = len(part) > 1
        branches.append(Branch(name, parent, level if inner else 0.0, 10 * len(part), 0.5 if inner else None))
        if inner:
            add(part[: len(part) // 2], name, level * 0.8)
            add(part[len(part) // 2 :], name, level * 0.7)

    add(names, None, level)
    return Hierarchy(tuple(branches), 2 * level, 0.9)


SMALL, LARGE = balanced(NAMES), balanced([f"type {i:03}" for i in range(500)])


# D has two sub-populations, and A has three, of which the second is nearer to C
DIVIDED = divided(balanced(list("ABCD")), {"A": 3, "D": 2})
STRAY = tuple(replace(branch, nearer_to="C") if branch.name == "A/2" else branch for branch in DIVIDED.branches)
DIVIDED = replace(DIVIDED, branches=STRAY)
MANY = divided(LARGE, dict.fromkeys(LARGE.cell_types, 3))


class Scripts(HTMLParser):
    """Collects scripts, and what is loaded from elsewhere, as a browser reads a page."""

    def __init__(self, page: str):
        super().__init__()
        self.scripts, self.loaded, self.open = [], [], None
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.loaded += [given[key] for key in ("src", "href", "srcset", "data") if key in given]
        if tag == "script":
            self.open = given.get("id")
            self.scripts.append((self.open, ""))

    def handle_data(self, data):
        if self.lasttag == "script" and self.scripts:
            name, text = self.scripts[-1]
            self.scripts[-1] = name, text + data


def data_in(page: str) -> dict:
    [(_, text)] = [script for script in Scripts(page).scripts if script[0] == "data"]
    return json.loads(text)


@pytest.mark.parametrize("hierarchy", [SMALL, LARGE, DIVIDED, MANY], ids=["small", "large", "divided", "many"])
def test_page_holds_the_whole_tree(hierarchy):
    branches = data_in(tree_page(hierarchy))["branches"]
    assert [branch["name"] for branch in branches] == [branch.name for branch in hierarchy.branches]
    parents = [None if branch["parent"] is None else branches[branch["parent"]]["name"] for branch in branches]
    assert parents == [branch.parent for branch in hierarchy.branches]
    for shown, branch in zip(branches, hierarchy.branches, strict=True):
        assert (shown["cells"], shown["support"], shown["added"]) == (branch.n_cells, branch.support, branch.added)
        assert shown["level"] == pytest.approx(branch.level, abs=1e-3)
        assert shown.get("type", branch.name) == (branch.cell_type or branch.name)
        assert shown.get("nearer") == branch.nearer_to


def test_page_opens_what_the_figure_shows():
    for root, options in {"node 1": {}, "node 2": {"sub_populations": True}, "type 007": {}}.items():
        data = data_in(tree_page(MANY, root=root, max_rows=30, **options))
        assert MANY.branches[data["top"]].name == root
        opened = [MANY.branches[i].name for i in data["opened"]]
        assert opened == list(view_of(MANY, root=root, max_rows=30, **options).opened)
        assert len(opened) == (29 if root.startswith("node") else 1)


def test_names_cannot_break_out_of_the_data():
    page = tree_page(SMALL, title="</title><script>alert(2)</script>")
    assert [name for name, _ in Scripts(page).scripts] == ["data", None]
    assert "<script>alert" not in page
    assert {branch["name"] for branch in data_in(page)["branches"]} >= set(NAMES)


def test_page_needs_no_network():
    page = tree_page(LARGE)
    assert not Scripts(page).loaded
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", page)
    assert re.findall(r"https?://[^\"' )]+", page) == ["http://www.w3.org/2000/svg"]
    assert len(page.encode()) < 200_000
    assert len(tree_page(MANY).encode()) < 400_000


def test_table_lists_every_branch(tmp_path: Path):
    hierarchy = replace(LARGE, branches=tuple(replace(b, added=int(b.name == "type 007")) for b in LARGE.branches))
    branch_table(hierarchy).to_csv(tmp_path / "tree.csv", index=False)
    table = pd.read_csv(tmp_path / "tree.csv").set_index("branch")
    assert list(table.index) == [branch.name for branch in hierarchy.branches]
    assert table["parent"].isna().sum() == 1
    assert table.loc["node 1", ["n_types", "n_cells", "support", "added"]].tolist() == [500, 5000, 0.5, 0]
    assert (table["cell_types"].str.count("; ") + 1 == table["n_types"]).all()
    assert table.index[table["added"] == 1].tolist() == ["type 007"]
    assert (table.loc[table["n_types"] == 1, "level"] == 0).all()
    assert (table["n_populations"] == table["n_types"]).all()
    assert table["nearer_to"].isna().all()


def test_table_lists_sub_populations(tmp_path: Path):
    branch_table(DIVIDED).to_csv(tmp_path / "tree.csv", index=False)
    table = pd.read_csv(tmp_path / "tree.csv").set_index("branch")
    assert table["cell_type"].dropna().to_dict() == {
        **dict.fromkeys(["A", "A/1", "A/2", "A/3"], "A"),
        **{"B": "B", "C": "C"},
        **dict.fromkeys(["D", "D/1", "D/2"], "D"),
    }
    assert table["nearer_to"].dropna().to_dict() == {"A/2": "C"}
    assert table.loc["node 1", ["n_types", "n_populations", "cell_types"]].tolist() == [4, 7, "A; B; C; D"]
    assert table.loc["A", ["n_types", "n_populations", "cell_types"]].tolist() == [1, 3, "A"]
    assert table.loc["A/2", ["n_types", "n_populations", "n_cells", "parent"]].tolist() == [1, 1, 3, "A"]


# ---- in a browser


def dom(folder: Path, hierarchy: Hierarchy, script: str = "") -> str:
    """Page as it is after a script has used it; what went wrong is in ``data-error``."""
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    errors = "window.onerror = (message) => { document.body.dataset.error = message; };"
    page = tree_page(hierarchy).replace("<script", f"<script>{errors}</script><script", 1)
    (folder / "tree.html").write_text(page.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=900,700", "--dump-dom"]
    done = subprocess.run(
        [*command, f"--user-data-dir={folder}/profile", f"file://{folder}/tree.html"], capture_output=True, timeout=120
    )
    text = done.stdout.decode()
    assert text, done.stderr.decode()
    assert "data-error" not in text, text[:500]
    return text


def items(text: str) -> list[str]:
    """What a screen reader announces of each branch that is drawn."""
    return re.findall(r'<g role="treeitem"[^>]*aria-label="([^"]*)"', text)


def chosen(text: str) -> str:
    [item] = re.findall(r'<g role="treeitem"[^>]*aria-selected="true"[^>]*>', text)
    return re.search('aria-label="([^"]*)"', item).group(1)


KEYS = """
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
element(branches[0]).focus();
"""


@pytest.mark.nightly
def test_browser_closes_cell_types_at_first_and_opens_one_on_a_click(tmp_path):
    assert len(items(dom(tmp_path, DIVIDED))) == 7
    found = "element(branches.find(({ name }) => name === 'A'))"
    click = f"{found}.dispatchEvent(new MouseEvent('click', {{bubbles: true}}));"
    text = dom(tmp_path, DIVIDED, click)
    assert chosen(text) == "A, level 0.5, 3 sub-populations, 10 cells"
    parts = [f"A/{i}, 3 cells, 33% of A" for i in (1, 2, 3)]
    assert [item for item in items(text) if item.startswith("A/")] == parts
    assert len(items(text)) == 10
    assert re.search('<p id="stray">A/2 is nearer to C than to the other sub-populations of A.</p>', text)
    assert re.findall(r'<button type="button">(A/\d[^<]*)<', text) == [f"A/{i} (3, 33%)" for i in (1, 2, 3)]
    assert len(items(dom(tmp_path, DIVIDED, click + click))) == 7


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("hierarchy", "query", "item", "number"),
    [
        (DIVIDED, "d", "D, level 0.5, 2 sub-populations, 10 cells", 1),
        (DIVIDED, "d/2", "D/2, 5 cells, 50% of D", 1),
        (LARGE, "TYPE 33", "type 330, 10 cells", 10),
    ],
)
def test_search_opens_the_way_to_cell_types_and_sub_populations(tmp_path, hierarchy, query, item, number):
    search = f"query.value = {query!r}; query.dispatchEvent(new Event('input'));"
    text = dom(tmp_path, hierarchy, f"{search} document.getElementById('search').requestSubmit();")
    assert chosen(text) == item
    assert re.search(rf'<output id="found"[^>]*>{number} found<', text)


@pytest.mark.nightly
def test_browser_keeps_500_divided_types_closed_until_all_are_opened(tmp_path):
    text = dom(tmp_path, MANY)
    assert len(items(text)) == 79
    assert not re.search(r'aria-label="type \d+/', text)
    twice = 'document.getElementById("close-all").click(); toggle(branches[0]); toggle(branches[0]);'
    assert not re.search(r'aria-label="type \d+/', dom(tmp_path, MANY, twice))
    assert len(items(dom(tmp_path, MANY, 'document.getElementById("open-all").click();'))) == len(MANY.branches)


@pytest.mark.nightly
def test_keys_walk_and_collapse(tmp_path):
    walked = dom(tmp_path, LARGE, KEYS + 'for (const key of ["ArrowRight", "ArrowRight", "ArrowUp"]) press(key);')
    assert chosen(walked).startswith("node 2, level 6.4, support 50%, 250 types, 2,500 cells")
    closed = dom(tmp_path, LARGE, KEYS + 'press("ArrowLeft");')
    assert len(items(closed)) == 1
    assert 'aria-expanded="false"' in closed
